"""Which model of the future gives the best values? (Mazoure et al. 2023)

    python -m benchmarks.dvf tune --workdir runs/dvf
    python -m benchmarks.dvf values --workdir runs/dvf
    python -m benchmarks.dvf ends --workdir runs/dvf
    python -m benchmarks.dvf actions --workdir runs/dvf
    python -m benchmarks.dvf grid --workdir runs/dvf

`tune` tries four settings of each method on the validation split of PointMaze medium,
seed 0; `values` compares the best of each on the test split, with 20 rewards that none
but TD sees in training, and how values change with the number of DDIM steps and with
the number of labelled states that a reward is learnt from; `ends` trains on episodes of
other lengths; `actions` gives Q values; `grid` compares futures with the exact
occupancy of a walk on 9 x 9 cells. A finished run is a row of the JSON and is not
repeated: run again to resume.
"""

import argparse
import itertools
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

import dvf.load
import dvf.parts
import dvf.prepare
from benchmarks import student
from benchmarks.studies import Row, begin, measure_missing
from dvf import tabular
from dvf.evaluation.accuracy import ValueAccuracy
from dvf.evaluation.queries import read
from dvf.load import sampled
from dvf.rewards import learnt
from dvf.value import FromFutures
from polyview import drawing, errors
from polyview.config.file import load_config
from polyview.config.spec import build
from polyview.data.sources.array_record import ArrayRecord
from polyview.model import Model
from polyview.training.train import train
from polyview.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results"
DATA = "pointmaze_medium"
SEEDS = {"tune": 1, "values": 5, "ends": 5, "actions": 5, "grid": 3}
RATE = "optimizer.learning_rate.base"
WIDE = "(256, 256, 256)"
# Four settings a method, as overrides of the config.
TRIED: dict[str, list[dict[str, str]]] = {
    **{
        method: [
            {RATE: rate, "model.denoiser.hidden": hidden}
            for rate, hidden in itertools.product(
                ("1e-3", "3e-3"), ("(128, 128, 128)", WIDE)
            )
        ]
        for method in ("ddpm", "velocity", "flow")
    },
    "infonce": [
        {RATE: rate, "batch_size": episodes}
        for rate, episodes in itertools.product(("1e-3", "3e-3"), ("16", "64"))
    ],
    "td": [
        {RATE: rate, "target_decay": decay}
        for rate, decay in itertools.product(("1e-3", "3e-3"), ("0.99", "0.9"))
    ],
}
SHOWN = {  # what the figure of a study shows
    "values": {
        "value correlation": "Correlation of values",
        "value rmse": "RMSE / deviation",
        "control share": "Share of the gap",
    },
    "grid": {"distance": "Total variation, mean", "farthest": "Farthest start"},
}
LENGTHS = (60, 100, 200, 400)
STATES = 640 * 200  # of an episode of each length, as many in all
DDIM = (2, 5, 10, 20, 50)
LABELS = (10, 100, 1000)


class Arm(NamedTuple):
    """A model to train. length: of the episodes. actions: Q values."""

    method: str
    told: bool = True
    length: int = 200
    actions: bool = False
    setting: int = 0

    @property
    def name(self) -> str:
        """Method, and what differs from the usual."""
        text = self.method + ("" if self.told else ", offset not told")
        text += f", episodes of {self.length}" if self.length != 200 else ""
        return text + (", with actions" if self.actions else "")


def main() -> None:
    """Train the runs that are missing; write the JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=SEEDS)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--steps", default="10000", help="of each run")
    parser.add_argument("--output", type=Path, help="JSON (default: in results/)")
    flags = parser.parse_args()
    output = flags.output or RESULTS / f"dvf_{flags.study}.json"
    begin(flags.workdir)
    rows = measure_missing(
        lambda _: runs(flags),
        output,
        flags.workdir,
        lambda rows: summary(flags.study, rows),
    )
    if flags.study in SHOWN:
        figure = compared(summary(flags.study, rows)["means"], SHOWN[flags.study])
        output.with_suffix(".png").write_bytes(drawing.png(figure))


def runs(flags: argparse.Namespace) -> Iterator[Row]:
    """Yield the runs of a study."""
    for seed in flags.seeds or range(SEEDS[flags.study]):
        for arm in arms(flags.study):
            about = {"name": arm.name, **arm._asdict()}
            about |= {"seed": seed, "steps": int(flags.steps)}
            yield about, lambda arm=arm, seed=seed: one(flags, arm, seed)


@drawing.styled
def compared(means: list[dict], shown: Mapping[str, str]) -> Figure:
    """Draw some numbers of each method, with their intervals over seeds."""
    size = drawing.WIDTH * 0.2 * (3 + 2 * len(shown)), 0.8 + 0.26 * len(means)
    figure = Figure(size, layout="constrained")
    for axes, (key, title) in zip(
        figure.subplots(1, len(shown), sharey=True), shown.items(), strict=True
    ):
        for place, one in enumerate(reversed(means)):
            mean, low, high = one[key]
            axes.plot([low, high], [place, place], color=drawing.RUNS[0], linewidth=2)
            axes.plot(mean, place, "o", color=drawing.RUNS[0], markersize=5)
        axes.set_title(title)
        axes.grid(axis="x")
        axes.set_yticks(range(len(means)), [one["name"] for one in reversed(means)])
    return figure


def arms(study: str) -> Iterator[Arm]:
    """Yield the models of a study."""
    if study == "tune":
        for method, settings in TRIED.items():
            for setting in range(len(settings)):
                yield Arm(method, setting=setting)
        return
    if study == "values":
        yield from (Arm(method, setting=best(method)) for method in TRIED)
        yield Arm("ddpm", told=False, setting=best("ddpm"))
        yield Arm("flow", told=False, setting=best("flow"))
    elif study == "ends":
        for length, known in itertools.product(LENGTHS, (True, False)):
            yield Arm("ddpm", known, length, setting=best("ddpm"))
    elif study == "actions":
        yield Arm("ddpm", actions=True, setting=best("ddpm"))
    else:
        yield from (Arm("ddpm"), Arm("flow"), Arm("infonce"), Arm("ddpm", told=False))


def best(method: str) -> int:
    """Return the setting with the highest correlation on validation data."""
    path = RESULTS / "dvf_tune.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    own = [row for row in rows if row["method"] == method]
    if len(own) < len(TRIED[method]):
        raise errors.InputError(
            f"{path} does not compare all settings of {method} yet: run the study tune"
        )
    return max(own, key=lambda row: row["value"]["correlation"])["setting"]


def one(flags: argparse.Namespace, arm: Arm, seed: int) -> dict[str, Any]:
    """Train a model and measure it; the run is removed."""
    workdir = flags.workdir / f"{flags.study}-{'-'.join(map(str, arm))}-{seed}"
    config = configured(flags.study, arm, seed, flags.steps)
    train(Trainer(config), workdir)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["time"]["seconds"] for line in lines if "time" in line]
    model, _ = dvf.load.read(workdir)
    found: dict[str, Any] = {"seconds": seconds[-1]}
    if flags.study == "grid":
        found |= on_grid(config, model)
    else:
        found |= in_maze(flags.study, arm, model)
    shutil.rmtree(workdir)
    return found


def configured(study: str, arm: Arm, seed: int, steps: str) -> ConfigDict:
    """Return the config of a run."""
    if study == "grid":
        return of_grid(arm, seed, int(steps))
    data = DATA
    if arm.length != 200:
        data = f"{DATA}_{arm.length}"
        episodes = str(STATES // arm.length)
        what = ["--env", DATA, "--name", data, "--no_truth", "--episodes", episodes]
        dvf.prepare.main([*what, "--length", str(arm.length)])
    argument = f"data={data},method={arm.method},offset={arm.told}"
    argument += ",actions=2" if arm.actions else ""
    overrides = TRIED[arm.method][arm.setting] | {"steps": steps, "seed": str(seed)}
    overrides |= {"evaluations": "None", "checkpoint_every": steps}
    return load_config(f"configs/dvf_pointmaze.py:{argument}", overrides)


def in_maze(study: str, arm: Arm, model: Any) -> dict[str, Any]:
    """Return the numbers of the evaluations, on the data of the study."""
    split = "validation" if study == "tune" else "test"
    discount = 0.97
    reward = dvf.parts.discs(DATA, 20, seed=0)
    specs = dvf.parts.evaluations(
        DATA, arm.method, discount, reward, split, actions=arm.actions
    )
    if study != "values":
        specs = {name: specs[name] for name in ("value", "control")}
    told = sampled(model)
    found: dict[str, Any] = {}
    for name, spec in specs.items():
        numbers = dict(build(spec)(told, None))
        found[name] = {k: v for k, v in numbers.items() if k not in _UNUSED}
    if study == "values" and arm.method == "ddpm" and arm.told:
        found["ddim"] = by_steps(model, specs["value"])
        found["labels"] = by_labels(told, specs)
    return found


_UNUSED = ("machine", "protocol", "chosen")


def by_steps(model: Any, spec: dict) -> list[dict[str, Any]]:
    """Return error and cost of values at several numbers of steps of sampling."""
    found = []
    for steps in DDIM:
        faster = sampled(model, steps)
        evaluation: ValueAccuracy = build(spec)
        evaluation(faster, None)  # compiles
        begun = time.perf_counter()
        numbers = evaluation(faster, None)
        took = time.perf_counter() - begun
        values = numbers["protocol"]["queries"]
        kept = {name: numbers[name] for name in ("correlation", "rmse", "bias")}
        found.append({"steps": steps, "seconds_a_value": took / values, **kept})
    return found


def by_labels(model: Model, specs: dict) -> list[dict[str, Any]]:
    """Return what is lost if rewards are learnt from few labelled states."""
    reward = build(specs["value"]["reward"])
    train_split = ArrayRecord(DATA, "train")
    rng = np.random.default_rng(0)
    found = []
    for count in LABELS:
        rows = [train_split[int(i)]["states"] for i in rng.integers(640, size=count)]
        states = np.stack([own[rng.integers(len(own))] for own in rows])
        fitted = learnt(states, reward(states), reward.names)
        numbers: dict[str, Any] = {"labels": count}
        for name, key in ("value", "correlation"), ("control", "share"):
            evaluation = build(specs[name])
            queries = read(evaluation.truth)
            told = evaluation.estimate(
                model, queries.state, queries.policy, None, fitted
            )
            numbers[key] = evaluation.measured(queries, told)[key]
        found.append(numbers)
    return found


def of_grid(arm: Arm, seed: int, steps: int) -> ConfigDict:
    """Return the config of a run on the walk on 9 x 9 cells."""
    # What the data do not decide is as on PointMaze.
    argument = f"method={arm.method},offset={arm.told}"
    config = load_config(f"configs/dvf_pointmaze.py:{argument}", {"steps": str(steps)})
    cells = np.arange(9)
    with config.unlocked():
        config.seed, config.checkpoint_every = seed, steps
        config.source = {
            "target": "dvf.tabular:grid_walks",
            "side": 9,
            "episodes": 640,
            "steps": 200,
            "seed": seed,
        }
        config.views.targets = ()
        config.views.discount = 0.9
        config.model.policies = None
        config.model.mean = (float(cells.mean()),) * 2
        config.model.std = (float(cells.std()),) * 2
        config.evaluations = None
    return config


def on_grid(config: ConfigDict, model: Any, samples: int = 5000) -> dict[str, Any]:
    """Return the total variation between futures and the exact occupancy, 81 starts."""
    exact = tabular.occupancy(tabular.grid(9), 0.9)
    places = np.array([divmod(cell, 9) for cell in range(81)], np.float32)
    candidates = None
    if "process" not in config.model:
        source = build(config.source)
        candidates = build(
            {"target": "dvf.value:later_states", "source": source, "discount": 0.9}
            | {"count": samples}
        )
        samples = 64  # offsets: all candidates are weighed at each
    estimate = FromFutures(0.9, samples=samples, rows=9, candidates=candidates)
    told = sampled(model)
    drawn = np.zeros((81, 81))
    row = 0
    for states, weights in estimate.futures(told, places, None, None):
        cells = np.clip(np.round(states), 0, 8).astype(int) @ np.array([9, 1])
        for cell, weight in zip(cells, weights, strict=True):
            np.add.at(drawn[row], cell, weight)
            row += 1
    distances = abs(drawn - exact).sum(1) / 2
    return {"distance": float(distances.mean()), "farthest": float(distances.max())}


def summary(study: str, rows: list[dict]) -> dict[str, Any]:
    """Return means with their 95 % intervals over seeds."""
    names = dict.fromkeys((row["name"], row["setting"]) for row in rows)
    means = []
    for name, setting in names:
        own = [r for r in rows if (r["name"], r["setting"]) == (name, setting)]
        found: dict[str, Any] = {"name": name, "setting": setting, "seeds": len(own)}
        for group, key in _MEANS:
            groups = [r.get(group, {}) if group else r for r in own]
            values = [numbers[key] for numbers in groups if key in numbers]
            if values:
                found[f"{group} {key}".strip()] = student(values)
        means.append(found)
    return {
        "command": f"python -m benchmarks.dvf {study} --workdir DIR",
        "settings": TRIED,
        "means_are": "mean, low and high of 95 % over seeds (Student)",
        "means": means,
    }


_MEANS = (
    *(("value", key) for key in ("correlation", "rmse", "bias", "standard_error")),
    *(("control", key) for key in ("share", "single", "best_found")),
    *(("occupancy", key) for key in ("distance", "as_many")),
    *(("", key) for key in ("distance", "farthest", "seconds")),
)


if __name__ == "__main__":
    errors.run(main)
