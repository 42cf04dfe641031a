"""What an evaluation is, and where its result is written.

An evaluation is called as `evaluation(model, mesh) -> Result`. The model gives
features, activations by path and any of its methods (`polyview.model.Model`). Adding
one touches one file: its class measures, sums up in a line and in columns of a table,
and draws.
"""

import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from polyview import files, hosts
from polyview.errors import InputError


class Result(dict):
    """The protocol and the numbers of an evaluation, JSON-able.

    Attributes:
      figure_data: arrays for the figures, by name.
      summary: one line of what was found.
      columns: {column of a table: number}, of what compares runs.
    """

    def __init__(
        self,
        numbers: Mapping[str, Any],
        figure_data: Mapping[str, np.ndarray] | None = None,
        *,
        summary: str = "",
        columns: Mapping[str, float] | None = None,
    ):
        super().__init__(numbers)
        self.figure_data = dict(figure_data or {})
        self.summary, self.columns = summary, dict(columns or {})


class Evaluation(Protocol):
    """Measures a model. Beside the call, which is all that it must have, it may have

    figures(numbers, figure_data) -> {name: Figure}: draws what was written; static, as
        are the next four, so that a report needs no model.
    summary(numbers) -> str, columns(numbers) -> {column: number}: of results written
        before a Result carried them.
    comparison({name: numbers}) -> {name: Figure}, and comparison_table({name: numbers})
        -> (head, body): of a run beside its references.
    raw(batch) -> {name: Features}: the input itself as features; then it has references
        (`--references`): raw pixels and the untrained model.
    train, test: the sources it reads, as fields; then it can read others (`--on`).
    """

    def __call__(self, model: Callable, mesh: Any) -> Result: ...


def pixels(evaluation: Any, mesh: Any) -> Result:
    """The reference whose features are the input itself. mesh: a `Mesh` of JAX."""
    import jax  # the rest is read by configs, which do not wait for it

    return evaluation(jax.jit(lambda batch: evaluation.raw(batch)), mesh)


def specs_of(config: Mapping) -> dict[str, Any]:
    """The evaluations of a config, {name: spec}.

    That of a config of one, under `evaluation`, has the name "". Raises InputError for
    a name that cannot be part of a file's.
    """
    one = config.get("evaluation")
    if config.get("evaluations") is not None:
        if one is not None:
            raise InputError("evaluation and evaluations are both set; keep one")
        found = {n: s for n, s in config["evaluations"].items() if s is not None}
        for name in found:
            if not re.fullmatch(r"[A-Za-z]\w*", name):
                raise InputError(
                    f"{name!r} is no name of an evaluation: it is letters, digits and "
                    "_, as part of the names of files"
                )
        return found
    return {} if one is None else {"": one}


def key_of(name: str) -> str:
    """The key of a config at which the evaluation of a name lies."""
    return f"evaluations.{name}" if name else "evaluation"


def viewing_spec(config: Mapping) -> Any:
    """The first evaluation of a config that says how it sees examples, or None."""
    return next((spec for spec in specs_of(config).values() if "views" in spec), None)


def result_name(step: int | str, name: str) -> str:
    """The name of a result's file, less its ending: "200-frozen"."""
    return f"{step}-{name}" if name else str(step)


def write_result(workdir: str | Path, name: str, result: Result, by: Any) -> Path:
    """Write `<workdir>/eval/<name>.json` and, beside it, `<name>.npz` for the figures.

    by: the evaluation, whose class the file names, so that a report can draw it. Each
    file appears whole or not at all; only the first process writes. Returns the path of
    the JSON file. Raises InputError for what JSON, or an archive of numbers, cannot
    hold.
    """
    path = Path(workdir) / "eval" / f"{name}.json"
    if not hosts.is_first_process():
        return path
    if result.figure_data:
        for key, array in result.figure_data.items():
            if np.asarray(array).dtype.hasobject:
                raise InputError(f"the figure data {key!r} of {name} are no numbers")
        arrays = io.BytesIO()
        np.savez_compressed(arrays, **result.figure_data)
        files.write_whole(path.with_suffix(".npz"), arrays.getvalue())
    about = {
        "evaluation": f"{type(by).__module__}:{type(by).__qualname__}",
        "summary": result.summary,
        "columns": result.columns,
    }
    try:
        text = json.dumps({**result, **about}, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the result {name} of {about['evaluation']} is no JSON: {error}; give "
            "finite Python numbers, or None"
        ) from error
    files.write_whole(path, text.encode())
    return path
