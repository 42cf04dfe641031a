"""One policy for several domains: the claims of GEA at the size of a laptop.

    python -m benchmarks.gea tokenizer --workdir runs/gea
    python -m benchmarks.gea vision --workdir runs/gea --vision RUN --own RUN
    python -m benchmarks.gea stages --workdir runs/gea --vision RUN
    python -m benchmarks.gea sharing --workdir runs/gea --vision RUN
    python -m benchmarks.gea popart --workdir runs/gea --vision RUN
    python -m benchmarks.gea unseen --workdir runs/gea --vision RUN

tokenizer: one residual VQ for the actions of arm and maze against one for each. vision:
encoders with weights of ImageNet (--vision), of our own pre-training on the same frames
(--own), or random ones, trained or not, and a language model as the body against a
small one, at a quarter of the demonstrations. stages: imitation of few demonstrations,
then PPO in one domain, with and without cloning beside it, PPO without imitation, and
imitation of own successes. sharing: a policy of all domains against one of each, of as
many updates. popart: two domains that are played, the rewards of one times 100, with
values on their own scale and without. unseen: levels, splits and goals outside of the
mixture, for the policy of all domains and for those of one.

A finished run is a row of the JSON and is not repeated: run again to resume. Data are
recorded first, all with --pixels 64:

    python -m agents.prepare llm
    python -m agents.prepare --env babyai:GoToLocal --episodes 2000 --name gea_gotolocal
    python -m agents.prepare --env babyai:PickupLoc --episodes 2000 --name gea_pickuploc
    python -m agents.prepare --env babyai:Open --episodes 2000 --name gea_open_door
    python -m agents.prepare --env rearrange:train --episodes 2000 --name gea_flat
    python -m agents.prepare --env dvf.navigation:KnownGoals --name gea_maze
    python -m agents.prepare --env sgi.pong:Pong --episodes 200 --name gea_pong
    python -m agents.prepare --name gea_arm --episodes 100 --validation 20 --test 20 \\
        --env metaworld:reach-v3 metaworld:push-v3 metaworld:drawer-open-v3 \\
        metaworld:drawer-close-v3 metaworld:button-press-topdown-v3
    python -m polyview.main --workdir OWN --config configs/gea_frames.py:\\
        data=gea_gotolocal+gea_pickuploc+gea_open_door+gea_arm+gea_maze+gea_flat+gea_pong
"""

import argparse
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from agents import domains, recording
from agents.environments.worlds import made_of
from agents.playing import Lane, play
from benchmarks import student
from benchmarks.studies import (
    Row,
    begin,
    evaluated,
    measure_missing,
    own_evaluations,
    trained,
)
from polyview import devices, errors
from polyview.config.file import load_config
from polyview.config.spec import build
from polyview.data.sources.protocol import default_data_dir
from polyview.errors import InputError
from polyview.evaluation.selective import bootstrap
from polyview.rl.learner import PolicyLearner
from polyview.runs import metrics
from polyview.runs.load import frozen_model, model_at

RESULTS = Path(__file__).parent / "results"
TABLES = ("tokenizer", "vision", "stages", "sharing", "popart", "unseen")
GOTO, PICKUP, OPEN = "gea_gotolocal", "gea_pickuploc", "gea_open_door"
ARM, MAZE, FLAT, PONG = "gea_arm", "gea_maze", "gea_flat", "gea_pong"
ALL = (GOTO, PICKUP, OPEN, ARM, MAZE, FLAT, PONG)
CONTINUOUS = (ARM, MAZE)
SEEDS = 3
STEPS = 1500  # updates of a policy of all domains
FEW = 0.1  # of the demonstrations, before a domain is played
QUARTER = 0.25  # of the demonstrations
THOUSAND = 100  # steps of the environments
UNSEEN = {  # {domain: worlds that no mixture has}
    GOTO: ["babyai:GoToRedBall", "babyai:GoToLocalS8N7"],
    PICKUP: ["babyai:PickupDist"],
    FLAT: ["rearrange:referring_expressions", "rearrange:context"],
    MAZE: ["dvf.navigation:NewGoals"],
}


def main() -> None:
    """Train what is missing of a table; write the JSON after each run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("table", choices=TABLES)
    add("--workdir", type=Path, required=True)
    add("--vision", default="", help="run of an encoder with weights of ImageNet")
    add("--own", default="", help="run of an encoder pre-trained on the same frames")
    add("--body", default="scratch", help='of stages: "llm" or "scratch"')
    add("--seeds", type=int, nargs="+", default=[*range(SEEDS)])
    add("--output", type=Path, help="JSON (default: in results/)")
    flags = parser.parse_args()
    output = flags.output or RESULTS / f"gea_{flags.table}.json"
    if flags.table != "tokenizer" and not flags.vision:
        raise InputError("--vision RUN is needed: whose encoder sees images")
    begin(flags.workdir)
    study = {
        "tokenizer": tokenizers,
        "vision": vision,
        "stages": stages,
        "sharing": sharing,
        "popart": popart,
        "unseen": unseen,
    }[flags.table]
    measure_missing(
        lambda rows: study(flags),
        output,
        flags.workdir,
        lambda rows: summary(flags.table, rows),
    )


def codes(flags: argparse.Namespace, names: tuple[str, ...], seed: int) -> Path:
    """Return the run of a tokenizer of the actions of domains."""
    config = load_config(
        f"configs/agents_tokenizer.py:data={'+'.join(names)},split=test",
        {"seed": str(seed)},
    )
    return trained(config, flags.workdir / f"codes-{'-'.join(names)}-{seed}")


def tokenizers(flags: argparse.Namespace) -> Iterator[Row]:
    """Yield errors of one tokenizer for both worlds, and of one for each."""
    for seed in flags.seeds:
        for names in (CONTINUOUS, *((name,) for name in CONTINUOUS)):

            def measure(names: tuple = names, seed: int = seed) -> dict[str, Any]:
                run = codes(flags, names, seed)
                found = {}
                for name, own in evaluated(run, own_evaluations(run)).items():
                    domain = name.removeprefix("tokens_") if "_" in name else names[0]
                    size = 2 if domain == MAZE else 4
                    # Of the numbers that an action has, not those that were added.
                    found[domain] = float(np.mean(own["error_of_dimensions"][:size]))
                return {"errors": found}

            yield {"of": "+".join(names), "seed": seed}, measure


def imitated(
    flags: argparse.Namespace, names: tuple[str, ...], seed: int, **given: Any
) -> Path:
    """Return a run of the first stage; train it if it is missing."""
    own = {"body": "scratch", "vision": flags.vision, "steps": STEPS} | given
    if any(name in CONTINUOUS for name in names):
        own["tokenizer"] = codes(flags, CONTINUOUS, seed)
    text = ",".join(f"{key}={value}" for key, value in own.items())
    config = load_config(
        f"configs/gea_supervised.py:data={'+'.join(names)},split=test,seed={seed},{text}"
    )
    parts = {key: Path(str(value)).name for key, value in own.items()}
    words = "-".join(f"{key}{value}" for key, value in sorted(parts.items()))
    whole = "all" if names == ALL else "-".join(names)
    return trained(config, flags.workdir / f"sft-{whole}-{words}-{seed}")


def success(run: Path, only: tuple[str, ...] = ALL) -> dict[str, Any]:
    """Return the success of a run by domain, and each episode's."""
    asked = {k: spec for k, spec in own_evaluations(run).items() if k in only}
    for spec in asked.values():
        spec["episodes"] = max(100 // len(spec["worlds"]), 20)
    found = evaluated(run, asked)
    return {
        "success": {name: own["success"] for name, own in found.items()},
        "episodes": {
            name: [
                int(won)
                for world in own["worlds"].values()
                for won in world["successes"]
            ]
            for name, own in found.items()
        },
    }


def vision(flags: argparse.Namespace) -> Iterator[Row]:
    """Yield policies that see by other encoders, and one with another body."""
    if not flags.own:
        raise InputError("--own RUN is needed: a run of configs/gea_frames.py")
    arms = {  # the random ones have the architecture of our own encoder
        "random, trained": {"seeing": "random_trained", "vision": flags.own},
        "random, frozen": {"seeing": "random_frozen", "vision": flags.own},
        "own frames, frozen": {"seeing": "frozen", "vision": flags.own},
        "own frames, trained": {"seeing": "trained", "vision": flags.own},
        "ImageNet, frozen": {"seeing": "frozen"},
        "ImageNet, frozen, language model": {"seeing": "frozen", "body": "llm"},
    }
    for seed in flags.seeds:
        for name, given in arms.items():

            def measure(given: dict = given, seed: int = seed) -> dict[str, Any]:
                run = imitated(flags, ALL, seed, share=QUARTER, **given)
                return success(run)

            yield {"name": name, "seed": seed}, measure


def stages(flags: argparse.Namespace) -> Iterator[Row]:
    """Yield imitation of few demonstrations, and what may follow."""
    arms = {
        "imitation": None,
        "PPO and cloning": "",
        "PPO alone": "clone=0.0",
        "PPO without imitation": "clone=0.0,scratch=True",
    }
    for seed in flags.seeds:
        for name, given in arms.items():

            def measure(given: str | None = given, seed: int = seed) -> dict[str, Any]:
                first = imitated(flags, ALL, seed, share=FEW, body=flags.body)
                if given is None:
                    return success(first)
                return played(flags, first, (GOTO,), given, seed)

            yield {"name": name, "body": flags.body, "seed": seed}, measure

        def again(seed: int = seed) -> dict[str, Any]:
            first = imitated(flags, ALL, seed, share=FEW, body=flags.body)
            return own_successes(flags, first, seed)

        yield {"name": "own successes", "body": flags.body, "seed": seed}, again


def played(
    flags: argparse.Namespace,
    first: Path,
    names: tuple[str, ...],
    given: str,
    seed: int,
    only: tuple[str, ...] = ALL,
) -> dict[str, Any]:
    """Play on from a run, and return success and the curve of it."""
    text = f"start={first},play={'+'.join(names)},thousand={THOUSAND},seed={seed}"
    config = load_config(f"configs/gea_online.py:{text}" + (given and f",{given}"))
    words = "".join(c if c.isalnum() else "_" for c in given)
    run = trained(
        config,
        flags.workdir / f"ppo-{first.name}-{'-'.join(names)}-{words}",
        PolicyLearner,
    )
    lines = [line for line in metrics.read(run / "metrics.jsonl") if "success" in line]
    curve = [[line["environment_steps"], line["success"]] for line in lines]
    found = success(run, only) | {"curve": curve}
    shutil.rmtree(run / "checkpoints")
    return found


def own_successes(flags: argparse.Namespace, first: Path, seed: int) -> dict[str, Any]:
    """Imitate a run's own successes in a domain, and return success there."""
    folder = default_data_dir() / f"own_{first.name}"
    if not folder.exists():  # one row a seed asks for it: no other process writes it
        record(first, GOTO, folder, episodes=1000)
    begun = domains.begun_from(str(first))
    held = begun["source"]["sources"][GOTO]["source"]
    held |= {"name": folder.name, "split": "train"}
    shares = {name: float(name == GOTO) for name in ALL}
    begun["source"]["weights"] = begun["objective"]["shares"] = shares
    begun |= {"init": domains.learnt(str(first)), "steps": 500}
    run = trained(ConfigDict(begun), flags.workdir / f"own-{first.name}")
    return success(run, (GOTO,))


class Kept(Lane):
    """A lane that keeps its episode."""

    def begin(self) -> None:
        """Begin the next episode, if there is one."""
        super().begin()
        self.frames, self.actions = [self.observation], list[int]()

    def act(self, action: np.ndarray) -> None:
        """Take an action, and keep what came of it."""
        super().act(action)
        self.frames.append(self.world.arrived)
        self.actions.append(int(action))


def record(run: Path, domain: str, folder: Path, episodes: int) -> None:
    """Write the successes among a run's episodes in a domain as demonstrations."""
    spec = own_evaluations(run)[domain]
    acting: Any = build(spec)
    seeds = iter(range(2**23, 2**23 + episodes))
    rooms = [made_of(acting.worlds[0], acting.pixels) for _ in range(32)]
    lanes = [Kept(room, seeds, 0) for room in rooms]
    won: list[dict[str, Any]] = []
    mesh = devices.make_mesh()
    with jax.set_mesh(mesh):
        model = model_at(frozen_model(str(run)), acting.policy)
        for number in play(model, lanes, acting.views):
            lane = lanes[number]
            if not lane.ended:
                continue
            if lane.success:
                won.append(
                    {
                        "instruction": lane.frames[0]["instruction"],
                        "task": 0,
                        "seed": lane.seed,
                        "actions": np.array(lane.actions, np.int64),
                        **{
                            name: np.stack([frame[name] for frame in lane.frames])
                            for name in lane.world.shapes
                        },
                    }
                )
            lane.over()
    room = rooms[0]
    recording.write(
        folder,
        {"train": won},
        world=room.kind,
        tasks=[room.name],
        settings={"run": run.name, "episodes": episodes},
        versions=room.versions,
        observations=room.shapes,
        action=recording.action_of(room),
        source="successes of a policy",
    )


def sharing(flags: argparse.Namespace) -> Iterator[Row]:
    """Yield a policy of all domains, and one of each of as many updates a domain."""
    for seed in flags.seeds:
        for names in (ALL, *((name,) for name in ALL)):

            def measure(names: tuple = names, seed: int = seed) -> dict[str, Any]:
                # As many episodes of a domain in each update.
                batch = 4 * len(names)
                return success(imitated(flags, names, seed, batch_size=batch), names)

            yield {"of": "all" if names == ALL else names[0], "seed": seed}, measure


def popart(flags: argparse.Namespace) -> Iterator[Row]:
    """Yield two domains that are played, the rewards of one times 100."""
    names = (GOTO, PICKUP)
    arms = {
        "own scale": "popart=True",
        "own scale, rewards x 100": "popart=True,scales=100+1",
        "no scale, rewards x 100": "popart=False,scales=100+1",
    }
    for seed in flags.seeds:
        for name, given in arms.items():

            def measure(given: str = given, seed: int = seed) -> dict[str, Any]:
                first = imitated(flags, ALL, seed, share=FEW)
                return played(flags, first, names, f"clone=0.0,{given}", seed, names)

            yield {"name": name, "seed": seed}, measure


def unseen(flags: argparse.Namespace) -> Iterator[Row]:
    """Yield success in worlds outside of the mixture."""
    for seed in flags.seeds:
        for domain, worlds in UNSEEN.items():
            for names in (ALL, (domain,)):

                def measure(
                    names: tuple = names,
                    seed: int = seed,
                    domain: str = domain,
                    worlds: list = worlds,
                ) -> dict[str, Any]:
                    run = imitated(flags, names, seed, batch_size=4 * len(names))
                    spec = own_evaluations(run)[domain]
                    spec |= {"worlds": worlds, "episodes": 100}
                    (found,) = evaluated(run, {domain: spec}).values()
                    rates = {k: own["success"] for k, own in found["worlds"].items()}
                    return {"success": rates}

                of = "all" if names == ALL else "own"
                yield {"of": of, "domain": domain, "seed": seed}, measure


def summary(table: str, rows: list[dict]) -> dict[str, Any]:
    """Return means over seeds with 95 % intervals (Student), and differences."""
    groups: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        keys = ("name", "of", "body", "domain")
        name = ", ".join(str(row[key]) for key in keys if key in row)
        for domain, value in (row.get("success") or row["errors"]).items():
            groups.setdefault(name, {}).setdefault(domain, []).append(value)
    return {
        "command": f"python -m benchmarks.gea {table} --workdir DIR",
        "means": {
            name: {domain: student(values) for domain, values in own.items()}
            for name, own in groups.items()
        },
        "differences_are": "paired over seeds: mean, and ends of 95 % (bootstrap)",
        "differences": differences(rows),
    }


def differences(rows: list[dict]) -> dict[str, dict[str, list[float]]]:
    """Return the gain over the first arm of a body, by arm and domain, of shared seeds.

    Seeds are drawn with replacement, as each of them is one run of either arm.
    """
    arms: dict[Any, dict[str, dict[int, Mapping]]] = {}
    for row in rows:
        if "name" in row and "success" in row:
            own = arms.setdefault(row.get("body"), {})
            own.setdefault(row["name"], {})[row["seed"]] = row["success"]
    found: dict[str, dict[str, list[float]]] = {}
    for body, (first, *others) in ((body, [*own]) for body, own in arms.items()):
        for name in others:
            one, other = arms[body][first], arms[body][name]
            seeds = sorted(one.keys() & other.keys())
            gains: dict[str, list[float]] = {}
            for seed in seeds:
                for domain in one[seed].keys() & other[seed].keys():
                    gain = other[seed][domain] - one[seed][domain]
                    gains.setdefault(domain, []).append(gain)
            title = f"{name} - {first}" + (f", {body}" if body else "")
            for domain, values in sorted(gains.items()):
                got = bootstrap(_mean, [np.array(values)], 2000, 0)
                found.setdefault(title, {})[domain] = [got.value, got.low, got.high]
    return found


def _mean(values: np.ndarray) -> float:
    return float(values.mean())


if __name__ == "__main__":
    errors.run(main)
