import itertools
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_distill.data.sources import readers
from lightning_distill.data.sources.readers import pieces
from lightning_distill.data.sources.text import Text
from lightning_distill.errors import ConfigError

TEXTS = [f"Document {i}: naïve, 東京.\n" + "soft targets " * (i % 9) for i in range(300)]
LONG = (
    "\r\n\r\n".join(f"Paragraph {i} é " + "word " * (i * 7 % 300) for i in range(300)) + "x" * 9000
)


def written(folder, suffix):
    file = folder / f"a{suffix}"
    if suffix == ".txt":
        file.write_bytes(LONG.encode())
        return list(pieces(LONG.replace("\r\n", "\n")))
    if suffix == ".jsonl":
        lines = [
            json.dumps({"text": text}, ensure_ascii=i % 2 == 0) for i, text in enumerate(TEXTS)
        ]
        file.write_text("\n\n".join(lines), encoding="utf-8")
    else:
        pq.write_table(pa.table({"text": TEXTS, "n": list(range(300))}), file, row_group_size=70)
    return TEXTS


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_a_file_in_chunks_has_the_same_documents_from_every_place_on(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(readers, "CHUNK", 4000)
    expected = written(tmp_path, suffix)
    (tmp_path / "b.txt").write_text("the last")
    source = Text(str(tmp_path))
    whole = list(source.read_from(None))
    assert [text for _, found in whole for text in found] == [*expected, "the last"]
    assert len(whole) > 5
    for number, (place, _) in enumerate(whole):
        assert list(source.read_from(json.loads(json.dumps(place)))) == whole[number:]


def test_chunks_hold_no_more_than_they_must(tmp_path):
    with (tmp_path / "a.txt").open("w") as file:
        for _ in range(400):
            file.write("word " * 1000 + "\n")
    sizes = [sum(map(len, found)) for _, found in Text(str(tmp_path)).read_from(None)]
    assert sum(sizes) == pytest.approx(2e6, rel=1e-3)
    assert max(sizes) <= readers.CHUNK + 3000 + 5001  # a piece, and a line


def test_a_bad_row_is_named_by_its_number_wherever_reading_began(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "CHUNK", 100)
    lines = [json.dumps({"text": text}) for text in TEXTS]
    lines[200] = "{"
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = Text(str(tmp_path))
    places = [place for place, _ in itertools.islice(source.read_from(None), 30)]
    for place in (None, places[-1]):
        with pytest.raises(ConfigError, match="line 201"):
            list(source.read_from(place))


def test_a_stamp_changes_with_a_files_size_and_reads_none(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    before = Text(str(tmp_path)).quick_fingerprint()
    assert Text(str(tmp_path)).quick_fingerprint() == before
    (tmp_path / "a.txt").write_text("three")
    assert Text(str(tmp_path)).quick_fingerprint() != before
