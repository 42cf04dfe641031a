"""What an agent has seen and done, in the memory of the device: prioritised replay.

Pure functions for one agent; `jax.vmap` makes those of several. Time t is slot t: the
frame, the action taken on it, the reward and whether this ended the episode. Frames are
stored once; stacks and n-step returns are made when they are sampled. A buffer does not
wrap: it is as long as the run.

    P(t) = p_t^alpha / sum p^alpha                     (Schaul et al. 2016)
    weight_t = (1 / (p_t^alpha + 1e-5))^beta, divided by the greatest of the batch

The weight without the sum is that of rlpyt, with which SGI's official code plays.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

BLOCK = 256  # slots whose priorities are added up before any others


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Buffer:
    """The first `size` slots are filled.

    frames: uint8[t, h, w]. action: int32[t]. reward: float32[t], its sign alone.
    done: bool[t], whether a life or the game ended, or was cut off. priority:
    float32[t]. size: int32[].
    """

    frames: jax.Array
    action: jax.Array
    reward: jax.Array
    done: jax.Array
    priority: jax.Array
    size: jax.Array


def create(capacity: int, image: int = 84) -> Buffer:
    """An empty buffer of `capacity` steps, of frames of `image` pixels a side."""
    return Buffer(
        frames=jnp.zeros((capacity, image, image), jnp.uint8),
        action=jnp.zeros(capacity, jnp.int32),
        reward=jnp.zeros(capacity, jnp.float32),
        done=jnp.zeros(capacity, bool),
        priority=jnp.zeros(capacity, jnp.float32),
        size=jnp.zeros((), jnp.int32),
    )


def append(buffer: Buffer, frame, action, reward, done) -> Buffer:
    """The buffer with one step more, of priority 1; jit it and donate the buffer.

    A full buffer stays as it is.
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
    """The stack `uint8[history, h, w]` that ends in a frame not yet acted on."""
    past, _ = _past(buffer, buffer.size, history)
    return jnp.concatenate([past, frame[None]])


def sampleable(size, *, jumps: int, n_step: int):
    """How many of `size` steps may be sampled: all but the newest 1 + n + jumps + 1.

    As in the official code; what n steps and `jumps` steps later was seen is then
    known.
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
    """A batch of the engine, drawn in proportion to priority^alpha, with replacement.

        views    frames uint8[b, history + jumps, h, w]: times t - history + 1 .. t +
                 jumps; next uint8[b, history, h, w]: the stack at t + n
        targets  action int32[b, jumps], terminal bool[b, jumps + 1]: from t on
                 return float32[b]: the discounted rewards of n steps or to the end
                 discount float32[b]: discount^n, or 0 past an end
                 weight float32[b]: for what was drawn too often, at most 1
        index    int32[b]: t

    What was before the last end before t, or before t + n, is zero, and `present` is
    False. A window that reaches over an end goes on behind it: see `terminal`. More
    than n + jumps + 2 steps must be there.
    """
    count = sampleable(buffer.size, jumps=jumps, n_step=n_step)
    slots = jnp.arange(len(buffer.priority))
    mass = jnp.where(slots < count, buffer.priority**alpha, 0)
    index = jnp.minimum(_draw(key, mass, batch_size), count - 1)

    def of_time(t):
        past, seen = _past(buffer, t, history)
        past_next, seen_next = _past(buffer, t + n_step, history)
        ahead = buffer.frames[t + jnp.arange(jumps + 1)]
        there = jnp.ones(jumps + 1, bool)
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
            "frames": jnp.concatenate([seen, there]),
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
    """The buffer with new priorities of the slots `index[b]`.

    Of a slot that was drawn twice the greater one stays, whatever the order of writing.
    """
    cleared = buffer.priority.at[index].set(0)
    return replace(buffer, priority=cleared.at[index].max(priority))


def _past(buffer: Buffer, t: jax.Array, history: int) -> tuple[jax.Array, jax.Array]:
    """The history - 1 frames before time t, zero before the last end, and which are
    not."""
    times = t + jnp.arange(1 - history, 0)
    slots = jnp.maximum(times, 0)
    same = (times >= 0) & ~buffer.done[slots]
    same = jnp.cumprod(same[::-1])[::-1].astype(bool)
    return jnp.where(same[:, None, None], buffer.frames[slots], 0), same


def _draw(key: jax.Array, mass: jax.Array, count: int) -> jax.Array:
    """`count` slots, each drawn in proportion to `mass[t]`, with replacement.

    A block by the sums of blocks, then a slot in it. The sums are made anew from the
    slots each time: sums kept up to date drift in float32.
    """
    rows = jnp.pad(mass, (0, -len(mass) % BLOCK)).reshape(-1, BLOCK)
    which, where = jax.random.split(key)
    block = _inverse(rows.sum(1), jax.random.uniform(which, (count,)))
    slot = jax.vmap(_inverse)(rows[block], jax.random.uniform(where, (count,)))
    return block * BLOCK + slot


def _inverse(mass: jax.Array, uniform: jax.Array) -> jax.Array:
    """Where the cumulated mass first exceeds `uniform` of the whole."""
    total = jnp.cumsum(mass)
    found = jnp.searchsorted(total, uniform * total[-1], side="right")
    return jnp.minimum(found, len(mass) - 1)
