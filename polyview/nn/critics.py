"""Critics with parameters: what scores a pair of features, learnt with the features."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from polyview.errors import TINY, check_range


class CosineCritic(nnx.Module):
    """Critic: s = scale * cos(anchor, candidate) + bias, both numbers learnt.

    `anchors[a, q, d], candidates[c, p, d] -> scores[a, c, p, q]`. The parameter is the
    logarithm of `scale`, the inverse of a temperature. CLIP starts at 1 / .07, holds it
    at `most` = 100 and has no bias (Radford et al. 2021, section 2.5); SigLIP starts at
    a scale of 10 and a bias of -10, without a limit (Zhai et al. 2023, section 3.2).
    At the limit, a gradient remains only where a step would lower the scale.
    """

    def __init__(
        self,
        *,
        scale: float = 1 / 0.07,
        most: float | None = 100.0,
        bias: float | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del rngs  # both numbers start where they are told to
        check_range(TINY, scale=scale, most=most)
        self.log_scale = nnx.Param(jnp.log(jnp.asarray(scale, param_dtype)))
        self.most = most
        shift = None if bias is None else nnx.Param(jnp.asarray(bias, param_dtype))
        self.bias = shift

    def numbers(self) -> dict[str, jax.Array]:
        """Return the scale, and the bias if there is one, in float32 or better."""
        log_scale = _wide(self.log_scale[...])
        if self.most is not None:
            log_scale = _held(self.most, log_scale)
        bias = {} if self.bias is None else {"bias": _wide(self.bias[...])}
        return {"scale": jnp.exp(log_scale), **bias}

    def __call__(self, anchors: jax.Array, candidates: jax.Array) -> jax.Array:
        numbers = self.numbers()
        cosine = jnp.einsum("aqd,cpd->acpq", _unit(anchors), _unit(candidates))
        return numbers["scale"] * cosine + numbers.get("bias", 0.0)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _held(most: float, log_scale: jax.Array) -> jax.Array:
    """The logarithm, at most that of `most`."""
    return jnp.minimum(log_scale, jnp.log(most).astype(log_scale.dtype))


def _keep(most: float, log_scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    held = _held(most, log_scale)
    return held, log_scale > held


def _release(most: float, beyond: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    # With a gradient of 0 beyond the limit, the scale could never come back.
    return (jnp.where(beyond & (gradient < 0), 0, gradient),)


_held.defvjp(_keep, _release)


def _unit(x: jax.Array) -> jax.Array:
    """`x[..., d]` of length 1, in float32 or better; the gradient at zero is finite."""
    x = _wide(x)
    squares = jnp.sum(jnp.square(x), -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
