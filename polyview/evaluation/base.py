"""The protocol of an evaluation, and how its result is written.

An evaluation is called as `evaluation(model, mesh) -> Result`. The model provides
features, activations by path and its own methods (`polyview.model.Model`). A new
evaluation needs one file: its class measures, summarises in a line and in columns of a
table, and draws.
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
    """The protocol and the numbers of an evaluation, ready for JSON.

    Attributes:
      figure_data: arrays for the figures, by name.
      summary: the main numbers in one line.
      columns: {column of a table: number}, the numbers that compare runs.
      standard_errors: {column: its standard error}, where known.
    """

    def __init__(
        self,
        numbers: Mapping[str, Any],
        figure_data: Mapping[str, np.ndarray] | None = None,
        *,
        summary: str = "",
        columns: Mapping[str, float] | None = None,
        standard_errors: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(numbers)
        self.figure_data: dict[str, Any] = dict(figure_data or {})
        self.summary, self.columns = summary, dict(columns or {})
        self.standard_errors = dict(standard_errors or {})


class Evaluation(Protocol):
    """Measures a model. Only the call is required. Optional members:

    figures(numbers, figure_data) -> {name: Figure}: draws a written result. Static,
        like the next five, so that a report needs no model.
    summary(numbers) -> str, columns(numbers) and standard_errors(numbers) -> {column:
        number}: for results written before a Result carried them.
    comparison({name: numbers}) -> {name: Figure}, and comparison_table({name: numbers})
        -> (head, body): compare a run with its references.
    raw(batch) -> {name: Features}: the input itself as features. Enables references
        (`--references`): raw pixels and the untrained model.
    references() -> {name: model}: references of its own, such as features without
        learning; their names are keys of `polyview.reporting.read.REFERENCES`.
    several({key: model}, mesh) -> iterator of (key, Result): measures models one after
        another, on data that are decoded once.
    described(spec) -> Evaluation: a copy whose protocol names its sources by the spec
        that the evaluation is built from.
    trained_on(sources) -> Evaluation: a copy that knows the data that the model was
        trained on, a list of sources, or None if they are not known.
    train, test: the sources it reads, as fields. Enables reading others (`--on`).
    """

    def __call__(self, model: Callable, mesh: Any) -> Result: ...


def raw_model(evaluation: Any) -> Callable:
    """Return the reference whose features are the input itself."""
    import jax  # here, since configs import this module and need no JAX

    return jax.jit(lambda batch: evaluation.raw(batch))


def pixels(evaluation: Any, mesh: Any) -> Result:
    """Evaluate the input itself as features. mesh: a JAX `Mesh`."""
    return evaluation(raw_model(evaluation), mesh)


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def in_words(spec: Mapping | None, key: str, built: Any) -> Any:
    """Return what a protocol calls a source or views: their spec, as JSON's types.

    Without a spec, for an evaluation that no config built, it is the object's `repr`
    without memory addresses, which differ from process to process.
    """
    if spec is None or key not in spec:
        return _ADDRESS.sub("", repr(built))
    part = spec[key]
    plain = part.to_dict() if hasattr(part, "to_dict") else part
    return json.loads(json.dumps(plain))


def whole_numbers(text: str, what: str) -> list[int]:
    """Return the numbers of "1+5+10", the argument `what` of a file of evaluations."""
    try:
        return [int(word) for word in filter(None, text.split("+"))]
    except ValueError:
        raise InputError(
            f"{what}={text}: write whole numbers joined by +, as {what}=1+5+10"
        ) from None


def specs_of(config: Mapping) -> dict[str, Any]:
    """Return the evaluations of a config, {name: spec}.

    A single one, under the key `evaluation`, has the name "". Raises InputError if both
    keys are set, or if a name cannot be part of a file name.
    """
    one = config.get("evaluation")
    if config.get("evaluations") is not None:
        if one is not None:
            raise InputError("evaluation and evaluations are both set; keep one")
        specs = {n: s for n, s in config["evaluations"].items() if s is not None}
        for name in specs:
            if not re.fullmatch(r"[A-Za-z]\w*", name):
                raise InputError(
                    f"{name!r} is not a valid name for an evaluation: use letters, "
                    "digits and _, since it becomes part of file names"
                )
        return specs
    return {} if one is None else {"": one}


def key_of(name: str) -> str:
    """Return the config key of the evaluation with this name."""
    return f"evaluations.{name}" if name else "evaluation"


def viewing_spec(config: Mapping) -> Any:
    """Return the first evaluation of a config that sets `views`, or None."""
    return next((spec for spec in specs_of(config).values() if "views" in spec), None)


def result_name(step: int | str, name: str) -> str:
    """Return the file name of a result without its suffix: "200-frozen"."""
    return f"{step}-{name}" if name else str(step)


def write_result(workdir: str | Path, name: str, result: Result, by: Any) -> Path:
    """Write `<workdir>/eval/<name>.json`, and `<name>.npz` with the figure data.

    by: the evaluation; the file names its class, so that a report can draw it. Writes
    are atomic, and only the first process writes. Returns the path of the JSON file.
    Raises InputError if JSON cannot hold the result, or if figure data are not numeric.
    """
    path = Path(workdir) / "eval" / f"{name}.json"
    if not hosts.is_first_process():
        return path
    if result.figure_data:
        for key, array in result.figure_data.items():
            if np.asarray(array).dtype.hasobject:
                raise InputError(f"the figure data {key!r} of {name} are not numbers")
        arrays = io.BytesIO()
        np.savez_compressed(arrays, **result.figure_data)
        files.write_whole(path.with_suffix(".npz"), arrays.getvalue())
    about = {
        "evaluation": f"{type(by).__module__}:{type(by).__qualname__}",
        "summary": result.summary,
        "columns": result.columns,
        "standard_errors": result.standard_errors,
    }
    try:
        text = json.dumps({**result, **about}, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the result {name} of {about['evaluation']} is not JSON: {error}; give "
            "finite Python numbers, or None"
        ) from error
    files.write_whole(path, text.encode())
    return path
