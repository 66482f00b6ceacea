"""Documents and tokens on disk, for texts that are larger than memory."""

import json
import tempfile
import warnings
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from lightning_distill.data.hashes import digest
from lightning_distill.data.splits import ORDER, SplitSources, check_held_out, report_repeated
from lightning_distill.progress import FORMAT, progress

COPY_BYTES = 2**24  # at a time
DTYPES = {"I32": np.dtype("<i4")}  # by safetensors' names


class Documents(Sequence[str]):
    """Texts in a file, read on access.

    offsets, sizes: [D] of each document, in bytes.
    """

    def __init__(self, file: IO[bytes], offsets: np.ndarray, sizes: np.ndarray) -> None:
        self.file, self.offsets, self.sizes = file, offsets, sizes

    def at(self, indices: np.ndarray) -> "Documents":
        return Documents(self.file, self.offsets[indices], self.sizes[indices])

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        self.file.seek(int(self.offsets[index]))
        return self.file.read(int(self.sizes[index])).decode("utf-8", "surrogatepass")


def split_on_disk(
    sources: SplitSources, read: Callable[[Any], Iterable[str]], folder: Path, what: str
) -> dict[str, "SplitDocuments"]:
    """Like `SplitSources.split`, with only each document's hash, offset and size in memory.

    The texts are in unnamed temporary files in `folder`, which end with the last reference.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held_out = [
        {split: _on_disk(read(source), folder) for split, source in part.held_out.items()}
        for part in sources.parts
    ]
    held_out_hashes = [hashes for part in held_out for hashes, _ in part.values()]
    seen = np.concatenate([np.zeros(0, "S32"), *held_out_hashes])
    splits: dict[str, list[Documents]] = {split: [] for split in ORDER}
    for number, part in enumerate(sources.parts):
        hashes, documents = _on_disk(read(part.train), folder)
        kept = np.flatnonzero(~np.isin(hashes, seen))
        report_repeated(len(hashes) - len(kept), what)
        seen, start = np.concatenate([seen, hashes[kept]]), 0
        for split, size in sources.sizes(number, len(kept), what).items():
            splits[split].append(documents.at(kept[start : start + size]))
            start += size
        for split, (_, texts) in held_out[number].items():
            check_held_out(split, len(texts), what)
            splits[split].append(texts)
    return {split: SplitDocuments(parts) for split, parts in splits.items()}  # type: ignore[arg-type]


class SplitDocuments(ConcatDataset[str]):
    """The documents of a split, source by source. parts: the index of each one's source."""

    @property
    def parts(self) -> list[int]:
        return [number for number, part in enumerate(self.datasets) for _ in range(len(part))]  # type: ignore[arg-type]


def _on_disk(texts: Iterable[str], folder: Path) -> tuple[np.ndarray, Documents]:
    """The distinct texts in the order of their hashes, and those: [D] of 32 bytes."""
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (the documents keep it open)
    hashes, sizes = bytearray(), array("q")
    for text in progress(texts, "reading documents"):
        data = text.encode("utf-8", "surrogatepass")
        hashes += digest(data)
        sizes.append(file.write(data))
    file.flush()
    # The first of equal texts is kept; np.unique sorts by the bytes of the hashes.
    distinct, kept = np.unique(np.frombuffer(hashes, "S32"), return_index=True)
    all_sizes = np.array(sizes, np.int64)
    offsets = np.cumsum(all_sizes)[kept] - all_sizes[kept]
    return distinct, Documents(file, offsets, all_sizes[kept])


def write_tokens(
    splits: dict[str, Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    before: list[int],
    separator: list[int],
    folder: Path,
) -> dict[str, int]:
    """Writes `tokens.safetensors`, document by document, and returns the bytes of each split.

    Of each split the file holds its tokens [S], each document between `before` and `separator`, and
    `<split>_documents` [S], the index of each token's document.
    """
    num_bytes: dict[str, int] = {}
    for split, documents in splits.items():
        num_bytes[split] = 0
        bar = tqdm(documents, desc=f"tokenizing {split}", disable=None, bar_format=FORMAT)
        ids_file, numbers_file = (_part(folder, name) for name in _names(split))
        with ids_file.open("wb") as ids, numbers_file.open("wb") as numbers:
            for number, text in enumerate(bar):
                row = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
                row = np.array([*before, *row, *separator], "<i4")
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
