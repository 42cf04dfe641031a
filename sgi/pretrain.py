"""SGI's pre-training without rewards, as an objective of the engine.

    loss = spr L_spr + goal L_goal + inverse L_inverse + cloning L_cloning

over windows of recorded play (Schwarzer et al. 2021). f, P, h and q are the encoder,
the projection, the transition and the predictor; f' and P' belong to the network's
moving average. x_t is the stack of frames at t, augmented anew each time it is read
(in the paper; see `augment`):

    z_0 = f(x_t),  z_k = h(z_{k-1}, a_{t+k-1}),  u_k = f'(x_{t+k})
    L_spr      mean over k = 1..K of |l2 q(P z_k) - l2 P' u_k|^2
    L_inverse  mean over k = 0..K-1 of the cross-entropy of (P z_k, P' u_{k+1}) to
               a_{t+k}
    L_goal     one step of double C51 from (z_0, a_t); the reward is how much nearer u_1
               is than u_0 to the latent of a later frame
    L_cloning  cross-entropy of the agent's own head at z_0 to a_t, a baseline

The moving average is the engine's (`target_decay` 0.99): a step reads an average that
contains the weights it starts from. The official code keeps two averages. The one of
the Q network is updated likewise. The one of the encoder is updated after it is read,
so it is one step older: it differs by 1% of its distance to the weights. The whole loss
uses batch statistics, there as here; running statistics, and their average, are for
later uses of the encoder.

The average encodes u_0 .. u_K, x_{t+1} once more and the goal in one call, so BatchNorm
pools K + 3 = 8 stacks of each of the b samples. The official code takes three calls, of
6 b, b and b stacks. On equal weights and one batch, compared side by side, this changes
the goal loss by 3e-4 and gradients by up to 0.9 %.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from polyview.errors import InputError
from polyview.objectives.base import Batch
from polyview.rl import distributional
from polyview.training.optimizer import Optimizer, ScalingRule, warm_up_cosine
from sgi import losses
from sgi.heads import ATOMS, support
from sgi.network import Network, features, renormalise

Sees = Literal["average", "online"]
Augmentation = Literal["stacks", "windows", "none"]
Schedule = Literal["constant", "cosine"]
SHIFT = 4  # pixels
INTENSITY = 0.05


class Keys(NamedTuple):
    """Keys for the noise of a step, one per use."""

    own_views: jax.Array
    average_views: jax.Array
    goals: jax.Array
    permutation: jax.Array
    own_head: jax.Array
    average_head: jax.Array


class Seen(NamedTuple):
    """Latents `[b, y, x, c]` by the moving average; `future` has K + 1 after b."""

    future: jax.Array  # u_0 .. u_K
    after: jax.Array  # of x_{t+1} augmented once more, for its return
    goal: jax.Array


@dataclass(frozen=True)
class Pretrain:
    """The weighted sum of SGI's losses; a loss of weight 0 is not computed.

    Views are "frames" `uint8[b, history + jumps, h, w]`, starting with the first frame
    of the stack at t, and "goal" `uint8[b, history, h, w]`. Targets are "action"
    `int[b, jumps]` and "terminal" `bool[b, jumps + 1 or more]`, from t on. `sgi.losses`
    documents `window_terminals` and `goal_noise_scale`. With `inverse_sees="online"`
    the inverse model sees P f(x_{t+k}) and P f(x_{t+k+1}): unlike in the paper, the
    encoder learns from both frames between which an action lies, at each k, and the
    transition does not learn from actions. `augment` documents `augmentation`. Raises
    InputError if the run keeps no moving average or sets `microbatch`.
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
    inverse_sees: Sees = "average"
    augmentation: Augmentation = "stacks"

    def __post_init__(self) -> None:
        if self.jumps < 1:
            raise ValueError(f"jumps={self.jumps}: it must be 1 or more")
        for name, known in ("inverse_sees", Sees), ("augmentation", Augmentation):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not one of {get_args(known)}"
                )

    def __call__(
        self,
        module: Network,
        target_module: Network | None,
        batch: Batch,
        key: jax.Array,
    ) -> tuple[jax.Array, dict[str, Any]]:
        target_module = check(module, target_module)
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
        online = bool(self.inverse) and self.inverse_sees == "online"
        own = stacks if online else stacks[:, :2]
        own = augment(own, _of_rows(keys.own_views, batch), self.augmentation)
        encoded = encode_all(module, own if online else own[:, :1])
        z = encoded[:, 0]
        path = z[:, None]
        if self.spr or self.inverse or self.goal:
            if self.augmentation == "windows":
                keys = keys._replace(average_views=keys.own_views)
            goal = stacked(batch["views"]["goal"], module.history)
            views = jnp.concatenate([stacks, stacks[:, 1:2], goal], 1)
            row_keys = _of_rows(keys.average_views, batch)
            views = augment(views, row_keys, self.augmentation)
            latents = encode_all(target_module, views)
            averaged = Seen(latents[:, :-2], latents[:, -2], latents[:, -1])
        if self.spr or (self.inverse and not online):
            path = roll(module, z, actions)
            targets = target_module.project(averaged.future, train=True)
        if online:  # in one call, which remembers the statistics of z_0
            together = jnp.concatenate([encoded, path[:, 1:]], 1)
            together = module.project(together, train=True)
            seen, predicted = jnp.split(together, [encoded.shape[1]], 1)
            projected = jnp.concatenate([seen[:, :1], predicted], 1)
        else:
            projected = module.project(path, train=True)

        terms: dict[str, jax.Array] = {}
        metrics: dict[str, Any] = {}
        if self.spr:
            distance = losses.self_prediction(module.predict(projected), targets)
            terms["spr"] = (masks.predicted * distance[:, 1:]).mean()
            metrics["spr_now"] = distance[:, 0].mean()
        if self.inverse:
            if online:
                before, later = seen[:, :-1], seen[:, 1:]
            else:
                before, later = projected[:, :-1], targets[:, 1:]
            logits = module.inverse(before, later)
            entropy = losses.cross_entropy(logits, actions)
            terms["inverse"] = (masks.inverse * entropy).mean()
            metrics["inverse_accuracy"] = (logits.argmax(-1) == actions).mean()
        if self.goal:
            after = encoded[:, 1] if online else module.encode(own[:, 1], train=True)
            loss, error = self._goal(
                module, target_module, z, after, averaged, masks, batch, keys
            )
            terms["goal"], metrics["goal_error"] = loss.mean(), error.mean()
        if self.cloning:
            logits = module.head(z, key=keys.own_head)
            entropy = losses.behaviour_cloning(logits, actions[:, 0], support())
            terms["cloning"] = entropy.mean()
        metrics |= chances(terms, module.actions)
        metrics["cosine"] = losses.mean_cosine(projected[:, 0])
        metrics["features"] = {"frames": features(z, projected[:, 0])}
        loss = sum(getattr(self, name) * term for name, term in terms.items())
        return loss, terms | metrics

    def _goal(
        self,
        module: Network,
        target_module: Network,
        z: jax.Array,
        after: jax.Array,
        averaged: Seen,
        masks: losses.Masks,
        batch: Batch,
        keys: Keys,
    ) -> tuple[jax.Array, jax.Array]:
        """Return goal loss and divergence, `[b]` each; `after` is f(x_{t+1})."""
        b = len(z)
        goals = losses.noisy_goals(
            averaged.goal.reshape(b, -1),
            _of_rows(keys.goals, batch),
            noise=self.goal_noise,
            goal_noise_scale=self.goal_noise_scale,
        )
        goals = losses.permuted_goals(
            goals, _of_rows(keys.permutation, batch), chance=self.goal_permutation
        )
        goals = renormalise(goals)
        reward = masks.reward * losses.goal_reward(
            averaged.future[:, 0].reshape(b, -1),
            averaged.future[:, 1].reshape(b, -1),
            goals,
            distance_scale=self.distance_scale,
            reward_scale=self.reward_scale,
        )
        goals = goals.reshape(z.shape)
        # A network draws its noise once and uses it for all outputs of a step.
        logits = module.goal_head(z, goals, key=keys.own_head)
        choice = module.goal_head(after, goals, key=keys.own_head)
        returns = target_module.goal_head(averaged.after, goals, key=keys.average_head)
        target = distributional.double_target(
            jax.lax.stop_gradient(choice),
            returns,
            reward,
            self.discount * masks.bootstrap,
            support(),
        )
        taken = distributional.at(logits, batch["targets"]["action"][:, 0])
        return distributional.loss_and_divergence(jax.nn.log_softmax(taken), target)


def chances(terms: Mapping[str, Any], actions: int) -> dict[str, jax.Array]:
    """Return `NAME_chance` of terms and accuracies: their values for guesses.

    Distances are those of orthogonal vectors; entropies those of uniform answers.
    """
    known = {"spr": {"spr": 2.0, "spr_now": 2.0}}
    known["inverse"] = {"inverse": log(actions), "inverse_accuracy": 1 / actions}
    known["goal"], known["cloning"] = {"goal": log(ATOMS)}, {"cloning": log(actions)}
    return {
        f"{name}_chance": jnp.float32(value)
        for term in terms
        for name, value in known[term].items()
    }


def stacked(frames: jax.Array, history: int) -> jax.Array:
    """Stack `frames[b, t, h, w]` to `[b, t - history + 1, h, w, history]`."""
    frames = jnp.asarray(frames)
    count = frames.shape[1] - history + 1
    return jnp.stack([frames[:, k : k + count] for k in range(history)], -1)


def augment(
    stacks: jax.Array, keys: jax.Array, draws: Augmentation = "stacks"
) -> jax.Array:
    """Shift `stacks: uint8[b, m, h, w, c]` and scale their brightness; return floats.

    Shifts are -4..4 pixels each way, with edges repeated; the factor is 1 + 0.05 e with
    e normal, clipped to [-2, 2] (Yarats et al. 2021). Each of the "stacks" has its own
    draw, as in the paper: stack a of row i is a function of stacks[i, a], keys[i] and
    a. "windows": all stacks of row i share one draw, so that they differ only by the
    play. "none": stacks are only converted to floats.
    """
    if draws == "none":
        return stacks / jnp.asarray(255.0)

    def of_stack(stack: jax.Array, key: jax.Array) -> jax.Array:
        place, light = jax.random.split(key)
        y, x = jax.random.randint(place, (2,), 0, 2 * SHIFT + 1)
        edge = (SHIFT, SHIFT)
        padded = jnp.pad(stack, (edge, edge, (0, 0)), mode="edge")
        moved = jax.lax.dynamic_slice(padded, (y, x, 0), stack.shape)
        factor = 1 + INTENSITY * jnp.clip(jax.random.normal(light), -2, 2)
        return moved.astype(factor.dtype) * (factor / 255)

    def of_row(row: jax.Array, key: jax.Array) -> jax.Array:
        numbers = jnp.arange(len(row)) * (draws == "stacks")
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        return jax.vmap(of_stack)(row, keys)

    return jax.vmap(of_row)(stacks, keys)


def roll(module: Network, latent: jax.Array, actions: jax.Array) -> jax.Array:
    """Return `latent[b, y, x, c]` and the K latents predicted for `actions[b, K]`."""
    path = [latent]
    for k in range(actions.shape[1]):
        path.append(module.transition(path[-1], actions[:, k], train=True))
    return jnp.stack(path, 1)


def adam(
    *,
    steps: int,
    batch_size: int,
    learning_rate: ScalingRule,
    schedule: Schedule = "constant",
    epsilon: float = 1.5e-4,
    clip: float = 10.0,
) -> Optimizer:
    """Return Adam after `cut_by_group(clip)`.

    schedule: the learning rate is "constant", as in the paper, or falls to 0 by half a
    "cosine", so that running statistics are those of the last weights. Raises
    ValueError for another name.
    """
    if schedule not in get_args(Schedule):
        raise ValueError(f"schedule={schedule!r} is not one of {get_args(Schedule)}")
    peak = learning_rate(batch_size)
    constant = schedule == "constant"
    rates = (
        optax.constant_schedule(peak) if constant else warm_up_cosine(peak, steps, 0)
    )
    transformation = optax.chain(cut_by_group(clip), optax.adam(rates, eps=epsilon))
    return Optimizer(transformation, rates)


def cut_by_group(norm: float) -> optax.GradientTransformation:
    """Clip gradients to a norm: encoder and heads together, transition separately."""
    groups = {"encoder": "q", "head": "q", "goal_head": "q", "transition": "model"}
    cut = optax.clip_by_global_norm(norm)
    return optax.partition(
        {"q": cut, "model": cut, "rest": optax.identity()},
        lambda params: {
            name: jax.tree.map(lambda _, name=name: groups.get(name, "rest"), part)
            for name, part in params.items()
        },
    )


def _of_rows(key: jax.Array, batch: Batch) -> jax.Array:
    """Return a key for each row, by its index: the same on any number of devices."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])


def encode_all(network: Network, views: jax.Array) -> jax.Array:
    """Encode `views[b, m, ...]` in one call, which normalises all of them together."""
    b, m = views.shape[:2]
    latents = network.encode(views.reshape(b * m, *views.shape[2:]), train=True)
    return latents.reshape(b, m, *latents.shape[1:])


def check(module: Any, target_module: Network | None) -> Network:
    """Return the target module. Raises InputError without one, or under microbatch."""
    if not isinstance(module, Network):
        raise InputError(
            "microbatch: SGI reads more of a network than its features; set it to None"
        )
    if target_module is None:
        raise InputError(
            "SGI's targets are a moving average; set target_decay, such as 0.99"
        )
    return target_module
