"""Read a GGUF file of a `llama` model, of any type of numbers that `gguf` decodes.

GGUF rotates components 2 i and 2 i + 1 together, and the hub i and i + head / 2, so the
rows of queries and keys are put in the hub's order here.
"""

from pathlib import Path
from typing import Any

import numpy as np

from agents.llm import vocabulary
from agents.llm.source import KERNELS, NORMS, Source, check_settings
from polyview.errors import InputError

_MOST = 2**16  # keys or arrays of a file, far more than any has
_KERNELS = {
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "output": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_NORMS = {"attention_norm": "attn_norm", "mlp_norm": "ffn_norm"}
_WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_SETTINGS = {
    "layers": "block_count",
    "width": "embedding_length",
    "heads": "attention.head_count",
    "hidden": "feed_forward_length",
    "context": "context_length",
}


def read(path: Path) -> Source:
    """Return the model of a GGUF file.

    Raises InputError for a file that is no GGUF, is truncated, holds another
    architecture or numbers of an unknown type, or whose tokenizer is not supported.
    """
    reader = _opened(path)
    try:
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise InputError(f"{path} is a damaged GGUF file: {error}") from error
    kind = fields.get("general.architecture")
    if kind != "llama":
        raise InputError(f"{path}: its architecture is {kind!r}; only 'llama' is read")
    settings = _settings(path, fields)
    arrays = {}
    for tensor in reader.tensors:
        if settings["layers"] <= _block(tensor.name):
            raise InputError(f"{path}: {tensor.name} is beyond the last block")
        arrays[_name(path, tensor.name)] = _array(path, tensor)
    table = arrays.get("model.embed_tokens.weight", np.zeros(0))
    if table.ndim != 2:
        raise InputError(f"{path} has no table of embeddings")
    settings |= {"vocabulary": len(table), "tied": "lm_head.weight" not in arrays}
    settings = check_settings(settings, str(path))
    for name in list(arrays):
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            arrays[name] = by_halves(arrays[name], settings["head"])
    half = settings["head"] // 2
    frequencies = settings["theta"] ** -(np.arange(half) / half)
    # Llama 3.1 and later stretch long wavelengths by these factors.
    factors = arrays.pop("rope_freqs.weight", np.ones(half, np.float32))
    if factors.shape != (half,) or not (factors > 0).all():
        raise InputError(f"{path}: its factors of rotation are not {half} above zero")
    arrays["frequencies"] = (frequencies / factors).astype(np.float32)
    numbers = {"begin": "bos", "end": "eos", "pad": "padding", "unknown": "unknown"}
    special = {}
    for ours, theirs in numbers.items():
        number = fields.get(f"tokenizer.ggml.{theirs}_token_id")
        if isinstance(number, int) and 0 <= number < settings["vocabulary"]:
            special[ours] = number
    text = vocabulary.of_lists(
        fields.get("tokenizer.ggml.tokens"),
        fields.get("tokenizer.ggml.merges"),
        fields.get("tokenizer.ggml.token_type"),
        model=str(fields.get("tokenizer.ggml.model")),
        split=str(fields.get("tokenizer.ggml.pre")),
        where=str(path),
    )
    template = fields.get("tokenizer.chat_template")
    template = template if isinstance(template, str) else None
    return Source(settings, arrays, text, special, template)


def by_halves(kernel: np.ndarray, head: int) -> np.ndarray:
    """Put rows that are rotated in pairs (2 i, 2 i + 1) in order (i, i + head / 2)."""
    if kernel.ndim != 2 or kernel.shape[0] % head:
        raise InputError(f"a kernel of {kernel.shape} has no heads of {head}")
    rows, inputs = kernel.shape
    apart = kernel.reshape(rows // head, head // 2, 2, inputs)
    return apart.swapaxes(1, 2).reshape(rows, inputs)


def _opened(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError:
        raise InputError(
            "reading GGUF needs the package gguf: pip install '.[agents]'"
        ) from None

    class Bounded(GGUFReader):
        """A reader that stops at the end of the file.

        GGUFReader takes slices beyond it for empty ones, and would go through the
        lengths that a damaged header claims.
        """

        def _get(
            self, offset: int, dtype: Any, count: int = 1, override_order: Any = None
        ) -> Any:
            end = int(offset) + np.dtype(dtype).itemsize * int(count)
            if not 0 <= end <= len(self.data):
                raise ValueError("it is truncated, or its header is damaged")
            return super()._get(offset, dtype, count, override_order)

    try:
        with path.open("rb") as file:
            header = file.read(24)
        counts = np.frombuffer(header[8:], "<u8")
        if header[:4] != b"GGUF" or len(counts) != 2:
            raise ValueError("it does not begin as one")
        if counts.max() > _MOST:
            raise ValueError(f"its header claims {counts.max()} entries")
        return Bounded(path)
    # Lists in lists without end exceed the recursion's limit.
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as why:
        raise InputError(f"{path} is not a GGUF file that can be read: {why}") from None


def _settings(path: Path, fields: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        ours: fields.get(f"llama.{name}") for ours, name in _SETTINGS.items()
    }
    for name, number in found.items():
        if type(number) is not int or number < 1:
            raise InputError(f"{path}: its {name} is {number!r}, not 1 or more")
    heads, width = found["heads"], found["width"]
    found["kv_heads"] = fields.get("llama.attention.head_count_kv", heads)
    found["head"] = fields.get("llama.attention.key_length", width // heads)
    turned = fields.get("llama.rope.dimension_count", found["head"])
    if turned != found["head"]:
        raise InputError(
            f"{path} rotates {turned} of the {found['head']} components of a head; "
            "only all is supported"
        )
    stretched = fields.get("llama.rope.scaling.type", "none")
    if stretched != "none":
        raise InputError(f"{path}: rotations of kind {stretched!r} are not supported")
    epsilon = fields.get("llama.attention.layer_norm_rms_epsilon", 1e-5)
    theta = fields.get("llama.rope.freq_base", 10_000.0)
    if not all(isinstance(number, int | float) for number in (epsilon, theta)):
        raise InputError(f"{path}: its epsilon or base of rotations is no number")
    # Stored as float32: 9.999999747378752e-06.
    return found | {"epsilon": float(f"{epsilon:.6g}"), "theta": float(theta)}


def _block(name: str) -> int:
    parts = name.split(".")
    digits = parts[0] == "blk" and len(parts) > 1 and parts[1].isdigit()
    return int(parts[1]) if digits else -1


def _name(path: Path, name: str) -> str:
    """Return the hub's name of an array, or its own if it has none there."""
    stem, _, kind = name.rpartition(".")
    if kind != "weight":
        raise InputError(f"{path}: {name} has no place in a llama body")
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.weight"
    if _block(name) >= 0:
        prefix, number, part = stem.split(".", 2)
        for ours, theirs in (_KERNELS | _NORMS).items():
            if theirs == part:
                return f"model.layers.{int(number)}.{(KERNELS | NORMS)[ours]}.weight"
    return name


def _array(path: Path, tensor: Any) -> np.ndarray:
    from gguf import quants

    try:
        array = quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        raise InputError(
            f"{path}: {tensor.name} is of type {tensor.tensor_type.name}, which is not "
            "decoded; convert the file to Q8_0 or F16"
        ) from None
    return np.asarray(array, np.float32).reshape(tuple(tensor.shape)[::-1])
