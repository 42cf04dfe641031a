"""One tower, and all that is read from it: heads, heads of positions, a decoder.

    (h, map) = encoder(x)
    z = projector(h)                    z_name = head(h)
    local = local_projector(map)        z_local_name = local_head(map), each position

The encoder runs once, however many objectives read it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from polyview.errors import InputError
from polyview.nn.fusion import only
from polyview.nn.towers import Features, Tower, Towers


class Readouts(Towers):
    """A tower with heads, local heads, a decoder and a discriminator.

    Returns {modality: Features of the tower, name: `Features(z=head(h)[b, m, out], h)`
    of each head, "local_" + name: `Features(z=[b, m, p, out], h)` of each local head}.
    A missing view is encoded as zeros, whatever it holds. Raises InputError for several
    towers and one without `local=True`, ValueError if two outputs would have one name.

    Args:
      towers: one tower by the name of its modality, with `local=True`.
      local_projector: `local_projector(width of the map, rngs=)`, for `local` of the
        modality, which is None without one.
      heads, local_heads: the same by name, on h and on each position of the map.
      decoder: `decoder(features, rngs=)`, called as `decoder(h[n, d'], train=)`.
      discriminator: the same, with one output.
    """

    def __init__(
        self,
        towers: Mapping[str, Callable[..., Tower]],
        *,
        local_projector: Callable | None = None,
        heads: Mapping[str, Callable] = {},
        local_heads: Mapping[str, Callable] = {},
        decoder: Callable | None = None,
        discriminator: Callable | None = None,
        rngs: nnx.Rngs,
    ):
        if len(towers) != 1:
            raise InputError(f"model.towers has {sorted(towers)}: name one tower")
        (modality,) = towers
        names = [modality, *heads, *map("local_{}".format, local_heads)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{twice[0]!r} names two of the modality and the heads")
        super().__init__(towers, rngs=rngs)
        tower = self.towers[modality]
        if not tower.local or tower.project_local is not None:
            raise InputError(
                f"model.towers.{modality}.local must be True: heads read the map itself"
            )
        encoder: Any = tower.encoder
        width = encoder.features
        local_width = getattr(encoder, "local_features", width)

        def made(part: Callable | None, width: int) -> Any:
            return None if part is None else part(width, rngs=rngs)

        self.local_projector = made(local_projector, local_width)
        self.heads = nnx.Dict({n: made(head, width) for n, head in heads.items()})
        self.local_heads = nnx.Dict(
            {n: made(head, local_width) for n, head in local_heads.items()}
        )
        self.decoder = made(decoder, width)
        self.discriminator = made(discriminator, width)
        self.modality = modality

    def __call__(
        self, batch: Mapping, *, key: jax.Array | None, train: bool
    ) -> dict[str, Features]:
        name = self.modality
        # The contents of a missing view, perhaps NaN, must not reach the encoder.
        views = {name: only(batch["views"][name], batch["present"][name])}
        tower = super().__call__({**batch, "views": views}, key=key, train=train)[name]
        h, positions = tower.h, tower.local
        assert positions is not None  # as the tower was made
        local = None
        if self.local_projector is not None:
            local = _each(self.local_projector, positions, train)
        features = {name: tower._replace(local=local)}
        for name, head in self.heads.items():
            features[name] = Features(z=_each(head, h, train), h=h, local=None)
        for name, head in self.local_heads.items():
            z = _each(head, positions, train)
            features[f"local_{name}"] = Features(z=z, h=h, local=None, real=tower.real)
        return features

    def normalised(self, batch: Mapping) -> jax.Array:
        """The views as the encoder sees them without photometry, float[b, m, ...].

        Missing views are zeros before the normalisation.
        """
        name = self.modality
        x = only(jnp.asarray(batch["views"][name]), batch["present"][name])
        if x.dtype == jnp.uint8:
            x = x.astype(float) / 255
        mean, std = (
            jnp.asarray(numbers, x.dtype).reshape(*[1] * (x.ndim - 1), -1)
            for numbers in (self.towers[name].mean, self.towers[name].std)
        )
        return (x - mean) / std

    def decode(self, h: jax.Array, *, train: bool = False) -> jax.Array:
        """Images of representations, normalised: float[b, m, d'] -> [b, m, h, w, c].

        Raises InputError without a decoder.
        """
        if self.decoder is None:
            raise InputError("the model has no decoder; set model.decoder")
        return _each(self.decoder, h, train)

    def discriminate(self, h: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits that h was drawn from the prior: float[b, m, d'] -> float[b, m].

        Raises InputError without a discriminator, and for one of several outputs.
        """
        if self.discriminator is None:
            raise InputError("the model has no discriminator; set model.discriminator")
        logits = _each(self.discriminator, h, train)
        if logits.shape[2:] != (1,):
            raise InputError(
                f"the discriminator has {logits.shape[-1]} outputs; set its out to 1"
            )
        return logits[..., 0]


def _each(part: Callable, x: jax.Array, train: bool) -> jax.Array:
    """`part(x[(b m), ...], train=)` for x[b, m, ...], in float32 or better."""
    y = part(rearrange(x, "b m ... -> (b m) ..."), train=train)
    y = y.astype(jnp.promote_types(y.dtype, jnp.float32))
    return rearrange(y, "(b m) ... -> b m ...", m=x.shape[1])
