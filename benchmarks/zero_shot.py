"""Which encoders let unseen classes be told by their parts? (Sylvain et al. 2020)

    python -m benchmarks.zero_shot parts --workdir runs/zero_shot
    python -m benchmarks.zero_shot han --workdir runs/zero_shot

Each run trains one encoder on seen classes, freezes it and scores unseen ones; `parts`
on generated images, `han` on characters. The weight of a local loss is chosen on
validation classes with seed 0; that seed's chosen run is among the seeds reported, by
numbers that do not use these classes. The references (random, pixels, ...) are measured
once, beside the first run of seed 0. A finished run is a row of the JSON and is not
repeated: run the command again to resume, or on each core once.
"""

import argparse
import functools
import itertools
import json
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from scipy import stats

from benchmarks import student
from benchmarks.studies import Row, begin, measure_missing
from polyview import errors
from polyview.config.file import load_config
from polyview.config.text import text_digest, to_json
from polyview.errors import InputError
from polyview.runs.evaluating import Asked, evaluate
from polyview.training.train import train
from polyview.training.trainer import Trainer

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402 (select the backend first)

RESULTS = Path(__file__).parent / "results"
WEIGHTS = (0.1, 1.0, 10.0)  # of a local loss; chosen on validation classes
ENCODERS = ("ae", "vae", "aae", "dim", "cmdim", "amdim", "supervised")
OF_HAN = ("ae", "dim", "cmdim", "supcon", "supervised", "attributes")
LOCAL_OF_HAN = ("dim", "cmdim", "supcon", "supervised")  # with local attributes too
REFERENCES = ("random", "pixels", "pooled", "hog", "patch_words")
DIFFERENCES = {  # what the paper claims to be better, and than what
    "parts": (("cmdim", "dim"), ("dim", "ae"), ("dim + local attributes", "dim")),
    "han": (
        *(("supervised", "hog"), ("cmdim", "hog"), ("cmdim", "dim"), ("dim", "ae")),
        *((f"{method} + local attributes", method) for method in LOCAL_OF_HAN),
    ),
}


class Arm(NamedTuple):
    """An encoder: its method, its local loss and the weight of that."""

    method: str
    local: str
    weight: float

    @property
    def name(self) -> str:
        """Method and local loss."""
        return self.method + (f" + local {self.local}" if self.local != "none" else "")


def main() -> None:
    """Train the runs that are missing; write the JSON after each, and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=("parts", "han"))
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=dict.fromkeys((*ENCODERS, "local", *OF_HAN)),
        metavar="METHOD",
        help="default: all of the study",
    )
    parser.add_argument("--steps", type=int, help="of each run")
    parser.add_argument("--output", type=Path, help="JSON (default: in results/)")
    flags = parser.parse_args()
    pairs = list(arms(flags.study))
    if flags.methods:
        if absent := set(flags.methods).difference(method for method, _ in pairs):
            parser.error(f"{flags.study} does not train {', '.join(sorted(absent))}")
        pairs = [(method, local) for method, local in pairs if method in flags.methods]
    output = flags.output or RESULTS / f"zero_shot_{flags.study}.json"
    seeds = flags.seeds or range(5 if flags.study == "parts" else 3)
    begin(flags.workdir)
    rows = measure_missing(
        lambda rows: runs(flags, pairs, seeds, rows, output),
        output,
        flags.workdir,
        lambda rows: summary(flags.study, rows),
    )
    if kept_rows(rows):
        plot(rows).savefig(output.with_suffix(".png"), dpi=150)
    if 0 not in seeds:
        check_chosen(rows, pairs)


def runs(
    flags: argparse.Namespace,
    pairs: Collection[tuple[str, str]],
    seeds: Collection[int],
    rows: list[dict],
    output: Path,
) -> Iterator[Row]:
    """Yield the runs of a study, and the references that the first one measured."""
    check_rows(rows, output, flags.study, seeds, flags.steps)
    for seed, (method, local) in itertools.product(seeds, pairs):
        first = next(arms(flags.study)) == (method, local) and seed == 0
        for arm in weighted(rows, method, local, seed):
            digest = digest_of(flags.study, arm, seed, flags.steps)
            about = {"name": arm.name, **arm._asdict(), "seed": seed, "config": digest}
            config = configured(flags.study, arm, seed, flags.steps)
            run = flags.workdir / f"{flags.study}-{digest}"
            yield about, functools.partial(trained, config, run, references=first)
            if first and any(about.items() <= row.items() for row in rows):
                for name in REFERENCES:
                    of = {"name": name, "seed": seed}
                    yield of, functools.partial(measured, run, name)


def check_rows(
    rows: list[dict],
    output: Path,
    study: str,
    seeds: Collection[int],
    steps: int | None,
) -> None:
    """Raise InputError if a row was trained by a config that is not of this study."""
    seeds = {*seeds, *(row["seed"] for row in rows)}
    own = {
        digest_of(study, arm, seed, steps)
        for method, local in arms(study)
        for arm in weights(method, local)
        for seed in seeds
    }
    foreign = [row for row in rows if "config" in row and row["config"] not in own]
    if foreign:
        raise InputError(
            f"{output}: {len(foreign)} of its rows (first: {foreign[0]['name']}, seed "
            f"{foreign[0]['seed']}) were trained with other --steps or another config\n"
            "than are asked for now: move the file away or give another --output"
        )


def check_chosen(rows: list[dict], pairs: list[tuple[str, str]]) -> None:
    """Raise InputError if the weight of a local loss is not chosen yet."""
    waiting = [
        Arm(method, local, 1.0).name
        for method, local in pairs
        if len(weights(method, local)) > 1 and chosen(rows, method, local) is None
    ]
    if waiting:
        raise InputError(
            f"what trains with a local loss ({waiting[0]}, {len(waiting)} in all) "
            "needs seed 0 first,\nwhich chooses its weight: add 0 to --seeds"
        )


def arms(study: str) -> Iterator[tuple[str, str]]:
    """Yield the methods of a study with each local loss."""
    if study == "parts":
        yield from itertools.product(ENCODERS, ("none", "labels", "attributes"))
        yield from (("local", "labels"), ("local", "attributes"))
        return
    yield from ((method, "none") for method in OF_HAN)
    yield from ((method, "attributes") for method in LOCAL_OF_HAN)


def weights(method: str, local: str) -> list[Arm]:
    """Return the arms of a method and its local loss: one for each weight to try."""
    alone = local == "none" or method == "local"
    return [Arm(method, local, weight) for weight in ((1.0,) if alone else WEIGHTS)]


def weighted(rows: list[dict], method: str, local: str, seed: int) -> Iterator[Arm]:
    """Yield the arms to train: with seed 0 each weight, then the one chosen, if any."""
    tried = weights(method, local)
    if seed == 0 or len(tried) == 1:
        yield from tried
    elif (weight := chosen(rows, method, local)) is not None:
        yield Arm(method, local, weight)


def chosen(rows: list[dict], method: str, local: str) -> float | None:
    """Return the weight of the best seed-0 run on validation classes.

    None before all weights have been tried.
    """
    tried = [
        row
        for row in rows
        if (row.get("method"), row.get("local"), row["seed"]) == (method, local, 0)
    ]
    if {row["weight"] for row in tried} != set(WEIGHTS):
        return None
    return max(tried, key=lambda row: row["validation"])["weight"]


@functools.cache
def digest_of(study: str, arm: Arm, seed: int, steps: int | None) -> str:
    """Return the digest of a run's config."""
    return text_digest(to_json(configured(study, arm, seed, steps)))[:16]


def configured(study: str, arm: Arm, seed: int, steps: int | None) -> ConfigDict:
    """Return the config of a run."""
    config = ConfigDict(loaded(study, arm, steps))
    config.seed = seed
    config.checkpoint_every = config.steps
    for spec in config.evaluations.values():
        spec.seed = 0  # the same test images for all
    return config


@functools.cache
def loaded(study: str, arm: Arm, steps: int | None) -> ConfigDict:
    """Return the config that the seeds of an arm share; not to be changed."""
    argument = f"method={arm.method},local={arm.local},weight={arm.weight}"
    if steps is not None:
        argument += f",steps={steps}"
    return load_config(f"configs/zero_shot_{study}.py:{argument}")


def trained(config: ConfigDict, workdir: Path, references: bool) -> dict:
    """Train and evaluate; return what was measured.

    references: evaluate these too, beside the run.
    """
    train(Trainer(config), workdir)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["time"]["seconds"] for line in lines if "time" in line]
    own = workdir / "eval" / f"{config.steps}-zero_shot_attributes.json"
    if references or not own.exists():
        evaluate(workdir, None, Asked(references=references))
    shutil.rmtree(workdir / "checkpoints")
    return measured(workdir, str(config.steps)) | {"seconds": seconds[-1]}


def measured(workdir: Path, subject: str) -> dict:
    """Return the accuracies and the TRE ratios of a model."""
    folder = workdir / "eval"
    scores = json.loads((folder / f"{subject}-zero_shot_attributes.json").read_text())
    kept = {
        "validation": max(scores["ridge"]["validation"]["class_averaged_top1"]),
        "columns": scores["columns"],
        "slots": {
            split: {slot: one["class_averaged_top1"] for slot, one in slots.items()}
            for split, slots in scores.get("slots", {}).items()
        },
    }
    for name in ("ridge", "softmax"):
        own = scores[name]
        kept[name] = {
            split: one["class_averaged_top1"] for split, one in own["unseen"].items()
        }
        kept[f"{name}_generalised"] = {
            split: {key: one[key] for key in ("u", "s", "H")}
            for split, one in own.get("generalised", {}).items()
        }
    ratios = json.loads((folder / f"{subject}-compositionality.json").read_text())
    kept["tre_ratio"] = {
        split: [one[key] for key in ("ratio", "low", "high")]
        for split, one in ratios["splits"].items()
    }
    path = folder / f"{subject}-evidence.json"
    if path.exists():
        kept["evidence"] = json.loads(path.read_text())["columns"]
    return kept


def kept_rows(rows: list[dict]) -> dict[str, list[dict]]:
    """Return the rows of each encoder at its chosen weight, by name."""
    by_name: dict[str, list[dict]] = {}
    for row in rows:
        local = row.get("local", "none")
        if local != "none" and row["method"] != "local":
            if row["weight"] != chosen(rows, row["method"], local):
                continue  # or none is chosen yet
        by_name.setdefault(row["name"], []).append(row)
    return by_name


def interval(values: list[float]) -> list[float | None]:
    """Return the mean and its standard error over seeds."""
    error = float(np.std(values, ddof=1) / len(values) ** 0.5) if values[1:] else None
    return [float(np.mean(values)), error]


def differences(by_name: dict[str, list[dict]], study: str) -> dict[str, dict]:
    """Return {"better - base": {"seeds": n, split: ...}} of accuracy, where measured.

    Each split: the mean over the seeds that both have, and the ends of its 95 % Student
    interval, None of one seed. A reference is one value, the same for all seeds.
    """
    table: dict[str, dict] = {}
    for better, base in DIFFERENCES[study]:
        one, other = (
            {row["seed"]: row["ridge"] for row in by_name.get(name, [])}
            for name in (better, base)
        )
        if base in REFERENCES and other:
            other = dict.fromkeys(one, next(iter(other.values())))
        shared = sorted(one.keys() & other.keys())
        if shared:
            table[f"{better} - {base}"] = {"seeds": len(shared)} | {
                split: student(
                    [one[seed][split] - other[seed][split] for seed in shared]
                )
                for split in one[shared[0]]
            }
    return table


def summary(study: str, rows: list[dict]) -> dict:
    """Return means, and the paper's claims in numbers."""
    means = {}
    by_name = kept_rows(rows)
    for name, own in by_name.items():
        splits = own[0]["ridge"]
        means[name] = {
            "seeds": len(own),
            "accuracy": {s: interval([r["ridge"][s] for r in own]) for s in splits},
            "tre_ratio": {
                s: interval([r["tre_ratio"][s][0] for r in own]) for s in splits
            },
        }
    return {
        "command": f"python -m benchmarks.zero_shot {study} --workdir DIR",
        "weights_tried": WEIGHTS,
        "classifier": "ridge to attributes, class-averaged accuracy of unseen classes",
        "means": means,
        "differences_are": "paired over seeds: mean, low and high of 95 % (Student)",
        "differences": differences(by_name, study),
        "spearman": rank_correlation(means),
    }


def rank_correlation(means: dict) -> dict[str, float]:
    """Return Spearman's correlation of TRE ratio and accuracy over learnt encoders.

    Of equal dimensions only: random among them, the hand-made references not.
    """
    names = [n for n in means if n == "random" or n not in REFERENCES]
    if len(names) < 3:
        return {}
    splits = means[names[0]]["accuracy"]
    pairs = {
        split: [
            (means[n]["tre_ratio"][split][0], means[n]["accuracy"][split][0])
            for n in names
        ]
        for split in splits
    }
    return {
        s: float(stats.spearmanr(*zip(*p, strict=True))[0]) for s, p in pairs.items()
    }


def plot(rows: list[dict]) -> Figure:
    """Plot accuracy of unseen classes against the TRE ratio, a panel a test split."""
    by_name = kept_rows(rows)
    splits = list(next(iter(by_name.values()))[0]["ridge"])
    figure, panels = pyplot.subplots(
        1,
        len(splits),
        figsize=(2.2 + 4.2 * len(splits), 4.2),
        squeeze=False,
        layout="constrained",
    )
    learnt = [name.partition(" +")[0] for name in by_name if name not in REFERENCES]
    colors = dict(
        zip(dict.fromkeys(learnt), matplotlib.color_sequences["tab10"], strict=False)
    )
    marks = {"none": "o", "labels": "s", "attributes": "^"}
    own_marks = dict(zip(REFERENCES, "xP+*D", strict=True))
    for axes, split in zip(panels[0], splits, strict=True):
        for name, own in by_name.items():
            local = own[0].get("local", "none")
            method = name.partition(" +")[0]
            x = [row["tre_ratio"][split][0] for row in own]
            y = [row["ridge"][split] for row in own]
            alone = local == "none" or (method, local) == ("local", "labels")
            axes.errorbar(
                np.mean(x),
                np.mean(y),
                np.std(y),
                np.std(x),
                own_marks.get(name, marks[local]),
                color=colors.get(method, "#616e7c"),
                label=name.replace("_", " ").partition(" +")[0] if alone else None,
            )
        axes.set_title(f"unseen classes, {split}")
        axes.set_xlabel("TRE ratio of unseen classes (1: no composition)")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("accuracy, class-averaged")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    for local, mark in marks.items():
        handles.append(pyplot.Line2D([], [], marker=mark, ls="", color="#616e7c"))
        labels.append({"none": "no local loss"}.get(local, f"with local {local}"))
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    errors.run(main)
