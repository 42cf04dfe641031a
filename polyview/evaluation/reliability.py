"""Which answers of a classifier to trust, and which inputs are foreign to it.

A classifier, or a linear probe on a frozen encoder, answers; scores say how reliable
each answer is, higher being more reliable:

    maximum softmax, entropy, energy, margin     from the logits
    nearest neighbours, Mahalanobis              distance of h from training rows
    density                                      of activation patterns of training rows
    error rate                                   minus that of calibration rows with
                                                 patterns near by
    dropout, ensemble                            entropy of the mean of several answers

The last two exist where a model has dropout or the evaluation names further runs;
density and error rate are those of `polyview.evaluation.activation_patterns` (Ji et al.
2022), of which the second is ours. A score is measured by how it ranks wrong answers on
test rows last, and how it ranks foreign images below test rows. Bandwidths of patterns
are chosen on the calibration rows, which fitted neither the classifier nor the probe (a
frozen encoder may have seen them); neither test rows nor foreign images choose
anything.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from matplotlib.figure import Figure

from polyview import devices, hosts
from polyview.data.sources.protocol import Source
from polyview.errors import TINY, InputError, check_range
from polyview.evaluation import confidence
from polyview.evaluation.activation_patterns import (
    Patterns,
    constant_share,
    error_rates,
    log_densities,
)
from polyview.evaluation.base import Result, in_words
from polyview.evaluation.classification import (
    check_same_classes,
    check_target,
    class_labels,
    percent,
    top_accuracy,
)
from polyview.evaluation.features import Decoded, one_device, small_image
from polyview.evaluation.probe import LinearProbe, held_out, logits
from polyview.evaluation.reliability_figures import draw_curves, draw_extremes
from polyview.evaluation.selective import (
    accuracy_after_discarding,
    aucea,
    aurc,
    auroc,
    bootstrap,
    fpr_at,
)

BANDWIDTHS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
DISCARDED = (0.1, 0.2, 0.3, 0.5)
SHOWN = ("maximum softmax", "density", "error rate")  # in the columns that compare runs
_MANY = 8192  # units, above which a layer must be named, and no bound is computed
_FOLDS = 5  # of the calibration rows, to choose the bandwidth of the error rate
_BOUND_ROWS = 500  # queries of the bound, which is a diagnostic
_BOUND_PATTERNS = 10_000  # above which it is left out: its cost is their square
_SAME = 0.01  # of calibration rows that may equal training rows
_POINTS = 101  # of a curve
_EXAMPLES = 8  # images in a row of the figure


class Read(NamedTuple):
    """What a model gives for n rows; fields are None where there is none.

    h: float32[n, d]; logits: float32[n, classes]; several: {"dropout" or "ensemble":
    float32[k, n, classes]}; active: bool[n, units]; digest: of each row's view.
    """

    h: np.ndarray
    logits: np.ndarray | None
    several: dict[str, np.ndarray]
    active: np.ndarray | None
    targets: dict[str, np.ndarray]
    row: np.ndarray
    digest: np.ndarray


@dataclasses.dataclass(frozen=True)
class Reliability:
    """How scores of reliability rank wrong answers and foreign images.

    Attributes:
      train: rows that trained the classifier; with a probe, those that fit it.
      calibration: other rows of its classes. None holds out `held_out` of train, which
        only a probe allows.
      test: rows of these classes.
      foreign: {name: images of nothing that the classifier knows}.
      views: example -> one view, which passes on `label`.
      foreign_views: the same for foreign images, without a label; None for `views`.
      logits: among the model's features, whose z are logits of `label`; None fits a
        linear probe to h.
      layer: an activation by its path (`polyview.nn.taps`), whose units above 0 are the
        pattern. None takes the encoder's last ReLU, or, if it has none, h above its
        median over train.
      bandwidths: of patterns, to choose from; those above the number of units are left
        out.
      draws: passes with dropout; 0 for none.
      members: {name: further models}, which form an ensemble with this one.
      neighbours: k of the distance to the k-th nearest training row.
      resamples: of rows, for intervals.
      held_out: see calibration.
      label, modality, batch_size, seed, probe: as in
        `polyview.evaluation.frozen:FrozenFeatures`.
      spec: what a config calls its parts; set by `described`.
    """

    train: Source
    test: Source
    views: Callable
    calibration: Source | None = None
    foreign: Mapping[str, Source] = dataclasses.field(default_factory=dict)
    foreign_views: Callable | None = None
    logits: str | None = None
    layer: str | None = None
    bandwidths: Sequence[float] = BANDWIDTHS
    draws: int = 0
    members: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
    neighbours: int = 50
    resamples: int = 200
    held_out: float = 1 / 3
    label: str = "label"
    modality: str = "image"
    batch_size: int = 500
    seed: int = 0
    probe: LinearProbe = LinearProbe()
    spec: Mapping | None = None

    def __post_init__(self) -> None:
        check_range(1, batch_size=self.batch_size, neighbours=self.neighbours)
        check_range(0, draws=self.draws)
        if self.draws == 1:
            raise InputError("evaluation: draws=1 is no average; give 2 or more, or 0")
        check_range(2, resamples=self.resamples)
        check_range(TINY, 1 - TINY, held_out=self.held_out)
        if not self.bandwidths:
            raise InputError("evaluation: bandwidths is empty; give one or more")
        if self.logits is not None and self.calibration is None:
            raise InputError(
                "evaluation: a classifier's own training rows cannot calibrate it; "
                "set calibration to rows that it was not trained on"
            )
        if self.members and self.logits is None:
            raise InputError(
                "evaluation: an ensemble needs classifiers; frozen encoders have no "
                "answers of their own: leave out `members`, or set `logits`"
            )
        for split, source in self._sources(labelled=True).items():
            check_target(source, split, self.label)
            check_same_classes(self.train, source, self.label)

    def described(self, spec: Mapping) -> "Reliability":
        """Return a copy whose protocol names its parts by their spec."""
        return dataclasses.replace(self, spec=spec)

    def __call__(self, model: Any, mesh: Mesh) -> Result:
        """Evaluate `polyview.model.Model`, or any function of a batch to its features.

        A function has no activations that could be read: its pattern is h above the
        median. Raises InputError for a layer that does not exist, several views a
        sample, features that are not finite, and calibration rows that are training
        rows too.
        """
        began = time.perf_counter()
        layer, warning = self.pattern_layer(model, mesh)
        read = {
            name: self.read(model, source, name, layer, mesh)
            for name, source in self._sources().items()
        }
        # The rest is small: every process computes it all on one of its devices.
        with jax.set_mesh(one_device()):
            return self._result(read, layer, warning, began)

    def _result(
        self, read: dict[str, Read], layer: str | None, warning: str, began: float
    ) -> Result:
        read, probe = self._answered(read)
        _check_apart(read)
        if layer is None:
            medians = np.median(read["train"].h, axis=0)
            read = {n: r._replace(active=r.h > medians) for n, r in read.items()}
        labels = {
            split: class_labels(read[split], self.label)
            for split in ("train", "calibration", "test")
        }
        scores, patterns, reasons = self._scores(read, labels)
        answers = _known(read["test"].logits)
        right = answers.argmax(axis=1) == labels["test"]
        numbers: dict[str, Any] = {
            "protocol": self._describe(read, layer, probe),
            "classifier": top_accuracy(answers, labels["test"]),
            "patterns": patterns,
            "scores": self._measured(scores, right, reasons),
        }
        if reasons:
            numbers["not_computed"] = reasons
        if warning:
            numbers["warning"] = warning
        numbers["machine"] = hosts.machine()
        numbers["time"] = {"reliability": round(time.perf_counter() - began, 3)}
        return Result(
            numbers,
            self._figure_data(scores, right, read),
            summary=self.summary(numbers),
            columns=self.columns(numbers),
            standard_errors=self.standard_errors(numbers),
        )

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """Accuracy and AUROC of three scores, in %, and what could not be computed."""
        parts = [
            f"{name.removesuffix(' %')} {value:.1f} %"
            for name, value in Reliability.columns(numbers).items()
        ]
        reasons = [f"no {n}: {w}" for n, w in numbers.get("not_computed", {}).items()]
        reasons.append(numbers.get("warning", ""))
        return "; ".join(filter(None, [", ".join(parts), *reasons]))

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """Accuracy, AUROC of wrong answers, and its mean over foreign images, in %."""
        return {name: 100 * value for name, (value, _) in _columns(numbers).items()}

    @staticmethod
    def standard_errors(numbers: Mapping) -> dict[str, float]:
        """The standard errors of the columns, over resamples of rows, in %."""
        return {
            name: 100 * error
            for name, (_, error) in _columns(numbers).items()
            if error is not None
        }

    @staticmethod
    def comparison_table(
        results: Mapping[str, Mapping],
    ) -> tuple[list[str], list[list[str]]]:
        """AUROC and AUCEA of wrong answers, and AUROC of foreign images, of a score."""
        foreign = list(
            dict.fromkeys(
                name
                for numbers in results.values()
                for own in numbers["scores"].values()
                for name in own["foreign"]
            )
        )
        head = ["", "wrong: AUROC %", "AUCEA %", *(f"{f}: AUROC %" for f in foreign)]
        return head, [
            [
                f"{model}: {score}",
                percent(own.get("wrong", {}).get("auroc")),
                percent(own.get("wrong", {}).get("aucea")),
                *(percent(own["foreign"].get(f, {}).get("auroc")) for f in foreign),
            ]
            for model, numbers in results.items()
            for score, own in numbers["scores"].items()
        ]

    @staticmethod
    def figures(numbers: Mapping, figure_data: Mapping) -> dict[str, Figure]:
        """Draw risk against coverage, and the most and the least reliable images."""
        names = list(numbers["scores"])
        drawn = {"risk": draw_curves(names, figure_data)}
        if "image" in figure_data:
            drawn["images"] = draw_extremes(figure_data)
        return drawn

    def _sources(self, labelled: bool = False) -> dict[str, Source]:
        sources = {"train": self.train, "test": self.test}
        if self.calibration is not None:
            sources["calibration"] = self.calibration
        if labelled:
            return sources
        return sources | {f"foreign {n}": source for n, source in self.foreign.items()}

    def _batches(self, source: Source, name: str, mesh: Mesh) -> Iterator[dict]:
        options: dict = {"batch_size": self.batch_size, "seed": self.seed, "most": 0}
        own = self.foreign_views if name.startswith("foreign ") else None
        return iter(Decoded(source, own or self.views, mesh=mesh, **options))

    def pattern_layer(self, model: Any, mesh: Mesh) -> tuple[str | None, str]:
        """Return the path of the activation to read, or None, and a warning.

        Raises InputError if `layer` is no activation of the model.
        """
        if not hasattr(model, "activations"):
            if self.layer is not None:
                raise InputError(
                    f"evaluation: a function has no activation {self.layer!r} that can "
                    "be read; leave out `layer`, or give a model"
                )
            return None, ""
        batch = next(self._batches(self.test, "test", mesh), None)
        if batch is None:
            raise InputError("evaluation: test has no rows; choose another source")
        found: list[Any] = model.activations(devices.put(batch, mesh))
        if self.layer is None:
            encoder = f"towers.{self.modality}.encoder"
            inside = [one for one in found if one.path.startswith(encoder)]
            relus = [one for one in inside if not one.smooth]
            if inside and not inside[-1].smooth:
                units = int(np.prod(inside[-1].shape[1:]))
                if units <= _MANY:
                    return inside[-1].path, ""
                return None, (
                    f"the pattern is h above its median over train: {inside[-1].path} "
                    f"has {units} units; name a smaller layer"
                )
            why = f"its last activation is {inside[-1].kind}" if inside else "no ReLU"
            if relus:
                why += f"; name a ReLU by layer={_listed(relus)}"
            return None, f"the pattern is h above its median over train: {why}"
        named = next((one for one in found if one.path == self.layer), None)
        if named is None:
            raise InputError(
                f"evaluation: the model has no activation {self.layer!r}; set `layer` "
                f"to one of {_listed(found)}"
            )
        if named.smooth:
            return self.layer, (
                f"{self.layer} is smooth ({named.kind}): its units are not on or "
                "off, and a pattern is no region in which the network is linear"
            )
        return self.layer, ""

    def read(
        self, model: Any, source: Source, name: str, layer: str | None, mesh: Mesh
    ) -> Read:
        """Return what the model gives for every row that has the modality.

        name: what errors call the source; that of foreign images begins with "foreign".
        Raises InputError as the call of an evaluation does.
        """
        whole = jax.jit(_unchanged, out_shardings=devices.replicated(mesh))
        parts = []
        for batch in self._batches(source, name, mesh):
            views = batch["views"].get(self.modality)
            if views is None or views.shape[1] != 1:
                raise InputError(
                    f"evaluation: {name} has "
                    + (f"{views.shape[1]} views" if views is not None else "no view")
                    + f" of '{self.modality}' a sample; set its views to give one"
                )
            digests = [hashlib.sha256(view.tobytes()).digest()[:8] for view in views]
            halves = np.frombuffer(b"".join(digests), np.uint32).reshape(-1, 2)
            placed = devices.put(batch, mesh)
            got, index, targets, present, digest = jax.tree.map(
                np.asarray,
                whole(
                    (
                        self._given(model, placed, layer),
                        placed["index"],
                        placed["targets"],
                        placed["present"][self.modality],
                        devices.put(halves, mesh),  # JAX has no uint64
                    )
                ),
            )
            real = (index >= 0) & present[:, 0]
            parts.append(
                Read(
                    h=got["h"][real],
                    logits=got["logits"][real] if "logits" in got else None,
                    several={n: x[:, real] for n, x in got["several"].items()},
                    active=got["active"][real] if "active" in got else None,
                    targets={n: x[real] for n, x in targets.items()},
                    row=index[real],
                    digest=np.ascontiguousarray(digest).view(np.uint64)[real, 0],
                )
            )
        if not parts or not any(len(part.h) for part in parts):
            raise InputError(f"evaluation: {name} has no rows; choose another source")
        read = _joined(parts)
        finite = np.isfinite(read.h).all(axis=1)
        if not finite.all():
            raise InputError(
                f"evaluation: {(~finite).sum()} of {len(finite)} rows of {name} have "
                "features that are not finite; evaluate an earlier step"
            )
        return read

    def _given(self, model: Any, batch: dict, layer: str | None) -> dict[str, Any]:
        """Return the arrays of `Read` that the model computes."""
        features = model(batch)
        if self.modality not in features:
            raise InputError(
                f"evaluation: the model gives no '{self.modality}', only "
                f"{sorted(features)}; correct `modality`"
            )
        given: dict[str, Any] = {"h": features[self.modality].h[:, 0], "several": {}}
        if self.logits is not None:
            answer = self.logits
            if answer not in features:
                raise InputError(
                    f"evaluation: the model gives no '{answer}', only "
                    f"{sorted(features)}; correct `logits`"
                )
            given["logits"] = features[answer].z[:, 0]
            if self.draws and hasattr(model, "drawn"):
                keys = jax.random.split(jax.random.key(self.seed), self.draws)
                draws = [model.drawn(batch, key)[answer].z[:, 0] for key in keys]
                given["several"]["dropout"] = jax.numpy.stack(draws)
            if self.members:
                together = [given["logits"]]
                for name, member in self.members.items():
                    theirs = member(batch).get(answer)
                    if theirs is None or theirs.z[:, 0].shape != together[0].shape:
                        raise InputError(
                            f"evaluation: the member {name} gives no '{answer}' of "
                            f"{together[0].shape[1]} classes; leave it out of `members`"
                        )
                    together.append(theirs.z[:, 0])
                given["several"]["ensemble"] = jax.numpy.stack(together)
        if layer is not None:
            output = model.taps(batch, (layer,))[layer]
            given["active"] = output.reshape(len(given["h"]), -1) > 0
        return given

    def _answered(self, read: dict[str, Read]) -> tuple[dict[str, Read], dict | None]:
        """Return what was read with logits of all splits, and the probe's settings."""
        if self.logits is not None:
            return read, None
        labels = class_labels(read["train"], self.label)
        if self.calibration is None:
            held = held_out(labels, self.held_out, self.seed)
            whole = read["train"]
            read = read | {
                "train": _rows(whole, ~held),
                "calibration": _rows(whole, held),
            }
            labels = labels[~held]
        classes = self.train.targets[self.label]["classes"]
        sweep = self.probe.sweep(
            read["train"].h, labels, classes, validation=0.1, seed=self.seed
        )
        pair = sweep.learning_rate, sweep.weight_decay
        fitted = self.probe.fit(
            read["train"].h, labels, classes, [pair], seed=self.seed
        )
        answered = {
            name: one._replace(logits=logits(fitted, one.h))
            for name, one in read.items()
        }
        return answered, {"learning_rate": pair[0], "weight_decay": pair[1]}

    def _scores(
        self, read: dict[str, Read], labels: dict[str, np.ndarray]
    ) -> tuple[dict[str, dict[str, np.ndarray]], dict, dict[str, str]]:
        """Return {score: {split: float[n]}} of test and foreign images; what patterns
        were used; and {score: why it is left out}."""
        train, calibration = read["train"], read["calibration"]
        asked = {name: r for name, r in read.items() if name not in _FITTED}
        scores: dict[str, dict[str, np.ndarray]] = {}
        reasons: dict[str, str] = {}
        for name, score in _OF_LOGITS.items():
            scores[name] = {s: score(_known(one.logits)) for s, one in asked.items()}
        classes = self.train.targets[self.label]["classes"]
        of_distances: dict[str, Callable[[], Callable]] = {
            "nearest neighbours": lambda: (
                lambda h: confidence.kth_neighbour(train.h, h, k=self.neighbours)
            ),
            "Mahalanobis": lambda: (
                confidence.Mahalanobis.fit(train.h, labels["train"], classes).score
            ),
        }
        for name, fit in of_distances.items():
            try:
                score = fit()
                scores[name] = {split: score(one.h) for split, one in asked.items()}
            except InputError as error:
                reasons[name] = str(error)
        right = {
            split: _known(read[split].logits).argmax(axis=1) == labels[split]
            for split in _FITTED
        }
        patterns = self._of_patterns(train, calibration, right, asked, scores, reasons)
        for name in ("dropout", "ensemble"):
            if not all(name in one.several for one in asked.values()):
                continue
            drawn = asked["test"].several[name]
            if name == "dropout" and (drawn == drawn[:1]).all():
                reasons[name] = "all answers are equal: the model has no dropout"
                continue
            scores[name] = {
                split: confidence.negative_entropy(
                    confidence.mean_log_probabilities(one.several[name])
                )
                for split, one in asked.items()
            }
        return scores, patterns, reasons

    def _of_patterns(
        self,
        train: Read,
        calibration: Read,
        right: dict[str, np.ndarray],
        asked: dict[str, Read],
        scores: dict[str, dict[str, np.ndarray]],
        reasons: dict[str, str],
    ) -> dict[str, Any]:
        """Add density and error rate to the scores, and describe the patterns."""
        active = _known(train.active)
        units = active.shape[1]
        about: dict[str, Any] = {
            "units": units,
            "constant_units": constant_share(active),
        }
        bandwidths = [b for b in self.bandwidths if b <= units]
        if not bandwidths:
            raise InputError(
                f"evaluation: all bandwidths exceed the {units} units of the pattern; "
                "give smaller ones"
            )
        calibrated = _known(calibration.active)
        fitted = Patterns.fit(active, right["train"], bandwidths[0])
        about |= {"train_rows": len(active), "distinct": len(fitted.count)}
        densities = log_densities(fitted, calibrated, bandwidths)
        found = [aucea(one, right["calibration"]) for one in densities]
        density = bandwidths[int(np.argmax(found))]
        about["density"] = _choice(density, bandwidths, found)
        scores["density"] = {
            split: log_densities(fitted, _known(one.active), [density])[0]
            for split, one in asked.items()
        }
        small = len(fitted.count) <= _BOUND_PATTERNS and units <= _MANY
        if small and fitted.errors:
            some = _known(asked["test"].active)[:_BOUND_ROWS]
            bound = dataclasses.replace(fitted, bandwidth=density).log10_bound(some)
            about["bound"] = {
                "log10_median": float(np.median(bound)),
                "rows": len(bound),
                "meaning": "an error rate is at most 1, whose log10 is 0: above it the "
                "bound says nothing, and it ranks as the density does",
            }
        wrong = ~right["calibration"]
        about["calibration_errors"] = int(wrong.sum())
        if not wrong.any():
            reasons["error rate"] = (
                f"no error among {len(wrong)} calibration rows: it would be 0 "
                "everywhere; give more rows"
            )
            return about
        rates = _cross_fitted(calibrated, right["calibration"], bandwidths, self.seed)
        found = [aucea(-one, right["calibration"]) for one in rates]
        chosen = bandwidths[int(np.argmax(found))]
        about["error_rate"] = _choice(chosen, bandwidths, found)
        local = Patterns.fit(calibrated, right["calibration"], chosen)
        scores["error rate"] = {
            split: -error_rates(local, _known(one.active), [chosen])[0]
            for split, one in asked.items()
        }
        return about

    def _measured(
        self,
        scores: dict[str, dict[str, np.ndarray]],
        right: np.ndarray,
        reasons: dict[str, str],
    ) -> dict[str, Any]:
        """Measure each score on wrong answers and on foreign images."""
        both = right.any() and not right.all()
        if not both:
            reasons["wrong answers"] = (
                f"all {len(right)} answers are {'right' if right.any() else 'wrong'}: "
                "nothing is to be ranked"
            )
        measured: dict[str, Any] = {}
        for name, by_split in scores.items():
            own: dict[str, Any] = {"foreign": {}}
            test = by_split["test"]
            if both:
                own["wrong"] = self._wrong(test, right)
            for split, score in by_split.items():
                if split == "test":
                    continue
                found = self._interval(auroc, [test, score])
                own["foreign"][split.removeprefix("foreign ")] = {
                    **found,
                    "fpr95": fpr_at(test, score),
                }
            if own["foreign"]:
                others = [s for split, s in by_split.items() if split != "test"]
                own["mean_foreign"] = self._interval(_mean_auroc, [test, *others])
            measured[name] = own
        return measured

    def _wrong(self, score: np.ndarray, right: np.ndarray) -> dict[str, Any]:
        pairs = np.stack([score, right.astype(np.float64)], axis=1)

        def area(rows: np.ndarray) -> float:
            return aucea(rows[:, 0], rows[:, 1])

        areas = self._interval(area, [pairs], "aucea")
        found = self._interval(auroc, [score[right], score[~right]]) | areas
        discarded = accuracy_after_discarding(score, right, DISCARDED)
        return found | {
            "fpr95": fpr_at(score[right], score[~right]),
            "aurc": aurc(score, right),
            "accuracy_after_discarding": dict(
                zip(map(str, DISCARDED), discarded.tolist(), strict=True)
            ),
        }

    def _interval(
        self, statistic: Callable, arrays: list[np.ndarray], name: str = "auroc"
    ) -> dict[str, Any]:
        found = bootstrap(statistic, arrays, self.resamples, self.seed)
        ending = "" if name == "auroc" else f"_{name}"
        return {
            name: found.value,
            f"low{ending}": found.low,
            f"high{ending}": found.high,
            f"standard_error{ending}": found.standard_error,
        }

    def _figure_data(
        self,
        scores: dict[str, dict[str, np.ndarray]],
        right: np.ndarray,
        read: dict[str, Read],
    ) -> dict[str, np.ndarray]:
        """Return points of the curves, and the most and least reliable images."""
        coverage = np.linspace(0, 1, _POINTS)[1:]
        data: dict[str, np.ndarray] = {"coverage": coverage}
        for number, by_split in enumerate(scores.values()):
            kept = accuracy_after_discarding(
                by_split["test"], right, [float(share) for share in 1 - coverage]
            )
            data[f"risk_{number}"] = 1 - kept
        rows, names = [], []
        for name in SHOWN:
            if name not in scores:
                continue
            order = np.argsort(-scores[name]["test"], kind="stable")
            for end, chosen in (("most", order), ("least", order[::-1])):
                rows.append(chosen[:_EXAMPLES])
                names.append(f"{name}: {end} reliable")
        images = [
            [
                small_image(
                    self.test,
                    int(read["test"].row[row]),
                    self.views,
                    modality=self.modality,
                    seed=self.seed,
                )
                for row in some
            ]
            for some in rows
        ]
        if rows and all(one is not None for line in images for one in line):
            data |= {
                "image": np.array(images),
                "right": np.array([right[some] for some in rows]),
                "line": np.array(names),
            }
        return data

    def _describe(
        self, read: dict[str, Read], layer: str | None, probe: dict | None
    ) -> dict[str, Any]:
        def rows(split: str) -> dict[str, Any]:
            kind, _, name = split.partition(" ")
            source = self.foreign[name] if name else getattr(self, kind)
            if source is None:
                return {"source": f"{self.held_out:.3g} of train, held out"}
            spec = (self.spec or {}).get(kind) if name else self.spec
            return {"source": in_words(spec, name or kind, source)}

        return {
            **{name: rows(name) | {"rows": len(one.h)} for name, one in read.items()},
            "views": in_words(self.spec, "views", self.views),
            "modality": self.modality,
            "label": self.label,
            "answers": f"z of '{self.logits}'"
            if probe is None
            else {"linear_probe": dataclasses.asdict(self.probe), "chosen": probe},
            "pattern": f"{layer} above 0" if layer else "h above its median over train",
            "neighbours": self.neighbours,
            "draws": self.draws,
            "members": sorted(self.members),
            "chosen": "bandwidths: by AUCEA on the calibration rows, of the error rate "
            f"in {_FOLDS} folds; nothing on test or foreign images",
            "intervals": f"{self.resamples} resamples of rows, percentiles 2.5 and "
            "97.5; without the variation between seeds of training",
            "batch_size": self.batch_size,
            "seed": self.seed,
        }


_FITTED = ("train", "calibration")
_OF_LOGITS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "maximum softmax": confidence.log_maximum_softmax,
    "entropy": confidence.negative_entropy,
    "energy": confidence.negative_energy,
    "margin": confidence.margin,
}


def _cross_fitted(
    active: np.ndarray, right: np.ndarray, bandwidths: Sequence[float], seed: int
) -> np.ndarray:
    """Return error rates of rows by the other folds, float64[bandwidths, n]."""
    folds = np.random.default_rng(seed).permutation(len(active)) % _FOLDS
    rates = np.empty((len(bandwidths), len(active)))
    for fold in range(_FOLDS):
        own = folds == fold
        if own.any():
            others = Patterns.fit(active[~own], right[~own], bandwidths[0])
            rates[:, own] = error_rates(others, active[own], bandwidths)
    return rates


def _choice(
    chosen: float, bandwidths: Sequence[float], found: Sequence[float]
) -> dict[str, Any]:
    return {
        "bandwidth": chosen,
        "bandwidths": list(bandwidths),
        "calibration_aucea": [float(one) for one in found],
    }


def _check_apart(read: Mapping[str, Read]) -> None:
    """Raise InputError if calibration or test images fitted what they measure."""
    for split, earlier, why in (
        ("calibration", "train", "on which the classifier errs as on new ones"),
        ("test", "train", "on which nothing was fitted"),
        ("test", "calibration", "by which nothing was chosen"),
    ):
        same = np.isin(read[split].digest, read[earlier].digest).mean()
        if same > _SAME:
            kind = {"train": "training"}.get(earlier, earlier)
            raise InputError(
                f"evaluation: {100 * same:.1f} % of the {split} images are {kind} "
                f"images too; give others, {why}"
            )


def _known(array: np.ndarray | None) -> np.ndarray:
    assert array is not None  # as the callers have seen to
    return array


def _rows(read: Read, kept: np.ndarray) -> Read:
    return Read(
        h=read.h[kept],
        logits=None if read.logits is None else read.logits[kept],
        several={name: x[:, kept] for name, x in read.several.items()},
        active=None if read.active is None else read.active[kept],
        targets={name: x[kept] for name, x in read.targets.items()},
        row=read.row[kept],
        digest=read.digest[kept],
    )


def _unchanged(arrays: Any) -> Any:
    return arrays


def _joined(parts: Sequence[Read]) -> Read:
    """Join the rows of batches."""

    def joined(axis: int, *arrays: np.ndarray) -> np.ndarray:
        return np.concatenate(arrays, axis)

    fields = {
        name: jax.tree.map(
            partial(joined, 1 if name == "several" else 0),
            *(getattr(part, name) for part in parts),
        )
        for name in Read._fields
    }
    return Read(**fields)


def _listed(found: Sequence[Any]) -> str:
    paths = [one.path for one in found]
    return ", ".join(paths[-8:]) or "none: it has no activation that can be read"


def _columns(numbers: Mapping) -> dict[str, tuple[float, float | None]]:
    """Return {column: (value, standard error)}, as shares of one."""
    accuracy = numbers["classifier"]
    columns: dict[str, tuple[float, float | None]] = {
        "accuracy %": (accuracy["top1"], accuracy["standard_error"])
    }
    for name in SHOWN:
        own = numbers["scores"].get(name, {})
        if "wrong" in own:
            wrong = own["wrong"]
            columns[f"wrong, {name} %"] = wrong["auroc"], wrong["standard_error"]
        if "mean_foreign" in own:
            mean = own["mean_foreign"]
            columns[f"foreign, {name} %"] = mean["auroc"], mean["standard_error"]
    return columns


def _mean_auroc(test: np.ndarray, *foreign: np.ndarray) -> float:
    return float(np.mean([auroc(test, one) for one in foreign]))
