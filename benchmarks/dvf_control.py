"""Do futures learnt without actions and rewards make imitation better?

    python -m benchmarks.dvf_control --workdir runs/dvf_control

On PointMaze medium, of whose eight players each has a goal of its own: 40 episodes have
actions; models of the future learn from 40, 160 or 640 episodes of states. For each of
three goals a policy imitates the 40 episodes: all actions alike (behaviour cloning), or
those more that gained over values, which come from a model of the future or from TD on
the rewards (640 episodes). The temperature is chosen by returns from other starts, for
one goal, with seed 0. Returns are normalised: 0 for uniformly random actions, 100 for
the goal's player without noise. A finished policy is a row of the JSON and is not
repeated: run again to resume.
"""

import argparse
import itertools
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import dvf.weigh
from benchmarks import student
from benchmarks.dvf import DATA, TRIED, best
from benchmarks.studies import begin
from dvf import recording
from dvf.evaluation.play import Returns
from dvf.players import GoalPlayer
from dvf.rewards import Discs
from dvf.worlds import world
from polyview import errors, files, hosts
from polyview.config.file import load_config
from polyview.data.sources.protocol import default_data_dir
from polyview.runs.load import frozen_model
from polyview.training.train import train
from polyview.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results"
SEEDS = 3
GOALS = (0, 1, 4)  # of these players
LABELLED = 40
UNLABELLED = (40, 160, 640)
TEMPERATURES = (0.3, 1.0, 3.0)
DISCOUNT = 0.97


class Arm(NamedTuple):
    """A policy. values: "ddpm", "td" or "none"; unlabelled: of their episodes."""

    values: str
    unlabelled: int

    @property
    def name(self) -> str:
        """Which values weigh the actions."""
        if self.values == "none":
            return "behaviour cloning"
        if self.values == "td":
            return f"TD, {self.unlabelled} episodes"
        return f"futures, {self.unlabelled} episodes"


ARMS = (Arm("none", 0), *(Arm("ddpm", n) for n in UNLABELLED), Arm("td", 640))


def main() -> None:
    """Train the policies that are missing; write the JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--steps", default="10000", help="of models of the future")
    parser.add_argument("--output", type=Path, help="JSON (default: in results/)")
    flags = parser.parse_args()
    output = flags.output or RESULTS / "dvf_control.json"
    begin(flags.workdir)
    found = json.loads(output.read_text()) if output.exists() else {}
    rows, tried = found.get("rows", []), found.get("tried", [])
    for arm in ARMS[1:]:
        if arm in (Arm("ddpm", 640), Arm("td", 640)):
            for temperature in TEMPERATURES:
                about = {"values": arm.values, "temperature": temperature}
                about["steps"] = int(flags.steps)
                if not any(about.items() <= row.items() for row in tried):
                    one = policy(flags, arm, GOALS[0], 0, temperature, starts=1)
                    tried.append({**about, **one})
                    write(output, rows, tried)
    for seed, arm, goal in itertools.product(range(SEEDS), ARMS, GOALS):
        about = {"name": arm.name, **arm._asdict(), "goal": goal, "seed": seed}
        about["steps"] = int(flags.steps)
        if any(about.items() <= row.items() for row in rows):
            continue
        one = policy(flags, arm, goal, seed, chosen(tried, arm), starts=0)
        rows.append({**about, **one, "machine": hosts.machine()})
        print(
            f"{arm.name} goal {goal} seed {seed}: {one['normalised']:.1f}", flush=True
        )
        write(output, rows, tried)


def chosen(tried: list[dict], arm: Arm) -> float:
    """Return the temperature with the highest return from other starts."""
    own = [row for row in tried if row["values"] == arm.values]
    return max(own, key=lambda row: row["return"])["temperature"] if own else 0.0


def policy(
    flags: argparse.Namespace,
    arm: Arm,
    goal: int,
    seed: int,
    temperature: float,
    starts: int,
) -> dict[str, Any]:
    """Train a policy for a goal, and let it act; starts: their seed."""
    place = recording.describe(DATA)["players"][goal]["xy"]
    data = DATA
    if arm.values != "none":
        data = weighed(flags, arm, goal, place, seed)
    argument = f"data={data},temperature={temperature},goal={place[0]}+{place[1]}"
    overrides = {"seed": str(seed), "evaluations": "None"}
    overrides["source.source.split"] = f"train[:{LABELLED}]"
    workdir = flags.workdir / f"policy-{arm.values}-{arm.unlabelled}-{goal}-{seed}"
    train(Trainer(load_config(f"configs/dvf_policy.py:{argument}", overrides)), workdir)
    model = frozen_model(str(workdir))
    shutil.rmtree(workdir)
    reward = Discs([place])
    played = Returns(world(DATA), reward, DISCOUNT, seed=starts)
    got = float(played.earned(lambda s: np.asarray(model.call("act", s))).mean())
    low, high = ends(played, goal)
    normalised = 100 * (got - low) / (high - low)
    return {"return": got, "normalised": normalised, "temperature": temperature}


def ends(played: Returns, goal: int) -> tuple[float, float]:
    """Return the returns of random actions, and of the goal's player without noise."""
    rng = np.random.default_rng(0)
    low = played.earned(lambda states: rng.uniform(-1, 1, (len(states), 2)))
    maze = played.world.maze
    cell = int(maze.cell_of(np.array(played.reward.centres))[0])
    player = GoalPlayer(maze, cell, noise=0.0)
    high = played.earned(lambda states: player.actions(states.astype(float), rng))
    return float(low.mean()), float(high.mean())


def weighed(
    flags: argparse.Namespace, arm: Arm, goal: int, place: list[float], seed: int
) -> str:
    """Return the name of the labelled episodes with advantages."""
    run = flags.workdir / f"{arm.values}-{arm.unlabelled}-{seed}-{flags.steps}"
    argument = f"data={DATA},method={arm.values}"
    places = [recording.describe(DATA)["players"][one]["xy"] for one in GOALS]
    if arm.values == "td":
        argument += f",rewards={len(GOALS)}"
    overrides = TRIED[arm.values][best(arm.values)] | {"seed": str(seed)}
    overrides |= {"steps": flags.steps, "checkpoint_every": flags.steps}
    overrides |= {"evaluations": "None"}
    overrides["source.source.split"] = f"train[:{arm.unlabelled}]"
    config = load_config(f"configs/dvf_pointmaze.py:{argument}", overrides)
    if arm.values == "td":
        config.objective.reward.centres = places
    if not (run / "done").exists():
        train(Trainer(config), run)
        (run / "done").touch()
    name = f"{DATA}_weighed_{run.name}_{goal}"
    if not (default_data_dir() / name).exists():
        what = ["--run", str(run), "--data", DATA, "--name", name]
        what += [f"--goal={place[0]},{place[1]}", "--split", f"train[:{LABELLED}]"]
        dvf.weigh.main(what)
    return name


def write(output: Path, rows: list[dict], tried: list[dict]) -> None:
    """Write all rows so far, and normalised returns by arm, with 95 % intervals."""
    means = {}
    for arm in ARMS:
        by_seed: dict[int, list[float]] = {}
        for row in rows:
            if row["name"] == arm.name:
                by_seed.setdefault(row["seed"], []).append(row["normalised"])
        whole = [float(np.mean(v)) for v in by_seed.values() if len(v) == len(GOALS)]
        if whole:
            means[arm.name] = {"seeds": len(whole), "normalised": student(whole)}
    content = {
        "command": "python -m benchmarks.dvf_control --workdir DIR",
        "normalised": "of means over goals: mean, 95 % over seeds (Student)",
        "means": means,
        "tried": tried,
        "rows": rows,
    }
    files.write_whole(output, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    errors.run(main)
