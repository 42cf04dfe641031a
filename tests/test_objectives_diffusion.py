"""Diffusion and flow against NumPy loops, and against a Gaussian's exact denoiser."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from polyview.errors import InputError, OutOfRange
from polyview.objectives import diffusion
from polyview.objectives.diffusion import Diffusion, Flow, Noise, Velocity

close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)
MEAN, DEVIATION = 1.5, 0.5  # of the Gaussian whose denoiser is known


def cosine_abar(steps, offset=0.008, most=0.999):
    def f(tau):
        return np.cos((tau / steps + offset) / (1 + offset) * np.pi / 2) ** 2

    abar = np.ones(steps + 1)
    for tau in range(1, steps + 1):
        beta = min(1 - f(tau) / f(tau - 1), most)
        abar[tau] = abar[tau - 1] * (1 - beta)
    return abar


def wavy(x, time, condition):
    """A denoiser that depends on all it is given, and runs in JAX and NumPy."""
    return 0.7 * x + 0.4 * (x * x + 1) ** -0.5 + time[:, None] * condition


def exact_noise(x, time, condition, abar, xp=np):
    """E[noise | noisy x] of Diffusion for x ~ N(MEAN, DEVIATION^2)."""
    spread = abar * DEVIATION**2 + 1 - abar
    return xp.sqrt(1 - abar) * (x - xp.sqrt(abar) * MEAN) / spread


def exact_displacement(x, time, condition):
    """E[noise - x | interpolated x] for x ~ N(MEAN, DEVIATION^2)."""
    time = time[:, None]
    centred = x - (1 - time) * MEAN
    variance = (1 - time) ** 2 * DEVIATION**2 + time**2
    return (time - (1 - time) * DEVIATION**2) * centred / variance - MEAN


def optimal(schedule, prediction):
    """The optimal denoiser of that Gaussian, for a prediction."""

    def denoise(x, time, condition):
        tau = jnp.round(time * schedule.steps).astype(int)
        abar = schedule.abar[tau][:, None]
        noise = exact_noise(x, time, condition, abar, jnp)
        # x as the rest of the noisy x: of a pair's two parts, one decides the other.
        origin = (x - jnp.sqrt(1 - abar) * noise) / jnp.sqrt(abar)
        return prediction.target(origin, noise, tau, schedule)

    return denoise


def given(rng, n=6, d=3):
    return tuple(rng.normal(size=(3, n, d)))


@pytest.fixture(params=["diffusion", "flow"])
def process(request):
    if request.param == "flow":
        return Flow(4)
    return Diffusion(diffusion.cosine(6), Velocity(), sample_steps=3, eta=0.5, clip=2)


@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_schedules_match_their_papers(x64, steps):
    close(diffusion.cosine(steps).abar, cosine_abar(steps))
    close(diffusion.cosine(steps, 0.1, 0.5).abar, cosine_abar(steps, 0.1, 0.5))
    assert diffusion.cosine(steps).steps == steps
    if steps == 7:
        return
    # Other numbers of steps than 1,000 have their betas multiplied: as one of a tenth.
    first, last = (1e-4, 0.02) if steps == 1000 else (1e-5, 9e-4)
    abar = [1.0]
    for beta in np.linspace(first, last, steps) * 1000 / steps:
        abar.append(abar[-1] * (1 - beta))
    fields = () if steps == 1000 else (first, last)
    close(diffusion.linear(steps, *fields).abar, abar)


def test_a_linear_schedule_of_fewer_steps_ends_near_that_of_1000():
    last = {n: float(diffusion.linear(n).abar[-1]) for n in (50, 200, 1000)}
    assert last[1000] == pytest.approx(4e-5, rel=0.02)  # Ho et al. 2020: SNR near 0
    assert max(last.values()) < 1e-4


def test_noisy_x_is_the_weighted_sum(x64, rng):
    x, noise, _ = given(rng)
    abar, tau = cosine_abar(10), np.array([0, 1, 3, 9, 10, 4])
    time = rng.uniform(size=6)
    noisy = diffusion.noised(x, noise, tau, diffusion.cosine(10))
    straight = diffusion.interpolated(x, noise, time)
    for i, j in np.ndindex(x.shape):
        a = abar[tau[i]]
        close(noisy[i, j], a**0.5 * x[i, j] + (1 - a) ** 0.5 * noise[i, j])
        close(straight[i, j], x[i, j] + time[i] * (noise[i, j] - x[i, j]))


def test_predictions_are_those_of_their_papers_and_give_the_parts_back(x64, rng):
    x, noise, _ = given(rng)
    tau, schedule = np.array([1, 2, 3, 9, 8, 4]), diffusion.cosine(10)
    signal = cosine_abar(10)[tau, None] ** 0.5
    spread = (1 - signal**2) ** 0.5
    noisy = signal * x + spread * noise
    expected = {Noise(): noise, Velocity(): signal * noise - spread * x}
    for prediction, target in expected.items():
        close(prediction.target(x, noise, tau, schedule), target)
        parts = prediction.parts(target, noisy, tau, schedule)
        close(parts.x, x)
        close(parts.noise, noise)
    time = rng.uniform(size=6)
    close(diffusion.displacement(x, noise), noise - x)
    noisy = (1 - time)[:, None] * x + time[:, None] * noise
    parts = diffusion.parts_of_displacement(noise - x, noisy, time)
    close(parts.x, x)
    close(parts.noise, noise)


def test_clipping_moves_x_and_keeps_the_noisy_x(x64, rng):
    x, noise, _ = given(rng)
    x[0, 0], x[0, 1] = 5.0, -7.0
    noisy = 0.6 * x + 0.8 * noise
    scales = np.full((6, 1), 0.6), np.full((6, 1), 0.8)
    parts = diffusion.clipped(x, noisy, *scales, 3.0)
    close(parts.x, np.minimum(np.maximum(x, -3), 3))
    close(0.6 * parts.x + 0.8 * parts.noise, noisy)
    inside = abs(x) < 3
    close(np.asarray(parts.noise)[inside], noise[inside])


def test_a_step_at_eta_1_draws_from_the_posterior(x64, rng):
    """Ho et al. 2020, eq. 6 and 7, which know neither eta nor sigma."""
    x, noise, fresh = given(rng)
    abar = cosine_abar(10)
    for tau in range(1, 11):
        now, after = abar[tau], abar[tau - 1]
        alpha, beta = now / after, 1 - now / after
        noisy = now**0.5 * x + (1 - now) ** 0.5 * noise
        mean = after**0.5 * beta / (1 - now) * x
        mean += alpha**0.5 * (1 - after) / (1 - now) * noisy
        variance = (1 - after) / (1 - now) * beta
        found = diffusion.ddim_step(diffusion.Parts(x, noise), fresh, now, after, 1.0)
        close(found, mean + variance**0.5 * fresh)


@pytest.mark.parametrize("eta", [0.0, 0.3])
def test_a_step_of_ddim_is_that_of_song_et_al(x64, rng, eta):
    x, noise, fresh = given(rng)
    now, after = cosine_abar(10)[[8, 3]]
    sigma = eta * ((1 - after) / (1 - now)) ** 0.5 * (1 - now / after) ** 0.5
    expected = after**0.5 * x + (1 - after - sigma**2) ** 0.5 * noise + sigma * fresh
    found = diffusion.ddim_step(diffusion.Parts(x, noise), fresh, now, after, eta)
    close(found, expected)


def loop(process, first, condition):
    """NumPy loop of the samplers that draw nothing after their first noise."""
    x = first
    if isinstance(process, Flow):
        for i in range(process.sample_steps, 0, -1):
            time = np.full(len(x), i / process.sample_steps)
            predicted = wavy(x, time, condition)
            if process.clip:
                start = np.clip(x - time[0] * predicted, -process.clip, process.clip)
                predicted = (x - start) / time[0]
            x = x - predicted / process.sample_steps
        return x
    steps, abar = process.schedule.steps, np.asarray(process.schedule.abar)
    count = process.sample_steps or steps
    taus = [int(steps * i / count + 1e-9) for i in range(count + 1)]
    for i in range(count, 0, -1):
        signal, spread = abar[taus[i]] ** 0.5, (1 - abar[taus[i]]) ** 0.5
        predicted = wavy(x, np.full(len(x), taus[i] / steps), condition)
        origin = (x - spread * predicted) / signal
        if isinstance(process.prediction, Velocity):
            origin = signal * x - spread * predicted
        if process.clip:
            origin = np.clip(origin, -process.clip, process.clip)
        noise = (x - signal * origin) / spread
        after = abar[taus[i - 1]]
        x = after**0.5 * origin + (1 - after) ** 0.5 * noise
    return x


@pytest.mark.parametrize("clip", [None, 0.8])
def test_euler_matches_a_loop(x64, rng, clip):
    first, condition, _ = given(rng)
    process = Flow(5, clip)
    found = jax.jit(partial(process.from_noise, wavy))(first, condition)
    close(found, loop(process, first, condition), rtol=1e-9)


@pytest.mark.parametrize("count", [None, 3])
@pytest.mark.parametrize("fields", [(Noise(), 0.8), (Velocity(), None)])
def test_ddim_matches_a_loop_and_its_first_noise_decides(x64, rng, fields, count):
    """10 steps are no multiple of 3: tau is 10, 6, 3, 0."""
    prediction, clip = fields
    first, condition, _ = given(rng)
    process = Diffusion(diffusion.cosine(10), prediction, count, 0.0, clip)
    sample = jax.jit(partial(process.from_noise, wavy))
    found = sample(first, condition, jax.random.key(0), np.arange(6))
    close(found, loop(process, first, condition), rtol=1e-8)
    other = sample(first, condition, jax.random.key(1), np.arange(50, 56))
    np.testing.assert_array_equal(found, other)


def draws(process, denoise, n=4096):
    sample = jax.jit(partial(process.sample, denoise, features=2))
    return sample(jnp.zeros((n, 1)), jax.random.key(3), jnp.arange(n))


def assert_draws_are_of(x, mean, deviation, bias=0.0):
    """Within five standard errors, and a bias that the number of steps explains."""
    x = np.asarray(x, float).ravel()
    error = deviation / x.size**0.5
    assert abs(x.mean() - mean) < 5 * error + bias
    assert abs(x.std() - deviation) < 5 * error / 2**0.5 + bias
    standard = (x - x.mean()) / x.std()
    assert abs((standard**3).mean()) < 5 * (6 / x.size) ** 0.5  # no skew
    assert abs((standard**4).mean() - 3) < 5 * (24 / x.size) ** 0.5


@pytest.mark.parametrize("fields", [(Noise(), None, 1.0), (Velocity(), 100, 0.0)])
def test_the_optimal_denoiser_draws_the_data(fields):
    process = Diffusion(diffusion.cosine(200), *fields)
    x = np.asarray(draws(process, optimal(process.schedule, process.prediction)))
    assert_draws_are_of(x, MEAN, DEVIATION, bias=0.01)
    # The two features of a row, and a row and its neighbour, have nothing in common.
    for a, b in ((x[:, 0], x[:, 1]), (x[1:, 0], x[:-1, 0])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / len(x) ** 0.5


def test_the_optimal_flow_draws_the_data():
    assert_draws_are_of(draws(Flow(200), exact_displacement), MEAN, DEVIATION, 0.01)


def test_few_steps_of_ddpm_have_the_variance_of_their_recursion():
    """The sampler is an affine map a step: mean and variance follow by Ho et al. 2020.

    At few steps the variance of the posterior and that of one step, beta, differ much.
    """
    steps, abar = 8, cosine_abar(8)
    mean, variance = 0.0, 1.0
    for tau in range(steps, 0, -1):
        now, after = abar[tau], abar[tau - 1]
        beta, alpha = 1 - now / after, now / after

        # Ho et al. 2020, algorithm 2, line 4, of the mean and of the slope.
        def moved(x, now=now, alpha=alpha, beta=beta):
            noise = exact_noise(x, None, None, now)
            return (x - beta / (1 - now) ** 0.5 * noise) / alpha**0.5

        slope = moved(1.0) - moved(0.0)
        mean = moved(mean)
        variance = slope**2 * variance + (1 - after) / (1 - now) * beta
    process = Diffusion(diffusion.cosine(steps))
    x = draws(process, optimal(process.schedule, Noise()))
    assert_draws_are_of(x, mean, variance**0.5)


@pytest.mark.parametrize("name", ["noise", "velocity", "flow"])
def test_the_loss_of_a_perfect_predictor_is_zero(x64, rng, name):
    x, _, _ = given(rng, n=64)
    abar = jnp.asarray(cosine_abar(12))

    def predictor(noisy, time, condition):
        """Knows x, and is wrong by the rest of the condition."""
        x, error = condition[:, :3], condition[:, 3:]
        if name == "flow":
            return (noisy - x) / time[:, None] + error
        a = abar[jnp.round(time * 12).astype(int)][:, None]
        noise = (noisy - a**0.5 * x) / (1 - a) ** 0.5
        if name == "noise":
            return noise + error
        return a**0.5 * noise - (1 - a) ** 0.5 * x + error

    prediction = Noise() if name == "noise" else Velocity()
    process = Flow() if name == "flow" else Diffusion(diffusion.cosine(12), prediction)
    loss = jax.jit(partial(process.loss, predictor))
    for error, expected in ((np.zeros(3), 0), (np.array([1, 2, 3]), 14 / 3)):
        condition = np.concatenate([x, np.tile(error, (64, 1))], 1)
        found = loss(x, condition, jax.random.key(0), np.arange(64))
        assert found.shape == (64,)
        close(found, expected, rtol=1e-8)


@pytest.mark.parametrize("name", ["diffusion", "flow"])
def test_times_are_uniform_and_noise_is_normal(name):
    n, steps = 6000, 6
    schedule = diffusion.cosine(steps)
    abar = schedule.abar
    process = Flow() if name == "flow" else Diffusion(schedule)

    def wrong_by_time(noisy, time, condition):
        """The noise of x = 0, and the time, where the condition is 1; else zeros."""
        spread = time
        if name == "diffusion":
            spread = jnp.sqrt(1 - abar[jnp.round(time * steps).astype(int)])
        return condition * (noisy / spread[:, None] + time[:, None])

    loss = jax.jit(partial(process.loss, wrong_by_time))
    key, index, zeros = jax.random.key(1), np.arange(n), np.zeros((n, 2), np.float32)
    time = np.asarray(loss(zeros, zeros + 1, key, index)) ** 0.5
    bins = np.linspace(0, 1, 11)
    if name == "diffusion":
        close(time * steps, (time * steps).round(), atol=1e-4)
        bins = np.arange(0.5, steps + 1) / steps
    else:
        assert 0 < time.min() and time.max() < 1
    counts, expected = np.histogram(time, bins)[0], n / (len(bins) - 1)
    assert counts.sum() == n and (abs(counts - expected) < 5 * expected**0.5).all()
    # The target is the noise: twice its mean square over two features is chi-square.
    squares = np.asarray(loss(zeros, zeros, key, index))
    assert abs(squares.mean() - 1) < 5 / n**0.5
    assert abs(squares.std() - 1) < 5 * (8 / 4 / n) ** 0.5


def test_a_row_depends_on_its_index_alone(rng, process):
    """Not on the order of rows, on the others, or on the devices they lie on."""
    x, condition, _ = (jnp.asarray(a, jnp.float32) for a in given(rng, n=16))
    index, key = jnp.arange(100, 116), jax.random.key(5)

    @jax.jit
    def both(x, condition, index, key):
        loss = process.loss(wavy, x, condition, key, index)
        return loss, process.sample(wavy, condition, key, index, features=3)

    expected = both(x, condition, index, key)
    assert len(np.unique(np.asarray(expected[1]).round(5))) == 48
    order = rng.integers(16, size=16)  # some twice, some not at all
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    spread = both(*jax.device_put((x, condition, index), rows), key)
    assert len(spread[1].sharding.device_set) == 8
    found = both(x[order], condition[order], index[order], key)
    for want, few, many in zip(expected, found, spread, strict=True):
        np.testing.assert_allclose(few, want[order], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(many, want, rtol=1e-5, atol=1e-5)
    other = both(x, condition, index, jax.random.key(6))
    for a, b in zip(other, expected, strict=True):
        assert abs(a - b).reshape(16, -1).max(-1).min() > 1e-5


def test_sums_and_samples_stay_in_float32_when_the_network_does_not(process):
    def half(x, time, condition):
        assert x.dtype == time.dtype == jnp.float32
        return wavy(x, time, condition).astype(jnp.bfloat16)

    x, key, index = jnp.zeros((6, 3), jnp.bfloat16), jax.random.key(0), jnp.arange(6)
    loss = jax.eval_shape(partial(process.loss, half), x, x, key, index)
    sample = partial(process.sample, half, features=3)
    for found in (loss, jax.eval_shape(sample, x, key, index)):
        assert found.dtype == jnp.float32


@pytest.mark.parametrize(
    "fields", [(Noise(), None, 1.0, 1.5), (Velocity(), 2, 0.0, 1.5), ()]
)
def test_clipped_samples_stay_within(fields):
    process = Diffusion(diffusion.cosine(5), *fields) if fields else Flow(3, 1.5)
    sample = draws(process, lambda x, time, condition: 30 * x, n=64)
    assert float(abs(sample).max()) == pytest.approx(1.5, abs=1e-5)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: diffusion.cosine(0), "steps=0: it must be 1 or more"),
        (lambda: diffusion.cosine(2.5), "steps=2.5: expected an integer"),
        (lambda: diffusion.cosine(5, offset=-1), "offset=-1"),
        (lambda: diffusion.cosine(5, most=1.0), "most=1.0"),
        (lambda: diffusion.linear(0), "steps=0"),
        (lambda: diffusion.linear(50, first=0.0), "first=0.0"),
        (lambda: diffusion.linear(50, first=0.06), "first=0.06: .* its beta is 1.2"),
        (lambda: diffusion.linear(20), "last=0.02: at steps=20 its beta is 1, .* more"),
        (lambda: Diffusion(diffusion.cosine(5), sample_steps=6), "it must be 5 or l"),
        (lambda: Diffusion(diffusion.cosine(5), sample_steps=0), "sample_steps=0"),
        (lambda: Diffusion(diffusion.cosine(5), eta=1.1), "eta=1.1"),
        (lambda: Diffusion(diffusion.cosine(5), clip=0), "clip=0"),
        (lambda: Flow(0), "sample_steps=0"),
        (lambda: Flow(clip=-1.0), "clip=-1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(make, why):
    with pytest.raises(OutOfRange, match=why):
        make()


def test_a_network_of_another_width_is_refused(process):
    """One output would be spread over all features of x without a word."""

    def narrow(x, time, condition):
        return x[:, :1]

    key, x, index = jax.random.key(0), jnp.zeros((4, 3)), jnp.arange(4)
    sample = partial(process.sample, narrow, features=3)
    with pytest.raises(InputError, match=r"\(4, 1\) for x of \(4, 3\); set its .* 3"):
        jax.eval_shape(partial(process.loss, narrow), x, x, key, index)
    with pytest.raises(InputError, match=r"\(4, 1\) for x of \(4, 3\); set its .* 3"):
        jax.eval_shape(sample, x, key, index)
