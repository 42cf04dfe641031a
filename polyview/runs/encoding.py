"""Features of images, files, arrays or a source, seen as a run's evaluation sees them.

The views, sizes and types are those of the first evaluation of the run's config that
says how examples are seen.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from polyview import devices
from polyview.config.parts import prepared
from polyview.config.spec import build
from polyview.config.trust import allow_list
from polyview.data.sources.folder import Files, Folder
from polyview.data.sources.memory import InMemory
from polyview.data.sources.protocol import CorruptRecord, Source
from polyview.errors import InputError, fits_together
from polyview.evaluation.base import viewing_spec
from polyview.evaluation.features import extract
from polyview.model import Model


def encode(
    model: Model,
    config: ConfigDict,
    data: Any,
    *,
    features: str = "h",
    modality: str | None = None,
    batch_size: int = 256,
    trust: tuple[str, ...] = (),
) -> np.ndarray:
    """Return the features of every row of `data`, in order: float32[n, d'].

    model: on all devices. The other arguments are those of `Loaded.encode`.
    """
    if features not in ("h", "z"):
        raise InputError(f"features is {features!r}, not 'h' or 'z'")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, not 1 or more")
    modality = modality or viewed_modality(config)
    source, field = _as_source(data)
    views = views_of(config, {} if field else source.targets, trust)
    if field:
        views = _Renamed(views, field, _field_of(views, modality))
    with fits_together(f"the run and {source!r}"):
        if not len(source):
            raise InputError(f"{source!r} has no rows to encode")
        # The first row fails at once for data of another type, not after all the rest.
        if reason := _missing(source[0], views, modality):
            raise _refusal(source, 0, reason)
        mesh = devices.make_mesh()
        with jax.set_mesh(mesh):
            extracted = extract(
                model,
                source,
                views,
                batch_size=batch_size,
                mesh=mesh,
                modality=modality,
            )
        complete = np.zeros(len(source), bool)
        complete[extracted.index[extracted.present]] = True
        if not complete.all():
            row = int(complete.argmin())
            reason = _missing(source[row], views, modality)
            raise _refusal(source, row, reason or "could not be read before; try again")
    return getattr(extracted, features).astype(np.float32)


def source_of(data: str) -> Source:
    """Return the source that `FOLDER` or `NAME[:SPLIT]` (default: test) names.

    Raises InputError if there is neither such a folder nor such a data set.
    """
    if Path(data).is_dir():
        return Folder(data)
    name, _, split = data.partition(":")
    try:
        return build(prepared(name, split or "test"))
    except InputError as error:
        raise InputError(f"{data} is not a folder, and {error}") from None


def viewing(config: ConfigDict) -> Any:
    """Return the spec of the first evaluation that says how examples are seen.

    Raises InputError for a config without one.
    """
    spec = viewing_spec(config)
    if spec is None:
        raise InputError(
            "the run's config has no evaluation that says how to see images"
        )
    return spec


def viewed_modality(config: ConfigDict) -> str:
    """Return the modality that this evaluation reads."""
    return viewing(config).get("modality", "image")


def views_of(
    config: ConfigDict, targets: Mapping[str, Any], trust: tuple[str, ...] = ()
) -> Callable[..., dict[str, Any]]:
    """Return the function from an example to its views, as the evaluation builds it.

    It passes the label on if a source with these `targets` has one. Raises InputError
    for a config without an evaluation.
    """
    spec = copy.deepcopy(viewing(config).views)
    spec.targets = tuple(t for t in ("label",) if t in targets)
    return build(spec, allow_list(trust), where="evaluation.views")


def _as_source(data: Any) -> tuple[Source, str | None]:
    """Turn what a user passes into a source.

    Also returns the field that has the images, for a source that does not name its
    fields as the run's data do.
    """
    if isinstance(data, str | Path):
        if Path(data).is_file():
            return Files([data]), "image"
        source = source_of(str(data))
        return source, "image" if isinstance(source, Folder) else None
    if isinstance(data, Files | Folder):
        return data, "image"
    if isinstance(data, np.ndarray | jax.Array):
        return _in_memory(np.asarray(data)), "image"
    if all(hasattr(data, name) for name in ("__getitem__", "__len__", "targets")):
        return data, None
    if isinstance(data, Sequence):
        if all(isinstance(item, str | Path) for item in data):
            return Files(data), "image"
        return _in_memory([_pixels(item) for item in data]), "image"
    raise InputError(
        f"cannot encode a {type(data).__name__}; give a folder, NAME:SPLIT, paths, "
        "images, an array [n, ...] or a source"
    )


def _in_memory(rows: np.ndarray | list[np.ndarray | bytes]) -> InMemory:
    if isinstance(rows, np.ndarray) and rows.ndim < 2:
        raise InputError(f"an array has a row a sample, [n, ...], not {rows.shape}")
    return InMemory({"image": rows})


def _pixels(item: Any) -> np.ndarray | bytes:
    """Turn an image of Pillow into RGB pixels; leave arrays and encoded bytes."""
    if isinstance(item, Image.Image):
        return np.asarray(item if item.mode == "L" else item.convert("RGB"))
    if isinstance(item, bytes):
        return item
    if isinstance(item, np.ndarray | jax.Array):
        return np.asarray(item)
    raise InputError(
        f"cannot encode a {type(item).__name__}: a sequence holds paths, images of "
        "Pillow, arrays or encoded bytes"
    )


def _field_of(views: Any, modality: str) -> str:
    """Return the field of an example in which these views look for a modality."""
    fields = getattr(views, "fields", {}).get(modality)
    return fields[0] if fields else getattr(views, "field", "image")


class _Renamed:
    """Views of examples that name their images differently from the run's data."""

    def __init__(self, views: Callable, field: str, name: str):
        self._views, self._field, self._name = views, field, name

    def __call__(
        self, example: Mapping[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        return self._views({self._name: example[self._field]}, rng)


def _missing(example: Mapping[str, Any], views: Callable, modality: str) -> str:
    """Return why an example has no view of a modality; "" if it has one."""
    try:
        seen = views(example, np.random.default_rng(0))
    except CorruptRecord as error:
        return str(error)
    present = seen["present"].get(modality, np.ones(1)).any()
    return "" if present else f"has no view of '{modality}'"


def _refusal(source: Source, row: int, reason: str) -> InputError:
    files = getattr(source, "files", None)
    place = f"row {row}" if files is None else files[row]
    return InputError(
        f"{source!r}, {place}: {reason}. Give uint8[h, w, c] or files for images, and "
        "leave out rows without features"
    )
