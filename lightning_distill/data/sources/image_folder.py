"""Your own images, in one folder per class."""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lightning_distill.config.input_files import visible_below
from lightning_distill.data.sources.base import Pixels
from lightning_distill.errors import ConfigError
from lightning_distill.storage.artifacts import hash_of

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
MODES = {1: "L", 3: "RGB"}


class ImageFolder:
    """A row is (pixels [C, size, size], class), from `path/<class>/**/<name>.png` and the like.

    image_size: to which all are scaled. channels: 3 for RGB, 1 for grayscale.
    skip_bad_rows: leave out files that cannot be read, and log how many, instead of raising.
    """

    def __init__(self, path: str, image_size: int, channels: int, skip_bad_rows: bool) -> None:
        self.path, self.size, self.channels = Path(path).expanduser(), image_size, channels
        self.skip_bad_rows = skip_bad_rows
        if channels not in MODES:
            raise ConfigError(f"data.channels={channels} must be 1 or 3.")
        if not self.path.is_dir():
            raise ConfigError(f"data.path={path} is no folder.")
        files = [f for f in visible_below(self.path) if f.parent != self.path]
        self.files = [f for f in files if f.suffix.lower() in SUFFIXES and f.is_file()]
        if not self.files:
            raise ConfigError(
                f"data.path={path} has no folder with images ({', '.join(SUFFIXES)})."
            )

    def fingerprint(self) -> str:
        content = " ".join(f"{f.relative_to(self.path)}:{hash_of(f)}" for f in self.files)
        digest = hashlib.sha256(content.encode()).hexdigest()
        return f"images 2 {self.size} {self.channels} {self.skip_bad_rows} {digest}"

    def rows(self) -> Iterator[tuple[Pixels, str]]:
        from PIL.Image import DecompressionBombError

        bad: list[Path] = []
        for file in self.files:
            try:
                pixels = self._pixels(file)
            except (OSError, SyntaxError, ValueError, DecompressionBombError) as error:
                bad.append(file)
                if not self.skip_bad_rows:
                    raise ConfigError(
                        f"data.path: {file} cannot be read as an image. "
                        "data.skip_bad_rows=true leaves such files out."
                    ) from error
                continue
            yield pixels, file.relative_to(self.path).parts[0]
        if bad:
            log.warning("skipped %d of %d images; the first: %s", len(bad), len(self.files), bad[0])

    def _pixels(self, file: Path) -> Pixels:
        """[C, size, size], 0 to 255, rotated by the EXIF orientation."""
        from PIL import Image, ImageOps

        with Image.open(file) as opened:
            image: Image.Image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits, which convert() would cut off at 255
                values = np.asarray(image, dtype=np.int64)
                image = Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8))
            scaled = image.convert(MODES[self.channels]).resize((self.size, self.size))
        pixels = np.asarray(scaled, dtype=np.uint8).reshape(self.size, self.size, -1)
        return pixels.transpose(2, 0, 1).copy()
