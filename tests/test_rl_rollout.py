"""An episode depends only on its seed; success is the share of good episodes."""

import hashlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyview.errors import OutOfRange
from polyview.rl.aggregates import success_interval
from polyview.rl.environment import Finished, Outcome
from polyview.rl.rollout import Episode, rollout
from polyview.rl.success import Success


class Bandit:
    """Two arms, one pays 1; an episode has `pulls` steps.

    Observations: the paying arm (if `shown`) and the number of pulls so far.
    """

    def __init__(self, pulls=5, shown=True):
        self._pulls, self._shown = pulls, shown

    def reset(self, seed):
        self._rng = np.random.default_rng(seed)
        return self._begin()

    def _begin(self):
        self._paying, self._score, self._time = int(self._rng.integers(2)), 0.0, 0
        return self._observation()

    def _observation(self):
        arm = self._paying if self._shown else 0
        return np.array([arm, self._time], np.float32)

    def step(self, action):
        reward = float(action == self._paying)
        self._score, self._time = self._score + reward, self._time + 1
        if self._time < self._pulls:
            return Outcome(self._observation(), reward, False, None)
        finished = Finished(self._score, self._time)
        return Outcome(self._begin(), reward, True, finished)

    def legal(self):
        return None

    def fingerprint(self):
        state = repr((self._rng.bit_generator.state, self.__dict__)).encode()
        return np.frombuffer(hashlib.sha256(state).digest(), np.uint8)


class Module:
    """A model that pulls the shown arm with probability `chance`."""

    def __init__(self, chance=1.0):
        self.chance, self.calls = chance, 0

    def call(self, method, observations, key):
        assert method == "act" and observations.shape == (1, 2)
        self.calls += 1
        right = jax.random.uniform(key, (1,)) < self.chance
        shown = jnp.asarray(observations)[:, 0].astype(int)
        return jnp.where(right, shown, 1 - shown)


def at_random(observation, rng):
    return rng.integers(2)


def test_an_episode_ends_with_the_environment_or_at_the_limit():
    def shown(observation, rng):
        return observation[0]

    whole = rollout(Bandit(), shown, range(3), limit=9)
    assert whole == [Episode(5.0, 5, True)] * 3
    assert rollout(Bandit(), shown, range(3), limit=5) == whole
    cut = rollout(Bandit(), shown, range(3), limit=4)
    assert cut == [Episode(4.0, 4, False)] * 3


def test_an_episode_depends_only_on_its_seed():
    seeds = range(20)
    together = rollout(Bandit(), at_random, seeds, limit=9)
    alone = [rollout(Bandit(), at_random, [seed], limit=9)[0] for seed in seeds]
    again = rollout(Bandit(), at_random, reversed(seeds), limit=9)[::-1]
    assert together == alone == again
    assert len({episode.score for episode in together}) > 2


def test_policy_and_environment_have_separate_generators():
    """A random first pull finds the paying arm half of the time, not always."""
    episodes = rollout(Bandit(pulls=1), at_random, range(400), limit=1)
    assert 0.4 < np.mean([episode.score for episode in episodes]) < 0.6


def test_success_is_the_share_of_episodes_at_the_threshold():
    evaluation = Success(Bandit, threshold=4.0, episodes=200, limit=9)
    result = evaluation(Module(chance=0.8), None)
    expected = 0.8**5 + 5 * 0.8**4 * 0.2  # 4 or 5 of 5 right
    successes = sum(score >= 4 for score in result["scores"])
    assert result["success"] == successes / 200 == pytest.approx(expected, abs=0.1)
    assert tuple(result["interval"]) == success_interval(successes, 200)
    assert result.columns == {"success": result["success"]}
    assert result.summary.startswith(f"success {result['success']:.3f} (")
    assert result["steps"] == [5] * 200 and all(result["finished"])
    assert evaluation(Module(chance=0.8), None) == result
    later = Success(Bandit, threshold=4.0, episodes=199, limit=9, seed=1)
    assert later(Module(chance=0.8), None)["scores"] == result["scores"][1:]


def test_success_of_perfect_and_blind_policies():
    sure = Success(partial(Bandit, pulls=2), threshold=2.0, episodes=10)
    assert sure(Module(), None)["interval"][1] == 1.0
    blind = Success(partial(Bandit, 1, shown=False), threshold=1.0, episodes=100)
    assert 0.3 < blind(Module(), None)["success"] < 0.7


def test_episodes_cut_at_the_limit_keep_their_score():
    model = Module()
    result = Success(Bandit, threshold=3.0, episodes=4, limit=3)(model, None)
    assert result["success"] == 1.0 and not any(result["finished"])
    assert model.calls == 12


@pytest.mark.parametrize(
    "wrong", [{"episodes": 0}, {"limit": 0}, {"seed": -1}, {"threshold": np.nan}]
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(OutOfRange):
        Success(Bandit, **({"threshold": 1.0} | wrong))
