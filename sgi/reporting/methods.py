"""Which runs are of one method, and its scores over games.

Runs of one method differ in nothing but their game, their seeds and what does not
change the numbers.
"""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from polyview.config.schema import lasting_keys
from sgi.reporting.read import Run
from sgi.scores import GAMES, human_normalised

# What differs between runs of one method.
_OF_A_RUN = {"game", "seed", "seeds", "init_from", "model.actions"}
_AGENTS = {"SPR": "spr", "DER": "der"}


@dataclasses.dataclass(frozen=True)
class Method:
    """Runs that differ in game and seeds only.

    Attributes:
      label: how they began, and what sets them apart from other such runs.
      games: those of the table in which it was evaluated.
      scores: float[seeds, games], human-normalised; None where `obstacle` says why.
      published: the scores are one mean a game, and not ours.
    """

    label: str
    games: tuple[str, ...]
    scores: np.ndarray | None
    obstacle: str = ""
    published: bool = False


def labels(runs: Sequence[Run]) -> dict[str, str]:
    """Run -> its method: how it began, with a letter where such runs are of several.

    Runs of one method differ in nothing but their game, their seeds and what does not
    change the numbers.
    """
    kinds = {}
    for run in runs:
        kinds.setdefault(run.start, {}).setdefault(kind(run), []).append(run.name)
    return {
        name: f"{start} {chr(65 + number)}" if len(variants) > 1 else start
        for start, variants in kinds.items()
        for number, names in enumerate(variants.values())
        for name in names
    }


def kind(run: Run) -> tuple[str, ...]:
    """What of its config makes its method."""
    return tuple(
        f"{key} {json.dumps(value)}"
        for key, value in sorted(lasting_keys(run.config).items())
        if key not in _OF_A_RUN
    )


def methods_of(runs: Sequence[Run]) -> list[Method]:
    """Gather the evaluated runs of each method, on the games of the table.

    Aggregates need the same number of seeds of each game, at the same step; a game and
    seed that occurs twice leaves open which of the two to take.
    """
    gathered = {}
    for name, label in labels(runs).items():
        gathered.setdefault(label, []).extend(
            run for run in runs if run.name == name and run.normalised is not None
        )
    return [_method(label, found) for label, found in gathered.items() if found]


def _method(label: str, runs: Sequence[Run]) -> Method:
    games, seeds = {}, []
    for run in runs:
        games.setdefault(run.game, []).append(run.normalised)
        seeds += [(run.game, s) for s in run.evaluations[run.evaluated]["seeds"]]
    scores = [np.concatenate(parts) for parts in games.values()]
    counts = {len(column) for column in scores}
    steps = {run.evaluated for run in runs}
    twice = next((pair for pair in seeds if seeds.count(pair) > 1), None)
    if twice:
        obstacle = f"seed {twice[1]} of {twice[0]} is in several runs; leave one out"
    elif len(steps) > 1:
        obstacle = f"its runs were evaluated at steps {min(steps):,} to {max(steps):,}"
    elif len(counts) > 1:
        obstacle = f"its games have {min(counts)} to {max(counts)} seeds"
    else:
        return Method(label, tuple(games), np.stack(scores, axis=1))
    return Method(label, tuple(games), None, obstacle)


def references(of: set[tuple[str, ...]]) -> list[Method]:
    """The published agents over each of the given sets of games, as methods."""
    found = []
    for games in sorted(of):
        where = "" if len(of) == 1 else f", {len(games)} games"
        for name, field in _AGENTS.items():
            means = [human_normalised(g, getattr(GAMES[g], field)) for g in games]
            label = f"{name}, published{where}"
            found.append(Method(label, games, np.array([means]), published=True))
    return found
