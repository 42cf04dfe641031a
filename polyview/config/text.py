"""A config as text: JSON, its digest, its dotted keys."""

import hashlib
import json

import ml_collections

from polyview.errors import InputError

DEEPEST = 32  # keys of keys in a config; the deepest of ours are 6


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
    if _depth(plain) > DEEPEST:
        raise InputError(f"the config is nested deeper than {DEEPEST} keys")
    try:
        return ml_collections.ConfigDict(plain, allow_dotted_keys=True)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"the config has a key that cannot be: {error}") from error


def _depth(tree) -> int:
    """How many dicts and lists lie within one another, without recursion."""
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


def dotted(tree, prefix: str = "") -> dict:
    """Name each leaf of nested dicts by its keys: `{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    if not isinstance(tree, dict) or not tree:
        return {prefix.rstrip("."): tree}
    return {
        k: v
        for key, sub in tree.items()
        for k, v in dotted(sub, f"{prefix}{key}.").items()
    }
