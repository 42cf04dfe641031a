"""A folder as the hub keeps it: config.json, *.safetensors, tokenizer.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from agents.llm.source import Source, apart, check_settings
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


_SPECIAL = {"begin": "bos", "end": "eos", "pad": "pad"}


def read(folder: Path) -> Source:
    """Return the model of a folder.

    Raises InputError for a file that is absent or damaged, for another architecture and
    for rotations of an unknown kind.
    """
    body = read_body(folder)
    template = None
    if (folder / "tokenizer_config.json").is_file():
        template = _json(folder / "tokenizer_config.json").get("chat_template")
    template = template if isinstance(template, str) else None
    return body._replace(tokenizer=_text(folder / "tokenizer.json"), template=template)


def read_body(folder: Path) -> Source:
    """Return what `read` does, but for the tokenizer, which may be absent."""
    config = _json(folder / "config.json")
    kind = config.get("model_type")
    if kind != "llama":
        raise InputError(f"{folder}: its model_type is {kind!r}; only 'llama' is read")
    if config.get("partial_rotary_factor", 1) != 1:
        raise InputError(f"{folder}: only part of each head is rotated; not supported")
    if config.get("hidden_act", "silu") != "silu":
        raise InputError(f"{folder}: hidden_act {config['hidden_act']!r} is not silu")
    settings: dict[str, Any] = {n: config.get(key) for n, key in _SETTINGS.items()}
    heads, width = settings["heads"], settings["width"]
    settings["kv_heads"] = config.get("num_key_value_heads") or heads
    if not all(isinstance(number, int) and number > 0 for number in (heads, width)):
        raise InputError(f"{folder}: config.json has no number of heads, or no width")
    settings["head"] = config.get("head_dim") or width // heads
    settings["epsilon"] = _number(folder, config, "rms_norm_eps", 1e-6)
    # transformers 5 writes both into one dict.
    rotation = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rotation, dict):
        raise InputError(f"{folder}: its rotation is {rotation!r:.80}")
    about = rotation if "rope_theta" in rotation else config
    settings["theta"] = _number(folder, about, "rope_theta", 10_000.0)
    arrays: dict[str, np.ndarray] = {}
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise InputError(f"{folder} has no *.safetensors")
    for path in found:
        arrays |= _arrays(path)
    # The tables may be tied, and yet both be in the file.
    settings["tied"] = bool(config.get("tie_word_embeddings", False))
    if settings["tied"]:
        arrays.pop("lm_head.weight", None)
    for name in [name for name in arrays if name.endswith("rotary_emb.inv_freq")]:
        del arrays[name]  # old files; it follows from the settings
    settings = check_settings(settings, str(folder))
    arrays["frequencies"] = _frequencies(str(folder), settings, rotation)
    special = {}
    for ours, theirs in _SPECIAL.items():
        number = config.get(f"{theirs}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int) and 0 <= number < settings["vocabulary"]:
            special[ours] = number
    return Source(settings, arrays, "", special, None)


def write(folder: Path, source: Source) -> None:
    """Write a model into an existing folder; a tokenizer of "" is left out.

    source: as `agents.llm.prepared` keeps it, arrays by their path in `Body`. Raises
    InputError for rotations that the hub's settings cannot express.
    """
    settings = source.settings
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "torch_dtype": "float32",
        **{key: settings[name] for name, key in _SETTINGS.items()},
        "num_key_value_heads": settings["kv_heads"],
        "head_dim": settings["head"],
        "rms_norm_eps": settings["epsilon"],
        "rope_theta": settings["theta"],
        "rope_scaling": _rotation(settings, source.arrays["frequencies"]),
        "tie_word_embeddings": settings["tied"],
    }
    for ours, theirs in _SPECIAL.items():
        config[f"{theirs}_token_id"] = source.special.get(ours)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    arrays = apart(settings, source.arrays)
    # transformers refuses a file that does not say so.
    (folder / "model.safetensors").write_bytes(save(arrays, {"format": "pt"}))
    if source.tokenizer:
        (folder / "tokenizer.json").write_bytes(source.tokenizer.encode())
        about: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        about |= {"chat_template": source.template} if source.template else {}
        (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=1))


def _rotation(settings: dict[str, Any], frequencies: np.ndarray) -> dict | None:
    """Return the settings that give these frequencies; None for plain ones."""
    plain = _frequencies("", settings, {})
    # All models of Llama 3.1 and later differ in the factor alone.
    stretched = {
        "rope_type": "llama3",
        "factor": round(float(plain[-1] / frequencies[-1]), 3),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    for rotation in (None, stretched):
        same = _frequencies("", settings, rotation or {})
        if np.allclose(same, frequencies, rtol=1e-5, atol=0):
            return rotation
    raise InputError(
        "the body's rotations are stretched in a way that config.json cannot express"
    )


def _frequencies(
    where: str, settings: Mapping[str, Any], rotation: Mapping[str, Any]
) -> np.ndarray:
    half = settings["head"] // 2
    plain = settings["theta"] ** -(np.arange(half) / half)
    kind = rotation.get("rope_type", rotation.get("type", "default"))
    if kind == "default":
        return plain.astype(np.float32)
    keys = ["factor", "low_freq_factor", "high_freq_factor"]
    keys.append("original_max_position_embeddings")
    numbers = [rotation.get(key) for key in keys]
    known = all(isinstance(n, int | float) and n > 0 for n in numbers)
    if kind != "llama3" or not known or numbers[1] == numbers[2]:
        raise InputError(f"{where}: rotations of kind {kind!r} are not supported")
    factor, low, high, context = map(float, numbers)  # type: ignore[arg-type]
    # Llama 3.1: long wavelengths are stretched, short ones kept, in between both.
    turns = context * plain / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (plain * (smooth + (1 - smooth) / factor)).astype(np.float32)


def _number(folder: Path, config: dict, name: str, default: float) -> float:
    number = config.get(name, default)
    if not isinstance(number, int | float):
        raise InputError(f"{folder}: its {name} is {number!r:.80}, not a number")
    return float(number)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        return {n: a.astype(np.float32) for n, a in read_file(path).items()}
    except (TypeError, AttributeError) as error:  # numpy lacks some types
        raise InputError(
            f"{path} has numbers of a type that is not read ({error}); save the model "
            "as float32 or bfloat16"
        ) from None


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
