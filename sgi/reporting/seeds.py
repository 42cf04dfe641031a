"""Runs that differ only in their seeds, as one run over all of these seeds."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from polyview.config.schema import lasting_keys
from sgi.reporting.read import PROTOCOL_KEYS, Run, seed_means

_OF_SEEDS = {"seed", "seeds"}
_NAMED = 3  # most names of runs in the name of their union


def pooled(runs: Sequence[Run]) -> list[Run]:
    """Return the runs, with those that differ only in their seeds united.

    Runs are united if their configs are equal up to seeds and they were evaluated at
    one step by one protocol. If a seed occurs twice, they stay apart, because it would
    be unclear which one counts.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_kind(run), []).append(run)
    united = []
    for members in groups.values():
        seeds = [seed for run in members for seed in run.result.get("seeds", ())]
        apart = len(members) == 1 or len(set(seeds)) < len(seeds)
        united += members if apart else [_united(members)]
    return united


def _kind(run: Run) -> str:
    """Return what runs have in common that differ only in their seeds."""
    if run.evaluated is None:
        return str(run.path)
    config = {k: v for k, v in lasting_keys(run.config).items() if k not in _OF_SEEDS}
    protocol = [run.result.get(key) for key in PROTOCOL_KEYS]
    return json.dumps([config, run.evaluated, protocol], sort_keys=True)


def _united(runs: Sequence[Run]) -> Run:
    first, *others = runs
    seeds = [seed for run in runs for seed in run.result["seeds"]]
    steps = [
        step for step in first.evaluations if all(step in r.evaluations for r in others)
    ]
    return dataclasses.replace(
        first,
        name=_name([run.name for run in runs]),
        config=first.config | {"seed": min(seeds), "seeds": len(seeds)},
        results={"": {step: _joined(runs, step) for step in steps}},
        episodes=[line for run in runs for line in run.episodes],
    )


def _joined(runs: Sequence[Run], step: int) -> dict[str, Any]:
    """Return the evaluation of all seeds at a step, whose lists are by seed."""
    results = [run.evaluations[step] for run in runs]
    lists: dict[str, Any] = {
        key: [entry for result in results for entry in result[key]]
        for key in ("seeds", "scores")
    }
    lists["mean"] = seed_means(lists).tolist()
    return results[0] | lists | {"columns": {}}


def _name(names: Sequence[str]) -> str:
    if len(names) <= _NAMED:
        return ", ".join(names)
    return f"{', '.join(names[: _NAMED - 1])} and {len(names) - _NAMED + 1} more"
