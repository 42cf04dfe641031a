"""Read a compiled program: the bytes of its collectives, and its largest array.

Both functions take the optimised HLO text, `jitted.lower(...).compile().as_text()`: the
program of one device. The bytes of a collective are those of its input or its output on
that device, whichever is larger (the gathered, reduced or forwarded array), counted
each time it runs. The network traffic depends on the algorithm of the collective.
"""

import json
import math
import re
from typing import NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
)
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?)\s([a-z][a-z0-9-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{(.*?)\}")
_TWO_WAYS = re.compile(r"\b(?:true|false)_computation=%?([\w.-]+)")


class Instruction(NamedTuple):
    """One line of a computation: `name = type operation(rest`."""

    name: str
    type: str
    operation: str
    rest: str


def collective_bytes(hlo: str) -> dict[str, int]:
    """Return `{kind: bytes}` of the collectives of one device, over all iterations.

    It has every kind of `KINDS`. A conditional counts as its branch with the most
    bytes. Raises ValueError if the trip count of a loop with a collective is unknown.
    """
    computations, entry = _computations(hlo)

    def count(computation: str) -> dict[str, int]:
        total = dict.fromkeys(KINDS, 0)
        lines = computations[computation]
        types = {line.name: line.type for line in lines}
        for line in lines:
            kind = line.operation.removesuffix("-start")
            sizes = {}
            if kind in KINDS:
                operands = _operands(line.rest)
                into = sum(_bytes(types[name]) for name in operands)
                out = _bytes(line.type)
                if line.operation == "all-gather-start":  # includes its input
                    out -= into
                sizes = {kind: out if kind == "all-gather" else into}
            elif kind == "while":
                sizes = count(_named(line.rest, "body"))
                if any(sizes.values()):
                    times = _trip_count(line.rest, computations)
                    sizes = {kind: times * size for kind, size in sizes.items()}
            elif kind == "conditional":
                branches = map(count, _branches(line.rest))
                sizes = max(branches, key=lambda branch: sum(branch.values()))
            elif not line.operation.endswith(("-done", "-update")):
                for called in map(count, _CALLED.findall(line.rest)):
                    sizes = {kind: sizes.get(kind, 0) + called[kind] for kind in KINDS}
            for kind, size in sizes.items():
                total[kind] += size
        return total

    return count(entry)


def largest_array(hlo: str) -> tuple[int, str]:
    """Return the size in elements of the largest array of one device, and its type.

    The type is as in the HLO, `f32[4096,128]`. Arrays inside a fusion do not count,
    since they are never held in memory.
    """
    computations, _ = _computations(hlo)
    fused = {
        called
        for lines in computations.values()
        for line in lines
        if line.operation == "fusion"
        for called in _CALLED.findall(line.rest)
    }
    arrays = {
        match.group(0): _elements(match)
        for name, lines in computations.items()
        if name not in fused
        for line in lines
        for match in _ARRAY.finditer(line.type)
    }
    largest = max(arrays, key=arrays.get)
    return arrays[largest], largest


def _computations(hlo: str) -> tuple[dict[str, list[Instruction]], str]:
    """Return the lines of each computation by name, and the name of the entry."""
    found: dict[str, list[Instruction]] = {}
    entry = None
    lines: list[Instruction] = []
    for text in re.sub(r"/\*.*?\*/", "", hlo).splitlines():
        if head := _HEAD.match(text):
            lines = found[head.group(2)] = []
            entry = head.group(2) if head.group(1) else entry
        elif line := _LINE.match(text):
            lines.append(Instruction(*line.groups()))
    if entry is None:
        raise ValueError("this is not the text of a compiled HLO module")
    return found, entry


def _trip_count(rest: str, computations: dict[str, list[Instruction]]) -> int:
    """The trip count of a `while`: the compiler's, or the condition's constant."""
    if known := re.search(r'"known_trip_count":(\{.*?\})', rest):
        return int(json.loads(known.group(1))["n"])
    condition = _named(rest, "condition")
    limits = {
        line.rest.partition(")")[0]
        for line in computations[condition]
        if line.operation == "constant" and line.type in ("s32[]", "s64[]")
    }
    if len(limits) != 1:
        raise ValueError(f"the trip count of the loop with {condition} is unknown")
    return int(limits.pop())


def _operands(rest: str) -> list[str]:
    """Return the names before the parenthesis that closes the operands."""
    depth = 1
    for end, character in enumerate(rest):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if not depth:
            return re.findall(r"%([\w.-]+)", rest[:end])
    raise ValueError(f"unclosed operands: {rest}")


def _branches(rest: str) -> list[str]:
    if listed := _BRANCHES.search(rest):
        return re.findall(r"[\w.-]+", listed.group(1))
    return _TWO_WAYS.findall(rest)


def _named(rest: str, attribute: str) -> str:
    return re.search(rf"\b{attribute}=%?([\w.-]+)", rest).group(1)


def _bytes(type_: str) -> int:
    arrays = _ARRAY.finditer(type_)
    return sum(_elements(a) * int(a.group(2) or 8) for a in arrays) // 8


def _elements(array: re.Match) -> int:
    return math.prod(int(size) for size in array.group(3).split(",") if size)
