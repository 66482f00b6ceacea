"""The pictures of the documentation: a sweep's report, and the last screen of its terminal.

    python scripts/pictures.py outputs/demo docs/images

writes report.png, 1440 pixels wide, and terminal-80.png and terminal-100.png, as wide in columns.
It needs Chromium.
"""

import argparse
import fcntl
import os
import pty
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH, HEIGHT = 1440, 1160  # of the report's picture, in pixels
COLUMNS, LINES = (80, 100), 40
LINE_HEIGHT, MARGIN = 17, 14  # of the terminal's picture, in pixels
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--hide-scrollbars", "--virtual-time-budget=9000"),  # ms, in which the figures are drawn
)
PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: MARGINpx; background: #15181b; }}
pre {{ margin: 0; color: #e6e9ec; font: 14px/HEIGHTpx "DejaVu Sans Mono", monospace; }}
</style><pre>{code}</pre>""".replace("MARGIN", str(MARGIN)).replace("HEIGHT", str(LINE_HEIGHT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path, help="folder of a sweep")
    parser.add_argument("images", type=Path, help="folder for the pictures")
    arguments = parser.parse_args()
    sweep, images = arguments.sweep.resolve(), arguments.images.resolve()
    images.mkdir(parents=True, exist_ok=True)
    for columns in COLUMNS:
        screen = last_screen(sweep, columns)
        picture_of_terminal(screen, columns, images / f"terminal-{columns}.png")
    screenshot(sweep / "report.html", images / "report.png", WIDTH, HEIGHT)


def last_screen(sweep: Path, columns: int) -> str:
    """What `stage=report` prints in a terminal of that width, with its colors."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
    # From the folder that has `outputs`, as a user runs it.
    command = [sys.executable, "-m", "lightning_distill", "stage=report"]
    command.append(f"report.sweep={sweep.relative_to(sweep.parents[1])}")
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns)}
    process = subprocess.Popen(
        command, stdout=terminal, stderr=terminal, env=environment, cwd=sweep.parents[1]
    )
    os.close(terminal)
    output = b""
    while chunk := _read(controller):
        output += chunk
    if process.wait():
        raise SystemExit(output.decode())
    return output.decode().replace("\r\n", "\n")


def _read(controller: int) -> bytes:
    try:
        return os.read(controller, 1 << 16)
    except OSError:  # Linux raises it where the other end is closed
        return b""


def picture_of_terminal(screen: str, columns: int, file: Path) -> None:
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, record=True, width=columns, force_terminal=True)
        console.print(Text.from_ansi(screen), soft_wrap=True)
    page = console.export_html(inline_styles=True, code_format=PAGE)
    lines = len(screen.rstrip("\n").splitlines())
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "terminal.html"
        source.write_text(page, encoding="utf-8")
        width = round(columns * 8.43) + 2 * MARGIN  # a character of this font has 8.43 pixels
        screenshot(source, file, width, lines * LINE_HEIGHT + 2 * MARGIN)


def screenshot(page: Path, file: Path, width: int, height: int) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"the pictures need one of {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as profile:
        flags = [*FLAGS, f"--window-size={width},{height}", f"--user-data-dir={profile}"]
        command = [browser, *flags, f"--screenshot={file}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main()
