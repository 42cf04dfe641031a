"""Convolutions that a CPU computes as matrix products where that is faster.

XLA's convolution on a CPU is slow in three cases. On a map of 2 x 2 it reaches a
hundredth of the rate of matrix products; a 1x1 kernel gets a gradient at a twentieth of
it; and in a loop (`lax.scan`, `lax.map`) the gradient of any kernel takes 30 to 140
times as long as outside, that of an input 2 to 8 times. Which form is the fastest
depends on the shape: `python -m benchmarks.conv` measures them. Gradients, and the
forward pass of a large batch, are computed for a slice of the batch at a time, whose
patches stay in the cache. The values are equal up to rounding. Other platforms always
take XLA's convolution.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import lax
from jax.custom_derivatives import SymbolicZero

Pads = tuple[tuple[int, int], ...]
FEW_POSITIONS = 4  # up to which XLA's forward pass is slower than a product
MANY_POSITIONS = 16 * 16  # of stride 1, above which XLA's form is faster in slices
# One product of the patches beats a product a tap below so many channels, and up to so
# many positions in all maps of the batch.
FEW_CHANNELS, FEW_ROWS = 8, 256
LARGE = 2**23  # numbers in the patches of a batch, above which it is divided
MANY_ROWS = 512  # images on a device, below which the forward pass takes all at once
SLICE = 2**20  # numbers in the patches of a slice: 4 MB, about the cache of a core
# Options of a plain convolution: these are 1, this is the layout of nnx.Conv (batch
# first, channels last), and the rest is not set.
_ONE = {"lhs_dilation", "rhs_dilation", "feature_group_count"}
_SET = {"dimension_numbers"}
_UNPADDED = ((0, 0), (0, 0))


class Conv(nnx.Conv):
    """`nnx.Conv`, computed by `convolve`."""

    def __init__(self, *sizes: Any, **options: Any):
        super().__init__(*sizes, conv_general_dilated=convolve, **options)


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """Convolve `x[n, (h,) w, c]` with `kernel[(kh,) kw, c, d]`, as nnx.Conv calls it.

    options: those of `jax.lax.conv_general_dilated`. Dilated, grouped and other rare
    convolutions are always XLA's.
    """
    ones = all(np.all(np.equal(options.get(name) or 1, 1)) for name in _ONE)
    unset = all(options.get(name) is None for name in options.keys() - _ONE - _SET)
    if jax.default_backend() != "cpu" or not (ones and unset and x.ndim in (3, 4)):
        return lax.conv_general_dilated(x, kernel, window_strides, padding, **options)
    strides, sizes = tuple(window_strides), kernel.shape[:-2]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:-1], sizes, strides, padding)
    pads = tuple((int(before), int(after)) for before, after in padding)
    if x.ndim == 3:  # a map of one row
        wide = _convolve(x[:, None], kernel[None], (1, *strides), ((0, 0), *pads))
        return wide[:, 0]
    return _convolve(x, kernel, strides, pads)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], pads: Pads
) -> jax.Array:
    return _value(x, kernel, strides, pads)


def _value(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], pads: Pads
) -> jax.Array:
    shape = x.shape, kernel.shape, strides, pads
    form = partial(forms(*shape).forward, kernel=kernel, strides=strides, pads=pads)
    return joined(form, slices(*shape, fewest=MANY_ROWS), x)


def _forward(
    x: Any, kernel: Any, strides: tuple[int, ...], pads: Pads
) -> tuple[jax.Array, tuple]:
    # A gradient that nobody asked for is not traced, so that FLOPs can be counted.
    wanted = tuple(() if part.perturbed else None for part in (x, kernel))
    x, kernel = x.value, kernel.value
    # Not `_convolve`, whose operations rematerialisation would not see.
    return _value(x, kernel, strides, pads), (x, kernel, wanted)


def _backward(
    strides: tuple[int, ...], pads: Pads, saved: tuple, cotangent: Any
) -> tuple[jax.Array | None, jax.Array | None]:
    x, kernel, wanted = saved
    if isinstance(cotangent, SymbolicZero):
        return None, None
    shape = x.shape, kernel.shape, strides, pads
    chosen, count = forms(*shape), slices(*shape)
    of_input = of_kernel = None
    if wanted[0] is not None:
        of_slice = transposed(chosen.input, x, kernel, strides, pads)
        of_input = joined(of_slice, 1 if chosen.input is xla else count, cotangent)
    if wanted[1] is not None:
        form = partial(chosen.kernel, shape=kernel.shape, strides=strides, pads=pads)
        of_kernel = summed(form, count, x, cotangent)
    return of_input, of_kernel


_convolve.defvjp(_forward, _backward, symbolic_zeros=True)


class Forms(NamedTuple):
    """How to compute a convolution, the gradient of its input and that of its kernel.

    `input` is a form of the convolution whose transpose is the gradient, `kernel` a
    function of x and the cotangent.
    """

    forward: Callable[..., jax.Array]
    input: Callable[..., jax.Array]
    kernel: Callable[..., jax.Array]


def forms(
    x: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, ...], pads: Pads
) -> Forms:
    """Choose the forms for these shapes."""
    sizes, channels = kernel[:2], kernel[2]
    if sizes in ((1, 1), strides):
        return Forms(product, product, by_tap)
    positions = math.prod(_outputs(x, sizes, strides, pads))
    of_slice = xla if max(strides) == 1 and positions > MANY_POSITIONS else product
    if slices(x, kernel, strides, pads, fewest=MANY_ROWS) > 1:
        forward = of_slice
    else:
        forward = product if positions <= FEW_POSITIONS else xla
    if _blocked(sizes, strides):
        return Forms(forward, product_of_blocks, by_tap)
    patched = channels < FEW_CHANNELS or x[0] * positions <= FEW_ROWS
    return Forms(forward, of_slice, of_patches if patched else by_tap)


def slices(
    x: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: Pads,
    fewest: int = 1,
) -> int:
    """Return the number of slices into which a batch is divided.

    The patches of a slice then stay in the cache, unless those of one image do not, or
    the kernel is larger. A device's rows are not divided if they are below `fewest`.
    """
    sizes = kernel[:2]
    if sizes in ((1, 1), strides):  # has no patches
        return 1
    devices = max(1, jax.sharding.get_abstract_mesh().size)
    rows = x[0] if x[0] % devices else x[0] // devices  # slices are cut on each device
    positions = math.prod(_outputs(x, sizes, strides, pads))
    patches = rows * positions * math.prod(kernel[:3])
    if patches <= LARGE or rows < fewest:
        return 1
    most = max(SLICE, math.prod(kernel))
    divisors = [n for n in range(1, rows + 1) if rows % n == 0]
    return next((n for n in divisors if patches <= n * most), rows)


def transposed(
    form: Callable[..., jax.Array],
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, ...],
    pads: Pads,
) -> Callable[[jax.Array], jax.Array]:
    """Return the gradient of the input by a form, as a function of the cotangent."""

    def of_rows(cotangent: jax.Array) -> jax.Array:
        rows = jax.ShapeDtypeStruct((len(cotangent), *x.shape[1:]), x.dtype)
        convolution = partial(form, kernel=kernel, strides=strides, pads=pads)
        return jax.linear_transpose(convolution, rows)(cotangent)[0]

    return of_rows


def xla(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], pads: Pads
) -> jax.Array:
    """XLA's convolution."""
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=layout)


def product(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], pads: Pads
) -> jax.Array:
    """One product of the patches `[n, h, w, kh kw c]` and the kernel."""
    sizes = kernel.shape[:2]
    if sizes == strides != (1, 1):
        return product_of_blocks(x, kernel, strides, pads)
    taps = _taps(x, sizes, strides, pads)
    patches = jnp.concatenate(taps, -1) if len(taps) > 1 else taps[0]
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def product_of_blocks(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], pads: Pads
) -> jax.Array:
    """The same, of stride 1, on blocks of `strides` pixels that count as one pixel.

    Each size of the kernel must be a multiple of the stride.
    """
    sh, sw = strides
    merged = rearrange(kernel, "(kh sh) (kw sw) c d -> kh kw (sh sw c) d", sh=sh, sw=sw)
    blocks = _blocks(x, kernel.shape[:2], strides, pads)
    return product(blocks, merged, (1, 1), _UNPADDED)


def by_tap(
    x: jax.Array,
    cotangent: jax.Array,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    pads: Pads,
) -> jax.Array:
    """The gradient of a kernel `shape`: a product for each of its entries."""
    sizes = shape[:2]
    if _blocked(sizes, strides):
        (kh, kw, c, d), (sh, sw) = shape, strides
        blocks = _blocks(x, sizes, strides, pads)
        merged = (kh // sh, kw // sw, sh * sw * c, d)
        gradient = by_tap(blocks, cotangent, merged, (1, 1), _UNPADDED)
        return rearrange(
            gradient, "kh kw (sh sw c) d -> (kh sh) (kw sw) c d", sh=sh, sw=sw
        )
    rows = ((0, 1, 2), (0, 1, 2))
    # [d, c], since the product is up to twice as slow in the other order.
    entries = [
        lax.dot_general(cotangent, tap, (rows, ((), ())))
        for tap in _taps(x, sizes, strides, pads)
    ]
    return rearrange(jnp.stack(entries), "(kh kw) d c -> kh kw c d", kh=shape[0])


def of_patches(
    x: jax.Array,
    cotangent: jax.Array,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    pads: Pads,
) -> jax.Array:
    """The gradient of a kernel `shape`: one product of the patches."""
    patches = jnp.concatenate(_taps(x, shape[:2], strides, pads), -1)
    rows = (x.reshape(-1, x.shape[-1]) for x in (cotangent, patches))
    return jnp.einsum("nd,nc->dc", *rows).T.reshape(shape)


def joined(function: Callable, count: int, rows: jax.Array) -> jax.Array:
    """Return `function(rows)`, computed for a slice of the rows at a time."""
    if count == 1:
        return function(rows)
    sliced = _divided(count, rows)
    shape = jax.eval_shape(function, sliced[:, 0])

    def add(number: jax.Array, joined: jax.Array) -> jax.Array:
        part = function(lax.dynamic_index_in_dim(sliced, number, 1, keepdims=False))
        return lax.dynamic_update_index_in_dim(joined, part, number, 1)

    empty = jnp.zeros((len(sliced), count, *shape.shape[1:]), shape.dtype)
    return lax.fori_loop(0, count, add, empty).reshape(len(rows), *shape.shape[1:])


def summed(function: Callable, count: int, *rows: jax.Array) -> jax.Array:
    """Return `function(*rows)`, a sum over the rows, a slice of them at a time."""
    if count == 1:
        return function(*rows)
    sliced = [_divided(count, array) for array in rows]
    shape = jax.eval_shape(function, *(array[:, 0] for array in sliced))

    def add(number: jax.Array, total: jax.Array) -> jax.Array:
        return total + function(
            *(lax.dynamic_index_in_dim(x, number, 1, keepdims=False) for x in sliced)
        )

    # In float32 or better: a sum of many slices would not grow in bfloat16.
    start = jnp.zeros(shape.shape, jnp.promote_types(shape.dtype, jnp.float32))
    return lax.fori_loop(0, count, add, start).astype(shape.dtype)


def _divided(count: int, rows: jax.Array) -> jax.Array:
    """Return `[n / count, count, ...]`; rows sharded over devices stay there."""
    return rows.reshape(len(rows) // count, count, *rows.shape[1:])


def _blocked(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the kernel reads whole blocks of `strides` pixels."""
    return max(strides) > 1 and not any(
        size % stride for size, stride in zip(sizes, strides, strict=True)
    )


def _outputs(
    x: Sequence[int], sizes: Sequence[int], strides: Sequence[int], pads: Pads
) -> list[int]:
    """Return the height and width of the output."""
    return [
        (length + before + after - size) // stride + 1
        for length, size, stride, (before, after) in zip(
            x[1:3], sizes, strides, pads, strict=True
        )
    ]


def _pad(x: jax.Array, pads: Pads) -> jax.Array:
    return jnp.pad(x, ((0, 0), *pads, (0, 0))) if np.any(pads) else x


def _blocks(
    x: jax.Array, sizes: Sequence[int], strides: Sequence[int], pads: Pads
) -> jax.Array:
    """Return `[n, h, w, sh sw c]`: the blocks of pixels that some output reads."""
    high, wide = (
        stride * (count - 1) + size
        for count, stride, size in zip(
            _outputs(x.shape, sizes, strides, pads), strides, sizes, strict=True
        )
    )
    read, (sh, sw) = _pad(x, pads)[:, :high, :wide], strides
    return rearrange(read, "n (h sh) (w sw) c -> n h w (sh sw c)", sh=sh, sw=sw)


def _taps(
    x: jax.Array, sizes: Sequence[int], strides: Sequence[int], pads: Pads
) -> list[jax.Array]:
    """Return what each entry of the kernel reads for each output, `[n, h, w, c]`."""
    padded = _pad(x, pads)
    high, wide = (
        (count - 1) * stride + 1
        for count, stride in zip(
            _outputs(x.shape, sizes, strides, pads), strides, strict=True
        )
    )
    n, *_, c = x.shape
    return [
        lax.slice(padded, (0, i, j, 0), (n, i + high, j + wide, c), (1, *strides, 1))
        for i in range(sizes[0])
        for j in range(sizes[1])
    ]
