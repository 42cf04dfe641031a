"""A fine-tuning from top to bottom: several agents side by side, each in its game.

Writes, beside what every run has, a line of `episodes.jsonl` for each game that ends,
and `eval/<step>.json`: step 0 is play at random.

A run is a function of its config and seed. A checkpoint holds the networks, the
priorities and the actions, but no frame: play is repeated when a run goes on.
"""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from polyview import files
from polyview.config.schema import RANGES, check_config
from polyview.config.spec import build
from polyview.config.text import dotted, to_json
from polyview.errors import HUGE, InputError, NonFiniteError, Preempted
from polyview.rl.environment import Outcome
from polyview.runs import checkpoint, metrics
from polyview.runs.checkpoint import Checkpoints
from polyview.runs.load import Loaded, newest_checkpoint, read_model
from polyview.runs.workdir import claimed_workdir
from polyview.terminal import say
from polyview.training import train
from sgi.atari import Game
from sgi.environment import Environment
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
# What a network may have otherwise than the one whose weights it begins with.
OWN = {"sigma", "dtype", "param_dtype", "depthwise"}


class Run:
    """A config's agents, on the device, and their games, on the host.

    Attributes:
      programs: of the device.
      seeds: of the agents, in the order of the arrays' leading axis.
      actions: uint8[seeds, steps + 1]; at step t those up to t are known.
      environments: one a seed.
    """

    def __init__(self, config):
        check(config)
        self.config, self.steps = config, config.steps
        self.seeds = list(range(config.seed, config.seed + config.seeds))
        # Named a device, all that comes of them is bound to it, as what a checkpoint
        # holds is: a run that goes on takes the programs that were compiled before.
        device = jax.local_devices()[0]
        self.keys = jax.device_put(np.array(self.seeds, np.uint32), device)
        self.programs = Programs(config)
        self.evaluation = build(config.get("evaluation"), where="evaluation")

    def begin(self, donor: Loaded | None) -> State:
        """Start the games, and return the agents before their first step."""
        self.environments = [Environment(self.config.game, s) for s in self.seeds]
        drawn = self.programs.random_actions(self.keys)
        rest = self.steps + 1 - drawn.shape[1]
        self.actions = np.pad(drawn, ((0, 0), (0, rest)))
        network = self.programs.create(self.keys)
        if donor is not None:
            network = self.programs.transfer(network, donor.params, donor.statistics)
        frames = np.stack([environment.frame for environment in self.environments])
        return self.programs.begin(network, frames, self.actions[:, 0])

    def play(self, time: int) -> list[Outcome]:
        """Let each emulator take action `time`."""
        taken = self.actions[:, time]
        return [e.step(int(a)) for e, a in zip(self.environments, taken, strict=True)]

    def store(self, state: State, outcomes: Sequence[Outcome], time: int) -> State:
        """Keep what came of the actions; action `time`, known already, is next."""
        taken = jax.device_put(self.actions[:, time])
        return self.programs.store(state, *arrays(outcomes), taken)

    def learn(self, state: State, outcomes: Sequence[Outcome], time: int):
        """Keep what came of the actions, update, choose action `time`."""
        state, values = self.programs.learn(state, *arrays(outcomes), self.keys)
        self.actions[:, time] = jax.device_get(state.action)
        return state, values

    def saved(self, state: State) -> dict:
        """What a checkpoint holds of the run."""
        prints = [environment.fingerprint() for environment in self.environments]
        return {
            "train": state.train,
            # A copy: an array on a CPU can be the host's own memory, and it is written
            # while the next actions are.
            "actions": jax.device_put(self.actions.copy()),
            "priority": state.buffer.priority,
            "emulator": jax.device_put(np.stack(prints)),
        }

    def template(self, state: State) -> dict:
        """The shapes of `saved`."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            self.saved(state),
        )

    def restored(self, state: State, saved: dict, until: int) -> State:
        """The agents of a checkpoint after `until` steps, given those before the first.

        Frames, rewards and ends come from playing the same actions again. Raises
        InputError where that does not end as it did.
        """
        self.actions = np.array(saved["actions"])
        for time in tqdm(range(until), "playing again", delay=3):
            state = self.store(state, self.play(time), time + 1)
        for seed, environment, expected in zip(
            self.seeds, self.environments, np.asarray(saved["emulator"]), strict=True
        ):
            if (environment.fingerprint() != expected).any():
                raise InputError(
                    f"playing the actions of seed {seed} again does not lead where it "
                    "did: another ale-py began this run; go on with that, or choose "
                    "another --workdir"
                )
        seen = replace(state.buffer, priority=saved["priority"])
        return replace(state, train=saved["train"], buffer=seen)


def arrays(outcomes: Sequence[Outcome]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Frames uint8[seeds, h, w], rewards float32[seeds] and dones bool[seeds]."""
    columns = (
        np.stack([outcome.observation for outcome in outcomes]),
        np.array([outcome.reward for outcome in outcomes], np.float32),
        np.array([outcome.done for outcome in outcomes]),
    )
    return jax.device_put(columns)


def check(config) -> None:
    """Hold a config to what it must contain. Raises InputError for what is amiss."""
    check_config(config, REQUIRED, LIMITS)
    if config.random_steps >= config.steps:
        raise InputError(
            f"random_steps={config.random_steps}, but there are only {config.steps} "
            "steps: nothing would be learned"
        )
    if config.seed + config.seeds > 2**32:
        raise InputError(f"seed={config.seed}: there are no {config.seeds} from it on")
    actions = len(Game(config.game).actions)
    if config.model.actions != actions:
        raise InputError(
            f"{config.game} has {actions} actions, but model.actions is "
            f"{config.model.actions}; name the game in the config's argument, "
            f"game={config.game}"
        )
    donor = config.get("init_from")
    if config.start == "pretrained" and donor is None:
        raise InputError(
            "start=pretrained begins with the weights of a run: give "
            "--config.init_from=RUN, or start=scratch in the config's argument"
        )
    if config.start == "scratch" and donor is not None:
        raise InputError(
            f"start=scratch makes no use of init_from={donor}; leave one of them out"
        )


def read_donor(config) -> Loaded:
    """The network to begin with. Raises InputError unless it is of the same kind."""

    def read(folder: Path, number: int) -> Loaded:
        if "seeds" in checkpoint.read_config(folder):
            raise InputError(
                f"{config.init_from} holds fine-tuned agents; begin with the run of "
                "polyview.main that pre-trained them"
            )
        return read_model(folder, number)

    donor = newest_checkpoint(config.init_from, None, read)
    theirs, ours = (
        dotted(json.loads(to_json(c.get("model")))) for c in (donor.config, config)
    )
    for key in sorted(theirs | ours):
        there, here = theirs.get(key, "absent"), ours.get(key, "absent")
        if there != here and key.rpartition(".")[2] not in OWN:
            raise InputError(
                f"the network of {config.init_from} is another one: model.{key} is "
                f"{there!r} there, {here!r} here"
            )
    return donor


def run(config, workdir: str | Path) -> State:
    """Fine-tune in `workdir` from where it stands to the end, and return the agents.

    Raises InputError for a config that cannot run, before anything is compiled or
    written; NonFiniteError and Preempted as their docstrings say.
    """
    workdir = Path(workdir)
    this, donor = Run(config), None
    old = checkpoint.saved_steps(workdir / "checkpoints")
    if config.start == "pretrained" and not old:
        donor = read_donor(config)
    with (
        claimed_workdir(workdir, config),
        Checkpoints(workdir / "checkpoints", config.get("keep", 2)) as checkpoints,
    ):
        state = this.begin(donor)
        start, saved = checkpoints.restore_newest(this.template(state)) or (0, None)
        if saved is not None:
            state = this.restored(state, saved, start)
        games = workdir / "episodes.jsonl"
        metrics.keep_until(games, start)
        drop_evaluations(workdir, start)
        samples = config.seeds * config.updates_per_step * config.batch_size
        writer = metrics.Writer(workdir, start, this.steps, samples, True)
        show(this, state, start, donor)
        file = metrics.Lines(games)
        with contextlib.closing(writer), contextlib.closing(file):
            return loop(this, state, start, checkpoints, writer, file, workdir)


def loop(
    this: Run,
    state: State,
    start: int,
    checkpoints: Checkpoints,
    writer: metrics.Writer,
    games: metrics.Lines,
    workdir: Path,
) -> State:
    """Take the steps from `start` on; log, save and evaluate as the config says."""
    config, steps = this.config, this.steps
    config_text = to_json(config)
    evaluate(this, state, start, workdir)
    with train.stop_requested() as stopping:
        for time in range(start + 1, steps + 1):
            outcomes = this.play(time - 1)
            record(this, outcomes, time, games)
            with jax.transfer_guard("disallow"):
                if time <= config.random_steps:
                    state = this.store(state, outcomes, time)
                else:
                    state, values = this.learn(state, outcomes, time)
                    log(this, values, time, writer)
            writer.advance(time)
            stop = stopping(time)
            every = config.get("checkpoint_every", 0)
            if stop or time == steps or (every and time % every == 0):
                checkpoints.save(time, this.saved(state), config_text)
            if stop and time < steps:
                checkpoints.wait()
                raise Preempted(
                    f"stopped at step {time} of {steps}; its state is saved: run the "
                    "same command again to go on"
                )
            evaluate(this, state, time, workdir)
    return state


def record(
    this: Run, outcomes: Sequence[Outcome], time: int, games: metrics.Lines
) -> None:
    """Write a line for each game that ended at a step."""
    for seed, outcome in zip(this.seeds, outcomes, strict=True):
        if outcome.finished is not None:
            games.write({"step": time, "seed": seed, **outcome.finished._asdict()})


def log(this: Run, values: dict, time: int, writer: metrics.Writer) -> None:
    """Write the means over seeds at a step that is logged; stop where not finite."""
    healthy = jax.device_get(values.pop("healthy"))
    if not healthy.all():
        seeds = [seed for seed, ok in zip(this.seeds, healthy, strict=True) if not ok]
        raise NonFiniteError(f"step {time} is not finite for seed {seeds[0]}")
    first = this.config.random_steps + 1
    if time % this.config.log_every and time not in (first, this.steps):
        return
    values = {name: float(v.mean()) for name, v in jax.device_get(values).items()}
    last = [environment.last for environment in this.environments]
    if None not in last:
        values["score"] = float(np.mean([game.score for game in last]))
    writer.write(time, values)


def evaluate(this: Run, state: State, time: int, workdir: Path) -> None:
    """Write eval/<step>.json where the config asks for it and it is not there yet."""
    path = workdir / "eval" / f"{time}.json"
    every = this.config.get("evaluate_every", 0)
    due = time in (0, this.steps) or (every and time % every == 0)
    if this.evaluation is None or not due or path.exists():
        return
    result = this.evaluation(
        this.config.game,
        this.programs.graph,
        state.train.params,
        state.train.statistics,
        this.seeds,
        random=time == 0,
    )
    text = json.dumps({"step": time, **result}) + "\n"
    files.write_whole(path, text.encode())
    mean = np.mean(result["mean"])
    say(f"step {time}/{this.steps}  score {mean:.1f} in {path}")


def drop_evaluations(workdir: Path, step: int) -> None:
    """Remove evaluations past `step`: they will be made again."""
    for path in (workdir / "eval").glob("[0-9]*.json"):
        if path.stem.isdecimal() and int(path.stem) > step:
            path.unlink()


def show(this: Run, state: State, start: int, donor: Loaded | None) -> None:
    """Print what is about to run."""
    config, seeds = this.config, this.config.seeds
    begun = config.init_from or "random weights"
    if donor is not None and "source" in donor.config:
        begun += f", step {donor.step:,}, of {donor.config.source.get('name')}"
    size = sum(x.size for x in jax.tree.leaves(state.train.params)) // seeds
    updates = config.updates_per_step * (config.steps - config.random_steps)
    lines = {
        "game": f"{config.game}, {config.model.actions} actions",
        "seeds": f"{seeds}, from {config.seed}",
        "begin with": begun,
        "parameters": f"{size:,} a seed",
        "replay": f"{state.buffer.frames.nbytes / 1e9:.1f} GB of frames",
        "updates": f"{updates:,} of {config.batch_size} samples",
        "steps": f"{config.steps:,}, from {start:,}",
        "device": jax.devices()[0].device_kind,
    }
    for name, text in lines.items():
        say(f"{name:>14}  {text}")
