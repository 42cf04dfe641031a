"""Group runs by method, and gather each method's scores over games.

Runs of one method differ only in their game, their seeds and settings that do not
change the numbers.
"""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from polyview.config.schema import lasting_keys
from sgi.reporting.read import Run
from sgi.scores import GAMES, human_normalised

# Keys in which runs of one method may differ.
_OF_A_RUN = {"game", "seed", "seeds", "init_from", "model.actions"}
_AGENTS = {"SPR": "spr", "DER": "der"}


@dataclasses.dataclass(frozen=True)
class Method:
    """A method and its scores over games.

    Attributes:
      label: how its runs started, with a letter if several methods started alike.
      games: the games of the published table in which it was evaluated.
      scores: float[seeds, games], human-normalised; None if there is an `obstacle`.
      obstacle: why the scores of its runs do not form an array.
      published: whether the scores are published means, one per game.
    """

    label: str
    games: tuple[str, ...]
    scores: np.ndarray | None
    obstacle: str = ""
    published: bool = False


def labels(runs: Sequence[Run]) -> dict[str, str]:
    """Return the label of each run's method.

    It says how the run started, with a letter if several methods started alike.
    """
    kinds: dict[str, dict[tuple[str, ...], list[str]]] = {}
    for run in runs:
        kinds.setdefault(run.start, {}).setdefault(kind(run), []).append(run.name)
    return {
        name: f"{start} {chr(65 + number)}" if len(variants) > 1 else start
        for start, variants in kinds.items()
        for number, names in enumerate(variants.values())
        for name in names
    }


def kind(run: Run) -> tuple[str, ...]:
    """Return the settings that define the method of a run."""
    return tuple(
        f"{key} {json.dumps(value)}"
        for key, value in sorted(lasting_keys(run.config).items())
        if key not in _OF_A_RUN
    )


def methods_of(runs: Sequence[Run]) -> list[Method]:
    """Gather the evaluated runs of each method, on the games of the published table.

    An aggregate requires the same number of seeds for each game, all at the same step.
    No seed of a game may occur twice, because it would be unclear which one counts.
    """
    by_label: dict[str, list[Run]] = {}
    for name, label in labels(runs).items():
        by_label.setdefault(label, []).extend(
            run for run in runs if run.name == name and run.normalised is not None
        )
    return [_method(label, members) for label, members in by_label.items() if members]


def _method(label: str, runs: Sequence[Run]) -> Method:
    games: dict[str, list] = {}
    seeds = []
    for run in runs:
        games.setdefault(run.game, []).append(run.normalised)
        seeds += [(run.game, seed) for seed in run.result["seeds"]]
    scores = [np.concatenate(parts) for parts in games.values()]
    counts = {len(column) for column in scores}
    steps = {run.evaluated for run in runs if run.evaluated is not None}
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
    """Return the published agents as methods, over each of the given sets of games."""
    methods = []
    for games in sorted(of):
        where = "" if len(of) == 1 else f", {len(games)} games"
        for name, field in _AGENTS.items():
            means = [human_normalised(g, getattr(GAMES[g], field)) for g in games]
            label = f"{name}, published{where}"
            methods.append(Method(label, games, np.array([means]), published=True))
    return methods
