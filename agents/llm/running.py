"""A prepared model on the devices, without a run."""

from typing import Any

import jax
from ml_collections import ConfigDict

from agents import parts
from polyview import devices
from polyview.model import Model, Parts, merge_module
from polyview.runs.init import entries_of, lay_over
from polyview.runs.load import shapes_of


def language_model(name: str, layers: int | None = None, **options: Any) -> Model:
    """Return `agents.llm.language:LanguageModel` with a prepared model's weights.

    layers: the first blocks, None for all; options: of the module. Raises InputError
    for a model that is not prepared.
    """
    spec = {
        "partial": "agents.llm.language:LanguageModel",
        "body": parts.body(name, layers, lora=None),
        **options,
    }
    whole = devices.replicated(devices.make_mesh())
    made = shapes_of(ConfigDict({"model": spec}))
    shapes = tuple(
        jax.tree.map(lambda shape: shape.update(sharding=whole), part)
        for part in made.parts[1:]
    )
    entries = entries_of({"init": parts.body_weights(name)})
    laid = lay_over(entries, merge_module(*made.parts), shapes)
    return Model(Parts(made.parts.graph, *laid.parts), whole)
