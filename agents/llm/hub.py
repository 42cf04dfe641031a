"""Read a folder as the hub keeps it: config.json, *.safetensors, tokenizer.json."""

from pathlib import Path
from typing import Any

import numpy as np

from agents.llm.source import Source, check_settings
from polyview import files
from polyview.errors import InputError
from polyview.runs.weights import read_file

_SETTINGS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "vocabulary": "vocab_size",
    "context": "max_position_embeddings",
}


def read(folder: Path) -> Source:
    """Return the model of a folder.

    Raises InputError for a file that is absent or damaged, for another architecture and
    for rotations of an unknown kind.
    """
    config = _json(folder / "config.json")
    kind = config.get("model_type")
    if kind != "llama":
        raise InputError(f"{folder}: its model_type is {kind!r}; only 'llama' is read")
    if config.get("hidden_act", "silu") != "silu":
        raise InputError(f"{folder}: hidden_act {config['hidden_act']!r} is not silu")
    settings: dict[str, Any] = {n: config.get(key) for n, key in _SETTINGS.items()}
    heads, width = settings["heads"], settings["width"]
    settings["kv_heads"] = config.get("num_key_value_heads") or heads
    if not all(isinstance(number, int) and number > 0 for number in (heads, width)):
        raise InputError(f"{folder}: config.json has no number of heads, or no width")
    settings["head"] = config.get("head_dim") or width // heads
    settings["epsilon"] = float(config.get("rms_norm_eps", 1e-6))
    # transformers 5 writes both into one dict.
    rotation = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rotation, dict):
        raise InputError(f"{folder}: its rotation is {rotation!r:.80}")
    theta = rotation.get("rope_theta", config.get("rope_theta", 10_000.0))
    settings["theta"] = float(theta)
    arrays: dict[str, np.ndarray] = {}
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise InputError(f"{folder} has no *.safetensors")
    for path in found:
        arrays |= {n: a.astype(np.float32) for n, a in read_file(path).items()}
    # The tables may be tied, and yet both be in the file.
    settings["tied"] = bool(config.get("tie_word_embeddings", False))
    if settings["tied"]:
        arrays.pop("lm_head.weight", None)
    for name in [name for name in arrays if name.endswith("rotary_emb.inv_freq")]:
        del arrays[name]  # old files; it follows from the settings
    settings = check_settings(settings, str(folder))
    arrays["frequencies"] = _frequencies(folder, settings, rotation)
    tokenizer = _text(folder / "tokenizer.json")
    special = {}
    for ours, theirs in (("begin", "bos"), ("end", "eos"), ("pad", "pad")):
        number = config.get(f"{theirs}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int) and 0 <= number < settings["vocabulary"]:
            special[ours] = number
    template = None
    if (folder / "tokenizer_config.json").is_file():
        template = _json(folder / "tokenizer_config.json").get("chat_template")
    template = template if isinstance(template, str) else None
    return Source(settings, arrays, tokenizer, special, template)


def _frequencies(folder: Path, settings: dict[str, Any], rotation: dict) -> np.ndarray:
    half = settings["head"] // 2
    plain = settings["theta"] ** -(np.arange(half) / half)
    kind = rotation.get("rope_type", rotation.get("type", "default"))
    if kind == "default":
        return plain.astype(np.float32)
    keys = ["factor", "low_freq_factor", "high_freq_factor"]
    keys.append("original_max_position_embeddings")
    numbers = [rotation.get(key) for key in keys]
    if kind != "llama3" or not all(isinstance(n, int | float) for n in numbers):
        raise InputError(f"{folder}: rotations of kind {kind!r} are not supported")
    factor, low, high, context = map(float, numbers)  # type: ignore[arg-type]
    # Llama 3.1: long wavelengths are stretched, short ones kept, in between both.
    turns = context * plain / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (plain * (smooth + (1 - smooth) / factor)).astype(np.float32)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = files.read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no settings")
    return found


def _text(path: Path) -> str:
    try:
        return files.read_bounded(path, 2**27).decode()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
