"""Behaviour cloning: the loss of an expert's actions, alone and beside PPO."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from agents.generalist import Generalist, first_rows
from polyview.data.mixture import DOMAIN, most_rows, of_domain, shares, under
from polyview.errors import InputError, check_range, nearest
from polyview.objectives.base import Batch


@dataclass(frozen=True)
class Cloning:
    """The mean over present steps of the adapter's loss of the expert's action.

    The module is `agents.policy:Policy`, the views are `agents.data:Context`. The loss
    of an action of several tokens is -sum_m log p(token_m | those before).
    """

    def __call__(
        self, module: Any, target_module: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        if "action" not in batch["targets"]:
            raise InputError(
                "cloning needs the expert's actions; set views to agents.data:Context"
            )
        if not hasattr(module, "loss"):
            raise InputError("cloning takes a batch whole; set microbatch to None")
        losses, metrics, present = module.loss(batch, key, train=True)
        count = jnp.maximum(present.sum(), 1)

        def mean(values: jax.Array) -> jax.Array:
            return jnp.where(present, values, 0).sum() / count

        return mean(losses), {name: mean(value) for name, value in metrics.items()}


@dataclass(frozen=True)
class MixedCloning:
    """The weighted sum over domains of the loss of `Cloning` in each.

        sum_d w_d L_d

    The module is `agents.generalist:Generalist`, the batch of a
    `polyview.data.mixture:Mixture` of its domains. Only a domain's own rows pass its
    policy. Metrics are called "domain/name".

    Attributes:
      shares: the weights of domains in the mixture, which decide how many rows each
        may have in a batch. If a batch has more, the loss is NaN.
      weights: {domain: w}; a domain that is not named has 1.

    Raises InputError for other domains than the module's, a batch without them, weights
    that are all 0, and a domain that has less than one row of a batch on average: where
    it is absent, its loss would count as 0.
    """

    shares: Mapping[str, float]
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_range(0.0, **dict(self.weights))

    def __call__(
        self, module: Generalist, target_module: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        if not hasattr(module, "domains"):
            raise InputError("cloning takes a batch whole; set microbatch to None")
        if DOMAIN not in batch["targets"]:
            raise InputError(
                "there is no domain in the batch; set source and views to those of "
                "polyview.data.mixture"
            )
        if set(self.shares) != set(module.domains):
            raise InputError(
                f"the mixture has the domains {', '.join(sorted(self.shares))}, the "
                f"model {', '.join(module.domains)}"
            )
        domains = batch["targets"][DOMAIN]
        rows = self._rows(module.domains, len(domains))
        loss = jnp.zeros(())
        told: dict[str, Any] = {}
        for number, name in enumerate(module.domains):
            if not rows[name]:
                continue
            # Its own rows first, then others, in which nothing of it is present.
            order = jnp.argsort(domains != number, stable=True)
            own = first_rows(of_domain(batch, name), order, rows[name])
            policy, noise = module.policies[name], jax.random.fold_in(key, number)
            own_loss, metrics = Cloning()(policy, None, own, noise)
            loss += self.weights.get(name, 1.0) * own_loss
            left_out = (domains == number).sum() > rows[name]
            loss = jnp.where(left_out, jnp.nan, loss)
            told |= {f"{name}/loss": own_loss}
            told |= {f"{name}/{what}": value for what, value in metrics.items()}
        return loss, told

    def _rows(self, known: Sequence[str], batch_size: int) -> dict[str, int]:
        """Return the most rows of each domain in a batch."""
        for name in self.weights:
            if name not in known:
                raise InputError(f"objective.weights: {name}{nearest(name, known)}")
        if not any(self.weights.get(name, 1.0) for name in known):
            raise InputError("objective.weights are all 0; raise one")
        exact = zip(self.shares, shares(self.shares, batch_size), strict=True)
        for name, share in exact:
            if 0 < share < 1:
                raise InputError(
                    f"the domain {name} has {float(share):.2g} rows of a batch of "
                    f"{batch_size}; raise batch_size, or its share of the mixture"
                )
        return most_rows(self.shares, batch_size)


@dataclass(frozen=True)
class PlayAndClone:
    """PPO in each domain that is played, and cloning of a mixture of all (GEA).

        sum_{d played} L_PPO(d) + weight L_clone

    (Szot et al. 2025.) The batch is that of `polyview.rl.learner`, and `beside` one of
    the mixture. Each domain's advantages are standardised alone, if `play` does so.

    Attributes:
      play: `polyview.rl.ppo:PPO`.
      clone: `MixedCloning`.
      weight: of cloning; with 0 it is not computed.
    """

    play: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    clone: MixedCloning
    weight: float = 0.1

    def __post_init__(self) -> None:
        check_range(0.0, weight=self.weight)

    def __call__(
        self, module: Generalist, target_module: Any, batch: Mapping[str, Any], key: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        loss, farthest = jnp.zeros(()), []
        told: dict[str, jax.Array] = {}
        rest = {name: part for name, part in batch.items() if name != "beside"}
        for number, name in enumerate(module.playing):
            count = len(module.playing)
            at = jnp.arange(number, len(rest["taken"]), count)
            own = first_rows(rest, at, len(at))
            own["play"] |= {"views": under(own["play"]["views"], name)}
            own_loss, metrics = self.play(module.policies[name], None, own, key)
            farthest.append(metrics.pop("farthest_ratio"))
            loss += own_loss
            told |= {f"{name}/{what}": value for what, value in metrics.items()}
        told["farthest_ratio"] = jnp.stack(farthest).max()
        if not self.weight:
            return loss, told
        if "beside" not in batch:
            raise InputError("there is nothing to clone: give the config key beside")
        cloning, metrics = self.clone(module, None, batch["beside"], key)
        told |= {"cloning": cloning}
        told |= {f"cloning/{name}": value for name, value in metrics.items()}
        return loss + self.weight * cloning, told
