"""Handwritten digits of scikit-learn: 1,797 grey images of 8x8, without a download.

They are the test part of UCI's "Optical recognition of handwritten digits" (Alpaydin
and Kaynak 1998). They have no published split. Ours sorts the rows by class, keeping
their order within a class, and takes every fifth, starting with the first, for test.
This divides each class four to one without a random generator.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from polyview.data.prepare import records


def prepare(directory: Path) -> None:
    """Write train (1,437) and test (360): image uint8[8, 8, 1], label int."""
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    by_class = np.argsort(digits.target, kind="stable")
    test = np.sort(by_class[::5])
    train = np.setdiff1d(by_class, test)

    def examples(rows: np.ndarray) -> Iterator[dict[str, Any]]:
        return ({"image": images[i], "label": int(digits.target[i])} for i in rows)

    records.write(
        directory,
        {"train": examples(train), "test": examples(test)},
        version="1.0.0",
        targets={
            "label": {
                "kind": "class",
                "classes": 10,
                "names": [str(digit) for digit in digits.target_names],
            }
        },
        source="sklearn.datasets.load_digits (UCI, Alpaydin and Kaynak 1998)",
        licence="CC BY 4.0",
        provenance={"split": "test: every fifth row after a stable sort by class"},
    )
