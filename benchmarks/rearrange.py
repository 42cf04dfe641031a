"""Success in the splits of TextRearrange, after imitation and after PPO, by body.

    python -m benchmarks.rearrange --workdir runs/rearrange

A policy imitates 2,000 episodes of the solver, then learns by PPO from there; both are
measured on all splits. Bodies: four layers of the language model, fixed; the same with
low-rank adapters; the same shape from random weights, all trained, or none; and a bag
of words with a GRU. Of the first body, also with words as actions. A finished part is a
row of the JSON and is not repeated: run again to resume. Data are recorded first:

    python -m agents.prepare llm
    python -m agents.prepare --env rearrange:train --name rearrange --episodes 2000
"""

import argparse
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import student
from benchmarks.studies import (
    Row,
    begin,
    evaluated,
    measure_missing,
    own_evaluations,
    trained,
)
from polyview import errors
from polyview.config.file import evaluations_of, load_config
from polyview.rl.learner import PolicyLearner
from polyview.runs import metrics
from polyview.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results" / "rearrange.json"
CLONED, PLAYED = 200, 1000  # episodes of each split that are played


class Arm(NamedTuple):
    """A policy. seeds: how many."""

    body: str
    adapter: str = "pred"
    seeds: int = 3

    @property
    def name(self) -> str:
        """Body and adapter."""
        return f"{self.body}, {self.adapter}"


ARMS = (
    Arm("frozen"),
    Arm("random"),
    Arm("gru"),
    Arm("lora", seeds=1),
    Arm("trained", seeds=1),
    Arm("frozen", "semlang", 1),
    Arm("frozen", "lang", 1),
)


def main() -> None:
    """Train what is missing; write the JSON after each part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000, help="of imitation")
    parser.add_argument("--million", type=float, default=0.3, help="steps of PPO")
    parser.add_argument("--only", help="one body")
    parser.add_argument("--output", type=Path, default=RESULTS)
    flags = parser.parse_args()
    begin(flags.workdir)
    measure_missing(lambda _: study(flags), flags.output, flags.workdir, summary)


def study(flags: argparse.Namespace) -> Iterator[Row]:
    """Yield each stage of each policy."""
    for seed, arm, stage in itertools.product(range(3), ARMS, ("imitation", "PPO")):
        if seed >= arm.seeds or flags.only not in (None, arm.body):
            continue
        about = {"name": arm.name, "seed": seed, "stage": stage, "steps": flags.steps}
        if stage == "PPO":
            about["million"] = flags.million
        yield about, lambda a=arm, n=seed, of=stage: measured(flags, a, n, of)


def measured(
    flags: argparse.Namespace, arm: Arm, seed: int, stage: str
) -> dict[str, Any]:
    """Train a stage and return its success in all splits."""
    name = f"{arm.body}-{arm.adapter}-{seed}-{flags.steps}"
    about = f"body={arm.body},adapter={arm.adapter}"
    cloned = trained(
        load_config(
            f"configs/agents_rearrange_clone.py:{about},steps={flags.steps}",
            {"seed": str(seed)},
        ),
        flags.workdir / f"clone-{name}",
        Trainer,
    )
    run, found = cloned, dict[str, Any]()
    if stage == "PPO":
        run = trained(
            load_config(
                f"configs/agents_rearrange.py:{about},start={cloned},"
                f"million={flags.million},seed={seed}"
            ),
            flags.workdir / f"ppo-{name}-{flags.million}",
            PolicyLearner,
        )
        keys = ("environment_steps", "success", "length", "entropy", "first_ratio")
        lines = metrics.read(run / "metrics.jsonl")
        found["curve"] = [{key: line[key] for key in keys} for line in lines]
    episodes = CLONED if stage == "imitation" else PLAYED
    asked = f"configs/evaluations/rearrange.py:episodes={episodes}"
    own = {"evaluations": own_evaluations(run)}
    worlds = evaluated(run, evaluations_of(asked, own))["rearrange"]["worlds"]
    found["splits"] = {
        world.partition(":")[2]: {key: own[key] for key in ("success", "interval")}
        for world, own in worlds.items()
    }
    if stage == "PPO":
        shutil.rmtree(run)
    return found


def summary(rows: list[dict]) -> dict[str, Any]:
    """Return means over seeds with 95 % intervals (Student)."""
    means: dict[str, dict] = {}
    for row in rows:
        own = means.setdefault(f"{row['name']}, {row['stage']}", {})
        for split, found in row["splits"].items():
            own.setdefault(split, []).append(found["success"])
    return {
        "command": "python -m benchmarks.rearrange --workdir DIR",
        "means": {
            name: {split: student(values) for split, values in own.items()}
            for name, own in means.items()
        },
    }


if __name__ == "__main__":
    errors.run(main)
