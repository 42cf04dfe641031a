"""Specs are dicts that describe objects; `build` creates the objects.

`{"target": "package.module:Name", **fields}` is the call `Name(**fields)`.
`{"partial": "package.module:Name", **fields}` is `functools.partial(Name, **fields)`,
if an argument comes later (a module's seed, a loss's features, an optimiser's steps).
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from polyview.config.trust import import_target
from polyview.errors import InputError, OutOfRange, nearest


def build(
    spec: Any, trusted: frozenset[str] | None = None, where: str = "config"
) -> Any:
    """Build the object that a spec describes, and every object inside it.

    trusted: what a checkpoint may call (see `polyview.config.trust`); None allows any.
    Raises InputError for a target that cannot be imported or is not trusted, for wrong
    fields and for numbers out of range.
    """
    if isinstance(spec, ConfigDict | FrozenConfigDict):
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
    function = import_target(spec[word], trusted, where)
    try:
        signature = inspect.signature(function)
        (signature.bind if word == "target" else signature.bind_partial)(**fields)
    except TypeError as error:
        known = [p for p in signature.parameters]
        unknown = [f for f in fields if f not in known]
        hint = nearest(unknown[0], known) if unknown else ""
        raise InputError(f"{where} ({spec[word]}): {error}{hint}") from error
    if word == "partial":
        later = _Partial(function, **fields)
        later.where = where
        return later
    try:
        return function(**fields)
    except OutOfRange as error:
        raise InputError(f"config key {where}.{error}") from error
    except ValueError as error:
        raise InputError(f"{where} ({spec[word]}): {error}") from error


class _Partial(functools.partial):
    """A partial that names the config key of a number out of range."""

    where: str

    def __call__(self, *args: Any, **fields: Any) -> Any:
        try:
            return super().__call__(*args, **fields)
        except OutOfRange as error:
            raise InputError(f"config key {self.where}.{error}") from error
