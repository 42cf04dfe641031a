"""Changes to a config from the command line: the file's argument, and keys."""

import ast
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from polyview.config.schema import OPTIONAL
from polyview.errors import InputError, nearest


def parse_arguments(text: str | None, **defaults: Any) -> dict[str, Any]:
    """Parse a config's argument, `configs/x.py:key=value,key=value`.

    Each value gets the type of its default. Raises InputError for an unknown key or a
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


def parse_flags(arguments: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Return `--config.a.b=value` arguments as `{"a.b": "value"}`.

    known: the names of the command's other flags, as argparse stores them, to correct a
    mistyped one. Raises InputError for any other argument.
    """
    overrides = {}
    for argument in arguments:
        key, equals, value = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config."):
            flags = [f"--{name.replace('_', '-')}" for name in known]
            hint = nearest(argument.split("=")[0], flags)
            raise InputError(
                f"unknown argument {argument!r} (config keys are set with "
                f"--config.key=value){hint}"
            )
        if not equals:
            raise InputError(f"{argument}: write {argument}=VALUE, without a space")
        overrides[key] = value
    return overrides


def apply_overrides(config: ConfigDict, overrides: Mapping[str, str]) -> None:
    """Apply `{"a.b": "value"}` to a config; each value gets the type of the old one.

    Raises InputError for an unknown key or a wrong type.
    """
    for key, value in overrides.items():
        _override(config, key, value)


def _override(config: ConfigDict, key: str, text: str) -> None:
    *parents, last = key.split(".")
    if key in OPTIONAL and key not in config:
        with config.unlocked():
            config[key] = None
    node = config
    for name in [*parents, last]:
        group = isinstance(node, ConfigDict)
        if not group or name not in node:
            known = [*(node if group else ()), *(OPTIONAL if node is config else ())]
            raise InputError(f"--config.{key}: no key {name!r}{nearest(name, known)}")
        parent, node = node, node[name]
    value = _parse(text, node, f"--config.{key}")
    with parent.unlocked():
        parent[last] = value


def _parse(text: str, old: Any, where: str) -> Any:
    """Parse `text` as the type of `old`; a key that was None takes any literal."""
    if isinstance(old, ConfigDict):
        if text.lower() == "none":
            return None
        raise InputError(
            f"{where} is a group of keys; set one of them, as {where}.key=..."
        )
    if isinstance(old, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    if value is None:
        return value
    if old is None:
        if not _plain(value):
            raise InputError(f"{where}: give a number, a string or a list of them")
        return value
    if isinstance(old, float) and type(value) is int:
        return float(value)
    if isinstance(old, list | tuple) and isinstance(value, list | tuple):
        return type(old)(value)
    if type(value) is not type(old):
        given = text if len(text) < 80 else f"{text[:80]}..."
        raise InputError(
            f"{where}={given}: expected {type(old).__name__}, like {old!r}"
        )
    return value


def _plain(value: Any) -> bool:
    """Whether JSON can represent a value."""
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or type(value) in (bool, int, float, str)
