"""Initial weights of a new state: `{path in the new state: (donor, path in it)}`.

A donor is the folder of a run, a safetensors file (with our names, or with those of
torchvision and timm if the path is that of an encoder), or "sha256:DIGEST", a file of
the data folder. A path names a module or an array, as "towers.image.encoder"; "" is the
whole model. In a file the path is the prefix of its names, as "module.encoder_q"; by
default the only prefix that makes the names fit. An entry may also be a dict of

    from     the donor
    path     the path in the donor; by default the same
    fresh    patterns of paths below that keep their initial values
    leave    patterns of the donor's paths that may stay unused
    first    patterns of paths below whose first rows are taken where the donor has
             more, as of the stacked blocks of a deeper model
    source   a line that says where a file comes from, for messages

The donor's arrays are laid over those of the new state, in its types and shardings.
Learned positions of a ViT are resized to its images (`polyview.runs.positions`). Arrays
that the donor lacks start fresh and are reported. Unused arrays are an error; a file's
arrays beside the module, such as a classifier, are left out and reported.
"""

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from polyview.data.sources.protocol import default_data_dir
from polyview.errors import InputError
from polyview.nn.vit import ViT
from polyview.runs import positions, torch_names
from polyview.runs.checkpoint import fixed_record
from polyview.runs.checksum import flatten
from polyview.runs.load import load
from polyview.runs.prefixes import Part, both_names, class_token, groups, part_of
from polyview.runs.weights import (
    file_digest,
    first_rows,
    keep_fixed,
    moved,
    read_file,
    read_fixed,
    under,
)


class Entry(NamedTuple):
    """One parsed entry of an `init`."""

    at: str
    donor: str
    path: str
    fresh: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    source: str = ""


class LaidOver(NamedTuple):
    """The result of `lay_over`.

    parts: the given parts, with donated arrays in place; taken: number of arrays from
    each donor; fresh: paths that no donor has; referenced: entries, for a checkpoint's
    record, of fixed weights in files of their own; notes: what was renamed, left out or
    resized, of each donor.
    """

    parts: tuple[dict, ...]
    taken: dict[str, int]
    fresh: list[str]
    referenced: list[dict]
    notes: dict[str, list[str]]

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
        told = {donor: "; ".join(notes) for donor, notes in self.notes.items()}
        taken = ", ".join(
            f"{n} arrays of {donor}{f' ({told[donor]})' if told.get(donor) else ''}"
            for donor, n in self.taken.items()
        )
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
        known = {"from", "path", "fresh", "leave", "first", "source"}
        path, source = value.get("path", at), value.get("source", "")
        patterns: list[Any] = [value.get(key) for key in ("fresh", "leave", "first")]
        patterns = [() if p is None else p for p in patterns]
        if not set(value) - known and _are_words([path, source]):
            if all(map(_are_words, patterns)):
                fresh, leave, first = map(tuple, patterns)
                return Entry(at, value["from"], path, fresh, leave, first, source)
    elif _are_words(value) and len(value) == 2:
        return Entry(at, *value)
    raise InputError(
        f"init at {at!r} is {value!r}; give a run or (run, path in it), or a dict of "
        "from, path, and the pattern lists fresh, leave and first"
    )


def _are_words(value: Any) -> bool:
    is_list = isinstance(value, list | tuple)
    return is_list and all(isinstance(word, str) for word in value)


def begun(
    laid: LaidOver | None, made: tuple[dict, ...], workdir: Path, seed: int
) -> tuple[tuple[dict, ...], list[dict]]:
    """Return the parts that a run starts from, and the record of its fixed weights.

    made: the parts from the run's seed; the last, fixed weights, are saved once.
    """
    if laid is None:
        return made, keep_fixed(workdir, made[-1], [], f"seed {seed}")
    parts = laid.over(made)
    return parts, keep_fixed(workdir, parts[-1], laid.referenced, f"{laid}")


def fixed_again(
    workdir: Path, folder: Path, fixed: dict, config: ConfigDict, trusted: bool
) -> tuple[dict, list[dict]]:
    """Return the fixed weights that a checkpoint's folder names, and their record.

    fixed: their shapes. trusted: whether the config may choose files to read.
    """
    record = fixed_record(folder) or []
    entries = entries_of(config) if trusted else []
    files = [Path(e.donor) for e in entries if Path(e.donor).is_file()]
    return read_fixed(workdir, record, fixed, files), record


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
    path, has an array of another shape or with numbers that are not finite, or has
    unused arrays.
    """
    named = [flatten(part) for part in parts]
    wanted = {name: leaf for part in named for name, leaf in part.items()}
    vits = _learned_positions(module)
    donated: dict[str, jax.Array] = {}
    taken: dict[str, int] = {}
    notes: dict[str, list[str]] = {}
    last: dict[str, Entry] = {}  # the entry that gave each array
    files: list[tuple[Entry, _Donor]] = []  # to name by digest in a checkpoint
    for entry in entries:
        mine = {
            name: leaf
            for name, leaf in wanted.items()
            if under(name, entry.at) and not _matches(name, entry.fresh)
        }
        if not mine:
            raise InputError(f"init: this model has nothing at {entry.at!r}")
        donor = _donated(entry, module, mine, wanted, trust)
        given = _fitted(entry, donor, mine, vits)
        donated |= given.arrays
        last |= dict.fromkeys(given.arrays, entry)
        count = sum(giver is entry for giver in last.values())
        if not count:
            raise InputError(
                f"init: {entry.donor} has nothing at {donor.path!r}; "
                f"{both_names(mine, donor.arrays)}"
            )
        taken[entry.donor] = taken.get(entry.donor, 0) + count
        told = notes.setdefault(entry.donor, [])
        told += [n for n in (*donor.notes, *given.notes) if n not in told]
        if donor.digest is not None and not given.notes:
            files.append((entry, donor))
    referenced = []
    for entry, donor in files:
        below = [name for name in named[-1] if under(name, entry.at)]
        # A later entry may have replaced some of these arrays.
        if below and all(last.get(name) is entry for name in below):
            source = entry.source or f"the file {Path(entry.donor).name}"
            about: dict = {"sha256": donor.digest, "at": entry.at, "from": donor.path}
            about |= {"first": [*entry.first]} if entry.first else {}
            referenced.append({**about, "source": source, "kept": False})
    fresh = sorted(wanted.keys() - donated.keys())
    laid = tuple(
        jax.tree.unflatten(
            jax.tree.structure(part),
            [donated.get(name, leaf) for name, leaf in leaves.items()],
        )
        for part, leaves in zip(parts, named, strict=True)
    )
    return LaidOver(laid, taken, fresh, referenced, notes)


class _Donor(NamedTuple):
    """The arrays of a donor.

    arrays: by their path in it; path: where those of the entry begin; digest: of a file
    with our names; notes: what was renamed or left out.
    """

    arrays: Mapping[str, Any]
    path: str
    digest: str | None = None
    notes: tuple[str, ...] = ()


def _donated(
    entry: Entry,
    module: nnx.Module,
    mine: Mapping[str, Any],
    wanted: Mapping[str, Any],
    trust: tuple[str, ...],
) -> _Donor:
    if entry.donor.startswith("sha256:"):
        digest = entry.donor.removeprefix("sha256:")
        path = default_data_dir() / "weights" / f"{digest}.safetensors"
        if not path.is_file() or file_digest(path) != digest:
            origin = f" ({entry.source})" if entry.source else ""
            raise InputError(
                f"init: {path}{origin} does not exist or has another sha256"
            )
        return _Donor(read_file(path), entry.path, digest)
    path = Path(entry.donor)
    if path.is_file():
        return _of_file(path, entry, module, mine, wanted)
    sharding = next(iter(mine.values())).sharding
    whole = (
        jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        if isinstance(sharding, jax.sharding.NamedSharding)
        else sharding
    )
    return _Donor(load(entry.donor, sharding=whole, trust=trust).arrays, entry.path)


def _of_file(
    path: Path,
    entry: Entry,
    module: Any,
    mine: Mapping[str, Any],
    wanted: Mapping[str, Any],
) -> _Donor:
    """Return the arrays of a safetensors file that are those of the entry."""
    theirs = read_file(path)
    layout = torch_names.layout_of(theirs)
    asked = None if entry.path in ("", entry.at) else entry.path
    names = {moved(name, entry.at, ""): leaf.shape for name, leaf in mine.items()}
    try:
        if layout != "safetensors":
            every = {
                moved(name, entry.at, ""): leaf.shape
                for name, leaf in wanted.items()
                if under(name, entry.at)
            }
            encoder, spare = _at(module, entry.at), every.keys() - names.keys()
            places = torch_names.places(encoder, every, layout)
            needed = [place.theirs for place in places if place.ours not in spare]
            part = part_of(theirs, needed, asked=asked, leave=entry.leave)
            _, arrays = torch_names.to_ours(encoder, every, part.arrays, spare)
            return _Donor(arrays, "", None, _notes(part, part.outside))
        if "" in names:  # the entry names a single array
            return _Donor(theirs, entry.path, file_digest(path))
        usual = f"{entry.path}." if entry.path else ""
        part = part_of(theirs, names, asked=asked, usual=usual, leave=entry.leave)
    except InputError as error:
        raise InputError(f"init: {path} does not fit the config: {error}") from error
    arrays = {part.prefix + name: array for name, array in part.arrays.items()}
    # Below a path that the config gives, what lies outside may be another entry's.
    found = part.prefix != usual and asked is None
    notes = _notes(part, part.outside if found else [])
    return _Donor(arrays, part.prefix.rstrip("."), file_digest(path), notes)


def _notes(part: Part, outside: list[str]) -> tuple[str, ...]:
    notes = [f"names below {part.prefix!r}"] if part.prefix else []
    if left := [*part.beside, *outside]:
        notes.append(f"left out: {groups(left, part.prefix)}")
    return tuple(notes)


def _at(module: Any, path: str) -> Any:
    """Return the module at a path."""
    for name in filter(None, path.split(".")):
        keys = module.keys() if isinstance(module, nnx.Dict) else ()
        module = module[name] if name in keys else getattr(module, name)
    return module


def _learned_positions(module: nnx.Module | None) -> dict[str, ViT]:
    """Return the ViT of each array of learned positions, by the array's path."""
    return {
        ".".join(map(str, (*path, "position"))): part
        for path, part in (nnx.iter_modules(module) if module is not None else ())
        if isinstance(part, ViT) and part.position is not None
    }


class _Given(NamedTuple):
    """A donor's arrays by their path in the new state, and notes of those changed."""

    arrays: dict[str, jax.Array]
    notes: list[str]


def _fitted(
    entry: Entry, donor: _Donor, mine: Mapping[str, Any], vits: Mapping[str, ViT]
) -> _Given:
    """Return what an entry lays over `mine`. Raises InputError as `lay_over` does."""
    given, unused = _Given({}, []), dict(donor.arrays)
    places = [moved(name, entry.at, donor.path) for name in mine]
    kept = [n for n in donor.arrays if not _allowed(n, entry, donor.path)]
    if why := class_token(places, kept):
        raise InputError(f"init: {entry.donor} does not fit the config: {why}")
    for name, leaf in mine.items():
        theirs = moved(name, entry.at, donor.path)
        if theirs not in donor.arrays:
            continue
        array = donor.arrays[theirs]
        if name in vits:
            array, note = _resized(array, leaf, vits[name])
            given.notes.extend(note)
        array = first_rows(array, leaf, name, entry.first)
        given.arrays[name] = _placed(array, leaf, name, theirs, entry)
        unused.pop(theirs, None)
    extra = [n for n in unused if under(n, donor.path)]
    extra = [n for n in extra if not _allowed(n, entry, donor.path)]
    if extra:
        raise InputError(
            f"init: {len(extra)} arrays of {entry.donor} have no place at "
            f"{entry.at or 'the model'!r}, as {extra[0]!r}: another model? List in "
            "`leave` the arrays that may stay unused"
        )
    return given


def _resized(array: Any, leaf: Any, vit: ViT) -> tuple[Any, list[str]]:
    """Return a donor's learned positions for this ViT's images, and what was done.

    A class token's is left out if this ViT has none. Those of another width, or of no
    square grid, stay as they are.
    """
    leading, notes = int(vit.cls is not None), []
    if array.ndim != 3 or array.shape[::2] != leaf.shape[::2]:
        return array, []
    if not leading and math.isqrt(array.shape[1] - 1) ** 2 == array.shape[1] - 1 > 0:
        array, notes = array[:, 1:], ["left out: the position of the class token"]
    if array.shape == leaf.shape:
        return array, notes
    try:
        taken = positions.resized(np.asarray(array), leaf.shape[1], leading)
    except ValueError:
        return array, []
    old = math.isqrt(array.shape[1] - leading)
    resized = f"positions {old} x {old} -> {vit.side} x {vit.side}, bicubic"
    return taken, [*notes, resized]


def _placed(array: Any, leaf: Any, name: str, theirs: str, entry: Entry) -> jax.Array:
    if tuple(array.shape) != tuple(leaf.shape):
        raise InputError(
            f"init: {theirs} of {entry.donor} has shape {tuple(array.shape)}, but "
            f"{name} here has {tuple(leaf.shape)}"
        )
    with np.errstate(over="ignore"):  # an overflow is an error below
        taken = array.astype(leaf.dtype)
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        wrong = int((~np.isfinite(np.asarray(taken))).sum())
        if wrong:
            raise InputError(
                f"init: {theirs} of {entry.donor} is not finite: {wrong} of "
                f"{taken.size} numbers, as {leaf.dtype}; take weights that are sound"
            )
    return jax.device_put(taken, leaf.sharding)


def _allowed(name: str, entry: Entry, path: str) -> bool:
    here = moved(name, path, entry.at)
    return _matches(name, entry.leave) or _matches(here, entry.fresh)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
