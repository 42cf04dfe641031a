"""Which score of reliability finds wrong answers, and which foreign images?

    python -m benchmarks.reliability clean --workdir runs/reliability
    python -m benchmarks.reliability noisy --workdir runs/reliability
    python -m benchmarks.reliability frozen --workdir runs/reliability
    python -m benchmarks.reliability patterns --workdir runs/reliability
    python -m benchmarks.reliability speed --workdir runs/reliability

On Fashion-MNIST, 5 seeds each: a classifier of eight classes on 4,000 images, with
2,000 others to calibrate it (`clean`), the same with 20 % wrong labels among both
(`noisy`), and a linear probe on a frozen poly-view encoder (`frozen`). `patterns`
trains 12 classifiers of few units in the last layer, of other decays and label noise,
with 3 seeds each, and compares their numbers of distinct patterns, and how often
classes share one, with their test error (Ji et al. 2022). `speed` trains nothing: it
scores random patterns of 4,096 units, three times in a process of its own, by the
density at one bandwidth, and by density and error rate at all that an evaluation tries.
A finished run is a row of the JSON and is not repeated: run again to resume.
"""

import argparse
import itertools
import json
import multiprocessing
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from scipy import stats

from benchmarks import student
from benchmarks.studies import begin
from polyview import devices, errors, files, hosts
from polyview.config.file import evaluations_of, load_config
from polyview.config.spec import build
from polyview.evaluation.activation_patterns import (
    Patterns,
    estimates,
    log_densities,
    packed,
)
from polyview.evaluation.reliability import BANDWIDTHS
from polyview.runs.load import frozen_model
from polyview.training.train import train
from polyview.training.trainer import Trainer

matplotlib.use("Agg")

RESULTS = Path(__file__).parent / "results"
CLASSIFIER = "configs/classifier_fashion_mnist.py"
FOREIGN = "noise+inverted+digits"
STUDIES = {
    "clean": (f"{CLASSIFIER}:classes=0-7", f"ood={FOREIGN}+classes"),
    "noisy": (f"{CLASSIFIER}:classes=0-7,label_noise=0.2", f"ood={FOREIGN}+classes"),
    "frozen": (
        "configs/polyview_fashion_mnist.py:views=4",
        f"ood={FOREIGN},train=train[:6000]",
    ),
}
FAR = ("noise", "inverted", "digits")
VARIED = [
    {"width": width, "weight_decay": decay, "label_noise": noise}
    for width, decay, noise in itertools.product((8, 16, 32), (0.0, 0.1), (0.0, 0.2))
]

SIZES = {"units": 4096, "rows": 50_000, "queries": 10_000}
TIMED = ("density", "density and error rate, 16 bandwidths")
_BLOCK = 1000  # rows of patterns drawn at once, so that drawing takes little memory


def main() -> None:
    """Train and measure the runs that are missing; write the JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=[*STUDIES, "patterns", "speed"])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--output", type=Path, help="JSON (default: in results/)")
    flags = parser.parse_args()
    output = flags.output or RESULTS / f"reliability_{flags.study}.json"
    begin(flags.workdir)
    rows = json.loads(output.read_text())["rows"] if output.exists() else []
    for key, config in wanted(flags.study, flags.seeds):
        if any(row["run"] == key for row in rows):
            continue
        if flags.study == "speed":
            row = {"run": key} | timed(**key, **SIZES)
        else:
            workdir = flags.workdir / f"{flags.study}-{len(rows)}"
            train(Trainer(config), workdir)
            measure = counted if flags.study == "patterns" else measured
            row = {"run": key} | measure(flags.study, config, workdir)
            shutil.rmtree(workdir)
        rows.append(row | {"machine": hosts.machine()})
        write(output, flags.study, rows)
    print(json.dumps(summary(flags.study, rows), indent=1))


def wanted(study: str, seeds: list[int] | None) -> Iterator[tuple[dict, Any]]:
    """Yield (what makes a run different, its config, None where nothing is trained)."""
    if study == "speed":
        for seed, what in itertools.product(seeds or range(3), TIMED):
            yield {"what": what, "seed": seed}, None
        return
    if study == "patterns":
        for seed, how in itertools.product(seeds or range(3), VARIED):
            argument = ",".join(f"{key}={value}" for key, value in how.items())
            yield how | {"seed": seed}, configured(f"{CLASSIFIER}:{argument}", seed)
        return
    for seed in seeds or range(5):
        yield {"seed": seed}, configured(STUDIES[study][0], seed)


def configured(name: str, seed: int) -> Any:
    """Return a config that keeps its last step alone."""
    config = load_config(name)
    config.seed = seed
    config.checkpoint_every = config.steps
    return config


def evaluation_of(config: Any, argument: str) -> Any:
    """Return the evaluation of `configs/evaluations/reliability.py` for a run."""
    name = f"configs/evaluations/reliability.py:{argument}"
    return build(evaluations_of(name, config.to_dict())["reliability"])


def measured(study: str, config: Any, workdir: Path) -> dict[str, Any]:
    """Return the accuracy of a run, its patterns, and what each score reaches."""
    evaluation = evaluation_of(config, f"{STUDIES[study][1]},resamples=100")
    mesh = devices.make_mesh()
    with jax.set_mesh(mesh):
        found = evaluation(frozen_model(str(workdir)), mesh)
    return {
        "top1": found["classifier"]["top1"],
        "patterns": found["patterns"],
        "scores": {
            score: {
                "wrong": own["wrong"],
                "foreign": {n: one["auroc"] for n, one in own["foreign"].items()},
                "far": float(np.mean([own["foreign"][n]["auroc"] for n in FAR])),
            }
            for score, own in found["scores"].items()
        },
    }


def counted(study: str, config: Any, workdir: Path) -> dict[str, Any]:
    """Count patterns of test rows, rows whose pattern several classes have, errors."""
    evaluation = evaluation_of(config, "ood=")
    mesh = devices.make_mesh()
    with jax.set_mesh(mesh):
        model = frozen_model(str(workdir))
        layer, _ = evaluation.pattern_layer(model, mesh)
        read = evaluation.read(model, evaluation.test, "test", layer, mesh)
    labels = read.targets["label"]
    _, place = np.unique(packed(read.active), axis=0, return_inverse=True)
    table = np.zeros((place.max() + 1, labels.max() + 1), int)
    np.add.at(table, (place.ravel(), labels), 1)
    several = (table > 0).sum(axis=1) > 1
    return {
        "test_error": float((read.logits.argmax(axis=1) != labels).mean()),
        "distinct": len(table),
        "shared": float(table[several].sum() / len(labels)),
        "rows": len(labels),
    }


def timed(what: str, seed: int, units: int, rows: int, queries: int) -> dict[str, Any]:
    """Return what patterns cost, measured in a new process."""
    # A thread of JAX would not survive a fork, and memory here would count.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(_timed, what, seed, units, rows, queries).result()


def _timed(what: str, seed: int, units: int, rows: int, queries: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    # Ten classes, in each of which a fifth of the bits is noise: distances vary.
    means = rng.integers(0, 2, (10, units)).astype(bool)

    def drawn(count: int) -> np.ndarray:
        active = np.empty((count, units), bool)
        for start in range(0, count, _BLOCK):
            block = active[start : start + _BLOCK]
            block[:] = means[rng.integers(0, 10, len(block))]
            block ^= rng.random(block.shape, np.float32) < 0.2
        return active

    fitted_to, asked, right = drawn(rows), drawn(queries), rng.random(rows) < 0.9
    before = _cost()
    patterns = Patterns.fit(fitted_to, right, BANDWIDTHS[0])
    fitted = _cost()
    if what == "density":
        found = log_densities(patterns, asked, [units**0.5])
    else:
        usable = [one for one in BANDWIDTHS if one <= units]
        found = np.stack(estimates(patterns, asked, usable))
    after = _cost()
    assert np.isfinite(found).all()
    return {
        "sizes": {"units": units, "rows": rows, "queries": queries},
        "fit": {key: fitted[key] - before[key] for key in ("wall_s", "cpu_s")},
        "query": {key: after[key] - fitted[key] for key in ("wall_s", "cpu_s")},
        "peak_mib": after["peak_mib"],
        "peak_mib_before": before["peak_mib"],
    }


def _cost() -> dict[str, float]:
    """Return the seconds so far, and the largest memory of this process, in MiB."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "wall_s": time.perf_counter(),
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_mib": used.ru_maxrss / 1024,  # Linux counts KiB
    }


def cost_summary(rows: list[dict]) -> dict[str, Any]:
    """Return medians over repeats, and the largest memory of any."""
    table = {}
    for what in TIMED:
        own = [row for row in rows if row["run"]["what"] == what]
        if not own:
            continue
        table[what] = {
            f"{part}_{unit}": float(np.median([row[part][unit] for row in own]))
            for part in ("fit", "query")
            for unit in ("wall_s", "cpu_s")
        } | {"peak_mib": max(row["peak_mib"] for row in own), "repeats": len(own)}
    return table


def summary(study: str, rows: list[dict]) -> dict[str, Any]:
    """Return means over seeds, with their intervals of 95 %; medians of costs."""
    if study == "speed":
        return cost_summary(rows)
    if study == "patterns":
        return {
            f"spearman of test error and {what}": correlation(rows, what)
            for what in ("distinct", "shared")
        }
    table: dict[str, Any] = {"top1": interval([row["top1"] for row in rows])}
    for score in rows[0]["scores"]:
        each = [row["scores"][score] for row in rows if score in row["scores"]]
        table[score] = {
            "wrong": interval([one["wrong"]["auroc"] for one in each]),
            "aucea": interval([one["wrong"]["aucea"] for one in each]),
            "far": interval([one["far"] for one in each]),
            **{
                name: interval([one["foreign"][name] for one in each])
                for name in each[0]["foreign"]
            },
            "accuracy_after_discarding": {
                share: interval(
                    [one["wrong"]["accuracy_after_discarding"][share] for one in each]
                )
                for share in each[0]["wrong"]["accuracy_after_discarding"]
            },
        }
    table["differences"] = {
        "far, density - maximum softmax": difference(
            rows, "density", "maximum softmax", lambda one: one["far"]
        ),
        "wrong, error rate - density": difference(
            rows, "error rate", "density", lambda one: one["wrong"]["auroc"]
        ),
        "wrong, error rate - maximum softmax": difference(
            rows, "error rate", "maximum softmax", lambda one: one["wrong"]["auroc"]
        ),
    }
    if "classes" in rows[0]["scores"]["density"]["foreign"]:
        table["differences"]["classes, density - nearest neighbours"] = difference(
            rows,
            "density",
            "nearest neighbours",
            lambda one: one["foreign"]["classes"],
        )
    return table


def difference(
    rows: list[dict], score: str, other: str, of: Callable[[dict], float]
) -> dict[str, Any]:
    """Return the interval of a difference of two scores, paired by seed."""
    return interval([of(r["scores"][score]) - of(r["scores"][other]) for r in rows])


def interval(values: list[float]) -> dict[str, Any]:
    """Return the mean and Student's interval of 95 % over seeds."""
    mean, low, high = student(values)
    return {"mean": mean, "low": low, "high": high, "values": values}


def correlation(rows: list[dict], what: str) -> dict[str, Any]:
    """Return Spearman's correlation over runs, with a bootstrap over the models."""
    keys = [
        json.dumps({k: v for k, v in r["run"].items() if k != "seed"}) for r in rows
    ]
    models = sorted(set(keys))
    found = []
    rng = np.random.default_rng(0)
    for drawn in [models, *(rng.choice(models, len(models)) for _ in range(1000))]:
        some = [r for m in drawn for r, key in zip(rows, keys, strict=True) if key == m]
        pairs = [(row["test_error"], row[what]) for row in some]
        found.append(float(stats.spearmanr(*zip(*pairs, strict=True))[0]))
    low, high = np.nanpercentile(found[1:], [2.5, 97.5])
    return {"value": found[0], "low": float(low), "high": float(high)}


def write(output: Path, study: str, rows: list[dict]) -> None:
    """Write all rows so far and their summary."""
    content = {
        "command": f"python -m benchmarks.reliability {study} --workdir DIR",
        "configs": SIZES if study == "speed" else STUDIES.get(study, CLASSIFIER),
        "summary": summary(study, rows),
        "rows": rows,
    }
    files.write_whole(output, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    errors.run(main)
