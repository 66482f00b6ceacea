"""The teacher labels the transfer set once; after that no student needs it."""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
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
from lightning_distill.models.output_head import Predictions, find_head
from lightning_distill.storage.artifacts import Store, find_damage, read_manifest
from lightning_distill.training.teacher import Teacher
from lightning_distill.transfer.cache.hidden_codec import HiddenStateCodec, load_heads, save_heads
from lightning_distill.transfer.cache.shards import Labelled
from lightning_distill.transfer.cache.sparse_codec import SparseCodec
from lightning_distill.transfer.cache.writer import CacheWriter
from lightning_distill.transfer.online import Online

log = logging.getLogger(__name__)

KIND = "predictions"  # of artifact

# What is stored a token, and the settings that each of them has.
STORED = {
    "topk": ("k", "temperatures"),
    "sampled": ("draws", "temperatures"),
    "hybrid": ("k", "draws", "temperatures"),
    "hidden": (),
}


class Cached(Online):
    """Students train on stored predictions, with no teacher in memory.

    stored: `topk` (the `k` largest probabilities; all others count as one), `sampled` (`draws`
    tokens drawn from the teacher), `hybrid` (the `k` largest, and `draws` of the others) or
    `hidden` (the last hidden states, from which everything follows).
    temperatures: at which draws are unbiased; 1 is always among them. bits: 8 or 16 a value; for
    hidden states also 32.
    cache: the folder of an artifact to use, instead of the one that these settings ask for.
    """

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
        every = sorted({1.0, *map(float, temperatures)})
        given = {"k": k, "draws": draws, "temperatures": every}
        self.settings: dict[str, Any] = {name: given[name] for name in STORED[stored]}
        self.settings |= {"stored": stored, "bits": bits}
        self.path = Path(cache).expanduser() if cache else None
        if self.path:
            self.settings = _made_from(self.path)["stored"]
        self.folder: Path | None = None

    def check(
        self,
        objective: Objective,
        data: DistillationData,
        teacher_data: DistillationData,
        teachers: int,
    ) -> None:
        """Raises ConfigError where the objective needs more than what is stored."""
        stored, count = self.settings["stored"], data.num_classes
        kept = self.settings.get("k", 0) + self.settings.get("draws", 0)
        if kept > count:
            said = " + ".join(f"transfer.{n}={self.settings[n]}" for n in STORED[stored][:-1])
            raise ConfigError(
                f"{said} is more than the {count} that a prediction chooses among. "
                f"Set transfer.stored=topk transfer.k={count}, or fewer."
            )
        if not objective.needs_teacher:
            return
        _refuse_other_tokens(data, teacher_data)
        for name, term in objective.intermediate.items():
            raise ConfigError(
                f"loss.{name}.weight={term.weight:g} looks inside the teacher, of which a cache "
                "holds the predictions alone. Choose transfer=online."
            )
        if stored == "hidden":
            return
        named, ramp = self.settings["temperatures"], objective.weights.schedules["temperature"]
        if teachers > 1 and ramp.ends != (1.0, 1.0):
            raise ConfigError(
                f"transfer.stored={stored} of several teachers is for loss.temperature=1 alone. "
                "Choose transfer.stored=hidden."
            )
        if objective.compares == "logits":
            raise ConfigError("This loss compares logits; choose transfer.stored=hidden.")
        if stored != "topk" and objective.divergence is not forward_kl:
            raise ConfigError(
                f"transfer.stored={stored} is unbiased for loss=forward_kl alone. Choose "
                "transfer.stored=hidden, or topk, which is biased."
            )
        if ramp.start != ramp.end or ramp.start not in named:
            log.warning(
                "loss.temperature=%s is not among transfer.temperatures=%s: what is stored is "
                "scaled to sum to 1, which is biased",
                ramp,
                named,
            )

    def prepare(
        self,
        data: DistillationData,
        teacher: Teacher,
        store: Store,
        make_trainer: Callable[..., L.Trainer],
        folder: Path,
    ) -> float:
        """Has the transfer set labelled, unless it is; the seconds that this took now."""
        _refuse_other_tokens(data, teacher.data)  # not yet refused for stage=transfer, loss.alpha=0
        seconds = 0.0
        if self.path:
            self.check_cache(data, teacher)
            self.folder = self.path
        else:
            make = partial(self._make, data, teacher, make_trainer)
            artifact = store.get(KIND, self._made_from(data, teacher), make, True)
            self.folder, seconds = artifact.folder, artifact.seconds
        content = read_manifest(self.folder)["content"]
        kl = content.get("kl")  # None of a served teacher, whose true predictions are not known
        log.info(
            "predictions: %s%s; %s bytes a token%s",
            self.folder,
            "" if seconds else " (reused)",
            content.get("bytes_per_token"),
            "" if not isinstance(kl, float) else f", KL(stored ‖ true) {kl:.4f} on held-out blocks",
        )
        self.layout = self._layout(teacher.weights, data.num_classes)
        return seconds

    def check_cache(self, data: DistillationData, teacher: Teacher) -> None:
        if self.path:
            _refuse_another(self.path, self._made_from(data, teacher))

    def ahead(self, data: DistillationData, teacher_data: DistillationData) -> int:
        return 0 if self.path else self.count(data.transfer_set())

    def made_from(
        self, data: DistillationData, teacher: Teacher
    ) -> tuple[str, dict[str, Any]] | None:
        return None if self.path else (KIND, self._made_from(data, teacher))

    def _made_from(self, data: DistillationData, teacher: Teacher) -> dict[str, Any]:
        return {  # what a user can type comes first, and is named first where it differs
            **data.example_settings,
            **data.transfer_set_settings,
            "text and tokenizer": data.artifact.key,
            "transfer.num_blocks": self.count(data.transfer_set()),
            "teacher": teacher.hash,
            "stored": self.settings,
        }

    def dataset(self, data: DistillationData) -> Dataset[dict[str, Any]]:
        blocks = data.transfer_set()
        if self.folder is None:  # nothing to learn from it
            return super().dataset(data)
        return Labelled(blocks, self.count(blocks), self.folder)

    def label(
        self, teachers: Sequence[Frozen], batch: dict[str, Any]
    ) -> tuple[list[Predictions] | Sparse, Tensor | None]:
        if "stored" not in batch:
            return [], None
        return self.layout.decode(batch["stored"]), None

    def _make(
        self,
        data: DistillationData,
        teacher: Teacher,
        make_trainer: Callable[..., L.Trainer],
        folder: Path,
    ) -> dict[str, Any]:
        layout: SparseCodec | HiddenStateCodec
        if self.settings["stored"] == "hidden":
            heads = [find_head(model) for model in teacher.models]
            if any(head is None for head in heads):
                raise ConfigError(
                    "transfer.stored=hidden needs logits that are a product with an output "
                    "matrix, and this teacher's are more. Choose transfer.stored=hybrid."
                )
            for model, head in zip(teacher.models, heads, strict=True):
                if head and not all(x.isfinite().all() for x in head.linear.parameters()):
                    raise ConfigError(
                        f"The teacher {model.name_or_path} has an output matrix with what is no "
                        "number; nothing of it is stored. Look at its weights."
                    )
            save_heads(folder, [head for head in heads if head])
        layout = self._layout(teacher.weights, data.num_classes, folder)
        labeller = CacheWriter(
            [teacher.served] if teacher.served else teacher.frozen(),
            layout,
            data.transfer_set(),
            self.count(data.transfer_set()),
            None if teacher.served else data.examples("validation"),
            8 * data.batch_size,
            folder,
        )
        trainer = make_trainer("the teacher's predictions")
        trainer.predict(labeller, return_predictions=False)
        if trainer.interrupted:
            raise KeyboardInterrupt
        positions = data.transfer_set().positions
        return {
            "bytes_per_token": layout.bytes_per_token,
            "positions": positions,
            "kl": labeller.kl,
        }

    def _layout(
        self, weights: Sequence[float], vocab_size: int, folder: Path | None = None
    ) -> SparseCodec | HiddenStateCodec:
        settings = dict(self.settings)
        kind, bits = settings.pop("stored"), settings.pop("bits")
        if kind == "hidden":
            found = folder or self.folder
            assert found
            return HiddenStateCodec(load_heads(found), bits, vocab_size)
        temperatures = tuple(settings.pop("temperatures"))
        kept = {"k": 0, "draws": 0, **settings}
        return SparseCodec(
            kind,
            **kept,
            temperatures=temperatures,
            bits=bits,
            vocab_size=vocab_size,
            weights=tuple(weights),
        )


def _refuse_other_tokens(data: DistillationData, teacher_data: DistillationData) -> None:
    if teacher_data is not data:
        raise ConfigError(
            "transfer=cached needs a teacher with the student's tokenizer. Choose transfer=online."
        )


def _refuse_another(cache: Path, ours: dict[str, Any]) -> None:
    """Raises ConfigError where a cache that the user names is not this run's, or not whole."""
    theirs = _made_from(cache)
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise ConfigError(
                f"transfer.cache={cache} was made from another {name}: {theirs.get(name)}; "
                f"this run's is {value}. Leave transfer.cache out to have its own made."
            )
    if damaged := find_damage(cache):
        raise ConfigError(
            f"transfer.cache={cache} is damaged ({', '.join(damaged)}). Leave transfer.cache out "
            "to have it made again."
        )


def _made_from(cache: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        manifest = read_manifest(cache)
        if manifest["kind"] == KIND:
            return dict(manifest["made_from"])
    raise ConfigError(f"transfer.cache={cache} is not the folder of a finished cache.")
