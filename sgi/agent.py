"""The agent SGI is fine-tuned into: Rainbow with SPR (Schwarzer et al. 2020, 2021).

    loss = mean_i weight_i (L_C51_i + spr L_SPR_i)

of steps out of `polyview.rl.replay`, by the weights of prioritised replay. With f, P,
h, q the encoder, the projection of the agent's own head, the transition and the
predictor, f' and P' those of the network's moving average, every x augmented anew:

    L_C51   cross-entropy of Z(f(x_t), a_t) to return + discount Z(f(x_{t+n}), a*), a*
            the action of the highest expected return there (Bellemare et al. 2017)
    L_SPR   mean over k = 1..K of |l2 q(P z_k) - l2 P' f'(x_{t+k})|^2, steps behind an
            end left out, z_0 = f(x_t), z_k = h(z_{k-1}, a_{t+k-1})

Ends are read where they are; the official code, here as in pre-training, reads them
one step late and one too many (`window_terminals` of `sgi.pretrain`).

There is no target network besides: the official code copies its own into it at each
step, so the bootstrap is of the network itself, under noise drawn anew. a* is chosen
under the noise of the prediction. The update is `polyview.training.step.make_step` with
a `target_decay` of 0.99.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from polyview.rl.distributional import (
    at,
    double_target,
    expected,
    loss_and_divergence,
)
from polyview.training.optimizer import Optimizer
from sgi import losses, pretrain
from sgi.heads import Head, support
from sgi.network import Network

FIRST = ("advantage1", "value1")  # layers of a head that read the latent
SECOND = ("advantage2", "value2")
SIGMAS = ("kernel_sigma", "bias_sigma")


class Keys(NamedTuple):
    """The noise of a step, by its use."""

    own_looks: jax.Array
    average_looks: jax.Array
    head: jax.Array
    bootstrap: jax.Array


@dataclass(frozen=True)
class Rainbow:
    """Distributional n-step double Q-learning, and `spr` times self-prediction.

    The batch is that of `polyview.rl.replay.sample`, whose discount and n it takes. The
    metrics hold, besides scalars, "priority" `[b]`: the divergence of each row's
    prediction, for `polyview.rl.replay.update_priorities`. With `spr` 0 no
    self-prediction is computed. Raises InputError where the run keeps no moving average
    or cuts batches into slices.
    """

    spr: float = 5.0
    jumps: int = 5

    def __post_init__(self):
        if self.jumps < 1:
            raise ValueError(f"jumps={self.jumps}: a window has 1 or more")

    def __call__(self, module: Network, target_module: Network | None, batch, key):
        pretrain.check(module, target_module)
        keys = Keys(*jax.random.split(key, len(Keys._fields)))
        targets = batch["targets"]
        frames = batch["views"]["frames"][:, : module.history + self.jumps]
        stacks = pretrain.stacked(frames, module.history)
        after = pretrain.stacked(batch["views"]["next"], module.history)
        own = jnp.concatenate([stacks[:, :1], after], 1)
        own = pretrain.augment(own, jax.random.split(keys.own_looks, len(own)))
        z = module.encode(own[:, 0], train=True)

        logits = module.head(z, key=keys.head)
        loss, divergence = self._distributional(
            module, logits, own[:, 1], targets, keys
        )
        metrics = {
            "distributional": loss.mean(),
            "error": divergence.mean(),
            "value": expected(logits, support()).max(-1).mean(),
            "priority": jax.lax.stop_gradient(divergence),
        }
        if self.spr:
            looks = jax.random.split(keys.average_looks, len(stacks))
            looks = pretrain.augment(stacks[:, 1:], looks)
            apart, cosine = self._spr(module, target_module, z, looks, targets)
            metrics |= {"spr": apart.mean(), "cosine": cosine}
            loss += self.spr * apart
        return (targets["weight"] * loss).mean(), metrics

    def _distributional(self, module, logits, after, targets, keys):
        """The loss and the divergence, `[b]` each; `after` is the stack at t + n."""
        after = jax.lax.stop_gradient(module.encode(after, train=True))
        target = double_target(
            module.head(after, key=keys.head),
            module.head(after, key=keys.bootstrap),
            targets["return"],
            targets["discount"],
            support(),
        )
        taken = at(logits, targets["action"][:, 0])
        return loss_and_divergence(
            jax.nn.log_softmax(taken), jax.lax.stop_gradient(target)
        )

    def _spr(self, module, target_module, z, looks, targets):
        """The loss `[b]` of the stacks from t + 1 on, and the mean cosine of rows."""
        masks = losses.windows(targets["terminal"], jumps=self.jumps)
        path = pretrain.roll(module, z, targets["action"][:, : self.jumps])[:, 1:]
        projected = _project(module.head, path)
        seen = pretrain.encode_all(target_module, looks)
        seen = jax.lax.stop_gradient(_project(target_module.head, seen))
        apart = losses.self_prediction(module.predict(projected), seen)
        cosine = losses.mean_cosine(projected[:, 0])
        return (masks.predicted * apart).mean(1), cosine


def act(
    module: Network,
    stacks: jax.Array,
    *,
    noise: jax.Array | None,
    epsilon: float | jax.Array,
    key: jax.Array,
) -> jax.Array:
    """The actions `int32[n]` on `stacks: uint8[n, h, w, history]`.

    The action of the highest expected return, or with probability `epsilon` any, by
    `key`. `noise` is the key of the heads' noise, one draw for all rows; None is none.
    Running statistics, no augmentation.
    """
    latents = module.encode(stacks, train=False)
    returns = expected(module.head(latents, key=noise), support())
    best = returns.argmax(-1).astype(jnp.int32)
    which, whether = jax.random.split(key)
    other = jax.random.randint(which, best.shape, 0, module.actions)
    return jnp.where(jax.random.uniform(whether, best.shape) < epsilon, other, best)


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
    """Adam at three constant rates: of the encoder, of the first linear layers of both
    heads, of the rest. Gradients are cut as in pre-training, or not at all.

    The schedule is that of the rest.
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


def transfer_map(run: str) -> dict:
    """The `init` of an agent that begins with a pre-trained network.

    All is the donor's, statistics included, but for the agent's head: its first linear
    layers are those of the donor's goal head, its second ones start fresh, as do all
    sigmas of noise.
    """
    quiet = {"from": run, "fresh": [f"*.{name}" for name in SIGMAS]}
    same = ("encoder", "transition", "predictor", "inverse")
    return (
        dict.fromkeys(same, run)
        | {"goal_head": {**quiet, "path": "goal_head"}}
        | {f"head.{n}": {**quiet, "path": f"goal_head.head.{n}"} for n in FIRST}
    )


def _group(path, leaf) -> str:
    """Which rate a parameter has."""
    del leaf
    names = [entry.key for entry in path]
    if names[0] == "encoder":
        return "encoder"
    return "first" if set(names) & set(FIRST) else "rest"


def _project(head: Head, latents: jax.Array) -> jax.Array:
    """Projections `[b, k, d]` of `latents[b, k, ...]`, by a head's first layers."""
    b, k = latents.shape[:2]
    return head.project(latents.reshape(b * k, -1)).reshape(b, k, -1)
