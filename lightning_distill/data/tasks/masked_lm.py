"""The task of a masked language model: the tokens that were hidden in a block."""

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
from lightning_distill.data.packing import CHECKED_BLOCKS
from lightning_distill.data.splits import SPLITS
from lightning_distill.data.tasks.text import BlockTask
from lightning_distill.data.tokenizer import MASK, marked_text, special_tokens_around
from lightning_distill.errors import ConfigError
from lightning_distill.metrics.quality import Quality
from lightning_distill.models.inspection import vocabulary_size
from lightning_distill.models.sizes import Size, encoder
from lightning_distill.storage.artifacts import Store

MASKED, RANDOM = 0.8, 0.1  # of the chosen tokens; the rest stay as they are
SAMPLE_TOKENS = 48  # of a block


class MaskedLM(BlockTask):
    """Blocks of tokens, a share of which are chosen to be predicted (Devlin et al. 2019, BERT).

    mask_share: of a block's tokens. They depend on the block's index alone, so that teacher,
    student and cached predictions agree on them in every pass.
    Other settings: see `TextTask`.
    """

    auto_class = AutoModelForMaskedLM
    model_kind, hub_task = "masked language model", "fill-mask"
    required_tokens = ("mask_token",)
    special_tokens = (MASK,)

    def __init__(self, *shared: Any, mask_share: float, **settings: Any) -> None:
        """shared, settings: of every task on text."""
        require("data.mask_share", mask_share, 0.01, 0.9)
        super().__init__(*shared, **settings)
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
    def separator(self) -> list[int]:
        ids = self.tokenizer.eos_token_id, self.tokenizer.sep_token_id
        return [i for i in ids if i is not None][:1]

    def examples(self, split: str) -> "MaskedBlocks":
        return MaskedBlocks(
            self._tokens[split], self.sequence_length, self.mask_share, self.tokenizer
        )

    def first_items(self, split: str) -> Tensor:
        blocks = self.examples(split)
        return self._tokens[f"{split}_documents"][:: blocks.room][: len(blocks)].long()

    @property
    def example_settings(self) -> dict[str, Any]:
        return {
            "data.sequence_length": self.sequence_length,
            "data.mask_share": self.mask_share,
        }

    def new_model(self, size: Size) -> PreTrainedModel:
        return encoder(ModernBertForMaskedLM, size, self.tokenizer)

    def adapt_model(self, model: PreTrainedModel, name: str, is_trained: bool) -> None:
        saved = model.config.architectures or []
        has_head = type(model).__name__ in saved or any("PreTraining" in x for x in saved)
        if not is_trained and not has_head:
            raise ConfigError(
                f"teacher.name={name} has no trained masked-language-modeling head. Set "
                "teacher.max_steps to train one, or name a masked language model."
            )

    def check_model(self, model: PreTrainedModel, name: str) -> None:
        if model.config.is_encoder_decoder:
            raise ConfigError(
                f"{name}, a {type(model).__name__}, is an encoder-decoder; masked language "
                "modeling needs an encoder: BERT or RoBERTa, for one."
            )
        super().check_model(model, name)

    def check_labels(self) -> str:
        shares = []
        for split in SPLITS:
            examples = self.examples(split)
            checked = range(min(len(examples), CHECKED_BLOCKS))
            hidden = torch.stack([examples[i]["labels"] != IGNORED for i in checked])
            shares.append(f"{hidden.float().mean():.1%} of {split}")
        return f"hidden tokens, {', '.join(shares)}"

    def quality_metric(self) -> Quality:
        return Quality()  # bits per byte are of language models alone

    def learned_example(self, index: int) -> str:
        block = self.examples("train")[index]
        learned = block["labels"] != IGNORED
        ids = torch.where(learned, block["labels"], block["input_ids"])
        return marked_text(self.tokenizer, ids, learned)

    def sample_prompts(self) -> list[str]:
        test = self.examples("test")
        ids = (test[index]["input_ids"][:SAMPLE_TOKENS] for index in self.sample_indices)
        return [str(self.tokenizer.decode(row)) for row in ids]

    @torch.no_grad()
    def sample_answer(
        self, model: PreTrainedModel, number: int, prompt: str | None, seed: int
    ) -> str:
        """The text with the most probable token, in brackets, at each hidden place."""
        example = self.examples("test")[self.sample_indices[number]]
        logits = model.eval()(input_ids=example["input_ids"][None].to(model.device)).logits
        predictions = logits[0, :SAMPLE_TOKENS, : self.num_classes].argmax(-1).tolist()
        parts = []
        for token, prediction, label in zip(
            example["input_ids"].tolist(), predictions, example["labels"].tolist(), strict=False
        ):
            text = str(self.tokenizer.decode([prediction if label != IGNORED else token]))
            parts.append(text if label == IGNORED else f"[{text}]")
        return "".join(parts)


class MaskedBlocks(Dataset[dict[str, Tensor]]):
    """A split in blocks of T tokens, which include the special tokens around a text.

    tokens: [S] all documents of the split. Tokens that fill no whole block are dropped.
    """

    def __init__(
        self,
        tokens: Tensor,
        sequence_length: int,
        share: float,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.tokens, self.positions, self.share = tokens, sequence_length, share
        before, after = special_tokens_around(tokenizer)
        self.before, self.after = torch.tensor(before).long(), torch.tensor(after).long()
        self.room = max(1, sequence_length - len(before) - len(after))
        self.mask_id, self.vocab_size = int(tokenizer.mask_token_id), vocabulary_size(tokenizer)
        self.special = torch.tensor(tokenizer.all_special_ids)

    def __len__(self) -> int:
        return len(self.tokens) // self.room

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """input_ids and labels [T], and the block's index."""
        text = self.tokens[index * self.room : (index + 1) * self.room].long()
        ids = torch.cat([self.before, text, self.after])
        generator = torch.Generator().manual_seed(index)
        maskable = ~torch.isin(ids, self.special)
        available = int(maskable.sum())
        count = min(available, max(1, round(self.share * available)))
        order = torch.rand(len(ids), generator=generator).masked_fill(~maskable, -1)
        chosen = order.topk(count).indices
        action = torch.rand(count, generator=generator)
        random_ids = torch.randint(self.vocab_size, (count,), generator=generator)
        replacements = torch.where(action < MASKED + RANDOM, random_ids, ids[chosen])
        labels = torch.full_like(ids, IGNORED)
        labels[chosen] = ids[chosen]
        input_ids = ids.clone()
        input_ids[chosen] = replacements.masked_fill(action < MASKED, self.mask_id)
        return {"input_ids": input_ids, "labels": labels, "block": torch.tensor(index)}
