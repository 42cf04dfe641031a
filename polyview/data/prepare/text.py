"""Words as numbers: a vocabulary fitted on the training split, and texts written in it.

Cutting and counting is scikit-learn's. 0 is padding, 1 any word that the vocabulary
lacks, 2 its first word. A text is cut at `length` words.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

PADDING, UNKNOWN, FIRST = 0, 1, 2
_WORD = r"(?u)\w+"


class Vocabulary:
    """The words that are known, in alphabetic order.

    Attributes:
      words: their list; word i is written as i + 2.
    """

    def __init__(self, words: Sequence[str]):
        self.words = list(words)
        self._numbers = {word: FIRST + i for i, word in enumerate(self.words)}
        self._cut = CountVectorizer(token_pattern=_WORD).build_analyzer()

    @classmethod
    def fit(cls, texts: Iterable[str], size: int, least: int = 2) -> "Vocabulary":
        """The most frequent words of `texts` that occur in `least` of them or more.

        With padding and the unknown word there are `size` numbers at most.
        """
        counts = CountVectorizer(
            token_pattern=_WORD, min_df=least, max_features=size - FIRST
        )
        counts.fit(texts)
        return cls(counts.get_feature_names_out().tolist())

    def encode(self, text: str | None, length: int) -> np.ndarray | None:
        """int32[length], padded by 0; None for a text without a word."""
        words = self._cut(text or "")[:length]
        if not words:
            return None
        numbers = np.full(length, PADDING, np.int32)
        numbers[: len(words)] = [self._numbers.get(word, UNKNOWN) for word in words]
        return numbers
