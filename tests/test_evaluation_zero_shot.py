"""Classes are found by prototypes: of their names in prompts, or of a few examples."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyview import devices
from polyview.config.file import evaluations_of
from polyview.data.observed import Observed
from polyview.data.prepare import records
from polyview.data.prepare.text import Vocabulary
from polyview.data.sources.array_record import ArrayRecord
from polyview.data.sources.memory import InMemory
from polyview.errors import InputError
from polyview.evaluation.classification import few_rows
from polyview.evaluation.zero_shot import ClassMeans, PreparedWords, ZeroShot
from polyview.nn.towers import Features
from polyview.runs.evaluating import build_evaluations

ROOT = Path(__file__).parent.parent
RNG = np.random.default_rng(0)
ROWS, NAMES = 30, ["red_fox", "owl", "fox in snow", "zzz"]
WORDS = ["a", "bird", "drawing", "fox", "in", "of", "owl", "red", "snow"]
TABLE = RNG.normal(size=(2 + len(WORDS), 6)).astype(np.float32)  # of words
LABELS = RNG.integers(3, size=ROWS)
IMAGES = RNG.normal(size=(2, ROWS, 6)).astype(np.float32) + TABLE[[5, 8, 10]][LABELS]
LENGTH = 5
VIEWS = Observed(
    fields={"image": ("one", "two"), "text": ("text", "other")},
    shapes={"image": (6,), "text": (LENGTH,)},
    dtypes={"image": "float32", "text": "int32"},
    targets=("label",),
)


def data(**changes):
    """Two views of an image and one of two texts; every fifth row lacks an image."""
    one = [None if row % 5 == 0 else image for row, image in enumerate(IMAGES[0])]
    task = {"kind": "class", "classes": 4, "names": NAMES}
    columns = {
        "one": one,
        "two": [None if row == 10 else image for row, image in enumerate(IMAGES[1])],
        "text": [np.ones(LENGTH, np.int32)] * ROWS,
        "other": [np.full(LENGTH, 2, np.int32)] * ROWS,
        "label": LABELS,
        "name": [NAMES[label] for label in LABELS],
    }
    return InMemory(columns | changes, {"label": task})


@jax.jit
def represent(batch):
    """z of an image is the image; of a text the sum over its words' vectors, and a
    constant that even a text without words has."""
    image, tokens = batch["views"]["image"], batch["views"]["text"]
    words = jnp.where(tokens[..., None] > 0, jnp.asarray(TABLE)[tokens], 0).sum(2) + 0.5
    return {
        "image": Features(z=image, h=image[..., :4], local=None),
        "text": Features(z=words, h=words, local=None),
    }


@pytest.fixture
def words(tmp_path):
    """A prepared data set whose manifest has the vocabulary."""
    records.write(
        tmp_path / "texts",
        {"train": [{"text": 1}]},
        version="1",
        targets={},
        source="",
        licence="",
        provenance={"vocabulary": WORDS},
    )
    return PreparedWords("texts", LENGTH, tmp_path)


def run(evaluation):
    mesh = devices.make_mesh()
    with jax.set_mesh(mesh):
        return evaluation(represent, mesh)


def unit(x):
    return x / np.linalg.norm(x)


def answers(prototypes, features):
    """The class of the largest cosine for each row, by loops."""
    return [
        max(prototypes, key=lambda c, f=f: unit(f) @ unit(prototypes[c]))
        for f in features
    ]


def images(row):
    """The present views of a row."""
    kept = [row % 5 != 0, row != 10]
    return [IMAGES[view][row] for view in (0, 1) if kept[view]]


PRESENT = [row for row in range(ROWS) if images(row)]


@pytest.mark.parametrize("label", ["label", "name"])
def test_zero_shot_equals_a_loop_over_prompts(words, label):
    templates = ("{}", "a drawing of {}")
    evaluation = ZeroShot(
        data(), VIEWS, words, label=label, templates=templates, batch_size=8
    )
    result = run(evaluation)
    names = NAMES if label == "label" else sorted({NAMES[c] for c in LABELS})
    cut = Vocabulary(WORDS)
    prototypes = {}
    for name in names:
        each = []
        for template in templates:
            text = template.replace("{}", name.replace("_", " "))
            tokens = cut.encode(text, LENGTH)
            each.append(unit(0.5 + sum(TABLE[word] for word in tokens if word)))
        prototypes[name] = sum(each)
    features = [np.mean(images(row), 0) for row in PRESENT]
    truth = [NAMES[LABELS[row]] for row in PRESENT]
    right = np.equal(answers(prototypes, features), truth)
    assert len(PRESENT) == 29 == result["protocol"]["test"]["rows"]
    assert result["zero_shot"]["top1"] == pytest.approx(right.mean()) and right.any()
    recalls = [right[np.equal(truth, name)].mean() for name in set(truth)]
    assert result["zero_shot"]["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert result.columns == {"zero-shot %": 100 * result["zero_shot"]["top1"]}
    assert result.standard_errors.keys() == result.columns.keys()
    assert "note" not in result


def test_names_without_known_words_are_noted(words):
    task = {"kind": "class", "classes": 4, "names": ["cat", "dog", "fox", "owl"]}
    source = data()
    source.targets = {"label": task}
    note = run(ZeroShot(source, VIEWS, words))["note"]
    assert "4 classes give 3 prototypes" in note


def test_class_means_equal_a_loop_over_draws():
    train, test = data(), data(label=np.roll(LABELS, 1))
    evaluation = ClassMeans(
        train, test, VIEWS, per_class=(2, 25), draws=3, features="z", seed=5
    )
    result = run(evaluation)
    features = np.array([np.mean(images(row), 0) for row in PRESENT])
    labels, truth = LABELS[PRESENT], np.roll(LABELS, 1)[PRESENT]

    def accuracy(rows):
        prototypes = {
            c: sum(unit(features[row]) for row in rows if labels[row] == c)
            for c in set(labels)
        }
        return np.mean(np.equal(answers(prototypes, features), truth))

    every = accuracy(range(len(labels)))
    draws = [accuracy(few_rows(labels, 2, seed=(5, draw))) for draw in range(3)]
    assert result["class_means"]["top1"] == pytest.approx(every)
    assert result["few_shot"]["2"]["draws"] == pytest.approx(draws)
    assert "25 rows a class" in result["not_computed"]["25-shot class means"]
    assert "no 25-shot" in result.summary


def test_what_cannot_be_compared_is_refused_with_a_remedy(words, tmp_path):
    for change, why in (
        ({"templates": ["a fox"]}, "each needs one {}"),
        ({"features": "h"}, "have 4 dimensions, of 'text' 6.*features to 'z'"),
        ({"label": "one"}, "'one' is no target of the test source .it has label"),
        ({"text": "speech"}, "no text tower.*by=examples"),
        ({"tokens": lambda text: np.zeros(3)}, r"shape \(3,\), but views .* \(5,\)"),
        ({"features": "x"}, "not 'h' or 'z'"),
    ):
        options = {"test": data(), "views": VIEWS, "tokens": words} | change
        with pytest.raises(InputError, match=why):
            run(ZeroShot(**options))
    source = data()
    source.targets = {"label": {"kind": "class", "classes": 4}}
    with pytest.raises(InputError, match="have no names"):
        run(ZeroShot(source, VIEWS, words))
    with pytest.raises(InputError, match="the prompt '!' has no words"):
        words("!")
    with pytest.raises(InputError, match="no data set 'absent'"):
        PreparedWords("absent", 5, tmp_path)


def test_the_file_of_evaluations_suits_runs_with_and_without_texts(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("POLYVIEW_DATA", str(tmp_path))
    task = {"kind": "class", "classes": 4, "names": NAMES}
    names = itertools.cycle(NAMES)
    row = {"one": IMAGES[0][0], "two": IMAGES[1][0], "label": 1, "name": "x"}
    rows = [row | {"name": next(names)} for _ in range(6)]
    records.write(
        tmp_path / "texts",
        {"train": rows, "test": rows},
        version="1",
        targets={"label": task},
        source="",
        licence="",
        provenance={"vocabulary": WORDS},
    )
    source = {
        "target": "polyview.data.sources.array_record:ArrayRecord",
        "name": "texts",
    }
    views = {
        "target": "polyview.data.observed:Observed",
        "fields": {"image": ["one"], "text": ["text"]},
        "shapes": {"image": [6], "text": [LENGTH]},
        "dtypes": {"image": "float32", "text": "int32"},
    }
    test = source | {"split": "test"}
    seen = {"test": test, "views": views, "label": "label"}
    run_config = {"source": source, "evaluations": {"frozen": seen}}
    file = f"{ROOT}/configs/evaluations/zero_shot.py"
    for argument, shown in (
        (":template={}|a drawing of {}", {"templates": ("{}", "a drawing of {}")}),
        (":label=name", {"label": "name"}),
        (":by=examples,per_class=1+2,draws=3", {"per_class": (1, 2), "draws": 3}),
    ):
        specs = evaluations_of(file + argument, run_config)
        ((name, evaluation),) = build_evaluations(specs).items()
        assert name == ("class_means" if "by" in argument else "zero_shot")
        for field, value in shown.items():
            found = getattr(evaluation, field)
            assert (tuple(found) if isinstance(value, tuple) else found) == value
        assert isinstance(evaluation.test, ArrayRecord)
        assert 0 <= run(evaluation)[name]["top1"] <= 1
    without = {**views, "shapes": {"image": [6]}, "fields": {"image": ["one"]}}
    images_only = {"source": source, "evaluation": seen | {"views": without}}
    with pytest.raises(InputError, match="only image; classify by examples"):
        evaluations_of(file, images_only)
    with pytest.raises(InputError, match="by='txt'; did you mean 'text'"):
        evaluations_of(f"{file}:by=txt", run_config)
    with pytest.raises(InputError, match="per_class=1-5: write whole numbers"):
        evaluations_of(f"{file}:by=examples,per_class=1-5", run_config)
