"""Prioritised replay of an agent's experience, in device memory.

Pure functions for one agent; `jax.vmap` gives those for several. Slot t holds time t:
the frame, the action taken on it, the reward and whether the step ended the episode.
Frames are stored once; stacks and n-step returns are made when they are sampled. A
buffer does not wrap: it is as long as the run.

    P(t) = p_t^alpha / sum p^alpha                     (Schaul et al. 2016)
    weight_t = (1 / (p_t^alpha + 1e-5))^beta, divided by the greatest of the batch

The weight without the sum is that of rlpyt, which SGI's official code uses.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

BLOCK = 256  # slots of a partial sum of priorities


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Buffer:
    """A replay buffer, filled in its first `size` slots.

    frames: uint8[t, h, w]. action: int32[t]. reward: float32[t], only its sign. done:
    bool[t], True if a life or the game ended, or the game was cut off. priority:
    float32[t]. size: int32[].
    """

    frames: jax.Array
    action: jax.Array
    reward: jax.Array
    done: jax.Array
    priority: jax.Array
    size: jax.Array


def create(capacity: int, image: int = 84) -> Buffer:
    """Create an empty buffer of `capacity` steps, with frames of `image` x `image`."""
    return Buffer(
        frames=jnp.zeros((capacity, image, image), jnp.uint8),
        action=jnp.zeros(capacity, jnp.int32),
        reward=jnp.zeros(capacity, jnp.float32),
        done=jnp.zeros(capacity, bool),
        priority=jnp.zeros(capacity, jnp.float32),
        size=jnp.zeros((), jnp.int32),
    )


def append(
    buffer: Buffer,
    frame: ArrayLike,
    action: ArrayLike,
    reward: ArrayLike,
    done: ArrayLike,
) -> Buffer:
    """Append a step with priority 1; a full buffer does not change.

    Compile it with the buffer donated.
    """
    t = buffer.size
    columns = {
        "frames": frame,
        "action": action,
        "reward": jnp.sign(reward),
        "done": done,
        "priority": 1,
    }
    written = {
        name: getattr(buffer, name).at[t].set(value, mode="drop")
        for name, value in columns.items()
    }
    size = jnp.minimum(t + 1, len(buffer.action))
    return replace(buffer, **written, size=size)


def current_stack(buffer: Buffer, frame: jax.Array, *, history: int = 4) -> jax.Array:
    """The stack `uint8[history, h, w]` that ends in a frame not yet in the buffer."""
    past, _ = _past(buffer, buffer.size, history)
    return jnp.concatenate([past, frame[None]])


def sampleable(size: int | jax.Array, *, jumps: int, n_step: int) -> int | jax.Array:
    """The number of `size` steps that may be sampled: all but the newest n + jumps + 2.

    As in the official code; the frames n steps and `jumps` steps later then exist.
    """
    return size - (n_step + jumps + 2)


def sample(
    buffer: Buffer,
    key: jax.Array,
    *,
    batch_size: int,
    alpha: float,
    beta: float | jax.Array,
    jumps: int,
    n_step: int,
    discount: float,
    history: int = 4,
) -> dict:
    """Sample a batch in proportion to priority^alpha, with replacement.

        views    frames uint8[b, history + jumps, h, w]: times t - history + 1 .. t +
                 jumps; next uint8[b, history, h, w]: the stack at t + n
        targets  action int32[b, jumps], terminal bool[b, jumps + 1]: from t on
                 return float32[b]: the discounted rewards of n steps or to the end
                 discount float32[b]: discount^n, or 0 past an end
                 weight float32[b]: corrects for the sampling, at most 1
        index    int32[b]: t

    Frames before the last end before t, or before t + n, are zero, and `present` is
    False for them. A window that contains an end continues beyond it: see `terminal`.
    The buffer must have more than n + jumps + 2 steps.
    """
    count = sampleable(buffer.size, jumps=jumps, n_step=n_step)
    slots = jnp.arange(len(buffer.priority))
    mass = jnp.where(slots < count, buffer.priority**alpha, 0)
    index = jnp.minimum(_draw(key, mass, batch_size), count - 1)

    def of_time(t: jax.Array) -> dict:
        past, seen = _past(buffer, t, history)
        past_next, seen_next = _past(buffer, t + n_step, history)
        ahead = buffer.frames[t + jnp.arange(jumps + 1)]
        present_ahead = jnp.ones(jumps + 1, bool)
        steps = t + jnp.arange(n_step)
        done = buffer.done[steps]
        # The reward of the step that ends an episode still counts.
        going = jnp.cumprod(jnp.append(True, ~done))
        returns = discount ** jnp.arange(n_step) * going[:-1] * buffer.reward[steps]
        last = buffer.frames[t + n_step][None]
        views = {
            "frames": jnp.concatenate([past, ahead]),
            "next": jnp.concatenate([past_next, last]),
        }
        present = {
            "frames": jnp.concatenate([seen, present_ahead]),
            "next": jnp.append(seen_next, True),
        }
        targets = {
            "action": buffer.action[t + jnp.arange(jumps)],
            "terminal": buffer.done[t + jnp.arange(jumps + 1)],
            "return": returns.sum().astype(jnp.float32),
            "discount": (discount**n_step * going[-1]).astype(jnp.float32),
        }
        return {"views": views, "present": present, "targets": targets, "index": t}

    batch = jax.vmap(of_time)(index)
    weight = (1 / (mass[index] + 1e-5)) ** beta
    batch["targets"]["weight"] = (weight / weight.max()).astype(jnp.float32)
    return batch


def update_priorities(buffer: Buffer, index: jax.Array, priority: jax.Array) -> Buffer:
    """Set the priorities of the slots `index[b]`.

    A slot that was drawn twice gets the greater one, whatever the order of writing.
    """
    cleared = buffer.priority.at[index].set(0)
    return replace(buffer, priority=cleared.at[index].max(priority))


def _past(buffer: Buffer, t: jax.Array, history: int) -> tuple[jax.Array, jax.Array]:
    """The history - 1 frames before time t, zero before the last end, and a mask that
    is False for those."""
    times = t + jnp.arange(1 - history, 0)
    slots = jnp.maximum(times, 0)
    same = (times >= 0) & ~buffer.done[slots]
    same = jnp.cumprod(same[::-1])[::-1].astype(bool)
    return jnp.where(same[:, None, None], buffer.frames[slots], 0), same


def _draw(key: jax.Array, mass: jax.Array, count: int) -> jax.Array:
    """Draw `count` slots in proportion to `mass[t]`, with replacement.

    Draws a block by the sums of blocks, then a slot in it. The sums are recomputed each
    time, since running sums drift in float32.
    """
    rows = jnp.pad(mass, (0, -len(mass) % BLOCK)).reshape(-1, BLOCK)
    which, where = jax.random.split(key)
    block = _inverse(rows.sum(1), jax.random.uniform(which, (count,)))
    slot = jax.vmap(_inverse)(rows[block], jax.random.uniform(where, (count,)))
    return block * BLOCK + slot


def _inverse(mass: jax.Array, uniform: jax.Array) -> jax.Array:
    """The first index at which the cumulative mass exceeds `uniform` of the total."""
    total = jnp.cumsum(mass)
    index = jnp.searchsorted(total, uniform * total[-1], side="right")
    return jnp.minimum(index, len(mass) - 1)
