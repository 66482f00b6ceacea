"""The train, validation and test splits: each from a source of its own, or by the hashes of the
train source's items."""

import logging
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from fractions import Fraction
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

from lightning_distill.data.hashes import digest
from lightning_distill.errors import ConfigError
from lightning_distill.progress import progress

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
ORDER = ("test", "validation", "train")  # in which the hashes of a source are divided
HELD_OUT = Fraction(1, 18)  # of the items are for validation, and as many for the test

Item = TypeVar("Item")
Held = float | int | None


class SplitItems(NamedTuple, Generic[Item]):
    """The items of one split. parts: the index of each one's source in the mixture."""

    items: list[Item]
    parts: list[int]


class Part(NamedTuple):
    """A source of the train split, and by split the sources that only held-out items come from."""

    train: Any
    held_out: dict[str, Any]


class SplitSources:
    """What the splits are read from.

    make: called with the settings, makes a source. `validation_path`, `test_path`,
    `validation_split` and `test_split` take the place of `path` and `split` for the split's own.
    held_out: the share (below 1) or the number of the train source's items that are held out for
    each split that has no source of its own; None for one in 18.
    mixture: of several sources by name, the settings that differ from `settings`, and the `weight`
    by which examples are drawn.
    Raises ConfigError where one cannot be made.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        settings: Mapping[str, Any],
        held_out: Held = None,
        mixture: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        parts = {"": {}} if mixture is None else _checked(mixture)
        self.names = list(parts)
        self.weights = _weights(parts)
        more = [{k: v for k, v in part.items() if k != "weight"} for part in parts.values()]
        self.parts = [
            _part(make, {**settings, **part}, f"data.mixture.{name}" if mixture else "data")
            for name, part in zip(self.names, more, strict=True)
        ]
        self.held_out, self.share = held_out, _share(held_out)

    @property
    def is_mixture(self) -> bool:
        return len(self.parts) > 1

    @property
    def train(self) -> Any:
        """The train source of a split that is no mixture."""
        (part,) = self.parts
        return part.train

    @property
    def held_out_sources(self) -> dict[str, Any]:
        """Those of the held-out splits that have one, where there is no mixture."""
        (part,) = self.parts
        return part.held_out

    @property
    def from_train(self) -> list[str]:
        """The splits that are held out from the train source, in the order of their hashes."""
        return _from_train(self.held_out_sources)

    def map(self, change: Callable[[Any], Any]) -> "SplitSources":
        """The same splits of sources that `change` returns."""
        changed = copy(self)
        changed.parts = [
            Part(change(part.train), {s: change(one) for s, one in part.held_out.items()})
            for part in self.parts
        ]
        return changed

    def fingerprint(self, quick: bool = False) -> dict[str, Any]:
        """What changes when a split does: a value for each source. quick: reads no large file."""

        def of(source: Any) -> Any:
            quickly = quick and hasattr(source, "quick_fingerprint")
            return source.quick_fingerprint() if quickly else source.fingerprint()

        inputs: dict[str, Any] = {}
        for name, part in zip(self.names, self.parts, strict=True):
            prefix = f"{name}: " * self.is_mixture
            inputs[f"{prefix}source"] = of(part.train)
            inputs |= {f"{prefix}{split} source": of(one) for split, one in part.held_out.items()}
        if self.held_out is not None and any(_from_train(part.held_out) for part in self.parts):
            inputs["data.held_out"] = str(self.share or self.held_out)
        return inputs

    def split(
        self, read: Callable[[Any], Iterable[tuple[str, Item]]], what: str
    ) -> dict[str, SplitItems[Item]]:
        """The distinct items of each split, source by source, in the order of their hashes.

        read: a source's items, each with its hash. what: the items' name in messages.
        Reordering a source changes nothing, and adding an item moves few others. An item that is in
        several sources is in one split: in a held-out one that has a source of its own, else in
        that of the first source.
        """
        held_out = [{s: dict(read(one)) for s, one in part.held_out.items()} for part in self.parts]
        seen = {key for items in held_out for of_split in items.values() for key in of_split}
        splits: dict[str, SplitItems[Item]] = {s: SplitItems([], []) for s in ORDER}
        for number, part in enumerate(self.parts):
            train = dict(progress(read(part.train), f"reading {what}"))
            kept = sorted(key for key in train if key not in seen)
            report_repeated(len(train) - len(kept), what)
            seen |= set(kept)
            keys = iter(kept)
            for split, size in self.sizes(number, len(kept), what).items():
                _extend(splits[split], number, [train[key] for key in islice(keys, size)])
            for split, items in held_out[number].items():
                check_held_out(split, len(items), what)
                _extend(splits[split], number, [items[key] for key in sorted(items)])
        return splits

    def sizes(self, number: int, count: int, what: str) -> dict[str, int]:
        """How many of a train source's items are in each split, in the order of their hashes.

        number: of the source. Raises ConfigError where a split would be empty.
        """
        splits = _from_train(self.parts[number].held_out)
        held = -int(-count * self.share // 1) if self.share else int(self.held_out or 0)
        sizes = {**dict.fromkeys(splits, held), "train": count - held * len(splits)}
        name = f"data.mixture.{self.names[number]}" if self.is_mixture else "data"
        if count < len(sizes):
            raise ConfigError(
                f"{name}: its source holds {count} {what}; the {', '.join(sizes)} splits need "
                "one each. Bring more."
            )
        if sizes["train"] < 1:
            raise ConfigError(
                f"data.held_out={self.held_out} of {count} {what}, for each of "
                f"{' and '.join(splits)}, leaves none to train on."
            )
        return sizes

    def split_of(self, text: str) -> str:
        """A streamed document's split, from its hash alone, wherever it recurs."""
        assert self.share is not None
        number = int.from_bytes(digest(text.encode("utf-8", "surrogatepass"))[:8], "big")
        part = number * self.share.denominator // (self.share.numerator << 64)
        return self.from_train[part] if part < len(self.from_train) else "train"


def _extend(split: SplitItems[Item], number: int, items: list[Item]) -> None:
    split.items.extend(items)
    split.parts.extend([number] * len(items))


def _from_train(held_out: Mapping[str, Any]) -> list[str]:
    return [split for split in ("test", "validation") if split not in held_out]


def _checked(mixture: Any) -> Mapping[str, Mapping[str, Any]]:
    is_mapping = isinstance(mixture, Mapping)
    if not is_mapping or not all(isinstance(one, Mapping) for one in mixture.values()):
        raise ConfigError(
            f"data.mixture={mixture} must name sources, as in "
            "'data.mixture={a: {path: a.jsonl}, b: {path: b.jsonl}}'."
        )
    if len(mixture) < 2:
        raise ConfigError(f"data.mixture names {len(mixture)} source; it needs two or more.")
    return {str(name): one for name, one in mixture.items()}


def _weights(parts: Mapping[str, Mapping[str, Any]]) -> list[float] | None:
    """None where no source has a weight: each is then used as often as it has examples."""
    given = {name: part.get("weight") for name, part in parts.items()}
    if all(weight is None for weight in given.values()):
        return None
    for name, weight in given.items():
        if not isinstance(weight, int | float) or isinstance(weight, bool) or weight <= 0:
            raise ConfigError(
                f"data.mixture.{name}.weight={weight} must be a number above 0; give each source "
                "a weight, or none."
            )
    return [float(weight) for weight in given.values() if weight is not None]


def _part(make: Callable[..., Any], settings: dict[str, Any], key: str) -> Part:
    """key: of the settings, for messages."""
    names = [(split, name) for split in SPLITS[1:] for name in ("path", "split")]
    replaced: dict[str, dict[str, Any]] = {}
    for split, name in names:
        if (value := settings.get(f"{split}_{name}")) is not None:
            replaced.setdefault(split, {})[name] = value
    keys = {f"{split}_{name}" for split, name in names}
    shared = {key: value for key, value in settings.items() if key not in keys}
    held_out = {
        split: _source(make, shared | more, key, f"{split}_") for split, more in replaced.items()
    }
    return Part(_source(make, shared, key), held_out)


def _source(make: Callable[..., Any], settings: dict[str, Any], key: str, split: str = "") -> Any:
    """split: prefix of the keys that say where this source is."""
    try:
        return make(**settings)
    except ConfigError as error:  # it names the keys of a train split without a mixture
        message = str(error)
        for name in ("path", "name", "split"):
            prefixed = name if name == "name" else f"{split}{name}"
            message = message.replace(f"data.{name}=", f"{key}.{prefixed}=")
        raise ConfigError(message) from error
    except TypeError as error:
        if key == "data":
            raise
        raise ConfigError(f"{key}: {error}.") from error


def _share(held_out: Held) -> Fraction | None:
    """None for a number of items. Raises ConfigError for what is neither."""
    if held_out is None:
        return HELD_OUT
    is_number = isinstance(held_out, int | float) and not isinstance(held_out, bool)
    if not is_number or held_out <= 0 or (held_out > 1 and held_out != int(held_out)):
        raise ConfigError(
            f"data.held_out={held_out} must be a share below 1, as in 0.1, or a whole number."
        )
    return Fraction(str(held_out)) if held_out < 1 else None


def report_repeated(count: int, what: str) -> None:
    """Warns of items that are left out of the train split."""
    if count:
        log.warning("data: %d %s are in another split or source too, and count once", count, what)


def check_held_out(split: str, count: int, what: str) -> None:
    """Raises ConfigError where the source of a held-out split holds nothing."""
    if not count:
        raise ConfigError(f"data: the source of the {split} split holds no {what}.")
