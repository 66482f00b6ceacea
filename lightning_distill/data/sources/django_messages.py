"""What Django says to its users, in a hundred languages: about 900 messages each.

Django's package carries them as message catalogues (.mo files of GNU gettext), under its own
licence; nothing is downloaded.
"""

import struct
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from lightning_distill.data.sources.pairs import Pair
from lightning_distill.errors import ConfigError, unknown_name

EDITION = 1  # raise it when this file starts to give other pairs
CATALOGUES = "conf/locale", "contrib/*/locale"
LITTLE, BIG = b"\xde\x12\x04\x95", b"\x95\x04\x12\xde"  # how a catalogue begins


class DjangoMessages:
    """Pairs of an English message and its translation.

    language: one of Django's, such as de or pt_BR, or several of them; then each source begins with
    the language that is asked for, as in `>>de<< Log in`, the way of multilingual Marian models.
    A plural is a pair of its own: the English one, and the last of the language's forms.
    Raises ConfigError for another language, or where Django is not installed.
    """

    def __init__(self, language: str | Sequence[str]) -> None:
        self.root = _django()
        if not isinstance(language, str | Sequence):
            raise ConfigError(f"data.language={language} must be a language or a list, [de, nl].")
        self.languages = [language] if isinstance(language, str) else list(language)
        there = sorted({file.parents[1].name for file in self._catalogues("*")} - {"en"})
        for name in self.languages:
            if name not in there:
                raise unknown_name("data.language", name, there)
        if not self.languages:
            raise ConfigError("data.language=[] names no language, as in [de, nl].")

    def fingerprint(self) -> str:
        return f"django_messages {EDITION} {self.languages} of Django {version('django')}"

    def pairs(self) -> Iterator[Pair]:
        for language in self.languages:
            tag = f">>{language}<< " if len(self.languages) > 1 else ""
            known: dict[str, str] = {}  # of two translations the first one counts
            for file in self._catalogues(language):
                for message, translation in read_catalogue(file):
                    if message.strip() and translation.strip():
                        known.setdefault(message.strip(), translation.strip())
            for message, translation in known.items():
                yield Pair(f"{tag}{message}", translation, message)

    def _catalogues(self, language: str) -> list[Path]:
        places = (f"{place}/{language}/LC_MESSAGES/*.mo" for place in CATALOGUES)
        return sorted(file for place in places for file in self.root.glob(place))


def _django() -> Path:
    found = find_spec("django")
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            "data=django_messages needs Django, which carries the messages: "
            "pip install 'lightning_distill[translation]'"
        )
    return Path(found.submodule_search_locations[0])


def read_catalogue(file: Path) -> Iterator[tuple[str, str]]:
    """Each message of a .mo file with its translation; singular and plural as two.

    The format is GNU gettext's: tables of (length, offset) of all originals and of all
    translations; forms are separated by a NUL, and \\x04 ends what tells equal messages apart.
    """
    data = file.read_bytes()
    order = {LITTLE: "<", BIG: ">"}.get(data[:4])
    if order is None:
        raise ConfigError(f"{file} is not a message catalogue.")
    count, originals, translations = struct.unpack_from(f"{order}3I", data, 8)

    def forms(table: int, number: int) -> list[str]:
        length, offset = struct.unpack_from(f"{order}2I", data, table + 8 * number)
        return data[offset : offset + length].decode("utf-8").split("\0")

    for number in range(count):
        messages, said = forms(originals, number), forms(translations, number)
        singular = messages[0].rpartition("\4")[2]
        if singular:  # the empty one is the catalogue's own header
            yield singular, said[0]
        if len(messages) > 1:
            yield messages[1], said[-1]
