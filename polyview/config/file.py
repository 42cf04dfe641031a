"""Config files: Python with `get_config(argument) -> dict`."""

import ast
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from polyview.config.overrides import apply_overrides
from polyview.config.text import to_json
from polyview.config.trust import moved_modules
from polyview.errors import InputError, nearest, place


def load_config(
    path_and_argument: str, overrides: Mapping[str, str] | None = None
) -> ConfigDict:
    """Return the config of `file.py:argument`, with overrides `{"a.b": "value"}`.

    Raises InputError for a missing or broken file, an unknown key or a wrong type.
    """
    plain = _called(path_and_argument, "--config", "get_config")
    if not isinstance(plain, dict):
        raise InputError(
            f"{path_and_argument}: get_config must return a dict, not {plain!r:.60}"
        )
    try:
        config = ConfigDict(plain, allow_dotted_keys=True)
        to_json(config)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path_and_argument}: get_config returns a value JSON cannot hold: {error}"
        ) from error
    apply_overrides(config, overrides or {})
    return config


def evaluations_of(path_and_argument: str, run: dict) -> dict:
    """Return `{name: spec}` of an evaluation file, `file.py:argument`.

    run: the config of the run to evaluate. Raises InputError as `load_config` does.
    """
    specs = _called(path_and_argument, "--evaluation", "get_evaluations", run)
    if not isinstance(specs, dict) or not specs:
        raise InputError(
            f"{path_and_argument}: get_evaluations must return a dict with evaluations"
        )
    return specs


def _called(path_and_argument: str, flag: str, function: str, *more: Any) -> Any:
    """Return `function(argument, *more)` of a file; no two keys share an object.

    Raises InputError for a missing or broken file.
    """
    path, _, argument = path_and_argument.partition(":")
    if not path:
        raise InputError(f"{flag} is empty: give {flag} FILE.py")
    path = str(installed_path(Path(path)))
    if Path(path).is_dir():
        raise InputError(f"{flag} {path} is a folder; name a file in it")
    if not Path(path).is_file():
        folder = Path(path).parent
        files = [str(p) for p in folder.glob("*.py")] if folder.is_dir() else []
        raise InputError(f"config file {path} does not exist{nearest(path, files)}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"config file {path} is not Python: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    beside = str(Path(path).resolve().parent)
    if beside not in sys.path:  # a config may name modules beside it
        sys.path.append(beside)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, function):
            raise InputError(f"config file {path} has no {function}(argument)")
        return _apart(getattr(module, function)(argument, *more))
    except InputError:
        raise
    except Exception as error:  # a user's file can raise anything
        why = f"{_describe(error)} ({place(error)})"
        raise InputError(f"config file {path} fails: {why}{_moved(error)}") from error


def _apart(tree: Any) -> Any:
    """Copy a tree so that no two keys share an object: a flag then changes one key.

    References between fields (`ConfigDict.get_ref`) are kept.
    """
    if isinstance(tree, ConfigDict):
        tree = dict(tree.items(preserve_field_references=True))
    if isinstance(tree, dict):
        return {key: _apart(part) for key, part in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_make"):
        return tree._make(map(_apart, tree))
    if isinstance(tree, list | tuple):
        return type(tree)(map(_apart, tree))
    return tree


def _moved(error: Exception) -> str:
    """Return the new place of a missing import that version 0.1 had, for a message."""
    if not isinstance(error, ImportError | AttributeError):
        return ""
    text = str(error)
    for old, new in moved_modules().items():
        package, _, name = old.rpartition(".")
        absent = f"module '{package}' has no attribute '{name}'"
        if any(s in text for s in (f"'{old}'", f"'{name}' from '{package}'", absent)):
            return f"; {old} is now {new} (docs/migration.md)"
    return ""


def installed_path(path: Path) -> Path:
    """Return the path or, if it does not exist, its copy in the installed package."""
    installed = Path(__file__).parent.parent / path
    return installed if not path.exists() and installed.exists() else path


def list_configs(folder: Path) -> list[str]:
    """Return a line per config of a folder: its path and its docstring's first line.

    The files are parsed, not run. Raises InputError if there are none.
    """
    lines = {}
    for path in sorted(installed_path(folder).glob("*.py")):
        try:
            text = ast.get_docstring(ast.parse(path.read_bytes())) or ""
        except SyntaxError as error:
            text = f"(not Python: {error.msg}, line {error.lineno})"
        except (OSError, ValueError, RecursionError, MemoryError) as error:
            text = f"(cannot be read: {_describe(error)})"
        lines[str(folder / path.name)] = text.partition("\n")[0]
    if not lines:
        raise InputError(f"no configs in {folder}; name their folder: --list FOLDER")
    width = max(map(len, lines))
    return [f"{path:{width}}  {text}" for path, text in lines.items()]


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
