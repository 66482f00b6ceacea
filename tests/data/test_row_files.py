import json
import logging

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_distill.data.sources.row_files import RowFiles
from lightning_distill.data.sources.skipped_rows import text_of
from lightning_distill.errors import ConfigError

ROWS = [{"text": f"text {i}, with a comma", "label": f"kind {i % 3}"} for i in range(9)]
COLUMNS = {"data.text_column": "text", "data.label_column": "label"}


def read(path, skip=False, columns=COLUMNS):
    return list(RowFiles(str(path), columns, skip).read(lambda row: (text_of(row, "text"), row)))


def write_jsonl(path, rows=ROWS):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_each_format_gives_the_same_rows(tmp_path):
    lines = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]
    write_jsonl(tmp_path / "a.jsonl")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    (tmp_path / "a.tsv").write_text("\n".join("\t".join(line) for line in lines))
    quoted = (",".join(f'"{cell}"' for cell in line) for line in lines)
    (tmp_path / "a.csv").write_text("\n".join(quoted))
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    for name in ("a.jsonl", "a.parquet", "a.tsv", "a.csv", "saved"):
        assert [row for _, row in read(tmp_path / name)] == ROWS, name


def test_a_missing_column_is_named_with_its_setting_and_those_that_are_there(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", [*ROWS, {"text": "a", "class": 1}])
    with pytest.raises(
        ConfigError,
        match=r"line 10: no column label \(data.label_column=label\); it has: text, class",
    ):
        read(file)


def test_a_broken_line_is_named_by_its_number(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl")
    file.write_text(file.read_text() + "\n\n{broken\n")
    with pytest.raises(ConfigError, match="line 11: Expecting property name"):
        read(file)


def test_bad_rows_are_left_out_and_counted_where_that_is_asked_for(tmp_path, caplog):
    bad = [{"text": " ", "label": 1}, {"text": 5, "label": 1}, {"label": 1}, [1]]
    file = write_jsonl(tmp_path / "a.jsonl", [*bad, *ROWS])
    with caplog.at_level(logging.WARNING):
        assert [row for _, row in read(file, skip=True)] == ROWS
    assert "skipped 4 of 13 rows; the first: " in caplog.text
    assert "line 1: text is empty" in caplog.text


def test_a_line_with_too_few_columns_is_refused(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\none\ta\ntwo\n")
    with pytest.raises(ConfigError, match="line 3: not 2 columns, as the first line has"):
        read(tmp_path / "a.tsv")


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data.path=/no/file.jsonl does not exist"):
        read("/no/file.jsonl")
    with pytest.raises(ConfigError, match="holds no file that ends in"):
        read(tmp_path)
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="has no row"):
        read(tmp_path)


def test_the_fingerprint_changes_with_the_rows_and_with_the_columns(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl")
    before = RowFiles(str(file), COLUMNS, False).fingerprint()
    assert RowFiles(str(file), {"data.text_column": "label"}, False).fingerprint() != before
    write_jsonl(file, ROWS[1:])
    assert RowFiles(str(file), COLUMNS, False).fingerprint() != before
