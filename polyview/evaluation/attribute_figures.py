"""Figures of unseen classes: accuracy by seen classes, parts that errors share."""

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from polyview.drawing import (
    INK,
    RUNS,
    check_parts,
    legible,
    one_axes,
    set_note,
    set_title,
    styled,
)


def _each(classifiers: Mapping[str, Mapping], key: str) -> list[tuple[str, Any]]:
    """Return ("ridge, new fonts", what it measured under a key) of all sources."""
    return [
        (f"{name}, {source}", found)
        for name, own in classifiers.items()
        for source, found in own.get(key, {}).items()
        if found
    ]


@styled
def draw_by_seen_classes(classifiers: Mapping[str, Mapping]) -> Figure:
    """Draw accuracy on unseen classes against the seen classes with its rarest part.

    classifiers: {name: its results}, with "by_seen_classes"; a single class has no
    standard error and is left out.
    """
    lines = [
        (name, [one for one in line if one["standard_error"] is not None])
        for name, line in _each(classifiers, "by_seen_classes")
    ]
    check_parts(sum(len(line) for _, line in lines))
    figure, axes = one_axes(3.2)
    names, note = legible([name for name, _ in lines])
    for number, (_, line) in enumerate(lines):
        axes.errorbar(
            [math.sqrt(one["from"] * one["to"]) for one in line],
            [100 * one["class_averaged_top1"] for one in line],
            [100 * one["standard_error"] for one in line],
            color=RUNS[number % len(RUNS)],
            marker="os^Dv"[number % 5],
            markersize=4,
            capsize=2,
            label=names[number],
        )
    axes.set_xscale("log")
    parts = sorted({(one["from"], one["to"]) for _, line in lines for one in line})
    axes.set_xticks(
        [math.sqrt(low * high) for low, high in parts],
        [f"{low}–{high}" if high > low else f"{low}" for low, high in parts],
    )
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seen classes with the rarest part of the unseen class")
    axes.set_ylabel("class-averaged top-1, %")
    axes.set_title("Unseen classes, by how often their parts were seen")
    axes.legend(frameon=False, fontsize=8)
    set_note(figure, note)
    return figure


@styled
def draw_confusions(classifiers: Mapping[str, Mapping]) -> Figure:
    """Draw the share of errors whose answer has 0, 1, ... parts of the truth.

    classifiers: {name: its results}, with "confusions". The outlined bar is what
    answers drawn evenly would share.
    """
    groups = [
        (name, one)
        for name, found in _each(classifiers, "confusions")
        for one in found["shared"]
    ]
    check_parts(len(groups))
    figure, axes = one_axes(0.9 + 0.3 * len(groups))
    names, note = legible([name for name, _ in groups])
    for row, (_, one) in enumerate(groups):
        share, chance = 100 * one["share"], 100 * one["chance"]
        axes.barh(row, share, 0.6, color=RUNS[0])
        axes.barh(row, chance, 0.8, fill=False, edgecolor=RUNS[1], linewidth=1.4)
        text = f" {share:.0f} % (chance {chance:.1f} %)"
        axes.text(max(share, chance), row, text, va="center", fontsize=7.5, color=INK)
    ticks = [
        f"{name}: {one['attributes']} shared"
        for name, (_, one) in zip(names, groups, strict=True)
    ]
    axes.set_yticks(range(len(groups)), ticks, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 160)
    axes.set_xticks(range(0, 101, 25))
    axes.set_xlabel("% of wrong answers; outlined: drawn evenly")
    set_title(figure, "Parts that a wrong answer shares with the truth")
    set_note(figure, note)
    return figure
