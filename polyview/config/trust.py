"""What the config inside a checkpoint may call, and where what it names has moved.

A checkpoint is untrusted: its config may call only what the packages beside this one
list in their `trusted.txt`, one module or `module:Name` of the package a line. None of
that writes a file, starts a process or takes a command. A line `old -> new` says where
something is that older checkpoints name. The files are read as text: nothing is
imported in order to learn whether it may be.
"""

import functools
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from polyview.errors import InputError, nearest

# What of the engine a config file of version 0.1 imports, and where it is.
MOVED = {
    "polyview.config.arguments": "polyview.config.overrides.parse_arguments",
    "polyview.config.build": "polyview.config.spec.build",
    "polyview.config.check": "polyview.config.schema.check_config",
    "polyview.config.digest": "polyview.config.text.text_digest",
    "polyview.config.flat": "polyview.config.text.dotted",
    "polyview.config.from_json": "polyview.config.text.from_json",
    "polyview.config.load": "polyview.config.file.load_config",
    "polyview.config.override": "polyview.config.overrides.apply_overrides",
    "polyview.config.steps": "polyview.config.schema.total_steps",
    "polyview.config.to_json": "polyview.config.text.to_json",
    "polyview.config.parts.evaluation": "polyview.config.parts.frozen",
    "polyview.dump": "polyview.training.nonfinite",
    "polyview.recipes": "polyview.config.parts",
    "polyview.command": "polyview.cli",
    "polyview.mesh": "polyview.devices and polyview.hosts",
    "polyview.train": "polyview.training.train",
    "polyview.step": "polyview.training.step and polyview.model",
    "polyview.restore": "polyview.runs.load",
    "polyview.checkpoint": "polyview.runs.checkpoint",
    "polyview.workdir": "polyview.runs.workdir",
    "polyview.metrics": "polyview.runs.metrics",
    "polyview.layouts": "polyview.runs.torch_names",
    "polyview.adopt": "polyview.import_weights",
    "polyview.data.source": "polyview.data.sources",
    "polyview.evaluation.protocol": "polyview.evaluation.frozen",
    "polyview.evaluation.plots": "polyview.drawing and the figures of each evaluation",
}


@functools.cache
def _listed(folder: Path) -> tuple[frozenset[str], dict[str, str]]:
    """The names that may be called, and {old name: new}, of a folder's packages."""
    names, moved = set(), {}
    for path in sorted(filter(Path.is_file, folder.glob("*/trusted.txt"))):
        package = path.parent.name
        # A run is data wherever it lies, whatever it holds.
        if (path.parent / "checkpoints").exists():
            continue
        for line in path.read_text(errors="replace").splitlines():
            name, _, new = (w.strip() for w in line.partition("#")[0].partition("->"))
            # A package speaks for itself alone.
            if not name or name.replace(":", ".").split(".")[0] != package:
                continue
            if new:
                moved[name] = new
            else:
                names.add(name)
    return frozenset(names), moved


def allow_list(trust: tuple[str, ...] = ()) -> frozenset[str]:
    """What an untrusted config may call: all `trusted.txt`, and the user's `trust`."""
    return _listed(Path(__file__).parents[2])[0] | set(trust)


def current_name(name: str) -> str:
    """Where a target of an older config is now: `module:Name`, or `name` itself."""
    moved = _listed(Path(__file__).parents[2])[1]
    module, _, attribute = name.partition(":")
    if name in moved:
        return moved[name]
    return f"{moved[module]}:{attribute}" if module in moved else name


def moved_modules() -> dict[str, str]:
    """What a config file of version 0.1 imports, and where it is."""
    names = _listed(Path(__file__).parents[2])[1]
    return {n: to for n, to in names.items() if ":" not in n} | MOVED


def renewed(spec):
    """A spec, or a whole config of dicts, with every old name as it is today."""
    if isinstance(spec, Mapping):
        return {
            key: current_name(part)
            if key in ("target", "partial") and isinstance(part, str)
            else renewed(part)
            for key, part in spec.items()
        }
    return type(spec)(map(renewed, spec)) if isinstance(spec, list | tuple) else spec


def targets(spec, where: str = "config") -> Iterator[tuple[str, Any]]:
    """Yield (path, name) for everything that a spec would call."""
    if hasattr(spec, "to_dict"):
        spec = spec.to_dict()
    if isinstance(spec, Mapping):
        yield from ((where, spec[w]) for w in ("target", "partial") if w in spec)
        for key, part in spec.items():
            yield from targets(part, f"{where}.{key}")
    elif isinstance(spec, list | tuple):
        for index, part in enumerate(spec):
            yield from targets(part, f"{where}[{index}]")


def check_trusted(
    spec, trusted: frozenset[str] | None = None, where: str = "config"
) -> None:
    """Raise InputError where a spec calls what is not trusted; nothing is built.

    trusted: by default the `allow_list`.
    """
    for place, name in targets(spec, where):
        import_target(name, allow_list() if trusted is None else trusted, place)


def import_target(name, trusted: frozenset[str] | None, where: str):
    """The class or function that "module:Name" names; trusted=None allows any.

    Raises InputError where it is not there, not trusted, or has moved: an old name is
    followed for checkpoints alone, and a config file is told the new one.
    """
    new = current_name(str(name))
    if trusted is None and new != name:
        raise InputError(f"{where}: {name!r} is {new!r} now; change it in the config")
    module, colon, attribute = new.partition(":")
    if not colon or not attribute.isidentifier():
        raise InputError(f"{where}: {name!r} is not of the form package.module:Name")
    if trusted is not None and not _trusts(trusted, module, attribute):
        raise InputError(
            f"{where} names {name!r}, which a checkpoint is not trusted with; if you "
            f"trust it, run again with --trust {module.split('.')[0]}"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise InputError(f"{where}: {name!r}: {error}") from error
    except AttributeError as error:
        content = vars(importlib.import_module(module))
        names = [n for n in content if getattr(content[n], "__module__", "") == module]
        raise InputError(
            f"{where}: {module} has no {attribute!r}{nearest(attribute, names)}"
        ) from error
    # What a module merely imported is not part of it.
    home = getattr(found, "__module__", None) or ""
    if trusted is not None and not _trusts(trusted, home, attribute):
        raise InputError(f"{where}: {name!r} is not defined in a trusted module")
    if not callable(found):
        raise InputError(f"{where}: {name!r} is not a class or a function")
    return found


def _trusts(trusted: frozenset[str], module: str, attribute: str) -> bool:
    names = [module, f"{module}:{attribute}"]
    while "." in module:
        module = module.rpartition(".")[0]
        names.append(module)
    return not attribute.startswith("_") and any(name in trusted for name in names)
