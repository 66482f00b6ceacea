"""A data source: documents, and a fingerprint that changes when they do."""

import random
from collections.abc import Iterator


class Sums:
    """Documents of sums, such as `17 + 4 = 21`, a sum a line.

    documents: how many. largest: of the numbers that are added.
    """

    def __init__(self, documents: int, largest: int) -> None:
        self.documents, self.largest = documents, largest

    def fingerprint(self) -> str:
        return f"sums 1 {self.documents} {self.largest}"

    def rows(self) -> Iterator[str]:
        rng = random.Random(0)
        for _ in range(self.documents):
            pairs = [[rng.randint(0, self.largest) for _ in range(2)] for _ in range(12)]
            yield "".join(f"{a} + {b} = {a + b}\n" for a, b in pairs)
