"""Features of images, files, arrays or a source, seen as a run's evaluation sees them.

The views, sizes and types are those of the first evaluation of the run's config that
says how examples are seen.
"""

import contextlib
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
    source, field = _as_source(data, config, trust)
    views = views_of(config, field, modality, trust)
    with fits_together(f"the run and {source!r}"):
        if not len(source):
            raise InputError(f"{source!r} has no rows to encode")
        # The first row fails at once for data of another type, not after all the rest.
        try:
            seen = _view(source[0], views, modality)
        except CorruptRecord as error:
            raise _refusal(source, 0, f"{error}") from error
        if isinstance(data, np.ndarray | jax.Array) and data.ndim != seen.ndim:
            raise InputError(
                f"an array has a row a sample, so {seen.ndim} axes for the views of "
                f"{modality!r}, not {data.shape}: one sample is x[None]; grey images "
                "[n, h, w] are x[..., None]"
            )
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
            try:
                _view(source[row], views, modality)
            except CorruptRecord as error:
                raise _refusal(source, row, f"{error}") from error
            raise _refusal(source, row, "could not be read before; try again")
    return getattr(extracted, features).astype(np.float32)


def source_of(
    data: str, config: ConfigDict, trust: tuple[str, ...] = ()
) -> tuple[Source, str | None]:
    """Return the source that a user names, and the field with its images.

    data: `FOLDER`, `NAME[:SPLIT]` (default: test) of a prepared data set, or a key of
    the run's config that holds a source, as `config.evaluations.frozen.test`. The field
    is None for a source that names its fields as the run's data do. Raises InputError
    if there is no such source.
    """
    if Path(data).is_dir():
        return Folder(data), "image"
    if data.startswith("config."):
        return _configured(data, config, trust), None
    name, _, split = data.partition(":")
    try:
        return build(prepared(name, split or "test")), None
    except InputError as error:
        raise InputError(
            f"{data} is not a folder, and {error}; sources of the run's config: "
            f"{', '.join(_sources(config)) or 'none'}"
        ) from None


def _configured(key: str, config: ConfigDict, trust: tuple[str, ...]) -> Source:
    spec: Any = {"config": config}
    for name in key.split("."):
        spec = spec.get(name) if hasattr(spec, "get") else None
    if not hasattr(spec, "get") or "target" not in spec:
        raise InputError(
            f"the run has no source at {key!r}, only {', '.join(_sources(config))}"
        )
    source = build(spec, allow_list(trust), where=key.removeprefix("config."))
    if not _is_source(source):
        raise InputError(f"{key} is a {type(source).__name__}, not a source")
    return source


def _sources(spec: Any, where: str = "config") -> list[str]:
    """Return the keys of a config that hold a source."""
    if not hasattr(spec, "items"):
        return []
    last = where.rpartition(".")[2]
    if "target" in spec and last in ("source", "train", "test"):
        return [where]
    return [key for n, part in spec.items() for key in _sources(part, f"{where}.{n}")]


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


def check_modalities(
    config: ConfigDict, views: Callable, source: Source, asked: Sequence[str]
) -> None:
    """Raise InputError if a run lacks a modality, or if no row of a source has it.

    Rows are read, not decoded, until each of the modalities has been met.
    """
    fields: Mapping[str, Sequence[str]] | None = getattr(views, "fields", None)
    known = set(_first_seen(views, source)["views"] if fields is None else fields)
    towers = config.model.get("towers")
    known = {name for name in known if towers is None or name in towers}
    for name in asked:
        if name not in known:
            raise InputError(
                f"the run has no modality {name!r} for {source!r}, only "
                f"{', '.join(sorted(known)) or 'none'}; choose with --modality"
            )
    if fields is None:
        return
    met: set[str] = set()
    for row in range(len(source)):
        with contextlib.suppress(CorruptRecord):
            example = source[row]
            met |= {
                n for n in known if any(example.get(f) is not None for f in fields[n])
            }
        if met.issuperset(asked):
            return
    lacking = next(name for name in asked if name not in met)
    raise InputError(
        f"no row of {source!r} has a view of {lacking!r}; rows have: "
        f"{', '.join(sorted(met)) or 'none'}"
    )


def _first_seen(views: Callable, source: Source) -> dict[str, Any]:
    """Return the views of the first row that can be read."""
    reason = "it has no rows"
    for row in range(len(source)):
        try:
            return views(source[row], np.random.default_rng(0))
        except CorruptRecord as error:
            reason = str(error)
    raise InputError(f"no row of {source!r} can be read ({reason})")


def views_of(
    config: ConfigDict,
    field: str | None,
    modality: str,
    trust: tuple[str, ...] = (),
    targets: Sequence[str] = (),
) -> Callable[..., dict[str, Any]]:
    """Return the function from an example of a source to its views, as the evaluation
    builds it.

    field: where examples have their images, unless the source names its fields as the
    run's data do; targets: the fields passed on. The function raises InputError for
    tokens outside the vocabulary of an encoder. Raises InputError for a config without
    an evaluation.
    """
    spec = copy.deepcopy(viewing(config).views)
    if "targets" in spec:
        spec.targets = tuple(targets)
    views = build(spec, allow_list(trust), where="evaluation.views")
    vocabularies = {
        name: size
        for name, tower in (config.model.get("towers") or {}).items()
        if (size := (tower.get("encoder") or {}).get("vocabulary")) is not None
    }
    renamed = {} if field is None else {_field_of(views, modality): field}
    return _Seen(views, renamed, tuple(targets), vocabularies)


def _is_source(data: Any) -> bool:
    return all(hasattr(data, name) for name in ("__getitem__", "__len__", "targets"))


def _as_source(
    data: Any, config: ConfigDict, trust: tuple[str, ...]
) -> tuple[Source, str | None]:
    """Turn what a user passes into a source, and the field with its images.

    The field is None for a source that names its fields as the run's data do.
    """
    if isinstance(data, str | Path):
        if Path(data).is_file():
            return Files([data]), "image"
        return source_of(str(data), config, trust)
    if isinstance(data, Files | Folder):
        return data, "image"
    if isinstance(data, np.ndarray | jax.Array):
        return _in_memory(np.asarray(data)), "image"
    if _is_source(data):
        return data, None
    if isinstance(data, bytes | Image.Image):
        raise InputError(f"one image is a list of one: [image], not {data!r:.40}")
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
        raise InputError(
            f"an array has a row a sample, [n, ...], not {rows.shape}: one is x[None]"
        )
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


class _Seen:
    """A run's views of examples whose fields may have other names than the run's data.

    Tokens outside the vocabulary of their encoder are refused: it would read the last
    row of its table for all of them.
    """

    def __init__(
        self,
        views: Callable,
        renamed: Mapping[str, str],
        targets: tuple[str, ...],
        vocabularies: Mapping[str, int],
    ):
        self._views, self._renamed, self._targets = views, renamed, targets
        self._vocabularies = vocabularies
        if hasattr(views, "fields"):
            self.fields = {
                modality: [renamed.get(name, name) for name in names]
                for modality, names in views.fields.items()
                if not renamed or not renamed.keys().isdisjoint(names)
            }

    def __call__(
        self, example: Mapping[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        if self._renamed:
            fields = {**self._renamed, **{name: name for name in self._targets}}
            example = {name: example[theirs] for name, theirs in fields.items()}
        seen = self._views(example, rng)
        for name, size in self._vocabularies.items():
            tokens = seen["views"].get(name, np.zeros(1))
            if not 0 <= tokens.min() <= tokens.max() < size:
                wrong = int(tokens[(tokens < 0) | (tokens >= size)][0])
                raise InputError(
                    f"token {wrong} of '{name}' is outside the encoder's vocabulary, 0 "
                    f".. {size - 1}: were the texts prepared with another one?"
                )
        return seen

    def __repr__(self) -> str:
        return repr(self._views)


def _view(example: Mapping[str, Any], views: Callable, modality: str) -> np.ndarray:
    """Return the views [m, ...] of an example. Raises CorruptRecord if it has none."""
    seen = views(example, np.random.default_rng(0))
    if modality not in seen["present"]:
        raise InputError(
            f"the run has no modality {modality!r}, only {', '.join(seen['present'])}"
        )
    if not seen["present"][modality].any():
        raise CorruptRecord(f"has no view of '{modality}'")
    return seen["views"][modality]


def _refusal(source: Source, row: int, reason: str) -> InputError:
    files = getattr(source, "files", None)
    place = f"row {row}" if files is None else files[row]
    return InputError(
        f"{source!r}, {place}: {reason}. Give files or arrays for images, and "
        "leave out rows without features"
    )
