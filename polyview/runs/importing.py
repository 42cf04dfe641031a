"""A run with one checkpoint, made from an encoder in a file of any library."""

from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from polyview.config.text import to_json
from polyview.errors import InputError
from polyview.runs.checkpoint import Checkpoints
from polyview.runs.init import Entry, lay_over
from polyview.runs.load import untrained_model
from polyview.runs.weights import keep_fixed, under
from polyview.runs.workdir import check_unused, claim_workdir


def import_weights(
    weights: Path,
    config: ConfigDict,
    workdir: Path,
    modality: str = "image",
    *,
    prefix: str = "",
    leave: Sequence[str] = (),
) -> str:
    """Write a run with the file's encoder, and return a summary line.

    prefix: the start of the encoder's names in the file; by default the only one that
    fits. leave: patterns of names to leave out, beside classifiers and the like. Raises
    InputError if the file cannot be read, is not safetensors, or does not hold exactly
    the arrays of the config's encoder, all finite.
    """
    if not weights.is_file():
        raise InputError(f"{weights} is not a file")
    check_unused(workdir)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    model = untrained_model(config, device, trust=None)
    at = f"towers.{modality}.encoder"
    entry = Entry(at, str(weights), prefix.strip("."), leave=tuple(leave))
    laid = lay_over([entry], model.module, model.parts[1:])
    if absent := [name for name in laid.fresh if under(name, at)]:
        name = absent[0].removeprefix(f"{at}.")
        raise InputError(f"{weights} has no {name!r}, which this encoder needs")
    params, statistics, fixed = laid.parts
    state = {"params": params, "statistics": statistics}
    claim_workdir(workdir, config)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        record = keep_fixed(workdir, fixed, laid.referenced, f"{weights.name}")
        checkpoints.save(0, state, to_json(config), record)
    return f"{workdir}: step 0, {laid}; its projector is untrained"
