"""Rewards from preferences: what a judge is worth, and what is learnt from it.

    python -m benchmarks.rewards oracle --workdir runs/rewards
    python -m benchmarks.rewards judge --workdir runs/rewards
    python -m benchmarks.rewards asked --workdir runs/rewards
    python -m benchmarks.rewards ppo --workdir runs/rewards
    python -m benchmarks.rewards tuning --workdir runs/rewards

oracle: a reward distilled from preferences of one who knows the true values, with
errors and with a bias to what is shown first; its rank correlation with value in
held-out episodes. judge: the language model's labels of 1,000 pairs a level, beside
controls and the other forms of reward. asked: the language model as a policy, from
coarse to fine actions, and the two probes of what it foresees. ppo: PickupLoc with the
level's reward alone, and with rewards distilled from an oracle, from the language model
and from nothing; the weight of a reward is chosen with a seed of its own. tuning: low-
rank adapters on captions and as a policy, what that forgets, and whether the judge
gets better where actions do something else than their names.

Pairs are prepared in the data folder where they are missing. A finished row is not
repeated: run the command again to resume.
"""

import argparse
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from agents import judge as judging
from agents import prepare
from agents.feedback import pairs
from benchmarks import student
from benchmarks.studies import (
    Row,
    begin,
    evaluated,
    locked,
    measure_missing,
    own_evaluations,
    trained,
)
from polyview import errors
from polyview.config.file import load_config
from polyview.data.sources.protocol import default_data_dir
from polyview.rl.learner import PolicyLearner
from polyview.runs import metrics
from polyview.training.train import train
from polyview.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
STUDIES = ("oracle", "judge", "asked", "ppo", "tuning")
SEEDS, LEARNERS = 3, 5  # of distillations, and of PPO
CHOOSING = 100  # the seed with which weights of rewards are chosen
LEVEL = "babyai:PickupLoc"  # of oracle and ppo
MODEL = "smollm2_135m"
# {data set of pairs: options of agents.prepare --pairs}
ACROSS = ["--across", "0.5", "--each", "4"]
# Judged pairs are of the expert alone, an earlier and a later moment of an episode.
JUDGED = ["--n", "64", "--validation", "64", "--test", "1000", "--random", "0"]
LEVELS = ("GoToObj", "GoToLocal", "PickupLoc")
WORLDS = ("wordle:english", "rearrange:train", "babyai:GoToLocal")  # coarse first
EPISODES = 100
STEPS = 1_000  # thousands, of PPO
REACHED = 0.8  # success
BIAS = math.log(9)


class Oracle(NamedTuple):
    """An oracle's labels, and which of its answers are used."""

    flip: float = 0.0
    bias: float = 0.0
    orders: str = "both"
    learns: bool = True

    @property
    def name(self) -> str:
        """Of the row."""
        if not self.learns:
            return "untrained network"
        text = f"flip {self.flip:g}" if self.flip else "oracle"
        order = "one order" if self.orders == "first" else "both orders"
        return f"{text}, bias log 9, {order}" if self.bias else text

    @property
    def labels(self) -> str:
        """Of the file."""
        return f"oracle_{self.flip:g}_{self.bias:.2f}".replace(".", "")


ORACLES = (
    *(Oracle(flip) for flip in (0.0, 0.1, 0.2, 0.3)),
    *(Oracle(bias=BIAS, orders=orders) for orders in ("both", "first")),
    Oracle(learns=False),
)


def main() -> None:
    """Measure what is missing of a study; write the JSON after each row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="JSON (default: in results/)")
    parser.add_argument("--thousand", type=int, default=STEPS, help="steps of PPO")
    flags = parser.parse_args()
    output = flags.output or RESULTS / f"rewards_{flags.study}.json"
    begin(flags.workdir)
    study = {
        "oracle": oracle,
        "judge": judged,
        "asked": asked,
        "ppo": ppo,
        "tuning": tuning,
    }[flags.study]
    measure_missing(
        lambda rows: study(flags, rows),
        output,
        flags.workdir,
        lambda rows: summary(flags.study, rows),
    )


def oracle(flags: argparse.Namespace, rows: list[dict]) -> Iterator[Row]:
    """Yield the distillations of oracles."""
    for seed, one in itertools.product(range(SEEDS), ORACLES):

        def measure(seed: int = seed, one: Oracle = one) -> dict[str, Any]:
            run = distilled(flags, one, seed, split="test")
            (path,) = run.glob("eval/*-reward.json")
            found = json.loads(path.read_text())
            keys = ("spearman", "spearman_interval", "truth", "labels", "moments")
            return {key: found[key] for key in keys}

        yield {"name": one.name, "seed": seed}, measure


def distilled(
    flags: argparse.Namespace, one: Oracle, seed: int, split: str = "validation"
) -> Path:
    """Return the run of a reward that an oracle's preferences give."""
    data = prepared(LEVEL, ACROSS)
    arguments = ["--flip", str(one.flip), "--bias", str(one.bias)]
    labelled(data, one.labels, ["--judge", "oracle", *arguments], "train")
    return reward(flags, data, one.labels, seed, one.orders, one.learns, split)


def reward(
    flags: argparse.Namespace,
    data: str,
    labels: str,
    seed: int,
    orders: str = "both",
    learns: bool = True,
    split: str = "validation",
) -> Path:
    """Return the run of a reward network; train it if it is missing."""
    # An oracle says of each pair what it is: none is a tie for want of confidence.
    ties = 0.0 if labels.startswith("oracle") else 0.2
    given = f"data={data},labels={labels},orders={orders},split={split},ties={ties}"
    given += f",seed={seed}" + ("" if learns else ",steps=1,rate=0.0")
    config = load_config(f"configs/rewards_distil.py:{given}")
    words = "_".join((data, labels, orders, str(seed)))
    name = f"reward_{words}_{split}" + ("" if learns else "_untrained")
    run = flags.workdir / name
    with locked(run.with_name(f"{name}.lock")):
        if not list(run.glob("eval/*-reward.json")):
            train(Trainer(config), run)  # and evaluate: configs of policies read it
    return run


def judged(flags: argparse.Namespace, rows: list[dict]) -> Iterator[Row]:
    """Yield the audits of judges on pairs of each level."""
    judges = {
        "language model": ["--judge", "model"],
        "shuffled goal": ["--judge", "model", "--goal", "shuffled"],
        "random weights": ["--judge", "random_model"],
        "shorter caption": ["--judge", "shorter"],
        "scalar": ["--judge", "scalar"],
        "embedding": ["--judge", "embedding"],
    }
    for name, captions, level in itertools.product(judges, ("plain", "goal"), LEVELS):
        if captions == "goal" and (level == "GoToObj" or name == "random weights"):
            continue  # GoToObj has one object

        def measure(
            captions: str = captions, level: str = level, name: str = name
        ) -> dict[str, Any]:
            only = ["--goal_only"] if captions == "goal" else []
            data = prepared(f"babyai:{level}", [*JUDGED, *only])
            label = name.replace(" ", "_")
            return audit(data, label, judges[name], "test")

        yield {"level": level, "captions": captions, "judge": name}, measure


def asked(flags: argparse.Namespace, rows: list[dict]) -> Iterator[Row]:
    """Yield the language model as a policy, and the probes, for each world."""
    for env, what in itertools.product(WORLDS, ("policy", "next", "inverse")):
        yield {"env": env, "what": what}, lambda env=env, what=what: ask(env, what)
    for env in WORLDS:
        about = {"env": env, "what": "policy", "calibrated": False}
        yield about, lambda env=env: ask(env, "policy", "--uncalibrated")


def ask(env: str, what: str, *options: str) -> dict[str, Any]:
    """Return what `agents.ask` writes, from a process of its own."""
    output = Path(os.environ.get("TMPDIR", "/tmp"), f"asked_{os.getpid()}.json")
    words = [sys.executable, "-m", "agents.ask", "--env", env, "--what", what]
    words += ["--model", MODEL, "--episodes", str(EPISODES), "--split", "test"]
    words += [*options, "--output", str(output)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr}")
    found = json.loads(output.read_text())
    output.unlink()
    return {"calibrated": found["calibrated"], **found[what]}


# {name: (what gives preferences, form)}
ARMS: dict[str, tuple[str, str]] = {
    "level's reward alone": ("", ""),
    "oracle, thresholded": ("oracle", "thresholded"),
    "oracle, potential": ("oracle", "potential"),
    "language model, thresholded": ("model", "thresholded"),
    "language model, potential": ("model", "potential"),
    "untrained network, thresholded": ("untrained", "thresholded"),
}
REWARD_WEIGHTS = (0.01, 0.03, 0.1, 0.3)


def ppo(flags: argparse.Namespace, rows: list[dict]) -> Iterator[Row]:
    """Yield policies by each reward; weights first, by the oracle's reward."""
    length = {"thousand": flags.thousand}  # runs of another one are other rows
    for form, weight in itertools.product(("thresholded", "potential"), REWARD_WEIGHTS):
        about = {"name": f"oracle, {form}", "weight": weight, "seed": CHOOSING}
        yield length | about, lambda about=about: learnt(flags, about)
    for seed, (name, (_, form)) in itertools.product(range(LEARNERS), ARMS.items()):
        chosen = weight_of(rows, form, flags.thousand) if form else 0.0
        if chosen is not None:
            about = {"name": name, "weight": chosen, "seed": seed}
            yield length | about, lambda about=about: learnt(flags, about)


def weight_of(rows: list[dict], form: str, thousand: int) -> float | None:
    """Return the weight with the largest mean success in the seed that chooses, after
    so many thousands of steps; None before all weights are tried."""
    kept = {"seed": CHOOSING, "name": f"oracle, {form}", "thousand": thousand}
    own = [row for row in rows if kept.items() <= row.items()]
    if {row["weight"] for row in own} != {*REWARD_WEIGHTS}:
        return None
    return max(own, key=lambda row: row["mean_success"])["weight"]


def learnt(flags: argparse.Namespace, about: Mapping[str, Any]) -> dict[str, Any]:
    """Train a policy; return its curve.

    at: thousands of steps; success: of the episodes that had ended of late there;
    reached: the first of `at` where it is .8 or more, None if it never is; fooled: the
    share of episodes without success whose reward was high.
    """
    source, form = ARMS[about["name"]]
    seed = about["seed"]
    given = f"thousand={flags.thousand},seed={seed}"
    if not source:
        level = LEVEL.partition(":")[2]
        config = load_config(f"configs/agents_babyai.py:level={level},{given}")
    else:
        run = {
            "oracle": lambda: distilled(flags, Oracle(), seed % SEEDS),
            "untrained": lambda: distilled(flags, Oracle(learns=False), seed),
            "model": lambda: by_model(flags, seed % SEEDS),
        }[source]()
        given += f",reward={run},form={form},weight={about['weight']}"
        config = load_config(f"configs/rewards_ppo.py:{given}")
    words = "_".join((source or "alone", form, f"{about['weight']:g}", str(seed)))
    words += f"_{flags.thousand}"
    folder = flags.workdir / f"ppo_{words.replace('.', '')}"
    trained(config, folder, PolicyLearner)
    lines = metrics.read(folder / "metrics.jsonl")
    shutil.rmtree(folder)
    steps = [line["environment_steps"] / 1000 for line in lines]
    success = [line["success"] for line in lines]
    enough = [now for now, rate in zip(steps, success, strict=True) if rate >= REACHED]
    found: dict[str, Any] = {
        "at": [round(now, 1) for now in steps],
        "success": [round(rate, 3) for rate in success],
        "mean_success": sum(success) / len(success),
        "last_success": success[-1],
        "reached": min(enough, default=None),
    }
    if source:
        found["fooled"] = [round(line["fooled"], 3) for line in lines]
    return found


def by_model(flags: argparse.Namespace, seed: int) -> Path:
    """Return the run of a reward by the language model's preferences.

    Captions speak of the goal's object alone: with all objects it judges by chance.
    """
    data = prepared(LEVEL, [*ACROSS, "--goal_only", "--n", "2500"])
    labelled(data, "model", ["--judge", "model", "--model", MODEL], "train")
    return reward(flags, data, "model", seed)


def tuning(flags: argparse.Namespace, rows: list[dict]) -> Iterator[Row]:
    """Yield tuned models: what they forgot, and how they judge and foresee."""
    env, permute = "babyai:GoToLocal", 1
    given = f"env={env},permute={permute}"
    for seed, task in itertools.product(range(SEEDS), ("none", "captions", "policy")):
        if task == "none" and seed:
            continue

        def measure(seed: int = seed, task: str = task) -> dict[str, Any]:
            found: dict[str, Any] = {}
            options: list[str] = []
            if task != "none":
                config = load_config(
                    f"configs/rewards_tuning.py:task={task},{given},seed={seed}"
                )
                run = trained(config, flags.workdir / f"tuned_{task}_{seed}")
                (found["perplexity"],) = evaluated(run, own_evaluations(run)).values()
                options = ["--run", str(run)]
            actions = ["--permute", str(permute)]
            for what in ("next", "inverse", "policy"):
                found[what] = ask(env, what, *actions, *options)
            data = prepared(env, JUDGED)
            found["judge"] = audit(
                data, f"tuned_{task}_{seed}", ["--judge", "model", *options], "test"
            )
            return found

        yield {"task": task, "seed": seed}, measure


def prepared(env: str, options: list[str]) -> str:
    """Return the name of pairs; prepare them if they are missing."""
    words = "_".join((env, *options)).replace("-", "").replace(":", "_")
    name = f"pairs_{words.replace('.', '')}".lower()
    with locked(default_data_dir() / f"{name}.lock"):
        prepare.main(["--pairs", env, *options, "--name", name])
    return name


def labelled(data: str, name: str, options: list[str], split: str) -> Path:
    """Return the file of labels of a split of pairs; a judge adds those it lacks."""
    with locked(default_data_dir() / f"{data}-{name}.lock"):
        judging.main(["--pairs", data, "--name", name, "--split", split, *options])
    return default_data_dir() / data / "labels" / f"{name}.json"


def audit(data: str, name: str, options: list[str], split: str) -> dict[str, Any]:
    """Return what `agents.judge` says of labels."""
    path = labelled(data, name, options, split)
    found = json.loads(path.read_text())
    dropped = pairs.describe(data)["counts"][split]
    return {
        **found["splits"][split],
        "prompt": found["header"]["prompt"],
        "pairs_per_second": found["pairs_per_second"],
        "equal_captions_dropped": dropped["equal"],
    }


def summary(study: str, rows: list[dict]) -> dict[str, Any]:
    """Return means over seeds with 95 % intervals (Student).

    The means of PPO are over runs of the same length.
    """
    number = {"oracle": "spearman", "ppo": "mean_success"}.get(study)
    groups: dict[str, list[float]] = {}
    for row in rows:
        if number and row["seed"] != CHOOSING:
            length = f", {row['thousand']:,} thousand steps" if study == "ppo" else ""
            groups.setdefault(row["name"] + length, []).append(row[number])
    content: dict[str, Any] = {
        "command": f"python -m benchmarks.rewards {study} --workdir DIR"
    }
    if groups:
        content["means_of"] = number
        content["means"] = {name: student(values) for name, values in groups.items()}
    return content


if __name__ == "__main__":
    errors.run(main)
