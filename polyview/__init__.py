"""Contrastive and pre-training objectives in JAX.

A view is one aspect of a sample: generated (an augmentation of an image), observed (a
modality, a drawing, a section of a report) or later (the next frames of play). An
encoder turns views into features, an objective turns features into a loss, and one loop
trains every objective.

    run = polyview.load("runs/a")                         # the model of a run
    features = run.encode("photos/")                      # float32[n, d']
    loss = polyview.geometric(z, temperature=0.1).mean()  # z: float[b, m, d]

Axes: b unique samples, m views, d features, p positions of a feature map, t time,
h w c height, width and channels of an image, n rows of anything.

Commands, each a module that turns flags into one call:

    main prepare evaluate report embed export import_weights bench
    cli         what they share;  errors, terminal: how they stop, what they print

Packages, each of which imports only those above it:

    data/       numpy only: sources, augmentation, views, the pipeline, prepare/
    nn/         modules that know no loss
    objectives/ mathematics that knows no model and no data
    config/     a file -> a dict -> objects; what a checkpoint may call
    evaluation/ a model -> numbers, and figures of them
    runs/       a run's directory: config, metrics, checkpoints, weights, results
    reporting/  pages that compare runs
    training/   the loop, the learners it drives, the step
    rl/         environments, replay, scores

    model       the one file that splits and merges modules; the model that evaluations
                receive
    devices     meshes and shardings;  hosts: processes and the machine
    files       bounded reads, atomic writes;  drawing: the style of figures
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polyview.data.sources.folder import Folder
    from polyview.objectives.contrastive import (
        arithmetic,
        geometric,
        multi_crop,
        mv_dhel,
        mv_infonce,
        nt_xent,
        sufficient_statistics,
        supcon,
    )
    from polyview.objectives.negatives import log_negatives
    from polyview.objectives.pairs import clip, siglip
    from polyview.objectives.positives import anchors
    from polyview.runs.load import load

__version__ = "0.2.0"
__all__ = [
    "Folder",
    "anchors",
    "arithmetic",
    "clip",
    "geometric",
    "load",
    "log_negatives",
    "multi_crop",
    "mv_dhel",
    "mv_infonce",
    "nt_xent",
    "siglip",
    "sufficient_statistics",
    "supcon",
]
_LOSSES = "polyview.objectives.contrastive"
_HOMES = dict.fromkeys(__all__, _LOSSES) | {
    "Folder": "polyview.data.sources.folder",
    "anchors": "polyview.objectives.positives",
    "clip": "polyview.objectives.pairs",
    "siglip": "polyview.objectives.pairs",
    "load": "polyview.runs.load",
    "log_negatives": "polyview.objectives.negatives",
}


def __getattr__(name: str) -> object:
    """Import a public name at its first use, so that `--help` does not wait for JAX."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
