"""Add advantages to recorded actions, by the values of a trained model.

    python -m dvf.weigh --run runs/dvf --data pointmaze_medium --goal 2.5,2.5 \\
        --name pointmaze_weighted

`configs/dvf_policy.py:data=pointmaze_weighted` then imitates what gained most.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dvf import recording
from dvf.control import advantages, exploration_bonus
from dvf.rewards import Discs, Reward, rewarded
from polyview import errors
from polyview.cli import Parser
from polyview.config.text import text_digest, to_json
from polyview.data.prepare import records
from polyview.data.sources.array_record import ArrayRecord
from polyview.data.sources.protocol import Source, default_data_dir
from polyview.errors import InputError
from polyview.runs.checkpoint import saved_steps
from polyview.runs.workdir import read_config

DESCRIPTION = """
Add advantages to the actions of recorded episodes, for a goal of the maze.

    python -m dvf.weigh --run runs/dvf --data pointmaze_medium --goal 2.5,2.5 \\
        --name pointmaze_weighted
    python -m dvf.weigh --run runs/dvf --data pointmaze_medium --explore \\
        --name pointmaze_exploring

The run is one of configs/dvf_pointmaze.py, which saw no actions and no rewards; the
reward is 1 within --radius of the goal. The value of a state is that of the policy of
the data which is best from there. An action's advantage is what its episode gained
over that value --ahead steps later; with --explore, how much farther futures reach from
there.
"""
FIELD = "advantages"
_STEPS = 10  # of DDIM or Euler


def main(arguments: list[str] | None = None) -> None:
    """Write the weighted episodes that the command line asks for; see `--help`."""
    options = _parse(arguments)
    directory = options.data_dir / options.name
    described = recording.describe(options.data, options.data_dir)
    maze = recording.maze_of(described)
    if options.goal and maze.cell_of(np.array([options.goal]))[0] < 0:
        x, y = options.goal
        raise InputError(f"--goal {x:g},{y:g} is in a wall or outside of the maze")
    steps = saved_steps(options.run / "checkpoints")
    settings = {
        "of": options.data,
        "run": str(options.run),
        "config": text_digest(to_json(read_config(options.run))),
        "step": steps[-1] if steps else None,
        "split": options.split,
        **(
            {"explore": True}
            if options.explore
            else {"goal": list(options.goal), "radius": options.radius}
        ),
        "ahead": options.ahead,
        "discount": options.discount,
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
    reward = Discs([options.goal], options.radius) if options.goal else None
    statistics = dict(described.pop("statistics"))
    told = _Values(options, reward, described.pop("policies"), statistics)
    counts: dict[str, int] = {}
    weighed = _Weighed(source, told, reward, options.ahead, statistics, counts)
    records.write(
        directory,
        {"train": weighed},
        version=recording.VERSION,
        targets=source.targets,
        source=f"{options.data}, with advantages by {options.run}",
        licence=recording.LICENCE,
        provenance={**described, "weighed": settings, "counts": counts},
        statistics=statistics,
    )
    print(
        f"{directory} written: {len(source):,} episodes, deviation of the advantages "
        f"{statistics[FIELD]['std']:.3g}"
    )


class _Values:
    """The value of the best policy at each state, by a trained model.

    Without a reward, how far the futures of the policy that goes farthest reach.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        reward: Discs | None,
        policies: int,
        statistics: Mapping[str, Any],
    ):
        # JAX is imported late, so that usage errors do not wait for it.
        from dvf import load, rollouts
        from dvf.value import Direct, FromFutures, later_states
        from polyview.config.spec import build
        from polyview.config.trust import allow_list

        loaded, kind = load.read(options.run)
        self._reward, self._policies, self._column = reward, policies, 0
        self._std = np.asarray(statistics["states"]["std"])
        self._model = load.sampled(loaded, _STEPS if kind == "diffusion" else None)
        config = loaded.config
        self.discount = options.discount
        views = config.views.get("later", config.views)
        spec = config.model.get("policies") or {}
        known: dict[str, Any] = {"policies": spec.get("count")}
        if kind == "contrastive" or config.views is not views:
            source = build(config.source, allow_list(), where="source")
        if config.views is not views:  # told by roll-outs
            known = {
                "rollouts": rollouts.of_policies(source, config.views.get("steps", 32))
            }
        self._estimate: Any = Direct(**known)
        if kind != "values":
            candidates = None
            if kind == "contrastive":  # of the law of its training
                law = views.discount, views.get("most")
                candidates = later_states(source, law[0], most=law[1])
            self._estimate = FromFutures(
                self.discount, options.samples, candidates, common=True, **known
            )
        elif reward is None:
            raise InputError(
                f"{options.run} draws no futures to explore by; give --goal"
            )
        else:
            if (own := float(config.objective.discount)) != self.discount:
                raise InputError(
                    f"the values of {options.run} have the discount {own}; add "
                    f"--discount {own}"
                )
            # One of the rewards that the values are of.
            self._reward = build(config.objective.reward, allow_list())
            self._column = _column(self._reward, reward)

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """Return float64[n] of states float32[n, d]."""
        n, policies = len(states), self._policies
        asked = np.repeat(states, policies, 0)
        policy = np.tile(np.arange(policies, dtype=np.int32), n)
        if self._reward is not None:
            told = self._estimate(self._model, asked, policy, None, self._reward)
            return told.mean[:, self._column].reshape(n, policies).max(1)
        found, begun = [], 0
        for drawn, weights in self._estimate.futures(self._model, asked, policy, None):
            own = asked[begun : begun + len(drawn)]
            found.append(exploration_bonus(own, drawn, weights, self._std).mean[:, 0])
            begun += len(drawn)
        return np.concatenate(found).reshape(n, policies).max(1)


def _column(trained: Any, reward: Discs) -> int:
    """Return which of the rewards that values were trained on is this one."""
    if not isinstance(trained, Discs):
        raise InputError(
            "this run was not trained on rewards at places; train one on --goal"
        )
    centres = np.asarray(trained.centres)
    found = np.flatnonzero((abs(centres - reward.centres[0]) < 1e-6).all(1))
    if trained.radius != reward.radius or not len(found):
        raise InputError(
            f"this run was trained on rewards at {list(trained.names)}, radius "
            f"{trained.radius}, and --goal is none of them; train one on it"
        )
    return int(found[0])


@dataclass
class _Weighed:
    """Episodes with advantages; their deviation goes to the statistics at the end."""

    source: Source
    values: _Values
    reward: Reward | None
    ahead: int
    statistics: dict[str, Any]
    counts: dict[str, int]
    unit = " episodes"

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        every, lengths = [], []
        for number in range(len(self.source)):
            example = self.source[number]
            states = np.asarray(example["states"], np.float32)
            values = self.values(states)
            if example["terminal"]:  # nothing comes after
                values[-1] = 0
            lengths.append(len(states))
            gained = self._gained(states, values).astype(np.float32)
            every.append(gained)
            yield {**example, FIELD: gained}
        gained = np.concatenate(every)
        if not gained.std() > 0:
            raise InputError(
                "no action gains more than another: neither these episodes nor the "
                "futures of the run come near the goal; choose another, or a larger "
                "--radius"
            )
        self.counts |= {"episodes": len(lengths), "states": sum(lengths)}
        self.statistics[FIELD] = {
            "mean": float(gained.mean(dtype=np.float64)),
            "std": float(gained.std(dtype=np.float64)),
        }

    def _gained(self, states: np.ndarray, values: np.ndarray) -> np.ndarray:
        if self.reward is None:
            now = np.arange(len(states) - 1)
            then = np.minimum(now + self.ahead, len(states) - 1)
            return values[then] - values[now]
        rewards = rewarded(self.reward, states)[:, 0]
        return advantages(rewards, values, self.values.discount, self.ahead)


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
    what = parser.add_mutually_exclusive_group(required=True).add_argument
    what("--goal", type=_place, metavar="X,Y", help="of the reward")
    what("--explore", action="store_true", help="weigh by how far futures reach")
    add("--radius", type=float, default=0.5, help="of the reward (0.5)")
    add("--split", default="train", help="the episodes, such as train[:40] (train)")
    add("--ahead", type=int, default=10, help="steps until a gain is counted (10)")
    add("--discount", type=float, default=0.97, help="of the values (0.97)")
    add("--samples", type=int, default=32, help="futures a value (32)")
    add(
        "--data_dir",
        type=Path,
        default=default_data_dir(),
        help="folder of the data sets (default: $POLYVIEW_DATA, else ./data)",
    )
    options = parser.parse_args(arguments)
    for name, least in ("ahead", 1), ("samples", 2):
        if getattr(options, name) < least:
            raise InputError(
                f"--{name} is {getattr(options, name)}; give {least} or more"
            )
    if not 0 <= options.discount < 1:
        raise InputError(f"--discount is {options.discount}; give 0 or more, below 1")
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
