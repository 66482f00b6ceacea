"""Generated text in the folder of a run."""

import json
from pathlib import Path
from typing import Any

from lightning_distill.data.tasks.base import DistillationData
from lightning_distill.errors import ConfigError

GENERATED = "generated.jsonl"  # in a run's folder


def require_generative(data: DistillationData, transfer: str) -> None:
    """Raises ConfigError where models of the task do not generate text."""
    if not data.is_generative:
        raise ConfigError(
            f"transfer={transfer} needs models that generate text; those of this data choose among "
            f"{data.num_classes} classes. Choose transfer=online or transfer=cached."
        )


def append_lines(file: Path, lines: list[dict[str, Any]]) -> None:
    """Appends JSON lines to a file in a run's folder, for a person to read."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
