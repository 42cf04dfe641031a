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
from polyview.evaluation.classification import few_rows
from polyview.evaluation.features import Decoded, extract
from polyview.evaluation.frozen import FrozenFeatures
from polyview.evaluation.knn import WeightedKnn
from polyview.evaluation.probe import LinearProbe
from polyview.runs.evaluating import build_evaluations

ROOT = Path(__file__).parent.parent
TARGETS = {"label": {"kind": "class", "classes": 10}}
QUICK = LinearProbe(learning_rates=(0.03, 0.1, 0.3), steps=60)
QUICKEST = LinearProbe(learning_rates=(0.1,), weight_decays=(0.0,), steps=2)


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


def nearest_class(train, labels, query, k):
    """The class with the most votes exp(cosine / 0.07) of the k nearest rows."""
    cosine = [x @ query / np.linalg.norm(x) / np.linalg.norm(query) for x in train]
    votes = dict.fromkeys(range(10), 0.0)
    for i in sorted(range(len(train)), key=lambda i: -cosine[i])[:k]:
        votes[labels[i]] += np.exp((cosine[i] - 1) / 0.07)
    return max(votes, key=votes.get)


def test_few_shot_knn_equals_a_loop_over_draws():
    knn = WeightedKnn(k=(1, 20), per_class=(3, 40), draws=3)
    train, test = source(0, 60), source(60, 90)
    result = FrozenFeatures(train, test, whole, knn=knn, probe=QUICKEST, seed=4)(
        represent, devices.make_mesh()
    )
    images, labels = load_digits(return_X_y=True)
    for name, k in (("knn@1", 1), ("knn@3", 3)):  # 20 is more than a class has
        draws = []
        for draw in range(3):
            rows = few_rows(labels[:60], 3, seed=(4, draw))
            answers = [
                nearest_class(images[rows], labels[rows], query, k)
                for query in images[60:90]
            ]
            draws.append(np.mean(answers == labels[60:90]))
        found = result["few_shot"]["3"][name]
        np.testing.assert_allclose(found["draws"], draws)
        assert len(set(draws)) > 1
    assert result["few_shot"].keys() == {"3"} and result["few_shot"]["3"].keys() == {
        "knn@1",
        "knn@3",
    }
    assert "40 rows a class" in result["not_computed"]["40-shot knn"]
    assert result.columns["kNN@3 3-shot %"] == pytest.approx(100 * np.mean(draws))
    assert "knn@20" in result and "knn" not in result


def test_one_row_a_class_leaves_out_the_probe_alone():
    _, truth = load_digits(return_X_y=True)
    rows = [int(np.flatnonzero(truth == digit)[0]) for digit in (0, 1, 2)]
    images = np.stack([source(0, 50)[row]["image"] for row in rows])
    train = InMemory({"image": images, "label": np.int32([0, 1, 2])}, TARGETS)
    result = FrozenFeatures(train, source(60, 90), whole)(
        represent, devices.make_mesh()
    )
    assert "leaves one part empty" in result["not_computed"]["linear_probe"]
    assert 0 < result["knn"]["top1"] < 1 and result["health"]["h"]["rankme"] > 1
    assert "no linear probe: holding out" in result.summary


@pytest.mark.parametrize(
    ("test_labels", "note"),
    [(np.full(20, 7), "would be 100 %"), (None, "would always answer '7'")],
)
def test_one_class_gets_only_health_and_a_note(test_labels, note):
    train = source(0, 20, labels=np.full(20, 7))
    protocol = FrozenFeatures(train, source(20, 40, labels=test_labels), whole)
    result = protocol(represent, devices.make_mesh())
    assert note in result["note"] and note in result.summary
    assert "knn" not in result and "linear_probe" not in result
    assert result.columns.keys() == {"RankMe"}


class Own:
    """A source, as users write them: without a `repr`, read in turn."""

    def __init__(self, start: int, rows: int):
        self._rows, self.read = source(start, start + rows), 0
        self.targets = TARGETS

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        self.read += 1
        return self._rows[index]


class Whole:
    def __call__(self, example, rng):
        return whole(example, rng)


OWN = {
    "target": "polyview.evaluation.frozen:FrozenFeatures",
    "train": {"target": "test_evaluation_frozen:Own", "start": 0, "rows": 60},
    "test": {"target": "test_evaluation_frozen:Own", "start": 60, "rows": 30},
    "views": {"target": "test_evaluation_frozen:Whole"},
    "probe": {
        "target": "polyview.evaluation.probe:LinearProbe",
        "learning_rates": [0.1],
        "weight_decays": [0.0],
        "steps": 2,
    },
}


@pytest.mark.parametrize("kind", ["frozen", "missing", "accuracy", "class_means"])
def test_a_protocol_names_sources_by_their_spec(kind):
    spec = OWN
    if kind == "missing":
        spec = {
            "target": "polyview.evaluation.missing:MissingModalities",
            "test": OWN["test"],
            "views": {
                "target": "polyview.data.observed:Observed",
                "fields": {"image": ["image"]},
                "shapes": {"image": [8, 8, 1]},
            },
            "retrieval": False,
            "frozen": OWN,
        }
    if kind == "accuracy":
        spec = {k: v for k, v in OWN.items() if k in ("test", "views")}
        spec |= {"target": "polyview.evaluation.accuracy:Accuracy"}
    if kind == "class_means":
        spec = {k: v for k, v in OWN.items() if k in ("train", "test", "views")}
        spec |= {"target": "polyview.evaluation.zero_shot:ClassMeans", "per_class": []}
    mesh = devices.make_mesh()
    with jax.set_mesh(mesh):
        (evaluation,) = build_evaluations({"x": spec}).values()
        protocol = evaluation(represent, mesh)["protocol"]
    text = json.dumps(protocol)
    assert "0x" not in text and "object at" not in text
    part = protocol["missing"] if kind == "missing" else protocol
    assert part["test"]["source"] == OWN["test"]
    assert part["views"] == spec["views"]
    if kind != "accuracy":
        assert protocol["train"]["source"] == OWN["train"]


def test_an_evaluation_without_a_spec_names_no_address():
    protocol = FrozenFeatures(Own(0, 60), Own(60, 30), Whole(), probe=QUICKEST)
    text = json.dumps(protocol(represent, devices.make_mesh())["protocol"])
    assert "Own object" in text and "0x" not in text


def test_several_models_share_one_decoding_and_equal_separate_calls():
    train, test = Own(0, 60), Own(60, 30)
    protocol = FrozenFeatures(train, test, whole, batch_size=16, probe=QUICKEST)
    mesh = devices.make_mesh()
    alone = {"a": protocol(represent, mesh), "b": pixels(protocol, mesh)}
    once = train.read
    raw = jax.jit(lambda batch: protocol.raw(batch))
    train.read = 0
    measured = protocol.several({"a": represent, "b": raw}, mesh)
    for key, result in measured:
        for part in ("protocol", "knn", "linear_probe", "health"):
            assert result[part] == alone[key][part]
        if key == "a":  # ready before the next model is asked
            first = train.read
    pictures = once // 2 - 64  # the rows of four batches, then those of the figure
    assert first == 64 + pictures and train.read == first + pictures


def test_batches_larger_than_the_limit_are_decoded_again():
    data = Own(0, 40)
    options = {"batch_size": 16, "mesh": one_device()}
    for most, read in ((None, 48), (100, 96)):
        data.read = 0
        batches = Decoded(data, whole, most=most, **options)
        for _ in range(2):
            index = np.concatenate([batch["index"] for batch in batches])
            assert index[:40].tolist() == [*range(40)]
        assert data.read == read


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
