"""Do standard scores of reliability agree with those of pytorch-ood?

    python -m benchmarks.reliability_peer --run runs/classifier \\
        --peer_python /path/to/python --output reliability_peer.json

The peer's Python has torch, scikit-learn and pytorch-ood 0.4. Both score the same
features and logits of a run of `configs/classifier_fashion_mnist.py`: training rows
fit, test rows are scored. pytorch-ood's scores are those of outliers, so their sign is
changed. Its Mahalanobis score is half of the squared distance, by a covariance that is
the sum over rows, not their mean, with 1e-6 added in these units: smaller by twice the
number of rows.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.stats import spearmanr

from polyview import devices, errors, files, hosts
from polyview.evaluation import confidence
from polyview.runs.evaluating import Asked, built
from polyview.runs.load import frozen_model
from polyview.runs.workdir import read_config

RESULTS = Path(__file__).parent / "results"
NEIGHBOURS = 50
PEER = f"""
import sys
import numpy as np
import torch
from pytorch_ood.detector import KNN, EnergyBased, Entropy, Mahalanobis, MaxSoftmax
data = np.load(sys.argv[1])
h, labels, query, logits = (
    torch.from_numpy(data[name]) for name in ("train", "labels", "test", "logits")
)
scores = {{
    "maximum softmax": MaxSoftmax.score(logits),
    "entropy": Entropy.score(logits),
    "energy": EnergyBased.score(logits),
    "nearest neighbours": KNN(None, k={NEIGHBOURS}).fit_features(h, labels)
    .predict_features(query),
    "Mahalanobis": Mahalanobis(None).fit_features(h, labels).predict_features(query),
}}
np.savez(sys.argv[2], **{{name: -score.numpy() for name, score in scores.items()}})
"""


def main() -> None:
    """Score a run in both libraries; print the comparison and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--peer_python", required=True, help="with pytorch-ood")
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "reliability_peer.json"
    )
    flags = parser.parse_args()
    data = features(flags.run)
    own = scored(data)
    with tempfile.TemporaryDirectory() as folder:
        given, returned = Path(folder, "given.npz"), Path(folder, "returned.npz")
        np.savez(given, **data)
        command = [flags.peer_python, "-c", PEER, str(given), str(returned)]
        subprocess.run(command, check=True)
        peer = dict(np.load(returned))
    peer["Mahalanobis"] = peer["Mahalanobis"] * 2 * len(data["train"])  # see above
    rows = {name: compared(own[name], peer[name]) for name in own}
    for name, row in rows.items():
        print(f"{name:20s} {row}")
    content = {
        "command": "python -m benchmarks.reliability_peer --run RUN --peer_python "
        "PYTHON",
        "peer": "pytorch-ood 0.4.0",
        "rows": {"train": len(data["train"]), "test": len(data["test"])},
        "agreement": rows,
        "machine": hosts.machine(),
    }
    files.write_whole(flags.output, (json.dumps(content, indent=1) + "\n").encode())


def features(run: Path) -> dict[str, np.ndarray]:
    """Return h of training rows with labels, and h and logits of test rows."""
    asked = Asked(file="configs/evaluations/reliability.py:ood=")
    evaluation: Any = built(run, read_config(run), asked)["reliability"]
    mesh = devices.make_mesh()
    with jax.set_mesh(mesh):
        model = frozen_model(str(run))
        train = evaluation.read(model, evaluation.train, "train", None, mesh)
        test = evaluation.read(model, evaluation.test, "test", None, mesh)
    return {
        "train": train.h,
        "labels": train.targets["label"].astype(np.int64),
        "test": test.h,
        "logits": test.logits,
    }


def scored(data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the scores of test rows by `polyview.evaluation.confidence`."""
    classes = int(data["labels"].max()) + 1
    fitted = confidence.Mahalanobis.fit(data["train"], data["labels"], classes)
    return {
        "maximum softmax": confidence.maximum_softmax(data["logits"]),
        "entropy": confidence.negative_entropy(data["logits"]),
        "energy": confidence.negative_energy(data["logits"]),
        "nearest neighbours": confidence.kth_neighbour(
            data["train"], data["test"], k=NEIGHBOURS
        ),
        "Mahalanobis": fitted.score(data["test"]),
    }


def compared(own: np.ndarray, peer: np.ndarray) -> dict[str, float]:
    """Return the largest difference relative to the spread, ratio, rank correlation."""
    return {
        "median_ratio": float(np.median(own / peer)),
        "largest_difference_in_deviations": float(
            np.abs(own - peer).max() / np.std(own)
        ),
        "spearman": float(spearmanr(own, peer)[0]),
    }


if __name__ == "__main__":
    errors.run(main)
