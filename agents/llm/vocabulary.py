"""The JSON of a `tokenizers` tokenizer, made from the lists of a GGUF file."""

from collections.abc import Sequence
from typing import Any

from polyview.errors import InputError, nearest

_CONTROL, _USER = 3, 4  # types of tokens
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How texts are cut before merging, by the name that GGUF gives it.
_SPLITS = ("smollm", "llama-bpe", "gpt-2")


def of_lists(
    tokens: Any, merges: Any, kinds: Any, *, model: str, split: str, where: str
) -> str:
    """Return the JSON of a byte-level BPE tokenizer.

    tokens, merges ("left right"), kinds: lists of a GGUF file, kinds with 3 for control
    tokens. Raises InputError for another model, an unknown split, or damaged lists.
    """
    if model != "gpt2":
        raise InputError(
            f"{where}: its tokenizer is {model!r}, and only 'gpt2' is read from GGUF; "
            "give the folder of the same model with its tokenizer.json"
        )
    if split not in _SPLITS:
        raise InputError(
            f"{where}: its tokenizer cuts texts by {split!r}{nearest(split, _SPLITS)}; "
            "give the folder of the same model with its tokenizer.json"
        )
    _check_words(tokens, "tokens", where)
    _check_words(merges, "merges", where)
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import ByteLevel

    pairs = [tuple(merge.split(" ")) for merge in merges]
    numbers = {token: number for number, token in enumerate(tokens)}
    if len(numbers) != len(tokens):
        raise InputError(f"{where}: a token stands twice in its vocabulary")
    for pair in pairs:
        if len(pair) != 2 or not {*pair, "".join(pair)} <= numbers.keys():
            raise InputError(f"{where}: its merge {pair} consists of unknown tokens")
    made = Tokenizer(models.BPE(vocab=numbers, merges=pairs))
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if split == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        made.pre_tokenizer = pre_tokenizers.Sequence([digits, cut])
    elif split == "llama-bpe":
        words = pre_tokenizers.Split(Regex(_LLAMA3), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_alone])
    else:
        made.pre_tokenizer = cut
    made.decoder = ByteLevel()
    special = _special(tokens, kinds)
    made.add_special_tokens([AddedToken(t, special=True) for t in special])
    if made.get_vocab_size() != len(tokens):
        raise InputError(f"{where}: its special tokens are not in its vocabulary")
    return made.to_str()


def _special(tokens: Sequence[str], kinds: Any) -> list[str]:
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        return []
    wanted = (_CONTROL, _USER)
    pairs = zip(tokens, kinds, strict=True)
    return [token for token, kind in pairs if kind in wanted]


def _check_words(words: Any, what: str, where: str) -> None:
    if not isinstance(words, list) or not words:
        raise InputError(f"{where}: its tokenizer has no {what}")
    if not all(isinstance(word, str) for word in words):
        raise InputError(f"{where}: the {what} of its tokenizer are damaged")
