"""Objectives that draw an image again from its representation: AE, VAE and AAE.

The error is the mean of (x' - x)^2 over pixels and channels. x is a view as the tower
normalises it (uint8 is divided by 255 first), before photometry: with photometry, the
model also learns to undo it. x' = decode(h) of a `polyview.nn.readouts:Readouts`. A
missing view counts nowhere.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from polyview.errors import TINY, InputError, check_range
from polyview.objectives.base import Batch
from polyview.objectives.supervised import mean_of_present


def reconstruction_error(images: jax.Array, views: jax.Array) -> jax.Array:
    """(x' - x)^2 averaged over pixels and channels: float[b, m].

    images, views: float[b, m, h, w, c]. Raises InputError if the decoder makes images
    of another shape.
    """
    if images.shape != views.shape:
        raise InputError(
            f"the decoder makes images of {images.shape[2:]}, the views are "
            f"{views.shape[2:]}; set model.decoder.shape"
        )
    images = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    return jnp.square(images - views).mean((2, 3, 4))


def divergence(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) in nats, summed over d: float[b, m].

    1/2 sum_d [exp(v) + mean^2 - 1 - v], v = log_variance, of float[b, m, d] each
    (Kingma & Welling 2014, appendix B).
    """
    terms = jnp.exp(log_variance) + jnp.square(mean) - 1 - log_variance
    return terms.sum(-1) / 2


def noise_like(h: jax.Array, key: jax.Array, index: jax.Array) -> jax.Array:
    """Draws of N(0, 1) for h[b, m, d]; row i draws by (key, index[i])."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    return jax.vmap(lambda k: jax.random.normal(k, h.shape[1:], h.dtype))(keys)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def reversed_gradient(x: jax.Array, weight: float) -> jax.Array:
    """x, whose gradient is multiplied by -weight (Ganin & Lempitsky 2015)."""
    return x


def _forward(x: jax.Array, weight: float) -> tuple[jax.Array, None]:
    return x, None


def _backward(weight: float, _: None, cotangent: jax.Array) -> tuple[jax.Array]:
    return (-weight * cotangent,)


reversed_gradient.defvjp(_forward, _backward)


def adversarial(drawn: jax.Array, encoded: jax.Array) -> jax.Array:
    """Loss of a discriminator of the prior from h: float[b, m], log 2 by guessing.

    1/2 [softplus(-drawn) + softplus(encoded)], of its logits float[b, m] that a draw of
    the prior, and that h, are drawn from the prior (Goodfellow et al. 2014).
    """
    return (jax.nn.softplus(-drawn) + jax.nn.softplus(encoded)) / 2


@dataclass(frozen=True)
class Autoencoder:
    """Objective: the mean of `reconstruction_error` over views.

    Needs a model with a decoder and `microbatch=None`; else raises InputError.
    """

    modality: str = "image"

    def __call__(
        self, module: Any, target_module: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        features, present = _encoded(module, batch, key, self.modality)
        h = _only(features[self.modality].h, present)
        loss = _reconstruction(module, h, batch, present)
        own = {self.modality: features[self.modality]}
        return loss, {"loss": loss, "features": own}


@dataclass(frozen=True)
class VAE:
    """Objective: a variational autoencoder (Kingma & Welling 2014).

    loss = mean over views of error(decode(h + exp(v / 2) noise), x)
           + 2 deviation^2 / D * KL(N(h, exp(v)) || N(0, 1))

    The mean is h, v a head of the model. With D numbers in an image whose pixels have
    the standard deviation `deviation` given h, this is the negative evidence bound
    times 2 deviation^2 / D, up to a constant. So a larger deviation weighs the KL more
    (Higgins et al. 2017 call its square beta). Row i draws its noise by (key,
    index[i]). Needs what `Autoencoder` does, and raises InputError without the head.

    Attributes:
      deviation: of a pixel, in the units of a normalised view; above 0.
      log_variance: the name of the head, of as many outputs as h has.
      modality: the name of the views.
    """

    deviation: float = 1.0
    log_variance: str = "log_variance"
    modality: str = "image"

    def __post_init__(self) -> None:
        check_range(TINY, deviation=self.deviation)

    def __call__(
        self, module: Any, target_module: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        of_model, of_noise = jax.random.split(key)
        features, present = _encoded(module, batch, of_model, self.modality)
        h = _only(features[self.modality].h, present)
        if self.log_variance not in features:
            raise InputError(
                f"the model has no head {self.log_variance!r} for the log variance; "
                f"set model.heads.{self.log_variance} with out={h.shape[-1]}"
            )
        v = _only(features[self.log_variance].z, present)
        if v.shape != h.shape:
            raise InputError(
                f"the head {self.log_variance!r} has {v.shape[-1]} outputs, but h has "
                f"{h.shape[-1]} features; set its out to {h.shape[-1]}"
            )
        noise = noise_like(h, of_noise, batch["index"])
        drawn = h + jnp.exp(v / 2) * noise
        error = _reconstruction(module, drawn, batch, present)
        nats = mean_of_present(divergence(h, v), present)
        numbers = batch["views"][self.modality][0, 0].size
        loss = error + 2 * self.deviation**2 / numbers * nats
        own = {self.modality: features[self.modality]}
        metrics = {"loss": loss, "reconstruction": error, "kl": nats}
        return loss, {**metrics, "features": own}


@dataclass(frozen=True)
class AAE:
    """Objective: an adversarial autoencoder with the prior N(0, I).

    loss = mean over views of error(decode(h), x)
           + adversarial(D(draw of the prior), D(h))

    Makhzani et al. 2016 train discriminator and encoder in turns. Here one optimiser
    trains both at once: D lowers its loss, and the gradient of h is that of D's loss
    times -weight. The encoder therefore raises D's loss itself. The loss need not fall;
    the metric `discriminator` is log 2 where D can only guess, and near 0 where h is
    so wide that D always wins. Row i draws from the prior by (key, index[i]). Needs
    what `Autoencoder` does, and raises InputError without a discriminator.

    Attributes:
      weight: of the reversed gradient, 0 or more. On 8x8 digits h collapsed at 1.
      modality: the name of the views.
    """

    weight: float = 0.1
    modality: str = "image"

    def __post_init__(self) -> None:
        check_range(0.0, weight=self.weight)

    def __call__(
        self, module: Any, target_module: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        of_model, of_prior = jax.random.split(key)
        features, present = _encoded(module, batch, of_model, self.modality)
        h = _only(features[self.modality].h, present)
        error = _reconstruction(module, h, batch, present)
        prior = noise_like(h, of_prior, batch["index"])
        losses = adversarial(
            module.discriminate(prior, train=True),
            module.discriminate(reversed_gradient(h, self.weight), train=True),
        )
        discriminator = mean_of_present(losses, present)
        loss = error + discriminator
        own = {self.modality: features[self.modality]}
        metrics = {"reconstruction": error, "discriminator": discriminator}
        return loss, {"loss": loss, **metrics, "features": own}


def _encoded(
    module: Any, batch: Batch, key: jax.Array, modality: str
) -> tuple[Any, jax.Array]:
    """The features of a batch, and the mask of its views."""
    if not hasattr(module, "decode"):
        raise InputError(
            "the objective decodes representations: it needs the model "
            "polyview.nn.readouts:Readouts with a decoder, and microbatch=None"
        )
    return module(batch, key=key, train=True), batch["present"][modality]


def _reconstruction(
    module: Any, h: jax.Array, batch: Batch, present: jax.Array
) -> jax.Array:
    images = module.decode(h, train=True)
    return mean_of_present(
        reconstruction_error(images, module.normalised(batch)), present
    )


def _only(x: jax.Array, present: jax.Array) -> jax.Array:
    return jnp.where(present[..., None], x, 0)
