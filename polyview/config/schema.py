"""Required and optional keys of a run's config, and keys that may change on resume.

`polyview.main` requires the keys of `REQUIRED` and one of `steps` and `epochs`. It also
takes `mesh`, `workers`, `checkpoint_every`, `evaluate_every`, `keep`, `evaluations`,
`init`, `target_decay`, and to save memory one of

microbatch: unique samples (global) that the encoder takes at once. The loss is still
    that of the whole batch, memory holds one slice and all embeddings, and the encoder
    runs forward twice (gradient caching; Gao et al. 2021). None turns it off. BatchNorm
    is refused, because its statistics would be those of a slice.
accumulate: number of parts of a batch, processed in turn, each with its own loss; their
    mean is trained. 1 turns it off. This changes the negatives: an anchor has
    (batch_size / accumulate - 1) m of them, so a contrastive loss becomes that of the
    smaller batch.
"""

import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from ml_collections import ConfigDict

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
# Keys that flags may set even if the config file lacks them.
OPTIONAL = ("init", "init_from", "microbatch", "accumulate", "target_decay")
# Lowest and highest value of a run's own numbers; an int as the lowest requires an int.
# Numbers inside a spec are checked by the object that it builds.
RANGES: dict[str, tuple[float, float]] = {
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
# Keys that may change on resume, as full paths, with `*` for one name. They change no
# result by more than rounding.
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
    config: ConfigDict,
    required: Iterable[str] = REQUIRED,
    ranges: Mapping[str, tuple[float, float]] = RANGES,
) -> None:
    """Check that a config has the required keys, and its numbers against their ranges.

    ranges: by full path. Raises InputError with the key, its value and the requirement.
    """
    for key in required:
        if key not in config:
            raise InputError(
                f"the config has no key {key!r}; is it for another command?"
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


def total_steps(config: ConfigDict, rows: int) -> int:
    """Return the number of steps of a whole run on a source with `rows` rows."""
    return config.get("steps") or config.epochs * (rows // config.batch_size)


def changed_keys(old: ConfigDict, new: ConfigDict) -> list[str]:
    """List, as 'key: old -> new', the changes that are not allowed on resume."""
    a, b = (lasting_keys(json.loads(to_json(c))) for c in (old, new))
    return [
        f"{k}: {a.get(k, 'absent')!r} -> {b.get(k, 'absent')!r}"
        for k in sorted(a | b)
        if repr(a.get(k, "absent")) != repr(b.get(k, "absent"))  # NaN equals NaN
    ]


def lasting_keys(tree: dict) -> dict[str, Any]:
    """Return the leaves of a config, as `dotted`, that must not change on resume."""
    return {k: v for k, v in dotted(tree).items() if not _is_free(k)}


def _is_free(key: str) -> bool:
    depth = key.count(".")
    return any(fnmatchcase(key, p) and p.count(".") == depth for p in FREE)
