"""Crops of two sizes through one encoder, into one loss."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from polyview.errors import InputError
from polyview.model import merge_module, split_module
from polyview.nn.heads import Projector
from polyview.nn.resnet import resnet_tiny
from polyview.nn.towers import Features, Tower, Towers
from polyview.objectives.contrastive import Contrastive, geometric
from polyview.training import flops
from polyview.training.trainer import Trainer


def with_local_crops(config):
    """The config with two crops of 8 px and three of 4 px."""
    crop = config.views.augment.to_dict()
    config.views = {
        "target": "polyview.data.multi_crop:MultiCrop",
        "m": {"image": 2, "local": 3},
        "augments": {"image": crop, "local": crop | {"size": 4, "scale": (0.05, 0.4)}},
    }
    with config.unlocked():
        config.model.shares = {"local": "image"}
    both = {"modality": ("image", "local")}
    config.objective = config.objective.to_dict() | both
    return config


def test_two_sizes_share_a_tower_and_join_in_the_loss(digits):
    """A step of the trainer against the losses of views encoded one size at a time."""
    config = with_local_crops(digits())
    run = Trainer(config)
    shapes = run.trace()
    assert {n: v.shape for n, v in shapes["views"].items()} == {
        "image": (8, 2, 8, 8, 1),
        "local": (8, 3, 4, 4, 1),
    }
    _, batch = next(iter(run.batches(0)))
    (state, fixed), graph = run.initial(run.seed), run.abstract.graph

    @jax.jit
    def losses(params, statistics, batch):
        module = merge_module(graph, params, statistics, fixed)
        loss, metrics = run.objective(module, None, batch, jax.random.key(0))
        alone = merge_module(graph, params, statistics, fixed)
        encode = partial(alone.towers["image"], index=batch["index"], train=True)
        z = [encode(batch["views"][n], key=None).z for n in ("image", "local")]
        expected = geometric(jnp.concatenate(z, 1), temperature=0.2).mean()
        after = [split_module(module).statistics for module in (module, alone)]
        return (loss, after[0]), (expected, after[1]), metrics["features"]

    found, expected, features = losses(state.params, state.statistics, batch)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), found, expected)
    assert features["local"].z.shape == (8, 3, 32)
    # Of the loss: 6 (b m)^2 d, over all views.
    assert flops.of_step(run, shapes)[0]["loss"] == 6 * (8 * 5) ** 2 * 32

    def evaluated(params, statistics, batch):
        return merge_module(graph, params, statistics)(batch, key=None, train=False)

    views = {"views": {"image": batch["views"]["image"]}, "index": batch["index"]}
    output = jax.eval_shape(evaluated, state.params, state.statistics, views)
    assert set(output) == {"image"}


def test_a_missing_local_crop_makes_the_loss_nan():
    """As a missing view of the first modality does."""

    def module(batch, *, key, train):
        z = jnp.eye(3)[:, None] + jnp.zeros((3, 2, 3))
        return {name: Features(z, z, None) for name in ("image", "local")}

    present = {"image": np.ones((3, 2), bool), "local": np.ones((3, 2), bool)}
    objective = Contrastive(jnp.sum, modality=("image", "local"), bound=None)
    assert np.isfinite(objective(module, None, {"present": present}, None)[0])
    present["local"][1, 1] = False
    assert np.isnan(objective(module, None, {"present": present}, None)[0])


def test_a_name_that_shares_needs_a_tower_to_share():
    tower = partial(Tower, encoder=resnet_tiny, projector=Projector)
    for shares in ({"local": "images"}, {"image": "image"}):
        with pytest.raises(InputError, match="model.shares: '.*' uses the tower of"):
            Towers({"image": tower}, shares=shares, rngs=nnx.Rngs(0))
