"""U-Nets over the sequences of a scan, any of which may be missing.

`Hemis` encodes each sequence separately and fuses the encodings by their moments, so it
can read any subset (Havaei et al. 2016, arXiv 1607.05194). The paper has no
down-sampling; the U-shape (Ronneberger et al. 2015) and fusion at each of its levels
are later practice. `EarlyFusion` is the baseline: one U-Net, sequences as channels.

Both are called as `polyview.nn.towers.Towers`. They read `batch["views"][s]:
float[b, 1, h, w, 1]` and `batch["present"][s]: bool[b, 1]`; the fusion reads the views
that `polyview.nn.fusion:readable` returns for each of n predictions. The contents of a
missing sequence, even NaN, change no output and get a gradient of exactly zero.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike

from polyview.errors import check_range
from polyview.nn.conv import Conv
from polyview.nn.fusion import mean_of, only, readable
from polyview.nn.heads import MutualInformationHead
from polyview.nn.towers import Features


class Hemis(nnx.Module):
    """One encoder a sequence, fusion by mean and variance at each level, one decoder.

    For each sequence s, read by the fusion or not, returns z[b, 1, units] and
    local[b, 1, p, units], projections of the pooled bottleneck h[b, 1, c] and of the
    bottleneck's positions. Under `task` it returns z = logits[b, n, h, w, classes] and
    h[b, n, 2c], the pooled fused bottleneck. Height and width are multiples of
    2 ** (len(widths) - 1). The widths are ours.
    """

    def __init__(
        self,
        *,
        sequences: Sequence[str],
        classes: int,
        widths: Sequence[int] = (16, 32, 64),
        units: int = 64,
        task: str = "mask",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        _check(sequences, widths, task)
        self.sequences, self.task = tuple(sequences), task

        def head() -> MutualInformationHead:
            return MutualInformationHead(widths[-1], out=units, **options)

        self.encoders = nnx.Dict({s: Encoder(1, widths, **options) for s in sequences})
        self.global_heads = nnx.Dict({s: head() for s in sequences})
        self.local_heads = nnx.Dict({s: head() for s in sequences})
        self.decoder = Decoder([2 * w for w in widths], widths, classes, **options)

    def __call__(
        self, batch: Mapping, *, key: jax.Array | None, train: bool
    ) -> dict[str, Features]:
        features, maps = {}, []
        for s in self.sequences:
            present = batch["present"][s]
            # Cleared before the encoder too: NaN times a zero gradient is NaN.
            maps.append(self.encoders[s](_cleared(batch["views"][s], present)))
            h = _pool(maps[-1][-1])
            local = self.local_heads[s](
                rearrange(maps[-1][-1], "b h w c -> b 1 (h w) c")
            )
            features[s] = Features(
                z=_wide(self.global_heads[s](h)), h=h, local=_wide(local)
            )
        levels = [jnp.stack(level, 1) for level in zip(*maps, strict=True)]

        def predicted(mask: jax.Array) -> Features:
            fused = [moments(level, mask) for level in levels]
            return _prediction(self.decoder(fused), fused[-1])

        features[self.task] = _each(predicted, readable(batch, self.sequences))
        return features


class EarlyFusion(nnx.Module):
    """One U-Net on the sequences as channels, with zeros for a missing one.

    A baseline for methods that handle missing sequences: zero is the mean of a
    normalised sequence. There are no features of single sequences: returns only
    `task`, as `Hemis` but with h[b, n, c].
    """

    def __init__(
        self,
        *,
        sequences: Sequence[str],
        classes: int,
        widths: Sequence[int] = (16, 32, 64),
        task: str = "mask",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        _check(sequences, widths, task)
        self.sequences, self.task = tuple(sequences), task
        self.encoder = Encoder(len(sequences), widths, **options)
        self.decoder = Decoder(widths, widths, classes, **options)

    def __call__(
        self, batch: Mapping, *, key: jax.Array | None, train: bool
    ) -> dict[str, Features]:
        def predicted(mask: jax.Array) -> Features:
            channels = [
                _cleared(batch["views"][s], mask[:, i : i + 1])
                for i, s in enumerate(self.sequences)
            ]
            maps = self.encoder(jnp.concatenate(channels, -1))
            return _prediction(self.decoder(maps), maps[-1])

        return {self.task: _each(predicted, readable(batch, self.sequences))}


class Convolutions(nnx.Module):
    """Two times 3x3 convolution, GroupNorm, ReLU: x[b, h, w, c] -> [b, h, w, width].

    GroupNorm (Wu and He 2018), since missing sequences would enter the statistics of
    BatchNorm. At most 8 groups (ours).
    """

    def __init__(self, in_features: int, width: int, **options: Any):
        he = jax.nn.initializers.he_normal()
        form: dict = {
            "kernel_size": (3, 3),
            "use_bias": False,
            "kernel_init": he,
        } | options
        groups = math.gcd(8, width)
        self.conv1 = Conv(in_features, width, **form)
        self.norm1 = nnx.GroupNorm(width, num_groups=groups, **options)
        self.conv2 = Conv(width, width, **form)
        self.norm2 = nnx.GroupNorm(width, num_groups=groups, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.norm1(self.conv1(x)))
        return jax.nn.relu(self.norm2(self.conv2(x)))


class Encoder(nnx.Module):
    """x[b, h, w, c] -> one map for each level l, [b, h / 2^l, w / 2^l, widths[l]].

    2x2 max-pooling between levels, as in Ronneberger et al. 2015. Raises ValueError if
    h or w cannot be halved that often.
    """

    def __init__(self, in_features: int, widths: Sequence[int], **options: Any):
        inputs = (in_features, *widths[:-1])
        self.levels = nnx.List(
            [Convolutions(i, o, **options) for i, o in zip(inputs, widths, strict=True)]
        )

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        step = 2 ** (len(self.levels) - 1)
        if x.shape[1] % step or x.shape[2] % step:
            raise ValueError(
                f"images of {x.shape[1]} x {x.shape[2]} cannot be halved "
                f"{len(self.levels) - 1} times; crop to multiples of {step}"
            )
        maps = [self.levels[0](x)]
        for level in list(self.levels)[1:]:
            maps.append(level(nnx.max_pool(maps[-1], (2, 2), strides=(2, 2))))
        return maps


class Decoder(nnx.Module):
    """The maps of an encoder, with `channels[l]` each, -> logits[b, h, w, classes].

    Each level doubles the map below (nearest neighbour) and reads it with its own.
    """

    def __init__(
        self,
        channels: Sequence[int],
        widths: Sequence[int],
        classes: int,
        **options: Any,
    ):
        below = (*widths[1:-1], channels[-1])  # channels from below, of each level
        self.levels = nnx.List(
            [
                Convolutions(under + skip, width, **options)
                for under, skip, width in zip(
                    below, channels[:-1], widths[:-1], strict=True
                )
            ]
        )
        self.logits = nnx.Linear(widths[0], classes, **options)

    def __call__(self, maps: Sequence[jax.Array]) -> jax.Array:
        x = maps[-1]
        for level, skip in zip(reversed(self.levels), maps[-2::-1], strict=True):
            x = x.repeat(2, 1).repeat(2, 2)
            x = level(jnp.concatenate([x, skip], -1))
        return self.logits(x)


def moments(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean and unbiased variance of `x[b, n, ..., c]` over `mask[b, n]`: [b, ..., 2c].

    The variance is zero if one entry is True, both are zero if none is.
    """
    wide = _wide(x)
    mean = mean_of(wide, mask)
    deviation = only(wide - mean[:, None], mask)
    freedom = jnp.maximum(mask.sum(1) - 1, 1).astype(wide.dtype)
    freedom = freedom.reshape(-1, *[1] * (x.ndim - 2))
    variance = (deviation * deviation).sum(1) / freedom
    return jnp.concatenate([mean, variance], -1).astype(x.dtype)


def _check(sequences: Sequence[str], widths: Sequence[int], task: str) -> None:
    check_range(1, widths=widths)
    if not sequences or len(set(sequences)) < len(sequences):
        raise ValueError(f"sequences={sequences!r} is empty or names one twice")
    if task in sequences:
        raise ValueError(f"task={task!r} is also the name of a sequence")
    if len(widths) < 2:
        raise ValueError(f"widths={widths!r}: a U-Net needs two levels or more")


def _cleared(views: jax.Array, mask: jax.Array) -> jax.Array:
    """The only view of each row, [b, h, w, c], or zeros if its mask is False."""
    if views.shape[1] != 1:
        raise ValueError(
            f"a sequence has one view a row, not {views.shape[1]}; give each view a "
            "sequence of its own"
        )
    return only(views, mask)[:, 0]


def _each(predicted: Callable[[jax.Array], Features], masks: jax.Array) -> Features:
    """`predicted(mask[b, views])` for each of `masks[b, n, views]`, concatenated.

    Unrolled: on a CPU convolutions inside an XLA loop are many times slower.
    """
    predictions = [predicted(masks[:, number]) for number in range(masks.shape[1])]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *predictions)


def _prediction(logits: jax.Array, bottleneck: jax.Array) -> Features:
    return Features(z=_wide(logits)[:, None], h=_pool(bottleneck), local=None)


def _pool(x: jax.Array) -> jax.Array:
    return _wide(x).mean((1, 2))[:, None]


def _wide(x: jax.Array) -> jax.Array:
    """At least float32, for losses, probes and moments."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
