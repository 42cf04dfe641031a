"""Scores rank wrong and foreign rows by direct calls; test rows choose nothing."""

import dataclasses
import functools
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from polyview import devices
from polyview.config import parts
from polyview.config.file import evaluations_of, load_config
from polyview.config.spec import build
from polyview.data.prepare import records
from polyview.data.sources import classes
from polyview.data.sources.labels import labels_of
from polyview.data.sources.memory import InMemory
from polyview.drawing import png
from polyview.errors import InputError, OutOfRange
from polyview.evaluation import confidence
from polyview.evaluation.activation_patterns import Patterns
from polyview.evaluation.base import write_result
from polyview.evaluation.features import one_device
from polyview.evaluation.probe import LinearProbe, held_out, logits
from polyview.evaluation.reliability import Reliability
from polyview.evaluation.reliability_measures import DISCARDED
from polyview.evaluation.selective import (
    accuracy_after_discarding,
    aucea,
    aurc,
    auroc,
    bootstrap,
    fpr_at,
)
from polyview.model import Model, split_module
from polyview.nn.heads import Linear
from polyview.nn.mlp import Mlp, ReluMlp
from polyview.nn.towers import Features, Tower, Towers
from polyview.runs.evaluating import build_evaluations

SIZE, CLASSES, WIDTHS = 5, 3, (16, 12)
TASK = {"label": {"kind": "class", "classes": CLASSES, "names": ["a", "b", "c"]}}
MEANS = np.random.default_rng(7).integers(90, 160, (CLASSES, SIZE, SIZE, 1))
BANDWIDTHS = (1, 2, 4, 8, 99)  # the last exceeds the units
LAST = "towers.image.encoder:relu.1"
LINEAR = LinearProbe(learning_rates=(0.1, 1.0), weight_decays=(0.0,), steps=20)


def images(labels, seed, deviation=45):
    noise = np.random.default_rng(seed).normal(
        0, deviation, (len(labels), *MEANS[0].shape)
    )
    return np.clip(MEANS[labels] + noise, 0, 255).astype(np.uint8)


def source(rows, seed, **columns):
    labels = np.random.default_rng(seed).integers(CLASSES, size=rows)
    return InMemory({"image": images(labels, seed), "label": labels} | columns, TASK)


def strange(seed, rows=30):
    """Foreign images, which have no label."""
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, *MEANS[0].shape))
    return InMemory({"image": pixels.astype(np.uint8)})


def views(example, rng):
    return {
        "views": {"image": example["image"][None]},
        "present": {"image": np.ones(1, bool)},
        "targets": {n: np.asarray(x) for n, x in example.items() if n != "image"},
    }


class Smooth(nnx.Module):
    """An encoder of images that ends without ReLU."""

    def __init__(self, *, features=6, rngs):
        self.mlp = Mlp(inputs=SIZE * SIZE, hidden=8, features=features, rngs=rngs)
        self.features = features

    def __call__(self, x, *, train, key=None):
        return self.mlp(x.reshape(len(x), -1), train=train)


TRAIN = source(90, 0)


@functools.cache
def towers(encoder=None, seed=0, classes=CLASSES):
    """A classifier whose last layer is fitted by least squares."""
    encoder = encoder or partial(ReluMlp, size=SIZE, widths=WIDTHS, dropout=0.0)
    tower = partial(
        Tower,
        encoder=encoder,
        projector=partial(Linear, out=classes),
        mean=0.5,
        std=0.2,
    )
    module = Towers({"image": tower}, rngs=nnx.Rngs(seed))
    h, _, labels = read(model_of(module), {"train": TRAIN})["train"]
    kernel = np.linalg.lstsq(h, 4 * np.eye(classes)[labels], rcond=None)[0]
    head = module.towers["image"].projector.linear
    head.kernel[...] = jnp.asarray(kernel, jnp.float32)
    return module


def model_of(module=None, mesh=None):
    whole = None if mesh is None else devices.replicated(mesh)
    return Model(split_module(module or towers()), whole)


DROPPING = partial(ReluMlp, size=SIZE, widths=WIDTHS, dropout=0.5)
RELU, GELU, OFTEN_OFF = towers, partial(towers, Smooth), partial(towers, DROPPING)


def read(model, sources, key=None):
    """{name: (h, logits, labels)}, in one pass."""
    columns = [s._columns for s in sources.values()]
    pixels = np.concatenate([c["image"] for c in columns])[:, None]
    index = np.concatenate([np.arange(len(c["image"])) for c in columns])
    batch = {"views": {"image": jnp.asarray(pixels)}, "index": jnp.asarray(index)}
    found = (model(batch) if key is None else model.drawn(batch, key))["image"]
    ends = np.flatnonzero(index == 0)[1:]
    h, z = (np.split(np.asarray(x)[:, 0], ends) for x in (found.h, found.z))
    labels = [c.get("label") for c in columns]
    return dict(zip(sources, zip(h, z, labels, strict=True), strict=True))


def made(**changes):
    fields = {
        "train": TRAIN,
        "calibration": source(60, 1),
        "test": source(50, 2),
        "foreign": {"noise": strange(3), "bright": strange(4, 20)},
        "views": views,
        "logits": "image",
        "bandwidths": BANDWIDTHS,
        "neighbours": 5,
        "resamples": 20,
        "batch_size": 96,
        "probe": LINEAR,
    }
    return Reliability(**fields | changes)


def probing(**changes):
    return made(**{"logits": None, "calibration": None} | changes)


def mesh_of(count):
    """A mesh of some of the eight devices."""
    return jax.make_mesh(
        (count, 1),
        devices.AXES,
        devices=jax.devices()[:count],
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
    )


def run(evaluation, module=None, mesh=None):
    mesh = mesh or mesh_of(1)
    with jax.set_mesh(mesh):
        model = model_of(module, mesh) if isinstance(module, Towers | None) else module
        return evaluation(model, mesh)


@pytest.fixture(scope="module")
def result():
    return run(made())


def best_density(active, right, calibration, right_there):
    """The bandwidth of the density, and what was found of each."""
    fits = [Patterns.fit(active, right, b) for b in BANDWIDTHS[:-1]]
    found = [aucea(fit.log_density(calibration), right_there) for fit in fits]
    return fits[int(np.argmax(found))], found


def best_error_rate(calibration, right):
    """That of the error rate: each fifth of the rows by the others."""
    folds = np.random.default_rng(0).permutation(len(right)) % 5
    found = []
    for b in BANDWIDTHS[:-1]:
        rates = np.zeros(len(right))
        for fold in range(5):
            out = folds == fold
            fit = Patterns.fit(calibration[~out], right[~out], b)
            rates[out] = fit.error_rate(calibration[out])
        found.append(aucea(-rates, right))
    return Patterns.fit(calibration, right, BANDWIDTHS[int(np.argmax(found))]), found


def direct(splits, active):
    """What an evaluation finds, by direct calls of the pure functions.

    splits: {"train", "calibration", "test" or a foreign name: (h, logits, labels)};
    active: {split: bool[n, units]}.
    """
    right = {
        name: splits[name][1].argmax(1) == splits[name][2]
        for name in ("train", "calibration", "test")
    }
    h, _, y = splits["train"]
    density, of_density = best_density(
        active["train"], right["train"], active["calibration"], right["calibration"]
    )
    local, of_local = best_error_rate(active["calibration"], right["calibration"])
    mahalanobis = confidence.Mahalanobis.fit(h, y, CLASSES)
    by_name = {
        "maximum softmax": lambda n: confidence.log_maximum_softmax(splits[n][1]),
        "entropy": lambda n: confidence.negative_entropy(splits[n][1]),
        "energy": lambda n: confidence.negative_energy(splits[n][1]),
        "margin": lambda n: confidence.margin(splits[n][1]),
        "nearest neighbours": lambda n: confidence.kth_neighbour(h, splits[n][0], k=5),
        "Mahalanobis": lambda n: mahalanobis.score(splits[n][0]),
        "density": lambda n: density.log_density(active[n]),
        "error rate": lambda n: -local.error_rate(active[n]),
    }
    scores = {name: measured(score, right["test"]) for name, score in by_name.items()}
    bound = density.log10_bound(active["test"])
    patterns = {
        "units": active["train"].shape[1],
        "constant_units": np.mean(active["train"].mean(0) % 1 == 0),
        "train_rows": len(y),
        "distinct": len(np.unique(active["train"], axis=0)),
        "density": chosen(density.bandwidth, of_density),
        "calibration_errors": (~right["calibration"]).sum(),
        "error_rate": chosen(local.bandwidth, of_local),
    }
    return scores, patterns, np.median(bound)


def chosen(bandwidth, found):
    return {
        "bandwidth": bandwidth,
        "bandwidths": list(BANDWIDTHS[:-1]),
        "calibration_aucea": found,
    }


def measured(score, right):
    test = score("test")
    own = {"wrong": wrong(test, right), "foreign": {}}
    for name in ("noise", "bright"):
        found = bootstrap(auroc, [test, score(name)], 20, 0)
        own["foreign"][name] = {
            **interval(found, "auroc", ""),
            "auroc": auroc(test, score(name)),
            "fpr95": fpr_at(test, score(name)),
        }
    others = [score("noise"), score("bright")]
    mean = bootstrap(
        lambda *x: (auroc(x[0], x[1]) + auroc(x[0], x[2])) / 2, [test, *others], 20, 0
    )
    each = [f["auroc"] for f in own["foreign"].values()]
    own["mean_foreign"] = {"auroc": np.mean(each), **interval(mean, "auroc", "")}
    return own


def interval(found, name, ending):
    fields = {"low": found.low, "high": found.high}
    fields["standard_error"] = found.standard_error
    return {f"{field}{ending}": value for field, value in fields.items()}


def wrong(test, right):
    sides = [test[right], test[~right]]
    pairs = np.stack([test, right], axis=1)
    area = bootstrap(lambda rows: aucea(*rows.T), [pairs], 20, 0)
    left = accuracy_after_discarding(test, right, DISCARDED)
    return {
        "auroc": auroc(*sides),
        **interval(bootstrap(auroc, sides, 20, 0), "auroc", ""),
        "aucea": aucea(test, right),
        **interval(area, "aucea", "_aucea"),
        "fpr95": fpr_at(*sides),
        "aurc": aurc(test, right),
        "accuracy_after_discarding": {
            str(share): one for share, one in zip(DISCARDED, left, strict=True)
        },
    }


def flat(tree):
    """{path: leaf}, so that `approx` compares nested numbers."""
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_near(one, other, tolerance=1e-6):
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    words = {k for k in one if isinstance(one[k], str)}
    assert {k: one[k] for k in words} == {k: other[k] for k in words}
    assert {k: one[k] for k in one.keys() - words} == pytest.approx(
        {k: other[k] for k in one.keys() - words}, abs=tolerance, rel=tolerance
    )


def sources_of(evaluation):
    names = ("train", "calibration", "test")
    splits = {n: getattr(evaluation, n) for n in names}
    return {n: s for n, s in splits.items() if s is not None} | evaluation.foreign


def test_numbers_of_a_classifier_are_direct_calls(result):
    evaluation, model = made(), model_of()
    splits = read(model, sources_of(evaluation))
    active = {name: h > 0 for name, (h, _, _) in splits.items()}
    scores, patterns, bound = direct(splits, active)
    assert 5 < patterns["calibration_errors"] < 40, "a poor test"
    assert_near(result["scores"], scores)
    own = dict(result["patterns"])
    assert own.pop("bound")["log10_median"] == pytest.approx(bound, rel=1e-6)
    assert_near(own, patterns)
    _, z, labels = splits["test"]
    assert result["classifier"]["top1"] == np.mean(z.argmax(1) == labels)
    assert result["protocol"]["pattern"] == f"{LAST} above 0"
    assert result["protocol"]["answers"] == "z of 'image'"
    rows = {name: result["protocol"][name]["rows"] for name in ("train", "test")}
    assert rows == {"train": 90, "test": 50}
    assert "warning" not in result and "not_computed" not in result


def probed(splits, train):
    """Replace logits by those of a probe of some training rows."""
    h, _, y = splits[train]
    with jax.set_mesh(one_device()):
        sweep = LINEAR.sweep(h, y, CLASSES, validation=0.1, seed=0)
        pair = sweep.learning_rate, sweep.weight_decay
        fitted = LINEAR.fit(h, y, CLASSES, [pair], seed=0)
    own = {n: (h, logits(fitted, h), y) for n, (h, _, y) in splits.items()}
    return own, {"learning_rate": pair[0], "weight_decay": pair[1]}


def test_numbers_of_a_probe_are_direct_calls_on_two_thirds_of_train():
    found = run(probing(), GELU())
    model = model_of(GELU())
    splits = read(model, sources_of(probing()))
    h, z, y = splits["train"]
    held = held_out(y, 1 / 3, 0)
    splits |= {
        "train": (h[~held], z[~held], y[~held]),
        "calibration": (h[held], z, y[held]),
    }
    splits, pair = probed(splits, "train")
    medians = np.median(h[~held], axis=0)
    active = {name: h > medians for name, (h, _, _) in splits.items()}
    # Six units leave three bandwidths.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "BANDWIDTHS", (1, 2, 4, 8))
        scores, patterns, _ = direct(splits, active)
    assert_near(found["scores"], scores)
    own = {k: v for k, v in found["patterns"].items() if k != "bound"}
    assert_near(own, patterns)
    protocol = found["protocol"]
    assert protocol["answers"]["chosen"] == pair
    assert protocol["pattern"] == "h above its median over train"
    rows = protocol["train"]["rows"], protocol["calibration"]["rows"]
    assert rows == ((~held).sum(), held.sum())
    assert protocol["calibration"]["source"] == "0.333 of train, held out"
    assert found["warning"].startswith("the pattern is h above its median over train")
    assert "its last activation is tanh" in found["warning"]


def test_a_probe_may_have_calibration_rows_of_its_own_and_needs_no_model():
    model = model_of(GELU())
    plain = jax.jit(lambda batch: model(batch))
    whole = run(probing(calibration=source(60, 1)), plain)
    assert whole["protocol"]["train"]["rows"] == 90
    assert "warning" not in whole  # a function has no activations to warn of
    assert whole["protocol"]["pattern"] == "h above its median over train"
    part = run(probing(calibration=source(60, 1)), GELU())
    assert_near(whole["scores"], part["scores"])


def test_test_rows_and_foreign_images_choose_nothing(result):
    other = made(test=source(40, 12), foreign={"noise": strange(13)})
    keys = ("density", "error_rate", "units", "distinct", "calibration_errors")
    again = run(other)
    assert [again["patterns"][k] for k in keys] == [result["patterns"][k] for k in keys]
    assert again["scores"]["density"] != result["scores"]["density"]
    moved = run(made(calibration=source(60, 11)))
    assert moved["patterns"]["density"] != result["patterns"]["density"]
    assert moved["patterns"]["error_rate"] != result["patterns"]["error_rate"]
    before, after = (
        run(one, GELU())
        for one in (probing(), probing(test=other.test, foreign=other.foreign))
    )
    for key in ("answers", "pattern", "train", "calibration"):
        assert before["protocol"][key] == after["protocol"][key]
    for key in ("density", "error_rate"):
        assert before["patterns"][key] == after["patterns"][key]


def test_calibration_rows_that_trained_are_refused(result):
    mixed = source(60, 1)._columns
    mixed["image"][:6] = TRAIN._columns["image"][40:46]
    leak = InMemory(mixed, TASK)
    with pytest.raises(InputError, match="10.0 % of the calibration images are train"):
        run(made(calibration=leak))
    with pytest.raises(InputError, match="10.0 % of the calibration images are train"):
        run(probing(calibration=leak), GELU())


def relabelled(source, module=None):
    """The source with the answers of a classifier as its labels."""
    _, z, _ = read(model_of(module), {"": source})[""]
    return InMemory(source._columns | {"label": z.argmax(1)}, TASK)


def test_rows_that_fit_or_choose_are_not_tested_on():
    for change, why in (
        ({"test": source(90, 0)}, "of the test images are training images too"),
        ({"test": source(60, 1)}, "of the test images are calibration images too"),
    ):
        with pytest.raises(InputError, match=why):
            run(made(**change))


def test_without_errors_a_score_is_left_out_and_says_why():
    easy = run(made(calibration=relabelled(source(60, 1))))
    assert "error rate" not in easy["scores"] and "density" in easy["scores"]
    reason = "no error among 60 calibration rows"
    assert easy["not_computed"]["error rate"].startswith(reason)
    assert f"no error rate: {reason}" in easy.summary
    assert not [name for name in easy.columns if "error rate" in name]
    right = run(made(test=relabelled(source(50, 2))))
    assert right["not_computed"]["wrong answers"].startswith("all 50 answers are right")
    for own in right["scores"].values():
        assert "wrong" not in own and own["foreign"].keys() == {"noise", "bright"}
    assert {*right.columns} == {
        "accuracy %",
        *(f"foreign, {n} %" for n in ("maximum softmax", "density", "error rate")),
    }
    alone = run(made(test=relabelled(source(50, 2)), foreign={}))
    assert alone.columns == {"accuracy %": 100.0}
    assert "; no wrong answers: all 50" in alone.summary
    many = run(made(neighbours=91))
    assert "nearest neighbours" not in many["scores"]
    assert "91" in many["not_computed"]["nearest neighbours"]


def test_layers_are_named_or_warned_of():
    first = run(made(layer="towers.image.encoder:relu.0"))
    assert first["patterns"]["units"] == WIDTHS[0] and "warning" not in first
    with pytest.raises(InputError, match=f"no activation 'encoder:relu'.*{LAST}"):
        run(made(layer="encoder:relu"))
    smooth = "towers.image.encoder.mlp:tanh"
    found = run(probing(layer=smooth), GELU())
    assert found["patterns"]["units"] == 8
    assert f"{smooth} is smooth (tanh)" in found["warning"]
    with pytest.raises(InputError, match="function has no activation 'a:relu'.*leave"):
        run(probing(layer="a:relu"), jax.jit(lambda batch: model_of()(batch)))

    class Straight(nnx.Module):
        features = SIZE * SIZE

        def __init__(self, *, rngs):
            pass

        def __call__(self, x, *, train, key=None):
            return (x.reshape(len(x), -1), None)

    assert run(probing(), towers(Straight))["warning"].endswith("train: no ReLU")

    class Between(Smooth):
        def __call__(self, x, *, train, key=None):
            return super().__call__(jax.nn.relu(x), train=train)

    warning = run(probing(), towers(Between))["warning"]
    assert (
        "its last activation is tanh; name a ReLU by layer=towers.image.enc" in warning
    )


def changed(value, layer=-1):
    """The classifier with another bias in a layer of its encoder."""
    module = nnx.clone(towers())
    module.towers["image"].encoder.layers[layer].bias[...] = jnp.full(12, value)
    return module


def test_weights_that_say_nothing_are_refused():
    with pytest.raises(InputError, match="always inactive; the layer is dead: name an"):
        run(made(), changed(-1e3))
    with pytest.raises(
        InputError, match=r"90 of 90 rows \(first: row 0\) have features h"
    ):
        run(made(), changed(np.nan))


def test_answers_and_features_that_are_not_finite_are_named_by_their_row():
    model = model_of()

    def broken(field, rows):
        def represent(batch):
            one = model(batch)["image"]
            lost = jnp.isin(batch["index"], jnp.asarray(rows))[:, None, None]
            found = jnp.where(lost, jnp.nan, getattr(one, field))
            return {"image": one._replace(**{field: found})}

        return jax.jit(represent)

    # The answers of training rows are not scored: they would only count as wrong.
    for field, rows, message in (
        ("h", [88], r"evaluation: train: 1 of 90 rows \(first: row 88\) .*features h"),
        ("z", [70, 75], r"train: 2 of 90 rows \(first: row 70\) .*features z that are"),
    ):
        with pytest.raises(InputError, match=message):
            run(made(), broken(field, rows))


EMPTY = InMemory({"image": np.zeros((0, *MEANS[0].shape), np.uint8), "label": []}, TASK)
BARE = InMemory({"image": np.zeros((4, *MEANS[0].shape), np.uint8)})


def twice(example, rng):
    one = views(example, rng)
    return one | {
        "views": {"image": np.repeat(one["views"]["image"], 2, axis=0)},
        "present": {"image": np.ones(2, bool)},
    }


def unlabelled(example, rng):
    return views(example, rng) | {"targets": {}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calibration": None}, "cannot calibrate it; set calibration to rows"),
        ({"logits": None, "members": {"b": model_of}}, "needs classifiers.*leave out"),
        ({"bandwidths": ()}, "bandwidths is empty; give one"),
        ({"bandwidths": (64, 99)}, "exceed the 12 units of the pattern; give smaller"),
        ({"draws": 1}, "draws=1 is no average; give 2 or more, or 0"),
        ({"views": twice}, "test has 2 views of 'image' a sample|train has 2 views"),
        ({"modality": "sound"}, "no view of 'sound' a sample; set its views"),
        ({"logits": "sound"}, r"gives no 'sound', only \['image'\]; correct `logits`"),
        ({"views": unlabelled}, "pass on no target 'label'; set its views.targets"),
        ({"foreign": {"none": EMPTY}}, "foreign none has no rows; choose another"),
        ({"test": EMPTY}, "test has no rows; choose another"),
        ({"train": EMPTY}, "train has no rows; choose another"),
        ({"calibration": EMPTY}, "calibration has no rows; choose another"),
        ({"calibration": BARE}, "the calibration source has no labels; set"),
        ({"test": BARE}, "the test source has no labels; set"),
    ],
)
def test_bad_input_is_one_line_with_its_remedy(changes, message):
    with pytest.raises(InputError, match=message):
        run(made(**changes))


def test_numbers_out_of_range_are_refused():
    for name, value in {
        "batch_size": 0,
        "neighbours": 0,
        "draws": -1,
        "resamples": 1,
        "held_out": 1.0,
    }.items():
        with pytest.raises(OutOfRange, match=name):
            made(**{name: value})


def test_draws_are_those_of_dropout_and_their_seed():
    found = run(made(draws=3), OFTEN_OFF())
    model = model_of(OFTEN_OFF())
    keys = jax.random.split(jax.random.key(0), 3)
    drawn = [read(model, sources_of(made()), key) for key in keys]

    def score(name):
        several = np.stack([one[name][1] for one in drawn])
        mean = confidence.mean_log_probabilities(several)
        return confidence.negative_entropy(mean)

    _, z, labels = read(model, sources_of(made()))["test"]
    assert_near(found["scores"]["dropout"], measured(score, z.argmax(1) == labels))
    other = run(made(draws=3, seed=1), OFTEN_OFF())
    values = [r["scores"]["dropout"]["mean_foreign"]["auroc"] for r in (found, other)]
    assert values[0] != values[1]
    for name in ("entropy", "density"):  # seeds of resamples only
        one, two = (dict(r["scores"][name]["wrong"]) for r in (found, other))
        assert one["auroc"] == two["auroc"]
    still = run(made(draws=3))
    assert "dropout" not in still["scores"]
    assert "no dropout" in still["not_computed"]["dropout"]


def test_members_make_an_ensemble():
    mesh = mesh_of(1)
    same = run(made(members={"copy": model_of(mesh=mesh)}))
    assert_near(same["scores"]["ensemble"], same["scores"]["entropy"], 1e-5)
    further = towers(seed=1)
    other = run(made(members={"seed 1": model_of(further, mesh)}))
    assert other["protocol"]["members"] == ["seed 1"]

    both = [read(model_of(one), sources_of(made())) for one in (towers(), further)]

    def score(name):
        mean = confidence.mean_log_probabilities(np.stack([b[name][1] for b in both]))
        return confidence.negative_entropy(mean)

    _, z, labels = both[0]["test"]
    assert_near(other["scores"]["ensemble"], measured(score, z.argmax(1) == labels))
    four = model_of(towers(classes=4), mesh)
    with pytest.raises(InputError, match="member b gives no 'image' of 3 classes; lea"):
        run(made(members={"b": four}))
    with pytest.raises(InputError, match="member c gives no 'image' of 3 classes; lea"):
        run(made(members={"c": lambda batch: {"text": four(batch)["image"]}}))


def test_members_answer_the_same_classes_in_the_same_order():
    members = {"x": model_of()}
    same = made(members=members, member_classes={"x": ["a", "b", "c"]})
    assert same.members == members
    for theirs, message in (
        (["b", "a", "c"], "member x has class 0 'b', this run 'a';.* leave it out of"),
        (("a", "b", "d"), "member x has class 2 'd', this run 'c'"),
        (["a", "b"], "member x answers 2 classes, this run 3; an ensemble averages"),
    ):
        with pytest.raises(InputError, match=message):
            made(members=members, member_classes={"x": theirs})
    unnamed = {"label": {"kind": "class", "classes": CLASSES}}
    splits = {
        name: InMemory(getattr(same, name)._columns, unnamed)
        for name in ("train", "calibration", "test")
    }
    made(**splits, member_classes={"x": ["0", "1", "2"]})
    with pytest.raises(InputError, match="class 1 '2', this run '1'"):
        made(**splits, member_classes={"x": ["0", "2", "1"]})


def test_devices_batches_and_further_targets_change_nothing():
    boxed = {
        name: InMemory(
            s._columns | {"boxes": np.zeros((len(s), 2, 4), np.float32)}, s.targets
        )
        for name, s in sources_of(made()).items()
        if name in ("train", "calibration", "test")
    }
    base = made(draws=2)
    results = [
        run(base, OFTEN_OFF()),
        run(dataclasses.replace(base, batch_size=13), OFTEN_OFF(), mesh_of(8)),
        run(dataclasses.replace(base, **boxed), OFTEN_OFF()),
    ]
    for other in results[1:]:
        for key in ("scores", "patterns", "classifier"):
            assert_near(results[0][key], other[key], 1e-5)
        for name, array in results[0].figure_data.items():
            if name == "line":
                assert (array == other.figure_data[name]).all()
            else:
                np.testing.assert_allclose(array, other.figure_data[name], atol=1e-5)
    probes = [run(probing(), GELU(), mesh_of(count)) for count in (1, 8)]
    assert_near(probes[0]["scores"], probes[1]["scores"], 1e-5)


def test_foreign_images_may_be_of_one_class_and_have_a_view_of_their_own(result):
    labels = np.full(25, 2)
    single = InMemory({"image": images(labels, 5), "label": labels}, TASK)
    found = run(made(foreign={"one class": single}))
    own = found["scores"]["density"]["foreign"]
    assert {*own} == {"one class"} and 0 <= own["one class"]["auroc"] <= 1

    def inverse(example, rng):
        return unlabelled({"image": 255 - example["image"]}, rng)

    turned = InMemory({"image": 255 - strange(3)._columns["image"]})
    again = run(made(foreign={"noise": turned}, foreign_views=inverse))
    for name, own in again["scores"].items():
        assert own["wrong"] == result["scores"][name]["wrong"]
        assert own["foreign"]["noise"] == result["scores"][name]["foreign"]["noise"]


def test_a_result_has_columns_a_table_figures_and_is_written(result, tmp_path):
    shown = ("maximum softmax", "density", "error rate")
    scores = result["scores"]
    assert result.columns == pytest.approx(
        {"accuracy %": 100 * result["classifier"]["top1"]}
        | {f"wrong, {n} %": 100 * scores[n]["wrong"]["auroc"] for n in shown}
        | {f"foreign, {n} %": 100 * scores[n]["mean_foreign"]["auroc"] for n in shown}
    )
    assert result.standard_errors.keys() == result.columns.keys()
    error = scores["density"]["mean_foreign"]["standard_error"]
    assert result.standard_errors["foreign, density %"] == pytest.approx(100 * error)
    assert result.summary.startswith("accuracy ")
    assert f"foreign, density {result.columns['foreign, density %']:.1f} %" in (
        result.summary
    )
    bare = {"scores": {"entropy": {"foreign": {"other": {"auroc": 0.25}}}}}
    head, body = Reliability.comparison_table({"run": result, "bare": bare})
    assert head == [
        *("score [95 % interval]", "wrong: AUROC %", "AUCEA %", "FPR95 %"),
        *("noise: AUROC %", "FPR95 %", "bright: AUROC %", "FPR95 %"),
        *("other: AUROC %", "FPR95 %"),
    ]
    bandwidths = {
        score: f", bandwidth {result['patterns'][key]['bandwidth']}"
        for score, key in (("density", "density"), ("error rate", "error_rate"))
    }
    assert [line[0] for line in body] == [
        *(f"run: {n}{bandwidths.get(n, '')}" for n in scores),
        "bare: entropy",
    ]

    def within(own, name, ending=""):
        ends = (f"{100 * own[f'{end}{ending}']:.1f}" for end in ("low", "high"))
        return f"{100 * own[name]:.1f} [{', '.join(ends)}]"

    entropy = scores["entropy"]
    own, noise, bright = entropy["wrong"], *entropy["foreign"].values()
    assert own["low"] != own["low_aucea"] and own["fpr95"] not in (0, 1)
    assert body[1][1:] == [
        *(within(own, "auroc"), within(own, "aucea", "_aucea")),
        f"{100 * own['fpr95']:.1f}",
        *(within(noise, "auroc"), f"{100 * noise['fpr95']:.1f}"),
        *(within(bright, "auroc"), f"{100 * bright['fpr95']:.1f}"),
        *("–", "–"),
    ]
    assert body[-1][1:] == [*("–",) * 7, "25.0", "–"]
    head, alone = Reliability.comparison_table({"run": result})
    assert [line[0] for line in alone] == [n + bandwidths.get(n, "") for n in scores]
    assert head[-2:] == ["bright: AUROC %", "FPR95 %"]
    path = write_result(tmp_path, "1-reliability", result, made())
    written = json.loads(path.read_text())
    assert written["scores"] == scores and written["columns"] == result.columns
    with np.load(path.with_suffix(".npz")) as data:
        figures = Reliability.figures(written, data)
        assert figures.keys() == {"risk", "bandwidths", "images"}
        assert all(png(one)[:4] == b"\x89PNG" for one in figures.values())
        plain = {k: data[k] for k in data if k not in ("image", "right", "line")}
    assert Reliability.figures(written, plain).keys() == {"risk", "bandwidths"}
    assert_chosen_are_marked(figures["bandwidths"], result["patterns"])


def assert_chosen_are_marked(figure, patterns):
    """The lines of both scores have what calibration rows gave, and one large point."""
    (axes,) = figure.axes
    lines = iter(axes.get_lines())
    for name, key in (("density", "density"), ("error rate", "error_rate")):
        own = patterns[key]
        found = 100 * np.array(own["calibration_aucea"])
        np.testing.assert_allclose(next(lines).get_xydata().T[1], found)
        point = next(lines)
        np.testing.assert_allclose(
            point.get_xydata(), [[own["bandwidth"], found.max()]], rtol=1e-12
        )
        assert point.get_label() == f"{name}: {own['bandwidth']} is chosen"


def test_figure_data_are_the_images_at_both_ends(result):
    data, test = result.figure_data, made().test
    assert data["image"].shape == (6, 8, SIZE, SIZE, 1)
    _, z, labels = read(model_of(), {"": test})[""]
    order = np.argsort(-confidence.log_maximum_softmax(z), kind="stable")
    for line, rows in ((0, order[:8]), (1, order[::-1][:8])):
        np.testing.assert_array_equal(data["image"][line], test._columns["image"][rows])
        right = z[rows].argmax(1) == labels[rows]
        np.testing.assert_array_equal(data["right"][line], right)
    assert data["line"][2:4].tolist() == [
        "density: most reliable",
        "density: least reliable",
    ]
    share = np.mean(z.argmax(1) != labels)
    for number in range(len(result["scores"])):
        assert data[f"risk_{number}"][-1] == pytest.approx(share)

    def floats(example, rng):
        one = views(example, rng)
        return one | {"views": {"image": np.float32(one["views"]["image"]) / 255}}

    def represent(batch):
        h = batch["views"]["image"].reshape(len(batch["index"]), 1, -1)
        return {"image": Features(z=h, h=h, local=None)}

    found = run(probing(views=floats), jax.jit(represent))
    assert "image" not in found.figure_data
    drawn = Reliability.figures(found, found.figure_data)
    assert drawn.keys() == {"risk", "bandwidths"}


ROOT = Path(__file__).parent.parent
FILE = f"{ROOT}/configs/evaluations/reliability.py"


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Stand-ins for fashion_mnist, and for digits in colour; and a folder of images."""
    monkeypatch.setenv("POLYVIEW_DATA", str(tmp_path))
    rng = np.random.default_rng(0)
    task = {"label": {"kind": "class", "classes": 10}}
    for name, side, channels in (("fashion_mnist", 28, 1), ("digits", 8, 3)):
        splits = {
            split: [
                {
                    "image": rng.integers(0, 256, (side, side, channels), np.uint8),
                    "label": i % 10,
                }
                for i in range(rows)
            ]
            for split, rows in (("train", 80), ("test", 40))
        }
        records.write(
            tmp_path / name, splits, version="1", targets=task, source="", licence=""
        )
    (tmp_path / "photos").mkdir()
    for i in range(6):
        pixels = rng.integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path


def config_of(argument):
    path = f"{ROOT}/configs/classifier_fashion_mnist.py:{argument}"
    return load_config(path).to_dict()


def spec_of(argument, run):
    specs = evaluations_of(f"{FILE}:{argument}", run)
    assert {*specs} == {"reliability"}
    return specs["reliability"]


def test_the_file_of_evaluations_calibrates_on_the_rows_after_those_of_training(
    prepared,
):
    config = config_of("classes=0-7,label_noise=.2,rows=40,width=16")
    ood = f"noise+inverted+classes+digits+{prepared}/photos"
    spec = spec_of(f"ood={ood},draws=2,k=5,resamples=10", config)
    noisy, some = spec["calibration"], spec["calibration"]["source"]
    assert some["source"]["split"] == "train[40:60]"
    assert spec["train"] == config["source"]
    assert {**noisy, "source": 0} == {**config["source"], "source": 0}
    assert some["keep"] == list(range(8)) == config["source"]["source"]["keep"]
    assert spec["logits"] == "image" and spec["draws"] == 2
    made = build_evaluations({"reliability": spec})["reliability"]
    # 20 rows of 10 classes in turn, of which 8 are kept.
    lengths = [len(s) for s in (made.train, made.calibration, made.test)]
    assert lengths == [32, 16, 32]
    assert {*made.foreign} == {"noise", "inverted", "classes", "digits", "photos"}
    left = made.foreign["classes"]
    assert len(left) == 8 and left.targets["label"]["names"] == ["8", "9"]
    assert made.foreign["digits"][0]["image"].shape == (8, 8, 1)
    # A run on it: its model takes images of one channel.
    module = build(config["model"])(rngs=nnx.Rngs(0))
    kernel = module.towers["image"].projector.linear.kernel  # which starts at 0
    kernel[...] = jax.random.normal(jax.random.key(0), kernel.shape)
    found = run(made, module)
    assert found["protocol"]["train"]["source"] == config["source"]
    assert found["protocol"]["foreign photos"]["rows"] == 6
    assert found["protocol"]["pattern"].startswith("towers.image.encoder:relu")
    assert {*found["scores"]["density"]["foreign"]} == {*made.foreign}
    assert "dropout" in found["scores"]


def test_the_file_of_evaluations_probes_a_run_without_answers(prepared):
    config = config_of("rows=40") | {"objective": parts.contrastive("nt_xent", 0.1)}
    spec = spec_of("train=train[10:50],runs=", config)
    assert spec["logits"] is None and spec["calibration"] is None and spec["draws"] == 0
    assert spec["train"]["split"] == "train[10:50]"
    other = spec_of("data=digits,calibration=train[40:]", config)
    assert other["train"]["name"] == other["test"]["name"] == "digits"
    assert other["calibration"]["split"] == "train[40:]"
    named = spec_of("calibration=test[:7],ood=", config_of("rows=40"))
    assert named["calibration"]["split"] == "test[:7]" and named["foreign"] == {}


def test_the_file_of_evaluations_refuses_members_of_other_classes(prepared):
    config = config_of("rows=40,classes=0-7")

    def joined(*changes):
        paths = []
        for number, change in enumerate(changes):
            folder = prepared / f"run{number}"
            folder.mkdir(exist_ok=True)
            written = config | {"source": {**config["source"], **change}}
            (folder / "config.json").write_text(json.dumps(written))
            paths.append(str(folder))
        return spec_of(f"ood=,runs={'+'.join(paths)}", config), paths

    spec, paths = joined({}, {})
    assert {path: one["run"] for path, one in spec["members"].items()} == {
        path: path for path in paths
    }
    assert spec["member_classes"] == dict.fromkeys(paths, list("01234567"))
    build({**spec, "members": {}})  # whose models are not there
    for keep, message in (
        ([1, 0, *range(2, 8)], "run1 has class 0 '1', this run '0'"),
        (range(2, 10), "run1 has class 0 '2', this run '0'"),
        (range(7), "run1 answers 7 classes, this run 8"),
    ):
        spec, _ = joined({}, {"keep": list(keep)})
        with pytest.raises(InputError, match=message):
            build({**spec, "members": {}})
    with pytest.raises(InputError, match="source calls 'os:system'.*not trusted"):
        joined({"source": {"target": "os:system", "command": "true"}})


def test_the_file_of_evaluations_reads_the_labels_of_test_once(prepared, monkeypatch):
    config = config_of("rows=40,classes=0-7")
    (prepared / "other").mkdir()
    (prepared / "photos" / "0.png").rename(prepared / "other" / "0.png")
    read = []
    monkeypatch.setattr(
        classes,
        "labels_of",
        lambda *arguments: read.append(arguments) or labels_of(*arguments),
    )
    ood = f"noise+digits+{prepared}/photos+{prepared}/other"
    spec = spec_of(f"ood={ood}", config)
    assert len(read) == 1
    for name in ("digits", "photos", "other"):
        assert spec["foreign"][name]["channels"] == 1
    assert spec["foreign"]["noise"]["like"] == spec["test"]
    spec_of("ood=noise+inverted", config)
    assert len(read) == 1


def test_the_file_of_evaluations_refuses_what_it_cannot_measure(prepared):
    config = config_of("rows=40")
    whole = config | {"source": {**config["source"], "split": "train"}}
    untested = config | {"evaluations": {}}
    for run, argument, message in (
        (config, "data=digits", "data=NAME: a classifier answers for its own data"),
        (config, "train=train[:9]", "train=SPLIT is for probes.*leave it out"),
        (whole, "", "trained on a whole split; name rows.*calibration=SPLIT"),
        (config, "ood=classes", "ood=classes: the run leaves out no class"),
        (config, "ood=noise+noise", "ood: two are called noise; rename one"),
        (untested, "", "names no test data; give data=NAME"),
        (untested, "data=digits", "no evaluation that says how to see data"),
        (config, "size=3", "config argument 'size' is unknown"),
    ):
        with pytest.raises(InputError, match=message):
            evaluations_of(f"{FILE}:{argument}", run)
