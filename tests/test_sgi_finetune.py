"""Fine-tuning follows the rules of play, depends only on its seed, resumes exactly."""

import itertools
import json
import re
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

pytest.importorskip("ale_py")

from test_resume import logged, saved_arrays, wait_for_step

from polyview import hosts
from polyview.config.file import load_config
from polyview.config.spec import build
from polyview.config.text import to_json
from polyview.errors import InputError, NonFiniteError
from polyview.model import split_module
from polyview.rl.environment import Finished, Outcome
from polyview.runs.checkpoint import Checkpoints, saved_steps
from polyview.training.nonfinite import replay_run
from polyview.training.train import train
from sgi import learner, recording
from sgi.atari import Game
from sgi.environment import Environment
from sgi.learner import Player, donated

slow = pytest.mark.slow  # compiles the whole agent

ROOT = Path(__file__).parent.parent
CONFIG = "configs/sgi_finetune.py:game=breakout,size=S,start="
# A network of a few thousand weights and seconds of play, enough to lose lives.
SMALL = {
    "steps": 400,
    "random_steps": 200,
    "seeds": 2,
    "batch_size": 4,
    "n_step": 3,
    "objective.jumps": 1,
    "log_every": 20,
    "checkpoint_every": 40,
    "model.encoder.widths": (4, 4, 4),
    "model.hidden": 8,
    "evaluation": None,
}
LENGTH = 230


def config(start="scratch", **overrides):
    text = {key: str(value) for key, value in (SMALL | overrides).items()}
    return load_config(f"{ROOT}/{CONFIG}{start}", text)


def played_until(this, until=LENGTH):
    """The state of a run after `until` steps, without writing files."""
    state = this.begin()
    for inputs in itertools.islice(this.inputs(0), until):
        state, _ = this.take(state, inputs)
    return state


@pytest.fixture(scope="module")
def two():
    """A run of two seeds after `LENGTH` steps: the run, its state, its saved arrays."""
    this = Player(config())
    state = played_until(this)
    saved = jax.device_get(this.saved(state))
    return this, jax.device_get(state), saved


@slow
@pytest.mark.parametrize("number", [0, 1])
def test_buffer_equals_replaying_the_games_directly(two, number):
    """A lost life sets done, one frame passes, and the game continues to its end."""
    this, state, saved = two
    seen = jax.tree.map(lambda x: x[number], state.buffer)
    game, rng = Game("breakout"), np.random.default_rng(this.seeds[number])
    frame = game.reset(int(rng.integers(1, 31)))
    lives = overs = earned = 0
    for time in range(LENGTH):
        np.testing.assert_array_equal(seen.frames[time], frame)
        assert seen.action[time] == saved["actions"][number, time]
        outcome = game.step(int(seen.action[time]))
        frame = outcome.frame
        assert seen.reward[time] == np.sign(outcome.reward)
        assert seen.done[time] == (outcome.life_lost or outcome.game_over)
        if outcome.game_over:
            frame = game.reset(int(rng.integers(1, 31)))
        elif outcome.life_lost:
            frame = game.wait(1)
        lives += outcome.life_lost
        overs += outcome.game_over
        earned += outcome.reward
    np.testing.assert_array_equal(state.frame[number], frame)
    assert state.action[number] == saved["actions"][number, LENGTH]
    assert lives >= 4 and overs >= 1 and earned >= 1, "some rule is not exercised"
    assert seen.size == LENGTH and not seen.frames[LENGTH:].any()


def test_a_game_of_pong_is_one_episode_and_the_next_starts():
    ours, game = Environment("pong", 3), Game("pong")
    noops = np.random.default_rng(3).integers(1, 31, 2)
    np.testing.assert_array_equal(ours.frame, game.reset(int(noops[0])))
    rng, score, steps, over = np.random.default_rng(0), 0, 0, False
    while not over:
        action = int(rng.integers(6))
        outcome, expected = ours.step(action), game.step(action)
        score, steps, over = score + expected.reward, steps + 1, expected.game_over
        assert outcome.done == over and outcome.reward == expected.reward
        if not over:
            np.testing.assert_array_equal(outcome.observation, expected.frame)
            assert outcome.finished is None and ours.last is None
    assert outcome.finished == ours.last == (score, steps) and score < -10
    np.testing.assert_array_equal(outcome.observation, game.reset(int(noops[1])))
    assert ours.legal() is None


def test_a_reset_game_equals_a_new_game():
    ours, new = Environment("breakout", 3), Environment("breakout", 4)
    for _ in range(5):
        ours.step(1)
    np.testing.assert_array_equal(ours.reset(4), new.frame)
    assert ours.last is None
    np.testing.assert_array_equal(ours.fingerprint(), new.fingerprint())
    for action in (1, 2, 3):
        outcome, expected = ours.step(action), new.step(action)
        np.testing.assert_array_equal(outcome.observation, expected.observation)
    np.testing.assert_array_equal(ours.fingerprint(), new.fingerprint())


def test_a_truncated_game_is_done(monkeypatch):
    monkeypatch.setattr("sgi.atari.FRAME_CAP", 80)
    ours = Environment("pong", 0)
    outcomes = [ours.step(0) for _ in range(20)]
    ends = [time for time, outcome in enumerate(outcomes) if outcome.done]
    assert len(ends) == 1 and outcomes[ends[0]].finished.steps == ends[0] + 1


@slow
def test_every_step_has_its_updates_and_scheduled_beta(two):
    this, state, _ = two
    assert state.train.step.tolist() == [2 * (LENGTH - 200)] * 2
    sizes = (200, 300, 400)
    betas = [this.programs._sampler(size).keywords["beta"] for size in sizes]
    assert betas == pytest.approx([0.4, 0.7, 1.0])


def test_the_first_evaluation_plays_at_random():
    this = SimpleNamespace(
        config=ConfigDict({"game": "pong", "evaluate_every": 200}),
        steps=500,
        evaluations={"": None},
        programs=SimpleNamespace(graph=None),
        seeds=[0],
    )
    due = [time for time in range(501) if Player.evaluated(this, time)]
    assert due == [0, 200, 400, 500]
    state = SimpleNamespace(train=SimpleNamespace(params=None, statistics=None))
    random = [Player.model(this, state, time).random for time in due]
    assert random == [True, False, False, False]


@slow
def test_replaying_saved_actions_restores_the_agents(two):
    this, state, saved = two
    assert sum(x.nbytes for x in jax.tree.leaves(saved["actions"])) < 1000
    again = this.restored(None, jax.device_put(saved), Path("dump/1"), LENGTH)
    found, expected = (jax.tree_util.tree_leaves_with_path(s) for s in (again, state))
    assert len(found) == len(expected)
    for (path, a), (_, b) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))

    wrong = saved["actions"].copy()
    wrong[1, :LENGTH] = wrong[1, :LENGTH][::-1]
    with pytest.raises(InputError, match="seed 1 .* another ale-py"):
        other = jax.device_put(saved | {"actions": wrong})
        this.restored(None, other, Path("dump/1"), LENGTH)


@slow
def test_a_seed_plays_the_same_alone_and_with_others(two):
    _, state, saved = two
    this = Player(config(seeds=1, seed=1))
    alone = played_until(this)
    np.testing.assert_array_equal(this.actions[0], saved["actions"][1])
    assert (saved["actions"][0, :200] != saved["actions"][1, :200]).any()
    learned = (saved["actions"][:, 201 : LENGTH + 1] != 0).any(1)
    assert learned.all(), "the agents must have acted"
    for a, b in zip(
        jax.tree.leaves(alone.train.params),
        jax.tree.leaves(state.train.params),
        strict=True,
    ):
        np.testing.assert_allclose(a[0], b[1], atol=2e-5)
    np.testing.assert_allclose(
        alone.buffer.priority[0], state.buffer.priority[1], rtol=1e-2
    )
    changed = state.buffer.priority[1, :LENGTH] != 1
    assert 10 < changed.sum() <= 2 * 4 * (LENGTH - 200)


@slow
def test_the_first_actions_are_uniform(two):
    this, _, saved = two
    seeds = jnp.arange(50, dtype=jnp.uint32)
    actions = this.programs.random_actions(seeds)
    np.testing.assert_array_equal(actions[:2], saved["actions"][:, :201])
    counts = np.bincount(actions.ravel(), minlength=4)
    assert ((counts - actions.size / 4) ** 2 / (actions.size / 4)).sum() < 16.3


class Signpost:
    """A game in place of the emulator: the place of the light tells the paying action.

    That action moves the light to the next of four places, any other elsewhere.
    """

    def __init__(self, game, seed):
        self._rng, self.last = np.random.default_rng(seed), None
        self._place, self._steps, self._score = 0, 0, 0.0
        self._show()

    def _show(self):
        self.frame = self._rng.integers(0, 60, (84, 84)).astype(np.uint8)
        y, x = divmod(self._place, 2)
        self.frame[42 * y + 8 : 42 * y + 34, 42 * x + 8 : 42 * x + 34] = 250

    def step(self, action):
        reward, place = float(action == self._place), self._place
        self._place = (place + 1 if reward else place + 2 + action) % 4
        self._steps, self._score = self._steps + 1, self._score + reward
        self._show()
        done, finished = self._steps == 20, None
        if done:
            finished = self.last = Finished(self._score, self._steps)
            self._steps, self._score = 0, 0.0
        return Outcome(self.frame, reward, done, finished)


@slow
def test_agents_learn_a_learnable_game(monkeypatch):
    """The mean reward rises from 1/4, by chance, to more than 3/4."""
    monkeypatch.setattr(learner, "Environment", Signpost)
    rates = {f"optimizer.{name}": 1e-3 for name in ("encoder", "first", "rest")}
    small = {"steps": 800, "n_step": 1, "batch_size": 16, "model.hidden": 32}
    widths = {"model.encoder.widths": (8, 8, 8)}
    this = Player(config(**small, **rates, **widths))
    state = played_until(this, until=this.steps)
    earned = np.asarray(state.buffer.reward)
    assert (abs(earned[:, :200].mean(1) - 0.25) < 0.1).all()
    assert (earned[:, -100:].mean(1) > 0.75).all(), earned[:, -100:].mean(1)


def donor_at(folder, **overrides):
    """The parts of a pre-trained run that are read: a network and its config."""
    model = config().model.to_dict() | {"sigma": 0.0} | overrides
    make = build(model)
    _, params, statistics, _ = split_module(make(rngs=nnx.Rngs(5)))
    checkpoints = Checkpoints(folder / "checkpoints")
    text = to_json({"model": model, "views": {}})
    checkpoints.save(7, {"params": params, "statistics": statistics}, text)
    checkpoints.close()
    return params


@slow
def test_agents_start_with_the_pre_trained_weights(tmp_path):
    params = donor_at(tmp_path)
    this = Player(config("pretrained", init_from=str(tmp_path)))
    this.check(tmp_path / "run")
    network = this.begin().train
    for number in (0, 1):
        head = jax.tree.map(lambda x, n=number: x[n], network.params["head"])
        goal = params["goal_head"]["head"]
        for name in ("advantage1", "value1"):
            np.testing.assert_array_equal(head[name]["kernel"], goal[name]["kernel"])
            inputs = len(head[name]["kernel"])
            np.testing.assert_allclose(
                head[name]["kernel_sigma"], 0.5 / inputs**0.5, rtol=1e-6
            )
        for part in (network.params, network.target["params"]):
            np.testing.assert_array_equal(
                jax.tree.leaves(part["encoder"])[0][number],
                jax.tree.leaves(params["encoder"])[0],
            )
    second = network.params["head"]["advantage2"]["kernel"]
    assert (second[0] != second[1]).any(), "fresh weights must differ between seeds"


@pytest.mark.parametrize(
    ("start", "overrides", "words"),
    [
        ("pretrained", {}, "give --config.init_from=RUN, or start=scratch"),
        ("scratch", {"init_from": "runs/a"}, "leave one of them out"),
        ("scratch", {"random_steps": 400}, "only 400 steps"),
        ("scratch", {"random_steps": 5}, "random_steps=5: .* give 6 or more"),
        ("scratch", {"game": "pong"}, "pong has 6 actions, but model.actions is 4"),
        ("scratch", {"game": "pongg"}, "no game 'pongg'; the nearest: pong"),
        ("scratch", {"game": "combat"}, "combat is a game for two players"),
        ("scratch", {"objective.double": "0"}, "objective.double=0: expected bool"),
        ("scratch", {"seeds": 0}, "seeds=0: it must be 1 or more"),
        ("scratch", {"seed": 2**32 - 1}, "the last seed must be below"),
        ("scratch", {"model.image": 72}, "do not fit together"),
        ("pretrained", {"init_from": "nowhere"}, "nowhere has no checkpoint"),
    ],
)
def test_invalid_runs_are_refused_in_one_line(tmp_path, start, overrides, words):
    with pytest.raises(InputError, match=words) as caught:
        train(Player(config(start, **overrides)), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


SPELT = ("BreakoutNoFrameskip-v4", "ALE/Breakout-v5", "Breakout")


@pytest.mark.parametrize("game", SPELT)
def test_all_spellings_of_a_game_give_one_config(monkeypatch, game):
    described = {"policy": "DQN", "actions": ["NOOP"] * 4}
    asked = []
    monkeypatch.setattr(
        recording, "describe", lambda name: asked.append(name) or described
    )
    for name in ("sgi_finetune", "sgi_pretrain", "sgi_demo"):
        texts = {
            to_json(load_config(f"{ROOT}/configs/{name}.py:game={text}"))
            for text in (game, "breakout")
        }
        assert len(texts) == 1 and '"breakout' in texts.pop(), name
    assert set(asked) == {"breakout_random"}


def test_a_run_keeps_the_game_under_one_name(monkeypatch):
    """So a resumed run may spell it otherwise, and a report finds its human score."""
    monkeypatch.setattr(learner, "Programs", lambda config, trusted: None)
    given = config(game="ALE/Breakout-v5")
    assert Player(given).config.game == "breakout"
    assert given.game == "ALE/Breakout-v5", "the caller's config must not change"


@pytest.mark.parametrize("double", [True, False])
def test_the_argument_double_sets_the_objective(double):
    path = f"{ROOT}/configs/sgi_finetune.py"
    made = build(load_config(f"{path}:double={double}").objective)
    assert made.double == double
    assert load_config(path).objective.double  # as released


@slow
@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"actions": 18}, "model.actions is 18 there, 4 here"),
        ({"hidden": 16}, "hidden"),
    ],
)
def test_a_different_network_is_refused_as_donor(tmp_path, other, words):
    donor_at(tmp_path / "donor", **other)
    with pytest.raises(InputError, match=words):
        donated(config("pretrained", init_from=str(tmp_path / "donor")), None)


def test_saved_actions_do_not_change_with_later_ones():
    """A device may share an aligned array's memory instead of copying it."""
    memory = np.zeros(4096 + 64, np.uint8)
    start = -memory.ctypes.data % 64
    actions = memory[start : start + 4096].reshape(2, 2048)
    assert actions.ctypes.data % 64 == 0
    played = SimpleNamespace(
        actions=actions,
        _fingerprints=lambda time: np.zeros((2, 32), np.uint8),
    )
    buffer = SimpleNamespace(priority=None, size=np.zeros(2, np.int32))
    saved = Player.saved(played, SimpleNamespace(train=None, buffer=buffer))
    actions[:, 7] = 3
    assert not np.asarray(saved["actions"]).any()


def test_a_misspelt_config_argument_suggests_the_nearest():
    for argument, words in (
        ("game=pongg", "the nearest: pong"),
        ("start=scrath", "did you mean 'scratch'"),
        ("size=X", "available: L, M, S, tiny"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            load_config(f"{ROOT}/configs/sgi_finetune.py:{argument}")


@slow
def test_a_nonfinite_step_is_dumped_and_replayed(tmp_path, capsys):
    rates = {f"optimizer.{name}": 1e30 for name in ("encoder", "first", "rest")}
    broken = config(steps=260, checkpoint_every=1000, **rates)
    with pytest.raises(NonFiniteError, match="step 20[12] is not finite; .* --replay"):
        train(Player(broken), tmp_path)
    (dumped,) = saved_steps(tmp_path / "dump")
    assert dumped in (200, 201)
    replay_run(Player, tmp_path)
    output = capsys.readouterr().out
    assert f"step {dumped + 1}, actions [" in output
    assert re.search(r"healthy 0\n", output)


@slow
def test_a_failed_step_keeps_what_was_learned_and_is_repeated_exactly(two):
    """One seed fails: the same call again skips the other and repeats the failed."""
    this, before, _ = two
    seeds = len(this.seeds)
    rng = np.random.default_rng(0)
    outcome = (
        rng.integers(0, 256, (seeds, 84, 84), np.uint8),
        np.ones(seeds, np.float32),
        np.zeros(seeds, bool),
    )

    def learn(state):
        new, values = this.programs.learn(jax.device_put(state), *outcome, this.keys)
        return jax.device_get(new), bool(values["healthy"])

    def broken(weights):
        weights = weights.copy()
        weights[1] = np.nan
        return weights

    expected, _ = learn(before)
    params = jax.tree.map(broken, before.train.params)
    kept, healthy = learn(replace(before, train=replace(before.train, params=params)))
    assert not healthy
    for name in ("frame", "action"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(before, name))
    np.testing.assert_array_equal(kept.buffer.size, before.buffer.size)
    assert (kept.train.step - before.train.step).tolist() == [2, 0]

    def mended(found, original):
        return np.stack([found[0], original[1]])

    params = jax.tree.map(mended, kept.train.params, before.train.params)
    found, healthy = learn(replace(kept, train=replace(kept.train, params=params)))
    assert healthy
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@slow
def test_a_resumed_run_equals_an_uninterrupted_one(command, tmp_path):
    """SIGKILL, SIGTERM, then to the end; a changed config is refused."""
    small = SMALL | {"evaluation.episodes": 2, "evaluation.cap": 30, "keep": 2}
    small.pop("evaluation")
    flags = [f"--config.{key}={value}" for key, value in small.items()]
    arguments = ["sgi.finetune", "--config", CONFIG + "scratch", *flags]
    hurry = {"xla_flags": "--xla_backend_optimization_level=0"}
    reference = command(*arguments, "--workdir", tmp_path / "reference", **hurry)
    assert reference.returncode == 0, reference.output
    arguments += ["--workdir", tmp_path / "stopped"]
    for how, status, at in (signal.SIGKILL, -9, 80), (signal.SIGTERM, 75, 240):
        stopped = command(*arguments, wait=False, **hurry)
        wait_for_step(stopped, tmp_path / "stopped", at)
        stopped.send_signal(how)
        output, _ = stopped.communicate(timeout=60)
        assert stopped.returncode == status, output
    again = command(*arguments, **hurry)
    assert again.returncode == 0, again.output
    assert "400, from 0\n" not in again.output, "the run must resume, not restart"

    reference, stopped = tmp_path / "reference", tmp_path / "stopped"
    assert logged(stopped) == logged(reference)
    assert [line["step"] for line in logged(reference)] == [201, *range(220, 401, 20)]
    for name in ("episodes.jsonl", "eval/0.json", "eval/400.json"):
        assert (stopped / name).read_text() == (reference / name).read_text(), name
    lines = (stopped / "episodes.jsonl").read_text().splitlines()
    games = [json.loads(line) for line in lines]
    assert {game["seed"] for game in games} == {0, 1}
    assert set(games[0]) == {"step", "seed", "score", "steps"}
    ends = [saved_arrays(workdir, 400) for workdir in (stopped, reference)]
    assert ends[0].keys() == ends[1].keys() >= {"actions", "priority", "emulator"}
    for name, array in ends[0].items():
        np.testing.assert_array_equal(array, ends[1][name], err_msg=name)

    other = command(*arguments, "--config.n_step=4", **hurry)
    assert other.returncode == 2
    assert other.output.count("\n") == 1 and "n_step: 3 -> 4" in other.output


def test_a_replay_beyond_memory_is_refused_before_it_is_allocated(
    monkeypatch, tmp_path
):
    this = Player(config())
    size = 2 * 400 * (84 * 84 + 13)  # two seeds; frame, action, reward, end, priority
    monkeypatch.setattr(hosts, "memory", lambda: 2 * size)
    this.check(tmp_path)
    monkeypatch.setattr(hosts, "memory", lambda: size // 2)
    with pytest.raises(InputError, match="2 agents and 400 steps takes .*seeds"):
        this.check(tmp_path)
