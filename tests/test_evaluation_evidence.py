"""Evidence for a part lies in its box if positions know it; boxes train nothing."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.linear_model import Ridge

from polyview import devices
from polyview.data.augment import ResizeCenterCrop
from polyview.data.sources.memory import InMemory
from polyview.data.views import Generated
from polyview.drawing import png
from polyview.errors import InputError
from polyview.evaluation import evidence
from polyview.evaluation.evidence import Evidence
from polyview.model import Model, split_module
from polyview.nn.heads import Linear
from polyview.nn.towers import Features, Tower, Towers

PARTS, SIDE = 5, 8
PAIRS = list(itertools.product(range(PARTS), repeat=2))
VECTORS = np.array([[*np.eye(PARTS)[i], *np.eye(PARTS)[j]] for i, j in PAIRS], np.uint8)
TEST = np.arange(25)[np.arange(25) % 5 == np.arange(25) // 5]  # each part once a slot
TRAIN = np.setdiff1d(np.arange(25), TEST)
TASKS = {
    "label": {"kind": "class", "classes": 25, "names": [f"{i}+{j}" for i, j in PAIRS]},
    "attributes": {
        "kind": "multi-label",
        "names": [f"{s}{i}" for s in "lr" for i in range(PARTS)],
    },
    "boxes": {"kind": "boxes"},
    "parts": {"kind": "parts"},
}
# A part is a grey 2 x 2 texture of a cell, another on the left than on the right.
TEXTURES = np.random.default_rng(3).integers(80, 256, (2 * PARTS, 2, 2), np.uint8)


def source(classes, rows=8, seed=0):
    """Images of 4 x 4 cells: one of the left half has the left part, one of the right
    half the right part; a box is the column of cells where the part can be."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(classes, rows)
    images = rng.integers(0, 30, (len(labels), SIDE, SIDE, 1), np.uint8)
    boxes = np.zeros((len(labels), 3, 4), np.float32)
    for row, label in enumerate(labels):
        for part in (0, 1):
            top, left = 2 * rng.integers(4), 2 * (3 * part)
            texture = TEXTURES[part * PARTS + PAIRS[label][part]]
            images[row, top : top + 2, left : left + 2, 0] = texture
            boxes[row, part] = left / SIDE, 0, (left + 2) / SIDE, 1
    boxes[:, 2] = np.nan
    parts = [[i, PARTS + j, -1] for i, j in np.array(PAIRS)[labels]]
    columns = {
        "image": images,
        "label": labels,
        "attributes": VECTORS[labels],
        "boxes": boxes,
        "parts": np.array(parts),
    }
    return InMemory(columns, TASKS)


def views(*more):
    targets = ("label", "attributes", *more)
    return Generated(1, ResizeCenterCrop(size=SIDE), targets=targets)


def made(**changes):
    fields = {
        "train": source(TRAIN),
        "test": source(TEST, seed=1),
        "views": views(),
        "upright": views("boxes", "parts"),
        "path": None,
        "batch_size": 64,
        "resamples": 200,
    }
    return Evidence(**fields | changes)


def cells(x):
    """The four pixels of each cell, [n, 8, 8, 1] -> [n, 16, 4]."""
    x = x.reshape(len(x), 4, 2, 4, 2).transpose(0, 1, 3, 2, 4)
    return x.reshape(len(x), 16, 4)


class Cells(nnx.Module):
    """An encoder whose map is the products of the pixels of each cell."""

    features = 16

    def __init__(self, *, rngs):
        pass

    def __call__(self, x, *, train, key=None):
        flat = cells(x)
        products = flat[..., :, None] * flat[..., None, :]
        return flat.mean(-1), jnp.concatenate(
            [flat, products.reshape(len(x), 16, 16)], -1
        )


@functools.cache
def model():
    tower = functools.partial(
        Tower, encoder=Cells, projector=functools.partial(Linear, out=2), local=True
    )
    module = Towers({"image": tower}, rngs=nnx.Rngs(0))
    return Model(split_module(module), devices.replicated(devices.make_mesh()))


def run(evaluation, represent=None):
    mesh = devices.make_mesh()
    with jax.set_mesh(mesh):
        return evaluation(represent or model(), mesh)


@pytest.fixture(scope="module")
def result():
    return run(made())


def test_the_probe_is_a_ridge_on_all_positions(rng):
    maps = rng.normal(size=(9, 5, 4)).astype(np.float32) + 1
    maps[..., 2] = 3  # never varies
    y = rng.integers(0, 2, (9, 3)).astype(np.uint8)
    real = np.arange(9) != 4
    maps[4] = np.nan
    probe = evidence.fit_probe(evidence.moments(maps, y, real), strength=1e-2)
    x = maps[real][..., [0, 1, 3]].reshape(-1, 3).astype(float)
    shift, scale = x.mean(0), x.std(0)
    z = (x - shift) / scale
    peer = Ridge(alpha=1e-2 * np.square(z).sum()).fit(z, y[real].repeat(5, axis=0))
    each = np.maximum(z @ peer.coef_.T, 0).reshape(8, 5, 3)
    np.testing.assert_allclose(probe.evidence(maps[real]), each, atol=1e-5)


def test_overlaps_and_shares_are_loops_over_cells(rng):
    low = rng.uniform(-0.2, 0.6, (6, 2, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.05, 0.7, (6, 2, 2))], axis=-1)
    boxes[1, 0, 2] = np.nan
    inside = evidence.overlaps(boxes, 3, 4)
    fine = (np.arange(1200) + 0.5) / 1200
    left, top, right, bottom = boxes[0, 1]
    drawn = np.outer((fine > top) & (fine < bottom), (fine > left) & (fine < right))
    slow = drawn.reshape(3, 400, 4, 300).mean((1, 3)).ravel()
    np.testing.assert_allclose(inside[0, 1], slow, atol=0.01)
    found = np.maximum(rng.normal(size=(6, 12, 4)), 0)
    found[2, :, 3] = 0  # no evidence anywhere
    attributes = rng.integers(0, 2, (6, 4))
    parts = rng.integers(0, 4, (6, 2))
    parts[2], parts[3, 1] = (3, 1), -1
    shares = evidence.shares(found, attributes, parts, inside)
    for n, s in itertools.product(range(6), range(2)):
        if (n, s) in ((1, 0), (3, 1)):
            assert all(np.isnan(part[n, s]) for part in shares)
            continue

        def share(k, n=n, s=s):
            total = found[n, :, k].sum()
            return (
                inside[n, s] @ found[n, :, k] / total if total else inside[n, s].mean()
            )

        assert shares.inside[n, s] == pytest.approx(share(parts[n, s]))
        assert shares.area[n, s] == pytest.approx(inside[n, s].mean())
        absent = [share(k) for k in range(4) if not attributes[n, k]]
        assert shares.control[n, s] == pytest.approx(np.mean(absent or [0]))


def test_evidence_of_positions_lies_in_the_box_of_the_part(result):
    one = result["evidence"]
    assert one["area"] == pytest.approx(1 / 4)
    assert one["excess"] == pytest.approx(one["inside"] - one["area"])
    assert one["excess"] > 0.2 and one["low"] > 0.1
    assert one["inside"] > one["control"] + 0.1
    assert one["low"] < one["excess"] < one["high"]
    assert (one["images"], one["parts"], one["classes"]) == (40, 80, 5)
    assert one["parts_without_a_box"] == 40
    assert result.columns.keys() == result.standard_errors.keys()
    assert "box 25.0 % of the area" in result.summary
    head, body = Evidence.comparison_table({"run": result})
    assert len(body[0]) == len(head)
    figures = Evidence.figures(result, result.figure_data)
    assert png(figures["maps"])[:4] == b"\x89PNG"
    assert list(result.figure_data["name"][:2]) == ["l0", "r0"]


def test_the_mean_is_over_images_and_errors_over_classes(result):
    found = evidence.Shares(*np.random.default_rng(0).random((3, 40, 2)))
    found.inside[0, 0] = found.area[0, 0] = found.control[0, 0] = np.nan
    labels = np.repeat(np.arange(4), 10)
    one = made()._summed(found, labels)
    each = [np.nanmean(row) for row in found.inside]
    assert one["inside"] == pytest.approx(np.mean(each))
    means = np.reshape(each, (4, 10)).mean(1)
    assert one["standard_error"] == pytest.approx(means.std() / 2, rel=0.2)


def test_a_tap_of_the_encoder_reads_the_same_map(result):
    tapped = run(made(path="towers.image.encoder"))
    assert tapped["evidence"] == pytest.approx(result["evidence"])
    assert tapped["protocol"]["map"] == "towers.image.encoder"
    assert tapped["map"] == {"rows": 4, "columns": 4}


def test_shuffled_boxes_change_the_shares_and_pixels_are_a_reference(result):
    test = source(TEST, seed=1)
    test._columns["boxes"] = test._columns["boxes"][:, [1, 0, 2]]  # the other's box
    one = run(made(test=test))["evidence"]
    assert one["inside"] < result["evidence"]["inside"] - 0.3
    evaluation = made(grid=(8, 8))
    raw = run(evaluation, jax.jit(evaluation.raw))
    assert raw["protocol"]["features"]["dimensions"] == 1
    half = run(made(scale=0.5))["evidence"]
    assert half["area"] == pytest.approx(1 / 16)


def without_boxes():
    test = source(TEST)
    test._columns["boxes"] = np.full_like(test._columns["boxes"], np.nan)
    return test


@pytest.mark.parametrize(
    "change, represent, why",
    [
        ({"test": without_boxes()}, None, "no row of test has a part with a known box"),
        ({"test": source([*TEST, TRAIN[0]])}, None, "of test is also in train"),
        ({"upright": views()}, None, "pass on no target 'boxes'; set upright.targets"),
        ({"grid": (3, 4)}, None, "16 positions, not 3 x 4; set `grid`"),
        (
            {"path": "towers.image.projector"},
            None,
            "no feature map at 'towers.image.proj",
        ),
        (
            {},
            lambda batch: {"image": Features(z=0, h=0, local=None)},
            "no feature map at 'image'.local; set `path`",
        ),
    ],
)
def test_bad_input_is_refused_with_what_and_where(change, represent, why):
    with pytest.raises(InputError, match=why):
        run(made(**change), represent)


def test_data_without_boxes_name_the_command_that_brings_them():
    tasks = {name: TASKS[name] for name in ("label", "attributes")}
    columns = {"label": TEST, "attributes": VECTORS[TEST]}
    with pytest.raises(InputError, match="no target 'boxes'.*polyview.prepare han"):
        made(test=InMemory(columns, tasks))
