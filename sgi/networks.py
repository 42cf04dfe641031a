"""The networks of SGI and of the agent it is fine-tuned into (Schwarzer et al. 2021).

    latent       z = renormalise(encoder(x))           x[n, h, w, 4] -> z[n, y, x, c]
    transition   z' = renormalise(relu(conv(norm(relu(conv([z, one-hot action]))))))
    projection   the first linear layers of a head, side by side, without its noise
    head         logits of Z(z, a): value + advantage - its mean over the actions
    goal head    the same, its hidden layers scaled and shifted by a function of a goal

Initial values are those of the official code: torch's default, uniform in
+-1 / sqrt(inputs), but for the convolutions of the residual encoder. No module keeps a
random state: noise is drawn from a key that the call is given.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from polyview.errors import check_range
from polyview.nn.norm import BatchNorm
from polyview.nn.towers import Features

ATOMS = 51
LIMIT = 10.0


def support(dtype=float) -> jax.Array:
    """The returns that the heads' distributions are over: 51 from -10 to 10."""
    return jnp.linspace(-LIMIT, LIMIT, ATOMS, dtype=dtype)


def renormalise(x: jax.Array) -> jax.Array:
    """Each row of `x[n, ...]` from its least to its greatest value, onto [0, 1].

    (x - min) / (max - min + 1e-5), in float32 or better; a constant row becomes zero.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(1, x.ndim))
    low, high = (f(x, axes, keepdims=True) for f in (jnp.min, jnp.max))
    return (x - low) / (high - low + 1e-5)


def depthwise(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    form: Literal["shifts", "lax"] = "shifts",
) -> jax.Array:
    """3x3 convolution of each channel by itself, padded by 1.

    `x[n, h, w, c]`, `kernel[3, 3, c]`. "shifts" adds up nine shifted products, "lax" is
    XLA's grouped convolution: the same values to rounding, several times slower on a
    CPU, its gradient above all.
    """
    if form == "lax":
        return jax.lax.conv_general_dilated(
            x,
            kernel[:, :, None],
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
        )
    if form != "shifts":
        raise ValueError(f'form is "shifts" or "lax", not {form!r}')
    height, width = ((size - 1) // stride * stride + 1 for size in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        padded[:, i : i + height : stride, j : j + width : stride]
        * kernel[None, None, None, i, j]
        for i in range(3)
        for j in range(3)
    )


class Depthwise(nnx.Module):
    """`depthwise` with a bias; kernels drawn from N(0, deviation)."""

    def __init__(
        self,
        features: int,
        *,
        stride: int,
        deviation: float,
        form: str,
        dtype,
        param_dtype,
        rngs: nnx.Rngs,
    ):
        normal = initializers.normal(deviation)
        shape = (3, 3, features)
        self.kernel = nnx.Param(normal(rngs.params(), shape, param_dtype))
        self.bias = nnx.Param(_uniform(9)(rngs.params(), (features,), param_dtype))
        self.stride, self.form, self.dtype = stride, form, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        x, kernel, bias = _cast(self.dtype, x, self.kernel[...], self.bias[...])
        return depthwise(x, kernel, stride=self.stride, form=self.form) + _last(bias, x)


class InvertedResidual(nnx.Module):
    """shortcut(x) + branch(x), without an activation after the sum.

    branch: 1x1 to `expand` times the channels, depthwise 3x3 of the stride, 1x1 to
    `features`; a BatchNorm after each, whose last scale starts at zero (Sandler et al.
    2018). shortcut: x, or a convolution whose kernel is as large as its stride.
    `layers` of the whole encoder make the initial kernels of the branch smaller.
    """

    def __init__(
        self,
        inputs: int,
        features: int,
        *,
        stride: int,
        expand: float,
        layers: int,
        form: str,
        **options,
    ):
        if stride == 1 and inputs != features:
            raise ValueError(f"a block of stride 1 keeps its {inputs} channels")
        hidden = round(inputs * expand)
        small = layers**-0.25
        shortcut = {"deviation": _deviation(features, stride), **options}
        self.shortcut = (
            _conv(inputs, features, stride, stride, **shortcut) if stride > 1 else None
        )
        deviation = small * _deviation(hidden, 1)
        self.up = _conv(inputs, hidden, 1, deviation=deviation, **options)
        deviation = small * _deviation(hidden, 3)
        self.depthwise = Depthwise(
            hidden, stride=stride, deviation=deviation, form=form, **options
        )
        deviation = small * _deviation(features, 1)
        self.down = _conv(hidden, features, 1, deviation=deviation, **options)
        self.norm1 = BatchNorm(hidden, **options)
        self.norm2 = BatchNorm(hidden, **options)
        self.norm3 = BatchNorm(features, scale=0.0, **options)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = jax.nn.relu(self.norm1(self.up(x), train=train))
        y = jax.nn.relu(self.norm2(self.depthwise(y), train=train))
        y = self.norm3(self.down(y), train=train)
        return y + (x if self.shortcut is None else self.shortcut(x))


class Residual(nnx.Module):
    """The encoder of SGI-M: three groups of inverted residuals, strides 3, 2 and 2.

    `x[n, h, w, history] -> [n, h / 12, w / 12, widths[2]]`; h and w are multiples of
    12. The paper's M is `blocks=3, expand=2, widths=(32, 64, 64)`, its L `blocks=5,
    expand=4, widths=(48, 96, 96)`.
    """

    STRIDES = (3, 2, 2)

    def __init__(
        self,
        *,
        blocks: int = 3,
        expand: float = 2,
        widths: Sequence[int] = (32, 64, 64),
        history: int = 4,
        depthwise: str = "shifts",
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        check_range(1, blocks=blocks, widths=widths)
        options |= {"form": depthwise, "expand": expand, "layers": 3 * blocks}
        layers, inputs = [], history
        for width, group_stride in zip(widths, self.STRIDES, strict=True):
            for block in range(blocks):
                stride = group_stride if block == 0 else 1
                layers.append(InvertedResidual(inputs, width, stride=stride, **options))
                inputs = width
        self.blocks = nnx.List(layers)
        self.channels = inputs

    def side(self, size: int) -> int:
        """The side of the map of an image. Raises ValueError if it does not divide."""
        if size % prod(self.STRIDES):
            raise ValueError(f"image={size} is no multiple of {prod(self.STRIDES)}")
        return size // prod(self.STRIDES)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for block in self.blocks:
            x = block(x, train=train)
        return x


class Nature(nnx.Module):
    """The encoder of Mnih et al. 2015, SGI's S: 84 x 84 to 7 x 7 x 64, no norm."""

    LAYERS = ((8, 4), (4, 2), (3, 1))  # size and stride

    def __init__(
        self,
        *,
        widths: Sequence[int] = (32, 64, 64),
        history: int = 4,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_range(1, widths=widths)
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        layers, inputs = [], history
        for width, (size, stride) in zip(widths, self.LAYERS, strict=True):
            layers.append(_conv(inputs, width, size, stride, **options))
            inputs = width
        self.layers = nnx.List(layers)
        self.channels = inputs

    def side(self, size: int) -> int:
        """The side of the map of an image. Raises ValueError where nothing is left."""
        left = size
        for kernel, stride in self.LAYERS:
            left = (left - kernel) // stride + 1
        if left < 1:
            raise ValueError(f"image={size} is too small for this encoder")
        return left

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return x


class Transition(nnx.Module):
    """The latent after an action: `latent[n, y, x, c]`, `action: int[n]`."""

    def __init__(self, channels: int, actions: int, **options):
        self.actions = actions
        self.first = _conv(channels + actions, channels, 3, padding=1, **options)
        self.norm = BatchNorm(channels, **options)
        self.last = _conv(channels, channels, 3, padding=1, **options)

    def __call__(
        self, latent: jax.Array, action: jax.Array, *, train: bool
    ) -> jax.Array:
        chosen = jax.nn.one_hot(action, self.actions, dtype=latent.dtype)
        shape = (*latent.shape[:-1], self.actions)
        chosen = jnp.broadcast_to(chosen[:, None, None], shape)
        x = self.first(jnp.concatenate([latent, chosen], -1))
        x = self.norm(jax.nn.relu(x), train=train)  # in this order
        return renormalise(jax.nn.relu(self.last(x)))


class NoisyLinear(nnx.Module):
    """A linear layer with learned, factorised Gaussian noise (Fortunato et al. 2018).

    y = (W + S * f(e) f(e')^T) x + b + s * f(e), f(e) = sign(e) sqrt|e|, e and e' normal
    draws of `key`, one for the whole batch; without a key, the means alone. S starts at
    `sigma / sqrt(inputs)`, s at `sigma / sqrt(outputs)`: they are trained even from 0.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        sigma: float,
        dtype,
        param_dtype,
        rngs: nnx.Rngs,
    ):
        uniform = _uniform(inputs)
        self.kernel = nnx.Param(uniform(rngs.params(), (inputs, outputs), param_dtype))
        self.bias = nnx.Param(uniform(rngs.params(), (outputs,), param_dtype))
        noise = jnp.full((inputs, outputs), sigma / inputs**0.5, param_dtype)
        self.kernel_sigma = nnx.Param(noise)
        self.bias_sigma = nnx.Param(
            jnp.full((outputs,), sigma / outputs**0.5, param_dtype)
        )
        self.dtype = dtype

    def __call__(self, x: jax.Array, *, key: jax.Array | None) -> jax.Array:
        kernel, bias = self.kernel[...], self.bias[...]
        if key is not None:
            keys = jax.random.split(key)
            into, out = (
                jnp.sign(e) * jnp.sqrt(abs(e))
                for e in map(jax.random.normal, keys, kernel.shape, 2 * (kernel.dtype,))
            )
            kernel += self.kernel_sigma[...] * (into[:, None] * out[None])
            bias += self.bias_sigma[...] * out
        x, kernel, bias = _cast(self.dtype, x, kernel, bias)
        return x @ kernel + bias[None]


class Head(nnx.Module):
    """Distributions of the return of each action, duelling and noisy.

    `latent[n, ...] -> logits[n, actions, atoms]` (Bellemare et al. 2017; Wang et al.
    2016). What flows back into the latent is scaled by 1 / sqrt(2), as each of two
    streams returns a gradient.
    """

    def __init__(
        self, inputs: int, actions: int, *, hidden: int, sigma: float, **options
    ):
        self.actions = actions
        options |= {"sigma": sigma}
        self.advantage1 = NoisyLinear(inputs, hidden, **options)
        self.advantage2 = NoisyLinear(hidden, actions * ATOMS, **options)
        self.value1 = NoisyLinear(inputs, hidden, **options)
        self.value2 = NoisyLinear(hidden, ATOMS, **options)

    def __call__(self, latent: jax.Array, *, key: jax.Array | None) -> jax.Array:
        first, second = _split(key)
        return self.logits(*self.hidden(latent, key=first), key=second)

    def hidden(self, latent: jax.Array, *, key: jax.Array | None):
        """The hidden layers of advantage and value, `[n, hidden]` each."""
        kept = jax.lax.stop_gradient(latent)
        x = _flat(kept + 2**-0.5 * (latent - kept))
        layers = self.advantage1, self.value1
        return [
            jax.nn.relu(layer(x, key=k))
            for layer, k in zip(layers, _split(key), strict=True)
        ]

    def logits(self, advantage: jax.Array, value: jax.Array, *, key: jax.Array | None):
        """Logits `[n, actions, atoms]` of both hidden layers."""
        first, second = _split(key)
        advantage = self.advantage2(advantage, key=first)
        advantage = advantage.reshape(-1, self.actions, ATOMS)
        value = self.value2(value, key=second)[:, None]
        return _wide(value + advantage - advantage.mean(1, keepdims=True))

    def project(self, latent: jax.Array) -> jax.Array:
        """The projection `[n, 2 hidden]`: the first layers, before their ReLU."""
        layers = self.advantage1, self.value1
        x = _flat(latent)
        return _wide(jnp.concatenate([layer(x, key=None) for layer in layers], -1))


class Conditioner(nnx.Module):
    """What a goal does to two hidden layers: `goal[n, y, x, c] -> [n, 2, 2, hidden]`.

    The axes after n: the stream (advantage, value), then shift and scale (FiLM; Perez
    et al. 2018).
    """

    def __init__(self, side: int, channels: int, *, hidden: int, **options):
        wide = 2 * channels
        self.hidden = hidden
        self.first = _conv(channels, wide, 3, padding=1, **options)
        self.second = _conv(wide, wide, 3, padding=1, **options)
        self.last = _linear(side * side * wide, 4 * hidden, **options)

    def __call__(self, goal: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.second(jax.nn.relu(self.first(goal))))
        return self.last(_flat(x)).reshape(-1, 2, 2, self.hidden)


class GoalHead(nnx.Module):
    """A head whose hidden layers are conditioned on a goal, a latent as it is.

    `film_value_from` says what the goal scales and shifts for the value: "value" its
    own hidden layer, "advantage" the hidden layer of the advantage that the goal has
    already changed. The latter is what the official code does; the first layer of the
    value then learns through the projection alone.
    """

    def __init__(
        self,
        side: int,
        channels: int,
        actions: int,
        *,
        hidden: int,
        sigma: float,
        film_value_from: str,
        **options,
    ):
        if film_value_from not in ("advantage", "value"):
            raise ValueError(
                f'film_value_from is "advantage" or "value", not {film_value_from!r}'
            )
        self.film_value_from = film_value_from
        inputs = side * side * channels
        self.head = Head(inputs, actions, hidden=hidden, sigma=sigma, **options)
        self.conditioner = Conditioner(side, channels, hidden=hidden, **options)

    def __call__(
        self, latent: jax.Array, goal: jax.Array, *, key: jax.Array | None
    ) -> jax.Array:
        """Logits `[n, actions, atoms]` of `latent[n, y, x, c]` and such a goal."""
        first, second = _split(key)
        advantage, value = self.head.hidden(latent, key=first)
        film = self.conditioner(goal)
        advantage = advantage * film[:, 0, 1] + film[:, 0, 0]
        value = advantage if self.film_value_from == "advantage" else value
        value = value * film[:, 1, 1] + film[:, 1, 0]
        return self.head.logits(advantage, value, key=second)


class Inverse(nnx.Module):
    """The action between two projections: `[n, d]` twice -> logits `[n, actions]`."""

    def __init__(self, inputs: int, actions: int, **options):
        self.first = _linear(2 * inputs, 256, **options)
        self.last = _linear(256, actions, **options)

    def __call__(self, before: jax.Array, after: jax.Array) -> jax.Array:
        x = self.first(jnp.concatenate([before, after], -1))
        return _wide(self.last(jax.nn.relu(x)))


class Network(nnx.Module):
    """All of SGI for one game: what is pre-trained, and the agent's own head.

    `actions` is the size of the game's own action set. `encoder(rngs=)` makes an
    encoder of stacks of `history` frames of `image` pixels a side; `hidden` is the
    width of the heads. `sigma` is their initial noise: 0 in pre-training, 0.5 in
    fine-tuning. `film_value_from` as in `GoalHead`.
    """

    def __init__(
        self,
        *,
        actions: int,
        encoder: Callable[..., Residual | Nature],
        hidden: int = 512,
        sigma: float = 0.0,
        film_value_from: Literal["advantage", "value"] = "advantage",
        history: int = 4,
        image: int = 84,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        check_range(1, actions=actions, hidden=hidden, history=history, image=image)
        self.history, self.actions = history, actions
        self.encoder = encoder(history=history, **options)
        side, channels = self.encoder.side(image), self.encoder.channels
        self.transition = Transition(channels, actions, **options)
        heads = {"hidden": hidden, "sigma": sigma} | options
        self.head = Head(side * side * channels, actions, **heads)
        self.goal_head = GoalHead(
            side, channels, actions, film_value_from=film_value_from, **heads
        )
        self.predictor = _linear(2 * hidden, 2 * hidden, **options)
        self.inverse = Inverse(2 * hidden, actions, **options)

    def encode(self, stacks: jax.Array, *, train: bool) -> jax.Array:
        """Latents `[n, y, x, c]` in [0, 1] of `stacks[n, h, w, history]`: uint8, or
        floats in [0, 1] or near it."""
        if stacks.dtype == jnp.uint8:
            stacks = stacks.astype(float) / 255
        return renormalise(self.encoder(stacks, train=train))

    def project(self, latents: jax.Array) -> jax.Array:
        """Projections `[..., d]` of `latents[..., y, x, c]` by the goal head."""
        leading = latents.shape[:-3]
        z = self.goal_head.head.project(latents.reshape(-1, *latents.shape[-3:]))
        return z.reshape(*leading, -1)

    def predict(self, projections: jax.Array) -> jax.Array:
        """What the target's projections should be, `[..., d]`."""
        return _wide(self.predictor(projections))

    def __call__(
        self, batch, *, key: jax.Array | None, train: bool
    ) -> dict[str, Features]:
        """The features of the stack at time t, as "frames": h the latent, z projected.

        `batch["views"]["frames"]: uint8[b, history or more, h, w]`. Nothing is noisy.
        """
        del key
        frames = batch["views"]["frames"][:, : self.history]
        latents = self.encode(jnp.moveaxis(jnp.asarray(frames), 1, -1), train=train)
        return {"frames": features(latents, self.project(latents))}


def features(latents: jax.Array, projections: jax.Array) -> Features:
    """One view a row: the latent, flat, is the representation."""
    return Features(z=projections[:, None], h=_flat(latents)[:, None], local=None)


def _deviation(features: int, size: int) -> float:
    """He et al.'s deviation of a kernel by what leaves it."""
    return (2 / (features * size * size)) ** 0.5


def _uniform(inputs: int) -> Callable:
    """torch's default initial values of kernels and biases."""
    bound = inputs**-0.5

    def draw(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


def _conv(
    inputs: int,
    features: int,
    size: int,
    stride: int = 1,
    padding: int = 0,
    deviation: float | None = None,
    **options,
) -> nnx.Conv:
    uniform = _uniform(inputs * size * size)
    return nnx.Conv(
        inputs,
        features,
        (size, size),
        strides=stride,
        padding=padding,
        kernel_init=uniform if deviation is None else initializers.normal(deviation),
        bias_init=uniform,
        **options,
    )


def _linear(inputs: int, features: int, **options) -> nnx.Linear:
    uniform = _uniform(inputs)
    return nnx.Linear(
        inputs, features, kernel_init=uniform, bias_init=uniform, **options
    )


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1)


def _split(key: jax.Array | None):
    """Two keys, or twice None."""
    return (None, None) if key is None else jax.random.split(key)


def _cast(dtype, *arrays):
    return [jnp.asarray(a, dtype) for a in arrays]


def _last(a: jax.Array, x: jax.Array) -> jax.Array:
    """`a[c]` along the last axis of x."""
    return a.reshape((1,) * (x.ndim - 1) + (-1,))


def _wide(x: jax.Array) -> jax.Array:
    """At least float32: losses want it, whatever the layers compute in."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
