"""A language model on the devices, without a run of its own: a prepared one, or the
body of a run, in whatever module uses it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from agents import parts
from agents.llm import prepared
from agents.llm.tokenizer import Tokenizer
from polyview import devices
from polyview.config.trust import allow_list, check_trusted
from polyview.errors import InputError, fits_together
from polyview.model import Model, Parts, merge_module
from polyview.runs.init import entries_of, lay_over
from polyview.runs.load import shapes_of
from polyview.runs.workdir import read_config


class Speaker(NamedTuple):
    """A language model with its weights, before it is known what it is asked.

    spec: of its body; init: where the weights of the body come from, as in a config;
    tokenizer, end, context: of its texts: what reads them, the token that ends one, or
    None, and the most tokens; trust: packages that the config of the run it comes from
    may call, besides those of each `trusted.txt`.
    """

    spec: Mapping[str, Any]
    init: Mapping[str, Any]
    tokenizer: Tokenizer
    end: int | None
    context: int
    trust: tuple[str, ...] = ()

    def module(self, partial: str, **options: Any) -> Model:
        """Return a module with this body on the devices; options: its other ones."""
        return on_devices(self.parts(partial, **options))

    def parts(self, partial: str, **options: Any) -> Parts:
        """Return the parts of such a module."""
        spec = {"partial": partial, "body": dict(self.spec), **options}
        whole = devices.replicated(devices.make_mesh())
        made = shapes_of(ConfigDict({"model": spec}), None)
        shapes = tuple(
            jax.tree.map(lambda shape: shape.update(sharding=whole), part)
            for part in made.parts[1:]
        )
        entries = entries_of({"init": dict(self.init)})
        laid = lay_over(entries, merge_module(*made.parts), shapes, self.trust)
        return Parts(made.parts.graph, *laid.parts)


def on_devices(made: Parts) -> Model:
    """Return a model whose results lie on all devices."""
    return Model(made, devices.replicated(devices.make_mesh()))


def of_model(name: str, layers: int | None = None) -> Speaker:
    """Return a prepared model; layers: the first blocks, None for all.

    Raises InputError for a model that is not prepared.
    """
    spec = parts.body(name, layers, lora=None)
    return _speaker(spec, parts.body_weights(name), prepared.describe(name))


def of_run(run: str | Path, name: str, trust: tuple[str, ...] = ()) -> Speaker:
    """Return the body of a run's newest checkpoint, at `body` of its model.

    name: the prepared model that it was trained from; trust: see `Speaker`. Raises
    InputError for a run without a body, or whose texts another tokenizer reads.
    """
    about = prepared.describe(name)
    with fits_together(f"--run {run}"):
        config = read_config(Path(run)).to_dict()
        spec = config["model"]["body"]
    check_trusted(spec, allow_list(trust), f"{run}: model.body")
    read = (config.get("views", {}).get("text") or {}).get("sha256")
    if read not in (None, about["tokenizer"]):
        raise InputError(
            f"{run} was trained with another tokenizer than that of {name}; name its "
            "model: --model"
        )
    init = {"body": {"from": str(run), "path": "body", "leave": ["*"]}}
    return _speaker(spec, init, about)._replace(trust=trust)


def _speaker(spec: Any, init: Any, about: Mapping[str, Any]) -> Speaker:
    end, context = about["special"].get("end"), about["settings"]["context"]
    return Speaker(spec, init, Tokenizer(about["tokenizer"]), end, context)


def language_model(name: str, layers: int | None = None, **options: Any) -> Model:
    """Return `agents.llm.language:LanguageModel` with a prepared model's weights.

    layers, errors: those of `of_model`; options: of the module.
    """
    return of_model(name, layers).module("agents.llm.language:LanguageModel", **options)
