"""Initial weights of a new state: `{path in the new state: (donor, path in it)}`.

A donor is the folder of a run, a safetensors file (with our names, or with those of
torchvision and timm if the path is that of an encoder), or "sha256:DIGEST", a file of
the data folder. A path names a module or an array, as "towers.image.encoder"; "" is the
whole model. An entry may also be a dict of

    from     the donor
    path     the path in the donor; by default the same
    fresh    patterns of paths below that keep their initial values
    leave    patterns of the donor's paths that may stay unused

The donor's arrays are laid over those of the new state, in its types and shardings.
Arrays that the donor lacks start fresh and are reported. Unused arrays are an error.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from polyview.data.sources.protocol import default_data_dir
from polyview.errors import InputError
from polyview.runs import torch_names
from polyview.runs.checksum import flatten
from polyview.runs.load import load
from polyview.runs.weights import file_digest, moved, read_file, under


class Entry(NamedTuple):
    """One parsed entry of an `init`."""

    at: str
    donor: str
    path: str
    fresh: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()


class LaidOver(NamedTuple):
    """The result of `lay_over`.

    parts: the given parts, with donated arrays in place; taken: number of arrays from
    each donor; fresh: paths that no donor has; referenced: entries, for a checkpoint's
    record, of fixed weights in files of their own.
    """

    parts: tuple[dict, ...]
    taken: dict[str, int]
    fresh: list[str]
    referenced: list[dict]

    def over(self, made: tuple[dict, ...]) -> tuple[dict, ...]:
        """Return the parts of a new state, with donated arrays in place.

        made: arrays of the same shapes as `parts`, or with a leading axis of copies
        that all start from the same values.
        """

        def begun(array: jax.Array, taken: Any) -> jax.Array:
            if not isinstance(taken, jax.Array):
                return array
            return jnp.broadcast_to(taken, array.shape)

        return jax.tree.map(begun, made, self.parts)

    def __str__(self) -> str:
        taken = ", ".join(f"{n} arrays of {donor}" for donor, n in self.taken.items())
        roots = sorted({".".join(name.split(".")[:3]) for name in self.fresh})
        more = f" and {len(roots) - 3} more" if len(roots) > 3 else ""
        fresh = f"; fresh: {', '.join(roots[:3])}{more}" if roots else ""
        return f"{taken}{fresh}"


def entries_of(config: Mapping) -> list[Entry]:
    """Return the `init` of a config; `init_from: RUN` takes the encoder of each tower.

    Raises InputError for a malformed map.
    """
    init: Any = config.get("init")
    init = init.to_dict() if hasattr(init, "to_dict") else init
    if config.get("init_from") is not None:
        if init:
            raise InputError("init and init_from are both set; keep one")
        towers = (config.get("model") or {}).get("towers") or {}
        init = {f"towers.{name}.encoder": config["init_from"] for name in towers}
    if init is None:
        return []
    if isinstance(init, str):
        init = {"": init}
    if not isinstance(init, Mapping):
        raise InputError(f"init={init!r} is not a map of paths to (run, path in it)")
    return [_entry(at, value) for at, value in init.items()]


def _entry(at: str, value: Any) -> Entry:
    if isinstance(value, str):
        return Entry(at, value, at)
    if isinstance(value, Mapping) and isinstance(value.get("from"), str):
        known = {"from", "path", "fresh", "leave"}
        path = value.get("path", at)
        patterns: list[Any] = [value.get(key) for key in ("fresh", "leave")]
        patterns = [() if p is None else p for p in patterns]
        if not set(value) - known and isinstance(path, str):
            if all(map(_are_words, patterns)):
                return Entry(at, value["from"], path, *map(tuple, patterns))
    elif _are_words(value) and len(value) == 2:
        return Entry(at, *value)
    raise InputError(
        f"init at {at!r} is {value!r}; give a run or (run, path in it), or a dict of "
        "from, path, and the pattern lists fresh and leave"
    )


def _are_words(value: Any) -> bool:
    is_list = isinstance(value, list | tuple)
    return is_list and all(isinstance(word, str) for word in value)


def lay_over(
    entries: Iterable[Entry],
    module: nnx.Module,
    parts: tuple[dict, ...],
    trust: tuple[str, ...] = (),
) -> LaidOver:
    """Lay donors over the parts of a state: nested dicts of shapes, or of arrays.

    Where entries overlap, the later one wins. module: the model, for the names of other
    libraries; parts: the last one holds the fixed weights, and shapes must have a
    sharding; trust: packages that the donors' configs may call besides those of each
    `trusted.txt`. Raises InputError for a donor that cannot be read, has nothing at the
    path, has an array of another shape, or has unused arrays.
    """
    named = [flatten(part) for part in parts]
    wanted = {name: leaf for part in named for name, leaf in part.items()}
    donated: dict[str, jax.Array] = {}
    taken: dict[str, int] = {}
    last: dict[str, Entry] = {}  # the entry that gave each array
    files: list[tuple[Entry, str]] = []
    for entry in entries:
        mine = {
            name: leaf
            for name, leaf in wanted.items()
            if under(name, entry.at) and not _matches(name, entry.fresh)
        }
        if not mine:
            raise InputError(f"init: this model has nothing at {entry.at!r}")
        arrays, digest = _donated(entry, module, mine, trust)
        unused = dict(arrays)
        for name, leaf in mine.items():
            theirs = moved(name, entry.at, entry.path)
            if theirs in arrays:
                donated[name] = _fitted(arrays[theirs], leaf, name, theirs, entry)
                last[name] = entry
                unused.pop(theirs, None)
        extra = [n for n in unused if under(n, entry.path) and not _allowed(n, entry)]
        if extra:
            raise InputError(
                f"init: {len(extra)} arrays of {entry.donor} have no place at "
                f"{entry.at or 'the model'!r}, as {extra[0]!r}: another model? List in "
                "`leave` the arrays that may stay unused"
            )
        count = sum(giver is entry for giver in last.values())
        if not count:
            raise InputError(f"init: {entry.donor} has nothing at {entry.path!r}")
        taken[entry.donor] = taken.get(entry.donor, 0) + count
        if digest is not None:
            files.append((entry, digest))
    referenced = []
    for entry, digest in files:
        below = [name for name in named[-1] if under(name, entry.at)]
        # A later entry may have replaced some of these arrays.
        if below and all(last.get(name) is entry for name in below):
            source = f"the file {Path(entry.donor).name}"
            about = {"sha256": digest, "at": entry.at, "from": entry.path}
            referenced.append({**about, "source": source, "kept": False})
    fresh = sorted(wanted.keys() - donated.keys())
    laid = tuple(
        jax.tree.unflatten(
            jax.tree.structure(part),
            [donated.get(name, leaf) for name, leaf in leaves.items()],
        )
        for part, leaves in zip(parts, named, strict=True)
    )
    return LaidOver(laid, taken, fresh, referenced)


def _donated(
    entry: Entry, module: nnx.Module, mine: Mapping[str, Any], trust: tuple[str, ...]
) -> tuple[Mapping[str, Any], str | None]:
    """Return the donor's arrays by path, and the digest of a file with our names."""
    if entry.donor.startswith("sha256:"):
        digest = entry.donor.removeprefix("sha256:")
        path = default_data_dir() / "weights" / f"{digest}.safetensors"
        if not path.is_file() or file_digest(path) != digest:
            raise InputError(f"init: {path} does not exist or has another sha256")
        return read_file(path), digest
    path = Path(entry.donor)
    if path.is_file():
        theirs = read_file(path)
        layout = torch_names.layout_of(theirs)
        if layout == "safetensors":
            return theirs, file_digest(path)
        if entry.path not in ("", entry.at):
            raise InputError(
                f"init: {path} has the names of another library, which have no path "
                f"{entry.path!r}; leave the path out"
            )
        shapes = {moved(name, entry.at, ""): leaf.shape for name, leaf in mine.items()}
        encoder: Any = module
        for name in filter(None, entry.at.split(".")):
            encoder = (
                encoder[name] if name in _keys(encoder) else getattr(encoder, name)
            )
        try:
            _, arrays = torch_names.to_ours(encoder, shapes, theirs)
        except InputError as error:
            raise InputError(f"{path} does not fit the config: {error}") from error
        return {moved(name, "", entry.path): a for name, a in arrays.items()}, None
    sharding = next(iter(mine.values())).sharding
    whole = (
        jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        if isinstance(sharding, jax.sharding.NamedSharding)
        else sharding
    )
    return load(entry.donor, sharding=whole, trust=trust).arrays, None


def _keys(module: Any) -> Iterable[str]:
    return module.keys() if isinstance(module, nnx.Dict) else ()


def _fitted(array: Any, leaf: Any, name: str, theirs: str, entry: Entry) -> jax.Array:
    if tuple(array.shape) != tuple(leaf.shape):
        raise InputError(
            f"init: {theirs} of {entry.donor} has shape {tuple(array.shape)}, but "
            f"{name} here has {tuple(leaf.shape)}"
        )
    if (
        isinstance(array, np.ndarray)
        and not np.isfinite(array.astype(np.float32)).all()
    ):
        raise InputError(f"init: {theirs} of {entry.donor} is not finite")
    return jax.device_put(array.astype(leaf.dtype), leaf.sharding)


def _allowed(name: str, entry: Entry) -> bool:
    here = moved(name, entry.path, entry.at)
    return _matches(name, entry.leave) or _matches(here, entry.fresh)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
