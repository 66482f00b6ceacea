"""The task of a masked language model: which token stood where another is now, or a mask.

documents → split by hash → tokenizer → tokens, as of a language model → blocks, some of whose
tokens are hidden.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    AutoModelForMaskedLM,
    ModernBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_distill.config.validation import require
from lightning_distill.constants import IGNORED
from lightning_distill.data.packing import LOOKED_AT
from lightning_distill.data.sources.base import Source
from lightning_distill.data.splits import SPLITS
from lightning_distill.data.tasks.causal_lm import CausalLM
from lightning_distill.data.tokenizer import MASK, frame
from lightning_distill.errors import ConfigError
from lightning_distill.metrics.quality import Quality
from lightning_distill.models.sizes import Size, encoder
from lightning_distill.storage.artifacts import Store

MASKED, RANDOM = 0.8, 0.1  # of the tokens chosen; the rest stay as they are
SHOWN = 48  # tokens of a block


class MaskedLM(CausalLM):
    """Blocks of tokens, of which a share is chosen to be guessed (Devlin et al. 2019, BERT).

    mask_share: of a block's tokens. Which they are follows from the block's number, so that
    teacher, student and a cache of predictions have the same ones, in each pass.
    Other settings: see `CausalLM`.
    """

    auto_class = AutoModelForMaskedLM
    model_kind, hub_task = "masked language model", "fill-mask"
    is_generative = False
    streams = False
    shares_tokenizer = True
    needs = ("mask_token",)
    special_tokens = (MASK,)

    def __init__(
        self,
        source: Callable[..., Source],
        sequence_length: int,
        batch_size: int,
        vocab_size: int,
        mask_share: float,
        **settings: Any,
    ) -> None:
        require("data.mask_share", mask_share, 0.01, 0.9)
        super().__init__(source, sequence_length, batch_size, vocab_size, False, **settings)
        self.mask_share = mask_share

    def prepare(self, store: Store, tokenizer: PreTrainedTokenizerBase | None) -> None:
        super().prepare(store, tokenizer)
        for split in SPLITS:
            if not len(self.examples(split)):
                raise ConfigError(
                    f"The text gives {len(self._tokens[split])} tokens to the {split} split, fewer "
                    f"than one block of data.sequence_length={self.sequence_length}. "
                    "Bring more text or set a shorter data.sequence_length."
                )

    @property
    def closing(self) -> list[int]:
        ids = self.tokenizer.eos_token_id, self.tokenizer.sep_token_id
        return [i for i in ids if i is not None][:1]

    def examples(self, split: str) -> "MaskedBlocks":
        return MaskedBlocks(
            self._tokens[split], self.sequence_length, self.mask_share, self.tokenizer
        )

    @property
    def example_settings(self) -> dict[str, Any]:
        return {
            "data.sequence_length": self.sequence_length,
            "data.mask_share": self.mask_share,
        }

    def new_model(self, size: Size) -> PreTrainedModel:
        return encoder(ModernBertForMaskedLM, size, self.tokenizer)

    def adapt_model(self, model: PreTrainedModel, name: str, trains: bool) -> None:
        saved = model.config.architectures or []
        if not trains and not any("MaskedLM" in x or "PreTraining" in x for x in saved):
            raise ConfigError(
                f"teacher.name={name} has no trained head that guesses tokens. Set "
                "teacher.max_steps to train one, or name a masked language model."
            )

    def quality_metric(self) -> Quality:
        return Quality()

    def sample_prompts(self) -> list[str]:
        found = (
            self.examples("test")[number]["input_ids"][:SHOWN] for number in self.sample_indices
        )
        return [str(self.tokenizer.decode(ids)) for ids in found]

    @torch.no_grad()
    def sample_answer(
        self, model: PreTrainedModel, number: int, prompt: str | None, seed: int
    ) -> str:
        """The text with the most probable tokens in their places, each between brackets."""
        example = self.examples("test")[self.sample_indices[number]]
        guess = model.eval()(input_ids=example["input_ids"][None].to(model.device)).logits
        parts = []
        guesses = guess[0, :SHOWN, : self.num_classes].argmax(-1).tolist()
        for own, said, label in zip(
            example["input_ids"], guesses, example["labels"].tolist(), strict=False
        ):
            text = str(self.tokenizer.decode([said if label != IGNORED else int(own)]))
            parts.append(text if label == IGNORED else f"[{text}]")
        return "".join(parts)

    def check_labels(self) -> str:
        said = []
        for split in SPLITS:
            examples = self.examples(split)
            looked = range(min(len(examples), LOOKED_AT))
            share = torch.stack([examples[i]["labels"] != IGNORED for i in looked]).float().mean()
            said.append(f"{share:.1%} of {split}")
        return f"hidden tokens, {', '.join(said)}"


class MaskedBlocks(Dataset[dict[str, Tensor]]):
    """A split in blocks of T tokens, the special ones that frame a text included.

    tokens: [S] all documents of the split. What fills no block is left out.
    """

    def __init__(
        self,
        tokens: Tensor,
        sequence_length: int,
        share: float,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.tokens, self.positions, self.share = tokens, sequence_length, share
        self.before, self.behind = map(torch.tensor, frame(tokenizer))
        self.room = max(1, sequence_length - len(self.before) - len(self.behind))
        self.mask, self.vocab_size = int(tokenizer.mask_token_id), len(tokenizer)
        self.special = torch.tensor(tokenizer.all_special_ids)

    def __len__(self) -> int:
        return len(self.tokens) // self.room

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """input_ids and labels [T], and the block's number."""
        own = self.tokens[index * self.room : (index + 1) * self.room].long()
        own = torch.cat([self.before.long(), own, self.behind.long()])
        dice = torch.Generator().manual_seed(index)
        guessable = ~torch.isin(own, self.special)
        number = int(guessable.sum())
        count = min(number, max(1, round(self.share * number)))
        order = torch.rand(len(own), generator=dice).masked_fill(~guessable, -1)
        chosen = order.topk(count).indices
        kind = torch.rand(count, generator=dice)
        other = torch.randint(self.vocab_size, (count,), generator=dice)
        shown = torch.where(kind < MASKED + RANDOM, other, own[chosen])
        labels = torch.full_like(own, IGNORED)
        labels[chosen] = own[chosen]
        input_ids = own.clone()
        input_ids[chosen] = shown.masked_fill(kind < MASKED, self.mask)
        return {"input_ids": input_ids, "labels": labels, "block": torch.tensor(index)}
