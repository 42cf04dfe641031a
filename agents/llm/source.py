"""A language model as read from a file: settings, arrays and tokenizer.

Readers (`gguf`, `hub`) bring every format to this one. Names are those of the hub's
`llama` files (`model.layers.0.self_attn.q_proj.weight`, kernels [outputs, inputs],
rotated by halves), and settings are the arguments of `agents.llm.llama:Body`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from polyview.errors import InputError

KERNELS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


class Source(NamedTuple):
    """A model in a file.

    settings: of `Body`, all sizes; arrays: by the hub's names, float32; tokenizer: the
    JSON text of the `tokenizers` library; special: {"begin", "end", ...: token number},
    those that are known; template: the text of its chat template, or None.
    """

    settings: dict[str, Any]
    arrays: dict[str, np.ndarray]
    tokenizer: str
    special: dict[str, int]
    template: str | None


def stacked(source: Source, where: str) -> dict[str, np.ndarray]:
    """Return the arrays by their path in `Body`, the blocks' stacked.

    Raises InputError for an array that is absent, of another shape, not finite, or has
    no place; where: the file, for the message.
    """
    settings, arrays = source.settings, dict(source.arrays)
    layers, width = settings["layers"], settings["width"]
    head = settings["head"]
    inner, shared = settings["heads"] * head, settings["kv_heads"] * head
    shapes = {
        "query": (inner, width),
        "key": (shared, width),
        "value": (shared, width),
        "output": (width, inner),
        "gate": (settings["hidden"], width),
        "up": (settings["hidden"], width),
        "down": (width, settings["hidden"]),
    }

    def taken(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in arrays:
            raise InputError(
                f"{where} has no array {name!r}: it is truncated or foreign"
            )
        array = arrays.pop(name)
        if array.shape != shape:
            raise InputError(f"{where}: {name} is {array.shape}, not {shape}")
        if not np.isfinite(array).all():
            raise InputError(f"{where}: {name} has numbers that are not finite")
        return np.asarray(array, np.float32)

    def of_blocks(name: str, shape: tuple[int, ...]) -> np.ndarray:
        rows = [taken(f"model.layers.{i}.{name}.weight", shape) for i in range(layers)]
        return np.stack(rows)

    table = (settings["vocabulary"], width)
    found = {
        "embedding": taken("model.embed_tokens.weight", table),
        "norm": taken("model.norm.weight", (width,)),
        "frequencies": taken("frequencies", (head // 2,)),
    }
    if not settings["tied"]:
        found["unembedding"] = taken("lm_head.weight", table)
    for ours, theirs in NORMS.items():
        found[f"blocks.{ours}"] = of_blocks(theirs, (width,))
    for ours, theirs in KERNELS.items():
        kernel = of_blocks(theirs, shapes[ours])
        found[f"blocks.{ours}"] = np.ascontiguousarray(kernel.transpose(0, 2, 1))
    if arrays:
        raise InputError(
            f"{where}: {len(arrays)} arrays have no place in a llama body, as "
            f"{min(arrays)!r}: another architecture?"
        )
    return found


def apart(settings: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return arrays by the hub's names: the inverse of `stacked`.

    Frequencies follow from settings, and have no name there.
    """
    found = {
        "model.embed_tokens.weight": arrays["embedding"],
        "model.norm.weight": arrays["norm"],
    }
    if not settings["tied"]:
        found["lm_head.weight"] = arrays["unembedding"]
    for ours, theirs in (NORMS | KERNELS).items():
        for number, array in enumerate(arrays[f"blocks.{ours}"]):
            name = f"model.layers.{number}.{theirs}.weight"
            found[name] = np.ascontiguousarray(array.T)
    return found


def check_settings(found: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the settings. Raises InputError if a size is absent or impossible."""
    for name, most in (
        *(("layers", 1000), ("width", 65536), ("heads", 1024), ("kv_heads", 1024)),
        *(("head", 1024), ("hidden", 2**20), ("vocabulary", 2**21)),
        ("context", 2**31 - 1),
    ):
        number = found.get(name)
        if type(number) is not int or not 1 <= number <= most:
            raise InputError(f"{where}: its {name} is {number!r}, not 1 .. {most}")
    for name in ("theta", "epsilon"):
        if not isinstance(found.get(name), float) or not 0 < found[name] < 1e12:
            raise InputError(f"{where}: its {name} is {found.get(name)!r}")
    if found["head"] % 2 or found["heads"] % found["kv_heads"]:
        raise InputError(
            f"{where}: heads of {found['head']}, {found['heads']} of queries and "
            f"{found['kv_heads']} of keys cannot be"
        )
    return dict(found)
