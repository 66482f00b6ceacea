"""Files as streams of UTF-8, whatever compresses or encodes them."""

import bz2
import codecs
import gzip
import io
import lzma
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from lightning_distill.errors import ConfigError

PIECE = 2**20  # bytes that are skipped or encoded anew at a time


def _open_zstd(file: Path) -> IO[bytes]:
    import pyarrow as pa

    stream: Any = pa.CompressedInputStream(pa.OSFile(str(file)), "zstd")
    return io.BufferedReader(stream)


OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
}
DAMAGE = (EOFError, lzma.LZMAError, gzip.BadGzipFile)  # and OSError, of a damaged archive
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def open_utf8(file: Path, offset: int = 0) -> IO[bytes]:
    """The decompressed content as UTF-8 without a byte order mark, from `offset` bytes on.

    UTF-16 is known by its mark, and read from a temporary file.
    """
    with _decompressed(file) as stream:
        mark = stream.read(len(codecs.BOM_UTF8))
    if mark[:2] in UTF_16:
        return _skip(_from_utf16(file), offset)
    return _skip(_decompressed(file), offset + len(mark) * (mark == codecs.BOM_UTF8))


def _from_utf16(file: Path) -> IO[bytes]:
    encoded = tempfile.TemporaryFile()  # noqa: SIM115 (returned open)
    decode = codecs.getincrementaldecoder("utf-16")().decode
    with _decompressed(file) as stream:
        while part := stream.read(PIECE):
            encoded.write(decode(part).encode("utf-8", "surrogatepass"))
    encoded.write(decode(b"", final=True).encode("utf-8", "surrogatepass"))
    return encoded


def _decompressed(file: Path) -> IO[bytes]:
    opener = OPENERS.get(file.suffix.lower())
    return file.open("rb") if opener is None else opener(file)


def _skip(stream: IO[bytes], count: int) -> IO[bytes]:
    if stream.seekable():
        stream.seek(count)
        return stream
    while count and (part := stream.read(min(count, PIECE))):
        count -= len(part)
    return stream


def unreadable(file: Path, error: Exception) -> ConfigError:
    """What to raise for a file that is damaged, or no text."""
    if isinstance(error, UnicodeDecodeError):
        return ConfigError(f"data.path: {file} is neither UTF-8 nor UTF-16 text ({error}).")
    return ConfigError(f"data.path: {file} cannot be read ({error or type(error).__name__}).")
