"""Prediction from every subset of the views, and retrieval between views.

The views are the fields of `Observed`, each of one modality (see `polyview.nn.fusion`).
For each non-empty subset of them, the model predicts from that subset alone, on the
rows that have at least one of its views. Nothing is selected on these rows: the numbers
are those of the given model. Results store the names of views under the keys
"looks" and "across_look".
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from sklearn.metrics import r2_score, roc_auc_score

from polyview import devices, hosts
from polyview.data import pipeline
from polyview.data.sources.protocol import Source
from polyview.errors import InputError
from polyview.evaluation.base import Result, in_words
from polyview.evaluation.classification import top_accuracy
from polyview.evaluation.frozen import FrozenFeatures
from polyview.evaluation.knn import neighbours
from polyview.evaluation.retrieval import recall_of_views

MEASURES = {  # measure of a prediction -> its name in figures
    "auroc": "mean AUROC",
    "dice": "mean Dice score",
    "r2": "R²",
    "top1": "accuracy",
}
_MOST = 63  # subsets: six views
_RECALL = (1, 5, 10)
_SHOWN, _ANSWERS = 8, 6  # queries in the figures, and answers to each text


@dataclasses.dataclass(frozen=True)
class MissingModalities:
    """Prediction from each subset of the views, and retrieval between views.

    Attributes:
      test: a source with the targets to predict.
      views: example -> views; `Observed`, or another object with `fields`.
      targets: the targets to predict. The model returns z[b, n, ...] under their names,
        for the n subsets `batch["kept"][modality]: bool[b, n, m]`. Measures: accuracy
        for classes, the mean area under the ROC curve for several labels, R^2 for
        numbers, the Dice score of each region for masks, averaged over rows (1 where a
        region is neither present nor predicted).
      retrieval: whether to retrieve each view by each other, by the cosine of their z
        and of their h. z is meaningless if training compared no views.
      batch_size: global.
      frozen: an evaluation of frozen features to run as well, or None.
    """

    test: Source
    views: Any
    targets: Sequence[str] = ()
    retrieval: bool = True
    batch_size: int = 500
    frozen: FrozenFeatures | None = None
    spec: Mapping | None = None  # what a config calls its parts; set by `described`

    def __post_init__(self) -> None:
        for target in self.targets:
            if target not in self.test.targets:
                raise InputError(
                    f"evaluation: the test source has no target '{target}', only "
                    f"{', '.join(self.test.targets) or 'none'}"
                )
        if not hasattr(self.views, "fields"):
            raise InputError("evaluation: views must be Observed, or have fields")
        if (count := 2 ** len(self._names()) - 1) > _MOST:
            raise InputError(
                f"evaluation: {len(self._names())} views have {count:,} "
                "subsets; name fewer fields in its views"
            )

    def described(self, spec: Mapping) -> "MissingModalities":
        """Return a copy whose protocol names its sources by their spec."""
        frozen = self.frozen
        if frozen is not None:
            frozen = frozen.described(spec["frozen"])
        return dataclasses.replace(self, spec=spec, frozen=frozen)

    def __call__(self, represent: Callable, mesh: Mesh) -> Result:
        """Evaluate `represent(batch) -> {modality or target: Features}`."""
        began = time.perf_counter()
        numbers: dict[str, Any] = {}
        sample: dict[str, np.ndarray] = {}
        if self.frozen is not None:
            frozen = self.frozen(represent, mesh)
            numbers, sample = dict(frozen), frozen.figure_data
        read = self._run(represent, mesh)
        present = np.concatenate([read.present[n] for n in self._modalities()], 1)
        subsets = {
            target: [
                self._score(target, number, read, present)
                for number in range(len(self.subsets()))
            ]
            for target in self.targets
        }
        numbers |= {
            "protocol": {
                **numbers.get("protocol", {}),
                "missing": self._describe(len(read.index)),
            },
            "looks": self._names(),
            "subsets": subsets,
        }
        if self.retrieval:
            each = {kind: self._joined(read.compared, kind) for kind in ("z", "h")}
            numbers["retrieval"] = self._retrieval(each["z"], present)
            numbers["retrieval_of_h"] = self._retrieval(each["h"], present)
            sample |= self._pictures(each["z"], present, read.index)
        numbers["machine"] = hosts.machine()
        seconds = round(time.perf_counter() - began, 3)
        numbers["time"] = {**numbers.get("time", {}), "missing": seconds}
        return Result(
            numbers,
            sample,
            summary=self.summary(numbers),
            columns=self.columns(numbers),
            standard_errors=self.standard_errors(numbers),
        )

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """Each measure from each view alone, and from all views."""
        parts = []
        for target, scores in numbers["subsets"].items():
            several = [one for one in scores if len(one["looks"]) > 1]
            shown = {one["looks"][0]: one for one in scores if one not in several}
            shown |= {"all": several[-1]} if several else {}
            for measure in MEASURES:
                values = [
                    f"{name} {one[measure]:.3f}"
                    for name, one in shown.items()
                    if measure in one
                ]
                if values:
                    parts.append(f"{target}, {measure}: {', '.join(values)}")
        if "health" in numbers:  # results of version 0.1 also hold frozen features
            parts = [FrozenFeatures.summary(numbers), *parts]
        return ", ".join(filter(None, parts))

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """Each measure from all views."""
        columns = {
            f"{target} {measure}": scores[-1][measure]
            for target, scores in numbers["subsets"].items()
            for measure in MEASURES
            if scores and measure in scores[-1]
        }
        return FrozenFeatures.columns(numbers) | columns

    @staticmethod
    def standard_errors(numbers: Mapping) -> dict[str, float]:
        """The standard errors of the accuracies among the columns."""
        errors = {
            f"{target} top1": scores[-1]["standard_error"]
            for target, scores in numbers["subsets"].items()
            if scores and "standard_error" in scores[-1]
        }
        return FrozenFeatures.standard_errors(numbers) | errors

    @staticmethod
    def figures(numbers: Mapping, figure_data: Mapping) -> dict[str, Any]:
        """Draw heat-maps of subsets and retrieval, and examples of retrieval."""
        from polyview.evaluation import missing_figures

        return FrozenFeatures.figures(numbers, figure_data) | missing_figures.figures(
            numbers, figure_data
        )

    def subsets(self) -> list[tuple[int, ...]]:
        """All non-empty subsets of the views, as view numbers, the smallest first."""
        number = len(self._names())
        return [
            subset
            for size in range(1, number + 1)
            for subset in itertools.combinations(range(number), size)
        ]

    def _modalities(self) -> list[str]:
        return sorted(self.views.fields)

    def _names(self) -> list[str]:
        return [
            field for name in self._modalities() for field in self.views.fields[name]
        ]

    def _run(self, represent: Callable, mesh: Mesh) -> "_Predictions":
        names = self._modalities()
        ends = np.cumsum([len(self.views.fields[n]) for n in names])[:-1]
        views = range(len(self._names()))
        masks = np.array([np.isin(views, subset) for subset in self.subsets()])
        kept = dict(zip(names, np.split(masks, ends, axis=1), strict=True))
        # Of a mask only the sizes of its regions and their overlaps are kept.
        regions = {
            target: tuple(map(tuple, self.test.targets[target]["regions"].values()))
            for target in self.targets
            if self.test.targets[target]["kind"] == "mask"
        }
        small = jax.jit(
            _small, static_argnums=0, out_shardings=devices.replicated(mesh)
        )
        parts = []
        for batch in self._batches(mesh):
            # All subsets at once, so that each view is encoded once.
            rows = len(batch["index"])
            batch["kept"] = {
                name: np.broadcast_to(mask, (rows, *mask.shape))
                for name, mask in kept.items()
            }
            batch = devices.put(batch, mesh)
            features = represent(batch)
            outputs = {t: features[t].z for t in self.targets}
            compared = {
                n: {"z": features[n].z, "h": features[n].h}
                for n in (names if self.retrieval else ())
                if n in features
            }
            truths = {t: batch["targets"][t] for t in self.targets}
            part = _Predictions(
                outputs, compared, batch["present"], truths, batch["index"]
            )
            part = small(tuple(regions.items()), part)
            parts.append(jax.tree.map(np.asarray, part))
        joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
        return jax.tree.map(lambda array: array[joined.index >= 0], joined)

    def _joined(self, compared: Mapping, kind: str) -> np.ndarray:
        """Concatenate z or h of all views, [n, views, d]."""
        names = self._modalities()
        if lacking := [name for name in names if name not in compared]:
            raise InputError(
                f"retrieval compares views, but the model has no features of "
                f"'{lacking[0]}'; set the evaluation's retrieval to False"
            )
        parts = [compared[name][kind] for name in names]
        if len({part.shape[-1] for part in parts}) > 1:
            raise InputError(
                f"retrieval compares views, but their {kind} differ in width; "
                "set the evaluation's retrieval to False"
            )
        return np.concatenate(parts, 1)

    def _batches(self, mesh: Mesh) -> Iterator[dict]:
        return pipeline.ordered(
            self.test,
            self.views,
            batch_size=self.batch_size + -self.batch_size % mesh.size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def _score(
        self, target: str, number: int, read: "_Predictions", present: np.ndarray
    ) -> dict[str, Any]:
        subset = self.subsets()[number]
        rows = present[:, list(subset)].any(1)
        names = [self._names()[i] for i in subset]
        score = {"looks": names, "rows": int(rows.sum())}
        if not rows.any():
            return score | {"note": "no row has any of these views"}
        outputs = read.outputs[target][rows, number]
        truth: Any = read.truths[target][rows] if target in read.truths else None
        task = self.test.targets[target]
        if not np.isfinite(outputs).all():
            raise InputError(
                f"predictions of '{target}' from {', '.join(names)} are not finite: "
                "the run has diverged; evaluate an earlier step"
            )
        match task["kind"]:
            case "class":
                return score | top_accuracy(outputs, truth)
            case "multi-label":
                return score | auroc(outputs, truth, task["names"])
            case "regression":
                return score | {"r2": float(r2_score(truth, outputs))}
            case "mask":
                return score | dice(outputs, task["regions"])
            case kind:
                raise InputError(f"no measure for target '{target}' of kind '{kind}'")

    def _retrieval(self, each: np.ndarray, present: np.ndarray) -> dict:
        """Measure the recall of each view by each other, among the rows with both.

        each: z or h, float[n, views, d].
        """
        names = self._names()
        sample, view = np.nonzero(present)
        found = recall_of_views(each[present], sample, view, names, _RECALL)
        return {
            f"{a} -> {b}": {
                "from": a,
                "to": b,
                "rows": 0,
                **found.get(f"{a} -> {b}", {}),
            }
            for a, b in itertools.permutations(names, 2)
        }

    def _pictures(
        self, each: np.ndarray, present: np.ndarray, index: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Retrieve for some rows, for the figures; the rows are evenly spaced.

        Each picture of the first picture view retrieves one from each other picture
        view; each text retrieves pictures of the first picture view.
        """
        first = self._views_of(index[0]) if len(index) else []
        pictures = [i for i, view in enumerate(first) if _is_picture(view)]
        texts = [i for i, view in enumerate(first) if view.ndim == 1]
        rows = np.flatnonzero(present[:, pictures + texts].all(1))
        if len(pictures) < 2 or not len(rows):
            return {}
        shown = rows[np.linspace(0, len(rows) - 1, min(_SHOWN, len(rows))).astype(int)]

        def images(view: int, places: np.ndarray) -> np.ndarray:
            flat = [self._views_of(index[row])[view] for row in places.ravel()]
            return np.stack(flat).reshape(*places.shape, *flat[0].shape)

        start, *others = pictures
        near = [
            rows[neighbours(each[rows, view], each[shown, start], k=1).index[:, 0]]
            for view in others
        ]
        sample = {
            "across_query": images(start, shown),
            "across_found": np.stack(
                [images(view, own) for view, own in zip(others, near, strict=True)], 1
            ),
            "across_right": np.stack(near, 1) == shown[:, None],
            "across_look": np.array([self._names()[i] for i in pictures]),
        }
        if texts:
            z = each[shown, texts[0]]
            near = rows[neighbours(each[rows, start], z, k=_ANSWERS).index]
            names = [
                str(self.test[int(i)].get("name", f"row {i}")) for i in index[shown]
            ]
            sample |= {
                "text_query": np.array(names),
                "text_found": images(start, near),
                "text_right": near == shown[:, None],
            }
        return sample

    def _views_of(self, row: int) -> list[np.ndarray]:
        """The views of a row of the source, as the model receives them."""
        example = self.test[int(row)]
        views = self.views(example, np.random.default_rng(0))["views"]
        return [view for name in self._modalities() for view in views[name]]

    def _describe(self, rows: int) -> dict[str, Any]:
        return {
            "test": {"source": in_words(self.spec, "test", self.test), "rows": rows},
            "views": in_words(self.spec, "views", self.views),
            "targets": {t: self.test.targets[t]["kind"] for t in self.targets},
            "rows_of_a_subset": "those that have at least one of its views",
            "retrieval": "cosine of z (of h: retrieval_of_h), among the rows that have "
            "both views; z of a model trained without comparing views says nothing",
            "chosen": "nothing: the model as this step left it",
            "batch_size": self.batch_size,
        }


class _Predictions(NamedTuple):
    """Outputs and features of a model on n rows."""

    outputs: dict[str, Any]  # by target: [n, subsets, ...]
    compared: dict[str, Any]  # by modality, z and h: [n, m, d]
    present: dict[str, Any]
    truths: dict[str, Any]
    index: Any


def _is_picture(view: np.ndarray) -> bool:
    return view.dtype == np.uint8 and view.ndim == 3 and view.shape[-1] in (1, 3)


def _small(regions: tuple, part: _Predictions) -> _Predictions:
    """Replace the logits of masks by the overlaps of regions, all that scores need."""
    by_target = dict(regions)
    outputs = {
        target: overlaps(z, part.truths[target][:, None], by_target[target])
        if target in by_target
        else z.astype(jnp.float32)
        for target, z in part.outputs.items()
    }
    truths = {t: truth for t, truth in part.truths.items() if t not in by_target}
    return part._replace(outputs=outputs, truths=truths)


def auroc(scores: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict:
    """Return the area under the ROC curve of each label, and the mean as "auroc".

    scores and labels: [n, l]. Labels that are equal in all rows are left out.
    """
    areas = {
        name: float(roc_auc_score(labels[:, i], scores[:, i]))
        for i, name in enumerate(names)
        if 0 < labels[:, i].sum() < len(labels)
    }
    if not areas:
        return {"note": "each label is the same in all rows: no ROC curve"}
    return {"auroc": float(np.mean([*areas.values()])), "auroc_of": areas}


def overlaps(
    logits: jax.Array, truth: jax.Array, regions: Sequence[Sequence[int]]
) -> jax.Array:
    """Return |A and B| and |A| + |B| of each region in pixels, [..., regions, 2].

    logits [..., h, w, classes], truth int[..., h, w]. NaN where logits are not finite.
    """
    answers = logits.argmax(-1)
    each = []
    for classes in regions:
        a, b = jnp.isin(answers, np.array(classes)), jnp.isin(truth, np.array(classes))
        both, sizes = (a & b).sum((-2, -1)), a.sum((-2, -1)) + b.sum((-2, -1))
        each.append(jnp.stack([both, sizes], -1))
    finite = jnp.isfinite(logits).all((-3, -2, -1))[..., None, None]
    return jnp.where(finite, jnp.stack(each, -2).astype(jnp.float32), jnp.nan)


def dice(found: np.ndarray, regions: Mapping[str, Sequence[int]]) -> dict:
    """Return the Dice score 2 |A and B| / (|A| + |B|) of each region.

    found: from `overlaps`, [n, regions, 2]. A region is the union of its classes. The
    scores are averaged over rows; "dice" is their mean over regions.
    """
    both, sizes = found[..., 0], found[..., 1]
    each = np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), 1).mean(0)
    scores = {name: float(value) for name, value in zip(regions, each, strict=True)}
    return {"dice": float(np.mean([*scores.values()])), "dice_of": scores}
