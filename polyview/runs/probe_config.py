"""The config of a probe or of fine-tuning, made from the run that it starts from."""

from pathlib import Path
from typing import Any

import ml_collections

from polyview.config import parts
from polyview.config.schema import check_config
from polyview.config.spec import build
from polyview.config.trust import allow_list, check_trusted, renewed
from polyview.errors import InputError, fits_together
from polyview.evaluation.base import viewing_spec
from polyview.runs.workdir import read_config


def classification(
    run: str,
    data: str,
    *,
    frozen: bool,
    epochs: int,
    batch_size: int,
    learning_rate: float,
) -> dict[str, Any]:
    """Return the config that trains a classifier on the encoder of a run on images.

    The encoder, the normalisation, the geometry of the views (one per sample, without
    colour noise) and the test views are the run's. So are the data, unless `data` names
    a prepared data set with labels. `frozen` trains the classifier alone. SGD with
    Nesterov momentum .9, without weight decay or warm-up (Chen et al. 2020, B.5, B.6).
    Raises InputError if the run does not exist or has no image views, or if the data do
    not exist or have no labels.
    """
    with fits_together(f"run={run}, data={data}"):
        return _classification(run, data, frozen, epochs, batch_size, learning_rate)


def _classification(
    run: str,
    data: str,
    frozen: bool,
    epochs: int,
    batch_size: int,
    learning_rate: float,
) -> dict[str, Any]:
    trained = _trained(run)
    tower, views = trained["model"]["towers"]["image"], trained["views"]
    seen = viewing_spec(trained)
    train, test = trained["source"], seen["test"]
    if data:
        train, test = parts.prepared(data, "train"), parts.prepared(data, "test")
    built = build(train, allow_list(), where=f"data of {run}")
    if "label" not in built.targets:
        raise InputError(f"{built!r} has no labels; name data with labels: data=NAME")
    config = {
        "seed": 0,
        "steps": None,
        "epochs": epochs,
        "init_from": run,
        "batch_size": min(batch_size, len(built)),
        "log_every": 100,
        "checkpoint_every": 1000,
        "evaluate_every": 10_000,  # and at the end
        "keep": 3,
        "workers": trained.get("workers", 0),
        "mesh": {"data": -1, "fsdp": 1},
        "source": train,
        "views": {**views, "m": 1, "targets": ("label",)},
        "model": parts.image_model(
            encoder=tower["encoder"],
            projector={
                "partial": "polyview.nn.heads:Linear",
                "out": built.targets["label"]["classes"],
            },
            photometry=None,
            mean=tower["mean"],
            std=tower["std"],
            **{k: v for k, v in tower["encoder"].items() if k.endswith("dtype")},
            frozen=frozen,
        ),
        "objective": {"target": f"{parts.OBJECTIVES}.supervised:Classification"},
        "optimizer": {
            "partial": "polyview.training.optimizer:sgd",
            "learning_rate": {
                "partial": "polyview.training.optimizer:linear",
                "base": learning_rate,
                "per": 256,
            },
            "weight_decay": 0.0,
            "warm_up": 0.0,
            "nesterov": True,
        },
        "evaluations": {
            "accuracy": {
                "target": "polyview.evaluation.accuracy:Accuracy",
                "test": test,
                "modality": "image",
                "label": "label",
                "batch_size": seen["batch_size"],
                "views": {**seen["views"], "targets": ("label",)},
            }
        },
    }
    # The run may be untrusted, and `build` may call anything that this config names.
    check_trusted(config, where=run)
    check_config(ml_collections.ConfigDict(config))
    return config


def _trained(run: str) -> dict[str, Any]:
    """Return the config of a run with an image tower, as a dict."""
    if not run:
        raise InputError("name the run with the encoder: configs/x.py:run=DIR")
    config = renewed(read_config(Path(run)).to_dict())
    augmented = "augment" in (config.get("views") or {})
    towers = (config.get("model") or {}).get("towers") or {}
    if not augmented or "image" not in towers or not viewing_spec(config):
        raise InputError(f"run={run} is not a run on image views with an evaluation")
    return config
