"""Files that spreadsheets, scanners and other tools write."""

import bz2
import csv
import gzip
import io
import json
import lzma

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lightning_distill.data.sources import readers
from lightning_distill.data.sources.huggingface import HuggingFace
from lightning_distill.data.sources.image_folder import ImageFolder
from lightning_distill.data.sources.labelled_rows import LabelledRows
from lightning_distill.data.sources.pairs import Pairs
from lightning_distill.data.sources.row_files import RowFiles
from lightning_distill.data.sources.text import Text
from lightning_distill.errors import ConfigError

MARK = b"\xef\xbb\xbf"  # UTF-8's byte order mark, which Excel and Notepad write


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path, name):
    """inspect_ai#5353"""
    rows = [{"text": "one two", "label": "x"}, {"text": "three", "label": "y"}]
    separator = "\t" if name.endswith("tsv") else ","
    table = [separator.join(row) for row in (rows[0], *(row.values() for row in rows))]
    lines = [json.dumps(row) for row in rows] if name.endswith("jsonl") else table
    (tmp_path / name).write_bytes(MARK + "\r\n".join(lines).encode())
    source = LabelledRows(str(tmp_path / name), "text", "label", False)
    assert list(source.rows()) == [("one two", "x"), ("three", "y")]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path, name):
    text = "Once upon a time."
    content = text if name.endswith("txt") else json.dumps({"text": text})
    (tmp_path / name).write_bytes(MARK + content.encode())
    assert list(Text(str(tmp_path / name)).rows()) == [text]


@pytest.mark.parametrize(
    ("label", "name"),
    [(1, "1"), (1.0, "1"), (0.0, "0"), (1.5, "1.5"), ("1.0", "1.0"), (" x ", "x")],
)
def test_labels_that_are_the_same_number_are_one_class(tmp_path, label, name):
    """asreview#1636"""
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "t", "label": label}))
    assert list(LabelledRows(str(tmp_path / "a.jsonl"), "text", "label", False).rows()) == [
        ("t", name)
    ]


def test_a_label_that_is_no_number_is_no_class(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "t", "label": NaN}')
    with pytest.raises(ConfigError, match="label is nan, not a string or a number"):
        list(LabelledRows(str(tmp_path / "a.jsonl"), "text", "label", False).rows())


@pytest.fixture
def images(tmp_path):
    (tmp_path / "class").mkdir()

    def read(image, name="a.png", **options):
        image.save(tmp_path / "class" / name, **options)
        ((pixels, _),) = ImageFolder(str(tmp_path), 4, 1, False).rows()
        return pixels[0]

    return read


@pytest.mark.parametrize("value", [0, 9000, 50000, 65535])
def test_16_bits_are_scaled_to_8(images, value):
    """Pillow#2574"""
    scan = Image.fromarray(np.full((4, 4), value, np.uint16))
    assert (images(scan) == value // 257).all()


def test_an_image_is_turned_as_its_camera_says(images):
    half = np.zeros((4, 4), np.uint8)
    half[:2] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    pixels = images(Image.fromarray(half), "a.png", exif=exif)
    assert (pixels == half[::-1]).all()


def test_an_image_that_is_too_large_is_named_or_left_out(tmp_path, monkeypatch, caplog):
    """dataset-viewer#1192"""
    (tmp_path / "class").mkdir()
    for name, size in (("large.png", 40), ("small.png", 4)):
        Image.new("L", (size, size)).save(tmp_path / "class" / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ConfigError, match=r"large\.png cannot be read as an image"):
        list(ImageFolder(str(tmp_path), 4, 1, False).rows())
    assert len(list(ImageFolder(str(tmp_path), 4, 1, True).rows())) == 1
    assert "skipped 1 of 2 images" in caplog.text


TEXTS = [f"Document {i}: naïve, 東京 😀.\n\n{'soft targets ' * (i % 5)}." for i in range(40)]
ENCODINGS = {
    "utf-8": lambda text: text.encode(),
    "with a mark": lambda text: MARK + text.encode(),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16 of the other order": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "windows": lambda text: MARK + text.replace("\n", "\r\n").encode(),
}


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESSED = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstd(data[:500]) + zstd(data[500:]),  # in two frames
}


def table(texts, delimiter):
    out = io.StringIO()
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n", quoting=quoting)
    writer.writerows([["text", "n"], *([text, "1"] for text in texts)])
    return out.getvalue()


def as_file(texts, kind):
    rows = [{"text": text, "n": 1} for text in texts]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return {
        ".jsonl": lines,
        "lines.json": lines,  # as data sets of the hub have them
        "array.json": json.dumps(rows),
        "pretty.json": json.dumps(rows, indent=2, ensure_ascii=False),
        "nested.json": json.dumps({"version": 1, "data": rows}),
        "comma.csv": table(texts, ","),
        "semicolon.csv": table(texts, ";"),
    }[kind]


KINDS = [
    *(".jsonl", "lines.json", "array.json", "pretty.json", "nested.json"),
    *("comma.csv", "semicolon.csv"),
]


@pytest.mark.parametrize("compression", COMPRESSED)
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_file_gives_the_same_documents_from_every_position(
    tmp_path, monkeypatch, kind, encoding, compression
):
    monkeypatch.setattr(readers, "CHUNK", 1000)
    content = ENCODINGS[encoding](as_file(TEXTS, kind))
    file = tmp_path / f"a{kind}{compression}"
    file.write_bytes(COMPRESSED[compression](content))
    source = Text(str(file))
    whole = list(source.read_from(None))
    expected = [text.replace("\n", "\r\n") for text in TEXTS]  # in a cell, a line may end so
    in_cell = "csv" in kind and encoding == "windows"
    assert [text for _, texts in whole for text in texts] == (expected if in_cell else TEXTS)
    for number, (position, _) in enumerate(whole):
        assert list(source.read_from(json.loads(json.dumps(position)))) == whole[number:]


@pytest.mark.parametrize("compression", COMPRESSED)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_text_file_is_cut_alike_however_it_is_written(tmp_path, encoding, compression):
    text = "\n\n".join(f"{i} 東 " + "word " * (i * 7 % 300) for i in range(60))
    content = ENCODINGS[encoding](text)
    (tmp_path / f"a.txt{compression}").write_bytes(COMPRESSED[compression](content))
    assert list(Text(str(tmp_path)).rows()) == list(readers.pieces(text))


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
def test_a_damaged_archive_is_named(tmp_path, compression):
    whole = COMPRESSED[compression](as_file(TEXTS, ".jsonl").encode())
    for content in (whole[: len(whole) // 2], b"no archive"):
        (tmp_path / f"a.jsonl{compression}").write_bytes(content)
        with pytest.raises(ConfigError, match=r"a\.jsonl\S+ cannot be read"):
            list(Text(str(tmp_path)).rows())


def test_a_path_may_be_a_glob_or_a_list_and_a_file_counts_once(tmp_path):
    for name in ("b1", "a", "b2", "[c]"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}))

    def read(*names):
        return list(Text([str(tmp_path / name) for name in names]).rows())

    assert read("b*.jsonl", "a.jsonl", "b1.jsonl") == ["b1", "b2", "a"]
    assert read("[c].jsonl") == ["[c]"]
    assert list(Text(str(tmp_path / "**" / "*.jsonl")).rows()) == ["[c]", "a", "b1", "b2"]
    with pytest.raises(ConfigError, match=r"data.path=\S*/d.jsonl does not exist"):
        read("a.jsonl", "d.jsonl")


SOURCES = {
    "text": lambda path, skip: Text(path, "text", skip),
    "labels": lambda path, skip: LabelledRows(path, "text", "label", skip),
    "pairs": lambda path, skip: Pairs(path, "text", "label", skip_bad_rows=skip),
    "hub": lambda path, skip: HuggingFace(path, column="text", skip_bad_rows=skip),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_null_is_refused_with_its_row_or_left_out_and_counted(tmp_path, caplog, name):
    rows = [{"text": f"text {i}", "label": "x"} for i in range(6)]
    rows[3]["text"] = None
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if name == "hub":
        datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
        path = tmp_path / "saved"
    with pytest.raises(ConfigError, match=r"(line|row) 4: text is null.*skip_bad_rows=true"):
        list(SOURCES[name](str(path), False).rows())
    assert len(list(SOURCES[name](str(path), True).rows())) == 5
    assert "skipped 1 of 6 rows" in caplog.text


def test_nulls_of_a_tables_schema_are_no_part_of_its_rows(tmp_path):
    """axolotl#2909: Parquet gives every struct the keys of all structs of its column."""
    rows = [{"n": i, "call": {"arguments": {f"key {i}": i}, "list": [{f"{i}": 1}]}} for i in (1, 2)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    for name in ("a.parquet", "saved"):
        assert list(RowFiles(str(tmp_path / name), {}, False).read(lambda row: row)) == rows


def test_hidden_files_of_systems_and_notebooks_are_not_read(tmp_path):
    """vision#109, openneuro#2520: macOS writes ._name beside each name."""
    for name in ("a.jsonl", "._a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "a"}' if name == "a.jsonl" else "\0")
    assert list(Text(str(tmp_path)).rows()) == ["a"]
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    for name in ("one/a.png", ".trash/b.png", "one/._a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((tmp_path / "a.png").read_bytes())
    assert [label for _, label in ImageFolder(str(tmp_path), 4, 1, False).rows()] == ["one"]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "L", "LA", "1"])
def test_every_kind_of_image_is_read_as_the_colors_it_shows(tmp_path, mode):
    """datasets#4160"""
    (tmp_path / "class").mkdir()
    colors = (
        [(255, 255, 255), (0, 0, 0)] if mode in ("L", "LA", "1") else [(255, 0, 0), (0, 0, 255)]
    )
    shown = Image.new("RGB", (4, 4), colors[0])
    shown.paste(colors[1], (0, 0, 4, 2))
    suffix = "tiff" if mode == "CMYK" else "png"
    shown.convert(mode).save(tmp_path / "class" / f"a.{suffix}")
    ((pixels, _),) = ImageFolder(str(tmp_path), 4, 3, False).rows()
    assert (pixels == np.asarray(shown).transpose(2, 0, 1)).all()


def test_files_need_not_agree_on_what_a_column_holds(tmp_path):
    """datasets#7092: a column that is empty, or of another type, in one of the files."""
    for name, tags in (("a", []), ("b", [{"id": 1}]), ("c", "none")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name, "tags": tags}))
        pq.write_table(pa.table({"text": [name], "tags": [tags]}), tmp_path / f"{name}.parquet")
    assert list(Text(str(tmp_path)).rows()) == ["a", "a", "b", "b", "c", "c"]


def test_blank_lines_are_no_rows(tmp_path):
    """gpt-2-simple#235, graphrag#2424"""
    (tmp_path / "a.csv").write_text("\ntext,label\n\none,x\n\n\ntwo,y\n\n"[1:])
    (tmp_path / "b.jsonl").write_text('\n{"text": "three", "label": "z"}\n   \n\n')
    source = LabelledRows(str(tmp_path), "text", "label", False)
    assert list(source.rows()) == [("one", "x"), ("two", "y"), ("three", "z")]


def test_an_index_column_and_a_table_of_tabs_are_read(tmp_path):
    """Vibe-Trading#862: what spreadsheets call Unicode text; and the index that pandas writes."""
    (tmp_path / "a.csv").write_bytes("\tText\ttext\n0\tx\tnaïve, 東京\n".encode("utf-16"))
    assert list(Text(str(tmp_path / "a.csv")).rows()) == ["naïve, 東京"]
    (tmp_path / "b.csv").write_text(",text\n0,one\n1,two\n")
    assert list(Text(str(tmp_path / "b.csv")).rows()) == ["one", "two"]


def test_a_data_set_below_the_home_folder_is_found(tmp_path, monkeypatch):
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "saved"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(HuggingFace("~/saved").rows()) == ["a"]
    assert RowFiles("~/saved", {"data.column": "text"}, False).dataset is not None


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_rows_that_hold_lists_are_rows_whatever_lies_between_them(tmp_path, name):
    rows = [{"text": "one", "tags": [{"id": 1}]}, {"text": "two", "tags": []}]
    for between in ("\n", "\n\n", "\n  \n\n"):
        (tmp_path / name).write_text("\n" + between.join(map(json.dumps, rows)) + "\n")
        assert list(Text(str(tmp_path / name)).rows()) == ["one", "two"]


def test_a_data_set_is_read_in_chunks_from_every_position(tmp_path):
    texts = [f"text {i}" for i in range(600)]
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(tmp_path / "saved"))
    source = Text(str(tmp_path / "saved"))
    whole = list(source.read_from(None))
    assert len(whole) > 2
    assert [text for _, chunk in whole for text in chunk] == texts
    for number, (position, _) in enumerate(whole):
        assert list(source.read_from(json.loads(json.dumps(position)))) == whole[number:]


def test_a_name_of_a_column_may_have_a_line_break(tmp_path):
    (tmp_path / "a.csv").write_text('"a\nb",text\n1,one\n2\n')
    with pytest.raises(ConfigError, match="line 4: not 2 columns"):
        list(Text(str(tmp_path / "a.csv")).rows())
    (tmp_path / "a.csv").write_text('"a\nb",text\n1,one\n')
    assert list(Text(str(tmp_path / "a.csv")).rows()) == ["one"]
