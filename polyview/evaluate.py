"""Evaluate checkpoints: kNN, linear probe, health -> `RUN/eval/<step>.json`.

python -m polyview.evaluate --run runs/a [--references]
"""

import argparse
from pathlib import Path

from polyview import config as configs
from polyview import errors
from polyview.errors import InputError


def main() -> None:
    """Read the command line and evaluate; see `--help`."""
    parser = argparse.ArgumentParser(
        prog="python -m polyview.evaluate", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--run", metavar="DIR", required=True, nargs="+", type=Path)
    parser.add_argument("--step", type=int, help="a checkpoint other than the newest")
    parser.add_argument(
        "--references",
        action="store_true",
        help="also raw pixels and the untrained encoder, by the same protocol",
    )
    parser.add_argument(
        "--trust",
        metavar="PACKAGE",
        nargs="*",
        default=[],
        help="packages, beside this project's, that a checkpoint's config may name",
    )
    parser.add_argument(
        "--distributed", action="store_true", help="as in polyview.main"
    )
    flags = parser.parse_args()

    from polyview import mesh

    if flags.distributed:
        mesh.start()
    for run in flags.run:
        evaluate(run, flags.step, flags.references, tuple(flags.trust))


def evaluate(run: Path, step: int | None, references: bool, trust: tuple[str, ...]):
    """Evaluate one run and write what was found beside its checkpoints.

    Raises InputError when the run has no checkpoint or its config no evaluation.
    """
    import jax

    from polyview import mesh as meshes
    from polyview import metrics, restore
    from polyview.evaluation import protocol as protocols

    mesh = meshes.make()
    whole = meshes.replicated(mesh)
    model = restore.load(run, step, whole, trust)
    if model.config.get("evaluation") is None:
        raise InputError(f"the config of {run} has no 'evaluation'")
    protocol = configs.build(
        model.config.evaluation, configs.TRUSTED + trust, where="evaluation"
    )
    with jax.set_mesh(mesh):
        results = {model.step: protocol(restore.represent(model, whole), mesh)}
        if references:
            untrained = restore.initial(model.config, whole, trust)
            results["random"] = protocol(restore.represent(untrained, whole), mesh)
            results["pixels"] = protocols.pixels(protocol, mesh)
    for name, result in results.items():
        path = protocols.write(run, str(name), result)
        metrics.say(f"{path}: {summary(result)}")


def summary(result: dict) -> str:
    """One line of what a result says."""
    parts = [
        f"{label} {100 * result[name]['top1']:.2f} %"
        for name, label in (("linear_probe", "linear probe"), ("knn", "kNN"))
        if name in result
    ]
    return ", ".join([*parts, f"RankMe {result['health']['h']['rankme']:.1f}"])


if __name__ == "__main__":
    errors.run(main)
