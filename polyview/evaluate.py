"""Evaluate checkpoints: kNN, linear probe, health -> `RUN/eval/<step>.json`.

    python -m polyview.evaluate --run runs/a [--references | --watch]

With --watch it follows a run: each checkpoint is evaluated once, as it appears, and the
last one ends it. A key of the protocol may be overridden, as
--config.evaluation.knn.k=5, and stands in the result. The figures lie beside the
numbers, as `<step>-map.png` and so on; the references are pixels.json and random.json.
With --on NAME the same protocol reads the splits train and test of another prepared
data set, and writes <step>-on-NAME.json: how the features transfer.
"""

import time
from collections.abc import Mapping
from pathlib import Path

from polyview import cli, errors, files
from polyview.config import parts
from polyview.config.overrides import apply_overrides, parse_flags
from polyview.config.schema import total_steps
from polyview.config.spec import build
from polyview.config.trust import allow_list
from polyview.errors import InputError, fits_together
from polyview.runs.workdir import check_run


def main() -> None:
    """Read the command line and evaluate; see `--help`."""
    parser = cli.Parser(
        prog="python -m polyview.evaluate", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--run", metavar="DIR", required=True, nargs="+", type=Path)
    cli.add_checkpoint(parser)
    parser.add_argument(
        "--watch",
        action="store_true",
        help="every checkpoint without a result, as they appear, up to the last",
    )
    parser.add_argument(
        "--pause", type=float, default=10, help="of --watch: seconds between looks"
    )
    parser.add_argument(
        "--on", metavar="NAME", help="another prepared data set with labels"
    )
    parser.add_argument(
        "--references",
        action="store_true",
        help="also raw pixels and the untrained encoder, by the same protocol",
    )
    cli.add_distributed(parser)
    flags, rest = parser.parse_known_args()
    overrides = parse_flags(rest, known=vars(flags))
    trust = tuple(flags.trust)
    if flags.watch and (
        len(flags.run) > 1 or flags.step is not None or flags.references
    ):
        raise InputError("--watch follows one run, without --step and --references")
    if not 0 < flags.pause < 1e6:
        raise InputError(f"--pause is {flags.pause}, not a number of seconds above 0")
    if not flags.watch:
        for run in flags.run:
            check_run(run, overrides)
    for run in flags.run:
        files.check_folder(run / "eval")
    cli.start(flags)
    for run in flags.run:
        with fits_together(f"{run} and what is asked of it"):
            if flags.watch:
                watch(run, trust, overrides, on=flags.on, pause=flags.pause)
            else:
                evaluate(run, flags.step, flags.references, trust, overrides, flags.on)


def watch(
    run: Path,
    trust: tuple[str, ...] = (),
    overrides: Mapping[str, str] | None = None,
    *,
    on: str | None = None,
    pause: float = 10,
) -> None:
    """Evaluate each checkpoint that has no result, the oldest first, until the last.

    One that is deleted before it is read, or is damaged, is passed over with a line.
    `pause` seconds lie between two looks at the folder. Raises InputError as `evaluate`
    does, and where there is no run.
    """
    from polyview import hosts
    from polyview.runs.checkpoint import Damaged, saved_steps
    from polyview.runs.workdir import read_config
    from polyview.terminal import say

    config = read_config(run)
    source = build(config.source, allow_list(trust), where="source")
    last = total_steps(config, len(source))
    passed = set()

    def over(step: int) -> bool:
        return step in passed or (run / "eval" / f"{named(step, on)}.json").exists()

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
            evaluate(run, step, False, trust, overrides, on)
        except InputError as error:
            there = (run / "checkpoints" / str(step)).exists()
            if there and not isinstance(error.__cause__, Damaged):
                raise
            why = "is damaged" if there else "was deleted before it was read"
            if hosts.is_first_process():
                say(f"{run}: checkpoint {step} {why}; going on")


def evaluate(
    run: Path,
    step: int | None,
    references: bool,
    trust: tuple[str, ...] = (),
    overrides: Mapping[str, str] | None = None,
    on: str | None = None,
) -> None:
    """Evaluate one run and write what was found beside its checkpoints.

    overrides: `{"evaluation.probe.steps": "4000"}` over the checkpoint's config; on: a
    prepared data set in the place of the config's. Raises InputError when the run has
    no checkpoint or its config no evaluation, and when references, or another data
    set, are asked of one that measures what the model predicts.
    """
    import jax

    from polyview import devices, hosts
    from polyview.runs.load import evaluated_model, load, untrained_model
    from polyview.terminal import say

    mesh = devices.make_mesh()
    whole = devices.replicated(mesh)
    model = load(run, step, whole, trust)
    from polyview import drawing  # a second: after a run that is refused
    from polyview.evaluation.frozen import pixels, write_result

    if model.config.get("evaluation") is None:
        raise InputError(f"the config of {run} has no 'evaluation'")
    if on is not None:
        read_instead(model.config.evaluation, on)
    apply_overrides(model.config, overrides or {})
    protocol = build(model.config.evaluation, allow_list(trust), where="evaluation")
    if references and not hasattr(protocol, "raw"):
        raise InputError(
            f"{run} is evaluated by what it predicts, which has no references; "
            "leave out --references"
        )
    read = model.config.evaluation
    what = f"{run} and {read.test.name if on else 'what its evaluation reads'}"
    with jax.set_mesh(mesh), fits_together(what):
        results = {model.step: protocol(evaluated_model(model, whole), mesh)}
        if references:
            untrained = untrained_model(model.config, whole, trust)
            results["random"] = protocol(evaluated_model(untrained, whole), mesh)
            results["pixels"] = pixels(protocol, mesh)
    if not hosts.is_first_process():
        return
    for key, result in results.items():
        name = named(key, on)
        path = write_result(run, name, result)
        for what, figure in drawing.figures(result, result.figure_data).items():
            picture = path.with_name(f"{name}-{what}.png")
            files.write_whole(picture, drawing.png(figure))
        say(f"{path}: {summary(result)}")
    if references and on is None and "variables" in results[model.step]:
        results[f"step {model.step}"] = results.pop(model.step)
        figure = drawing.variables(results)
        picture = run / "eval" / "variables.png"
        files.write_whole(picture, drawing.png(figure))


def named(of: int | str, on: str | None) -> str:
    """The name of a result: of a step, or a reference, on its own data or others."""
    return str(of) if on is None else f"{of}-on-{on}"


def read_instead(evaluation, name: str) -> None:
    """Let a config's evaluation read the splits of another prepared data set.

    Raises InputError where it does not compare a train and a test split.
    """
    if "train" not in evaluation or "test" not in evaluation:
        raise InputError(
            "--on needs an evaluation by kNN and probe; this one measures what the "
            "model predicts"
        )
    with evaluation.unlocked():
        for split in ("train", "test"):
            evaluation[split] = parts.prepared(name, split)


def summary(result: dict) -> str:
    """One line of what a result says."""
    from polyview import drawing

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
        for measure in drawing.MEASURES:
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
