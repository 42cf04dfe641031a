"""Add advantages to recorded actions, by the values of a trained model.

    python -m dvf.weigh --run runs/dvf --data pointmaze_medium --goal 2.5,2.5 \\
        --name pointmaze_weighted

`configs/dvf_policy.py:data=pointmaze_weighted` then imitates what gained most.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dvf import recording
from dvf.control import advantages
from dvf.rewards import Discs, Reward, rewarded
from polyview import errors
from polyview.cli import Parser
from polyview.data.prepare import records
from polyview.data.sources.array_record import ArrayRecord
from polyview.data.sources.protocol import Source, default_data_dir
from polyview.errors import InputError

DESCRIPTION = """
Add advantages to the actions of recorded episodes, for a goal of the maze.

    python -m dvf.weigh --run runs/dvf --data pointmaze_medium --goal 2.5,2.5 \\
        --name pointmaze_weighted

The run is one of configs/dvf_pointmaze.py, which saw no actions and no rewards; the
reward is 1 within --radius of the goal. The value of a state is that of the policy of
the data which is best from there. An action's advantage is what its episode gained
over that value --ahead steps later.
"""
FIELD = "advantages"


def main(arguments: list[str] | None = None) -> None:
    """Write the weighted episodes that the command line asks for; see `--help`."""
    options = _parse(arguments)
    directory = options.data_dir / options.name
    described = recording.describe(options.data, options.data_dir)
    settings = {
        "of": options.data,
        "run": str(options.run),
        "split": options.split,
        "goal": list(options.goal),
        "radius": options.radius,
        "ahead": options.ahead,
        "samples": options.samples,
    }
    if records.prepared(directory):
        found = recording.describe(options.name, options.data_dir).get("weighed")
        if found != settings:
            raise InputError(
                f"{directory} holds advantages of other settings; give another --name, "
                "or remove it"
            )
        print(f"{directory} already exists")
        return
    source = ArrayRecord(options.data, options.split, options.data_dir)
    if "actions" not in source[0]:
        raise InputError(f"{source!r} has no actions to weigh; record them first")
    reward = Discs([options.goal], options.radius)
    told = _Values(options.run, reward, options.samples, len(described["players"]))
    statistics = dict(described.pop("statistics"))
    weighed = _Weighed(source, told, reward, options.ahead, statistics)
    records.write(
        directory,
        {"train": weighed},
        version=recording.VERSION,
        targets=source.targets,
        source=f"{options.data}, with advantages by {options.run}",
        licence=recording.LICENCE,
        provenance={**described, "weighed": settings},
        statistics=statistics,
    )
    print(
        f"{directory} written: {len(source):,} episodes, deviation of the advantages "
        f"{statistics[FIELD]['std']:.3g}"
    )


class _Values:
    """The value of the best policy at each state, by a trained model."""

    def __init__(self, run: Path, reward: Reward, samples: int, policies: int):
        # JAX is imported late, so that usage errors do not wait for it.
        from dvf.value import Direct, FromFutures, later_states
        from polyview.config.spec import build
        from polyview.runs.load import frozen_model
        from polyview.runs.workdir import read_config

        config = read_config(run)
        if not str(config.model.get("partial", "")).startswith("dvf."):
            raise InputError(f"{run} is no run of configs/dvf_pointmaze.py")
        self._model, self._reward = frozen_model(str(run)), reward
        self._policies = policies
        known = config.model if "discount" in config.model else config.objective
        self.discount = float(known.discount)
        candidates = None
        if config.model.partial.endswith(":ContrastiveOccupancy"):
            candidates = later_states(build(config.source, frozenset()), self.discount)
        self._estimate: Any = FromFutures(
            self.discount, samples, candidates, common=True
        )
        if config.model.partial.endswith(":Values"):
            self._estimate = Direct()

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """Return float64[n] of states float32[n, d]."""
        n, policies = len(states), self._policies
        told = self._estimate(
            self._model,
            np.repeat(states, policies, 0),
            np.tile(np.arange(policies, dtype=np.int32), n),
            None,
            self._reward,
        )
        return told.mean.reshape(n, policies).max(1)


@dataclass
class _Weighed:
    """Episodes with advantages; their deviation goes to the statistics at the end."""

    source: Source
    values: _Values
    reward: Reward
    ahead: int
    statistics: dict[str, Any]
    unit = " episodes"

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        every = []
        for number in range(len(self.source)):
            example = self.source[number]
            states = np.asarray(example["states"], np.float32)
            gained = advantages(
                rewarded(self.reward, states)[:, 0],
                self.values(states),
                self.values.discount,
                self.ahead,
            ).astype(np.float32)
            every.append(gained)
            yield {**example, FIELD: gained}
        gained = np.concatenate(every)
        self.statistics[FIELD] = {
            "mean": float(gained.mean(dtype=np.float64)),
            "std": float(gained.std(dtype=np.float64)),
        }


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m dvf.weigh",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--run", required=True, type=Path, help="a run of configs/dvf_pointmaze.py")
    add("--data", required=True, help="recorded episodes with actions")
    add("--name", required=True, help="name of the new data set")
    add("--goal", required=True, type=_place, metavar="X,Y", help="of the reward")
    add("--radius", type=float, default=0.5, help="of the reward (0.5)")
    add("--split", default="train", help="the episodes, such as train[:40] (train)")
    add("--ahead", type=int, default=10, help="steps until a gain is counted (10)")
    add("--samples", type=int, default=32, help="futures a value (32)")
    add(
        "--data_dir",
        type=Path,
        default=default_data_dir(),
        help="folder of the data sets (default: $POLYVIEW_DATA, else ./data)",
    )
    options = parser.parse_args(arguments)
    for name in ("ahead", "samples"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} is {getattr(options, name)}; give 1 or more")
    if not 0 < options.radius < np.inf:
        raise InputError(f"--radius is {options.radius}; give a positive length")
    if Path(options.name).name != options.name:
        raise InputError(
            f"--name {options.name} is a path; give its folder as --data_dir"
        )
    return options


def _place(text: str) -> tuple[float, ...]:
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a place such as 2.5,-1"
        ) from None
    return x, y


if __name__ == "__main__":
    errors.run(main)
