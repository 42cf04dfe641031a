"""Evaluate the checkpoints of a run: its own evaluations, or those of a file.

Results go to `RUN/eval/<step>-<name>.json`, each as soon as it is there, and figures
beside it; those of the references to `pixels-<name>.json` and `random-<name>.json`,
those on another data set to `<step>-<name>-on-<data>.json`.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from polyview import devices, files, hosts
from polyview.config import parts
from polyview.config.file import evaluations_of
from polyview.config.overrides import apply_overrides
from polyview.config.schema import total_steps
from polyview.config.spec import build
from polyview.config.text import from_json, to_json
from polyview.config.trust import allow_list, check_trusted, renewed
from polyview.errors import InputError, fits_together
from polyview.evaluation.base import (
    Result,
    key_of,
    pixels,
    result_name,
    specs_of,
    write_result,
)
from polyview.model import Model
from polyview.runs.checkpoint import Damaged, saved_steps
from polyview.runs.load import evaluated_model, load, untrained_model
from polyview.runs.workdir import read_config
from polyview.terminal import say


@dataclass(frozen=True)
class Asked:
    """What is asked of a run.

    Attributes:
      file: of evaluations, `FILE.py:argument`; None asks for the run's own.
      references: also raw pixels and the untrained model.
      on: a prepared data set to read in place of the evaluations' own.
      overrides: `{"evaluations.frozen.probe.steps": "4000"}` over the config.
      trust: packages that the run's config may name beside this project's.
      weights: files of fixed weights, where the run names them by digest.
    """

    file: str | None = None
    references: bool = False
    on: str | None = None
    overrides: Mapping[str, str] | None = None
    trust: tuple[str, ...] = ()
    weights: Sequence[Path] = ()


def evaluate(run: Path, step: int | None, asked: Asked) -> None:
    """Evaluate one checkpoint of a run, and write what is found.

    Raises InputError where the run has no checkpoint or no evaluation, and for
    references, or another data set, that none of its evaluations knows.
    """
    mesh = devices.make_mesh()
    whole = devices.replicated(mesh)
    model = load(run, step, whole, asked.trust, asked.weights)
    evaluations = built(run, model.config, asked)
    what = f"{run} and {asked.on or 'what its evaluations read'}"
    with jax.set_mesh(mesh), fits_together(what):
        trained, untrained = evaluated_model(model, whole), None
        if asked.references:
            initial = untrained_model(model.config, whole, asked.trust)
            untrained = evaluated_model(initial, whole)
        for name, evaluation in evaluations.items():
            results = {}
            measured = _measured(evaluation, model.step, trained, untrained, mesh)
            for of, found in measured:
                results[f"step {of}" if of == model.step else of] = dict(found)
                _written(run, of, name, asked.on, found, evaluation)
            if len(results) > 1 and asked.on is None:
                _compared(run, evaluation, results)


def _measured(
    evaluation: Any, step: int, trained: Model, untrained: Model | None, mesh: Any
) -> Iterator[tuple[int | str, Result]]:
    """Generate what a model is worth, then its references, where they are asked for."""
    yield step, evaluation(trained, mesh)
    if untrained is not None and hasattr(evaluation, "raw"):
        yield "random", evaluation(untrained, mesh)
        yield "pixels", pixels(evaluation, mesh)


def built(run: Path, config: Any, asked: Asked) -> dict[str, Callable]:
    """The evaluations that are asked of a run, by name."""
    trusted = allow_list(asked.trust)
    config = from_json(to_json(renewed(config.to_dict())))
    if asked.file is not None:
        # What the file returns is the user's own, but for what it takes from the run.
        check_trusted(config, trusted, where=f"{run}")
        own = evaluations_of(asked.file, config.to_dict())
        config, trusted = from_json(to_json({"evaluations": own})), None
    apply_overrides(config, asked.overrides or {})
    specs = specs_of(config)
    if not specs:
        raise InputError(
            f"the config of {run} has no evaluations; name a file of some: "
            "--evaluation configs/evaluations/frozen.py"
        )
    if asked.on is not None:
        specs = _on_other_data(specs, asked.on)
    found = build_evaluations(specs, trusted)
    if asked.references and not any(hasattr(e, "raw") for e in found.values()):
        raise InputError(
            f"{run}: its evaluations score predictions and have no references; leave "
            "out --references"
        )
    return found


def build_evaluations(
    specs: Mapping[str, Any], trusted: frozenset[str] | None = None
) -> dict[str, Callable]:
    """Build evaluations from their specs, by name.

    Raises InputError as `polyview.config.spec.build` does, and for what is no
    evaluation.
    """
    found = {}
    for name, spec in specs.items():
        found[name] = build(spec, trusted, where=key_of(name))
        if not callable(found[name]) or isinstance(found[name], functools.partial):
            raise InputError(
                f"{key_of(name)} builds {found[name]!r:.80}, which is no evaluation: "
                "its `target` must make an object to be called with (model, mesh)"
            )
    return found


def _on_other_data(specs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The evaluations that compare a train and a test split, on another data set."""
    found = {n: spec for n, spec in specs.items() if "train" in spec and "test" in spec}
    if not found:
        raise InputError(
            "--on needs an evaluation by kNN and probe; this one measures what the "
            "model predicts"
        )
    for spec in found.values():
        with spec.unlocked():
            for split in ("train", "test"):
                spec[split] = parts.prepared(name, split)
    return found


def named(step: int | str, name: str, on: str | None) -> str:
    """The name of a result: of a step or a reference, on its own data or others."""
    found = result_name(step, name)
    return found if on is None else f"{found}-on-{on}"


def _written(
    run: Path, step: int | str, name: str, on: str | None, result: Result, by: Any
) -> None:
    """Write a result and its figures, and say what it found."""
    path = write_result(run, named(step, name, on), result, by)
    if hosts.is_first_process():
        if hasattr(by, "figures"):
            _draw(path.with_suffix(""), by.figures(result, result.figure_data))
        say(f"{path}: {result.summary}")


def _compared(run: Path, evaluation: Any, results: Mapping[str, dict]) -> None:
    """Draw a run beside its references, where the evaluation can."""
    if hasattr(evaluation, "comparison") and hosts.is_first_process():
        for name, figure in evaluation.comparison(results).items():
            _draw(run / "eval", {name: figure}, "/")


def _draw(start: Path, figures: Mapping[str, Any], between: str = "-") -> None:
    from polyview.drawing import png

    for name, figure in figures.items():
        files.write_whole(Path(f"{start}{between}{name}.png"), png(figure))


def watch(run: Path, asked: Asked, *, pause: float = 10) -> None:
    """Evaluate each checkpoint that has no result, the oldest first, until the last.

    One that is deleted before it is read, or is damaged, is passed over with a line.
    `pause` seconds lie between two looks at the folder. Raises InputError as `evaluate`
    does, and where there is no run.
    """
    config = read_config(run)
    source = build(config.source, allow_list(asked.trust), where="source")
    last = total_steps(config, len(source))
    names = list(built(run, config, asked))
    passed = set()

    def over(step: int) -> bool:
        paths = (run / "eval" / f"{named(step, name, asked.on)}.json" for name in names)
        return step in passed or all(path.exists() for path in paths)

    while True:
        waiting = (s for s in saved_steps(run / "checkpoints") if not over(s))
        step = hosts.of_first_process(next(waiting, -1))
        if step < 0:  # the training itself may have evaluated the last before others
            if hosts.of_first_process(int(over(last))):
                return
            time.sleep(pause)
            continue
        passed.add(step)
        try:
            evaluate(run, step, asked)
        except InputError as error:
            exists = (run / "checkpoints" / str(step)).exists()
            if exists and not isinstance(error.__cause__, Damaged):
                raise
            why = "is damaged" if exists else "was deleted before it was read"
            if hosts.is_first_process():
                say(f"{run}: checkpoint {step} {why}; passed over")
