"""Configurations: a file of Python gives a dict; a dict gives objects; nothing else.

A spec is a dict with one of two words. `{"target": "package.module:Name", **fields}` is
the call `Name(**fields)`. `{"partial": "package.module:Name", **fields}` is
`functools.partial(Name, **fields)`, for what still lacks an argument that only the
program knows (a module its seed, a loss its features, an optimiser the steps).

A run's config has the keys of `REQUIRED`, one of `steps` and `epochs`, and may have
`mesh`, `workers`, `checkpoint_every`, `evaluate_every`, `keep`, `evaluation`,
`init_from`, `target_decay`, and where memory is short one of

microbatch: unique samples, global, that the encoder takes at once. The loss stays that
    of the whole batch, the memory is that of a slice and of all embeddings, and the
    encoder runs forward twice (gradient caching; Gao et al. 2021). None is off. It
    refuses BatchNorm, whose statistics would be those of a slice.
accumulate: parts of a batch, one after another, each with a loss of its own whose mean
    is trained; 1 is off. This changes the negatives: an anchor has (batch_size /
    accumulate - 1) m of them, so with contrastive objectives it is another loss, that
    of the smaller batch.
"""

import ast
import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_collections

from polyview.errors import InputError, nearest

# A checkpoint may be a stranger's: only what these modules define is called on its
# behalf. None of it writes a file, starts a process or takes a command.
TRUSTED = (
    "polyview.nn",
    "polyview.objectives",
    "polyview.optimizer",
    "polyview.data.augment",
    "polyview.data.gaussian",
    "polyview.data.observed",
    "polyview.data.source",
    "polyview.data.views",
    "polyview.evaluation.accuracy:Accuracy",
    "polyview.evaluation.knn:WeightedKnn",
    "polyview.evaluation.missing:MissingModalities",
    "polyview.evaluation.probe:LinearProbe",
    "polyview.evaluation.protocol:Protocol",
    "sgi.agent:Rainbow",
    "sgi.agent:grouped_adam",
    "sgi.networks",
    "sgi.pretrain",
    "sgi.probes:Variables",
    "sgi.score_episodes:Evaluation",
    "sgi.replay",
)
# What may differ between a run and its continuation, the first or the last word of a
# key: none of it changes the numbers by more than rounding.
FREE = {
    "mesh",
    "microbatch",
    "remat",
    "exchange",
    "workers",
    "log_every",
    "evaluate_every",
    "checkpoint_every",
    "keep",
}

REQUIRED = (
    "seed",
    "batch_size",
    "log_every",
    "source",
    "views",
    "model",
    "objective",
    "optimizer",
)
# What any run may have: its flag is known even where the file does not name it.
OPTIONAL = ("init_from", "microbatch", "accumulate")
DEEPEST = 32  # keys of keys in a config; the deepest of ours are 6
HUGE = 2**31 - 1  # steps are counted in 32 bits
TINY = 1e-9  # what must not be zero
# Lowest and highest value of a key, wherever in the config it stands; a lowest value
# that is an int asks for one.
RANGES = {
    "seed": (0, 2**32 - 1),
    "steps": (1, HUGE),
    "epochs": (1, HUGE),
    "batch_size": (1, HUGE),
    "microbatch": (1, HUGE),
    "accumulate": (1, HUGE),
    "log_every": (1, HUGE),
    "checkpoint_every": (1, HUGE),
    "evaluate_every": (0, HUGE),
    "workers": (0, 1024),
    "keep": (2, HUGE),
    "m": (1, HUGE),
    "size": (1, HUGE),
    "width": (1, HUGE),
    "depth": (1, 1000),
    "blocks": (1, 1000),
    "out": (1, HUGE),
    "temperature": (TINY, math.inf),
    "train_drop_prob": (0.0, 1.0),
    "task_weight": (0.0, math.inf),
    "alone_weight": (0.0, math.inf),
    "polyview_weight": (0.0, math.inf),
    "base": (0.0, math.inf),
    "per": (1, HUGE),
    "weight_decay": (0.0, math.inf),
    "warm_up": (0.0, 1.0),
    "momentum": (0.0, 1.0),
    "target_decay": (0.0, 1.0),
    "std": (TINY, math.inf),
    "deviation": (TINY, math.inf),
    "scale": (TINY, 1.0),
    "ratio": (TINY, math.inf),
    "fraction": (TINY, 1.0),
    "flip": (0.0, 1.0),
    "strength": (0.0, math.inf),
    "jitter_chance": (0.0, 1.0),
    "grey_chance": (0.0, 1.0),
    "blur_chance": (0.0, 1.0),
    "solarise_chance": (0.0, 1.0),
}


def arguments(text: str, **defaults) -> dict:
    """Parse a config's argument, `configs/x.py:key=value,key=value`.

    Each value takes the type of its default. Raises InputError for an unknown key or a
    value of another type.
    """
    values = dict(defaults)
    for part in filter(None, (text or "").split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"config argument {part!r}: write key=value")
        if key not in defaults:
            raise InputError(
                f"config argument {key!r} is unknown{nearest(key, defaults)}"
            )
        values[key] = _parse(value, defaults[key], f"config argument {key}")
    return values


def load(path_and_argument: str, overrides: Mapping[str, str] | None = None):
    """Return the ConfigDict of `file.py:argument` with `{"a.b": "value"}` laid over it.

    Raises InputError for a missing or broken file, an unknown key or a wrong type.
    """
    path, _, argument = path_and_argument.partition(":")
    if not path:
        raise InputError("--config is empty: give --config FILE.py")
    path = str(installed(Path(path)))
    if Path(path).is_dir():
        raise InputError(f"--config {path} is a folder; name a file of it")
    if not Path(path).is_file():
        folder = Path(path).parent
        files = [str(p) for p in folder.glob("*.py")] if folder.is_dir() else []
        raise InputError(f"config file {path} does not exist{nearest(path, files)}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None:
        raise InputError(f"config file {path} is not Python: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise InputError(f"config file {path} has no get_config(argument)")
        config = ml_collections.ConfigDict(module.get_config(argument))
    except InputError:
        raise
    except Exception as error:  # a user's file: whatever it raises is theirs to read
        raise InputError(f"config file {path} fails: {_describe(error)}") from error
    override(config, overrides or {})
    return config


def installed(path: Path) -> Path:
    """The path, or what an installed package has in the place of `configs/`."""
    there = Path(__file__).parent / path
    return there if not path.exists() and there.exists() else path


def listed(folder: Path) -> list[str]:
    """A line for each config of a folder: its path and the first line of its docstring.

    The files are read, not run. Raises InputError where there is none.
    """
    lines = {}
    for path in sorted(installed(folder).glob("*.py")):
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


def overrides(arguments: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Read `--config.a.b=value` arguments as `{"a.b": "value"}`.

    known: the names of the command's other flags, as argparse keeps them, to correct a
    mistyped one. Raises InputError for anything else.
    """
    found = {}
    for argument in arguments:
        key, equals, value = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config."):
            flags = [f"--{name.replace('_', '-')}" for name in known]
            hint = nearest(argument.split("=")[0], flags)
            raise InputError(
                f"unknown argument {argument!r} (a key of the config is set by "
                f"--config.key=value){hint}"
            )
        if not equals:
            raise InputError(f"{argument}: write {argument}=VALUE, without a space")
        found[key] = value
    return found


def override(config, overrides: Mapping[str, str]) -> None:
    """Lay `{"a.b": "value"}` over a config, each value read as the type of the old.

    Raises InputError for an unknown key or a wrong type.
    """
    for key, value in overrides.items():
        _override(config, key, value)


def _override(config, key: str, text: str) -> None:
    *parents, last = key.split(".")
    if key in OPTIONAL and key not in config:
        with config.unlocked():
            config[key] = None
    node = config
    for name in [*parents, last]:
        group = isinstance(node, ml_collections.ConfigDict)
        if not group or name not in node:
            known = [*(node if group else ()), *(OPTIONAL if node is config else ())]
            raise InputError(f"--config.{key}: no key {name!r}{nearest(name, known)}")
        parent, node = node, node[name]
    value = _parse(text, node, f"--config.{key}")
    with parent.unlocked():
        parent[last] = value


def _parse(text: str, old, where: str):
    """Read `text` as the type of `old`; a key that was None takes any literal."""
    if isinstance(old, ml_collections.ConfigDict):
        if text.lower() == "none":
            return None
        raise InputError(
            f"{where} is a group of keys; set one of them, as {where}.key=..."
        )
    if isinstance(old, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    if value is None:
        return value
    if old is None:
        if not _plain(value):
            raise InputError(f"{where}: give a number, a text or a list of them")
        return value
    if isinstance(old, float) and type(value) is int:
        return float(value)
    if isinstance(old, list | tuple) and isinstance(value, list | tuple):
        return type(old)(value)
    if type(value) is not type(old):
        given = text if len(text) < 80 else f"{text[:80]}..."
        raise InputError(
            f"{where}={given}: expected {type(old).__name__}, like {old!r}"
        )
    return value


def _plain(value) -> bool:
    """Whether JSON can hold a value."""
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def check(config, required=REQUIRED, ranges=RANGES) -> None:
    """Hold a config to what it must contain, and numbers to their ranges.

    Raises InputError that names the key, its value and what it must be.
    """
    for key in required:
        if key not in config:
            raise InputError(
                f"the config has no key {key!r}; is it one of another command?"
            )
    if (config.get("steps") is None) == (config.get("epochs") is None):
        raise InputError("the config must set one of steps and epochs, the other None")
    check_ranges(config, ranges)


def check_ranges(config, ranges=RANGES) -> None:
    """Hold numbers to their ranges. Raises InputError as `check` does."""
    for name, value in flat(json.loads(to_json(config))).items():
        key = name.rpartition(".")[2]
        if value is None or key not in ranges:
            continue
        low, high = ranges[key]
        for number in value if isinstance(value, list) else [value]:
            whole = isinstance(low, int)
            kinds = (int,) if whole else (int, float)
            if isinstance(number, bool) or not isinstance(number, kinds):
                kind = "an integer" if whole else "a number"
                raise InputError(f"config key {name}={value!r}: expected {kind}")
            where = f"config key {name}={value}"
            if not number >= low:
                least = "more than 0" if low == TINY else f"{low} or more"
                raise InputError(f"{where}: it must be {least}")
            if number > high:
                raise InputError(f"{where}: it must be {high} or less")


def check_trusted(spec, trusted: tuple[str, ...], where: str = "config") -> None:
    """Raise InputError where a config names what `trusted` does not; build nothing."""
    if hasattr(spec, "to_dict"):
        spec = spec.to_dict()
    if isinstance(spec, Mapping):
        for word in {"target", "partial"} & set(spec):
            _import(spec[word], trusted, where)
        parts = spec.items()
    elif isinstance(spec, list | tuple):
        parts = enumerate(spec)
    else:
        return
    for name, part in parts:
        check_trusted(part, trusted, f"{where}.{name}")


def build(spec, trusted: tuple[str, ...] | None = None, where: str = "config"):
    """Turn a spec into the object it describes, and everything inside it.

    `trusted` limits what may be called (for a checkpoint's config) to packages,
    modules and "module:Name"s; None allows any. Raises InputError for a target that
    cannot be imported or is not trusted, and for fields that it does not take.
    """
    if isinstance(spec, ml_collections.ConfigDict | ml_collections.FrozenConfigDict):
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
    function = _import(spec[word], trusted, where)
    try:
        signature = inspect.signature(function)
        (signature.bind if word == "target" else signature.bind_partial)(**fields)
    except TypeError as error:
        known = [p for p in signature.parameters]
        unknown = [f for f in fields if f not in known]
        hint = nearest(unknown[0], known) if unknown else ""
        raise InputError(f"{where} ({spec[word]}): {error}{hint}") from error
    if word == "partial":
        return functools.partial(function, **fields)
    try:
        return function(**fields)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} ({spec[word]}): {error}") from error


def hold(spec, trusted: tuple[str, ...] = TRUSTED, where: str = "config") -> None:
    """Raise InputError unless all that a spec names is of the trusted."""
    parts = spec.items() if isinstance(spec, Mapping) else ()
    if isinstance(spec, list | tuple):
        parts = enumerate(spec)
    for key, part in parts:
        if key in ("target", "partial"):
            _import(part, trusted, where)
        hold(part, trusted, f"{where}.{key}")


def _import(name, trusted: tuple[str, ...] | None, where: str):
    module, colon, attribute = str(name).partition(":")
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
        there = vars(importlib.import_module(module))
        names = [n for n in there if getattr(there[n], "__module__", "") == module]
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


def _trusts(trusted: tuple[str, ...], module: str, attribute: str) -> bool:
    names = [module, f"{module}:{attribute}"]
    while "." in module:
        module = module.rpartition(".")[0]
        names.append(module)
    return not attribute.startswith("_") and any(name in trusted for name in names)


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
        return ml_collections.ConfigDict(plain, convert_dict=True)
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


def digest(text: str) -> str:
    """Return the sha256 of a config's JSON."""
    return hashlib.sha256(text.encode()).hexdigest()


def difference(old, new) -> list[str]:
    """List, as 'key: old -> new', what differs and must not within one run."""
    a, b = (lasting(json.loads(to_json(c))) for c in (old, new))
    return [
        f"{k}: {a.get(k, 'absent')!r} -> {b.get(k, 'absent')!r}"
        for k in sorted(a | b)
        if repr(a.get(k, "absent")) != repr(b.get(k, "absent"))  # NaN is no other NaN
    ]


def lasting(tree: dict) -> dict:
    """The leaves of a config, as `flat`, that must not change within one run."""
    return {
        k: v
        for k, v in flat(tree).items()
        if not FREE & {k.split(".")[0], k.split(".")[-1]}
    }


def steps(config, rows: int) -> int:
    """How many steps a run takes in all, on a source of so many rows."""
    return config.get("steps") or config.epochs * (rows // config.batch_size)


def flat(tree, prefix: str = "") -> dict:
    """Name each leaf of nested dicts by its keys: `{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    if not isinstance(tree, dict) or not tree:
        return {prefix.rstrip("."): tree}
    return {
        k: v
        for key, sub in tree.items()
        for k, v in flat(sub, f"{prefix}{key}.").items()
    }


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
