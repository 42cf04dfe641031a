"""Agents that fine-tune by playing: several side by side, each in its own game.

Besides the usual files of a run, writes a line of `episodes.jsonl` for each finished
game. The evaluation at step 0 scores random play.

A run is a function of its config and seed. A checkpoint holds the networks, the
priorities and the actions, but no frames: a resumed run replays the actions.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding
from ml_collections import ConfigDict
from tqdm import tqdm

from polyview import hosts
from polyview.config.schema import RANGES, check_config
from polyview.config.spec import build
from polyview.config.text import dotted, to_json
from polyview.config.trust import current_name
from polyview.devices import AXES
from polyview.errors import HUGE, InputError
from polyview.evaluation.base import specs_of
from polyview.model import abstract_module, merge_module
from polyview.rl import replay
from polyview.rl.environment import Outcome
from polyview.runs import checkpoint, metrics
from polyview.runs.evaluating import build_evaluations
from polyview.runs.init import LaidOver, entries_of, lay_over
from polyview.runs.load import newest_checkpoint
from polyview.training.learner import Learner
from polyview.training.step import begin_with
from sgi.agent import transfer_map
from sgi.atari import SIZE, Game
from sgi.environment import Environment
from sgi.games import canonical_name
from sgi.online import Programs, State

REQUIRED = (
    "game",
    "start",
    "seed",
    "seeds",
    "steps",
    "random_steps",
    "updates_per_step",
    "batch_size",
    "n_step",
    "discount",
    "priority",
    "log_every",
    "model",
    "target_decay",
    "objective",
    "optimizer",
)
LIMITS = RANGES | {
    "seeds": (1, 1000),
    "random_steps": (1, HUGE),
    "updates_per_step": (1, 1000),
    "n_step": (1, 1000),
    "discount": (0.0, 1.0),
    "priority.alpha": (0.0, 1.0),
    "priority.beta": (0.0, 1.0),
}
# Settings in which a network may differ from the pre-trained one.
OWN = {"sigma", "dtype", "param_dtype", "depthwise"}
# Settings that runs of earlier versions lack, with the value that they then had.
ADDED = {"standardise": False}


class Played(NamedTuple):
    """The input of a step: its number, and the outcomes of the previous actions."""

    time: int
    outcomes: list[Outcome]
    arrays: tuple[jax.Array, jax.Array, jax.Array]


@dataclass(frozen=True)
class Agents:
    """The model of an evaluation: agents of several seeds, on a leading axis.

    step: the training step. random: draw every action at random, not by the agents.
    """

    game: str
    step: int
    graph: nnx.GraphDef
    params: dict
    statistics: dict
    seeds: list[int]
    random: bool


class Player(Learner):
    """A config's agents, on the device, and their games, on the host.

    Attributes:
      programs: the compiled programs of the device.
      seeds: seeds of the agents, in the order of the arrays' leading axis.
      actions: uint8[seeds, steps + 1]; at step t those up to t are known.
      environments: one per seed.
    """

    acts = True

    def __init__(self, config: ConfigDict, trusted: frozenset[str] | None = None):
        check(config)
        config = config.copy_and_resolve_references()
        config.game = canonical_name(config.game)
        self.config, self.steps = config, config.steps
        self.samples = config.seeds * config.updates_per_step * config.batch_size
        self.seeds = list(range(config.seed, config.seed + config.seeds))
        # Commits arrays to the device, as restoring a checkpoint does: a resumed run
        # then uses the programs that were compiled before.
        device = jax.local_devices()[0]
        self.mesh = Mesh(np.array([[device]]), AXES)
        self.sharding = SingleDeviceSharding(device)
        self.keys = jax.device_put(np.array(self.seeds, np.uint32), device)
        self.programs = Programs(config, trusted)
        self.evaluations = build_evaluations(specs_of(config), trusted)
        self.laid_over: LaidOver | None = None
        self.games: metrics.Lines | None = None

    def check(self, workdir: Path) -> None:
        """Read the pre-trained weights, for a run without checkpoints.

        Raises InputError if the replay needs more memory than the device has.
        """
        buffer = jax.eval_shape(lambda: replay.create(self.steps, SIZE))
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(buffer))
        hosts.check_memory(
            len(self.seeds) * size,
            f"the replay of {len(self.seeds)} agents and {self.steps:,} steps",
            "lower --config.seeds or --config.steps",
        )
        existing = checkpoint.saved_steps(workdir / "checkpoints")
        if self.config.start == "pretrained" and not existing:
            self.laid_over = donated(self.config, self.sharding)

    def create(self, workdir: Path) -> State:
        """Start the games, and return the agents before their first step."""
        self._open(workdir, 0)
        return self.begin()

    def begin(self) -> State:
        """Return the agents before their first step; writes no file."""
        self.environments = [Environment(self.config.game, s) for s in self.seeds]
        drawn = self.programs.random_actions(self.keys)
        rest = self.steps + 1 - drawn.shape[1]
        self.actions = np.pad(drawn, ((0, 0), (0, rest)))
        network = self.programs.create(self.keys)
        if self.laid_over is not None:
            params, statistics, _ = self.laid_over.over(
                (network.params, network.statistics, {})
            )
            network = begin_with(network, params, statistics)
        frames = np.stack([e.frame for e in self.environments])
        return self.programs.begin(network, frames, self.actions[:, 0])

    def template(self) -> dict:
        """Return the shapes of what `saved` returns."""
        count = len(self.seeds)
        shapes = {
            "train": jax.eval_shape(self.programs.create, self.keys),
            "actions": jax.ShapeDtypeStruct((count, self.steps + 1), np.uint8),
            "priority": jax.ShapeDtypeStruct((count, self.steps), np.float32),
            "emulator": jax.ShapeDtypeStruct((count, 32), np.uint8),
        }
        return jax.tree.map(lambda shape: shape.update(sharding=self.sharding), shapes)

    def saved(self, state: State) -> dict:
        """Return what a checkpoint holds."""
        return {
            "train": state.train,
            # A copy: on a CPU, device_put may share the host's memory, and the next
            # actions are written while the checkpoint is being saved.
            "actions": jax.device_put(self.actions.copy()),
            "priority": state.buffer.priority,
            "emulator": jax.device_put(self._fingerprints(int(state.buffer.size[0]))),
        }

    def restored(self, workdir: Path, saved: dict, folder: Path, step: int) -> State:
        """Return the agents of a checkpoint after `step` steps.

        Frames, rewards and ends come from replaying the actions. Raises InputError if
        that leads to another emulator state.
        """
        state = self.begin()
        self.actions = np.array(saved["actions"])
        for time in tqdm(range(step), "replaying actions", delay=3):
            taken = arrays(self.play(time))
            state = self.programs.store(
                state, *taken, jax.device_put(self.actions[:, time + 1])
            )
        prints = np.asarray(saved["emulator"])
        for seed, environment, expected in zip(
            self.seeds, self.environments, prints, strict=True
        ):
            if (environment.fingerprint() != expected).any():
                raise InputError(
                    f"replaying the actions of seed {seed} leads to another state: the "
                    "run was started with another ale-py; resume it with that one, or "
                    "choose another --workdir"
                )
        if folder.parent.name == "checkpoints":  # --replay writes nothing
            self._open(workdir, step)
        buffer = replace(state.buffer, priority=saved["priority"])
        return replace(state, train=saved["train"], buffer=buffer)

    def inputs(self, start: int) -> Iterator[Played]:
        """Play the known actions, one step at a time, and yield the outcomes."""
        for time in range(start + 1, self.steps + 1):
            outcomes = self.play(time - 1)
            self._record(outcomes, time)
            yield Played(time, outcomes, arrays(outcomes))

    def play(self, time: int) -> list[Outcome]:
        """Take action `time` in each game; return the outcomes."""
        taken = self.actions[:, time]
        return [e.step(int(a)) for e, a in zip(self.environments, taken, strict=True)]

    def take(self, state: State, inputs: Played) -> tuple[State, dict]:
        """Store the outcomes; after the random steps, update and choose actions."""
        time = inputs.time
        if time <= self.config.random_steps:
            known = jax.device_put(self.actions[:, time])
            state = self.programs.store(state, *inputs.arrays, known)
            return state, {"healthy": np.True_}
        state, values = self.programs.learn(state, *inputs.arrays, self.keys)
        self.actions[:, time] = jax.device_get(state.action)
        return state, values

    def logged(self, step: int) -> bool:
        """Return whether a step is logged; steps without an update have no metrics."""
        first = self.config.random_steps + 1
        due = step % self.config.log_every == 0
        return step >= first and (due or step in (first, self.steps))

    def values(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Return the metrics and the mean score of the seeds' last finished games."""
        scores = [e.last.score for e in self.environments if e.last is not None]
        if len(scores) < len(self.environments):
            return metrics
        return metrics | {"score": float(np.mean(scores))}

    def evaluated(self, step: int) -> bool:
        """Return whether to evaluate: at the first, last and every so many-th step."""
        every = self.config.get("evaluate_every", 0)
        due = step in (0, self.steps) or (bool(every) and step % every == 0)
        return bool(self.evaluations) and due

    def model(self, state: State, step: int) -> Agents:
        """Return the current agents."""
        return Agents(
            game=self.config.game,
            step=step,
            graph=self.programs.graph,
            params=state.train.params,
            statistics=state.train.statistics,
            seeds=self.seeds,
            random=step == 0,
        )

    def banner(self, state: State, start: int) -> dict[str, str]:
        """Return a summary of the run, printed before it begins."""
        config, seeds = self.config, self.config.seeds
        origin = f"{self.laid_over}" if self.laid_over else "random weights"
        size = sum(x.size for x in jax.tree.leaves(state.train.params)) // seeds
        updates = config.updates_per_step * (config.steps - config.random_steps)
        return {
            "game": f"{config.game}, {config.model.actions} actions",
            "seeds": f"{seeds}, from {config.seed}",
            "begins with": origin if start == 0 else f"checkpoint {start:,}",
            "parameters": f"{size:,} a seed",
            "replay": f"{state.buffer.frames.nbytes / 1e9:.1f} GB of frames",
            "updates": f"{updates:,} of {config.batch_size} samples",
            "steps": f"{config.steps:,}, from {start:,}",
            "device": jax.devices()[0].device_kind,
        }

    def told(self, inputs: Played) -> str:
        """Return a line with the actions that led to a step."""
        return f"actions {self.actions[:, inputs.time - 1].tolist()}"

    def close(self) -> None:
        """Close the file of finished games."""
        if self.games is not None:
            self.games.close()

    def _open(self, workdir: Path, step: int) -> None:
        path = workdir / "episodes.jsonl"
        metrics.keep_until(path, step)
        self.games = metrics.Lines(path)

    def _record(self, outcomes: Sequence[Outcome], time: int) -> None:
        """Write a line for each game that ended at this step, but not in --replay."""
        if self.games is None:
            return
        for seed, outcome in zip(self.seeds, outcomes, strict=True):
            if outcome.finished is not None:
                line = {"step": time, "seed": seed, **outcome.finished._asdict()}
                self.games.write(line)

    def _fingerprints(self, time: int) -> np.ndarray:
        """Return the emulators' fingerprints after `time` actions: uint8[seeds, 32].

        After a step that was not finite, the state is one action behind the emulators;
        new ones then replay the actions up to it.
        """
        environments = self.environments
        if any(e.steps != time for e in environments):
            environments = [Environment(self.config.game, s) for s in self.seeds]
            for environment, taken in zip(environments, self.actions, strict=True):
                for action in taken[:time]:
                    environment.step(int(action))
        return np.stack([environment.fingerprint() for environment in environments])


def arrays(outcomes: Sequence[Outcome]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return frames uint8[seeds, h, w], rewards float32[seeds], dones bool[seeds]."""
    columns = (
        np.stack([outcome.observation for outcome in outcomes]),
        np.array([outcome.reward for outcome in outcomes], np.float32),
        np.array([outcome.done for outcome in outcomes]),
    )
    return jax.device_put(columns)


def check(config: ConfigDict) -> None:
    """Check a config. Raises InputError for a key that is missing or does not fit."""
    check_config(config, REQUIRED, LIMITS)
    if config.random_steps >= config.steps:
        raise InputError(
            f"random_steps={config.random_steps}, but there are only {config.steps} "
            "steps: nothing would be learned"
        )
    if config.seed + config.seeds > 2**32:
        raise InputError(
            f"seed={config.seed}, seeds={config.seeds}: the last seed must be below "
            "2**32"
        )
    actions = len(Game(config.game).actions)
    if config.model.actions != actions:
        raise InputError(
            f"{config.game} has {actions} actions, but model.actions is "
            f"{config.model.actions}; set the game by the config's argument, "
            f"game={config.game}"
        )
    if config.get("init") is not None:
        raise InputError("init is not supported here; agents start from init_from=RUN")
    donor = config.get("init_from")
    if config.start == "pretrained" and donor is None:
        raise InputError(
            "start=pretrained requires the weights of a run: give "
            "--config.init_from=RUN, or start=scratch in the config's argument"
        )
    if config.start == "scratch" and donor is not None:
        raise InputError(
            f"start=scratch does not use init_from={donor}; leave one of them out"
        )


def donated(config: ConfigDict, sharding: SingleDeviceSharding) -> LaidOver:
    """Return the pre-trained network, laid over the shapes of one agent's network.

    Raises InputError if the two networks differ.
    """
    theirs, ours = (_network(c) for c in (_donor_config(config.init_from), config))
    for key in sorted(theirs | ours):
        without = ADDED.get(key, "absent")
        there, here = theirs.get(key, without), ours.get(key, without)
        if there != here and key.rpartition(".")[2] not in OWN:
            raise InputError(
                f"the network of {config.init_from} differs from the config's: "
                f"model.{key} is {there!r} there, {here!r} here"
            )
    module = abstract_module(build(config.model, where="model"))
    shapes = jax.tree.map(lambda shape: shape.update(sharding=sharding), module[1:])
    standardise = config.model.get("standardise", ADDED["standardise"])
    init = transfer_map(config.init_from, standardise=standardise)
    entries = entries_of({"init": init})
    return lay_over(entries, merge_module(*module), shapes)


def _donor_config(run: str) -> ConfigDict:
    """Return the config of a pre-trained run. Raises InputError for a run of agents."""

    def read(folder: Path, number: int) -> ConfigDict:
        config = checkpoint.read_config(folder)
        if "seeds" in config:
            raise InputError(
                f"{run} holds fine-tuned agents; start from the run of polyview.main "
                "that pre-trained them"
            )
        return config

    return newest_checkpoint(run, None, read)


def _network(config: ConfigDict) -> dict[str, Any]:
    """Return a config's model by dotted keys, with current names for old ones."""
    keys = dotted(json.loads(to_json(config.get("model"))))
    return {
        key: current_name(value) if key.endswith(("partial", "target")) else value
        for key, value in keys.items()
    }
