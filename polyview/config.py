"""Configurations: a file of Python gives a dict; a dict gives objects; nothing else.

A spec is a dict with one of two words. `{"target": "package.module:Name", **fields}` is
the call `Name(**fields)`. `{"partial": "package.module:Name", **fields}` is
`functools.partial(Name, **fields)`, for what still lacks an argument that only the
program knows (a module its seed, a loss its features, an optimiser the steps).
"""

import ast
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_collections

from polyview.errors import InputError

# A checkpoint may be a stranger's: only these packages are imported on its behalf.
TRUSTED = ("polyview", "sgi")
# What may differ between a run and its continuation: none of it changes the numbers.
FREE = ("mesh", "workers", "log_every", "evaluate_every", "checkpoint_every", "keep")


def arguments(text: str, **defaults) -> dict:
    """Parse a config's argument, `configs/x.py:key=value,key=value`.

    Each value takes the type of its default. Raises InputError for an unknown key or a
    value of another type.
    """
    values = dict(defaults)
    for part in filter(None, (text or "").split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"config argument {part!r}: write key=value")
        if key not in defaults:
            raise InputError(
                f"config argument {key!r} is unknown{nearest(key, defaults)}"
            )
        values[key] = _parse(value, defaults[key], f"config argument {key}")
    return values


def nearest(name: str, names: Iterable[str]) -> str:
    """Return '; did you mean ...?' for a mistyped name, or the names there are."""
    names = [str(n) for n in names]
    match = difflib.get_close_matches(name, names, 1, cutoff=0.5)
    if match:
        return f"; did you mean {match[0]!r}?"
    return f"; there are: {', '.join(sorted(names))}"


def load(path_and_argument: str, overrides: Mapping[str, str] | None = None):
    """Return the ConfigDict of `file.py:argument` with `{"a.b": "value"}` laid over it.

    Raises InputError for a missing or broken file, an unknown key or a wrong type.
    """
    path, _, argument = path_and_argument.partition(":")
    if not Path(path).is_file():
        folder = Path(path).parent
        files = [str(p) for p in folder.glob("*.py")] if folder.is_dir() else []
        raise InputError(f"config file {path} does not exist{nearest(path, files)}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None:
        raise InputError(f"config file {path} is not Python: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except InputError:
        raise
    except Exception as error:  # a user's file: whatever it raises is theirs to read
        raise InputError(f"config file {path} fails: {_describe(error)}") from error
    if not hasattr(module, "get_config"):
        raise InputError(f"config file {path} has no get_config(argument)")
    config = ml_collections.ConfigDict(module.get_config(argument))
    for key, value in (overrides or {}).items():
        _override(config, key, value)
    return config


def _override(config, key: str, text: str) -> None:
    *parents, last = key.split(".")
    node = config
    for name in [*parents, last]:
        if not isinstance(node, ml_collections.ConfigDict) or name not in node:
            known = node.keys() if isinstance(node, ml_collections.ConfigDict) else []
            raise InputError(f"--config.{key}: no key {name!r}{nearest(name, known)}")
        parent, node = node, node[name]
    value = _parse(text, node, f"--config.{key}")
    with parent.unlocked():
        parent[last] = value


def _parse(text: str, old, where: str):
    """Read `text` as the type of `old`; a key that was None takes any literal."""
    if isinstance(old, ml_collections.ConfigDict):
        raise InputError(
            f"{where} is a group of keys; set one of them, as {where}.key=..."
        )
    if isinstance(old, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    if old is None or value is None:
        return value
    if isinstance(old, float) and type(value) is int:
        return float(value)
    if isinstance(old, list | tuple) and isinstance(value, list | tuple):
        return type(old)(value)
    if type(value) is not type(old):
        raise InputError(f"{where}={text}: expected {type(old).__name__}, like {old!r}")
    return value


def check(config) -> None:
    """Hold the common keys to their ranges.

    Raises InputError that names the key, its value and what it must be.
    """
    required = (
        "seed",
        "batch_size",
        "source",
        "views",
        "model",
        "objective",
        "optimizer",
    )
    for key in required:
        if key not in config:
            raise InputError(f"the config has no key {key!r}")
    if (config.get("steps") is None) == (config.get("epochs") is None):
        raise InputError(
            "the config must set one of steps and epochs, the other to None"
        )
    lowest = {
        "seed": 0,
        "steps": 1,
        "epochs": 1,
        "batch_size": 2,
        "log_every": 1,
        "checkpoint_every": 1,
        "evaluate_every": 0,
        "workers": 0,
        "keep": 2,
    }
    for key, least in lowest.items():
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"config key {key}={value!r}: expected an integer")
        if value < least:
            raise InputError(f"config key {key}={value}: it must be {least} or more")


def build(spec, trusted: tuple[str, ...] | None = None, where: str = "config"):
    """Turn a spec into the object it describes, and everything inside it.

    `trusted` limits the packages that may be imported (for a checkpoint's config);
    None allows any. Raises InputError for a target that cannot be imported, a package
    outside `trusted`, or fields that the target does not take.
    """
    if isinstance(spec, ml_collections.ConfigDict | ml_collections.FrozenConfigDict):
        spec = spec.to_dict()
    if isinstance(spec, list | tuple):
        parts = [build(s, trusted, f"{where}[{i}]") for i, s in enumerate(spec)]
        return type(spec)(parts)
    if not isinstance(spec, Mapping):
        return spec
    words = {"target", "partial"} & set(spec)
    fields = {
        k: build(v, trusted, f"{where}.{k}") for k, v in spec.items() if k not in words
    }
    if not words:
        return fields
    if len(words) == 2:
        raise InputError(f"{where} has both 'target' and 'partial'; keep one")
    word = words.pop()
    function = _import(spec[word], trusted, where)
    try:
        signature = inspect.signature(function)
        (signature.bind if word == "target" else signature.bind_partial)(**fields)
    except TypeError as error:
        known = [p for p in signature.parameters]
        unknown = [f for f in fields if f not in known]
        hint = nearest(unknown[0], known) if unknown else ""
        raise InputError(f"{where} ({spec[word]}): {error}{hint}") from error
    if word == "partial":
        return functools.partial(function, **fields)
    try:
        return function(**fields)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} ({spec[word]}): {error}") from error


def _import(name, trusted: tuple[str, ...] | None, where: str):
    module, colon, attribute = str(name).partition(":")
    if not colon or not attribute.isidentifier():
        raise InputError(f"{where}: {name!r} is not of the form package.module:Name")
    package = module.split(".")[0]
    if trusted is not None and package not in trusted:
        raise InputError(
            f"{where} names {name!r}, outside the packages trusted in a checkpoint "
            f"({', '.join(trusted)}); if you trust it, pass its package with --trust"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise InputError(f"{where}: {name!r}: {error}") from error
    except AttributeError as error:
        names = vars(importlib.import_module(module))
        raise InputError(
            f"{where}: {module} has no {attribute!r}{nearest(attribute, names)}"
        ) from error
    # What a module merely imported is not part of it: `polyview.x:os` is refused.
    if (
        trusted is not None
        and (getattr(found, "__module__", "") or "").split(".")[0] not in trusted
    ):
        raise InputError(f"{where}: {name!r} is not defined in a trusted package")
    if not callable(found):
        raise InputError(f"{where}: {name!r} is not a class or a function")
    return found


def to_json(config) -> str:
    """Return the config as JSON with sorted keys: the same text for the same config."""
    plain = config.to_dict() if hasattr(config, "to_dict") else config
    return json.dumps(plain, sort_keys=True, indent=2)


def from_json(text: str):
    """Return the ConfigDict of `to_json`'s text (tuples come back as lists).

    Raises InputError when it is not JSON or not an object.
    """
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the config is not JSON: {error}") from error
    if not isinstance(plain, dict):
        raise InputError("the config is JSON, but not an object of keys")
    return ml_collections.ConfigDict(plain, convert_dict=True)


def digest(text: str) -> str:
    """Return the sha256 of a config's JSON."""
    return hashlib.sha256(text.encode()).hexdigest()


def difference(old, new) -> list[str]:
    """List, as 'key: old -> new', what differs and must not within one run."""
    old, new = (json.loads(to_json(c)) for c in (old, new))
    a, b = _flat(old), _flat(new)
    keys = [k for k in sorted(a | b) if k.split(".")[0] not in FREE]
    return [
        f"{k}: {a.get(k, 'absent')!r} -> {b.get(k, 'absent')!r}"
        for k in keys
        if a.get(k, "absent") != b.get(k, "absent")
    ]


def _flat(tree, prefix: str = "") -> dict:
    if not isinstance(tree, dict) or not tree:
        return {prefix.rstrip("."): tree}
    return {
        k: v
        for key, sub in tree.items()
        for k, v in _flat(sub, f"{prefix}{key}.").items()
    }


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
