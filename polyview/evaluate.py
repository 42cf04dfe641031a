"""Evaluate checkpoints: kNN, linear probe, health -> `RUN/eval/<step>.json`.

    python -m polyview.evaluate --run runs/a [--references | --watch]

With --watch it follows a run: each checkpoint is evaluated once, as it appears, and the
last one ends it. A key of the protocol may be overridden, as
--config.evaluation.knn.k=5, and stands in the result. The figures lie beside the
numbers, as `<step>-map.png` and so on; the references are pixels.json and random.json.
"""

import time
from collections.abc import Mapping
from pathlib import Path

from polyview import command, errors
from polyview import config as configs
from polyview.errors import InputError


def main() -> None:
    """Read the command line and evaluate; see `--help`."""
    parser = command.Parser(
        prog="python -m polyview.evaluate", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--run", metavar="DIR", required=True, nargs="+", type=Path)
    command.add_checkpoint(parser)
    parser.add_argument(
        "--watch",
        action="store_true",
        help="every checkpoint without a result, as they appear, up to the last",
    )
    parser.add_argument(
        "--pause", type=float, default=10, help="of --watch: seconds between looks"
    )
    parser.add_argument(
        "--references",
        action="store_true",
        help="also raw pixels and the untrained encoder, by the same protocol",
    )
    command.add_distributed(parser)
    flags, rest = parser.parse_known_args()
    overrides = configs.overrides(rest, known=vars(flags))
    trust = tuple(flags.trust)
    if flags.watch and (len(flags.run) > 1 or flags.step or flags.references):
        raise InputError("--watch follows one run, without --step and --references")
    if not flags.pause > 0:
        raise InputError(f"--pause is {flags.pause}, not a number of seconds above 0")
    command.start(flags)
    if flags.watch:
        watch(flags.run[0], trust, overrides, pause=flags.pause)
        return
    for run in flags.run:
        evaluate(run, flags.step, flags.references, trust, overrides)


def watch(
    run: Path,
    trust: tuple[str, ...] = (),
    overrides: Mapping[str, str] | None = None,
    *,
    pause: float = 10,
) -> None:
    """Evaluate each checkpoint that has no result, the oldest first, until the last.

    One that is deleted before it is read, or is damaged, is passed over with a line.
    `pause` seconds lie between two looks at the folder. Raises InputError as `evaluate`
    does, and where there is no run.
    """
    from polyview import mesh as meshes
    from polyview import metrics, workdir
    from polyview.checkpoint import Damaged, saved_steps

    config = workdir.read_config(run)
    source = configs.build(config.source, configs.TRUSTED + trust, where="source")
    last = configs.steps(config, len(source))
    passed = set()
    while not (run / "eval" / f"{last}.json").exists() and last not in passed:
        waiting = (
            step
            for step in saved_steps(run / "checkpoints")
            if step not in passed and not (run / "eval" / f"{step}.json").exists()
        )
        step = meshes.of_first_process(next(waiting, -1))
        if step < 0:
            time.sleep(pause)
            continue
        passed.add(step)
        try:
            evaluate(run, step, False, trust, overrides)
        except InputError as error:
            there = (run / "checkpoints" / str(step)).exists()
            if there and not isinstance(error.__cause__, Damaged):
                raise
            why = "is damaged" if there else "was deleted before it was read"
            if meshes.is_first_process():
                metrics.say(f"{run}: checkpoint {step} {why}; going on")


def evaluate(
    run: Path,
    step: int | None,
    references: bool,
    trust: tuple[str, ...] = (),
    overrides: Mapping[str, str] | None = None,
) -> None:
    """Evaluate one run and write what was found beside its checkpoints.

    overrides: `{"evaluation.probe.steps": "4000"}` over the checkpoint's config. Raises
    InputError when the run has no checkpoint or its config no evaluation, and when
    references are asked of one that measures a classifier.
    """
    import jax

    from polyview import mesh as meshes
    from polyview import metrics, restore
    from polyview.evaluation import plots
    from polyview.evaluation import protocol as protocols

    mesh = meshes.make()
    whole = meshes.replicated(mesh)
    model = restore.load(run, step, whole, trust)
    configs.override(model.config, overrides or {})
    if model.config.get("evaluation") is None:
        raise InputError(f"the config of {run} has no 'evaluation'")
    protocol = configs.build(
        model.config.evaluation, configs.TRUSTED + trust, where="evaluation"
    )
    if references and not hasattr(protocol, "raw"):
        raise InputError(
            f"{run} is evaluated by what it predicts, which has no references; "
            "leave out --references"
        )
    with jax.set_mesh(mesh):
        results = {model.step: protocol(restore.represent(model, whole), mesh)}
        if references:
            untrained = restore.initial(model.config, whole, trust)
            results["random"] = protocol(restore.represent(untrained, whole), mesh)
            results["pixels"] = protocols.pixels(protocol, mesh)
    if not meshes.is_first_process():
        return
    for name, result in results.items():
        path = protocols.write(run, str(name), result)
        for what, figure in plots.figures(result, result.sample).items():
            picture = path.with_name(f"{name}-{what}.png")
            protocols.write_whole(picture, plots.png(figure))
        metrics.say(f"{path}: {summary(result)}")
    if references and "variables" in results[model.step]:
        results[f"step {model.step}"] = results.pop(model.step)
        figure = plots.variables(results)
        picture = run / "eval" / "variables.png"
        protocols.write_whole(picture, plots.png(figure))


def summary(result: dict) -> str:
    """One line of what a result says."""
    from polyview.evaluation import plots

    measures = {"linear_probe": "linear probe", "knn": "kNN", "classifier": "top-1"}
    parts = [
        f"{label} {100 * result[name]['top1']:.2f} %"
        for name, label in measures.items()
        if name in result
    ]
    if "variables" in result:
        found = result["variables"]
        told = [f"{name} {said['r2']:.2f}" for name, said in found.items()]
        accuracy, f1 = (
            100 * sum(said[measure] for said in found.values()) / max(len(found), 1)
            for measure in ("accuracy", "f1")
        )
        parts.append(f"R^2 {', '.join(told)}; accuracy {accuracy:.1f} %, F1 {f1:.1f} %")
    for target, said in result.get("subsets", {}).items():
        several = [of for of in said if len(of["looks"]) > 1]
        named = {of["looks"][0]: of for of in said if of not in several}
        named |= {"all": several[-1]} if several else {}
        for measure in plots.MEASURES:
            told = [
                f"{n} {of[measure]:.3f}" for n, of in named.items() if measure in of
            ]
            if told:
                parts.append(f"{target}, {measure}: {', '.join(told)}")
    if "health" in result:
        parts.append(f"RankMe {result['health']['h']['rankme']:.1f}")
    return ", ".join(parts)


if __name__ == "__main__":
    errors.run(main)
