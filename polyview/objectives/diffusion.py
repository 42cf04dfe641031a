"""Diffusion and flow matching: from data to noise, and back by a network.

                 noisy x                                    time the network sees
    Diffusion    sqrt(abar[tau]) x + sqrt(1 - abar[tau]) e   tau / steps, tau = 1..steps
    Flow         (1 - time) x + time e                      time in (0, 1)

The noise e is N(0, 1). `denoise(noisy, time, condition) -> float[n, d]` is any network
of noisy: float[n, d], time: float[n], condition: float[n, c]. What it predicts:

    Noise          e                                     Ho et al. 2020
    Velocity       sqrt(abar) e - sqrt(1 - abar) x       Salimans & Ho 2022
    displacement   e - x                                 Lipman et al. 2023 (Flow)

Random numbers are drawn per row: those of row i are a function of (key, index[i])
alone, so neither the order of rows nor the number of devices changes them. Rows of one
index draw the same noise; give pairs of one episode numbers of their own.

Axes: n rows, d features, c features of the condition.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from polyview.errors import TINY, InputError, OutOfRange, check_range
from polyview.objectives.reconstruction import noise_like

Denoise = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Schedule(NamedTuple):
    """abar: float[steps + 1], the share of the data's variance that is left at tau.

    abar[0] is 1, and abar falls.
    """

    abar: jax.Array

    @property
    def steps(self) -> int:
        """The noisiest tau."""
        return self.abar.shape[0] - 1

    def scales(self, tau: jax.Array) -> tuple[jax.Array, jax.Array]:
        """sqrt(abar) of x and sqrt(1 - abar) of the noise, float[n, 1], at tau[n]."""
        abar = self.abar[tau][:, None]
        return jnp.sqrt(abar), jnp.sqrt(1 - abar)


def cosine(steps: int, offset: float = 0.008, most: float = 0.999) -> Schedule:
    """abar[tau] = f(tau) / f(0) of a squared cosine f (Nichol & Dhariwal 2021, eq. 17).

    f(tau) = cos^2(pi / 2 (tau / steps + offset) / (1 + offset)). No step removes more
    than the share `most` of the variance that is left: beta is
    min(1 - f(tau) / f(tau - 1), most). Raises OutOfRange for steps < 1, offset < 0 and
    most outside (0, 0.9999].
    """
    check_range(1, 10**6, steps=steps)
    check_range(0.0, offset=offset)
    check_range(TINY, 0.9999, most=most)
    f = [
        cos(pi / 2 * (tau / steps + offset) / (1 + offset)) ** 2
        for tau in range(steps + 1)
    ]
    return _schedule([min(1 - f[i + 1] / f[i], most) for i in range(steps)])


def linear(steps: int, first: float = 1e-4, last: float = 0.02) -> Schedule:
    """abar[tau] = product of 1 - beta, beta evenly spaced from `first` to `last`.

    Ho et al. 2020 use these betas for 1,000 steps. For other numbers, both ends are
    multiplied by 1,000 / steps, which keeps about the same abar at the end (as
    Nichol & Dhariwal's code does). Raises OutOfRange for steps < 1, for a beta of 0 or
    less, and for one of 1 or more after that, as `last` gives for 20 steps or fewer.
    """
    check_range(1, 10**6, steps=steps)
    check_range(TINY, first=first, last=last)
    scale = 1000 / steps
    for name, beta in {"first": first, "last": last}.items():
        if beta * scale >= 1:
            raise OutOfRange(
                f"{name}={beta}: at steps={steps} its beta is {beta * scale:.3g}, and "
                "it must be below 1; take more steps, or the cosine schedule"
            )
    slope = (last - first) / max(steps - 1, 1)
    return _schedule([scale * (first + slope * i) for i in range(steps)])


def _schedule(betas: list[float]) -> Schedule:
    """The schedule of betas[steps], multiplied in float64."""
    abar = [1.0]
    for beta in betas:
        abar.append(abar[-1] * (1 - beta))
    return Schedule(jnp.asarray(abar))


def noised(
    x: jax.Array, noise: jax.Array, tau: jax.Array, schedule: Schedule
) -> jax.Array:
    """sqrt(abar) x + sqrt(1 - abar) noise at tau: int[n] (Ho et al. 2020, eq. 4)."""
    signal, spread = schedule.scales(tau)
    return signal * x + spread * noise


def interpolated(x: jax.Array, noise: jax.Array, time: jax.Array) -> jax.Array:
    """(1 - time) x + time noise, for time: float[n] (Liu et al. 2023)."""
    return (1 - time)[:, None] * x + time[:, None] * noise


class Parts(NamedTuple):
    """x and noise, float[n, d] each, of which a noisy x is the sum."""

    x: jax.Array
    noise: jax.Array


def clipped(
    x: jax.Array,
    noisy: jax.Array,
    signal: jax.Array,
    spread: jax.Array,
    clip: float,
) -> Parts:
    """x within [-clip, clip], and the noise for which signal x + spread noise = noisy.

    signal and spread are float[n, 1], spread above 0. The noise is not that of the x
    before: a step with both would leave the path between data and noise.
    """
    x = jnp.clip(x, -clip, clip)
    return Parts(x, (noisy - signal * x) / spread)


class Prediction(Protocol):
    """What a network of `Diffusion` predicts, and the parts of noisy x from it."""

    def target(
        self, x: jax.Array, noise: jax.Array, tau: jax.Array, schedule: Schedule
    ) -> jax.Array:
        """What the network should predict for `noised(x, noise, tau, schedule)`."""

    def parts(
        self, predicted: jax.Array, noisy: jax.Array, tau: jax.Array, schedule: Schedule
    ) -> Parts:
        """x and noise of noisy[n, d], from what the network predicted."""


@dataclass(frozen=True)
class Noise:
    """Prediction of the noise (Ho et al. 2020).

    x is a difference divided by sqrt(abar), which ends at 0.001 in `cosine(50)`, and
    errors of the network grow by its inverse: clip x when sampling.
    """

    def target(
        self, x: jax.Array, noise: jax.Array, tau: jax.Array, schedule: Schedule
    ) -> jax.Array:
        return noise

    def parts(
        self, predicted: jax.Array, noisy: jax.Array, tau: jax.Array, schedule: Schedule
    ) -> Parts:
        signal, spread = schedule.scales(tau)
        return Parts((noisy - spread * predicted) / signal, predicted)


@dataclass(frozen=True)
class Velocity:
    """Prediction of sqrt(abar) noise - sqrt(1 - abar) x (Salimans & Ho 2022).

    noisy x and velocity are x and noise turned by one angle, so nothing is divided.
    """

    def target(
        self, x: jax.Array, noise: jax.Array, tau: jax.Array, schedule: Schedule
    ) -> jax.Array:
        signal, spread = schedule.scales(tau)
        return signal * noise - spread * x

    def parts(
        self, predicted: jax.Array, noisy: jax.Array, tau: jax.Array, schedule: Schedule
    ) -> Parts:
        signal, spread = schedule.scales(tau)
        return Parts(
            signal * noisy - spread * predicted, spread * noisy + signal * predicted
        )


def displacement(x: jax.Array, noise: jax.Array) -> jax.Array:
    """noise - x, the target of `Flow` (Lipman et al. 2023; Liu et al. 2023)."""
    return noise - x


def parts_of_displacement(
    predicted: jax.Array, noisy: jax.Array, time: jax.Array
) -> Parts:
    """x and noise of `interpolated` noisy[n, d] at time[n] from the displacement."""
    time = time[:, None]
    return Parts(noisy - time * predicted, noisy + (1 - time) * predicted)


def ddim_step(
    parts: Parts, fresh: jax.Array, abar: jax.Array, after: jax.Array, eta: float
) -> jax.Array:
    """The less noisy x at abar = `after`, from the parts of that at `abar`.

    sqrt(after) x + sqrt(1 - after - sigma^2) noise + sigma fresh,
    sigma^2 = eta^2 (1 - after) / (1 - abar) (1 - abar / after)

    From Song et al. 2021, eq. 12 and 16, for scalars abar < after. At eta = 0 it does
    not depend on fresh: float[n, d], N(0, 1). At eta = 1 and from tau to tau - 1, it
    draws from the posterior of Ho et al. 2020 (eq. 6 and 7): this is the step of DDPM
    with the posterior's variance.
    """
    share = eta**2 * (1 - abar / after) / (1 - abar)
    # Rounding alone can bring it above 1.
    kept = jnp.sqrt(jnp.maximum(1 - share, 0)) * parts.noise
    renewed = jnp.sqrt(share) * fresh
    return jnp.sqrt(after) * parts.x + jnp.sqrt(1 - after) * (kept + renewed)


class Process(Protocol):
    """What `Diffusion` and `Flow` have in common."""

    def loss(
        self,
        denoise: Denoise,
        x: jax.Array,
        condition: jax.Array,
        key: jax.Array,
        index: jax.Array,
    ) -> jax.Array:
        """Squared error of one prediction a row, averaged over d: float[n].

        x: float[n, d]. condition: float[n, c]. index: int[n], for the random numbers.
        Raises InputError if the network's output has another shape than x.
        """

    def sample(
        self,
        denoise: Denoise,
        condition: jax.Array,
        key: jax.Array,
        index: jax.Array,
        *,
        features: int,
    ) -> jax.Array:
        """One draw a row given condition[n, c]: float[n, features]."""


@dataclass(frozen=True, eq=False)  # the schedule's array has no hash
class Diffusion:
    """Denoising diffusion: trained on all steps, sampled in as many or in fewer.

    eta = 1 and all steps are DDPM (Ho et al. 2020), eta = 0 is DDIM (Song et al. 2021),
    which needs fewer steps. Raises OutOfRange for numbers outside their range.

    Attributes:
      schedule: of `cosine` or `linear`.
      prediction: `Noise` or `Velocity`.
      sample_steps: of sampling, evenly spaced over those of the schedule; None: all.
      eta: from 0, where the first noise decides the sample, to 1, fresh noise in each
        step.
      clip: x is held within [-clip, clip] in each step of sampling; None: it is not.
    """

    schedule: Schedule
    prediction: Prediction = Noise()
    sample_steps: int | None = None
    eta: float = 1.0
    clip: float | None = None

    def __post_init__(self) -> None:
        check_range(1, self.schedule.steps, sample_steps=self.sample_steps)
        check_range(0.0, 1.0, eta=self.eta)
        check_range(TINY, clip=self.clip)

    def loss(
        self,
        denoise: Denoise,
        x: jax.Array,
        condition: jax.Array,
        key: jax.Array,
        index: jax.Array,
    ) -> jax.Array:
        """As `Process.loss`, tau uniform on 1..steps, all with one weight."""
        x = _accurate(x)
        of_tau, of_noise = jax.random.split(key)
        most = self.schedule.steps + 1
        tau = jax.vmap(lambda k: jax.random.randint(k, (), 1, most))(
            _keys(of_tau, index)
        )
        noise = noise_like(x, of_noise, index)
        noisy = noised(x, noise, tau, self.schedule)
        predicted = _predict(denoise, noisy, self._time(tau, x), condition)
        target = self.prediction.target(x, noise, tau, self.schedule)
        return jnp.square(predicted - target).mean(-1)

    def sample(
        self,
        denoise: Denoise,
        condition: jax.Array,
        key: jax.Array,
        index: jax.Array,
        *,
        features: int,
    ) -> jax.Array:
        """As `Process.sample`."""
        of_first, of_steps = jax.random.split(key)
        first = _first(of_first, index, features)
        return self.from_noise(denoise, first, condition, of_steps, index)

    def from_noise(
        self,
        denoise: Denoise,
        noise: jax.Array,
        condition: jax.Array,
        key: jax.Array,
        index: jax.Array,
    ) -> jax.Array:
        """The draws to which noise[n, d] leads: float[n, d].

        Row i draws fresh noise by (key, index[i]), without effect at eta = 0.
        """
        steps, count = self.schedule.steps, self.sample_steps or self.schedule.steps
        taus = jnp.asarray([steps * i // count for i in range(count, -1, -1)])

        def step(
            noisy: jax.Array, taus: tuple[jax.Array, jax.Array]
        ) -> tuple[jax.Array, None]:
            now, after = taus
            tau = jnp.full(len(noisy), now)
            predicted = _predict(denoise, noisy, self._time(tau, noisy), condition)
            parts = self.prediction.parts(predicted, noisy, tau, self.schedule)
            if self.clip is not None:
                scales = self.schedule.scales(tau)
                parts = clipped(parts.x, noisy, *scales, self.clip)
            fresh = noise_like(noisy, jax.random.fold_in(key, now), index)
            abar = self.schedule.abar
            next_ = ddim_step(parts, fresh, abar[now], abar[after], self.eta)
            return next_.astype(noisy.dtype), None

        return jax.lax.scan(step, _accurate(noise), (taus[:-1], taus[1:]))[0]

    def _time(self, tau: jax.Array, x: jax.Array) -> jax.Array:
        return tau.astype(x.dtype) / self.schedule.steps


@dataclass(frozen=True)
class Flow:
    """Flow matching along straight lines from data to noise, sampled by Euler steps.

    Lipman et al. 2023; Liu et al. 2023 ("rectified flow"), with data at time 0, as in
    `Diffusion`. Raises OutOfRange for numbers outside their range.

    Attributes:
      sample_steps: evenly spaced, from time 1 to 0.
      clip: x is held within [-clip, clip] in each step of sampling; None: it is not.
    """

    sample_steps: int = 20
    clip: float | None = None

    def __post_init__(self) -> None:
        check_range(1, 10**6, sample_steps=self.sample_steps)
        check_range(TINY, clip=self.clip)

    def loss(
        self,
        denoise: Denoise,
        x: jax.Array,
        condition: jax.Array,
        key: jax.Array,
        index: jax.Array,
    ) -> jax.Array:
        """As `Process.loss`, time uniform on (0, 1)."""
        x = _accurate(x)
        of_time, of_noise = jax.random.split(key)
        least = jnp.finfo(x.dtype).tiny
        time = jax.vmap(lambda k: jax.random.uniform(k, (), x.dtype, least))(
            _keys(of_time, index)
        )
        noise = noise_like(x, of_noise, index)
        predicted = _predict(denoise, interpolated(x, noise, time), time, condition)
        return jnp.square(predicted - displacement(x, noise)).mean(-1)

    def sample(
        self,
        denoise: Denoise,
        condition: jax.Array,
        key: jax.Array,
        index: jax.Array,
        *,
        features: int,
    ) -> jax.Array:
        """As `Process.sample`."""
        return self.from_noise(denoise, _first(key, index, features), condition)

    def from_noise(
        self, denoise: Denoise, noise: jax.Array, condition: jax.Array
    ) -> jax.Array:
        """The draws float[n, d] to which noise[n, d] flows."""
        noise = _accurate(noise)
        count = self.sample_steps
        times = jnp.asarray([i / count for i in range(count, -1, -1)], noise.dtype)

        def step(
            noisy: jax.Array, times: tuple[jax.Array, jax.Array]
        ) -> tuple[jax.Array, None]:
            now, after = times
            time = jnp.full(len(noisy), now)
            predicted = _predict(denoise, noisy, time, condition)
            parts = parts_of_displacement(predicted, noisy, time)
            if self.clip is not None:
                scales = 1 - time[:, None], time[:, None]
                parts = clipped(parts.x, noisy, *scales, self.clip)
            next_ = noisy + (after - now) * displacement(*parts)
            return next_.astype(noisy.dtype), None

        return jax.lax.scan(step, noise, (times[:-1], times[1:]))[0]


def _keys(key: jax.Array, index: jax.Array) -> jax.Array:
    """A key a row, of (key, index[i])."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def _first(key: jax.Array, index: jax.Array, features: int) -> jax.Array:
    """The noise float[n, features] that a sample starts from."""
    return noise_like(jnp.zeros((len(index), features)), key, index)


def _accurate(x: jax.Array) -> jax.Array:
    """x in float32 or better."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _predict(
    denoise: Denoise, noisy: jax.Array, time: jax.Array, condition: jax.Array
) -> jax.Array:
    """The network's output; raises InputError for another shape than that of noisy."""
    predicted = denoise(noisy, time, condition)
    if predicted.shape != noisy.shape:
        raise InputError(
            f"the denoiser returns {predicted.shape} for x of {noisy.shape}; set its "
            f"number of outputs to {noisy.shape[-1]}"
        )
    return predicted
