"""Documents and tokens that memory need not hold: on disk, and read where they are asked for."""

import json
import tempfile
import warnings
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from lightning_distill.data.splits import digest, split_sizes

COPIED = 2**24  # bytes at a time
DTYPES = {"I32": np.dtype("<i4")}  # safetensors' names of them


class Documents(Sequence[str]):
    """Texts in a file, each read when it is asked for.

    begins, sizes: [D] where each is, in bytes.
    """

    def __init__(self, file: IO[bytes], begins: np.ndarray, sizes: np.ndarray) -> None:
        self.file, self.begins, self.sizes = file, begins, sizes

    def __len__(self) -> int:
        return len(self.begins)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        self.file.seek(int(self.begins[index]))
        return self.file.read(int(self.sizes[index])).decode("utf-8", "surrogatepass")


def split_on_disk(texts: Iterable[str], folder: Path, what: str) -> dict[str, Documents]:
    """Like `split_by_hash`, with nothing in memory but each document's hash and place. The texts
    are in a nameless file below `folder`, which goes when nobody reads it any more."""
    folder.mkdir(parents=True, exist_ok=True)
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (the documents keep it open)
    hashes, sizes = bytearray(), array("q")
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        hashes += digest(data)
        sizes.append(file.write(data))
    file.flush()
    ends = np.cumsum(np.frombuffer(sizes, np.int64)) if sizes else np.zeros(0, np.int64)
    # Of texts that come more than once the first stays; np.unique sorts by the hashes' bytes.
    kept = np.unique(np.frombuffer(hashes, "S32"), return_index=True)[1]
    lengths = np.frombuffer(sizes, np.int64)[kept] if sizes else ends
    begins, found, start = ends[kept] - lengths, {}, 0
    for split, size in split_sizes(len(kept), what).items():
        part = slice(start, start + size)
        found[split], start = Documents(file, begins[part], lengths[part]), start + size
    return found


def write_tokens(
    splits: dict[str, Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    closing: list[int],
    folder: Path,
) -> dict[str, int]:
    """`tokens.safetensors`, written document by document: for each split its tokens [S], each
    document closed by `closing`, and `<split>_documents` [S], their numbers. Returns the bytes of
    each split's texts."""
    bytes_of: dict[str, int] = {}
    for split, documents in splits.items():
        bytes_of[split] = 0
        bar = tqdm(documents, desc=f"tokenizing {split}", unit="doc", disable=None)
        ids_file, numbers_file = (_part(folder, name) for name in _names(split))
        with ids_file.open("wb") as ids, numbers_file.open("wb") as numbers:
            for number, text in enumerate(bar):
                own = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
                own = np.array([*own, *closing], "<i4")
                ids.write(own.tobytes())
                numbers.write(np.full(len(own), number, "<i4").tobytes())
                bytes_of[split] += len(text.encode())
    files = {name: _part(folder, name) for split in splits for name in _names(split)}
    _join(files, folder / "tokens.safetensors")
    return bytes_of


def mapped(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file of int32 ones, in the file's own memory: what is read of
    them comes from the disk, and goes when the memory is wanted. They are not to be written to."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    # Read-only: the system counts writable ones as memory, and refuses what is larger than it has.
    whole = np.memmap(file, np.uint8, "r") if file.stat().st_size > 8 + size else np.zeros(0)
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = (8 + size + offset for offset in entry["data_offsets"])
            part = np.asarray(whole[start:stop]).view(DTYPES[entry["dtype"]])
            found[name] = _tensor(part).view(entry["shape"])
    return found


def _names(split: str) -> tuple[str, str]:
    return split, f"{split}_documents"


def _part(folder: Path, name: str) -> Path:
    return folder / f"{name}.partial"  # which the store clears away after a killed process


def _tensor(values: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(values)


def _join(files: dict[str, Path], whole: Path) -> None:
    """One safetensors file of raw int32 ones, byte by byte what `save_file` would write."""
    header, end = {}, 0
    for name in sorted(files):
        start, end = end, end + files[name].stat().st_size
        header[name] = {"dtype": "I32", "shape": [(end - start) // 4], "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with whole.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(files):
            with files[name].open("rb") as part:
                while data := part.read(COPIED):
                    out.write(data)
            files[name].unlink()
