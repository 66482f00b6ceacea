"""What each setting may be on its own: a number from where to where, a text, a switch, a node."""

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from lightning_distill.config.messages import CONF, keys_of

ABSENT = object()  # in place of a setting that these choices have not
MOST = 2**32 - 1  # that torch, NumPy and Lightning all take, as a seed

# key: (whole numbers only, least value, whether that value itself is allowed)
RANGES: dict[str, tuple[bool, float, bool]] = {
    "seed": (True, 0, True),
    "checkpoint_every_n_steps": (True, 1, True),
    "checkpoint_every_n_minutes": (False, 0, False),
    "max_skipped_steps": (True, 0, True),
    "data.sequence_length": (True, 2, True),
    "data.batch_size": (True, 1, True),
    "data.num_workers": (True, 0, True),
    "data.held_out": (True, 3, True),
    "data.held_out_documents": (True, 1, True),
    "data.tokenizer_mb": (False, 0, False),
    "data.image_size": (True, 4, True),
    "data.image_std": (False, 0, False),
    "data.image_mean": (False, 0, True),
    "data.vocab_size": (True, 257, True),  # every byte, and the end of text
    "transfer.num_blocks": (True, 1, True),
    "transfer.k": (True, 1, True),
    "transfer.draws": (True, 1, True),
    "transfer.num_sequences": (True, 1, True),
    "transfer.prompt_length": (True, 1, True),
    "transfer.length": (True, 2, True),
    "transfer.num_beams": (True, 1, True),
    "transfer.batch_size": (True, 1, True),
    "transfer.seed": (True, 0, True),
    **{
        f"{role}.{key}": (True, least, True)
        for role in ("teacher", "student")
        for key, least in (
            ("max_steps", 0 if role == "teacher" else 1),
            ("hidden_size", 1),
            ("num_hidden_layers", 1),
            ("num_attention_heads", 1),
            ("max_position_embeddings", 1),
            ("lora.rank", 0),
        )
    },
    "teacher.lora.alpha": (False, 0, False),
    "student.lora.alpha": (False, 0, False),
    "teacher.seed": (True, 0, True),
    "teacher.timeout": (False, 0, False),
    "teacher.retries": (True, 0, True),
    "teacher.connections": (True, 1, True),
    "teacher.optimizer.lr": (False, 0, False),
    "optimizer.lr": (False, 0, False),
    "optimizer.weight_decay": (False, 0, True),
    "trainer.log_every_n_steps": (True, 0, True),
    "sweep.stop_after_failures": (True, 1, True),
    "sweep.jobs_per_gpu": (True, 1, True),
    "hydra.sweeper.n_trials": (True, 1, True),
    "trainer.accumulate_grad_batches": (True, 1, True),
    "trainer.num_nodes": (True, 1, True),
    "trainer.val_check_interval": (False, 0, False),
    "trainer.gradient_clip_val": (False, 0, True),
    "evaluate.limit": (True, 1, True),
    "evaluate.num_fewshot": (True, 0, True),
    "evaluate.batch_size": (True, 1, True),
}

# Where null says something of its own.
OPEN = {
    *("transfer.num_blocks", "transfer.num_sequences", "transfer.length"),
    *("teacher.lora.rank", "teacher.lora.alpha", "student.lora.rank", "student.lora.alpha"),
    *("trainer.val_check_interval", "trainer.gradient_clip_val"),
    *("sweep.stop_after_failures", "evaluate.limit", "evaluate.num_fewshot"),
}
# Which need not be so much lower than MOST; a tokenizer's trainer ends the process for more.
LARGEST = {"data.vocab_size": 10_000_000, "data.image_size": 10_000}

# Names and paths: key, and whether null says something of its own.
TEXTS = {
    "paths.outputs": False,
    "data.path": False,
    "data.name": False,
    "data.column": False,
    "data.label_column": False,
    "data.source_column": False,
    "data.target_column": False,
    "data.chat_template": True,
    "teacher.name": True,
    "student.name": True,
    "transfer.cache": True,
    "evaluate.task_path": True,
    "export.run": True,
    "export.folder": True,
    "export.converter": True,
    "export.push": True,
    "logger.wandb.project": True,
    "logger.wandb.entity": True,
    "hydra.run.dir": False,
    "hydra.sweep.dir": False,
}

# Of one value, text or not.
SINGLE = ("stage", "trainer.accelerator", "trainer.precision", "teacher.device")

# Nodes that hold settings of their own, which one value would replace.
NODES = ("loss.hidden", "loss.relations", "teacher.lora", "student.lora", "paths", "evaluate")

SWITCHES = (
    "data.streaming",
    "data.isolate_documents",
    "data.skip_bad_rows",
    "teacher.trust_remote_code",
    "student.trust_remote_code",
    "loss.fused",
    "evaluate.speed",
    "trainer.compile",
    "trainer.gradient_checkpointing",
    "export.private",
)


def out_of_range(cfg: DictConfig) -> Iterator[str]:
    for key, (whole, least, inclusive) in RANGES.items():
        value: Any = OmegaConf.select(cfg, key, default=ABSENT)
        if value is ABSENT or (value is None and key in OPEN):
            continue
        most = LARGEST.get(key, MOST)
        if not in_range(value, whole, least, inclusive):
            kind = "a whole number" if whole else "a number"
            bound = f"of at least {least}" if inclusive else f"above {least}"
            yield f"{key}={value} must be {kind} {bound}"
        elif whole and value > most:
            yield f"{key}={value} must be a whole number of at most {most}"


def no_switches(cfg: DictConfig) -> Iterator[str]:
    for key in SWITCHES:
        if not isinstance(OmegaConf.select(cfg, key, default=False), bool):
            yield f"{key}={OmegaConf.select(cfg, key)} must be true or false"


@cache
def _committed() -> list[str]:
    """The settings that every command has."""
    return [key for key in keys_of(OmegaConf.load(CONF / "config.yaml")) if key[:5] != "hydra"]


def problems_of_nodes(cfg: DictConfig) -> Iterator[str]:
    """Of what is not there, of what is no single value, and of what names something."""
    whole = {key: OmegaConf.select(cfg, key, default=ABSENT) for key in NODES}
    for key, value in whole.items():
        if not isinstance(value, DictConfig) and value is not ABSENT:
            yield f"{key}={value} must be left to its own settings, as in {key}.<setting>=<value>"
    for key in _committed():
        replaced = any(key.startswith(f"{node}.") and whole[node] is not ABSENT for node in NODES)
        if not replaced and OmegaConf.select(cfg, key, default=ABSENT) is ABSENT:
            yield f"{key} is not there any more; leave ~{key} out of the command"
    for key in SINGLE:
        if isinstance(value := OmegaConf.select(cfg, key), ListConfig | DictConfig):
            yield f"{key}={value} must be a single value"
    for key, open_ in TEXTS.items():
        value = OmegaConf.select(cfg, key, default=ABSENT)
        if value is ABSENT or (value is None and open_) or (isinstance(value, str) and value):
            continue
        hint = "is empty" if value == "" else "must be text"
        if isinstance(value, int | float) and not isinstance(value, bool):
            hint += f", in quotes where it is a number: {key}=\"'{value}'\""
        yield f"{key}={value} {hint}"
    if isinstance(cfg.name, ListConfig | DictConfig) or not is_below(Path(str(cfg.name or ""))):
        yield f"name={cfg.name} must be the name of a folder below {cfg.paths.outputs}/runs"


def problems_of_outputs(outputs: Path) -> Iterator[str]:
    there = next(path for path in (outputs, *outputs.resolve().parents) if path.exists())
    if not there.is_dir():
        yield f"paths.outputs={outputs} must be a folder, and {there} is a file"


def is_below(path: Path) -> bool:
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def is_number(value: Any) -> bool:
    """Finite, and not true or false, which are numbers to Python."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def in_range(value: Any, whole: bool, least: float, inclusive: bool) -> bool:
    if not is_number(value) or (whole and not isinstance(value, int)):
        return False
    return bool(value >= least if inclusive else value > least)
