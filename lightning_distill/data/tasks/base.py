"""From a source to batches, whatever is distilled: a language model, a translator, a classifier.

source → examples, split by hash → batches. What was made of a source (a tokenizer, tokens) are
artifacts: made once, and shared by every job that agrees on them.
"""

from collections.abc import Sized
from itertools import count
from typing import Any, ClassVar, Protocol

import lightning as L
import torch
from hydra.utils import get_class
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_distill.data.loaders import Loader, Order, Part, Share, start_method
from lightning_distill.models.sizes import Size
from lightning_distill.storage.artifacts import Artifact, Store

AHEAD = 8  # batches at most that a trainer has fetched and not trained on
PROMPTS = 3  # test examples that samples show


class Examples(Protocol):
    """One split. An example holds what models read, by the names of transformers, `labels` (-100
    where nothing is predicted), and `block`, its number in the split; all of them tensors.
    """

    @property
    def positions(self) -> int:
        """Predictions an example."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Tensor]: ...


class DistillationData(L.LightningDataModule):
    """The examples of one task, and all that the rest must know of that task.

    A child is a task: it brings its examples, the models that are built for it, and how they are
    measured. Training, losses, transfers, sweeps and reports are the same for all.
    batch_size: examples a micro-batch. num_workers: processes that bring them; 0 for this one.
    """

    auto_class: ClassVar[Any]  # transformers' class that loads models of the task
    model_kind: ClassVar[str] = "model"  # what such a model is, in a sentence
    hub_task: ClassVar[str | None] = None  # what the hub calls the task
    has_tokenizer: ClassVar[bool] = True
    is_generative: ClassVar[bool] = False  # models of it generate text
    continues_prompt: ClassVar[bool] = True  # generated text continues its prompt
    shares_tokenizer: ClassVar[bool] = True  # teacher and student read one batch
    streams_train = False  # the train split has no end, and workers of its own

    tokenizer: PreTrainedTokenizerBase
    artifact: Artifact  # what was made of the source; its key tells it from others

    def __init__(self, batch_size: int, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.num_workers = batch_size, num_workers
        self.set_train_examples(None, seed=0)

    def prepare(self, store: Store, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Makes examples of the source, unless that was done. tokenizer: None for one of our own.

        Raises ConfigError where the source has too little, or is not what its name says.
        """
        raise NotImplementedError

    def examples(self, split: str) -> Examples:
        raise NotImplementedError

    def transfer_set(self) -> Examples:
        """What a student may be trained on, of which `transfer.num_blocks` takes the first."""
        return self.examples("train")

    @property
    def num_classes(self) -> int:
        """V: what a prediction chooses among. Of text, the tokens of the vocabulary."""
        return len(self.tokenizer)

    @property
    def example_settings(self) -> dict[str, Any]:
        """The settings that decide what an example is, beside the artifact, by their keys."""
        raise NotImplementedError

    @property
    def transfer_set_settings(self) -> dict[str, Any]:
        """The settings that choose the transfer set from the train split, by their keys."""
        return {}

    def new_model(self, size: Size) -> PreTrainedModel:
        """An untrained model of that size. Its weights follow torch's random state."""
        raise NotImplementedError

    def adapt_model(self, model: PreTrainedModel, name: str, trains: bool) -> None:
        """Fits a loaded model's head to the task. trains: whether it is trained further, so that
        parts of it may be new. Raises ConfigError where it says other things than the task asks."""

    def check_model(self, model: PreTrainedModel, name: str) -> None:
        """Raises ConfigError where the model cannot read the examples; one without weights will
        do."""
        raise NotImplementedError

    def quality_metric(self) -> nn.Module:
        """What measures a model on the test split: `update(log_probs [N, V], labels [N])`, and
        `compute()`, a dictionary of numbers with `nll` in it."""
        raise NotImplementedError

    def score_generation(self, model: PreTrainedModel) -> dict[str, float]:
        """Further numbers, of what a model writes on the test split."""
        return {}

    @property
    def sample_indices(self) -> list[int]:
        """The test examples that samples show, by their numbers."""
        return spread(len(self.examples("test")), PROMPTS)

    def sample_prompts(self) -> list[str]:
        """What samples show of a few test examples."""
        raise NotImplementedError

    def sample_answer(
        self, model: PreTrainedModel, number: int, prompt: str | None, seed: int
    ) -> str:
        """What a model makes of the number-th of them. prompt: as other tokens have it, or None."""
        raise NotImplementedError

    # Of models that write:

    @property
    def max_length(self) -> int:
        """Tokens that a model may write; where it goes on from a beginning, with that one."""
        raise NotImplementedError

    @property
    def stop_token_ids(self) -> list[int]:
        """Tokens that end what a model writes."""
        raise NotImplementedError

    def check_prompt_length(self, length: int) -> None:
        """Raises ConfigError unless an example has room for a beginning of that length and more."""

    def prompt_tokens(self, batch: dict[str, Tensor], length: int) -> list[Tensor]:
        """What a model is given of each example to go on from, [P] tokens, on the processor.

        batch: with `round` [B], how often each example was asked for one before.
        """
        raise NotImplementedError

    def from_generated(self, lines: list[dict[str, Any]], theirs: "DistillationData") -> Examples:
        """Examples of what a teacher wrote. lines: prompt, text, prompt_ids and ids of each, in
        the tokens of `theirs`; what the prompts say is not there to be learned."""
        raise NotImplementedError

    def completion_batch(self, prompts: list[Tensor], new: list[list[int]]) -> dict[str, Tensor]:
        """A batch of prompts and what a model wrote behind them, which alone is predicted."""
        raise NotImplementedError

    def describe(self) -> str:
        raise NotImplementedError

    def check_labels(self) -> str:
        """What there is to predict. Raises ConfigError where a split has nothing, or nonsense."""
        raise NotImplementedError

    def save(self, model: PreTrainedModel, folder: Any) -> None:
        """Model and tokenizer as a folder that `from_pretrained` loads, without this package."""
        model.save_pretrained(folder)
        if self.has_tokenizer:
            self.tokenizer.save_pretrained(folder)

    def set_train_examples(self, dataset: Any, seed: int) -> None:
        """Chooses the examples (all of the train split where None), and their order."""
        self.dataset, self.seed, self.start = dataset, seed, 0
        self.stream: Any = None  # that is trained on, and the state that it goes on from
        self.stream_state: dict[str, Any] | None = None

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of them."""
        return default_collate(examples)

    def loader(self, examples: Any, batch_size: int, sampler: Any = None) -> DataLoader:
        workers = 0 if self.streams_train else self.num_workers  # those are the stream's then
        if not isinstance(examples, Sized) and sampler is None:
            sampler = count()
        return Loader(
            examples,
            batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=self.collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            multiprocessing_context=start_method(workers),
        )

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        examples: Any = self.examples("train") if self.dataset is None else self.dataset
        rank, world = self.trainer.global_rank, self.trainer.world_size
        samples = self.trainer.max_steps * self._examples_a_step
        if not isinstance(examples, Sized):  # a stream, each rank's in the order of its source
            self.stream = examples
            kept = (self.trainer.accumulate_grad_batches + AHEAD) * self.batch_size
            own: Any = examples.begin(self.stream_state, rank, world, samples // world, kept)
            return self.loader(examples, self.batch_size, own)
        share = Share(rank, world, self.batch_size)
        order = Order(len(examples), samples, self.seed, self.start, share)
        return self.loader(examples, self.batch_size, order)

    def val_dataloader(self) -> DataLoader:
        return self._held_out("validation")

    def test_dataloader(self) -> DataLoader:
        return self._held_out("test")

    def _held_out(self, split: str) -> DataLoader:
        examples: Any = self.examples(split)
        if self.trainer is not None and self.trainer.world_size > 1:
            examples = Part(examples, self.trainer.global_rank, self.trainer.world_size)
        return self.loader(examples, 8 * self.batch_size)

    @property
    def _examples_a_step(self) -> int:
        assert self.trainer is not None
        parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        return self.batch_size * parts

    def teardown(self, stage: str) -> None:
        if self.stream is not None and stage == "fit":
            self.stream.close()

    def state_dict(self) -> dict[str, Any]:
        """The position in the order of examples, so that a resumed run goes on behind it."""
        assert self.trainer is not None
        state = {"start": self.trainer.global_step * self._examples_a_step, "seed": self.seed}
        if self.stream:
            state["stream"] = self.stream.state(state["start"] // self.trainer.world_size)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start, self.seed = state_dict["start"], state_dict["seed"]
        self.stream_state = state_dict.get("stream")


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` of `count` numbers, at equal distances."""
    wanted = min(count, wanted)
    return [number * count // wanted for number in range(wanted)]


def trimmed(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch without the filling that all of its texts have."""
    batch: dict[str, Any] = default_collate(examples)
    longest = int(batch["attention_mask"].sum(-1).max())
    names = ("input_ids", "attention_mask")
    return batch | {name: batch[name][:, :longest].contiguous() for name in names}


def task_class(target: str) -> type[DistillationData]:
    """The class that `data._target_` names. What a task declares is known without its data."""
    task: type[DistillationData] = get_class(target)
    return task
