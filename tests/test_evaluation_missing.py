"""Every subset of the views is scored from those views alone, by known measures."""

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
    """Views a, b, c of one number each; 17 rows lack one of them, 1 row lacks two."""
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
    fields={"u": ("b",), "v": ("c", "a")},  # the views are b, c, a
    shapes={"u": (1,), "v": (1,)},
    dtypes={"u": "float32", "v": "float32"},
    targets=("y",),
)


def represent(shape):
    """A model that returns the sum of the present views times known weights."""
    weights = np.random.default_rng(1).normal(size=shape).astype(np.float32)

    @jax.jit
    def model(batch):
        values = {n: batch["views"][n][..., 0] for n in "uv"}
        masks = {n: batch["present"][n][:, None] & batch["kept"][n] for n in "uv"}
        total = sum(jnp.where(masks[n], values[n][:, None], 0).sum(2) for n in "uv")
        z = total.reshape(*total.shape, *[1] * len(shape)) * weights[None, None]
        turned = {n: jnp.stack([jnp.cos(x), jnp.sin(x)], -1) for n, x in values.items()}
        features = {n: Features(z=z_, h=z_, local=None) for n, z_ in turned.items()}
        return features | {"y": Features(z=z, h=z, local=None)}

    return model, weights


def evaluate(data, shape, **options):
    model, weights = represent(shape)
    options = {"targets": ("y",), "batch_size": 8} | options
    evaluation = MissingModalities(test=data, views=VIEWS, **options)
    mesh = devices.make_mesh()
    with jax.set_mesh(mesh):
        return evaluation(model, mesh), weights


def expected_outputs(data, subset, weights):
    """The rows with any view of the subset, and the model's outputs for them."""
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
def test_each_subset_is_predicted_from_its_views_alone(kind, shape, measure):
    data = source(kind, regions={"any": [1, 2], "two": [2]})
    result, weights = evaluate(data, shape)
    scored = result["subsets"]["y"]
    subsets = [
        set(s) for size in (1, 2, 3) for s in itertools.combinations("bca", size)
    ]
    assert [set(one["looks"]) for one in scored] == subsets
    for one in scored:
        rows, outputs = expected_outputs(data, one["looks"], weights)
        truth = np.array([data[row]["y"] for row in rows])
        assert one["rows"] == len(rows)
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
        np.testing.assert_allclose(one[measure], value, rtol=1e-4, err_msg=str(one))


def test_retrieval_uses_only_rows_with_both_views():
    data = source()
    result, _ = evaluate(data, (3,))
    both = [
        r for r in range(ROWS) if data[r]["a"] is not None and data[r]["b"] is not None
    ]
    a, b = (np.array([data[r][n][0] for r in both]) for n in "ab")
    cosines = np.cos(a[:, None] - b[None])
    rank = (cosines > np.diag(cosines)[:, None]).sum(1)
    scores = result["retrieval"]["a -> b"]
    assert scores["rows"] == len(both)
    for k in (1, 5, 10):
        np.testing.assert_allclose(scores[f"recall@{k}"], (rank < k).mean())
    assert len(result["retrieval"]) == 6


def test_retrieval_also_uses_h_and_needs_features_of_each_view():
    data = source()
    result, _ = evaluate(data, (3,))
    assert (
        result["retrieval_of_h"] == result["retrieval"]
    )  # the test model has z equal to h
    model, _ = represent((3,))
    evaluation = MissingModalities(test=data, views=VIEWS, targets=("y",), batch_size=8)
    mesh = devices.make_mesh()
    with jax.set_mesh(mesh), pytest.raises(InputError, match="no features of 'u'"):
        evaluation(lambda batch: {"y": model(batch)["y"]}, mesh)


def test_figures_are_drawn():
    result, _ = evaluate(source(), (3,))
    figures = MissingModalities.figures(result, result.figure_data)
    assert set(figures) == {"subsets-y", "retrieval"}
    for figure in figures.values():
        assert drawing.png(figure).startswith(b"\x89PNG")


def test_methods_with_fewer_views_share_the_figure():
    scores = {"alone": {"a": 0.5}, "both": {"a": 0.4, "b": 0.3, "a+b": 0.6}}
    axes = missing_figures.subsets(scores, "auroc").axes[0]
    assert axes.images[0].get_array().shape == (3, 2)


def test_an_absent_region_not_predicted_has_dice_one():
    answers = np.zeros((2, 3, 3), int)
    truth = answers.copy()
    truth[1, 0, 0] = 1
    logits = np.eye(3, dtype=np.float32)[answers]
    score = dice(np.asarray(overlaps(logits, truth, [[1], [2]])), {"one": 0, "none": 0})
    assert score == {"dice": 0.75, "dice_of": {"one": 0.5, "none": 1.0}}


def test_nonfinite_mask_logits_give_nan_not_background():
    logits = np.zeros((2, 3, 3, 3), np.float32)
    logits[1, 0, 0, 2] = np.nan
    result = np.asarray(overlaps(logits, np.zeros((2, 3, 3), int), [[1], [1, 2]]))
    assert np.isfinite(result[0]).all() and np.isnan(result[1]).all()


def test_a_constant_label_has_no_roc_curve():
    labels = np.array([[0, 1], [0, 0], [0, 1]])
    result = auroc(np.array([[0.1, 0.9], [0.2, 0.1], [0.3, 0.2]]), labels, ["k", "l"])
    assert result == {"auroc": 1.0, "auroc_of": {"l": 1.0}}
    assert "no ROC curve" in auroc(np.zeros((3, 1)), np.zeros((3, 1)), ["k"])["note"]


def test_invalid_evaluations_are_refused():
    with pytest.raises(InputError, match="no target 'z', only y"):
        evaluate(source(), (3,), targets=("z",))
    with pytest.raises(InputError, match="have 127 subsets"):
        many = Observed(fields={"u": tuple("abcdefg")}, shapes={"u": (1,)})
        MissingModalities(test=source(), views=many)
    diverged = lambda batch: {  # noqa: E731
        "y": Features(z=jnp.full((8, 7, 3), jnp.nan), h=None, local=None)
    }
    evaluation = MissingModalities(
        test=source(), views=VIEWS, targets=("y",), retrieval=False, batch_size=8
    )
    mesh = devices.make_mesh()
    with jax.set_mesh(mesh), pytest.raises(InputError, match="run has diverged"):
        evaluation(diverged, mesh)
