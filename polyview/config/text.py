"""Configs as text: JSON, its digest, dotted keys."""

import hashlib
import json
from typing import Any

from ml_collections import ConfigDict

from polyview.errors import InputError

DEEPEST = 32  # levels of keys in a config; ours have at most 6


def to_json(config: Any) -> str:
    """Return the config as JSON with sorted keys; equal configs give equal text."""
    plain = config.to_dict() if hasattr(config, "to_dict") else config
    return json.dumps(plain, sort_keys=True, indent=2)


def from_json(text: str) -> ConfigDict:
    """Return the ConfigDict of `to_json`'s text; tuples become lists.

    Raises InputError if it is not a JSON object or is nested too deeply.
    """
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the config is not JSON: {error}") from error
    if not isinstance(plain, dict):
        raise InputError("the config is JSON, but not an object")
    if _depth(plain) > DEEPEST:
        raise InputError(f"the config is nested deeper than {DEEPEST} keys")
    try:
        return ConfigDict(plain, allow_dotted_keys=True)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"the config has an invalid key: {error}") from error


def _depth(tree: Any) -> int:
    """Return the depth of nested dicts and lists, without recursion."""
    depth, level = 0, [tree]
    while level := [part for part in level if isinstance(part, dict | list)]:
        depth += 1
        level = [
            below
            for part in level
            for below in (part.values() if isinstance(part, dict) else part)
        ]
    return depth


def text_digest(text: str) -> str:
    """Return the sha256 of a config's JSON."""
    return hashlib.sha256(text.encode()).hexdigest()


def dotted(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Name each leaf of nested dicts by its keys: `{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    if not isinstance(tree, dict) or not tree:
        return {prefix.rstrip("."): tree}
    return {
        k: v
        for key, sub in tree.items()
        for k, v in dotted(sub, f"{prefix}{key}.").items()
    }
