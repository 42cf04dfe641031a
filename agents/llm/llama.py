"""The body of a language model of the `llama` architecture, over stacked blocks.

    x = x + Attention(RMSNorm(x));  x = x + down(silu(gate(y)) * up(y)), y = RMSNorm(x)

(Touvron et al. 2023.) Queries share keys and values in groups (Ainslie et al. 2023);
queries and keys are rotated by their position (Su et al. 2021), component i with
component i + head / 2. Weights of all blocks are stacked, and `jax.lax.scan` passes
them, so that compile time does not depend on the depth.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike

from agents.llm import cache as caches
from agents.llm.cache import Cache
from agents.llm.lora import Lora, check_targets
from polyview.devices import gather, splits_weights
from polyview.errors import TINY, InputError, check_range
from polyview.nn import rematerialisation
from polyview.nn.fixed import Fixed, freeze

_KERNELS = ("query", "key", "value", "output", "gate", "up", "down")


class Blocks(nnx.Module):
    """The weights of all blocks, `[layers, ...]`; kernels map from axis 1 to axis 2."""

    def __init__(
        self,
        layers: int,
        shapes: Mapping[str, tuple[int, int]],
        *,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        width = shapes["query"][0]
        for norm in ("attention_norm", "mlp_norm"):
            setattr(self, norm, nnx.Param(jnp.ones((layers, width), param_dtype)))
        for name, shape in shapes.items():
            draw = jax.random.normal(rngs.params(), (layers, *shape), param_dtype)
            setattr(self, name, nnx.Param(draw * shape[0] ** -0.5))


class Body(nnx.Module):
    """Embeddings of tokens or observations -> hidden states, by causal attention.

        body(x[b, t, width], real[b, t]) -> (hidden[b, t, width], None)
        body(x, real, cache) -> (hidden, cache after these t positions)
        body(x, real, before=(k, v), position=, seen=bool[b, t, s + t]) -> as the first

    `real` is False at padding, which takes no position and to which nothing attends;
    hidden states there mean nothing. With a cache, a row continues after the positions
    that it has read; beyond the cache's length hidden states are NaN. Without one,
    `position: int32[b, t]` and `seen: bool[b, t, t]` may be given, for inputs that are
    several continuations of one beginning: what each attends to, itself at least.
    `before`, keys and values [layers, b, s, kv_heads, head], stand before these t.

    Args:
      layers: blocks. Weights of more blocks may be laid over: the first are taken.
      width, heads, kv_heads, head, hidden: sizes; `head` is width / heads by default.
      vocabulary: tokens.
      tied: whether `logits` reads the table of embeddings; else a matrix of its own.
      theta: the base of the rotations' wavelengths.
      epsilon: of the norms.
      context: the most positions, for callers to check.
      frozen: whether the weights are fixed (`polyview.nn.fixed`).
      lora: None, or the options of `agents.llm.lora:Lora`, and `targets`: the kernels
        that get an adapter, by default all seven.
      remat: in training, see `polyview.nn.rematerialisation`. To store products alone
        is not only smaller, but on a CPU a seventh faster as well.

    Raises OutOfRange and InputError for sizes that do not fit.
    """

    def __init__(
        self,
        *,
        layers: int,
        width: int,
        heads: int,
        kv_heads: int,
        hidden: int,
        vocabulary: int,
        head: int | None = None,
        tied: bool = True,
        theta: float = 10_000.0,
        epsilon: float = 1e-5,
        context: int = 2048,
        frozen: bool = True,
        lora: Mapping[str, Any] | None = None,
        remat: str = "dots",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes: dict = {
            "width": width,
            "heads": heads,
            "kv_heads": kv_heads,
            "head": head,
        }
        check_range(1, **sizes, layers=layers, hidden=hidden, vocabulary=vocabulary)
        check_range(1, context=context)
        check_range(TINY, theta=theta, epsilon=epsilon)
        if heads % kv_heads or (head is None and width % heads):
            raise InputError(
                f"a body of width {width} cannot have {heads} heads and {kv_heads} of "
                "keys and values; give divisors"
            )
        self.layers, self.width, self.context = layers, width, context
        self.heads, self.kv_heads = heads, kv_heads
        self.head, self.hidden = head or width // heads, hidden
        if self.head % 2:
            raise InputError(f"a head of {self.head} cannot be rotated; give an even")
        self.vocabulary, self.epsilon, self.theta = vocabulary, epsilon, float(theta)
        self.dtype, self.param_dtype = dtype, param_dtype
        self.remat = rematerialisation.check(remat)
        shapes = kernel_shapes(width, heads, kv_heads, self.head, hidden)
        options: dict = {"param_dtype": param_dtype, "rngs": rngs}
        table = (vocabulary, width)
        draw = jax.random.normal(rngs.params(), table, param_dtype)
        self.embedding = nnx.Param(draw * 0.02)
        draw = jax.random.normal(rngs.params(), table, param_dtype)
        self.unembedding = None if tied else nnx.Param(draw * width**-0.5)
        self.norm = nnx.Param(jnp.ones(width, param_dtype))
        self.blocks = Blocks(layers, shapes, **options)
        if frozen:
            freeze(self)
        half = jnp.arange(self.head // 2) / (self.head // 2)
        self.frequencies = Fixed(self.theta ** -half.astype(jnp.float32))
        self.lora: Any = nnx.Dict()
        if lora is not None:
            adapters: dict[str, Any] = dict(lora)
            targets = check_targets(adapters.pop("targets", tuple(shapes)), shapes)
            for name in targets:
                self.lora[name] = Lora(layers, shapes[name], **adapters, **options)

    @property
    def fixed(self) -> bool:
        """Whether nothing of it is trained."""
        return isinstance(self.norm, Fixed) and not self.lora

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Return the embeddings of tokens int32[...]: [..., width]; NaN if unknown."""
        known = (tokens >= 0) & (tokens < self.vocabulary)
        rows = self.embedding[jnp.where(known, tokens, 0)]
        return jnp.where(known[..., None], rows, jnp.nan).astype(self.dtype)

    def logits(
        self, hidden: jax.Array, tokens: Sequence[int] | None = None
    ) -> jax.Array:
        """Return the scores of all tokens, or of some: [..., n], float32 or better."""
        table = self.embedding if self.unembedding is None else self.unembedding
        rows = table[...] if tokens is None else table[jnp.asarray(tokens)]
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        hidden, rows = hidden.astype(self.dtype), rows.astype(self.dtype)
        return jnp.einsum("...d,vd->...v", hidden, rows).astype(wide)

    def empty_cache(self, rows: int, length: int) -> Cache:
        """Return the cache of `rows` rows that have read nothing, of `length` each."""
        check_range(1, rows=rows, length=length)
        shape = (self.layers, rows, length, self.kv_heads, self.head)
        return caches.empty(shape, self.dtype)

    def __call__(
        self,
        x: jax.Array,
        real: jax.Array,
        cache: Cache | None = None,
        *,
        before: tuple[jax.Array, jax.Array] | None = None,
        position: jax.Array | None = None,
        seen: jax.Array | None = None,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        # Zero times a padding that is not finite would be NaN, in gradients as well.
        x = jnp.where(real[..., None], x.astype(self.dtype), 0)
        begun = jnp.zeros(len(x), jnp.int32) if cache is None else cache.lengths
        steps = jnp.cumsum(real, 1, dtype=jnp.int32)
        if position is None:
            position = jnp.maximum(begun[:, None] + steps - 1, 0)
        rotation = self._rotation(position)
        t = x.shape[1]
        if cache is None:
            # A position attends at least to itself, so that padding gives no NaN.
            causal = jnp.tril(jnp.ones((t, t), bool))[None] if seen is None else seen
            s = causal.shape[2] - t
            there = jnp.pad(real, ((0, 0), (s, 0)), constant_values=True)
            seen = (causal & there[:, None]) | jnp.eye(t, s + t, s, dtype=bool)[None]
            slots = None
        else:
            slots = jnp.where(real, position, cache.k.shape[2])  # beyond: not written
            seen = jnp.arange(cache.k.shape[2])[None, None] <= position[..., None]
        # Not `[...]`, which would gather the weights of all blocks at once.
        names = (*_KERNELS, "attention_norm", "mlp_norm")
        stack = {name: getattr(self.blocks, name).get_raw_value() for name in names}
        adapters = {name: own.stacked() for name, own in self.lora.items()}
        keys = None
        if train and key is not None:
            keys = jax.random.split(key, self.layers)

        def block(carry: tuple, own: dict) -> tuple[tuple, None]:
            if splits_weights():
                weights = {name: own[name] for name in ("stack", "adapters")}
                own = own | jax.tree.map(gather, weights)
            x, kept = carry
            return self._block(x, kept, own, rotation, seen, slots), None

        if train and (self.remat != "none" or splits_weights()):
            policy = rematerialisation.POLICIES[self.remat]
            block = jax.checkpoint(block, policy=policy)
        own = {"stack": stack, "adapters": adapters, "keys": keys, "before": before}
        own["number"] = jnp.arange(self.layers)
        # Rows and positions are one axis: on a CPU, XLA multiplies [b, 1, d] at half
        # the speed. The cache is carried whole, so that it is written in place.
        kept: Any = None if cache is None else (cache.k, cache.v)
        rows = rearrange(x, "b t d -> (b t) d")
        (rows, kept), _ = jax.lax.scan(block, (rows, kept), own)
        hidden = self._normed(rows, self.norm[...]).reshape(x.shape)
        if cache is None:
            return hidden, None
        beyond = (position >= cache.k.shape[2]) & real
        hidden = jnp.where(beyond[..., None], jnp.nan, hidden)
        return hidden, Cache(kept[0], kept[1], begun + steps[:, -1])

    def _block(
        self,
        x: jax.Array,
        kept: Any,
        own: Mapping[str, Any],
        rotation: tuple[jax.Array, jax.Array],
        seen: jax.Array,
        slots: jax.Array | None,
    ) -> tuple[jax.Array, Any]:
        """Pass one block, x[(b t), width]; kept: keys and values of all blocks."""
        weights, adapters = own["stack"], own["adapters"]
        number = list(adapters)

        def product(name: str, y: jax.Array) -> jax.Array:
            z = y @ weights[name].astype(self.dtype)
            if name in adapters:
                key = own["keys"]
                if key is not None:
                    key = jax.random.fold_in(key, number.index(name))
                z += self.lora[name].change(y, *adapters[name], key=key)
            return z

        y = self._normed(x, weights["attention_norm"])
        split = partial(
            rearrange,
            pattern="(b t) (k d) -> b t k d",
            t=rotation[0].shape[1],
            d=self.head,
        )
        query, k, v = (split(product(name, y)) for name in ("query", "key", "value"))
        query, k = rotated(query, *rotation), rotated(k, *rotation)
        if slots is not None:
            rows = jnp.arange(len(slots))[:, None]
            # Only keys keep a NaN: where their slot is used again, scores are masked,
            # while zero times a value of NaN would be NaN.
            sound = jnp.isfinite(v).all(-1, keepdims=True)
            k, v = jnp.where(sound, k, jnp.nan), jnp.where(sound, v, 0)
            at = own["number"]
            kept = tuple(
                old.at[at, rows, slots].set(new, mode="drop")
                for old, new in zip(kept, (k, v), strict=True)
            )
            k, v = kept[0][at], kept[1][at]
        if own["before"] is not None:
            earlier = zip(own["before"], (k, v), strict=True)
            k, v = (jnp.concatenate(parts, 1) for parts in earlier)
        mixed = rearrange(grouped_attention(query, k, v, seen), "b t d -> (b t) d")
        x = x + product("output", mixed)
        y = self._normed(x, weights["mlp_norm"])
        y = jax.nn.silu(product("gate", y)) * product("up", y)
        return x + product("down", y), kept

    def _normed(self, x: jax.Array, scale: jax.Array) -> jax.Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = jnp.square(wide).mean(-1, keepdims=True)
        y = wide * jax.lax.rsqrt(mean + self.epsilon)
        scale = scale.reshape((1,) * (x.ndim - 1) + (-1,))
        return (y * scale).astype(self.dtype)

    def _rotation(self, position: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return cosine and sine of every angle, [b, t, 1, head / 2]."""
        angle = position[..., None] * self.frequencies[...][None, None]
        return jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]


def kernel_shapes(
    width: int, heads: int, kv_heads: int, head: int, hidden: int
) -> dict[str, tuple[int, int]]:
    """Return {kernel: (inputs, outputs)} of a block."""
    return {
        "query": (width, heads * head),
        "key": (width, kv_heads * head),
        "value": (width, kv_heads * head),
        "output": (heads * head, width),
        "gate": (width, hidden),
        "up": (width, hidden),
        "down": (hidden, width),
    }


def rotated(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """Rotate component i of `x[b, t, heads, d]` with component i + d / 2."""
    first, second = jnp.split(x, 2, -1)
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate(turned, -1).astype(x.dtype)


def grouped_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array
) -> jax.Array:
    """softmax(q k / sqrt(d)) v, with heads that share keys and values.

    query: [b, t, heads, d]; key, value: [b, s, kv_heads, d]; seen: bool[b, t, s], some
    of them in every row. Returns [b, t, heads * d]. Of g heads that share one of keys,
    those of query j g .. (j + 1) g - 1 read head j. The softmax is in float32 or
    better.
    """
    groups = key.shape[2]
    query = rearrange(query, "b t (k g) d -> b t k g d", k=groups)
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum(
        "btkgd,bskd->bkgts", query, key, preferred_element_type=wide
    ) * (query.shape[-1] ** -0.5)
    scores = jnp.where(seen[:, None, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores).astype(value.dtype)
    out = jnp.einsum("bkgts,bskd->btkgd", weights, value)
    return rearrange(out, "b t k g d -> b t (k g d)")
