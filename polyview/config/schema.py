"""What a run's config must and may have, and what of it may change on resume.

The config of `polyview.main` has the keys of `REQUIRED`, one of `steps` and `epochs`,
and may have `mesh`, `workers`, `checkpoint_every`, `evaluate_every`, `keep`,
`evaluations`, `init`, `target_decay`, and where memory is short one of

microbatch: unique samples, global, that the encoder takes at once. The loss stays that
    of the whole batch, the memory is that of a slice and of all embeddings, and the
    encoder runs forward twice (gradient caching; Gao et al. 2021). None is off. It
    refuses BatchNorm, whose statistics would be those of a slice.
accumulate: parts of a batch, one after another, each with a loss of its own whose mean
    is trained; 1 is off. This changes the negatives: an anchor has (batch_size /
    accumulate - 1) m of them, so with contrastive objectives it is another loss, that
    of the smaller batch.
"""

import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from polyview.config.text import dotted, to_json
from polyview.errors import HUGE, InputError, OutOfRange, check_range

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
OPTIONAL = ("init", "init_from", "microbatch", "accumulate", "target_decay")
# Lowest and highest value of a run's own numbers; those of a part of the config are
# checked by what the part builds. A lowest value that is an int asks for one.
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
    "target_decay": (0.0, 1.0),
}
# What may differ between a run and its continuation, as full paths, `*` for one name:
# none of it changes the numbers by more than rounding.
FREE = (
    "mesh.*",
    "microbatch",
    "model.towers.*.encoder.remat",
    "objective.loss.negatives.exchange",
    "objective.polyview.negatives.exchange",
    "workers",
    "log_every",
    "evaluate_every",
    "checkpoint_every",
    "keep",
)


def check_config(
    config,
    required: Iterable[str] = REQUIRED,
    ranges: Mapping[str, tuple[float, float]] = RANGES,
) -> None:
    """Hold a config to the keys it must contain, and its numbers to their ranges.

    ranges: by full path. Raises InputError that names the key, its value and what it
    must be.
    """
    for key in required:
        if key not in config:
            raise InputError(
                f"the config has no key {key!r}; is it one of another command?"
            )
    if (config.get("steps") is None) == (config.get("epochs") is None):
        raise InputError("the config must set one of steps and epochs, the other None")
    values = dotted(json.loads(to_json(config)))
    for name, (low, high) in ranges.items():
        if values.get(name) is not None:
            try:
                check_range(low, high, **{name: values[name]})
            except OutOfRange as error:
                raise InputError(f"config key {error}") from error


def total_steps(config, rows: int) -> int:
    """How many steps a run takes in all, on a source of so many rows."""
    return config.get("steps") or config.epochs * (rows // config.batch_size)


def changed_keys(old, new) -> list[str]:
    """List, as 'key: old -> new', what differs and must not within one run."""
    a, b = (lasting_keys(json.loads(to_json(c))) for c in (old, new))
    return [
        f"{k}: {a.get(k, 'absent')!r} -> {b.get(k, 'absent')!r}"
        for k in sorted(a | b)
        if repr(a.get(k, "absent")) != repr(b.get(k, "absent"))  # NaN is no other NaN
    ]


def lasting_keys(tree: dict) -> dict:
    """The leaves of a config, as `dotted`, that must not change within one run."""
    return {k: v for k, v in dotted(tree).items() if not _is_free(k)}


def _is_free(key: str) -> bool:
    depth = key.count(".")
    return any(fnmatchcase(key, p) and p.count(".") == depth for p in FREE)
