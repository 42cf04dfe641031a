"""A run of one checkpoint whose encoder is that of a file, from any library."""

from pathlib import Path

import jax

from polyview.config.text import to_json
from polyview.errors import InputError
from polyview.runs.checkpoint import Checkpoints
from polyview.runs.init import Entry, lay_over
from polyview.runs.load import untrained_model
from polyview.runs.weights import keep_fixed, under
from polyview.runs.workdir import check_unused, claim_workdir


def import_weights(
    weights: Path, config, workdir: Path, modality: str = "image"
) -> str:
    """Write a run whose encoder is the file's, and return a line that says so.

    Raises InputError for a file that cannot be read, is no safetensors, or does not
    hold the arrays of the config's encoder and none beside them.
    """
    if not weights.is_file():
        raise InputError(f"{weights} is not a file")
    check_unused(workdir)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    model = untrained_model(config, device, trust=None)
    at = f"towers.{modality}.encoder"
    laid = lay_over([Entry(at, str(weights), "")], model.module, model.parts[1:])
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
