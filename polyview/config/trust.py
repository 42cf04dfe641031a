"""The code that a checkpoint's config may call, and the new places of moved names.

A checkpoint is untrusted. Its config may call only names in the `trusted.txt` of a
package beside this one: one module, or `module:Name`, of that package per line. No
listed code writes a file (but a temporary one), starts a process or takes a command. A
line `old -> new` gives the new place of a name in older checkpoints. The files are read
as text, so that nothing is imported before it is trusted.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from polyview.errors import InputError, nearest

# {name of version 0.1 that config files import: its new place}
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
    """Return the trusted names, and {old name: new}, of the packages in a folder."""
    names: set[str] = set()
    moved: dict[str, str] = {}
    for path in sorted(filter(Path.is_file, folder.glob("*/trusted.txt"))):
        package = path.parent.name
        # A run is data, wherever it is and whatever files it has.
        if (path.parent / "checkpoints").exists():
            continue
        for line in path.read_text(errors="replace").splitlines():
            name, _, new = (w.strip() for w in line.partition("#")[0].partition("->"))
            # A package may list only its own names.
            if not name or name.replace(":", ".").split(".")[0] != package:
                continue
            if new:
                moved[name] = new
            else:
                names.add(name)
    return frozenset(names), moved


def allow_list(trust: tuple[str, ...] = ()) -> frozenset[str]:
    """Return the names an untrusted config may call: all `trusted.txt`, and `trust`."""
    return _listed(Path(__file__).parents[2])[0] | set(trust)


def current_name(name: str) -> str:
    """Return the name that replaced a target of version 0.1, or `name` if none did."""
    moved = _listed(Path(__file__).parents[2])[1]
    module, _, attribute = name.partition(":")
    if name in moved:
        return moved[name]
    return f"{moved[module]}:{attribute}" if module in moved else name


def moved_modules() -> dict[str, str]:
    """Return {import of a version 0.1 config file: its new place}."""
    names = _listed(Path(__file__).parents[2])[1]
    return {n: to for n, to in names.items() if ":" not in n} | MOVED


def renewed(spec: Any) -> Any:
    """Copy a spec, or a whole config of dicts, with every old name made current."""
    if isinstance(spec, Mapping):
        return {
            key: current_name(part)
            if key in ("target", "partial") and isinstance(part, str)
            else renewed(part)
            for key, part in spec.items()
        }
    return type(spec)(map(renewed, spec)) if isinstance(spec, list | tuple) else spec


def targets(spec: Any, where: str = "config") -> Iterator[tuple[str, Any]]:
    """Yield (path, name) for every target that a spec would call."""
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
    spec: Any, trusted: frozenset[str] | None = None, where: str = "config"
) -> None:
    """Raise InputError if a spec calls an untrusted target; nothing is built.

    trusted: `allow_list()` by default.
    """
    for place, name in targets(spec, where):
        import_target(name, allow_list() if trusted is None else trusted, place)


def import_target(
    name: Any, trusted: frozenset[str] | None, where: str
) -> Callable[..., Any]:
    """Return the class or function "module:Name"; trusted=None allows any.

    Raises InputError if it does not exist, is not trusted, or has moved. Old names are
    followed only for checkpoints; for a config file the message gives the new name.
    """
    new = current_name(str(name))
    if trusted is None and new != name:
        raise InputError(f"{where}: {name!r} is now {new!r}; change it in the config")
    module, colon, attribute = new.partition(":")
    if not colon or not attribute.isidentifier():
        raise InputError(f"{where}: {name!r} is not of the form package.module:Name")
    if trusted is not None and not _trusts(trusted, module, attribute):
        raise InputError(
            f"{where} calls {name!r}, which is not trusted in a checkpoint; if you "
            f"trust it, run again with --trust {module.split('.')[0]}"
        )
    try:
        target = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise InputError(f"{where}: {name!r}: {error}") from error
    except AttributeError as error:
        content = vars(importlib.import_module(module))
        names = [
            name
            for name, value in content.items()
            if inspect.isclass(value) or inspect.isfunction(value)
            if value.__module__ == module and name[0] != "_"
        ]
        raise InputError(
            f"{where}: {module} has no {attribute!r}{nearest(attribute, names)}"
        ) from error
    # Trust in a module does not extend to its imports.
    home = getattr(target, "__module__", None) or ""
    if trusted is not None and not _trusts(trusted, home, attribute):
        raise InputError(f"{where}: {name!r} is not defined in a trusted module")
    if not callable(target):
        raise InputError(f"{where}: {name!r} is not a class or a function")
    return target


def _trusts(trusted: frozenset[str], module: str, attribute: str) -> bool:
    names = [module, f"{module}:{attribute}"]
    while "." in module:
        module = module.rpartition(".")[0]
        names.append(module)
    return not attribute.startswith("_") and any(name in trusted for name in names)
