"""The agent SGI is fine-tuned into: Rainbow with SPR (Schwarzer et al. 2020, 2021).

    loss = mean_i weight_i (L_C51_i + spr L_SPR_i)

over steps sampled from `polyview.rl.replay`, with the weights of prioritised replay.
f, P, h and q are the encoder, the projection of the agent's own head, the transition
and the predictor; f' and P' belong to the network's moving average. Each x is augmented
anew:

    L_C51   cross-entropy of Z(f(x_t), a_t) to return + discount Z(f(x_{t+n}), a*), a*
            the action of the highest expected return there (Bellemare et al. 2017)
    L_SPR   mean over k = 1..K of |l2 q(P z_k) - l2 P' f'(x_{t+k})|^2, steps past an
            episode end left out, z_0 = f(x_t), z_k = h(z_{k-1}, a_{t+k-1})

State k of L_SPR requires that none of the steps t..t+k-1 ended the episode. The
official code requires it of step t+k too, one too many. It reads ends one step late as
well, but only in pre-training (`window_terminals` of `sgi.losses.windows`).

There is no other target network: the official code copies the network into its target
at each step, so it bootstraps from the network itself, under fresh noise. With `double`
it augments x_{t+n} for each of the two, here once. Its average also encodes x_t, for a
term that is only logged, so BatchNorm pools K + 1 stacks of a sample there, here K. The
update is `polyview.training.step.make_step` with a `target_decay` of 0.99.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from polyview.model import merge_module, split_module
from polyview.objectives.base import Batch
from polyview.rl.distributional import (
    at,
    double_target,
    expected,
    loss_and_divergence,
)
from polyview.training.optimizer import Optimizer
from sgi import losses, pretrain
from sgi.heads import support
from sgi.network import Network

FIRST = ("advantage1", "value1")  # layers of a head that read the latent
SECOND = ("advantage2", "value2")
SIGMAS = ("kernel_sigma", "bias_sigma")


class Keys(NamedTuple):
    """Keys for the noise of a step, one per use."""

    own_views: jax.Array
    average_views: jax.Array
    head: jax.Array
    bootstrap: jax.Array


@dataclass(frozen=True)
class Rainbow:
    """Distributional n-step Q-learning plus `spr` times self-prediction.

    With `double`, a* is chosen under the noise of the prediction (double Q-learning,
    van Hasselt et al. 2016), as in the official code, whose network also keeps the
    statistics of x_{t+n}. Without it, a* is chosen under the noise that gives its
    return (Bellemare et al. 2017); only the official target network then sees x_{t+n},
    so running statistics are those of x_t alone.

    The batch comes from `polyview.rl.replay.sample`, which sets discount and n. Besides
    scalars, the metrics hold "priority" `[b]`: the divergence of each row's prediction,
    for `polyview.rl.replay.update_priorities`. With `spr` 0, self-prediction is not
    computed. Raises InputError if the run keeps no moving average or sets `microbatch`.
    """

    spr: float = 5.0
    jumps: int = 5
    double: bool = True

    def __post_init__(self) -> None:
        if type(self.double) is not bool:
            raise ValueError(f"double={self.double!r}: it must be True or False")
        if self.jumps < 1:
            raise ValueError(f"jumps={self.jumps}: it must be 1 or more")

    def __call__(
        self,
        module: Network,
        target_module: Network | None,
        batch: Batch,
        key: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        target_module = pretrain.check(module, target_module)
        keys = Keys(*jax.random.split(key, len(Keys._fields)))
        targets = batch["targets"]
        frames = batch["views"]["frames"][:, : module.history + self.jumps]
        stacks = pretrain.stacked(frames, module.history)
        after = pretrain.stacked(batch["views"]["next"], module.history)
        views = jnp.concatenate([stacks[:, :1], after], 1)
        views = pretrain.augment(views, jax.random.split(keys.own_views, len(views)))
        z = module.encode(views[:, 0], train=True)

        logits = module.head(z, key=keys.head)
        loss, divergence = self._distributional(
            module, logits, views[:, 1], targets, keys
        )
        metrics = {
            "distributional": loss.mean(),
            "error": divergence.mean(),
            "value": expected(logits, support()).max(-1).mean(),
            "priority": jax.lax.stop_gradient(divergence),
        }
        if self.spr:
            row_keys = jax.random.split(keys.average_views, len(stacks))
            later = pretrain.augment(stacks[:, 1:], row_keys)
            distance, cosine = self._spr(module, target_module, z, later, targets)
            metrics |= {"spr": distance.mean(), "cosine": cosine}
            loss += self.spr * distance
        return (targets["weight"] * loss).mean(), metrics

    def _distributional(
        self,
        module: Network,
        logits: jax.Array,
        after: jax.Array,
        targets: Mapping[str, jax.Array],
        keys: Keys,
    ) -> tuple[jax.Array, jax.Array]:
        """Return loss and divergence, `[b]` each; `after` is the stack at t + n."""
        reader = module if self.double else copied(module)
        after = jax.lax.stop_gradient(reader.encode(after, train=True))
        returns = module.head(after, key=keys.bootstrap)
        target = double_target(
            module.head(after, key=keys.head) if self.double else returns,
            returns,
            targets["return"],
            targets["discount"],
            support(),
        )
        taken = at(logits, targets["action"][:, 0])
        return loss_and_divergence(
            jax.nn.log_softmax(taken), jax.lax.stop_gradient(target)
        )

    def _spr(
        self,
        module: Network,
        target_module: Network,
        z: jax.Array,
        later: jax.Array,
        targets: Mapping[str, jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        """Return the loss `[b]` of stacks from t + 1 on, and the rows' mean cosine."""
        masks = losses.windows(targets["terminal"], jumps=self.jumps)
        path = pretrain.roll(module, z, targets["action"][:, : self.jumps])[:, 1:]
        projected = module.project(path, train=True, head=module.head)
        averaged = pretrain.encode_all(target_module, later)
        averaged = target_module.project(averaged, train=True, head=target_module.head)
        averaged = jax.lax.stop_gradient(averaged)
        distance = losses.self_prediction(module.predict(projected), averaged)
        cosine = losses.mean_cosine(projected[:, 0])
        return (masks.predicted * distance).mean(1), cosine


def copied(module: Network) -> Network:
    """Return a copy, whose running statistics are its own."""
    return cast(Network, merge_module(*split_module(module)))


def act(
    module: Network,
    stacks: jax.Array,
    *,
    noise: jax.Array | None,
    epsilon: float | jax.Array,
    key: jax.Array,
) -> jax.Array:
    """Return the actions `int32[n]` for `stacks: uint8[n, h, w, history]`.

    Takes the action of the highest expected return or, with probability `epsilon`, a
    random one drawn from `key`. `noise` is the key of the heads' noise, one draw for
    all rows; None adds none. Uses running statistics and no augmentation.
    """
    latents = module.encode(stacks, train=False)
    returns = expected(module.head(latents, key=noise), support())
    best = returns.argmax(-1).astype(jnp.int32)
    action_key, chance_key = jax.random.split(key)
    drawn = jax.random.randint(action_key, best.shape, 0, module.actions)
    return jnp.where(jax.random.uniform(chance_key, best.shape) < epsilon, drawn, best)


def grouped_adam(
    *,
    steps: int,
    batch_size: int,
    encoder: float,
    first: float,
    rest: float,
    clip: float | None = None,
    epsilon: float = 1.5e-4,
) -> Optimizer:
    """Return Adam with three constant learning rates; the schedule is that of `rest`.

    `encoder` applies to the encoder, `first` to the first linear layers of both heads.
    `clip` clips gradients as in pre-training; None does not clip.
    """
    del steps, batch_size
    rates = {"encoder": encoder, "first": first, "rest": rest}
    transformation = optax.chain(
        optax.identity() if clip is None else pretrain.cut_by_group(clip),
        optax.scale_by_adam(eps=epsilon),
        optax.partition(
            {name: optax.scale_by_learning_rate(r) for name, r in rates.items()},
            lambda params: jax.tree_util.tree_map_with_path(_group, params),
        ),
    )
    return Optimizer(transformation, optax.constant_schedule(rest))


def transfer_map(run: str, *, standardise: bool = False) -> dict:
    """Return the `init` of an agent that starts from a pre-trained network.

    standardise: whether the networks standardise what they project.

    The donor gives all weights and statistics except the agent's head. The head's first
    linear layers come from the donor's goal head; its second layers start fresh, as do
    all noise sigmas. The agent's moving average starts at the donor's weights, as any
    average here; in the official code it starts at the donor's average.
    """
    without_noise = {"from": run, "fresh": [f"*.{name}" for name in SIGMAS]}
    whole = ["encoder", "transition", "predictor", "inverse"]
    whole += ["standardise"] * standardise
    return (
        dict.fromkeys(whole, run)
        | {"goal_head": {**without_noise, "path": "goal_head"}}
        | {f"head.{n}": {**without_noise, "path": f"goal_head.head.{n}"} for n in FIRST}
    )


def _group(path: tuple[Any, ...], leaf: jax.Array) -> str:
    """Return the name of a parameter's learning rate."""
    del leaf
    names = [entry.key for entry in path]
    if names[0] == "encoder":
        return "encoder"
    return "first" if set(names) & set(FIRST) else "rest"
