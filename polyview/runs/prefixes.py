"""Which arrays of a file are those of one module: the names below a common prefix.

A file may hold more than one encoder: a wrapper adds a prefix ("module.", "backbone."),
a method adds a second encoder, heads and queues.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from polyview.errors import InputError

# First words of arrays that take no part in an encoder's features: classifiers, heads
# of self-supervised methods, their queues, and the token of masked patches.
_BESIDE = frozenset(
    "classifier fc head head_dist head_drop heads logit_scale mask_token pos_drop "
    "pre_logits prediction_head predictor projection_head projector queue "
    "queue_ptr".split()
)
_DECODER = "decoder"  # of masked autoencoders: decoder_blocks, decoder_embed, ...
# Words in the path of an encoder that is the average of another one.
_AVERAGE = re.compile(r"(^|[._])(average|ema|k|key|momentum|target|teacher)([._]|$)")
_CLASS_TOKENS = ("cls", "cls_token", "class_token")  # ours, timm's, torchvision's
COUNTER = "num_batches_tracked"  # of batches, in PyTorch's BatchNorm


class Part(NamedTuple):
    """The arrays of one module in a file.

    prefix: the start of their names, "" or ending in a dot; arrays: by the rest of
    their names; beside: names below the prefix that are left out; outside: the others.
    """

    prefix: str
    arrays: dict[str, Any]
    beside: list[str]
    outside: list[str]


def part_of(
    theirs: Mapping[str, Any],
    wanted: Collection[str],
    *,
    asked: str | None = None,
    usual: str = "",
    leave: Iterable[str] = (),
) -> Part:
    """Return the arrays of a file that are a module's.

    wanted: the module's names in the layout of the file. asked: the path in the file,
    if the user names one. usual: the prefix that is taken if it fits, and the only one
    below which names may be absent. leave: patterns of names to leave out. Raises
    InputError if no prefix fits, if several do, or if only one of file and module has a
    class token.
    """
    prefix = _prefix(theirs, wanted, asked, usual)
    below = {n[len(prefix) :]: a for n, a in theirs.items() if n.startswith(prefix)}
    patterns = tuple(leave)

    def is_left(name: str) -> bool:
        whole = prefix + name
        if any(fnmatchcase(n, p) for n in (name, whole) for p in patterns):
            return True
        return name not in wanted and is_beside(name)

    beside = [name for name in below if is_left(name)]
    arrays = {name: a for name, a in below.items() if name not in set(beside)}
    outside = [name for name in theirs if not name.startswith(prefix)]
    if why := class_token(wanted, arrays):
        raise InputError(why)
    return Part(prefix, arrays, [prefix + name for name in beside], outside)


def class_token(wanted: Collection[str], theirs: Collection[str]) -> str:
    """Return why arrays are not those of a ViT of which only one has a class token.

    "" if both have one, or neither.
    """
    for name in sorted({*wanted} ^ {*theirs}):
        path, dot, last = name.rpartition(".")
        if last not in _CLASS_TOKENS:
            continue
        others = theirs if name in wanted else wanted
        if not any(other.startswith(path + dot) for other in others):
            continue  # of a module that the other does not have at all
        if name in wanted:
            return (
                f"it has no class token, but this encoder has one ({name}): set the "
                "encoder's pool='mean', or list '*cls' and '*position' in `fresh` of "
                "`init`"
            )
        return (
            f"it has a class token ({name}), but this encoder has none: set the "
            f"encoder's pool='cls', or leave the token out: --leave '*{last}' (in a "
            "config, `leave` in `init`)"
        )
    return ""


def is_beside(name: str) -> bool:
    """Whether the name is that of an array without a part in an encoder's features."""
    first = name.partition(".")[0]
    return first in _BESIDE or first.startswith(_DECODER) or name.endswith(COUNTER)


def groups(names: Iterable[str], prefix: str = "", most: int = 4) -> str:
    """Return names in a few words, as "module.encoder_k (161 arrays), module.queue".

    Names are grouped by the first word in which they differ from the prefix.
    """
    start = prefix.split(".")[:-1]

    def group(name: str) -> str:
        if name.endswith(COUNTER):
            return COUNTER
        words = name.split(".")
        same = 0
        while same < min(len(start), len(words) - 1) and words[same] == start[same]:
            same += 1
        return ".".join(words[: same + 1])

    counts = Counter(map(group, names))
    told = [
        name if count == 1 else f"{name} ({count} arrays)"
        for name, count in sorted(counts.items())
    ]
    more = f" and {len(told) - most} more" if len(told) > most else ""
    return ", ".join(told[:most]) + more


def both_names(wanted: Iterable[str], theirs: Iterable[str]) -> str:
    """Return the first names of a module and of a file, for a message."""
    ours = _first(sorted(wanted))
    return f"expected: {ours}; the file's names: {_first(sorted(theirs))}"


def _prefix(
    theirs: Mapping[str, Any], wanted: Collection[str], asked: str | None, usual: str
) -> str:
    counts = _counts(theirs, wanted)
    ordered = sorted(counts, key=lambda prefix: (bool(_AVERAGE.search(prefix)), prefix))
    if asked is not None:
        asked = f"{asked.rstrip('.')}." if asked.strip(".") else ""
        if not counts[asked]:
            raise InputError(
                f"it has nothing at {asked.rstrip('.')!r}; {both_names(wanted, theirs)}"
            )
        return asked
    whole = [prefix for prefix in ordered if counts[prefix] == len(wanted)]
    if usual in whole:
        return usual
    if len(whole) > 1:
        raise InputError(
            f"it holds several encoders of this form, below {_first(whole)}; name one: "
            f"--prefix {whole[0].rstrip('.')} (in a config, the path in `init`)"
        )
    if whole:
        return whole[0]
    if counts[usual]:
        return usual
    best = max(ordered, key=counts.__getitem__, default="")
    closest = ""
    if counts[best]:
        below = {n.removeprefix(best) for n in theirs if n.startswith(best)}
        if counts[best] == len(wanted) - 1 and (why := class_token(wanted, below)):
            raise InputError(why)
        absent = next(name for name in wanted if best + name not in theirs)
        closest = (
            f" (closest: {counts[best]} of {len(wanted)} below {best!r}, without "
            f"{absent!r})"
        )
    raise InputError(
        f"it does not hold this encoder, with or without a prefix{closest}; "
        f"{both_names(wanted, theirs)}"
    )


def _counts(names: Iterable[str], wanted: Collection[str]) -> Counter[str]:
    """Return how many of the wanted names a file has below each prefix."""
    ends = set(wanted)
    longest = max((name.count(".") for name in ends), default=0) + 1
    counts: Counter[str] = Counter()
    for name in names:
        cut = len(name)
        for _ in range(longest):
            cut = name.rfind(".", 0, cut)
            if name[cut + 1 :] in ends:
                counts[name[: cut + 1]] += 1
            if cut < 0:
                break
    return counts


def _first(names: Iterable[str], most: int = 3) -> str:
    names = [*names]
    more = ", ..." if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more
