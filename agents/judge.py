"""Let a judge label pairs of observations, and tell how far it can be trusted.

    python -m agents.judge --pairs NAME --judge model --model smollm2_135m
    python -m agents.judge --pairs NAME --judge oracle --flip 0.1
    python -m agents.judge --pairs NAME --judge FILE.jsonl --name mine

Judges:

    model         a language model is asked in both orders which caption it prefers
    scalar        it rates each caption by a digit
    embedding     it compares each caption with the goal
    random_model  as model, with random weights of the same shape: a control
    shorter       prefers the shorter caption: a control
    oracle        knows the true values; --flip, --bias and --ties spoil it
    FILE.jsonl    labels of your own, in the format of agents/feedback/labels.py

--goal shuffled asks for the goal of another pair, a control; other keys choose another
wording. Labels lie in labels/NAME.jsonl beside the pairs, and what is known of them in
labels/NAME.json: of each split that is labelled, by whichever command, and of all. To
resume an interrupted judge, run the same command again.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyview import cli, errors, files
from polyview.data.sources.protocol import default_data_dir
from polyview.errors import InputError, nearest

_SPLITS = ("train", "validation", "test")
_READING = ("model", "random_model", "scalar", "embedding")
_KINDS = (*_READING, "oracle", "shorter")
_ONLY = {  # the judges that a flag is for
    "model": _READING,
    "layers": _READING,
    "run": ("model", "scalar", "embedding"),
    "goal": ("model", "random_model"),
    "flip": ("oracle",),
    "bias": ("oracle",),
    "ties": ("oracle",),
    "seed": ("oracle", "model", "random_model"),
}
_MODEL = "smollm2_135m"


def main(arguments: list[str] | None = None) -> None:
    """Label pairs and print what the labels are worth; see `--help`."""
    flags = _parse(arguments)
    from agents.feedback import labels, pairs

    described = pairs.describe(flags.pairs)
    path = labels.path_of(default_data_dir() / flags.pairs, _name(flags))
    whole = {split: pairs.read(flags.pairs, split) for split in _SPLITS}
    rate = None
    if flags.judge.endswith(".jsonl"):
        _bring(Path(flags.judge), path, described["digest"], whole)
    else:
        cli.cache_compiled()
        cli.check_jax()
        judge = _judge(flags)
        header = {
            "pairs": described["digest"],
            "judge": judge.settings,
            "model": judge.model,
            "prompt": judge.prompt,
        }
        there = path.exists()
        done = labels.begin(path, header) if there else set()
        left = {
            split: [
                pair for pair in whole[split][: flags.n] if pair["pair"] not in done
            ]
            for split in flags.split
        }
        begun = time.perf_counter()
        # Of whole splits, so that answers do not depend on what is asked.
        asks = {split: judge(whole[split]) for split, rest in left.items() if rest}
        if not there:  # what is refused takes no name
            labels.begin(path, header)
        _label(asks, left, path)
        if count := sum(map(len, left.values())):
            rate = count / (time.perf_counter() - begun)
    from agents.feedback.audit import audit, told

    every = labels.read(path, described["digest"])
    content = {"pairs": flags.pairs, **_audit(every, whole), "pairs_per_second": rate}
    files.write_whole(
        path.with_suffix(".json"), f"{json.dumps(content, indent=1)}\n".encode()
    )
    fast = "" if rate is None else f" ({rate:.2f} pairs/s)"
    now = [pair for split in flags.split for pair in whole[split]]
    print(f"{path}{fast}: {told(audit(now, every))}")


def _label(
    asks: Mapping[str, Any],
    left: Mapping[str, Sequence[Mapping[str, Any]]],
    path: Path,
) -> None:
    """Add the labels that a file lacks; left: the pairs that have none, by split."""
    from tqdm import tqdm

    from agents.feedback.labels import line

    with path.open("a") as file:
        for split, ask in asks.items():
            for pair in tqdm(left[split], desc=split, unit=" pairs", delay=3):
                file.write(line(pair["pair"], *ask(pair)))
                file.flush()


def _bring(file: Path, path: Path, digest: str, whole: Mapping[str, Sequence]) -> None:
    """Copy a user's labels to `path`. Raises InputError if they are not of these."""
    from agents.feedback import labels

    content = files.read_bounded(file, labels.LONGEST) if file.is_file() else b""
    brought = labels.read(file, digest)
    known = {pair["pair"] for own in whole.values() for pair in own}
    strange, name = sorted(set(brought.ids.tolist()) - known), path.parents[1].name
    if strange:
        raise InputError(f"{file} has labels of pair {strange[0]}, which {name} lacks")
    if path.exists() and path.read_bytes() != content:
        raise InputError(f"{path} holds other labels; give another --name")
    files.write_whole(path, content)


def _audit(there: Any, whole: Mapping[str, Sequence]) -> dict[str, Any]:
    """Return the header of labels, and their audit on all pairs that they have, and on
    each split of which they have any. whole: the pairs of all splits."""
    from agents.feedback.audit import audit

    every = [pair for own in whole.values() for pair in own]
    each = {split: audit(own, there) for split, own in whole.items()}
    labelled = {split: own for split, own in each.items() if own["pairs"]}
    return {"header": there.header, "all": audit(every, there), "splits": labelled}


def _judge(flags: argparse.Namespace) -> Any:
    """Return the judge that the flags describe."""
    from agents.feedback import judge, reading

    if flags.judge == "shorter":
        return judge.Shorter()
    if flags.judge == "oracle":
        given = {key: getattr(flags, key) for key in ("flip", "bias", "ties", "seed")}
        with errors.fits_together("--flip, --bias, --ties and --seed"):
            return judge.Oracle(**{k: v for k, v in given.items() if v is not None})
    name, seed = flags.model or _MODEL, flags.seed or 0
    about: dict[str, Any] = {"kind": flags.judge, "name": name, "layers": flags.layers}
    if flags.judge == "random_model":
        language = reading.of_shape(name, flags.layers, seed)
        about["seed"] = seed
    elif flags.run is not None:
        language = reading.of_run(flags.run, name, tuple(flags.trust))
        about["run"] = flags.run.name
    else:
        language = reading.of_model(name, flags.layers)
    if flags.judge == "scalar":
        return judge.Scalar(language, about)
    if flags.judge == "embedding":
        return judge.Embedding(language, about)
    goal = flags.goal or "default"
    if goal == "shuffled":
        return judge.Asked(language, about, shuffled=True, seed=seed)
    return judge.Asked(language, about, goal)


def _name(flags: argparse.Namespace) -> str:
    """Return the name of labels, by default that of what gives them."""
    if flags.name is not None:
        return flags.name
    if flags.judge.endswith(".jsonl"):
        return Path(flags.judge).stem
    if flags.judge not in _READING:
        return flags.judge
    own = flags.run.name if flags.run is not None else flags.model or _MODEL
    kind = {"model": None, "random_model": "random"}.get(flags.judge, flags.judge)
    goal = flags.goal if flags.goal != "default" else None
    return "-".join(filter(None, (own, kind, goal)))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(
        prog="python -m agents.judge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--pairs", required=True, help="pairs of agents.prepare --pairs")
    add("--judge", required=True, metavar="JUDGE", help="see above")
    add("--model", help=f"a prepared model ({_MODEL})")
    add("--layers", type=int, help="take its first blocks alone (all)")
    add("--run", type=Path, help="a run that tuned the model, in its place")
    cli.add_trust(parser)
    add("--goal", help="default, explore, or shuffled (default)")
    add("--flip", type=float, help="share of preferences that are turned (0)")
    add("--bias", type=float, help="added to the logit of what is shown first (0)")
    add("--ties", type=float, help="share of pairs that are called ties (0)")
    add("--seed", type=int, help="of what is drawn (0)")
    add(
        "--split",
        nargs="+",
        default=["train", "validation"],
        help="splits to label (train validation)",
    )
    add("--n", type=int, help="label the first pairs of each split alone (all)")
    add("--name", help="of the labels (by default that of the judge)")
    flags = parser.parse_args(arguments)
    brought = flags.judge.endswith(".jsonl")
    if not brought and flags.judge not in _KINDS:
        raise InputError(f"--judge {flags.judge}{nearest(flags.judge, _KINDS)}")
    for name, kinds in _ONLY.items():
        if getattr(flags, name) is not None and flags.judge not in kinds:
            raise InputError(
                f"--{name} only applies to --judge {', '.join(kinds)}; leave it out"
            )
    for split in flags.split:
        if split not in _SPLITS:
            raise InputError(f"--split {split}{nearest(split, _SPLITS)}")
    if flags.n is not None and (flags.n < 1 or brought):
        raise InputError(f"--n is {flags.n}; give 1 or more, and none with a file")
    if flags.run is not None and flags.layers is not None:
        raise InputError("--layers is not for a run, which has its own; leave it out")
    flags.split = list(dict.fromkeys(flags.split))
    return flags


if __name__ == "__main__":
    errors.run(main)
