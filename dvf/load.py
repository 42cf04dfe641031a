"""A trained model of the future, sampled in as many steps as asked for."""

from pathlib import Path

from ml_collections import ConfigDict

from polyview import devices
from polyview.errors import InputError
from polyview.model import Model, Parts, abstract_module
from polyview.runs.load import Loaded, load, model_of

METHODS = {
    "dvf.occupancy:DiffusionOccupancy": "diffusion",
    "dvf.occupancy:ContrastiveOccupancy": "contrastive",
    "dvf.value:Values": "values",
}


def read(run: str | Path, at: int | None = None) -> tuple[Loaded, str]:
    """Return a run's newest model, or that of step `at`, and its kind.

    The kind is "diffusion" (also of flow matching), "contrastive" or "values". Raises
    InputError for a run of another kind.
    """
    loaded = load(run, at, devices.replicated(devices.make_mesh()))
    kind = METHODS.get(loaded.config.model.get("partial", ""))
    if kind is None:
        raise InputError(
            f"{run} is no model of the future; train one: python -m polyview.main "
            "--config configs/dvf_pointmaze.py --workdir DIR"
        )
    return loaded, kind


def sampled(loaded: Loaded, steps: int | None = None) -> Model:
    """Return a model that draws in `steps` steps; None: in those of its config.

    Diffusion is then sampled by DDIM, and flow by Euler steps. Raises InputError for a
    model that draws nothing, and OutOfRange for more steps than diffusion has.
    """
    parts = loaded.parts
    if steps is not None:
        config = ConfigDict(loaded.config.to_dict())
        process = config.model.get("process")
        if process is None:
            raise InputError("a model that draws no futures has no steps of sampling")
        with config.unlocked():
            process.sample_steps = steps
            if process.target.endswith(":Diffusion"):
                process.eta = 0.0
        graph = abstract_module(model_of(config, loaded.trust)).graph
        parts = Parts(graph, *parts[1:])
    return Model(parts, devices.replicated(devices.make_mesh()))
