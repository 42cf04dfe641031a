"""Advantages, the loss of PPO and the scale of a critic, against float64 loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from polyview.errors import InputError, OutOfRange
from polyview.rl.critic import Critic
from polyview.rl.ppo import PPO, Judged, advantages, masked_mean, value_loss


def test_advantages_against_sums_over_the_rest_of_each_episode(x64, rng):
    t, n, g, trace = 12, 5, 0.9, 0.7
    rewards, values = rng.normal(size=(t, n)), rng.normal(size=(t + 1, n))
    over = rng.random((t, n)) < 0.3
    terminated = over & (rng.random((t, n)) < 0.5)
    found = advantages(rewards, values, terminated, over, g, trace)
    for row in range(n):
        for start in range(t):
            wanted = 0.0
            for k in range(start, t):
                bootstrap = 0 if terminated[k, row] else g * values[k + 1, row]
                error = rewards[k, row] + bootstrap - values[k, row]
                wanted += (g * trace) ** (k - start) * error
                if over[k, row]:  # cut off or terminated: nothing of the next episode
                    break
            assert abs(found[start, row] - wanted) < 1e-9


class Spoken:
    """A module that says what it was given."""

    def __init__(self, judged):
        self.judged = judged

    def judge(self, play):
        return self.judged


def batch_of(rng, b=4, t=6, context=2):
    shape = b, context + t
    judged = Judged(
        jnp.asarray(rng.normal(size=shape) - 1),
        jnp.asarray(rng.random(shape)),
        jnp.asarray(rng.normal(size=shape)),
        jnp.asarray(rng.integers(1, 5, shape) * 1.0),
    )
    batch = {
        "play": {},
        "taken": jnp.asarray(rng.random((b, t)) < 0.7),
        "advantages": jnp.asarray(rng.normal(size=(b, t))),
        "returns": jnp.asarray(rng.normal(size=(b, t))),
        "values": jnp.asarray(rng.normal(size=(b, t))),
        "log_prob": judged.log_prob[:, context:] + rng.normal(size=(b, t)) * 0.3,
    }
    return judged, batch


def by_hand(judged, batch, objective):
    """Return the loss by a loop over steps."""
    parts = [np.asarray(part)[:, -batch["taken"].shape[1] :] for part in judged]
    log_prob, entropy, value, choices = parts
    own = {k: np.asarray(v) for k, v in batch.items() if k != "play"}
    steps = [tuple(place) for place in np.argwhere(own["taken"])]
    gains = np.array([own["advantages"][i] for i in steps])
    mean, spread = gains.mean(), gains.std()
    policy = values = entropies = 0.0
    for i in steps:
        gain = own["advantages"][i]
        if objective.standardise:
            gain = (gain - mean) / (spread + 1e-8)
        ratio = math.exp(log_prob[i] - own["log_prob"][i])
        low, high = 1 - objective.clip, 1 + objective.clip
        policy -= min(ratio * gain, min(max(ratio, low), high) * gain)
        clip, old, new = objective.value_clip, own["values"][i], value[i]
        near = old + min(max(new - old, -clip), clip)
        target = own["returns"][i]
        values += {
            "squared": (new - target) ** 2 / 2,
            "clipped": ((new if abs(new - old) < clip else near) - target) ** 2 / 2,
            "larger": max((new - target) ** 2, (near - target) ** 2) / 2,
            "huber": (new - target) ** 2 / 2
            if abs(new - target) < 1
            else abs(new - target) - 0.5,
        }[objective.value_loss]
        most = math.log(choices[i]) if objective.relative_entropy else 1
        entropies += entropy[i] / most if most else 0
    count = len(steps)
    return (
        policy / count
        + objective.value_weight * values / count
        - objective.entropy_weight * entropies / count
    )


@pytest.mark.parametrize("kind", ["squared", "clipped", "larger", "huber"])
@pytest.mark.parametrize("relative", [False, True])
def test_the_loss_against_a_loop(kind, relative, x64, rng):
    objective = PPO(
        value_loss=kind, relative_entropy=relative, standardise=relative, clip=0.1
    )
    judged, batch = batch_of(rng)
    loss, metrics = objective(Spoken(judged), None, batch, jax.random.key(0))
    assert abs(float(loss) - by_hand(judged, batch, objective)) < 1e-9
    assert 0 < float(metrics["clipped"]) < 1 and float(metrics["divergence"]) > 0


def test_steps_that_were_not_taken_have_no_gradient_at_all(rng):
    judged, batch = batch_of(rng)

    def gradient(extra):
        def loss(judged):
            return PPO()(Spoken(judged), None, batch | extra, None)[0]

        return jax.tree.leaves(jax.grad(loss)(judged))

    base = gradient({})
    off = ~np.asarray(batch["taken"])
    wild = {
        name: jnp.where(off, jnp.asarray(rng.choice([np.nan, 1e30], off.shape)), value)
        for name, value in batch.items()
        if name in ("advantages", "returns", "values", "log_prob")
    }
    for a, b in zip(base, gradient(wild), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.asarray(a)[:, -off.shape[1] :][off].any()


def test_the_value_loss_of_llarp_lets_no_gradient_through_beyond_the_clip():
    def slope(kind, value):
        own = lambda v: value_loss(v, 0.0, 3.0, kind, 0.2)  # noqa: E731
        return float(jax.grad(own)(value))

    assert slope("clipped", 1.0) == 0 and slope("clipped", 0.1) == pytest.approx(-2.9)
    assert slope("larger", 1.0) == 0  # nearer to 3 than the clipped one
    assert slope("larger", -1.0) == pytest.approx(-4.0)


def test_nothing_is_a_mean_of_zero_and_ranges_are_checked():
    assert masked_mean(jnp.ones(3), jnp.zeros(3, bool)) == 0
    for wrong in ({"clip": 0.0}, {"value_weight": -1.0}, {"value_clip": 0}):
        with pytest.raises(OutOfRange):
            PPO(**wrong)
    with pytest.raises(InputError, match="value_loss='mse'.*squared"):
        PPO(value_loss="mse")


def test_adapting_to_returns_changes_no_value(x64, rng):
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    critic = Critic(3, hidden=5, rate=0.1, **wide, rngs=nnx.Rngs(0))
    x = rng.normal(size=(40, 3))
    mean = square = 0.0
    for number in range(1, 30):
        before = critic.restored(critic(x))
        returns = rng.normal(size=(6, 4)) * 50 + 300 * (number > 3)
        mask = rng.random((6, 4)) < 0.6
        critic.adapt(returns, mask)
        np.testing.assert_allclose(critic.restored(critic(x)), before, rtol=1e-9)
        rate = max(0.1, 1 / number)
        mean += rate * (returns[mask].mean() - mean)
        square = (1 - rate) * square + rate * (returns[mask] ** 2).mean()
        assert abs(float(critic.mean[...]) - mean) < 1e-9
        deviation = math.sqrt(square - mean**2)
        assert abs(float(critic.deviation) - deviation) < 1e-9
    np.testing.assert_allclose(critic.normalised(critic.restored(x)), x, rtol=1e-9)
    seen = float(critic.seen[...])
    critic.adapt(returns, np.zeros_like(mask))
    assert float(critic.mean[...]) == pytest.approx(mean)
    assert float(critic.seen[...]) == seen


def test_a_critic_without_a_rate_keeps_the_units_of_returns(rng):
    critic = Critic(3, hidden=5, rngs=nnx.Rngs(0))
    critic.adapt(rng.normal(size=4) * 100, np.ones(4, bool))
    assert critic.mean[...] == 0 and critic.deviation == 1
