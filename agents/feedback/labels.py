"""Labels of pairs: what a judge said, one line a pair, in a file that only grows.

    DIR/labels/NAME.jsonl
    {"pairs": digest, "judge": {...}, "model": sha256, "prompt": version}
    {"pair": 17, "first": 0.52, "second": -0.11}
    {"pair": 18, "label": 2}

`first` is the evidence, in log odds, for the pair's observation 1 when it is shown
first, and `second` when it is shown second. A judge that leans towards what is shown
first adds as much to one as it takes from the other, so that

    score = (first + second) / 2

is free of it. A line of a user's own has a `label` instead: 0 observation 1, 1
observation 2, 2 a tie, 3 unknown. A pair may have several lines; all of them count.
Model and prompt are null where there are none.
"""

import json
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polyview import files
from polyview.errors import InputError, check_range

FIRST, SECOND, TIE, UNKNOWN = range(4)  # labels of a user's own
SCORED = -1  # in the place of such a label
ORDERS = ("both", "first")
_HEADER = ("judge", "model", "pairs", "prompt")
LONGEST = 2**28  # bytes of a file of labels
_EVIDENCE = {FIRST: 1.0, SECOND: -1.0, TIE: 0.0, UNKNOWN: math.nan}
_DIGITS = 4  # of evidence: more than a judge knows


class Labels(NamedTuple):
    """A file of labels, line by line.

    pairs: the digest of the pairs; header: the first line; ids: int64[n], of pairs;
    first, second: float64[n], 1, -1, 0 or NaN where a label is given; given: int64[n],
    that label, -1 where evidence is.
    """

    pairs: str
    header: dict[str, Any]
    ids: np.ndarray
    first: np.ndarray
    second: np.ndarray
    given: np.ndarray

    def scores(self, orders: str = "both") -> np.ndarray:
        """Return the score of each line, float64[n], NaN where unknown.

        orders: "both", or "first" for what one question alone says, bias and all.
        Raises InputError for others.
        """
        if orders not in ORDERS:
            raise InputError(f"orders={orders!r} is not one of {', '.join(ORDERS)}")
        return self.first if orders == "first" else (self.first + self.second) / 2


def path_of(directory: Path, name: str) -> Path:
    """Return where labels of a name lie in the folder of their pairs.

    Raises InputError for a name that is a path.
    """
    if not name or Path(name).name != name:
        raise InputError(f"{name!r} is no name of labels; give one without a folder")
    return directory / "labels" / f"{name}.jsonl"


def read(path: Path, pairs: str | None = None) -> Labels:
    """Return the labels in a file, which need not be one that we wrote.

    pairs: the digest of the pairs that it must be of. Raises InputError for labels of
    other pairs, and for the first line that is none, with its number.
    """
    lines = _content(path).split(b"\n")
    if lines[-1]:
        raise InputError(
            f"{path}, line {len(lines)}: it is cut off; judge again with the same "
            "command, or end the line"
        )
    header = _header(lines[0], path, pairs)
    rows = [
        _row(line, f"{path}, line {number}")
        for number, line in enumerate(lines[1:-1], 2)
    ]
    ids = np.array([row[0] for row in rows], np.int64)
    evidence = np.array([row[1:3] for row in rows], np.float64).reshape(-1, 2)
    given = np.array([row[3] for row in rows], np.int64)
    return Labels(header["pairs"], header, ids, evidence[:, 0], evidence[:, 1], given)


def begin(path: Path, header: Mapping[str, Any]) -> set[int]:
    """Make a file of labels ready to grow; return the pairs that it has already.

    A last line that was interrupted is cut off. Raises InputError if the file is of
    other pairs, or of a judge, model or prompt unlike those of `header`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        content = _content(path)
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        if whole:
            return _same(path, header)
    files.write_whole(path, f"{json.dumps(dict(header))}\n".encode())
    return set()


def _same(path: Path, header: Mapping[str, Any]) -> set[int]:
    """Return the pairs of a file of labels by the same judge."""
    there = read(path, header["pairs"])
    for key in ("judge", "model", "prompt"):
        if there.header[key] != header[key]:
            raise InputError(
                f"{path} holds labels of {key} {there.header[key]}, not of "
                f"{header[key]}; give another --name, or remove it"
            )
    return set(there.ids.tolist())


def line(pair: int, first: float, second: float) -> str:
    """Return the line of a pair. Raises InputError for evidence that is not finite."""
    if not (math.isfinite(first) and math.isfinite(second)):
        raise InputError(
            f"the judge's evidence on pair {pair} is {first} and {second}: its model "
            "is damaged, or its numbers overflow"
        )
    # Plus zero, so that there is no -0.0.
    evidence = {
        "first": round(first, _DIGITS) + 0.0,
        "second": round(second, _DIGITS) + 0.0,
    }
    return json.dumps({"pair": int(pair), **evidence}) + "\n"


def preference(
    labels: Labels,
    tie_quantile: float = 0.2,
    orders: str = "both",
    calibration: Collection[int] | None = None,
) -> dict[int, float]:
    """Return the share of preference of observation 1, y1, of each pair.

    y1 is 1, 0, or 1/2 for a tie: a score of 0, or one whose size is below the quantile
    of sizes. Given labels are taken as they are, and unknown ones left out. Lines of
    one pair are averaged, which has the gradient of keeping each.

    Args:
      labels: see `Labels`.
      tie_quantile: 0 for ties at 0 alone.
      orders: "first" keeps the bias of position, to show what it does.
      calibration: pairs whose scores give the quantile, as those of train; None: all.

    Raises InputError if no pair is preferred either way, and with both orders if all
    are the same way; OutOfRange for a quantile outside 0 .. 1.
    """
    check_range(0.0, 1.0, tie_quantile=tie_quantile)
    scores = labels.scores(orders)
    scored = labels.given == SCORED
    chosen = scored.copy()
    if calibration is not None:
        chosen &= np.isin(labels.ids, np.fromiter(calibration, np.int64))
    sizes = np.abs(scores[chosen])
    if scored.any() and not len(sizes):
        raise InputError("no pair that is to calibrate ties is labelled; name others")
    least = float(np.quantile(sizes, tie_quantile)) if len(sizes) else 0.0
    tied = (scores == 0) | (scored & (np.abs(scores) < least))
    sides = np.where(tied, 0.5, (scores > 0).astype(float))
    known = np.isfinite(scores)
    lines: dict[int, list[float]] = {}
    for pair, side in zip(
        labels.ids[known].tolist(), sides[known].tolist(), strict=True
    ):
        lines.setdefault(pair, []).append(side)
    found = {pair: sum(own) / len(own) for pair, own in lines.items()}
    preferred = {side > 0.5 for side in found.values() if side != 0.5}
    if not preferred:
        raise InputError(
            "all labels are ties or unknown, or a pair's lines cancel one another: "
            "they prefer nothing"
        )
    if orders == "both" and len(preferred) == 1:
        shown = "first" if preferred.pop() else "second"
        raise InputError(
            f"all labels prefer the {shown} observation of their pair, whatever it is; "
            "take another judge, or draw pairs in random order"
        )
    return found


def contradictions(labels: Labels) -> int:
    """Return how many pairs have lines that prefer opposite observations."""
    scores = labels.scores()
    for_first = set(labels.ids[scores > 0].tolist())
    return len(for_first & set(labels.ids[scores < 0].tolist()))


def _content(path: Path) -> bytes:
    try:
        return files.read_bounded(path, LONGEST)
    except FileNotFoundError:
        raise InputError(
            f"there are no labels {path}; run: python -m agents.judge"
        ) from None
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _header(line: bytes, path: Path, pairs: str | None) -> dict[str, Any]:
    where = f"{path}, line 1"
    found = _parsed(line, where)
    if type(found.get("pairs")) is not str:
        raise InputError(
            f'{where}: it is no header; begin with {{"pairs": "{pairs or "DIGEST"}"}}'
        )
    if set(found) - set(_HEADER):
        raise InputError(f"{where}: it has {', '.join(sorted(found))}: unknown keys")
    kinds = {"judge": dict, "model": str, "prompt": str}
    for key, kind in kinds.items():
        if not isinstance(found.get(key), kind | None):
            raise InputError(f"{where}: its {key} is {found[key]!r:.80}")
    if pairs is not None and found["pairs"] != pairs:
        raise InputError(
            f"{path} holds labels of other pairs: their digest is {found['pairs']}, "
            f"and that of these is {pairs}"
        )
    return {key: found.get(key) for key in _HEADER}


def _row(line: bytes, where: str) -> tuple[int, float, float, int]:
    """Return pair, evidence of both orders, and the label given or SCORED."""
    found = _parsed(line, where)
    pair = found.get("pair")
    if type(pair) is not int or not 0 <= pair < 2**63:
        raise InputError(f"{where}: its pair is {pair!r:.80}; give 0 or more")
    if set(found) == {"pair", "label"}:
        label = found["label"]
        if type(label) is not int or label not in _EVIDENCE:
            raise InputError(
                f"{where}: its label is {label!r:.80}; give 0 (first), 1 (second), 2 "
                "(tie) or 3 (unknown)"
            )
        return pair, _EVIDENCE[label], _EVIDENCE[label], label
    if set(found) != {"pair", "first", "second"}:
        raise InputError(
            f"{where}: it has {', '.join(map(repr, found)):.200}; give pair, first and "
            "second, or pair and label"
        )
    for key in ("first", "second"):
        value = found[key]
        if type(value) not in (int, float) or not math.isfinite(value):
            raise InputError(f"{where}: {key} is {value!r:.80}; give a finite number")
    return pair, float(found["first"]), float(found["second"]), SCORED


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError(f"{where}: it is not JSON: {line[:80]!r}") from None
    if not isinstance(found, dict):
        raise InputError(f"{where}: it is no object of JSON: {line[:80]!r}")
    return found
