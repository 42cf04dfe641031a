"""An evaluation reads each row once, selects without test data and records how."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from sklearn.datasets import load_digits

from polyview import devices
from polyview.data.sources.memory import InMemory
from polyview.data.sources.protocol import CorruptRecord
from polyview.errors import InputError
from polyview.evaluation.base import pixels, write_result
from polyview.evaluation.features import extract
from polyview.evaluation.frozen import FrozenFeatures
from polyview.evaluation.probe import LinearProbe

ROOT = Path(__file__).parent.parent
TARGETS = {"label": {"kind": "class", "classes": 10}}
QUICK = LinearProbe(learning_rates=(0.03, 0.1, 0.3), steps=60)


class Features(NamedTuple):
    z: jax.Array
    h: jax.Array
    local: None = None


def whole(example, rng):
    """One view: the image as it is."""
    return {
        "views": {"image": example["image"][None]},
        "present": {"image": np.ones(1, bool)},
        "targets": {"label": np.asarray(example["label"])},
    }


@jax.jit
def represent(batch):
    view = batch["views"]["image"]
    h = view.reshape(*view.shape[:2], -1).astype(jnp.float32)
    return {"image": Features(z=h[..., :4], h=h)}


def source(start, stop, targets=TARGETS, labels=None):
    images, truth = load_digits(return_X_y=True)
    labels = truth[start:stop] if labels is None else labels
    images = images[start:stop].reshape(-1, 8, 8, 1).astype(np.uint8)
    return InMemory({"image": images, "label": labels.astype(np.int32)}, targets)


def one_device():
    return jax.make_mesh(
        (1, 1), devices.AXES, axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:1]
    )


@pytest.mark.parametrize("rows, batch_size", [(40, 16), (33, 16), (5, 16), (48, 16)])
@pytest.mark.parametrize("mesh", [one_device, devices.make_mesh])
def test_features_have_every_row_once_in_order(rows, batch_size, mesh):
    data = source(0, rows)
    features = extract(represent, data, whole, batch_size=batch_size, mesh=mesh())
    images = np.stack([data[i]["image"] for i in range(rows)])
    np.testing.assert_array_equal(features.h, images.reshape(rows, -1))
    np.testing.assert_array_equal(features.z, images.reshape(rows, -1)[:, :4])
    np.testing.assert_array_equal(features.index, np.arange(rows))
    labels = [data[i]["label"] for i in range(rows)]
    np.testing.assert_array_equal(features.targets["label"], labels)


def test_features_are_averaged_over_present_views():
    def three_views(example, rng):
        image = example["image"]
        junk = np.full_like(image, 99)
        return {
            "views": {"image": np.stack([image, 3 * image, junk])},
            "present": {"image": np.array([True, True, False])},
            "targets": {},
        }

    averaged = extract(
        represent, source(0, 9), three_views, batch_size=8, mesh=devices.make_mesh()
    )
    once = extract(
        represent, source(0, 9), whole, batch_size=8, mesh=devices.make_mesh()
    )
    np.testing.assert_array_equal(averaged.h, 2 * once.h)


def test_rows_without_the_modality_are_left_out_and_counted():
    def sometimes(example, rng):
        present = np.array([example["label"] != 3])
        return whole(example, rng) | {"present": {"image": present}}

    protocol = FrozenFeatures(source(0, 300), source(300, 400), sometimes, probe=QUICK)
    result = pixels(protocol, devices.make_mesh())
    _, truth = load_digits(return_X_y=True)
    threes = int(np.sum(truth[300:400] == 3))
    assert result["protocol"]["test"]["rows"] == 100 - threes
    assert result["protocol"]["test"]["left_out"] == threes


def test_nonfinite_features_are_an_error():
    def broken(batch):
        features = represent(batch)["image"]
        bad = (batch["index"] == 7)[:, None, None]
        return {"image": features._replace(h=jnp.where(bad, jnp.nan, features.h))}

    with pytest.raises(InputError, match=r"1 of 20 rows \(first: row 7\)"):
        extract(
            jax.jit(broken),
            source(0, 20),
            whole,
            batch_size=8,
            mesh=devices.make_mesh(),
        )


def test_one_and_eight_devices_give_the_same_numbers():
    protocol = FrozenFeatures(source(0, 400), source(400, 603), whole, probe=QUICK)
    alone, spread = (
        protocol(represent, one_device()),
        protocol(represent, devices.make_mesh()),
    )
    for key in ("protocol", "knn", "linear_probe", "health"):
        assert alone[key] == spread[key]


def test_probe_selection_never_uses_test_labels():
    _, truth = load_digits(return_X_y=True)
    permuted = np.random.default_rng(0).permutation(truth[900:])
    mesh = devices.make_mesh()
    honest, blind = (
        FrozenFeatures(source(0, 900), test, whole, probe=QUICK)(represent, mesh)[
            "linear_probe"
        ]
        for test in (source(900, 1797), source(900, 1797, labels=permuted))
    )
    assert honest["chosen"] == blind["chosen"]
    assert honest["sweep"] == blind["sweep"]
    assert honest["top1"] > 0.85 and blind["top1"] < 0.2


def test_result_records_its_protocol_and_is_consistent():
    protocol = FrozenFeatures(source(0, 900), source(900, 1797), whole, probe=QUICK)
    result = protocol(represent, devices.make_mesh())
    probe = result["linear_probe"]
    confusion = np.asarray(probe["confusion"])
    assert confusion.sum() == 897 == result["protocol"]["test"]["rows"]
    assert probe["top1"] == np.trace(confusion) / 897
    per_class = np.diag(confusion) / confusion.sum(axis=1)
    np.testing.assert_allclose(probe["per_class"], per_class)
    assert probe["top5"] > probe["top1"] and result["knn"]["top1"] > 0.9
    assert result["protocol"]["knn"]["distance"] == "cosine"
    assert result["protocol"]["linear_probe"]["learning_rates"] == (0.03, 0.1, 0.3)


def test_a_source_without_labels_gets_only_health_and_a_note():
    protocol = FrozenFeatures(source(0, 100, {}), source(100, 200, {}), whole)
    result = protocol(represent, devices.make_mesh())
    assert "no labels" in result["note"]
    assert "knn" not in result and "linear_probe" not in result
    assert result["health"]["h"]["rankme"] > 1


def test_a_written_result_reads_back_complete(tmp_path):
    protocol = FrozenFeatures(source(0, 200), source(200, 300), whole, probe=QUICK)
    result = pixels(protocol, devices.make_mesh())
    path = write_result(tmp_path, "pixels", result, protocol)
    assert json.loads(path.read_text())["knn"] == result["knn"]
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        assert arrays["h"].shape == (100, 64)
        assert arrays["neighbour"].shape[1:] == (8, 8, 8, 1)
        assert arrays["neighbour"].dtype == np.uint8
    assert {file.name for file in path.parent.iterdir()} == {
        "pixels.json",
        "pixels.npz",
    }


@pytest.mark.parametrize(
    "change, message",
    [
        ({"label": "clas"}, "no target 'clas', only label; correct its label"),
        ({"modality": "text"}, "'text' is not among the views"),
        ({"validation": 1.5}, "between 0 and 1"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_invalid_settings_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        protocol = FrozenFeatures(source(0, 50), source(50, 60), whole, **change)
        protocol(represent, devices.make_mesh())


def test_a_best_value_at_the_grid_edge_warns_with_its_key():
    probe = LinearProbe(learning_rates=(1e-6, 1e-5), steps=60)
    protocol = FrozenFeatures(source(0, 200), source(200, 300), whole, probe=probe)
    warning = protocol(represent, devices.make_mesh())["linear_probe"]["warning"]
    assert "widen probe.learning_rates" in warning


def test_views_without_labels_are_refused():
    def unlabelled(example, rng):
        return whole(example, rng) | {"targets": {}}

    protocol = FrozenFeatures(source(0, 50), source(50, 60), unlabelled)
    with pytest.raises(InputError, match=r"views\.targets=\('label',\)"):
        protocol(represent, devices.make_mesh())


def test_labels_out_of_range_are_refused():
    labels = np.full(10, 11)
    protocol = FrozenFeatures(source(0, 50), source(50, 60, labels=labels), whole)
    with pytest.raises(InputError, match="row 0 has label 11"):
        protocol(represent, devices.make_mesh())


def test_unreadable_records_are_counted_as_left_out():
    def damaged(example, rng):
        if example["label"] == 5:
            raise CorruptRecord("damaged")
        return whole(example, rng)

    protocol = FrozenFeatures(source(0, 300), source(300, 400), damaged, probe=QUICK)
    described = protocol(represent, devices.make_mesh())["protocol"]["train"]
    assert described["rows"] + described["left_out"] == 300
