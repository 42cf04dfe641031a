"""U-Nets over the sequences of a scan, whichever of them are there.

`Hemis` encodes each sequence by itself and fuses what the encoders say by moments, so
that any subset can be read (Havaei et al. 2016, arXiv 1607.05194). The paper has no
down-sampling; the U-shape (Ronneberger et al. 2015) and fusing at each of its levels
are later practice. `EarlyFusion` is the baseline: one U-Net, sequences as channels.

Both are called as `polyview.nn.towers.Towers`. They read `batch["views"][s]:
float[b, 1, h, w, 1]` and `batch["present"][s]: bool[b, 1]`; the fusion reads what
`polyview.nn.fusion:readable` finds, for each of n predictions. What stands in a missing
sequence, be it NaN, changes no output and receives a gradient of exactly zero.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from polyview.errors import check_range
from polyview.nn.fusion import mean_of, only, readable
from polyview.nn.heads import MutualInformationHead
from polyview.nn.towers import Features


class Hemis(nnx.Module):
    """An encoder a sequence, fusion by mean and variance at each level, one decoder.

    Returns, for each sequence s and whether or not the fusion sees it, z[b, 1, units]
    and local[b, 1, p, units], projections of the pooled bottleneck h[b, 1, c] and of
    the bottleneck's positions; and under `task` z = logits[b, n, h, w, classes] with
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
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        _check(sequences, widths, task)
        self.sequences, self.task = tuple(sequences), task

        def head():
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
            # Cleared before the encoder too: NaN times a gradient of zero is NaN.
            maps.append(self.encoders[s](_cleared(batch["views"][s], present)))
            h = _pool(maps[-1][-1])
            local = self.local_heads[s](
                rearrange(maps[-1][-1], "b h w c -> b 1 (h w) c")
            )
            features[s] = Features(
                z=_wide(self.global_heads[s](h)), h=h, local=_wide(local)
            )
        levels = [jnp.stack(level, 1) for level in zip(*maps, strict=True)]

        def predicted(mask):
            fused = [moments(level, mask) for level in levels]
            return _prediction(self.decoder(fused), fused[-1])

        features[self.task] = _each(predicted, readable(batch, self.sequences))
        return features


class EarlyFusion(nnx.Module):
    """One U-Net on the sequences as channels, a missing one filled with zeros.

    Zero filling is the method here, a baseline for what is to withstand missing
    sequences: zero is the mean of a normalised sequence. There are no features of
    single sequences: only `task` is returned, as by `Hemis` but with h[b, n, c].
    """

    def __init__(
        self,
        *,
        sequences: Sequence[str],
        classes: int,
        widths: Sequence[int] = (16, 32, 64),
        task: str = "mask",
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        _check(sequences, widths, task)
        self.sequences, self.task = tuple(sequences), task
        self.encoder = Encoder(len(sequences), widths, **options)
        self.decoder = Decoder(widths, widths, classes, **options)

    def __call__(
        self, batch: Mapping, *, key: jax.Array | None, train: bool
    ) -> dict[str, Features]:
        def predicted(mask):
            channels = [
                _cleared(batch["views"][s], mask[:, i : i + 1])
                for i, s in enumerate(self.sequences)
            ]
            maps = self.encoder(jnp.concatenate(channels, -1))
            return _prediction(self.decoder(maps), maps[-1])

        return {self.task: _each(predicted, readable(batch, self.sequences))}


class Convolutions(nnx.Module):
    """Two times 3x3 convolution, GroupNorm, ReLU: x[b, h, w, c] -> [b, h, w, width].

    GroupNorm (Wu and He 2018) because the statistics of BatchNorm would be those of
    missing sequences too. At most 8 groups (ours).
    """

    def __init__(self, in_features: int, width: int, **options):
        he = jax.nn.initializers.he_normal()
        form = {"kernel_size": (3, 3), "use_bias": False, "kernel_init": he} | options
        groups = math.gcd(8, width)
        self.conv1 = nnx.Conv(in_features, width, **form)
        self.norm1 = nnx.GroupNorm(width, num_groups=groups, **options)
        self.conv2 = nnx.Conv(width, width, **form)
        self.norm2 = nnx.GroupNorm(width, num_groups=groups, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.norm1(self.conv1(x)))
        return jax.nn.relu(self.norm2(self.conv2(x)))


class Encoder(nnx.Module):
    """x[b, h, w, c] -> a map a level, [b, h / 2^l, w / 2^l, widths[l]].

    Max-pooling of 2x2 between the levels, as in Ronneberger et al. 2015.
    """

    def __init__(self, in_features: int, widths: Sequence[int], **options):
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
    """The maps of an encoder, of `channels[l]` each, to logits[b, h, w, classes].

    Each level doubles the map below (nearest neighbour) and reads it beside its own.
    """

    def __init__(
        self, channels: Sequence[int], widths: Sequence[int], classes: int, **options
    ):
        below = (*widths[1:-1], channels[-1])  # what comes up to each level
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
    """Mean and unbiased variance of `x[b, n, ..., c]` over what `mask[b, n]` marks.

    [b, ..., 2c]; the variance is zero where one is marked, both are where none is.
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
        raise ValueError(f"task={task!r} is the name of a sequence too")
    if len(widths) < 2:
        raise ValueError(f"widths={widths!r}: a U-Net has two levels or more")


def _cleared(views: jax.Array, mask: jax.Array) -> jax.Array:
    """The only view of each row, [b, h, w, c], zeros where the mask is False."""
    if views.shape[1] != 1:
        raise ValueError(
            f"a sequence has one view a row, not {views.shape[1]}; name others apart"
        )
    return only(views, mask)[:, 0]


def _each(predicted: Callable[[jax.Array], Features], masks: jax.Array) -> Features:
    """`predicted(mask[b, looks])` of each of `masks[b, n, looks]`, side by side.

    Unrolled: on a CPU convolutions inside a loop of XLA are many times slower.
    """
    found = [predicted(masks[:, number]) for number in range(masks.shape[1])]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *found)


def _prediction(logits: jax.Array, bottleneck: jax.Array) -> Features:
    return Features(z=_wide(logits)[:, None], h=_pool(bottleneck), local=None)


def _pool(x: jax.Array) -> jax.Array:
    return _wide(x).mean((1, 2))[:, None]


def _wide(x: jax.Array) -> jax.Array:
    """At least float32, for losses, probes and moments."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
