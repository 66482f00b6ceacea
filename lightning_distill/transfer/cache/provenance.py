"""Whether a cache that the user names (`transfer.cache`) is the one that a run needs."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_distill.errors import ConfigError
from lightning_distill.storage.artifacts import find_damage, read_manifest

KIND = "predictions"  # of artifact


def read_made_from(cache: Path) -> dict[str, Any]:
    """What a cache was made from. Raises ConfigError where the folder is not a finished cache."""
    with suppress(OSError, ValueError):
        manifest = read_manifest(cache)
        if manifest["kind"] == KIND:
            return dict(manifest["made_from"])
    raise ConfigError(f"transfer.cache={cache} is not the folder of a finished cache.")


def require_match(cache: Path, expected: dict[str, Any]) -> None:
    """Raises ConfigError where a cache was not made from what is expected, or is damaged."""
    made_from = read_made_from(cache)
    for name, value in expected.items():
        if made_from.get(name) != value:
            raise ConfigError(
                f"transfer.cache={cache} was made from another {name}: {made_from.get(name)}; "
                f"this run's is {value}. Leave transfer.cache out to have one made for this run."
            )
    if damaged := find_damage(cache):
        raise ConfigError(
            f"transfer.cache={cache} is damaged ({', '.join(damaged)}). Leave transfer.cache out "
            "to have it made again."
        )
