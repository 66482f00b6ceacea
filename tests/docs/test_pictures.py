"""The script that makes the documentation's pictures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from browser import CHROMIUM
from PIL import Image

from lightning_distill.report.summarize import summarize

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_script_makes_the_pictures_of_the_documentation(sweep_of_24, tmp_path, capsys):
    summarize(sweep_of_24)
    images = tmp_path / "images"
    script = [sys.executable, ROOT / "scripts" / "pictures.py", sweep_of_24, images]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    subprocess.run(script, check=True, env=environment, capture_output=True)
    made = {file.stem: Image.open(file) for file in images.iterdir()}
    assert {name: image.width for name, image in made.items()} == {
        "report": 1440,
        "terminal-80": 702,
        "terminal-100": 871,
    }
    for image in made.values():
        assert len(image.convert("RGB").getcolors(maxcolors=1 << 24)) > 20  # not blank
