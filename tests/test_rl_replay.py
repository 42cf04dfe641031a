"""An agent's replay buffer: contents of samples, draw frequencies and weights."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyview.rl import replay

ASKED = {"jumps": 5, "n_step": 10, "discount": 0.99}
TAKE = jax.jit(partial(replay.sample, **ASKED), static_argnames="batch_size")
RESERVED = 1 + 10 + 6  # newest steps, not yet drawn: their later steps are unknown
STEPS = 90


def lives(steps=STEPS, image=6, seed=0):
    """Play with many lost lives: numpy columns, one row per step."""
    rng = np.random.default_rng(seed)
    done = rng.random(steps) < 0.1
    done[[0, 20, 21, 23]] = True  # at the very start; lives of one and two steps
    return {
        "frame": rng.integers(1, 256, (steps, image, image), np.uint8),
        "action": rng.integers(0, 18, steps).astype(np.int32),
        "reward": rng.integers(-30, 31, steps).astype(np.float32),
        "done": done,
    }


@jax.jit
def filled(empty, steps):
    """The buffer after appending the steps of `lives` one by one."""
    return jax.lax.scan(lambda b, s: (replay.append(b, **s), None), empty, steps)[0]


@pytest.fixture(scope="module")
def play():
    return lives()


@pytest.fixture(scope="module")
def full(play):
    return filled(replay.create(STEPS + 10, 6), play)


def draw(buffer, count, seed=0, alpha=0.5, beta=0.4):
    key = jax.random.key(seed)
    return jax.device_get(TAKE(buffer, key, batch_size=count, alpha=alpha, beta=beta))


@partial(jax.jit, static_argnames="batch_size")
def drawn_rows(buffer, key, **options):
    """The steps that a sample draws; their frames are not read."""
    return replay.sample(buffer, key, **ASKED, **options)["index"]


def draw_rows(buffer, count, seed=0, alpha=0.5):
    key = jax.random.key(seed)
    rows = drawn_rows(buffer, key, batch_size=count, alpha=alpha, beta=0.4)
    return np.asarray(rows)


def slow_stack(play, t):
    """Frames t - 3 .. t, read backwards from t until the end of an earlier life."""
    stack = np.zeros((4, *play["frame"].shape[1:]), np.uint8)
    for age in range(4):
        if t - age < 0 or (age and play["done"][t - age]):
            break
        stack[3 - age] = play["frame"][t - age]
    return stack


def test_samples_match_loops(play, full):
    batch = draw(full, 800)
    assert set(batch["index"]) == set(range(STEPS - RESERVED))
    views, targets = batch["views"], batch["targets"]
    for i, t in enumerate(batch["index"]):
        stack = slow_stack(play, t)
        np.testing.assert_array_equal(views["frames"][i, :4], stack)
        np.testing.assert_array_equal(
            views["frames"][i, 4:], play["frame"][t + 1 :][:5]
        )
        after = slow_stack(play, t + 10)
        np.testing.assert_array_equal(views["next"][i], after)
        present = batch["present"]
        np.testing.assert_array_equal(present["frames"][i, :4], stack.any((1, 2)))
        assert present["frames"][i, 4:].all()
        np.testing.assert_array_equal(present["next"][i], after.any((1, 2)))
        np.testing.assert_array_equal(targets["action"][i], play["action"][t:][:5])
        np.testing.assert_array_equal(targets["terminal"][i], play["done"][t:][:6])
        total, factor = 0.0, 1.0
        for k in range(10):
            total += factor * np.sign(play["reward"][t + k])
            factor *= 0.99 * (not play["done"][t + k])
        assert targets["return"][i] == pytest.approx(total, abs=1e-5)
        assert targets["discount"][i] == pytest.approx(factor, abs=1e-6)
    assert 0 < (targets["discount"] == 0).mean() < 1
    shapes = {k: (v.shape, v.dtype) for k, v in targets.items()}
    assert shapes == {
        "action": ((800, 5), np.int32),
        "terminal": ((800, 6), np.bool_),
        "return": ((800,), np.float32),
        "discount": ((800,), np.float32),
        "weight": ((800,), np.float32),
    }


def test_acting_and_replay_use_the_same_stack(play):
    """At the start, after lost lives and between them."""
    now = jax.jit(replay.current_stack)
    buffer = replay.create(STEPS, 6)
    step = jax.jit(replay.append)
    for t in range(30):
        stack = now(buffer, play["frame"][t])
        np.testing.assert_array_equal(stack, slow_stack(play, t), err_msg=str(t))
        buffer = step(buffer, **{name: column[t] for name, column in play.items()})


@pytest.mark.parametrize("steps", [20, 45, STEPS])
def test_the_newest_steps_are_not_drawn(play, steps):
    part = {name: column[:steps] for name, column in play.items()}
    buffer = filled(replay.create(STEPS + 10, 6), part)
    drawn = draw(buffer, 800)["index"]
    assert set(drawn) == set(range(steps - RESERVED))
    asked = {"jumps": ASKED["jumps"], "n_step": ASKED["n_step"]}
    assert replay.sampleable(steps, **asked) == steps - RESERVED


def with_priorities(priority, capacity=1000):
    """A full buffer of one-pixel frames."""
    buffer = replay.create(capacity, 1)
    slots = jnp.arange(len(priority))
    size = jnp.int32(len(priority))
    buffer = replace(buffer, size=size)
    return replay.update_priorities(buffer, slots, jnp.asarray(priority, jnp.float32))


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_draws_are_proportional_to_priorities(alpha):
    """30,000 draws: if half of the steps were drawn 10 % too often and half too rarely,
    the statistic would exceed its mean by 300, and 224 fails."""
    rng = np.random.default_rng(0)
    priority = rng.gamma(2.0, size=717)  # three blocks, the last one incomplete
    buffer, draws = with_priorities(priority), 30_000
    rows = draw_rows(buffer, draws, alpha=alpha)
    mass = priority[: 717 - RESERVED] ** alpha
    expected = draws * mass / mass.sum()
    counts = np.bincount(rows, minlength=len(mass))
    assert len(counts) == len(mass)
    free = len(mass) - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    # Within six standard deviations of the chi-square distribution.
    assert abs(statistic - free) < 6 * (2 * free) ** 0.5
    again = draw_rows(buffer, draws, seed=1, alpha=alpha)
    assert (again != rows).mean() > 0.9


def test_importance_weights_match_their_formula():
    priority = np.random.default_rng(0).gamma(2.0, size=300)
    for beta in (0.4, 1.0):
        batch = draw(with_priorities(priority), 800, beta=beta)
        weight = (1 / (priority[batch["index"]] ** 0.5 + 1e-5)) ** beta
        weight /= weight.max()
        np.testing.assert_allclose(batch["targets"]["weight"], weight, rtol=1e-4)
        assert weight.min() < 0.9


def test_negligible_priorities_are_not_drawn_beside_large_ones():
    """float32 sums of priorities 12 orders of magnitude apart, up to the last step."""
    priority = np.full(700, 1e-6)
    priority[[3, 300, 600, 682]] = 1e6
    drawn = draw_rows(with_priorities(priority), 100_000, alpha=1.0)
    assert set(drawn) == {3, 300, 600, 682}


def test_new_priorities_replace_old_ones_and_duplicates_take_the_max():
    buffer = with_priorities(np.full(50, 7.0))
    for order in (slice(None), slice(None, None, -1)):
        index = jnp.array([4, 9, 4, 4, 2])[order]
        priority = jnp.array([0.5, 3.0, 2.0, 1.0, 9.0])[order]
        updated = replay.update_priorities(buffer, index, priority).priority
        expected = np.where(np.arange(1000) < 50, 7.0, 0.0)
        expected[[4, 9, 2]] = 2.0, 3.0, 9.0
        np.testing.assert_array_equal(updated, expected)


def test_new_steps_have_priority_one_and_a_full_buffer_is_kept(play, full):
    np.testing.assert_array_equal(full.priority, np.arange(STEPS + 10) < STEPS)
    np.testing.assert_array_equal(full.reward[:STEPS], np.sign(play["reward"]))
    assert int(full.size) == STEPS
    part = {name: column[:7] for name, column in play.items()}
    kept = {name: column[:5] for name, column in play.items()}
    over, exact = (filled(replay.create(5, 6), p) for p in (part, kept))
    jax.tree.map(np.testing.assert_array_equal, over, exact)


def test_appending_copies_no_frames():
    """For one agent and for several in one program."""
    shape = {"frame": ((84, 84), jnp.uint8), "action": ((), jnp.int32)}
    shape |= {"reward": ((), jnp.float32), "done": ((), jnp.bool_)}

    def append(buffer_, frame, action, reward, done):
        return replay.append(buffer_, frame, action, reward, done)

    for agents, function in ((), append), ((3,), jax.vmap(append)):
        empty = jax.tree.map(
            lambda x, agents=agents: jax.ShapeDtypeStruct(agents + x.shape, x.dtype),
            jax.eval_shape(partial(replay.create, 500)),
        )
        step = [jax.ShapeDtypeStruct(agents + s, d) for s, d in shape.values()]
        lowered = jax.jit(function, donate_argnums=0).lower(empty, *step)
        account = lowered.compile().memory_analysis()
        frames = empty.frames.size
        assert account.alias_size_in_bytes >= frames
        assert account.temp_size_in_bytes < frames / 10


def test_agents_sampled_together_match_each_alone(play):
    plays = [lives(seed=seed) for seed in (0, 1, 2)]
    replays = [filled(replay.create(STEPS, 6), p) for p in plays]
    keys = jax.random.split(jax.random.key(5), 3)
    take = partial(TAKE, batch_size=8, alpha=0.5, beta=0.7)
    together = jax.tree.map(lambda *x: jnp.stack(x), *replays)
    together = jax.vmap(take)(together, keys)
    alone = [take(r, k) for r, k in zip(replays, keys, strict=True)]
    alone = jax.tree.map(lambda *x: jnp.stack(x), *alone)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), together, alone)
