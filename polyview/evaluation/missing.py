"""Prediction with modalities missing: every subset of the looks, and retrieval.

A look is one view of one modality (see `polyview.nn.fusion`). For each non-empty subset
of the looks the model predicts from those alone, on the rows that have at least one of
them. Nothing is chosen on the rows that are read: the numbers are of the model as this
step left it.
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
from polyview.errors import InputError
from polyview.evaluation.base import Result
from polyview.evaluation.frozen import FrozenFeatures, top_accuracy
from polyview.evaluation.knn import neighbours

MEASURES = {  # of a prediction -> what a figure calls it
    "auroc": "mean area under the ROC curve",
    "dice": "mean Dice score",
    "r2": "R²",
    "top1": "accuracy",
}
_MOST = 63  # subsets: of six looks
_RECALL = (1, 5, 10)
_SHOWN, _ANSWERS = 8, 6  # queries of the figures, and answers to a text


@dataclasses.dataclass(frozen=True)
class MissingModalities:
    """What is predicted from each subset of the looks; `missing(represent, mesh)`.

    Attributes:
      test: a source with the targets that are predicted.
      views: example -> views; `Observed`, or another that has `fields`.
      targets: those to predict. The model returns z[b, n, ...] under their names, of
        the n choices of looks `batch["kept"][modality]: bool[b, n, m]`. Classes are
        measured by accuracy, several labels by the mean area under the ROC curve,
        numbers by R^2, masks by the Dice score of each region, a mean over the rows (1
        where a region is neither there nor predicted).
      retrieval: of the looks, each in each, by the cosine of their z, and of their h:
        z of a model that was trained without comparing looks says nothing.
      batch_size: global.
      frozen: an evaluation of frozen features to be made beside it, or None.
    """

    test: Any
    views: Callable
    targets: Sequence[str] = ()
    retrieval: bool = True
    batch_size: int = 500
    frozen: FrozenFeatures | None = None

    def __post_init__(self):
        for target in self.targets:
            if target not in self.test.targets:
                raise InputError(
                    f"evaluation: the test source has no target '{target}', only "
                    f"{', '.join(self.test.targets) or 'none'}"
                )
        if not hasattr(self.views, "fields"):
            raise InputError("evaluation: views must be Observed, with their fields")
        if (count := 2 ** len(self._names()) - 1) > _MOST:
            raise InputError(
                f"evaluation: {len(self._names())} looks have {count:,} "
                "subsets; name fewer fields in the views of the evaluation"
            )

    def __call__(self, represent: Callable, mesh: Mesh) -> Result:
        """Evaluate `represent(batch) -> {modality or target: Features}`."""
        began = time.perf_counter()
        numbers, sample = {}, {}
        if self.frozen is not None:
            frozen = self.frozen(represent, mesh)
            numbers, sample = dict(frozen), frozen.figure_data
        found = self._run(represent, mesh)
        present = np.concatenate([found.present[n] for n in self._modalities()], 1)
        subsets = {
            target: [
                self._score(target, number, found, present)
                for number in range(len(self.subsets()))
            ]
            for target in self.targets
        }
        numbers |= {
            "protocol": {
                **numbers.get("protocol", {}),
                "missing": self._describe(len(found.index)),
            },
            "looks": self._names(),
            "subsets": subsets,
        }
        if self.retrieval:
            each = {of: self._joined(found.compared, of) for of in ("z", "h")}
            numbers["retrieval"] = self._retrieval(each["z"], present)
            numbers["retrieval_of_h"] = self._retrieval(each["h"], present)
            sample |= self._pictures(each["z"], present, found.index)
        numbers["machine"] = hosts.machine()
        seconds = round(time.perf_counter() - began, 3)
        numbers["time"] = {**numbers.get("time", {}), "missing": seconds}
        return Result(
            numbers,
            sample,
            summary=self.summary(numbers),
            columns=self.columns(numbers),
        )

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """Each measure from each look alone, and from all of them."""
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
        if "health" in numbers:  # of version 0.1, whose frozen features stood beside
            parts = [FrozenFeatures.summary(numbers), *parts]
        return ", ".join(filter(None, parts))

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """Each measure from all looks."""
        found = {
            f"{target} {measure}": scores[-1][measure]
            for target, scores in numbers["subsets"].items()
            for measure in MEASURES
            if scores and measure in scores[-1]
        }
        return FrozenFeatures.columns(numbers) | found

    @staticmethod
    def figures(numbers: Mapping, figure_data: Mapping) -> dict[str, Any]:
        """Heat-maps of subsets and of retrieval, and what some rows find."""
        from polyview.evaluation import missing_figures

        return FrozenFeatures.figures(numbers, figure_data) | missing_figures.figures(
            numbers, figure_data
        )

    def subsets(self) -> list[tuple[int, ...]]:
        """All non-empty subsets of the looks, by their number, the smallest first."""
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

    def _run(self, represent: Callable, mesh: Mesh) -> "_Said":
        names = self._modalities()
        ends = np.cumsum([len(self.views.fields[n]) for n in names])[:-1]
        looks = range(len(self._names()))
        masks = np.array([np.isin(looks, subset) for subset in self.subsets()])
        kept = dict(zip(names, np.split(masks, ends, axis=1), strict=True))
        # Regions of masks; nothing of a mask is kept but their sizes.
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
            # All subsets at once, so that each look is encoded once.
            rows = len(batch["index"])
            batch["kept"] = {
                name: np.broadcast_to(of, (rows, *of.shape))
                for name, of in kept.items()
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
            said = _Said(outputs, compared, batch["present"], truths, batch["index"])
            said = small(tuple(regions.items()), said)
            parts.append(jax.tree.map(np.asarray, said))
        joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
        return jax.tree.map(lambda array: array[joined.index >= 0], joined)

    def _joined(self, compared: Mapping, of: str) -> np.ndarray:
        """z or h of all looks side by side, [n, looks, d]."""
        names = self._modalities()
        if lacking := [name for name in names if name not in compared]:
            raise InputError(
                f"retrieval compares looks, and the model has no features of "
                f"'{lacking[0]}'; set retrieval of the evaluation to False"
            )
        parts = [compared[name][of] for name in names]
        if len({part.shape[-1] for part in parts}) > 1:
            raise InputError(
                f"retrieval compares looks, and their {of} differ in width; "
                "set retrieval of the evaluation to False"
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

    def _score(self, target, number, found, present) -> dict[str, Any]:
        subset = self.subsets()[number]
        rows = present[:, list(subset)].any(1)
        names = [self._names()[i] for i in subset]
        said = {"looks": names, "rows": int(rows.sum())}
        if not rows.any():
            return said | {"note": "no row has any of these looks"}
        outputs = found.outputs[target][rows, number]
        truth = found.truths[target][rows] if target in found.truths else None
        task = self.test.targets[target]
        if not np.isfinite(outputs).all():
            raise InputError(
                f"predictions of '{target}' from {', '.join(names)} are not finite: "
                "the run has diverged; evaluate an earlier step"
            )
        match task["kind"]:
            case "class":
                return said | top_accuracy(outputs, truth)
            case "multi-label":
                return said | auroc(outputs, truth, task["names"])
            case "regression":
                return said | {"r2": float(r2_score(truth, outputs))}
            case "mask":
                return said | dice(outputs, task["regions"])
            case kind:
                raise InputError(f"target '{target}' is of kind '{kind}', not measured")

    def _retrieval(self, each: np.ndarray, present: np.ndarray) -> dict:
        """Recall of each look by each other, among the rows that have both.

        each: z float[n, looks, d].
        """
        names = self._names()
        found = {}
        for a, b in itertools.permutations(range(len(names)), 2):
            both = present[:, a] & present[:, b]
            said = {"from": names[a], "to": names[b], "rows": int(both.sum())}
            if both.any():
                near = neighbours(each[both, b], each[both, a], k=max(_RECALL)).index
                own = near == np.arange(both.sum())[:, None]
                said |= {
                    f"recall@{k}": float(own[:, :k].any(1).mean()) for k in _RECALL
                }
            found[f"{names[a]} -> {names[b]}"] = said
        return found

    def _pictures(self, each, present, index) -> dict[str, np.ndarray]:
        """What some rows find, for figures: a picture in the other picture looks, and a
        text among pictures of the first of them. Rows are evenly spaced, none picked.
        """
        first = self._looks_of(index[0]) if len(index) else []
        pictures = [i for i, look in enumerate(first) if _is_picture(look)]
        texts = [i for i, look in enumerate(first) if look.ndim == 1]
        rows = np.flatnonzero(present[:, pictures + texts].all(1))
        if len(pictures) < 2 or not len(rows):
            return {}
        shown = rows[np.linspace(0, len(rows) - 1, min(_SHOWN, len(rows))).astype(int)]

        def images(look: int, of: np.ndarray) -> np.ndarray:
            flat = [self._looks_of(index[row])[look] for row in of.ravel()]
            return np.stack(flat).reshape(*of.shape, *flat[0].shape)

        start, *others = pictures
        near = [
            rows[neighbours(each[rows, look], each[shown, start], k=1).index[:, 0]]
            for look in others
        ]
        sample = {
            "across_query": images(start, shown),
            "across_found": np.stack(
                [images(look, of) for look, of in zip(others, near, strict=True)], 1
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

    def _looks_of(self, row: int) -> list[np.ndarray]:
        """The looks of a row of the source, as the model is given them."""
        example = self.test[int(row)]
        views = self.views(example, np.random.default_rng(0))["views"]
        return [look for name in self._modalities() for look in views[name]]

    def _describe(self, rows: int) -> dict[str, Any]:
        return {
            "test": {"source": repr(self.test), "rows": rows},
            "views": repr(self.views),
            "targets": {t: self.test.targets[t]["kind"] for t in self.targets},
            "rows_of_a_subset": "those that have at least one of its looks",
            "retrieval": "cosine of z (of h: retrieval_of_h), among the rows that have "
            "both looks; z of a model trained without comparing looks says nothing",
            "chosen": "nothing: the model as this step left it",
            "batch_size": self.batch_size,
        }


class _Said(NamedTuple):
    """What a model says of n rows."""

    outputs: dict[str, Any]  # of each target and subset: [n, subsets, ...]
    compared: dict[str, Any]  # of each modality z and h: [n, m, d]
    present: dict[str, Any]
    truths: dict[str, Any]
    index: Any


def _is_picture(look: np.ndarray) -> bool:
    return look.dtype == np.uint8 and look.ndim == 3 and look.shape[-1] in (1, 3)


def _small(regions: tuple, said: _Said) -> _Said:
    """What scores need: in place of a mask's logits the overlaps of its regions."""
    regions = dict(regions)
    outputs = {
        target: overlaps(z, said.truths[target][:, None], regions[target])
        if target in regions
        else z.astype(jnp.float32)
        for target, z in said.outputs.items()
    }
    truths = {t: truth for t, truth in said.truths.items() if t not in regions}
    return said._replace(outputs=outputs, truths=truths)


def auroc(scores: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict:
    """The area under the ROC curve of each label that occurs and does not: scores and
    labels [n, l]. Their mean is "auroc"."""
    of = {
        name: float(roc_auc_score(labels[:, i], scores[:, i]))
        for i, name in enumerate(names)
        if 0 < labels[:, i].sum() < len(labels)
    }
    if not of:
        return {"note": "each label is the same in all rows: no ROC curve"}
    return {"auroc": float(np.mean([*of.values()])), "auroc_of": of}


def overlaps(logits, truth, regions: Sequence[Sequence[int]]) -> jax.Array:
    """|A and B| and |A| + |B| of each region in pixels, [..., regions, 2], not finite
    where a logit is not; logits [..., h, w, classes], truth int[..., h, w]."""
    answers = logits.argmax(-1)
    of = []
    for classes in regions:
        a, b = jnp.isin(answers, np.array(classes)), jnp.isin(truth, np.array(classes))
        both, sizes = (a & b).sum((-2, -1)), a.sum((-2, -1)) + b.sum((-2, -1))
        of.append(jnp.stack([both, sizes], -1))
    finite = jnp.isfinite(logits).all((-3, -2, -1))[..., None, None]
    return jnp.where(finite, jnp.stack(of, -2).astype(jnp.float32), jnp.nan)


def dice(found: np.ndarray, regions: Mapping[str, Sequence[int]]) -> dict:
    """2 |A and B| / (|A| + |B|) of each region, its classes taken together, mean over
    the rows of what `overlaps` found. "dice" is the mean over the regions."""
    both, sizes = found[..., 0], found[..., 1]
    each = np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), 1).mean(0)
    of = {name: float(value) for name, value in zip(regions, each, strict=True)}
    return {"dice": float(np.mean([*of.values()])), "dice_of": of}
