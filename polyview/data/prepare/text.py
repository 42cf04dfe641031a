"""Encode texts as numbers, with a vocabulary fitted on the training split.

scikit-learn splits and counts words. 0 is padding, 1 any word outside the vocabulary, 2
its first word. A text is truncated to `length` words.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

PADDING, UNKNOWN, FIRST = 0, 1, 2
_WORD = r"(?u)\w+"


class Vocabulary:
    """The known words, in alphabetical order.

    Attributes:
      words: the list of words; word i is encoded as i + 2.
    """

    def __init__(self, words: Sequence[str]):
        self.words = list(words)
        self._numbers = {word: FIRST + i for i, word in enumerate(self.words)}
        self._cut = _counter().build_analyzer()

    @classmethod
    def fit(cls, texts: Iterable[str], size: int, least: int = 2) -> "Vocabulary":
        """Keep the most frequent words that occur in at least `least` of `texts`.

        Including padding and the unknown word there are at most `size` numbers.
        """
        counts = _counter(min_df=least, max_features=size - FIRST)
        counts.fit(texts)
        return cls(counts.get_feature_names_out().tolist())

    def encode(self, text: str | None, length: int) -> np.ndarray | None:
        """Return int32[length], padded with 0, or None for a text without words."""
        words = self._cut(text or "")[:length]
        if not words:
            return None
        numbers = np.full(length, PADDING, np.int32)
        numbers[: len(words)] = [self._numbers.get(word, UNKNOWN) for word in words]
        return numbers


def _counter(**options: Any) -> Any:
    """Return a `CountVectorizer` that splits texts into words."""
    # Imported late: it takes seconds, and configs import modules that import this one.
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer(token_pattern=_WORD, **options)
