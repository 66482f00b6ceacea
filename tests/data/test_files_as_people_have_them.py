"""Files that spreadsheets, scanners and other tools write."""

import json

import numpy as np
import pytest
from PIL import Image

from lightning_distill.data.sources.image_folder import ImageFolder
from lightning_distill.data.sources.labelled_rows import LabelledRows
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
