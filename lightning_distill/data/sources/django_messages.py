"""Django's messages to its users, in a hundred languages: about 900 each, nothing to download.

The package django contains them as message catalogs (.mo files of GNU gettext), under its license.
"""

import struct
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from lightning_distill.data.sources.base import Pair
from lightning_distill.errors import ConfigError, unknown_name

VERSION = 1  # raise it when this file starts to give other pairs
CATALOGS = "conf/locale", "contrib/*/locale"
MAGIC = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}  # a catalog's byte order


class DjangoMessages:
    """A row is a Pair: an English message and its translation.

    language: such as de or pt_BR, or several; then each source begins with the target language, as
    in `>>de<< Log in`, the format of multilingual Marian models.
    A plural is a pair of its own: the English plural, and the last of the language's forms.
    Raises ConfigError for another language, or where Django is not installed.
    """

    def __init__(self, language: str | Sequence[str]) -> None:
        self.root = _django()
        if not isinstance(language, str | Sequence):
            raise ConfigError(f"data.language={language} must be a language or a list, [de, nl].")
        self.languages = [language] if isinstance(language, str) else list(language)
        available = sorted({file.parents[1].name for file in self._catalogs("*")} - {"en"})
        for name in self.languages:
            if name not in available:
                raise unknown_name("data.language", name, available)
        if not self.languages:
            raise ConfigError("data.language=[] names no language, as in [de, nl].")

    def fingerprint(self) -> str:
        return f"django_messages {VERSION} {self.languages} of Django {version('django')}"

    def rows(self) -> Iterator[Pair]:
        for language in self.languages:
            tag = f">>{language}<< " if len(self.languages) > 1 else ""
            translations: dict[str, str] = {}  # the first of each message
            for file in self._catalogs(language):
                for message, translation in read_catalog(file):
                    if message.strip() and translation.strip():
                        translations.setdefault(message.strip(), translation.strip())
            for message, translation in translations.items():
                yield Pair(f"{tag}{message}", translation, message)

    def _catalogs(self, language: str) -> list[Path]:
        places = (f"{place}/{language}/LC_MESSAGES/*.mo" for place in CATALOGS)
        return sorted(file for place in places for file in self.root.glob(place))


def _django() -> Path:
    spec = find_spec("django")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "data=django_messages needs Django, which contains the messages: "
            "pip install 'lightning_distill[translation]'"
        )
    return Path(spec.submodule_search_locations[0])


def read_catalog(file: Path) -> Iterator[tuple[str, str]]:
    """Each message of a .mo file with its translation; a singular and its plural are two.

    The format is GNU gettext's: tables of (length, offset) of all originals and of all
    translations. NUL separates singular and plural, and \\x04 ends a message's context.
    """
    data = file.read_bytes()
    order = MAGIC.get(data[:4])
    if order is None:
        raise ConfigError(f"{file} is not a message catalog.")
    count, originals, translations = struct.unpack_from(f"{order}3I", data, 8)

    def forms(table: int, number: int) -> list[str]:
        length, offset = struct.unpack_from(f"{order}2I", data, table + 8 * number)
        return data[offset : offset + length].decode("utf-8").split("\0")

    for number in range(count):
        messages, translated = forms(originals, number), forms(translations, number)
        singular = messages[0].rpartition("\4")[2]
        if singular:  # the empty one is the catalog's header
            yield singular, translated[0]
        if len(messages) > 1:
            yield messages[1], translated[-1]
