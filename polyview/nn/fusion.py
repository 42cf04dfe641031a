"""Predict from the features of several modalities, any of which may be missing.

    h = mean of the representations of the kept views;   z = head(h)

The views of all modalities count alike: two drawings of a concept, and its name, are
three views.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from polyview.nn.towers import Features, Tower, Towers


class LateFusion(Towers):
    """Towers, and a head for each target on the mean of their representations.

    `heads` are `head(features, rngs=)` by target. Called as `Towers`; adds to its
    features, under the target's name, z[b, n, out] of the head and h[b, n, d'], the
    mean over each of the n choices of views from `readable`, zero for an empty choice.
    With `alone`, single views follow, sorted by modality, zeros for a missing one.
    `critic(rngs=)` makes the model's own critic, for objectives that ask for it. An
    encoder with BatchNorm still sees zeros for missing views: use one without if views
    are missing. Raises ValueError if the representations differ in width, or if a
    target has the name of a modality.
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
            raise ValueError(
                f"representations to be averaged differ in width: {widths}"
            )
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
        # The contents of a missing view, perhaps NaN, must not reach an encoder.
        views = {
            name: only(x, batch["present"][name]) for name, x in batch["views"].items()
        }
        features = super().__call__({**batch, "views": views}, key=key, train=train)
        names = sorted(features)

        def joined(parts: Mapping) -> jax.Array:
            return jnp.concatenate([parts[name] for name in names], 1)

        single = joined({name: features[name].h for name in names})
        single = only(single, joined(batch["present"]))
        h = jax.vmap(mean_of, (None, 1), 1)(single, readable(batch, names))
        if self.alone:
            h = jnp.concatenate([h, single], 1)
        for target, head in self.heads.items():
            b, n, _ = h.shape
            z = head(h.reshape(b * n, -1), train=train)
            z = z.reshape(b, n, *z.shape[1:])
            features[target] = Features(z=z, h=h, local=None)
        return features


def readable(batch: Mapping, names: Sequence[str]) -> jax.Array:
    """The views that each of n predictions may read, bool[b, n, views].

    `batch["kept"]` has for each modality one choice, bool[b, m], or one a prediction,
    bool[b, n, m], made from features that are encoded once. Without it, `present` is
    the choice. Missing views are never read. The views of `names` are concatenated.
    """
    masks = []
    for name in names:
        present = batch["present"][name][:, None]
        kept = batch["kept"][name] if "kept" in batch else present
        masks.append(present & (kept if kept.ndim == 3 else kept[:, None]))
    return jnp.concatenate(masks, -1)


def mean_of(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of `x[b, m, ...]` over the views in `mask: bool[b, m]`; zero if there are
    none. Other views do not matter, even if NaN."""
    count = jnp.maximum(mask.sum(1), 1).astype(x.dtype)
    return only(x, mask).sum(1) / count.reshape(-1, *[1] * (x.ndim - 2))


def only(x: jax.Array, mask: jax.Array) -> jax.Array:
    """`x[b, m, ...]` where `mask: bool[b, m]` is True, zeros elsewhere."""
    return jnp.where(mask.reshape(*mask.shape, *[1] * (x.ndim - 2)), x, 0)
