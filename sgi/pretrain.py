"""SGI's pre-training without rewards, as an objective of the engine.

    loss = spr L_spr + goal L_goal + inverse L_inverse + cloning L_cloning

of windows of recorded play (Schwarzer et al. 2021). With f, P, h and q the encoder, the
projection, the transition and the predictor, f' and P' those of the network's moving
average, and x_t the stack of frames at t, augmented anew wherever it is read:

    z_0 = f(x_t),  z_k = h(z_{k-1}, a_{t+k-1}),  u_k = f'(x_{t+k})
    L_spr      mean over k = 1..K of |l2 q(P z_k) - l2 P' u_k|^2
    L_inverse  mean over k = 0..K-1 of the cross-entropy of (P z_k, P' u_{k+1}) to
               a_{t+k}
    L_goal     one step of double C51 from (z_0, a_t), rewarded by how much nearer u_1
               is than u_0 to the latent of a later frame
    L_cloning  cross-entropy of the agent's own head at z_0 to a_t, a baseline

The moving average is the engine's (`target_decay` 0.99): what a step reads contains the
weights that the step starts from. The official code keeps two. Its second Q network is
averaged like this one; its second encoder after it was read, so that it is one step
older: it differs by 1% of its distance to the weights. All of the loss is normalised by
the statistics of its batch, there as here; running statistics, and their average, are
for those who use the encoder afterwards.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from polyview.errors import InputError
from polyview.rl import distributional
from polyview.training.optimizer import Optimizer, ScalingRule
from sgi import losses
from sgi.heads import support
from sgi.network import Network, features, renormalise

SHIFT = 4  # pixels
INTENSITY = 0.05


class Keys(NamedTuple):
    """The noise of a step, by its use."""

    own_looks: jax.Array
    average_looks: jax.Array
    goals: jax.Array
    permutation: jax.Array
    own_head: jax.Array
    average_head: jax.Array


class Seen(NamedTuple):
    """Latents `[b, y, x, c]` of the moving average; `future` has K + 1 after b."""

    future: jax.Array  # u_0 .. u_K
    after: jax.Array  # x_{t+1} again, whose return is read
    goal: jax.Array


@dataclass(frozen=True)
class Pretrain:
    """The weighted sum of SGI's losses; a loss of weight 0 is not computed.

    The batch has the views "frames" `uint8[b, history + jumps, h, w]`, from the first
    of the stack at t on, and "goal" `uint8[b, history, h, w]`; the targets "action"
    `int[b, jumps]` and "terminal" `bool[b, jumps + 1 or more]`, from t on. What
    `window_terminals` and `goal_noise_scale` choose stands in `sgi.losses`. Raises
    InputError where the run keeps no moving average or cuts batches into slices.
    """

    spr: float = 1.0
    goal: float = 1.0
    inverse: float = 1.0
    cloning: float = 0.0
    jumps: int = 5
    discount: float = 0.99
    goal_noise: float = 0.5
    goal_permutation: float = 0.2
    distance_scale: float = 5.0
    reward_scale: float = 10.0
    window_terminals: Literal["correct", "upstream"] = "correct"
    goal_noise_scale: Literal["upstream", "unit"] = "upstream"

    def __post_init__(self):
        if self.jumps < 1:
            raise ValueError(f"jumps={self.jumps}: a window has 1 or more")

    def __call__(self, module: Network, target_module: Network | None, batch, key):
        check(module, target_module)
        keys = Keys(*jax.random.split(key, len(Keys._fields)))
        actions = batch["targets"]["action"][:, : self.jumps]
        masks = losses.windows(
            batch["targets"]["terminal"],
            jumps=self.jumps,
            window_terminals=self.window_terminals,
            discount=self.discount,
        )
        frames = batch["views"]["frames"][:, : module.history + self.jumps]
        stacks = stacked(frames, module.history)
        own = augment(stacks[:, :2], _of_rows(keys.own_looks, batch))
        z = module.encode(own[:, 0], train=True)
        path = z[:, None]
        seen = None
        if self.spr or self.inverse or self.goal:
            goal = stacked(batch["views"]["goal"], module.history)
            looks = jnp.concatenate([stacks, stacks[:, 1:2], goal], 1)
            looks = augment(looks, _of_rows(keys.average_looks, batch))
            latents = encode_all(target_module, looks)
            seen = Seen(latents[:, :-2], latents[:, -2], latents[:, -1])
        if self.spr or self.inverse:
            path = roll(module, z, actions)
            targets = target_module.project(seen.future)
        projected = module.project(path)

        terms, metrics = {}, {}
        if self.spr:
            apart = losses.self_prediction(module.predict(projected), targets)
            terms["spr"] = (masks.predicted * apart[:, 1:]).mean()
            metrics["spr_now"] = apart[:, 0].mean()
        if self.inverse:
            logits = module.inverse(projected[:, :-1], targets[:, 1:])
            entropy = losses.cross_entropy(logits, actions)
            terms["inverse"] = (masks.inverse * entropy).mean()
            metrics["inverse_accuracy"] = (logits.argmax(-1) == actions).mean()
        if self.goal:
            loss, error = self._goal(
                module, target_module, z, own[:, 1], seen, masks, batch, keys
            )
            terms["goal"], metrics["goal_error"] = loss.mean(), error.mean()
        if self.cloning:
            logits = module.head(z, key=keys.own_head)
            entropy = losses.behaviour_cloning(logits, actions[:, 0], support())
            terms["cloning"] = entropy.mean()
        metrics["cosine"] = losses.mean_cosine(projected[:, 0])
        metrics["features"] = {"frames": features(z, projected[:, 0])}
        loss = sum(getattr(self, name) * term for name, term in terms.items())
        return loss, terms | metrics

    def _goal(self, module, target_module, z, after, seen, masks, batch, keys):
        """The goal loss and its divergence, `[b]` each; `after` is the stack at t+1."""
        b = len(z)
        goals = losses.noisy_goals(
            seen.goal.reshape(b, -1),
            _of_rows(keys.goals, batch),
            noise=self.goal_noise,
            goal_noise_scale=self.goal_noise_scale,
        )
        goals = losses.permuted_goals(
            goals, _of_rows(keys.permutation, batch), chance=self.goal_permutation
        )
        goals = renormalise(goals)
        reward = masks.reward * losses.goal_reward(
            seen.future[:, 0].reshape(b, -1),
            seen.future[:, 1].reshape(b, -1),
            goals,
            distance_scale=self.distance_scale,
            reward_scale=self.reward_scale,
        )
        goals = goals.reshape(z.shape)
        # One draw of a network's noise for all that it says in a step.
        logits = module.goal_head(z, goals, key=keys.own_head)
        chooses = module.encode(after, train=True)
        chooses = module.goal_head(chooses, goals, key=keys.own_head)
        returns = target_module.goal_head(seen.after, goals, key=keys.average_head)
        target = distributional.double_target(
            jax.lax.stop_gradient(chooses),
            returns,
            reward,
            self.discount * masks.bootstrap,
            support(),
        )
        taken = distributional.at(logits, batch["targets"]["action"][:, 0])
        return distributional.loss_and_divergence(jax.nn.log_softmax(taken), target)


def stacked(frames: jax.Array, history: int) -> jax.Array:
    """The stacks `[b, t - history + 1, h, w, history]` in `frames[b, t, h, w]`."""
    frames = jnp.asarray(frames)
    count = frames.shape[1] - history + 1
    return jnp.stack([frames[:, k : k + count] for k in range(history)], -1)


def augment(stacks: jax.Array, keys: jax.Array) -> jax.Array:
    """Floats of `stacks: uint8[b, m, h, w, c]`, shifted and made brighter or darker.

    Shifted by -4..4 pixels each way, edges repeated, and multiplied by 1 + 0.05 e with
    e normal, clipped to [-2, 2] (Yarats et al. 2021); one draw a stack. Stack a of row
    i is a function of stacks[i, a], keys[i] and a.
    """

    def of_stack(stack, key):
        place, light = jax.random.split(key)
        y, x = jax.random.randint(place, (2,), 0, 2 * SHIFT + 1)
        edge = (SHIFT, SHIFT)
        padded = jnp.pad(stack, (edge, edge, (0, 0)), mode="edge")
        moved = jax.lax.dynamic_slice(padded, (y, x, 0), stack.shape)
        factor = 1 + INTENSITY * jnp.clip(jax.random.normal(light), -2, 2)
        return moved.astype(factor.dtype) * (factor / 255)

    def of_row(row, key):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(row)))
        return jax.vmap(of_stack)(row, keys)

    return jax.vmap(of_row)(stacks, keys)


def roll(module: Network, latent: jax.Array, actions: jax.Array) -> jax.Array:
    """`latent[b, y, x, c]` and the K latents that `actions[b, K]` make of it."""
    path = [latent]
    for k in range(actions.shape[1]):
        path.append(module.transition(path[-1], actions[:, k], train=True))
    return jnp.stack(path, 1)


def adam(
    *,
    steps: int,
    batch_size: int,
    learning_rate: ScalingRule,
    epsilon: float = 1.5e-4,
    clip: float = 10.0,
) -> Optimizer:
    """Adam at a constant rate; the gradients of encoder and heads together, and those
    of the transition, are cut to the norm `clip`."""
    del steps
    rate = learning_rate(batch_size)
    transformation = optax.chain(cut_by_group(clip), optax.adam(rate, eps=epsilon))
    return Optimizer(transformation, optax.constant_schedule(rate))


def cut_by_group(norm: float) -> optax.GradientTransformation:
    """The gradients of encoder and heads together, and those of the transition, cut to
    a norm."""
    groups = {"encoder": "q", "head": "q", "goal_head": "q", "transition": "model"}
    cut = optax.clip_by_global_norm(norm)
    return optax.partition(
        {"q": cut, "model": cut, "rest": optax.identity()},
        lambda params: {
            name: jax.tree.map(lambda _, name=name: groups.get(name, "rest"), part)
            for name, part in params.items()
        },
    )


def _of_rows(key: jax.Array, batch) -> jax.Array:
    """A key for each row, by its index: the same on any number of devices."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])


def encode_all(network: Network, looks: jax.Array) -> jax.Array:
    """Latents of `looks[b, m, ...]`, in one call that normalises them together."""
    b, m = looks.shape[:2]
    latents = network.encode(looks.reshape(b * m, *looks.shape[2:]), train=True)
    return latents.reshape(b, m, *latents.shape[1:])


def check(module, target_module) -> None:
    if not isinstance(module, Network):
        raise InputError(
            "microbatch: SGI reads more of a network than its features; set it to None"
        )
    if target_module is None:
        raise InputError(
            "SGI's targets are a moving average; set target_decay, as 0.99"
        )
