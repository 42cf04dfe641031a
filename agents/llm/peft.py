"""The body of a run as files for PyTorch: its adapters for PEFT, or folded into it.

Before a folder gets its name, it is read again, and the body that it holds must give
the hidden states of the run's on random embeddings.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save

from agents.llm import hub, prepared, tokenizer
from agents.llm.llama import Body
from agents.llm.source import KERNELS, NORMS, Source, stacked
from polyview.data.sources.protocol import default_data_dir
from polyview.errors import InputError
from polyview.model import abstract_module, merge_module
from polyview.runs import checkpoint
from polyview.runs.checksum import flatten
from polyview.runs.load import Loaded, load
from polyview.runs.weights import under

TOLERANCE = 1e-5  # relative to the largest hidden state


class _Found(NamedTuple):
    """The body of a run.

    path: in the model; arrays: by their path in the body, without adapters, float32;
    changes: {kernel: (A, B)}; trained: paths in it; outside: paths in the model that
    are no part of it.
    """

    path: str
    module: Body
    arrays: dict[str, np.ndarray]
    changes: dict[str, tuple[np.ndarray, np.ndarray]]
    trained: list[str]
    outside: list[str]

    def name(self, of: str) -> str:
        """Return the path in the model of a path in the body."""
        return ".".join(filter(None, (self.path, of)))


def export(
    run: Path,
    output: Path,
    *,
    merge: bool = False,
    at: str | None = None,
    step: int | None = None,
    trust: tuple[str, ...] = (),
    weights: Sequence[Path] = (),
) -> str:
    """Write the folder `output`, and return a summary that lists every array used.

    merge: write the whole body, as the hub keeps it, with the adapters folded into its
    kernels, else the adapters alone, as PEFT keeps them. at: the path of the body, if a
    model has several. Raises InputError, and leaves nothing, for a run without a body
    or without adapters, for arrays that have no place in the format, and if the outputs
    differ.
    """
    if output.exists():
        raise InputError(f"{output} already exists; remove it, or name another")
    model = load(run, step, trust=trust, weights=weights)
    found = _found(model, run, at)
    with _writing_folder(output) as folder:
        if merge:
            lines = _write_whole(folder, found, model)
            again = hub.read_body(folder)
            settings, arrays = again.settings, stacked(again, str(output))
        else:
            base = _base(run, model.step, found.path)
            lines = _write_adapters(folder, found, run, base)
            settings, arrays = _settings(found.module), _adapted(folder, found.arrays)
        difference = _difference(found.module, settings, arrays)
        if not difference <= TOLERANCE:
            raise InputError(
                f"hidden states of what would be written differ by {difference:.1g} of "
                "the largest; nothing is written"
            )
    if found.outside:
        lines.append(f"left out, no part of the body: {_groups(found.outside)}")
    first = f"{output}: step {model.step} of {run}, {lines[0]}; hidden states agree"
    return "\n".join([f"{first} to {difference:.1g} of the largest", *lines[1:]])


def _found(model: Loaded, run: Path, at: str | None) -> _Found:
    bodies = {
        ".".join(map(str, path)): part
        for path, part in nnx.iter_modules(model.module)
        if isinstance(part, Body)
    }
    if not bodies:
        raise InputError(f"{run}: its model has no body of a language model")
    if at is None and len(bodies) > 1:
        raise InputError(f"{run} has several bodies; give --at {' or '.join(bodies)}")
    path = next(iter(bodies)) if at is None else at
    if path not in bodies:
        raise InputError(f"{run} has no body at {path!r}, but at {', '.join(bodies)}")
    body = bodies[path]
    inside = {
        name.removeprefix(f"{path}."): np.asarray(array, np.float32)
        for name, array in model.arrays.items()
        if under(name, path)
    }
    changes = {
        name: (inside.pop(f"lora.{name}.a"), inside.pop(f"lora.{name}.b"))
        for name in KERNELS
        if name in body.lora
    }
    wanted = {"embedding", "norm", "frequencies"}
    wanted |= {f"blocks.{name}" for name in KERNELS | NORMS}
    wanted |= set() if body.unembedding is None else {"unembedding"}
    if left := sorted(inside.keys() ^ wanted):
        raise InputError(
            f"{run}: {len(left)} arrays of its body have no place in the format, as "
            f"{left[0]!r}"
        )
    trained = [n.removeprefix(f"{path}.") for n in flatten(model.parts.params)]
    trained = [name for name in trained if name in inside]
    outside = [name for name in model.arrays if not under(name, path)]
    return _Found(path, body, inside, changes, trained, outside)


def _write_adapters(folder: Path, found: _Found, run: Path, base: str) -> list[str]:
    """Write the folder that PEFT reads; return lines for the summary."""
    if not found.changes:
        raise InputError(
            f"{run}: its body has no low-rank adapters; --merge writes the whole body"
        )
    if found.trained:
        raise InputError(
            f"{run}: its body is trained, as {found.name(found.trained[0])!r}, so its "
            "adapters alone are not what it learnt; --merge writes the whole body"
        )
    body, targets = found.module, [*found.changes]
    (own, *_) = body.lora.values()
    alpha = own.scale * own.rank
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": own.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": own.dropout,
        "target_modules": [KERNELS[name].rpartition(".")[2] for name in targets],
        # The base may have more blocks than the run took.
        "layers_to_transform": [*range(body.layers)],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1))
    arrays, lines = {}, []
    for name, pair in found.changes.items():
        for ours, theirs, stack in zip("ab", "AB", pair, strict=True):
            for number, array in enumerate(stack):
                theirs_name = _peft_name(name, number, theirs)
                arrays[theirs_name] = np.ascontiguousarray(array.T)
            every = _peft_name(name, "*", theirs)
            lines.append(f"{found.name(f'lora.{name}.{ours}')} -> {every}")
    content = save(arrays, {"format": "pt"})
    (folder / "adapter_model.safetensors").write_bytes(content)
    about = f"adapters of rank {own.rank} in {body.layers} blocks, for the base {base}"
    return [about, *lines]


def _peft_name(kernel: str, block: int | str, part: str) -> str:
    place = f"base_model.model.model.layers.{block}.{KERNELS[kernel]}"
    return f"{place}.lora_{part}.weight"


def _adapted(folder: Path, base: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a base's arrays with the adapters of a folder folded in, as PEFT does."""
    config = json.loads((folder / "adapter_config.json").read_text())
    arrays = load_file(folder / "adapter_model.safetensors")
    scale, adapted = config["lora_alpha"] / config["r"], dict(base)
    for name, theirs in KERNELS.items():
        if theirs.rpartition(".")[2] not in config["target_modules"]:
            continue
        kernels = []
        for number, kernel in enumerate(base[f"blocks.{name}"]):
            a, b = (
                arrays.pop(_peft_name(name, number, part)).astype(np.float64)
                for part in "AB"
            )
            kernels.append(kernel + scale * (b @ a).T)
        adapted[f"blocks.{name}"] = np.stack(kernels).astype(np.float32)
    assert not arrays, f"{min(arrays)} was written and is not read"
    return adapted


def _write_whole(folder: Path, found: _Found, model: Loaded) -> list[str]:
    """Write the folder of a body with its adapters; return lines for the summary."""
    arrays, lines = dict(found.arrays), []
    for name, (a, b) in found.changes.items():
        change = a.astype(np.float64) @ b * found.module.lora[name].scale
        whole = arrays[f"blocks.{name}"] + change
        arrays[f"blocks.{name}"] = whole.astype(np.float32)
    for name in found.arrays:
        kernel = name.removeprefix("blocks.")
        added = f" + lora.{kernel}" if kernel in found.changes else ""
        lines.append(f"{found.name(name)}{added} -> {_hub_name(name)}")
    source = Source(_settings(found.module), arrays, "", {}, None)
    told = "no tokenizer, as its config names none"
    digests = _tokenizers(model.config.to_dict())
    if len(digests) > 1:
        told = f"no tokenizer, as its config names {len(digests)}"
    elif digests:
        (digest,) = digests
        tokenizer.Tokenizer(digest)  # checks it
        text = tokenizer.shelf(digest).read_bytes().decode()
        about = prepared.of_tokenizer(digest, default_data_dir()) or {}
        special, template = about.get("special", {}), about.get("template")
        source = source._replace(tokenizer=text, special=special, template=template)
        told = "with its tokenizer"
    hub.write(folder, source)
    return [f"its body of {found.module.layers} blocks, {told}", *lines]


def _hub_name(name: str) -> str:
    whole = {
        "embedding": "model.embed_tokens.weight",
        "norm": "model.norm.weight",
        "unembedding": "lm_head.weight",
        "frequencies": "rope_theta and rope_scaling of config.json",
    }
    if name in whole:
        return whole[name]
    part = (KERNELS | NORMS)[name.removeprefix("blocks.")]
    return f"model.layers.*.{part}.weight"


def _settings(body: Body) -> dict[str, Any]:
    names = ["layers", "width", "heads", "kv_heads", "head", "hidden", "vocabulary"]
    names += ["theta", "epsilon", "context"]
    settings = {name: getattr(body, name) for name in names}
    return settings | {"tied": body.unembedding is None}


def _difference(
    body: Body, settings: dict[str, Any], arrays: Mapping[str, np.ndarray]
) -> float:
    """Return how much hidden states of `arrays` differ, relative to the largest."""
    parts = abstract_module(partial(Body, **settings))
    leaves = [jnp.asarray(arrays[name]) for name in flatten(parts.fixed)]
    fixed = jax.tree.unflatten(jax.tree.structure(parts.fixed), leaves)
    plain: Any = merge_module(*parts[:3], fixed)
    random = np.random.default_rng(0)
    table = np.asarray(arrays["embedding"])
    real = jnp.ones((2, 16), bool)
    # In float32, rounding alone makes 2e-5 in 30 blocks.
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        x = jnp.asarray(random.normal(size=(2, 16, body.width)) * table.std())
        body.dtype = plain.dtype = jnp.float64
        ours, theirs = (np.asarray(own(x, real)[0]) for own in (body, plain))
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


def _base(run: Path, step: int, path: str) -> str:
    """Return the digest of the file that holds the fixed weights of a body."""
    record = checkpoint.fixed_record(run / "checkpoints" / str(step)) or []
    entries = [entry for entry in record if under(path, entry["at"])]
    return f"sha256:{entries[-1]['sha256']}" if entries else ""


def _tokenizers(config: Any) -> set[str]:
    """Return the digests of all tokenizers in a config."""
    found: set[str] = set()
    if isinstance(config, Mapping):
        if config.get("target") == "agents.llm.tokenizer:Tokenizer":
            found.add(str(config.get("sha256")))
        config = [*config.values()]
    if isinstance(config, list | tuple):
        found = found.union(*map(_tokenizers, config))
    return found


def _groups(names: Sequence[str]) -> str:
    """Return the first parts of dotted names, each with its number of arrays."""
    roots = [name.split(".")[0] for name in names]
    return ", ".join(f"{root} ({roots.count(root)} arrays)" for root in {*roots})


@contextlib.contextmanager
def _writing_folder(output: Path) -> Iterator[Path]:
    """Yield a folder to fill; it gets its name once all is written."""
    near = output.absolute().parent
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=near) as scratch:
        folder = Path(scratch) / "whole"
        folder.mkdir()
        yield folder
        folder.rename(output)
