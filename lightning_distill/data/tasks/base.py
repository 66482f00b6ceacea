"""What every task declares: its models, its examples, its metrics, its batches.

A task turns a source into examples, split by hash, and those into batches. The tokenizer and the
tokens that it makes are artifacts, shared by every job with the same settings.
"""

from collections.abc import Sized
from functools import cached_property
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_distill.data.answers import Answered, Answerer
from lightning_distill.data.loaders import (
    MAX_PREFETCHED,
    Examples,
    First,
    HeldOutShard,
    RankShare,
    TrainSampler,
    evenly_spaced,
    make_loader,
)
from lightning_distill.data.mixture import MixedExamples, Mixture, parts_of
from lightning_distill.data.tokenizer import padding_id
from lightning_distill.metrics.declarations import Metric
from lightning_distill.models.inspection import set_special_tokens, vocabulary_size
from lightning_distill.models.sizes import Size
from lightning_distill.storage.artifacts import Artifact, Store

NUM_SAMPLES = 3  # test examples that samples show


class DistillationData(L.LightningDataModule):
    """The examples of one task, and what training, transfers and reports need to know of the task.

    A subclass gives the methods that raise NotImplementedError here; those below "Generative
    tasks" only where `is_generative` is true.

    batch_size: examples per micro-batch. num_workers: loader processes, 0 for none.
    """

    # A task declares:
    auto_class: ClassVar[Any]  # the transformers class that loads its models
    model_kind: ClassVar[str] = "model"  # what such a model is called, in a sentence
    hub_task: ClassVar[str | None] = None  # the Hugging Face hub's name of the task
    # What quality_metric and score_generation return beside the metrics of the package.
    metrics: ClassVar[tuple[Metric, ...]] = ()
    has_tokenizer: ClassVar[bool] = True
    shares_tokenizer: ClassVar[bool] = True  # teacher and student read the same batch
    is_generative: ClassVar[bool] = False  # its models generate text
    continues_prompt: ClassVar[bool] = True  # generated text continues its prompt (decoder-only)
    generation_batch: ClassVar[int] = 32  # prompts at once in `score_generation`

    held_out_limit: int | None = None  # examples of a held-out split that are read; None for all
    mixture: Mixture | None = None  # set by `prepare` where there are several sources
    # The model that writes the answers, set before `prepare`, and what it wrote, set by `prepare`.
    is_answered_by_teacher: bool = False
    answerer: Answerer | None = None
    answered: tuple[Answered, ...] = ()
    new_tokens: tuple[str, ...] = ()  # of the tokenizer, those that a pretrained student's lacks
    # `prepare` sets:
    tokenizer: PreTrainedTokenizerBase
    artifact: Artifact  # made from the source; its key identifies the examples

    def __init__(self, batch_size: int, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.num_workers = batch_size, num_workers
        self.set_train_examples(None, seed=0)

    def prepare(self, store: Store, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Makes the artifacts that do not exist yet, and loads them.

        tokenizer: a pretrained model's; None to train one on the source.
        Raises ConfigError where the source holds too little, or cannot be read.
        """
        raise NotImplementedError

    def examples(self, split: str) -> Examples:
        raise NotImplementedError

    def held_out(self, split: str) -> Examples:
        """The examples of the validation or test split that are read."""
        examples = self.examples(split)
        if self.held_out_limit is None or len(examples) <= self.held_out_limit:
            return examples
        return First(examples, self.held_out_limit)

    def train_examples(self) -> Examples:
        """The train split; of a mixture, every prefix has the sources in proportion."""
        examples = self.examples("train")
        if self.mixture is None:
            return examples
        return MixedExamples(examples, self.part_of("train"), self.mixture.weights)

    def transfer_set(self) -> Examples:
        """What a student may be trained on; `transfer.num_blocks` takes the first of them."""
        return self.train_examples()

    def first_items(self, split: str) -> Tensor:
        """The index of the item of the split with which each example begins: [N]."""
        return torch.arange(len(self.examples(split)))

    def part_of(self, split: str) -> Tensor:
        """The index of the source of each example, in a mixture: [N]."""
        assert self.mixture is not None
        return self.mixture.parts[split][self.first_items(split)]

    @cached_property
    def num_classes(self) -> int:
        """V, the number of logits per prediction; for text the size of the vocabulary."""
        return vocabulary_size(self.tokenizer)

    @property
    def example_settings(self) -> dict[str, Any]:
        """The settings that decide what an example is, besides the artifact: {key: value}."""
        raise NotImplementedError

    @property
    def transfer_set_settings(self) -> dict[str, Any]:
        """The settings that select the transfer set from the train split: {key: value}."""
        return {}

    @property
    def bos_token(self) -> str | None:
        """The beginning-of-text token that the examples have; None where they have none."""
        return None

    def describe(self) -> str:
        """The sizes of the splits, in one line."""
        raise NotImplementedError

    def check_labels(self) -> str:
        """What is predicted, in one line. Raises ConfigError for a split without valid labels."""
        raise NotImplementedError

    def new_model(self, size: Size) -> PreTrainedModel:
        """An untrained model of that size, initialized from torch's global RNG."""
        raise NotImplementedError

    def adapt_model(self, model: PreTrainedModel, name: str, is_trained: bool) -> None:
        """Fits the head of a loaded model to the task.

        is_trained: training follows, so that parts of the model may be newly initialized.
        Raises ConfigError where the model predicts something else than the task.
        """

    def check_model(self, model: PreTrainedModel, name: str) -> None:
        """Raises ConfigError where the model cannot read the examples. Reads no weights."""
        raise NotImplementedError

    def save(self, model: PreTrainedModel, folder: Any) -> None:
        """Saves model and tokenizer in a folder that `from_pretrained` loads.

        Texts generated with the model end with the token that ends the task's examples, or with
        one that ended them before its training.
        """
        if self.is_generative:
            padding = padding_id(self.tokenizer)
            set_special_tokens(model, self.tokenizer, self.stop_token_ids, padding)
        model.save_pretrained(folder)
        if self.has_tokenizer:
            self.tokenizer.save_pretrained(folder)

    def quality_metric(self) -> nn.Module:
        """The metric of the test split: `update(log_probs [N, V], labels [N])`; `compute()` returns
        a dictionary of numbers that has `nll`."""
        raise NotImplementedError

    @property
    def sample_indices(self) -> list[int]:
        """Indices of the test examples that samples show."""
        return evenly_spaced(len(self.examples("test")), NUM_SAMPLES)

    def learned_example(self, index: int) -> str:
        """A training example as a person reads it: what is learned, and in ⟦ ⟧ what is only read.

        index: in the train split.
        """
        raise NotImplementedError

    def sample_prompts(self) -> list[str]:
        """A text for each sample, as a person reads it."""
        raise NotImplementedError

    def sample_answer(
        self, model: PreTrainedModel, number: int, prompt: str | None, seed: int
    ) -> str:
        """A model's prediction for the sample of that number, as text.

        prompt: the sample's text where the model has another tokenizer, else None.
        """
        raise NotImplementedError

    # Generative tasks

    def score_generation(self, model: PreTrainedModel) -> dict[str, float]:
        """Scores of texts that a model generates for `scored_prompts`; empty where there are none.

        They are a function of the model, of the artifact and of `example_settings`.
        """
        return {}

    def scored_prompts(self) -> list[Tensor]:
        """Of the test split, [P] each."""
        return []

    def scored_lengths(self) -> list[int]:
        """The tokens of the reference for each of `scored_prompts`."""
        return []

    @property
    def max_length(self) -> int:
        """The most tokens of a sequence, the prompt included where `continues_prompt`."""
        raise NotImplementedError

    @property
    def stop_token_ids(self) -> list[int]:
        """Tokens that end a generated text, the one that closes most examples first."""
        raise NotImplementedError

    def check_prompt_length(self, length: int) -> None:
        """Raises ConfigError unless an example is longer than a prompt of that length."""

    def prompt_tokens(self, batch: dict[str, Tensor], length: int) -> list[Tensor]:
        """A prompt from each example, [P] on the CPU, with P ≤ length where `continues_prompt`.

        batch: may hold `round` [B], how many prompts were taken from each example before.
        """
        raise NotImplementedError

    def from_generated(
        self, records: list[dict[str, Any]], teacher_data: "DistillationData"
    ) -> Examples:
        """Examples made of what a teacher generated; only that is predicted, not the prompts.

        records: `prompt`, `text`, `prompt_ids` and `ids` of each; the ids are teacher_data's.
        """
        raise NotImplementedError

    def completion_batch(
        self, prompts: list[Tensor], completions: list[list[int]]
    ) -> dict[str, Tensor]:
        """A batch of prompts and completions, of which only the completions are predicted."""
        raise NotImplementedError

    # Loaders, the same for all tasks

    @property
    def is_streaming(self) -> bool:
        """Whether the train split is endless and brings its own workers."""
        return False

    def set_train_examples(self, dataset: Any, seed: int) -> None:
        """Selects the examples to train on (None: the train split) and the seed of their order."""
        self.dataset, self.seed, self.start = dataset, seed, 0
        self.stream: Any = None  # the stream that is trained on
        self.stream_state: Any = None  # where it resumes

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return default_collate(examples)

    def loader(self, examples: Any, batch_size: int, sampler: Any = None) -> DataLoader:
        workers = 0 if self.is_streaming else self.num_workers
        return make_loader(examples, batch_size, self.collate, workers, sampler)

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        examples: Any = self.train_examples() if self.dataset is None else self.dataset
        rank, world = self.trainer.global_rank, self.trainer.world_size
        num_samples = self.trainer.max_steps * self._examples_per_step
        if isinstance(examples, Sized):
            share = RankShare(rank, world, self.batch_size)
            weights = self.mixture.weights if self.mixture else None
            sampler: Any = TrainSampler(
                *(len(examples), num_samples, self.seed, self.start, share),
                *(parts_of(examples), weights),
            )
        else:  # a stream: each rank reads its part in the order of the source
            self.stream = examples
            kept = (self.trainer.accumulate_grad_batches + MAX_PREFETCHED) * self.batch_size
            sampler = examples.begin(self.stream_state, rank, world, num_samples // world, kept)
        return self.loader(examples, self.batch_size, sampler)

    def val_dataloader(self) -> DataLoader:
        return self._held_out_loader("validation")

    def test_dataloader(self) -> DataLoader:
        return self._held_out_loader("test")

    def _held_out_loader(self, split: str) -> DataLoader:
        examples: Any = self.held_out(split)
        if self.trainer is not None and self.trainer.world_size > 1:
            examples = HeldOutShard(examples, self.trainer.global_rank, self.trainer.world_size)
        return self.loader(examples, 8 * self.batch_size)

    @property
    def _examples_per_step(self) -> int:
        assert self.trainer is not None
        return self.batch_size * self.trainer.accumulate_grad_batches * self.trainer.world_size

    def teardown(self, stage: str) -> None:
        if self.stream is not None and stage == "fit":
            self.stream.close()

    def state_dict(self) -> dict[str, Any]:
        """The position in the order of examples, from which a resumed run continues."""
        assert self.trainer is not None
        state = {"start": self.trainer.global_step * self._examples_per_step, "seed": self.seed}
        if self.stream:
            state["stream"] = self.stream.state(state["start"] // self.trainer.world_size)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start, self.seed = state_dict["start"], state_dict["seed"]
        self.stream_state = state_dict.get("stream")
