"""From a source's documents to batches, whatever the source.

documents → split by hash → tokenizer (trained on the train split) → tokens → blocks → batches.
The tokenizer and the tokens are artifacts: made once, and shared by every job that agrees on them.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lightning_distill import ConfigError
from lightning_distill.artifacts import Store
from lightning_distill.data.packing import Blocks
from lightning_distill.data.tokenizer import train_tokenizer

SPLITS = ("train", "validation", "test")
HELD_OUT = 18  # one document in 18 is for validation, and one for the test
EDITION = 1  # raise it when this file starts to give other tokens for the same text


class Source(Protocol):
    """What a file of this package offers: documents, and a text that changes when they do."""

    def fingerprint(self) -> str: ...

    def documents(self) -> Iterator[str]: ...


class DataModule(L.LightningDataModule):
    """Blocks of tokens from one source.

    source: called with the remaining settings; the ones that only it needs.
    sequence_length: tokens a block. batch_size: blocks a micro-batch.
    vocab_size: of the tokenizer that is trained here, where no pretrained model brings its own.
    isolate_documents: neither attention nor loss crosses from one document into the next.
    """

    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        source: Callable[..., Source],
        sequence_length: int,
        batch_size: int,
        vocab_size: int,
        isolate_documents: bool,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.source = source(**settings)
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.vocab_size = vocab_size
        self.isolate_documents = isolate_documents
        self.train_on(None, seed=0)

    def prepare(self, store: Store, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Tokenizes the text, unless that was done. tokenizer: None for one of our own."""
        made_from = {"source": self.source.fingerprint(), "edition": EDITION}
        if tokenizer is None:
            own = made_from | {"vocab_size": self.vocab_size}
            folder = store.get("tokenizer", own, self._make_tokenizer).folder
            tokenizer = AutoTokenizer.from_pretrained(folder)
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                f"The tokenizer of {tokenizer.name_or_path} has no end-of-text token (eos_token), "
                "which closes each document. Add one to its tokenizer_config.json."
            )
        self.tokenizer = tokenizer
        made_from["tokenizer"] = tokenizer_hash(tokenizer)
        self.artifact = store.get("tokens", made_from, self._make_tokens)
        self._tokens = load_file(self.artifact.folder / "tokens.safetensors")
        self._bytes = json.loads((self.artifact.folder / "bytes.json").read_text())
        if (length := len(self._tokens["train"])) <= self.sequence_length:
            raise ConfigError(
                f"The text gives {length} tokens to train on, fewer than one block of "
                f"data.sequence_length={self.sequence_length} and the token after it. "
                "Bring more text or set a shorter data.sequence_length."
            )

    def train_on(self, dataset: Dataset[dict[str, Any]] | None, seed: int) -> None:
        """Chooses the blocks (all of the train split where None), and their order."""
        self.dataset, self.seed, self.start = dataset, seed, 0

    def blocks(self, split: str) -> Blocks:
        return Blocks(
            self._tokens[split],
            self._tokens[f"{split}_documents"],
            self.sequence_length,
            self.isolate_documents,
        )

    def bytes_per_token(self, split: str) -> float:
        return self._bytes[split] / len(self._tokens[split])

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Model and tokenizer as a folder that `from_pretrained` loads, without this package."""
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def describe(self) -> str:
        sizes = ", ".join(f"{len(self._tokens[s]):,} {s}" for s in SPLITS)
        return (
            f"tokens: {sizes}; vocabulary {len(self.tokenizer):,}; "
            f"{self.bytes_per_token('train'):.2f} bytes a token; {self.artifact.key}"
        )

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        blocks: Any = self.blocks("train") if self.dataset is None else self.dataset
        samples = self.trainer.max_steps * self.trainer.accumulate_grad_batches * self.batch_size
        order = Order(len(blocks), samples, self.seed, self.start)
        return DataLoader(blocks, self.batch_size, sampler=order)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.blocks("validation"), batch_size=8 * self.batch_size)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.blocks("test"), batch_size=8 * self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """The position in the order of blocks, so that a resumed run goes on behind it."""
        assert self.trainer is not None
        steps = self.trainer.global_step * self.trainer.accumulate_grad_batches
        return {"start": steps * self.batch_size, "seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start, self.seed = state_dict["start"], state_dict["seed"]

    @cached_property
    def _documents(self) -> dict[str, list[str]]:
        """The documents of each split, in the order of their hashes, none twice."""
        by_hash = {_sha256(d): d for d in self.source.documents() if d.strip()}
        if len(by_hash) < len(SPLITS):
            raise ConfigError(
                f"The text holds {len(by_hash)} documents; the {', '.join(SPLITS)} splits need "
                "one each. Bring more text (a .txt is cut every 1,500 to 3,000 characters)."
            )
        documents = [by_hash[key] for key in sorted(by_hash)]
        held = -(-len(documents) // HELD_OUT)
        return {
            "test": documents[:held],
            "validation": documents[held : 2 * held],
            "train": documents[2 * held :],
        }

    def _make_tokenizer(self, folder: Path) -> None:
        train_tokenizer(self._documents["train"], self.vocab_size).save_pretrained(folder)

    def _make_tokens(self, folder: Path) -> None:
        tensors: dict[str, Tensor] = {}
        sizes: dict[str, int] = {}
        for split in SPLITS:
            documents = self._documents[split]
            ids: list[int] = []
            numbers: list[Tensor] = []
            bar = tqdm(documents, desc=f"tokenizing {split}", unit="doc", disable=None)
            for number, text in enumerate(bar):
                own = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
                ids += [*own, self.tokenizer.eos_token_id]
                numbers.append(torch.full((len(own) + 1,), number, dtype=torch.int32))
            tensors[split] = torch.tensor(ids, dtype=torch.int32)
            tensors[f"{split}_documents"] = torch.cat(numbers)
            sizes[split] = sum(len(text.encode()) for text in documents)
        save_file(tensors, folder / "tokens.safetensors")
        (folder / "bytes.json").write_text(json.dumps(sizes))


class Order(Sampler[int]):
    """Indices of blocks for a whole training run: each pass over the blocks is shuffled anew.

    One run is one Lightning epoch, so that its progress bar counts steps to the end of training.
    """

    def __init__(self, num_blocks: int, num_samples: int, seed: int, start: int = 0) -> None:
        self.num_blocks, self.num_samples, self.seed, self.start = (
            num_blocks,
            num_samples,
            seed,
            start,
        )

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        order: list[int] = []
        for sample in range(self.num_samples):
            if sample % self.num_blocks == 0:
                order = torch.randperm(self.num_blocks, generator=generator).tolist()
            if sample >= self.start:
                yield order[sample % self.num_blocks]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Equal for two tokenizers only if they give every text the same ids."""
    if tokenizer.is_fast:
        return _sha256(tokenizer.backend_tokenizer.to_str())
    own = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    return _sha256(json.dumps(own))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
