"""The teacher labels the transfer set once, and students train on the stored predictions."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor
from torch.utils.data import Dataset

from lightning_distill.config.validation import require
from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.errors import ConfigError, unknown_name
from lightning_distill.losses.distributions import Sparse
from lightning_distill.losses.divergences.forward_kl import forward_kl
from lightning_distill.losses.objective import Objective
from lightning_distill.models.frozen import Frozen
from lightning_distill.models.predictions import Predictions
from lightning_distill.screen import shown
from lightning_distill.storage.artifacts import Store, read_manifest
from lightning_distill.training.teacher import Teacher
from lightning_distill.transfer.base import Transfer, Workspace
from lightning_distill.transfer.cache.hidden_codec import (
    HiddenStateCodec,
    heads_of,
    load_heads,
    save_heads,
)
from lightning_distill.transfer.cache.provenance import KIND, read_made_from, require_match
from lightning_distill.transfer.cache.shards import CachedExamples
from lightning_distill.transfer.cache.sparse_codec import SparseCodec
from lightning_distill.transfer.cache.writer import CacheCodec, CacheWriter, predict

log = logging.getLogger(__name__)

# Values of `stored`, and the settings that apply to each.
STORED = {
    "topk": ("k", "temperatures"),
    "sampled": ("draws", "temperatures"),
    "hybrid": ("k", "draws", "temperatures"),
    "hidden": (),
}
DRY_RUN_BATCHES = 4


class Cached(Transfer):
    """Students train on stored predictions, with no teacher in memory.

    stored: `topk` (the `k` largest probabilities; all other tokens count as one), `sampled`
        (`draws` tokens sampled from the teacher), `hybrid` (the `k` largest, and `draws` samples of
        the others) or `hidden` (the last hidden states, from which logits are computed).
    temperatures: at which samples are unbiased; 1 is always added.
    bits: 8 or 16 for a stored value; for hidden states also 32.
    cache: the folder of an artifact to use instead of the one that these settings determine.
    """

    prepares = KIND
    holds_teacher = False

    def __init__(
        self,
        num_blocks: int | None,
        stored: str,
        k: int,
        draws: int,
        temperatures: Sequence[float],
        bits: int,
        cache: str | None = None,
    ) -> None:
        super().__init__(num_blocks)
        if stored not in STORED:
            raise unknown_name("transfer.stored", stored, STORED)
        if isinstance(temperatures, str) or not isinstance(temperatures, Sequence):
            raise ConfigError(f"transfer.temperatures={temperatures} must be a list, as in [1, 2].")
        for temperature in temperatures:
            require("transfer.temperatures", temperature, 1e-3)
        if bits not in (8, 16) and not (stored == "hidden" and bits == 32):
            raise ConfigError(f"transfer.bits={bits} must be 8 or 16, or 32 for hidden states.")
        values = {"k": k, "draws": draws, "temperatures": sorted({1.0, *map(float, temperatures)})}
        self.settings: dict[str, Any] = {name: values[name] for name in STORED[stored]}
        self.settings |= {"stored": stored, "bits": bits}
        self.given = Path(cache).expanduser() if cache else None
        if self.given:
            self.settings = read_made_from(self.given)["stored"]
        self.folder: Path | None = None  # of the cache, known from `prepare` on

    @property
    def accepts_top_k(self) -> bool:
        return self.settings["stored"] == "topk"

    def dry_run_settings(self, batch_size: int, api_teacher: bool) -> dict[str, Any]:
        """A cache of few blocks, of the same kind as the one that is given."""
        few = batch_size * (1 if api_teacher else DRY_RUN_BATCHES)
        kind = self.settings if self.given else {}
        return {**kind, "cache": None, "num_blocks": min(self.num_blocks or few, few)}

    def units_to_prepare(self, data: DistillationData, teacher_data: DistillationData) -> int:
        return 0 if self.given else self.num_examples(data.transfer_set())

    def made_from(self, data: DistillationData, teacher: Teacher) -> dict[str, Any]:
        return {  # settings that users type first: the first that differs is named in messages
            **data.example_settings,
            **data.transfer_set_settings,
            "beginning-of-text token": data.bos_token,
            "text and tokenizer": data.artifact.key,
            "transfer.num_blocks": self.num_examples(data.transfer_set()),
            "teacher": teacher.hash,
            "stored": self.settings,
        }

    def check(
        self, objective: Objective, data: DistillationData, teacher_data: DistillationData
    ) -> None:
        """Raises ConfigError where the objective needs more than what is stored."""
        self._check_size(data.num_classes)
        if not objective.needs_teacher:
            return
        _require_same_tokenizer(data, teacher_data)
        for name, term in objective.intermediate.items():
            raise ConfigError(
                f"loss.{name}.weight={term.weight:g} compares layers of the teacher, and a cache "
                "holds its predictions alone. Choose transfer=online."
            )
        if self.settings["stored"] != "hidden":
            self._check_sparse(objective)

    def _check_size(self, num_classes: int) -> None:
        sizes = {name: self.settings[name] for name in ("k", "draws") if name in self.settings}
        if sum(sizes.values()) > num_classes:
            given = " + ".join(f"transfer.{name}={size}" for name, size in sizes.items())
            raise ConfigError(
                f"{given} is more than the {num_classes} that a prediction chooses among. "
                f"Set transfer.stored=topk transfer.k={num_classes}, or fewer."
            )

    def _check_sparse(self, objective: Objective) -> None:
        """Raises ConfigError where the objective needs more than a few tokens' probabilities."""
        stored, temperatures = self.settings["stored"], self.settings["temperatures"]
        temperature = objective.weights.schedules["temperature"]
        if len(objective.teacher_weights) > 1 and temperature.ends != (1.0, 1.0):
            raise ConfigError(
                f"transfer.stored={stored} of several teachers needs loss.temperature=1. "
                "Choose transfer.stored=hidden."
            )
        if objective.compares == "logits":
            raise ConfigError("This loss compares logits; choose transfer.stored=hidden.")
        if stored != "topk" and objective.divergence is not forward_kl:
            raise ConfigError(
                f"transfer.stored={stored} is unbiased for loss=forward_kl alone. Choose "
                "transfer.stored=hidden, or topk, which is biased."
            )
        if temperature.start != temperature.end or temperature.start not in temperatures:
            log.warning(
                "loss.temperature=%s is not among transfer.temperatures=%s: the stored "
                "probabilities are scaled to sum to 1, which is biased",
                temperature,
                temperatures,
            )

    def check_cache(self, data: DistillationData, teacher: Teacher) -> None:
        if self.given:
            require_match(self.given, self.made_from(data, teacher))

    def prepare(self, data: DistillationData, teacher: Teacher, workspace: Workspace) -> float:
        """Finds the cache, or has the teacher label the transfer set."""
        _require_same_tokenizer(data, teacher.data)  # `check` does not know of stage=transfer
        seconds = 0.0
        if not self.find(data, teacher, workspace.store):
            make = partial(self._write, data, teacher, workspace.make_trainer)
            made_from = self.made_from(data, teacher)
            artifact = workspace.store.get(self.prepares, made_from, make, on_all_ranks=True)
            seconds = artifact.seconds
            self._open(artifact.folder, data, teacher)
        assert self.folder is not None
        content = read_manifest(self.folder)["content"]
        kl = content.get("kl")  # None of an API teacher, whose full distributions are unknown
        log.info(
            "predictions: %s%s; %s bytes a token%s",
            shown(self.folder),
            "" if seconds else " (reused)",
            content.get("bytes_per_token"),
            f", KL(stored ‖ true) {kl:.4f} on held-out blocks" if isinstance(kl, float) else "",
        )
        return seconds

    def find(self, data: DistillationData, teacher: Teacher, store: Store) -> bool:
        """Whether the cache exists, which `dataset` and `codec` then read."""
        folder = self.given
        if self.given:
            self.check_cache(data, teacher)
        elif artifact := store.find(self.prepares, self.made_from(data, teacher)):
            folder = artifact.folder
        if folder:
            self._open(folder, data, teacher)
        return folder is not None

    def _open(self, folder: Path, data: DistillationData, teacher: Teacher) -> None:
        self.folder = folder
        self.codec = self._codec(teacher.weights, data.num_classes, folder)

    def _write(
        self,
        data: DistillationData,
        teacher: Teacher,
        make_trainer: Callable[..., L.Trainer],
        folder: Path,
    ) -> dict[str, Any]:
        """Writes the shards. Returns the content that the artifact's manifest records."""
        if self.settings["stored"] == "hidden":
            save_heads(folder, heads_of(teacher.models))
        examples = data.transfer_set()
        writer = CacheWriter(
            [teacher.api] if teacher.api else teacher.frozen(),
            self._codec(teacher.weights, data.num_classes, folder),
            examples,
            self.num_examples(examples),
            None if teacher.api else data.held_out("validation"),
            8 * data.batch_size,
            folder,
        )
        predict(writer, make_trainer("the teacher's predictions"))
        return writer.content

    def _codec(self, weights: Sequence[float], vocab_size: int, folder: Path) -> CacheCodec:
        stored, bits = self.settings["stored"], self.settings["bits"]
        if stored == "hidden":
            return HiddenStateCodec(load_heads(folder), bits, vocab_size)
        return SparseCodec(
            stored,
            self.settings.get("k", 0),
            self.settings.get("draws", 0),
            tuple(self.settings["temperatures"]),
            bits,
            vocab_size,
            tuple(weights),
        )

    def dataset(self, data: DistillationData) -> Dataset[dict[str, Any]]:
        if self.folder is None:  # an objective that needs no teacher
            return super().dataset(data)
        examples = data.transfer_set()
        return CachedExamples(examples, self.num_examples(examples), self.folder)

    def teacher_predictions(
        self, teachers: Sequence[Frozen], batch: dict[str, Any]
    ) -> tuple[list[Predictions] | Sparse, Tensor | None]:
        return self.codec.decode(batch["stored"]) if "stored" in batch else [], None


def _require_same_tokenizer(data: DistillationData, teacher_data: DistillationData) -> None:
    if teacher_data is not data:
        raise ConfigError(
            "transfer=cached needs a teacher with the student's tokenizer. Choose transfer=online."
        )
