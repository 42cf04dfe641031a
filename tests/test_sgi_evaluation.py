"""Scores equal those of whole games played one at a time."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("ale_py")
pytest.importorskip("gymnasium")

from functools import partial

from flax import nnx

from polyview.errors import InputError
from polyview.model import abstract_module, merge_module, split_module
from sgi import agent, score_episodes
from sgi.atari import Game
from sgi.encoders import Nature
from sgi.learner import Agents
from sgi.network import Network
from sgi.score_episodes import Evaluation, play

SEEDS = np.array([5, 6, 2**31 - 1])


class Watched:
    """Actions from a hash of time and game; records the frames it is given."""

    def __init__(self, actions):
        self.actions, self.frames = actions, []

    def __call__(self, frames, time):
        self.frames.append(frames.copy())
        return (time * time // 3 + 5 * np.arange(len(frames))) % self.actions


@pytest.fixture(scope="module")
def breakout():
    """Three games at once, and the number of no-ops at the start of each."""
    games = score_episodes._games("breakout", len(SEEDS), 27_000)
    _, information = games.reset(seed=SEEDS)
    return games, information["episode_frame_number"]


@pytest.mark.parametrize("cap", [40, 300])
def test_scores_match_games_played_one_at_a_time(breakout, cap):
    together, noops = breakout
    assert 1 <= noops.min() <= noops.max() <= 30
    policy = Watched(4)
    result = play(together, SEEDS, policy, cap)
    scores, lengths = [], []
    for number, wait in enumerate(noops):
        game = Game("breakout")
        frame, score, steps, over = game.reset(int(wait)), 0.0, 0, False
        while steps < cap and not over:
            np.testing.assert_array_equal(policy.frames[steps][number], frame)
            # The same hash for this game alone.
            outcome = game.step((steps * steps // 3 + 5 * number) % 4)
            frame, over = outcome.frame, outcome.game_over
            score, steps = score + outcome.reward, steps + 1
        scores.append(score)
        lengths.append(steps)
    np.testing.assert_array_equal(result, scores)
    assert len(policy.frames) == max(lengths)
    if cap == 40:
        assert lengths == [40] * 3
    else:  # lives were lost, play continued, and rewards after the end do not count
        assert max(lengths) < 300 and len(set(lengths)) > 1 and max(scores) > 0


@pytest.fixture(scope="module")
def agents():
    """The graph, parameters and statistics of two agents with distinct preferences."""
    make = partial(
        Network,
        actions=4,
        encoder=partial(Nature, widths=(4, 4, 4)),
        hidden=8,
        sigma=0.5,
    )
    graph, params, statistics, _ = abstract_module(make)
    rng = np.random.default_rng(0)
    params, statistics = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=(2, *s.shape)) / 8, s.dtype),
        (params, statistics),
    )
    first = params["head"]["advantage1"]
    first["kernel"] = 100 * (
        first["kernel"] - first["kernel"].mean((1, 2), keepdims=True)
    )
    params["head"]["advantage2"]["kernel"] *= 100
    return graph, params, statistics


def test_an_agent_acts_on_the_last_four_frames_without_noise(agents):
    graph, params, statistics = agents
    model = jax.tree.map(lambda x: x[0], (params, statistics))
    policy = score_episodes._Remembering(graph, model, 0, 0.0, 6)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (7, 6, 6, 6), np.uint8)
    frames = np.kron(frames, np.ones((1, 1, 14, 14), np.uint8))
    before = np.zeros((3, 6, 84, 84), np.uint8)
    padded = np.concatenate([before, frames])

    @jax.jit
    def greedy(stacks):
        key = jax.random.key(9)  # unused: nothing is drawn
        module = merge_module(graph, *model)
        return agent.act(module, stacks, noise=None, epsilon=0.0, key=key)

    chosen = []
    for time in range(7):
        expected = greedy(np.moveaxis(padded[time : time + 4], 0, -1))
        np.testing.assert_array_equal(policy(frames[time], time), expected)
        chosen += expected.tolist()
    assert len(set(chosen)) > 1


def test_a_seed_scores_the_same_alone_and_with_others(agents):
    graph, params, statistics = agents
    evaluation = Evaluation(episodes=3, epsilon=0.3, cap=60)
    both = evaluation(
        Agents("breakout", 9, graph, params, statistics, [7, 8], False), None
    )
    second = jax.tree.map(lambda x: x[1:], (params, statistics))
    alone = evaluation(Agents("breakout", 9, graph, *second, [8], False), None)
    assert both["scores"][1] == alone["scores"][0]
    assert both["mean"] == [np.mean(scores) for scores in both["scores"]]
    assert (both["game"], both["seeds"], both["cap"]) == ("breakout", [7, 8], 60)
    assert both["protocol"]["noops"] == 30 and both["protocol"]["sticky"] == 0


def test_random_play_does_not_use_the_agent(agents):
    graph, params, statistics = agents
    evaluation = Evaluation(episodes=3, cap=60)
    other = jax.tree.map(lambda x: x[::-1], (params, statistics))
    first, second = (
        evaluation(Agents("breakout", 0, graph, *weights, [7], True), None)
        for weights in ((params, statistics), other)
    )
    assert first == second and first["epsilon"] == 1


class Preferring(nnx.Module):
    """Prefers action 2 whatever it sees; costs nothing."""

    actions = 4

    def encode(self, stacks, *, train):
        return stacks[:, 0, 0]

    def head(self, latent, *, key):
        best = jax.nn.one_hot(2, self.actions)[:, None] * jnp.linspace(0, 9, 51)[None]
        return jnp.broadcast_to(best, (len(latent), *best.shape))


def test_epsilon_is_the_share_of_random_actions():
    graph, *model = split_module(Preferring())[:3]
    frames = np.zeros((2000, 84, 84), np.uint8)
    actions = {}
    for epsilon in (0.0, 0.25, 1.0):
        policy = score_episodes._Remembering(graph, (*model,), 3, epsilon, 2000)
        actions[epsilon] = policy(frames, 0)
    assert set(actions[0.0]) == {2}
    differing = (actions[0.25] != actions[0.0]).mean()
    assert differing == pytest.approx(0.25 * 3 / 4, abs=0.03)
    counts = np.bincount(actions[1.0], minlength=4)
    assert ((counts - 500) ** 2 / 500).sum() < 16.3  # 1 in 1000


def test_a_game_for_two_players_does_not_end_an_evaluation():
    with pytest.raises(InputError, match="joust is a game for two players"):
        score_episodes._games("ALE/Joust-v5", 2, 10)


def test_missing_gymnasium_names_the_package_to_install(monkeypatch):
    ale_py = sys.modules["ale_py"]
    monkeypatch.delattr(ale_py, "AtariVectorEnv")
    with pytest.raises(InputError, match="pip install gymnasium==1.4.0"):
        score_episodes._games("pong", 2, 100)
