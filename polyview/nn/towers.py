"""From a batch of views to features: one tower for each modality.

A tower has photometry (colour noise, on the device), an encoder f and a projector g:

    h = f(normalise(photometry(views))),    z = g(h)

The objective reads z, probes read h. Noise is keyed by the index of a row, not by its
place in the batch, so a row's noise is the same on any number of devices.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from polyview.errors import TINY, InputError, check_range
from polyview.nn.fixed import freeze


class Features(NamedTuple):
    """Output of a tower for b rows of m views."""

    z: jax.Array  # [b, m, d], the projection, for objectives
    h: jax.Array  # [b, m, d'], the representation, for probes
    local: jax.Array | None  # [b, m, p, c], the feature map, if `local`
    real: jax.Array | None = None  # bool[b, m, p]: not padding; None where all are


class Tower(nnx.Module):
    """Encode the views of one modality.

    `encoder(rngs=)` makes a module with an attribute `features` and
    `encoder(x[n, ...], train=, key=) -> (h[n, features], local[n, p, c])`, with a third
    output `real: bool[n, p]` if positions may be padding; key[n] has one key a view;
    `projector(features, rngs=)` makes one with `projector(h, train=) -> z[n, d]`.
    `photometry(images[b, m, h, w, c], keys[b])`, of uint8 or floats in [0, 1], runs in
    training only. `mean` and `std` normalise the last axis (one number, or one a
    channel), except of integers that are not images, such as tokens. With `local`, the
    features include the encoder's feature map; `local=projector`, called with the map's
    width (`encoder.local_features`, else `features`), projects each position. A frozen
    encoder never changes, nor its BatchNorm's statistics, and has no noise: for probes.
    """

    def __init__(
        self,
        *,
        encoder: Callable,
        projector: Callable,
        photometry: Callable | None = None,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        local: bool | Callable = False,
        frozen: bool = False,
        rngs: nnx.Rngs,
    ):
        check_range(TINY, std=std)
        self.encoder = encoder(rngs=rngs)
        if frozen:
            freeze(self.encoder)
        self.projector = projector(self.encoder.features, rngs=rngs)
        self.photometry = photometry
        self.mean, self.std = _numbers(mean), _numbers(std)
        self.local, self.frozen = bool(local), frozen
        width = getattr(self.encoder, "local_features", self.encoder.features)
        self.project_local = local(width, rngs=rngs) if callable(local) else None

    def __call__(
        self, views: jax.Array, *, index: jax.Array, key: jax.Array | None, train: bool
    ) -> Features:
        """Features of `views[b, m, ...]`: uint8 images, floats, or tokens.

        Row i's noise is a function of (key, index[i]). Raises ValueError for images of
        other channels than the encoder's `in_channels`.
        """
        views = jnp.asarray(views)
        m = views.shape[1]
        if train:
            views = self.augmented(views, index, key)
        if views.dtype == jnp.uint8:
            views = views.astype(float) / 255
        x = rearrange(views, "b m ... -> (b m) ...")
        channels = x.shape[-1]
        takes = getattr(self.encoder, "in_channels", channels)
        if channels != takes:
            raise ValueError(
                f"images have {channels} channels, but in_channels={takes}"
            )
        if jnp.issubdtype(x.dtype, jnp.floating):
            x = (x - _last(self.mean, x)) / _last(self.std, x)
        key = None if train and self.frozen else key
        noise = None if key is None else _keys_of_views(key, index, m)
        h, *maps = self.encoder(x, train=train and not self.frozen, key=noise)
        z = self.projector(h, train=train)
        local, real = (*maps, None)[:2] if self.local else (None, None)
        if self.project_local is not None:
            local = _wide(self.project_local(local, train=train))
        parts = (_wide(z), _wide(h), local, real)
        views_of = partial(rearrange, pattern="(b m) ... -> b m ...", m=m)
        return Features(*jax.tree.map(views_of, parts))

    def augmented(
        self, views: jax.Array, index: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        """Views after the photometry; row i's noise is a function of key and index."""
        if self.photometry is None:
            return views
        assert key is not None  # training has noise
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        return self.photometry(views, keys)


class Towers(nnx.Module):
    """The towers of a model, by modality.

    shares: {modality: modality whose tower it uses}, such as {"local": "image"} for
    crops of another size (Caron et al. 2020). It is encoded on its own, so BatchNorm
    takes its statistics over it alone, and is left out where a batch lacks it, as in
    evaluation. Raises InputError if it has a tower, or the other has none.
    `critic(rngs=)` makes a critic with parameters, for objectives that ask for one.
    """

    def __init__(
        self,
        towers: Mapping[str, Callable[..., Tower]],
        *,
        shares: Mapping[str, str] = {},
        critic: Callable | None = None,
        rngs: nnx.Rngs,
    ):
        for name, other in shares.items():
            if name in towers or other not in towers:
                raise InputError(
                    f"model.shares: {name!r} uses the tower of {other!r}; the first "
                    f"must have no tower, the second one: {sorted(towers)}"
                )
        made = {name: tower(rngs=rngs) for name, tower in towers.items()}
        self.towers, self.shares = nnx.Dict(made), tuple(shares.items())
        if critic is not None:
            self.critic = critic(rngs=rngs)

    def __call__(
        self, batch: Mapping, *, key: jax.Array | None, train: bool
    ) -> dict[str, Features]:
        """Features of each modality of the batch; evaluation passes `key=None`."""
        features = {}
        views, index = batch["views"], batch["index"]
        users = {name: name for name in self.towers}
        users |= {name: of for name, of in self.shares if name in views}
        for name, of in users.items():
            # Keyed by name, so a tower's noise does not depend on the other towers.
            number = zlib.crc32(name.encode())
            noise = None if key is None else jax.random.fold_in(key, number)
            tower = self.towers[of]
            features[name] = tower(views[name], index=index, key=noise, train=train)
        return features


def _keys_of_views(key: jax.Array, index: jax.Array, m: int) -> jax.Array:
    """The keys `[(b m)]` of an encoder's noise, other ones than the photometry's."""
    key = jax.random.fold_in(key, zlib.crc32(b"encoder"))
    of_each = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(of_each, (0, None))(of_each(key, index), jnp.arange(m)).ravel()


def _wide(x: jax.Array) -> jax.Array:
    """At least float32, for losses and probes."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _numbers(value: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,)


def _last(numbers: tuple[float, ...], x: jax.Array) -> jax.Array:
    """The numbers, shaped for the last axis of x."""
    return jnp.asarray(numbers, x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
