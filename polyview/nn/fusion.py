"""From the features of several modalities to a prediction, whichever of them are there.

    h = mean of the representations of the looks that are kept;   z = head(h)

A look is one view of one modality: two drawings of a concept, and its name, are three.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from polyview.nn.towers import Features, Tower, Towers


class LateFusion(Towers):
    """Towers, and a head for each target on the mean of their representations.

    `heads` are `head(features, rngs=)` by target. Called as `Towers`; beside the
    features of each modality it returns, under the target's name, z[b, n, out] of the
    head and h[b, n, d']: of the mean over each of the n choices of looks that
    `readable` finds in the batch, zero where there is none; with `alone` each look by
    itself follows, sorted by modality, zeros for one that is not present.
    `critic(rngs=)` makes the model's own critic, for objectives that ask for it. Raises
    ValueError where the representations differ in width, and for a target named as a
    modality. An encoder with BatchNorm still sees zeros in the place of missing views:
    where views are missing, take one without.
    """

    def __init__(
        self,
        *,
        towers: Mapping[str, Callable[..., Tower]],
        heads: Mapping[str, Callable],
        alone: bool = False,
        critic: Callable | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(towers, rngs=rngs)
        widths = {name: tower.encoder.features for name, tower in self.towers.items()}
        if len(set(widths.values())) != 1:
            raise ValueError(f"representations that are averaged differ: {widths}")
        if both := set(towers) & set(heads):
            raise ValueError(f"{sorted(both)[0]!r} names a modality and a target")
        (width,) = set(widths.values())
        self.heads = nnx.Dict(
            {name: head(width, rngs=rngs) for name, head in heads.items()}
        )
        self.alone = alone
        if critic is not None:
            self.critic = critic(rngs=rngs)

    def __call__(
        self, batch: Mapping, *, key: jax.Array | None, train: bool
    ) -> dict[str, Features]:
        # Whatever stands in a missing view, NaN say, must not reach an encoder.
        views = {
            name: only(x, batch["present"][name]) for name, x in batch["views"].items()
        }
        features = super().__call__({**batch, "views": views}, key=key, train=train)
        names = sorted(features)

        def joined(parts: Mapping) -> jax.Array:
            return jnp.concatenate([parts[name] for name in names], 1)

        looks = joined({name: features[name].h for name in names})
        looks = only(looks, joined(batch["present"]))
        h = jax.vmap(mean_of, (None, 1), 1)(looks, readable(batch, names))
        if self.alone:
            h = jnp.concatenate([h, looks], 1)
        for target, head in self.heads.items():
            b, n, _ = h.shape
            z = head(h.reshape(b * n, -1), train=train)
            z = z.reshape(b, n, *z.shape[1:])
            features[target] = Features(z=z, h=h, local=None)
        return features


def readable(batch: Mapping, names: Sequence[str]) -> jax.Array:
    """The looks that each of n predictions may read, bool[b, n, looks].

    `batch["kept"]`: bool[b, m] of each modality, one choice, or bool[b, n, m], as many
    predictions from features that are encoded once; without it, `batch["present"]`.
    Never what is not present. The looks of the modalities `names` stand side by side.
    """
    found = []
    for name in names:
        present = batch["present"][name][:, None]
        kept = batch["kept"][name] if "kept" in batch else present
        found.append(present & (kept if kept.ndim == 3 else kept[:, None]))
    return jnp.concatenate(found, -1)


def mean_of(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of `x[b, m, ...]` over the views that `mask: bool[b, m]` marks, zero where
    it marks none, whatever stands in the others."""
    count = jnp.maximum(mask.sum(1), 1).astype(x.dtype)
    return only(x, mask).sum(1) / count.reshape(-1, *[1] * (x.ndim - 2))


def only(x: jax.Array, mask: jax.Array) -> jax.Array:
    """`x[b, m, ...]` where `mask: bool[b, m]` marks it, zeros elsewhere."""
    return jnp.where(mask.reshape(*mask.shape, *[1] * (x.ndim - 2)), x, 0)
