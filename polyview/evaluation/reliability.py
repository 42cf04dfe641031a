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
anything. `reliability_reading` reads the model, `reliability_scores` scores the rows,
`reliability_measures` measures the scores.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from matplotlib.figure import Figure

from polyview import hosts
from polyview.data.sources.protocol import Source
from polyview.errors import TINY, InputError, check_range
from polyview.evaluation import reliability_measures
from polyview.evaluation.base import Result, in_words
from polyview.evaluation.classification import (
    check_same_classes,
    check_target,
    class_labels,
    class_names,
    top_accuracy,
)
from polyview.evaluation.features import one_device, small_image
from polyview.evaluation.probe import LinearProbe
from polyview.evaluation.reliability_figures import (
    draw_choices,
    draw_curves,
    draw_extremes,
)
from polyview.evaluation.reliability_reading import (
    Read,
    Reader,
    check_apart,
    check_member,
    known,
)
from polyview.evaluation.reliability_scores import FOLDS, Scores, scored, with_probe

BANDWIDTHS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


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
      member_classes: {name: names of a member's classes, in the order of its logits},
        which must be those of train; a member that it leaves out is not checked.
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
    member_classes: Mapping[str, Sequence[str]] = dataclasses.field(
        default_factory=dict
    )
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
        own = class_names(self.train.targets[self.label])
        for name, theirs in self.member_classes.items():
            check_member(name, list(theirs), own)

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
        classes, probe = self.train.targets[self.label]["classes"], None
        if self.logits is None:
            read, probe = with_probe(
                read,
                self.probe,
                label=self.label,
                classes=classes,
                share=self.held_out,
                seed=self.seed,
            )
        check_apart(read)
        if layer is None:
            medians = np.median(read["train"].h, axis=0)
            read = {n: r._replace(active=r.h > medians) for n, r in read.items()}
        labels = {
            split: class_labels(read[split], self.label)
            for split in ("train", "calibration", "test")
        }
        scores, patterns, reasons = scored(
            read,
            labels,
            classes=classes,
            neighbours=self.neighbours,
            bandwidths=self.bandwidths,
            seed=self.seed,
        )
        answers = known(read["test"].logits)
        right = answers.argmax(axis=1) == labels["test"]
        numbers: dict[str, Any] = {
            "protocol": self._describe(read, layer, probe),
            "classifier": top_accuracy(answers, labels["test"]),
            "patterns": patterns,
            "scores": reliability_measures.measured(
                scores, right, resamples=self.resamples, seed=self.seed
            ),
        }
        if reason := reliability_measures.not_ranked(right):
            reasons["wrong answers"] = reason
        if reasons:
            numbers["not_computed"] = reasons
        if warning:
            numbers["warning"] = warning
        numbers["machine"] = hosts.machine()
        numbers["time"] = {"reliability": round(time.perf_counter() - began, 3)}
        return Result(
            numbers,
            reliability_measures.curves(scores, right)
            | self._images(scores, right, read["test"]),
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
        return {
            name: 100 * value
            for name, (value, _) in reliability_measures.columns(numbers).items()
        }

    @staticmethod
    def standard_errors(numbers: Mapping) -> dict[str, float]:
        """The standard errors of the columns, over resamples of rows, in %."""
        return {
            name: 100 * error
            for name, (_, error) in reliability_measures.columns(numbers).items()
            if error is not None
        }

    @staticmethod
    def comparison_table(
        results: Mapping[str, Mapping],
    ) -> tuple[list[str], list[list[str]]]:
        """AUROC and FPR95 of wrong answers and of foreign images, for each score."""
        return reliability_measures.table(results)

    @staticmethod
    def figures(numbers: Mapping, figure_data: Mapping) -> dict[str, Figure]:
        """Draw risk against coverage, how bandwidths were chosen, and images."""
        names = list(numbers["scores"])
        drawn = {"risk": draw_curves(names, figure_data)}
        if choices := reliability_measures.choices(numbers):
            drawn["bandwidths"] = draw_choices(choices)
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

    def _reader(self, name: str) -> Reader:
        """Return what reads a source; that of foreign images begins with "foreign"."""
        own = self.foreign_views if name.startswith("foreign ") else None
        return Reader(
            views=own or self.views,
            modality=self.modality,
            logits=self.logits,
            draws=self.draws,
            members=self.members,
            batch_size=self.batch_size,
            seed=self.seed,
        )

    def pattern_layer(self, model: Any, mesh: Mesh) -> tuple[str | None, str]:
        """Return the path of the activation to read, or None, and a warning.

        Raises InputError if `layer` is no activation of the model.
        """
        return self._reader("test").pattern_layer(model, self.test, self.layer, mesh)

    def read(
        self, model: Any, source: Source, name: str, layer: str | None, mesh: Mesh
    ) -> Read:
        """Return what the model gives for every row that has the modality.

        name: what errors call the source; that of foreign images begins with "foreign".
        Raises InputError as the call of an evaluation does.
        """
        return self._reader(name).read(model, source, name, layer, mesh)

    def _images(
        self, scores: Scores, right: np.ndarray, read: Read
    ) -> dict[str, np.ndarray]:
        """Return the most and least reliable test images, {} if they are no images."""
        ends = reliability_measures.extremes(scores)
        images = [
            [
                small_image(
                    self.test,
                    int(read.row[row]),
                    self.views,
                    modality=self.modality,
                    seed=self.seed,
                )
                for row in rows
            ]
            for rows in ends.values()
        ]
        if not ends or any(one is None for line in images for one in line):
            return {}
        return {
            "image": np.array(images),
            "right": np.array([right[rows] for rows in ends.values()]),
            "line": np.array(list(ends)),
        }

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
            f"in {FOLDS} folds; nothing on test or foreign images",
            "intervals": f"{self.resamples} resamples of rows, percentiles 2.5 and "
            "97.5; without the variation between seeds of training",
            "batch_size": self.batch_size,
            "seed": self.seed,
        }
