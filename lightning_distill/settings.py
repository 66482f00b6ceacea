"""What can be said of the settings before anything is imported or made."""

import math
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_distill import ConfigError

# key: (whole numbers only, least value, whether that value itself is allowed)
RANGES: dict[str, tuple[bool, float, bool]] = {
    "seed": (True, 0, True),
    "checkpoint_every_n_steps": (True, 1, True),
    "data.sequence_length": (True, 2, True),
    "data.batch_size": (True, 1, True),
    "data.vocab_size": (True, 257, True),  # every byte, and the end of text
    "transfer.num_blocks": (True, 1, True),
    **{
        f"{role}.{key}": (True, least, True)
        for role in ("teacher", "student")
        for key, least in (
            ("max_steps", 0 if role == "teacher" else 1),
            ("hidden_size", 1),
            ("num_hidden_layers", 1),
            ("num_attention_heads", 1),
            ("max_position_embeddings", 1),
        )
    },
    "teacher.seed": (True, 0, True),
    "teacher.optimizer.lr": (False, 0, False),
    "optimizer.lr": (False, 0, False),
    "optimizer.weight_decay": (False, 0, True),
    "trainer.log_every_n_steps": (True, 0, True),
    "trainer.accumulate_grad_batches": (True, 1, True),
}

SWITCHES = (
    "data.isolate_documents",
    "teacher.trust_remote_code",
    "student.trust_remote_code",
)


def check(cfg: DictConfig) -> None:
    """Raises ConfigError that names every setting out of its range, all at once."""
    problems = []
    for key, (whole, least, inclusive) in RANGES.items():
        value: Any = OmegaConf.select(cfg, key)
        if value is None:  # not a setting of these choices, or left open (transfer.num_blocks)
            continue
        if not _in_range(value, whole, least, inclusive):
            kind = "a whole number" if whole else "a number"
            bound = f"of at least {least}" if inclusive else f"above {least}"
            problems.append(f"{key}={value} must be {kind} {bound}")
    for key in SWITCHES:
        if not isinstance(OmegaConf.select(cfg, key, default=False), bool):
            problems.append(f"{key}={OmegaConf.select(cfg, key)} must be true or false")
    for role in ("teacher", "student"):
        node = cfg[role]
        width, heads = node.get("hidden_size"), node.get("num_attention_heads")
        # Rotary positions turn pairs of each head's channels.
        if isinstance(width, int) and isinstance(heads, int) and heads > 0 and width % (2 * heads):
            problems.append(
                f"{role}.hidden_size={width} must be a multiple of 2 × "
                f"{role}.num_attention_heads={heads}"
            )
    if problems:
        raise ConfigError("; ".join(problems) + ".")


def _in_range(value: Any, whole: bool, least: float, inclusive: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return False
    return math.isfinite(value) and (value >= least if inclusive else value > least)
