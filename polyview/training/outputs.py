"""Whether a model has an output for every class of the data."""

from collections.abc import Mapping
from typing import Any

import jax

from polyview.data.sources.manifest import PARTLY
from polyview.errors import InputError
from polyview.model import Parts, merge_module


def check_outputs(
    objective: Any, parts: Parts, batch: Any, targets: Mapping[str, Mapping]
) -> None:
    """Raise InputError if a task has more classes than outputs, or rows without one.

    A loss would read the last output for every class beyond. Only objectives that
    predict are checked: those with `outputs`, {target: name of the features}.

    parts, batch: arrays or shapes. targets: those of the source.
    """
    predicted = getattr(objective, "outputs", {})
    for target in predicted:
        if targets.get(target, {}).get("kind") == PARTLY:
            raise InputError(
                f"some rows have no {target!r}, which the objective predicts; set "
                "source.labelled=True, which takes the others"
            )
    tasks = {
        target: (name, targets[target]["classes"])
        for target, name in predicted.items()
        if targets.get(target, {}).get("kind") in ("class", "multi-label")
        and targets[target].get("classes")
    }
    if not tasks:
        return

    def features(params: dict, statistics: dict, fixed: dict, batch: dict) -> Any:
        module: Any = merge_module(parts.graph, params, statistics, fixed)
        batch = {**batch, "kept": batch["present"]}
        return module(batch, key=jax.random.key(0), train=False)

    shapes = jax.eval_shape(features, *parts[1:], batch)
    for target, (name, classes) in tasks.items():
        outputs = shapes[name].z.shape[-1]
        if outputs < classes:
            raise InputError(
                f"the model has {outputs} outputs for {target!r}, which has {classes} "
                f"classes; set the `out` of its head to {classes} or more"
            )
