"""Adapters, tokenizers and bodies of language-model policies: the tables of the paper.

    python -m benchmarks.agents tokenizers --workdir runs/agents
    python -m benchmarks.agents cloning --workdir runs/agents
    python -m benchmarks.agents babyai --workdir runs/agents
    python -m benchmarks.agents transfer --workdir runs/agents

tokenizers: VQ and RVQ of 1, 2 and 4 codebooks, with and without the replacement of
dead codes, and k-means of the same size, on expert actions of five Meta-World tasks;
error on held-out episodes. cloning: success on these tasks, by adapter, with a small
body trained from scratch and with four layers of the language model, and in PointMaze
with the small one. babyai: PickupLoc by adapter and number of demonstrations. transfer:
a tokenizer of the five tasks against one of all seven, on two held-out tasks with 50
demonstrations each. Rates are chosen on the seeds of validation, by success of one
seed; tables are of the test seeds. A finished run is a row of the JSON and is not
repeated: run again to resume. Data are recorded first:

    python -m agents.prepare llm
    python -m agents.prepare --env babyai:PickupLoc --name babyai_pickup
    python -m agents.prepare --env dvf.navigation:KnownGoals --episodes 500 --name maze
    python -m agents.prepare --name metaworld_five --episodes 100 --validation 20 \\
        --test 20 --env metaworld:reach-v3 metaworld:push-v3 metaworld:drawer-open-v3 \\
        metaworld:drawer-close-v3 metaworld:button-press-topdown-v3

and metaworld_seven likewise with window-open-v3 and plate-slide-v3, metaworld_two with
50 episodes of these two alone.
"""

import argparse
import itertools
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import student
from benchmarks.studies import (
    Row,
    begin,
    evaluated,
    measure_missing,
    own_evaluations,
    read,
    trained,
)
from polyview import errors
from polyview.config.file import load_config
from polyview.errors import InputError

RESULTS = Path(__file__).parent / "results"
TABLES = ("tokenizers", "cloning", "babyai", "transfer")
SEEDS = 3
# Tokens of texts.
LENGTHS = {"babyai_pickup": 12, "metaworld_five": 8, "metaworld_two": 8, "maze": 8}
DRAWS = "4"  # steps of an episode in a batch
FIVE, PICKUP, MAZE = "metaworld_five", "babyai_pickup", "maze"
SEVEN, TWO = "metaworld_seven", "metaworld_two"  # with two more tasks; those alone
STEPS = 1500
# {name of a tokenizer: arguments of the config, overrides}
TOKENIZERS: dict[str, tuple[str, dict[str, str]]] = {
    "VQ 256": ("codebooks=1", {}),
    "RVQ 2 x 256": ("codebooks=2", {}),
    "RVQ 4 x 256": ("codebooks=4", {}),
    "RVQ 2 x 256, dead codes stay": ("codebooks=2", {"model.threshold": "0.0"}),
}
RATES = ("3e-4", "1e-3", "3e-3")
ADAPTERS = ("pred", "uniform", "vq", "rvq")
BODIES = ("scratch", "llm")
TOLD = ("name", "data", "body", "adapter", "demonstrations", "tokenizer_of")
WORDS = ("pred", "lang", "semlang")
DEMONSTRATIONS = (100, 1000)


def main() -> None:
    """Train what is missing of a table; write the JSON after each run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="JSON (default: in results/)")
    parser.add_argument("--steps", type=int, default=STEPS, help="of policies")
    flags = parser.parse_args()
    output = flags.output or RESULTS / f"agents_{flags.table}.json"
    begin(flags.workdir)
    runs = {
        "tokenizers": tokenizers,
        "cloning": cloning,
        "babyai": babyai,
        "transfer": transfer,
    }[flags.table]
    measure_missing(
        lambda rows: runs(flags, rows),
        output,
        flags.workdir,
        lambda rows: summary(flags.table, rows),
    )


def tokenizers(flags: argparse.Namespace, rows: list[dict]) -> Iterator[Row]:
    """Yield the runs of the table of tokenizers."""
    for seed, name in itertools.product(range(SEEDS), TOKENIZERS):

        def measure(seed: int = seed, name: str = name) -> dict[str, Any]:
            run = tokenizer(flags, name, FIVE, seed)
            asked = own_evaluations(run)
            asked["tokens"]["test"]["split"] = "test"
            (found,) = evaluated(run, asked).values()
            keys = ("error", "error_interval", "perplexity", "used", "k_means")
            return {key: found[key] for key in keys}

        yield {"name": name, "seed": seed}, measure


def tokenizer(
    flags: argparse.Namespace, name: str, data: str, seed: int, split: str = "test"
) -> Path:
    """Return the run of a tokenizer; train it if it is missing."""
    arguments, overrides = TOKENIZERS[name]
    config = load_config(
        f"configs/agents_tokenizer.py:data={data},split={split},{arguments}",
        {**overrides, "seed": str(seed)},
    )
    words = "".join(c if c.isalnum() else "_" for c in name)
    return trained(config, flags.workdir / f"tokenizer_{data}_{words}_{seed}")


def cloning(flags: argparse.Namespace, rows: list[dict]) -> Iterator[Row]:
    """Yield the runs of the table of adapters and bodies on Meta-World."""
    arms = list(itertools.product((FIVE, MAZE), BODIES, ADAPTERS))
    # A run of the language model takes long: in one world alone, and its rate is chosen
    # for one adapter, for all others too.
    arms = [one for one in arms if one[:2] != (MAZE, "llm")]
    for (data, body, adapter), rate in itertools.product(arms, RATES):
        about = {"data": data, "body": body, "adapter": adapter, "rate": rate}
        if body == "scratch" or adapter == "pred":
            yield arm(flags, data, {**about, "split": "validation"}, 0, episodes=20)
    for seed, (data, body, adapter) in itertools.product(range(SEEDS), arms):
        of = {"data": data, "body": body}
        chosen_by = adapter if body == "scratch" else "pred"
        if chosen := best(rows, {**of, "adapter": chosen_by}):
            given = {**of, "adapter": adapter, "rate": chosen, "split": "test"}
            yield arm(flags, data, given, seed, episodes=50)


def babyai(flags: argparse.Namespace, rows: list[dict]) -> Iterator[Row]:
    """Yield the runs of the table of words on BabyAI."""
    for adapter, rate in itertools.product(WORDS, RATES):
        about = {"adapter": adapter, "rate": rate, "demonstrations": 1000}
        yield arm(flags, PICKUP, {**about, "split": "validation"}, 0, episodes=100)
    for seed, count, adapter in itertools.product(range(SEEDS), DEMONSTRATIONS, WORDS):
        if chosen := best(rows, {"adapter": adapter}):
            about = {"adapter": adapter, "rate": chosen, "demonstrations": count}
            yield arm(flags, PICKUP, {**about, "split": "test"}, seed, episodes=200)


def transfer(flags: argparse.Namespace, rows: list[dict]) -> Iterator[Row]:
    """Yield policies of two held-out tasks by tokenizers of other tasks, and of all."""
    known = read(RESULTS / "agents_cloning.json")
    rate = best(known, {"data": FIVE, "body": "llm", "adapter": "pred"})
    if rate is None:
        raise InputError("the rate is chosen by the table of cloning: run that first")
    for seed, data in itertools.product(range(SEEDS), (FIVE, SEVEN)):
        about = {"body": "llm", "adapter": "rvq", "rate": rate, "tokenizer_of": data}
        yield arm(flags, TWO, {**about, "split": "test"}, seed, episodes=50)


def arm(
    flags: argparse.Namespace,
    data: str,
    about: Mapping[str, Any],
    seed: int,
    episodes: int,
) -> tuple[dict[str, Any], Any]:
    """Return what tells a policy from others, and the function that measures it."""
    named = {**about, "seed": seed, "steps": flags.steps}

    def measure() -> dict[str, Any]:
        given = {**named, "data": data, "episodes": episodes, "length": LENGTHS[data]}
        del given["seed"]
        known = given.pop("tokenizer_of", data)
        if about["adapter"] in ("vq", "rvq"):
            name = {"vq": "VQ 256", "rvq": "RVQ 2 x 256"}[about["adapter"]]
            given["tokenizer"] = str(tokenizer(flags, name, known, seed))
        argument = ",".join(f"{key}={value}" for key, value in given.items())
        overrides = {"seed": str(seed), "views.draws": DRAWS}
        config = load_config(f"configs/agents_policy.py:{argument}", overrides)
        words = "_".join(str(value) for value in named.values()).replace(".", "")
        run = trained(config, flags.workdir / f"policy_{data}_{words}")
        (found,) = evaluated(run, own_evaluations(run)).values()
        shutil.rmtree(run)
        worlds = {name: own["success"] for name, own in found["worlds"].items()}
        return {
            "success": found["success"],
            "interval": found["interval"],
            "worlds": worlds,
        }

    return named, measure


def best(rows: list[dict], about: Mapping[str, Any]) -> str | None:
    """Return the rate with the most success on validation, None until all are tried."""
    own = [
        row
        for row in rows
        if row.get("split") == "validation" and about.items() <= row.items()
    ]
    if {row["rate"] for row in own} != {*RATES}:
        return None
    return max(own, key=lambda row: row["success"])["rate"]


def summary(table: str, rows: list[dict]) -> dict[str, Any]:
    """Return means over seeds with 95 % intervals (Student)."""
    number = "error" if table == "tokenizers" else "success"
    groups: dict[str, list[float]] = {}
    for row in rows:
        if row.get("split", "test") == "test" and row.get("steps", STEPS) == STEPS:
            name = ", ".join(str(row[key]) for key in TOLD if key in row)
            groups.setdefault(name, []).append(row[number])
    return {
        "command": f"python -m benchmarks.agents {table} --workdir DIR",
        "means": {name: student(values) for name, values in groups.items()},
    }


if __name__ == "__main__":
    errors.run(main)
