"""Documents and tokens on disk, for texts that are larger than memory."""

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

COPY_BYTES = 2**24  # at a time
DTYPES = {"I32": np.dtype("<i4")}  # by safetensors' names


class Documents(Sequence[str]):
    """Texts in a file, read on access.

    offsets, sizes: [D] of each document, in bytes.
    """

    def __init__(self, file: IO[bytes], offsets: np.ndarray, sizes: np.ndarray) -> None:
        self.file, self.offsets, self.sizes = file, offsets, sizes

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        self.file.seek(int(self.offsets[index]))
        return self.file.read(int(self.sizes[index])).decode("utf-8", "surrogatepass")


def split_on_disk(texts: Iterable[str], folder: Path, what: str) -> dict[str, Documents]:
    """Like `split_by_hash`, with only each document's hash, offset and size in memory.

    The texts are in an unnamed temporary file in `folder`, which ends with the last reference.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (the documents keep it open)
    hashes, sizes = bytearray(), array("q")
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        hashes += digest(data)
        sizes.append(file.write(data))
    file.flush()
    all_sizes = np.array(sizes, np.int64)
    # The first of equal texts is kept; np.unique sorts by the bytes of the hashes.
    kept = np.unique(np.frombuffer(hashes, "S32"), return_index=True)[1]
    kept_sizes = all_sizes[kept]
    offsets, splits, start = np.cumsum(all_sizes)[kept] - kept_sizes, {}, 0
    for split, size in split_sizes(len(kept), what).items():
        part = slice(start, start + size)
        splits[split], start = Documents(file, offsets[part], kept_sizes[part]), start + size
    return splits


def write_tokens(
    splits: dict[str, Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    separator: list[int],
    folder: Path,
) -> dict[str, int]:
    """Writes `tokens.safetensors`, document by document, and returns the bytes of each split.

    Of each split the file holds its tokens [S], each document closed by `separator`, and
    `<split>_documents` [S], the index of each token's document.
    """
    num_bytes: dict[str, int] = {}
    for split, documents in splits.items():
        num_bytes[split] = 0
        bar = tqdm(documents, desc=f"tokenizing {split}", unit="doc", disable=None)
        ids_file, numbers_file = (_part(folder, name) for name in _names(split))
        with ids_file.open("wb") as ids, numbers_file.open("wb") as numbers:
            for number, text in enumerate(bar):
                row = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
                row = np.array([*row, *separator], "<i4")
                ids.write(row.tobytes())
                numbers.write(np.full(len(row), number, "<i4").tobytes())
                num_bytes[split] += len(text.encode())
    files = {name: _part(folder, name) for split in splits for name in _names(split)}
    _join(files, folder / "tokens.safetensors")
    return num_bytes


def map_tokens(file: Path) -> dict[str, Tensor]:
    """The int32 tensors of a safetensors file, memory-mapped. They must not be written to."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    # Read-only: the system refuses writable mappings that are larger than its memory.
    data = np.memmap(file, np.uint8, "r") if file.stat().st_size > 8 + size else np.zeros(0)
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = (8 + size + offset for offset in entry["data_offsets"])
            part = np.asarray(data[start:stop]).view(DTYPES[entry["dtype"]])
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*not writable.*")
                tensors[name] = torch.from_numpy(part).view(entry["shape"])
    return tensors


def _names(split: str) -> tuple[str, str]:
    return split, f"{split}_documents"


def _part(folder: Path, name: str) -> Path:
    return folder / f"{name}.partial"  # the store removes what a killed process left


def _join(files: dict[str, Path], target: Path) -> None:
    """Joins raw int32 files into one safetensors file, byte for byte what `save_file` writes."""
    header, end = {}, 0
    for name in sorted(files):
        start, end = end, end + files[name].stat().st_size
        header[name] = {"dtype": "I32", "shape": [(end - start) // 4], "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(files):
            with files[name].open("rb") as part:
                while data := part.read(COPY_BYTES):
                    out.write(data)
            files[name].unlink()
