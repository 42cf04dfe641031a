"""Evaluate the checkpoints of a run by its own evaluations, or by those of a file.

Each result goes to `RUN/eval/<step>-<name>.json` as soon as it is ready, with figures
beside it. Results of the references go to `pixels-<name>.json` and
`random-<name>.json`, those on another data set to `<step>-<name>-on-<data>.json`.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from polyview import devices, files, hosts
from polyview.config import parts
from polyview.config.file import evaluations_of
from polyview.config.overrides import apply_overrides
from polyview.config.schema import total_steps
from polyview.config.spec import build
from polyview.config.text import from_json, to_json
from polyview.config.trust import allow_list, check_trusted, renewed
from polyview.data.sources.protocol import CorruptRecord, Source
from polyview.errors import InputError, fits_together
from polyview.evaluation.base import (
    Result,
    key_of,
    raw_model,
    result_name,
    specs_of,
    write_result,
)
from polyview.model import Model
from polyview.runs.checkpoint import Damaged, saved_steps
from polyview.runs.lineage import training_sources
from polyview.runs.load import evaluated_model, load, untrained_model
from polyview.runs.workdir import read_config
from polyview.terminal import say


@dataclass(frozen=True)
class Asked:
    """The requested evaluations of a run.

    Attributes:
      file: evaluation file, `FILE.py:argument`; None selects the run's own evaluations.
      references: also evaluate raw pixels and the untrained model.
      on: a prepared data set to read instead of the evaluations' own.
      overrides: `{"evaluations.frozen.probe.steps": "4000"}`, applied to the config.
      trust: packages, besides this project's, that the run's config may call.
      weights: files of the fixed weights that the run lists by digest.
    """

    file: str | None = None
    references: bool = False
    on: str | None = None
    overrides: Mapping[str, str] | None = None
    trust: tuple[str, ...] = ()
    weights: Sequence[Path] = ()


def evaluate(run: Path, step: int | None, asked: Asked) -> None:
    """Evaluate one checkpoint of a run and write the results; step=None is the newest.

    Raises InputError if the run has no checkpoint or no evaluation, or if none of its
    evaluations supports the requested references or data set.
    """
    mesh = devices.make_mesh()
    whole = devices.replicated(mesh)
    model = load(run, step, whole, asked.trust, asked.weights)
    evaluations = built(run, model.config, asked)
    what = f"{run} and {asked.on or 'the data of its evaluations'}"
    with jax.set_mesh(mesh), fits_together(what):
        trained, untrained = evaluated_model(model, whole), None
        if asked.references:
            initial = untrained_model(model.config, whole, asked.trust)
            untrained = evaluated_model(initial, whole)
        for name, evaluation in evaluations.items():
            _check_targets(name, evaluation)
            results = {}
            measured = _measured(evaluation, model.step, trained, untrained, mesh)
            for subject, result in measured:
                key = f"step {subject}" if subject == model.step else str(subject)
                results[key] = dict(result)
                _written(run, subject, name, asked.on, result, evaluation)
            if len(results) > 1 and asked.on is None:
                _compared(run, evaluation, results)


def _measured(
    evaluation: Any,
    step: int,
    trained: Model,
    untrained: Model | None,
    mesh: jax.sharding.Mesh,
) -> Iterator[tuple[int | str, Result]]:
    """Yield the result of a model, then those of its references if requested."""
    models: dict[int | str, Callable] = {step: trained}
    if untrained is not None and hasattr(evaluation, "raw"):
        models |= {"random": untrained, "pixels": raw_model(evaluation)}
    if untrained is not None and hasattr(evaluation, "references"):
        models |= evaluation.references()
    if hasattr(evaluation, "several"):
        yield from evaluation.several(models, mesh)
    else:
        for subject, represent in models.items():
            yield subject, evaluation(represent, mesh)


def _check_targets(name: str, evaluation: Any) -> None:
    """Raise InputError if views pass on a target that unlabelled data do not have."""
    targets = getattr(getattr(evaluation, "views", None), "targets", ())
    for split in ("train", "test"):
        source = getattr(evaluation, split, None)
        if source is None or getattr(source, "targets", True) or not len(source):
            continue
        with contextlib.suppress(CorruptRecord):  # another row may be readable
            if absent := [target for target in targets if target not in source[0]]:
                raise InputError(
                    f"{key_of(name)}: its {split} data, {source!r}, have no "
                    f"'{absent[0]}'; for data without labels add "
                    f'"--config.{key_of(name)}.views.targets=()" (health measures '
                    "alone), or name data with labels: --on NAME"
                )


def built(run: Path, config: ConfigDict, asked: Asked) -> dict[str, Callable]:
    """Build the requested evaluations of a run, by name.

    Raises InputError as `evaluate` and `polyview.config.spec.build` do.
    """
    trusted: frozenset[str] | None = allow_list(asked.trust)
    config = from_json(to_json(renewed(config.to_dict())))
    learnt_by = functools.partial(training_sources, config.to_dict(), trusted)
    if asked.file is not None:
        # The user's file is trusted, but it may copy parts of the run's config.
        check_trusted(config, trusted, where=f"{run}")
        own = evaluations_of(asked.file, config.to_dict())
        config, trusted = from_json(to_json({"evaluations": own})), None
    apply_overrides(config, asked.overrides or {})
    specs = specs_of(config)
    if not specs:
        raise InputError(
            f"the config of {run} has no evaluations; name a file of evaluations: "
            "--evaluation configs/evaluations/frozen.py"
        )
    if asked.on is not None:
        specs = _on_other_data(specs, asked.on)
    evaluations = build_evaluations(specs, trusted, learnt_by=learnt_by)
    if asked.references and not any(map(_has_references, evaluations.values())):
        raise InputError(
            f"{run}: its evaluations score predictions and have no references; leave "
            "out --references"
        )
    return evaluations


def _has_references(evaluation: Any) -> bool:
    return hasattr(evaluation, "raw") or hasattr(evaluation, "references")


def build_evaluations(
    specs: Mapping[str, Any],
    trusted: frozenset[str] | None = None,
    learnt_by: Callable[[], list[Source] | None] = lambda: None,
) -> dict[str, Callable]:
    """Build evaluations from their specs, by name.

    learnt_by: returns what the model was trained on, for evaluations that ask.

    Raises InputError as `polyview.config.spec.build` does, and for an object that is no
    evaluation.
    """
    evaluations = {}
    for name, spec in specs.items():
        evaluation = build(spec, trusted, where=key_of(name))
        if not callable(evaluation) or isinstance(evaluation, functools.partial):
            raise InputError(
                f"{key_of(name)} builds {evaluation!r:.80}, not an evaluation; "
                "its `target` must build an object to call with (model, mesh)"
            )
        if hasattr(evaluation, "described"):
            evaluation = evaluation.described(spec)
        if hasattr(evaluation, "trained_on"):
            evaluation = evaluation.trained_on(learnt_by())
        evaluations[name] = evaluation
    return evaluations


def _on_other_data(specs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the evaluations with a train and a test split, set to another data set."""
    moved = {n: spec for n, spec in specs.items() if "train" in spec and "test" in spec}
    if not moved:
        raise InputError(
            "--on requires an evaluation by kNN and probe; the evaluations of this run "
            "score predictions"
        )
    for spec in moved.values():
        with spec.unlocked():
            for split in ("train", "test"):
                spec[split] = parts.prepared(name, split)
    return moved


def named(step: int | str, name: str, on: str | None) -> str:
    """Name the result of a step or a reference; `on` is another data set, if any."""
    own = result_name(step, name)
    return own if on is None else f"{own}-on-{on}"


def _written(
    run: Path, step: int | str, name: str, on: str | None, result: Result, by: Any
) -> None:
    """Write a result and its figures, and print its summary."""
    path = write_result(run, named(step, name, on), result, by)
    if hosts.is_first_process():
        say(f"{path}: {result.summary}")
        if hasattr(by, "figures"):
            _draw(path.with_suffix(""), by.figures(result, result.figure_data))


def _compared(run: Path, evaluation: Any, results: Mapping[str, dict]) -> None:
    """Draw a run beside its references, if the evaluation can."""
    if hasattr(evaluation, "comparison") and hosts.is_first_process():
        for name, figure in evaluation.comparison(results).items():
            _draw(run / "eval", {name: figure}, "/")


def _draw(start: Path, figures: Mapping[str, Any], between: str = "-") -> None:
    from polyview.drawing import png

    for name, figure in figures.items():
        files.write_whole(Path(f"{start}{between}{name}.png"), png(figure))


def watch(run: Path, asked: Asked, *, pause: float = 10) -> None:
    """Evaluate each checkpoint without a result, oldest first, until the last step.

    A checkpoint that is damaged, or deleted before it is read, is skipped with a
    message. pause: polling interval in seconds. Raises InputError as `evaluate` does,
    and if there is no run.
    """
    config = read_config(run)
    source = build(config.source, allow_list(asked.trust), where="source")
    last = total_steps(config, len(source))
    names = list(built(run, config, asked))
    tried: set[int] = set()

    def over(step: int) -> bool:
        paths = (run / "eval" / f"{named(step, name, asked.on)}.json" for name in names)
        return step in tried or all(path.exists() for path in paths)

    while True:
        waiting = (s for s in saved_steps(run / "checkpoints") if not over(s))
        step = hosts.of_first_process(next(waiting, -1))
        if step < 0:  # training itself may evaluate the last step first
            if hosts.of_first_process(int(over(last))):
                return
            time.sleep(pause)
            continue
        tried.add(step)
        try:
            evaluate(run, step, asked)
        except InputError as error:
            exists = (run / "checkpoints" / str(step)).exists()
            if exists and not isinstance(error.__cause__, Damaged):
                raise
            why = "is damaged" if exists else "was deleted before it was read"
            if hosts.is_first_process():
                say(f"{run}: checkpoint {step} {why}; skipped")
