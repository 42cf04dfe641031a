"""Every subset of the looks is measured from those looks alone, by known measures."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from polyview import devices, drawing
from polyview.data.observed import Observed
from polyview.data.sources.memory import InMemory
from polyview.errors import InputError
from polyview.evaluation import missing_figures
from polyview.evaluation.missing import MissingModalities, auroc, dice, overlaps
from polyview.nn.towers import Features

ROWS = 23


def source(kind="class", **task):
    """Looks a, b, c that each hold a number; 17 rows lack one of them, 1 lacks two."""
    rng = np.random.default_rng(0)
    columns = {name: [np.float32([x]) for x in rng.normal(size=ROWS)] for name in "abc"}
    for row in range(17):
        columns["abc"[row % 3]][row] = None
    columns["a"][20] = columns["b"][20] = None
    columns["y"] = {
        "class": rng.integers(3, size=ROWS),
        "multi-label": rng.integers(2, size=(ROWS, 2)).astype(np.uint8),
        "regression": rng.normal(size=(ROWS, 1)),
        "mask": rng.integers(3, size=(ROWS, 4, 4)).astype(np.uint8),
    }[kind]
    return InMemory(columns, {"y": {"kind": kind, "names": ["k", "l"], **task}})


VIEWS = Observed(
    fields={"u": ("b",), "v": ("c", "a")},  # the looks are b, c, a
    shapes={"u": (1,), "v": (1,)},
    dtypes={"u": "float32", "v": "float32"},
    targets=("y",),
)


def represent(shape):
    """A model whose outputs are the sum of what is present, times known numbers."""
    weights = np.random.default_rng(1).normal(size=shape).astype(np.float32)

    @jax.jit
    def of(batch):
        looks = {n: batch["views"][n][..., 0] for n in "uv"}
        there = {n: batch["present"][n][:, None] & batch["kept"][n] for n in "uv"}
        total = sum(jnp.where(there[n], looks[n][:, None], 0).sum(2) for n in "uv")
        z = total.reshape(*total.shape, *[1] * len(shape)) * weights[None, None]
        turned = {n: jnp.stack([jnp.cos(x), jnp.sin(x)], -1) for n, x in looks.items()}
        found = {n: Features(z=z_, h=z_, local=None) for n, z_ in turned.items()}
        return found | {"y": Features(z=z, h=z, local=None)}

    return of, weights


def evaluate(data, shape, **options):
    of, weights = represent(shape)
    options = {"targets": ("y",), "batch_size": 8} | options
    evaluation = MissingModalities(test=data, views=VIEWS, **options)
    mesh = devices.make_mesh()
    with jax.set_mesh(mesh):
        return evaluation(of, mesh), weights


def expected_outputs(data, subset, weights):
    """The rows that have a look of the subset, and what the model says of them."""
    rows, outputs = [], []
    for row in range(ROWS):
        values = [data[row][n] for n in subset if data[row][n] is not None]
        if values:
            rows.append(row)
            outputs.append(sum(values)[0] * weights)
    return rows, np.array(outputs)


@pytest.mark.parametrize(
    ("kind", "shape", "measure"),
    [
        ("class", (3,), "top1"),
        ("multi-label", (2,), "auroc"),
        ("regression", (1,), "r2"),
        ("mask", (4, 4, 3), "dice"),
    ],
)
def test_each_subset_is_predicted_from_its_looks_alone(kind, shape, measure):
    data = source(kind, regions={"any": [1, 2], "two": [2]})
    result, weights = evaluate(data, shape)
    said = result["subsets"]["y"]
    subsets = [
        set(s) for size in (1, 2, 3) for s in itertools.combinations("bca", size)
    ]
    assert [set(of["looks"]) for of in said] == subsets
    for of in said:
        rows, outputs = expected_outputs(data, of["looks"], weights)
        truth = np.array([data[row]["y"] for row in rows])
        assert of["rows"] == len(rows)
        match kind:
            case "class":
                value = (outputs.argmax(1) == truth).mean()
            case "multi-label":
                value = np.mean(
                    [roc_auc_score(truth[:, i], outputs[:, i]) for i in (0, 1)]
                )
            case "regression":
                value = 1 - ((truth - outputs) ** 2).mean() / truth.var()
            case "mask":
                scores = []
                for classes in ((1, 2), (2,)):
                    for a, b in zip(outputs.argmax(-1), truth, strict=True):
                        a, b = np.isin(a, classes), np.isin(b, classes)
                        size = a.sum() + b.sum()
                        scores.append(2 * (a & b).sum() / size if size else 1.0)
                value = np.mean(scores)
        np.testing.assert_allclose(of[measure], value, rtol=1e-4, err_msg=str(of))


def test_retrieval_is_among_the_rows_that_have_both():
    data = source()
    result, _ = evaluate(data, (3,))
    both = [
        r for r in range(ROWS) if data[r]["a"] is not None and data[r]["b"] is not None
    ]
    a, b = (np.array([data[r][n][0] for r in both]) for n in "ab")
    cosines = np.cos(a[:, None] - b[None])
    rank = (cosines > np.diag(cosines)[:, None]).sum(1)
    said = result["retrieval"]["a -> b"]
    assert said["rows"] == len(both)
    for k in (1, 5, 10):
        np.testing.assert_allclose(said[f"recall@{k}"], (rank < k).mean())
    assert len(result["retrieval"]) == 6


def test_retrieval_is_by_h_too_and_needs_features_of_each_look():
    data = source()
    result, _ = evaluate(data, (3,))
    assert (
        result["retrieval_of_h"] == result["retrieval"]
    )  # the stand-in has one of both
    of, _ = represent((3,))
    evaluation = MissingModalities(test=data, views=VIEWS, targets=("y",), batch_size=8)
    mesh = devices.make_mesh()
    with jax.set_mesh(mesh), pytest.raises(InputError, match="no features of 'u'"):
        evaluation(lambda batch: {"y": of(batch)["y"]}, mesh)


def test_the_figures_of_an_evaluation_are_drawn():
    result, _ = evaluate(source(), (3,))
    figures = MissingModalities.figures(result, result.figure_data)
    assert set(figures) == {"subsets-y", "retrieval"}
    for figure in figures.values():
        assert drawing.png(figure).startswith(b"\x89PNG")


def test_methods_that_know_fewer_looks_are_drawn_beside_others():
    scores = {"alone": {"a": 0.5}, "both": {"a": 0.4, "b": 0.3, "a+b": 0.6}}
    axes = missing_figures.subsets(scores, "auroc").axes[0]
    assert axes.images[0].get_array().shape == (3, 2)


def test_a_region_that_is_neither_there_nor_predicted_counts_as_right():
    answers = np.zeros((2, 3, 3), int)
    truth = answers.copy()
    truth[1, 0, 0] = 1
    logits = np.eye(3, dtype=np.float32)[answers]
    found = dice(np.asarray(overlaps(logits, truth, [[1], [2]])), {"one": 0, "none": 0})
    assert found == {"dice": 0.75, "dice_of": {"one": 0.5, "none": 1.0}}


def test_logits_of_a_mask_that_are_not_finite_are_no_background():
    logits = np.zeros((2, 3, 3, 3), np.float32)
    logits[1, 0, 0, 2] = np.nan
    found = np.asarray(overlaps(logits, np.zeros((2, 3, 3), int), [[1], [1, 2]]))
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()


def test_a_label_that_never_changes_has_no_curve():
    labels = np.array([[0, 1], [0, 0], [0, 1]])
    found = auroc(np.array([[0.1, 0.9], [0.2, 0.1], [0.3, 0.2]]), labels, ["k", "l"])
    assert found == {"auroc": 1.0, "auroc_of": {"l": 1.0}}
    assert "no ROC curve" in auroc(np.zeros((3, 1)), np.zeros((3, 1)), ["k"])["note"]


def test_what_cannot_be_evaluated_is_named():
    with pytest.raises(InputError, match="no target 'z', only y"):
        evaluate(source(), (3,), targets=("z",))
    with pytest.raises(InputError, match="have 127 subsets"):
        many = Observed(fields={"u": tuple("abcdefg")}, shapes={"u": (1,)})
        MissingModalities(test=source(), views=many)
    of = lambda batch: {  # noqa: E731
        "y": Features(z=jnp.full((8, 7, 3), jnp.nan), h=None, local=None)
    }
    evaluation = MissingModalities(
        test=source(), views=VIEWS, targets=("y",), retrieval=False, batch_size=8
    )
    mesh = devices.make_mesh()
    with jax.set_mesh(mesh), pytest.raises(InputError, match="run has diverged"):
        evaluation(of, mesh)
