"""The type, range and meaning of every config key, declared once.

Validation checks the config against it, and --help prints it. A test compares it with conf/.
"""

from lightning_distill.config.schema import experiment, run
from lightning_distill.config.schema.key import Key, is_number

SCHEMA: dict[str, Key] = {**experiment.KEYS, **run.KEYS}

# Old keys and options, and what to type in their place. They are refused.
RENAMED = {
    "experiment/job=repaired": "experiment/job=tuned_baseline",
    "trainer=deepspeed": "trainer=fsdp trainer.strategy.reshard_after_forward=false",
}

# Nodes that hold arguments of other libraries' classes, where any key may be added.
FREE = (
    *("hydra", "trainer", "logger", "optimizer", "schedule"),
    *("teacher.optimizer", "teacher.schedule"),
)

__all__ = ["FREE", "RENAMED", "SCHEMA", "Key", "is_number"]
