"""Texts as tokens and back, by a tokenizer's file that is named by its digest."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyview import files
from polyview.data.sources.protocol import default_data_dir
from polyview.errors import InputError
from polyview.runs.weights import file_digest

_MOST = 2**27  # bytes of a tokenizer's file


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer in `weights/<sha256>.json` of the data folder.

    `python -m agents.prepare llm` writes it there. Raises InputError if it is absent or
    damaged.
    """

    sha256: str

    def __post_init__(self) -> None:
        _loaded(self.sha256)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text; names of special tokens in it are plain text."""
        return _loaded(self.sha256).encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special ones."""
        return _loaded(self.sha256).decode([int(token) for token in tokens])

    def special(self, name: str) -> int:
        """Return the number of a special token. Raises InputError if there is none."""
        number = _loaded(self.sha256).token_to_id(name)
        if number is None:
            raise InputError(f"this tokenizer has no token {name!r}")
        return number

    def rows(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens int32[n, length], zeros after the text, and bool: not padding.

        Raises InputError for a text of more tokens.
        """
        tokens = np.zeros((len(texts), length), np.int32)
        real = np.zeros((len(texts), length), bool)
        for row, text in enumerate(texts):
            numbers = self.encode(text)
            if len(numbers) > length:
                raise InputError(
                    f"{text!r:.80} has {len(numbers)} tokens, and there is room for "
                    f"{length}; give a larger length of texts"
                )
            tokens[row, : len(numbers)] = numbers
            real[row, : len(numbers)] = True
        return tokens, real


@functools.lru_cache(maxsize=8)
def _loaded(sha256: str) -> Any:
    if not (len(sha256) == 64 and set(sha256) <= set("0123456789abcdef")):
        raise InputError(f"{sha256!r:.80} is not the sha256 of a tokenizer")
    path = shelf(sha256)
    if not path.is_file():
        raise InputError(
            f"there is no tokenizer {path}; run: python -m agents.prepare llm, or with "
            "--weights and --name for a model of yours"
        )
    if file_digest(path) != sha256:
        raise InputError(f"{path} is damaged: it has another sha256")
    return of_text(files.read_bounded(path, _MOST).decode(), str(path))


def shelf(sha256: str) -> Path:
    """Return where a tokenizer lies in the data folder."""
    return default_data_dir() / "weights" / f"{sha256}.json"


def of_text(text: str, where: str) -> Any:
    """Return the library's tokenizer of a JSON text. Raises InputError if damaged."""
    try:
        from tokenizers import Tokenizer as Read
    except ModuleNotFoundError:
        raise InputError(
            "reading texts needs the package tokenizers: pip install '.[agents]'"
        ) from None
    try:
        made = Read.from_str(text)
    except Exception as error:  # the library raises a bare Exception
        raise InputError(f"{where} is no tokenizer that can be read: {error}") from None
    made.encode_special_tokens = True
    made.no_padding()
    made.no_truncation()
    return made


def chat(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], system: str
) -> list[int]:
    """Return the tokens of messages as ChatML, up to where the assistant answers.

    messages: {"role", "content"}; system: the first message, unless they bring one. The
    content of a message cannot end it: the names of special tokens in it are plain
    text. Raises InputError for a tokenizer that reads them as tokens all the same.
    """
    begin, end = tokenizer.special("<|im_start|>"), tokenizer.special("<|im_end|>")
    if not messages or messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    tokens: list[int] = []
    for message in messages:
        said = tokenizer.encode(f"{message['role']}\n{message['content']}")
        if {begin, end} & {*said}:  # added tokens that its file does not call special
            raise InputError(
                "a message has the name of a token that ends messages, and this "
                "tokenizer reads it as the token; leave it out"
            )
        tokens += [begin, *said, end, *tokenizer.encode("\n")]
    return [*tokens, begin, *tokenizer.encode("assistant\n")]
