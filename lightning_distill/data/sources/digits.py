"""1,797 handwritten digits of 8 × 8 pixels, which scikit-learn contains: nothing to download.

A copy of the test set of the UCI optical recognition of handwritten digits (Alpaydin and Kaynak
1998).
"""

from collections.abc import Iterator

import numpy as np

from lightning_distill.data.sources.base import Pixels
from lightning_distill.errors import ConfigError

VERSION = 1  # raise it when this file starts to give other images


class Digits:
    """A row is (pixels [1, 8, 8], digit)."""

    def fingerprint(self) -> str:
        return f"digits {VERSION}"

    def rows(self) -> Iterator[tuple[Pixels, str]]:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ConfigError(
                "data=digits needs the extra: pip install 'lightning_distill[images]'"
            ) from error
        digits = load_digits()
        for image, target in zip(digits.images, digits.target, strict=True):  # from 0 to 16
            yield np.round(image[None] * (255 / 16)).astype(np.uint8), str(target)
