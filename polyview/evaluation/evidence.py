"""Where the evidence for a part lies: do local features know their part by its place?

Each position p of a feature map has features x_p. One map to attributes, shared by all
positions, is fitted by ridge on images of seen classes, whose every position gets the
attributes a of the whole class:

    minimise over W, w:  sum over images and p of |x_p W + w - a|^2 + strength |W|^2

The evidence of position p for attribute k is max(0, x_p W_k + w_k - mean a_k). Boxes,
which training never sees, say where a part is: if positions know their parts, the share
of the evidence inside the part's box exceeds the box's share of the area, which evenly
spread evidence would have. Evidence for parts that an image lacks is the control: it
lies where there is ink, whatever the ink shows.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.patches
import numpy as np
from einops import rearrange
from jax.sharding import Mesh
from matplotlib.figure import Figure

from polyview import devices, hosts
from polyview.data.sources.protocol import Source
from polyview.drawing import (
    QUIET,
    RUNS,
    WIDTH,
    check_parts,
    legible,
    set_title,
    short,
    show_image,
    styled,
)
from polyview.errors import TINY, InputError, check_range
from polyview.evaluation.base import Result, in_words
from polyview.evaluation.class_attributes import (
    Learnt,
    check_attributes,
    check_same_attributes,
    check_tables,
    table_of,
)
from polyview.evaluation.classification import (
    check_same_classes,
    class_labels,
    class_names,
)
from polyview.evaluation.features import Decoded, Extracted

_SHOWN = 6  # images in the figure
_GRID = 8  # cells a side of the reference by pixels


class Probe(NamedTuple):
    """Evidence of positions: (x - shift) W; shift float64[c], weight float64[c, a]."""

    shift: np.ndarray
    weight: np.ndarray

    def evidence(self, maps: np.ndarray) -> np.ndarray:
        """Return the positive evidence, float[n, p, c] -> float64[n, p, a]."""
        return np.maximum((maps - self.shift) @ self.weight, 0)


class Moments(NamedTuple):
    """Sums over images and positions: all that the fit of a `Probe` reads.

    count: positions; x[c], xx[c, c]: features; y[a], xy[c, a]: attributes.
    """

    count: Any
    x: Any
    xx: Any
    y: Any
    xy: Any


def moments(maps: jax.Array, attributes: jax.Array, real: jax.Array) -> Moments:
    """Return the sums over maps[n, p, c] of images with attributes[n, a].

    real: bool[n], False for images to leave out, whose maps may hold anything.
    """
    maps = jnp.where(real[:, None, None], maps.astype(jnp.float32), 0)
    y = jnp.where(real[:, None], attributes.astype(jnp.float32), 0)
    sums, positions = jnp.sum(maps, axis=1), maps.shape[1]
    return Moments(
        count=jnp.sum(real) * positions,
        x=jnp.sum(sums, axis=0),
        xx=jnp.einsum("npc,npk->ck", maps, maps, precision="highest"),
        y=jnp.sum(y, axis=0) * positions,
        xy=jnp.einsum("nc,na->ca", sums, y, precision="highest"),
    )


def fit_probe(sums: Moments, strength: float) -> Probe:
    """Return the ridge on standardised features of positions.

    The penalty is strength * total * |W|^2 with `total` the features' sum of squares,
    as in `polyview.evaluation.ridge`. Features that hardly vary are left out.
    """
    count, x, xx, y, xy = (np.asarray(part, np.float64) for part in sums)
    shift = x / count
    gram = xx - count * np.outer(shift, shift)
    deviation = np.sqrt(np.maximum(np.diag(gram), 0) / count)
    used = deviation > 1e-3 * deviation.max(initial=0)
    scale = deviation[used]
    gram = gram[np.ix_(used, used)] / np.outer(scale, scale)
    cross = (xy - np.outer(shift, y))[used] / scale[:, None]
    penalty = strength * np.trace(gram) * np.eye(len(gram))
    weight = np.zeros(xy.shape)
    weight[used] = np.linalg.solve(gram + penalty, cross) / scale[:, None]
    return Probe(shift, weight)


def overlaps(boxes: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return the part of each cell of a grid that lies inside each box.

    boxes: float[..., 4] as (left, top, right, bottom) in shares of the sides ->
    float64[..., rows * columns] in 0 .. 1, row by row; NaN for a box with NaN.
    """

    def along(low: np.ndarray, high: np.ndarray, cells: int) -> np.ndarray:
        edges = np.arange(cells + 1) / cells
        inside = np.minimum(high[..., None], edges[1:])
        inside = inside - np.maximum(low[..., None], edges[:-1])
        return np.maximum(inside, 0) * cells

    left, top, right, bottom = np.moveaxis(np.asarray(boxes, np.float64), -1, 0)
    each = (
        along(top, bottom, rows)[..., None] * along(left, right, columns)[..., None, :]
    )
    return each.reshape(*each.shape[:-2], rows * columns)


class Shares(NamedTuple):
    """Of n images with s boxes each, float64[n, s]; NaN where no box is known.

    inside: the share of a part's evidence in its box; area: the box's share of the
    area; control: the mean, over attributes that the image lacks, of the share of their
    evidence in the box. An attribute without evidence anywhere counts as one whose
    evidence is spread evenly.
    """

    inside: np.ndarray
    area: np.ndarray
    control: np.ndarray


def shares(
    evidence: np.ndarray,
    attributes: np.ndarray,
    parts: np.ndarray,
    inside: np.ndarray,
) -> Shares:
    """Return where the evidence lies.

    evidence: float[n, p, a], not negative; attributes: [n, a], those of the images;
    parts: int[n, s], the attribute of each box, or -1; inside: float[n, s, p], from
    `overlaps`.
    """
    known = (parts >= 0) & np.isfinite(inside).all(axis=-1)
    inside = np.where(known[..., None], inside, 0)
    area = inside.mean(axis=-1)
    total = evidence.sum(axis=1)[:, None]  # [n, 1, a]
    share = np.matmul(inside, evidence) / np.where(total > 0, total, 1)
    share = np.where(total > 0, share, area[..., None])
    own = np.take_along_axis(share, np.maximum(parts, 0)[..., None], axis=-1)[..., 0]
    lacks = (attributes == 0)[:, None]
    control = np.where(lacks, share, 0).sum(axis=-1) / np.maximum(lacks.sum(axis=-1), 1)
    return Shares(*(np.where(known, x, np.nan) for x in (own, area, control)))


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The share of a part's evidence inside its box, on images of unseen classes.

    Attributes:
      train: images of seen classes, which fit the probe of positions.
      test: images of other classes, with `boxes` and `parts`.
      views: example -> views that pass on `label` and `attributes`, for train.
      upright: the same for test, with `boxes` and `parts`, too: the whole image,
        neither turned nor moved, so that boxes hold.
      path: the encoder in the model, which returns (h, map[n, p, c]); None reads the
        map from the features' `local`.
      grid: rows and columns of the map; None for as many rows as columns.
      scale: the share of a view's sides that the image takes, around the middle; boxes
        are in shares of the image.
      strength: of the ridge, fixed.
      label: a target of kind "class", numbered over all classes.
      attributes: a target with the vector of each row's class.
      modality: the modality to encode.
      resamples: of the classes of test, for intervals.
      batch_size: global.
      seed: of views and resamples.
      learnt_from: as in `polyview.evaluation.attributes:AttributeZeroShot`.
      spec: what a config calls its parts; set by `described`.
    """

    train: Source
    test: Source
    views: Callable
    upright: Callable
    path: str | None = "towers.image.encoder"
    grid: Sequence[int] | None = None
    scale: float = 1.0
    strength: float = 1e-4
    label: str = "label"
    attributes: str = "attributes"
    modality: str = "image"
    resamples: int = 1000
    batch_size: int = 500
    seed: int = 0
    learnt_from: Sequence[Source] | None = None
    spec: Mapping | None = None

    def __post_init__(self) -> None:
        check_range(TINY, strength=self.strength, scale=self.scale)
        check_range(1, batch_size=self.batch_size, resamples=self.resamples)
        for split, source in (("train", self.train), ("test", self.test)):
            check_attributes(source, split, self.label, self.attributes)
        check_same_classes(self.train, self.test, self.label)
        check_same_attributes(self.train, self.test, self.attributes)
        if lacking := [n for n in ("boxes", "parts") if n not in self.test.targets]:
            raise InputError(
                f"evaluation: the test source has no target '{lacking[0]}', only "
                f"{', '.join(self.test.targets)}; evidence needs boxes of parts, as "
                "those of python -m polyview.prepare han"
            )

    def described(self, spec: Mapping) -> "Evidence":
        """Return a copy whose protocol names its parts by their spec."""
        return dataclasses.replace(self, spec=spec)

    def trained_on(self, sources: Sequence[Source] | None) -> "Evidence":
        """Return a copy that knows what the encoder was trained on."""
        return dataclasses.replace(self, learnt_from=sources)

    def __call__(self, represent: Callable, mesh: Mesh) -> Result:
        """Evaluate a model, or `represent(batch) -> {modality: features with local}`.

        Raises InputError for a model without a map, a map that is not `grid`, a class
        of test in train, also of the encoder, and boxes of which none is known.
        """
        began = time.perf_counter()
        train = self._fitted(represent, mesh)
        test = self._read(represent, mesh)
        names = class_names(self.train.targets[self.label])
        tables = [
            table_of(one, split, self.label, self.attributes, names)
            for one, split in ((train.rows, "train"), (test.rows, "test"))
        ]
        attribute_names = self.train.targets[self.attributes].get("names")
        check_tables(tables[0], {"test": tables[1]}, {}, names, attribute_names)
        Learnt.of(self.learnt_from, self.label).check(tables[1], "test", names)
        probe = fit_probe(train.sums, self.strength)
        rows, columns = self._sides(test.maps.shape[1])
        targets = test.rows.targets
        middle = 0.5 + (targets["boxes"].astype(np.float64) - 0.5) * self.scale
        inside = overlaps(middle, rows, columns)
        # In blocks, since evidence for all attributes is large.
        found = Shares(
            *(
                np.concatenate(parts)
                for parts in zip(
                    *(
                        shares(
                            probe.evidence(test.maps[block]),
                            targets[self.attributes][block],
                            targets["parts"][block],
                            inside[block],
                        )
                        for block in _blocks(len(test.maps))
                    ),
                    strict=True,
                )
            )
        )
        labels = class_labels(test.rows, self.label)
        numbers: dict[str, Any] = {
            "protocol": self._describe(train, test),
            "map": {"rows": rows, "columns": columns},  # a reference may have another
            "evidence": self._summed(found, labels),
        }
        figure_data = self._sample(probe, test, middle, (rows, columns))
        numbers["machine"] = hosts.machine()
        numbers["time"] = {"evidence": round(time.perf_counter() - began, 3)}
        return Result(
            numbers,
            figure_data,
            summary=self.summary(numbers),
            columns=self.columns(numbers),
            standard_errors=self.standard_errors(numbers),
        )

    def raw(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the pixels of 8 x 8 cells as the map of the reference."""
        view = batch["views"][self.modality]
        height, width = view.shape[2:4]
        if height % _GRID or width % _GRID:
            raise InputError(
                f"views of {height} x {width} pixels have no {_GRID} x {_GRID} cells; "
                "leave out --references"
            )
        unit = 255 if view.dtype == jnp.uint8 else 1
        cells = rearrange(
            view.astype(jnp.float32) / unit,
            "b m (r h) (c w) k -> b m (r c) (h w k)",
            r=_GRID,
            c=_GRID,
        )
        return {self.modality: _Map(local=cells)}

    @staticmethod
    def summary(numbers: Mapping) -> str:
        """The shares in %, with the interval of their difference."""
        one = numbers["evidence"]
        return (
            f"evidence in its box {100 * one['inside']:.1f} %, box "
            f"{100 * one['area']:.1f} % of the area, more by {100 * one['excess']:.1f} "
            f"({100 * one['low']:.1f} to {100 * one['high']:.1f}); of absent parts "
            f"{100 * one['control']:.1f} %"
        )

    @staticmethod
    def columns(numbers: Mapping) -> dict[str, float]:
        """The share of the evidence in its box, and by how much it exceeds the area."""
        one = numbers["evidence"]
        return {
            "evidence in its box %": 100 * one["inside"],
            "more than the area %": 100 * one["excess"],
        }

    @staticmethod
    def standard_errors(numbers: Mapping) -> dict[str, float]:
        """The standard errors of the columns, over resamples of classes."""
        one = numbers["evidence"]
        return {
            "evidence in its box %": 100 * one["standard_error"],
            "more than the area %": 100 * one["excess_standard_error"],
        }

    @staticmethod
    def comparison_table(
        results: Mapping[str, Mapping],
    ) -> tuple[list[str], list[list[str]]]:
        """Shares in and of the box, their difference, and the control."""
        head = ["", "in its box %", "area %", "more by %", "absent parts %"]
        return head, [
            [
                model,
                f"{100 * one['inside']:.2f} ± {100 * one['standard_error']:.2f}",
                f"{100 * one['area']:.2f}",
                f"{100 * one['excess']:.2f} ± {100 * one['excess_standard_error']:.2f}",
                f"{100 * one['control']:.2f}",
            ]
            for model, one in ((m, n["evidence"]) for m, n in results.items())
        ]

    @staticmethod
    def figures(numbers: Mapping, figure_data: Mapping) -> dict[str, Figure]:
        """Draw maps of the evidence over images, with the boxes."""
        if "image" not in figure_data:
            return {}
        return {
            "maps": draw_maps(
                figure_data["image"],
                figure_data["evidence"],
                figure_data["box"],
                [str(name) for name in figure_data["name"]],
            )
        }

    def _maps(self, represent: Any, batch: dict[str, Any]) -> jax.Array:
        """Return the map of each view, float[b, m, p, c]."""
        m = batch["views"][self.modality].shape[1]
        if self.path is not None and hasattr(represent, "taps"):
            output = represent.taps(batch, (self.path,))[self.path]
            local = output[1] if isinstance(output, tuple) else None
            local = None if local is None else local.reshape(-1, m, *local.shape[1:])
        else:
            local = getattr(represent(batch)[self.modality], "local", None)
        if local is None or local.ndim != 4:
            where = f"'{self.path}'" if self.path else f"'{self.modality}'.local"
            raise InputError(
                f"evaluation: the model gives no feature map at {where}; set `path` to "
                "its encoder, or to None to read the features' local"
            )
        return local

    def _fitted(self, represent: Any, mesh: Mesh) -> "_Fitted":
        """Sum over the positions of train; only its targets are kept."""
        add = jax.jit(_batch_moments, out_shardings=devices.replicated(mesh))
        total, rows = None, []
        for batch in self._batches(self.train, self.views, mesh):
            maps = self._maps(represent, batch)
            real = batch["present"][self.modality] & (batch["index"] >= 0)[:, None]
            sums, kept = add(maps, self._attributes(batch), real, _targets(batch))
            sums = jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
            total = sums if total is None else jax.tree.map(np.add, total, sums)
            rows.append(jax.tree.map(np.asarray, kept))
        if total is None or not total.count:
            raise InputError(f"no row of train has the modality '{self.modality}'")
        if not all(np.isfinite(x).all() for x in total):
            raise InputError(
                "the feature maps of train are not finite; the checkpoint has "
                "diverged: evaluate an earlier step"
            )
        return _Fitted(total, _joined(rows))

    def _read(self, represent: Any, mesh: Mesh) -> "_Test":
        """Return the maps of the first view of each row of test."""
        keep = jax.jit(lambda *x: x, out_shardings=devices.replicated(mesh))
        parts, rows = [], []
        for batch in self._batches(self.test, self.upright, mesh):
            if lacking := {"boxes", "parts"} - set(batch["targets"]):
                raise InputError(
                    f"evaluation: upright views pass on no target '{min(lacking)}'; "
                    "set upright.targets=('label', 'attributes', 'boxes', 'parts')"
                )
            local = self._maps(represent, batch)[:, 0]
            maps, kept = keep(local, _targets(batch))
            rows.append(jax.tree.map(np.asarray, kept))
            parts.append(np.asarray(maps, np.float32)[rows[-1].index >= 0])
        if not parts:
            raise InputError("the test split has no rows; choose another")
        maps = np.concatenate(parts)
        if not np.isfinite(maps).all():
            raise InputError(
                "the feature maps of test are not finite; evaluate an earlier step"
            )
        return _Test(maps, _joined(rows))

    def _batches(self, source: Source, views: Callable, mesh: Mesh) -> Any:
        batches = Decoded(
            source,
            views,
            batch_size=self.batch_size,
            mesh=mesh,
            seed=self.seed,
            most=0,
        )
        return (devices.put(batch, mesh) for batch in batches)

    def _attributes(self, batch: dict[str, Any]) -> jax.Array:
        if self.attributes not in batch["targets"]:
            raise InputError(
                f"evaluation: its views pass on no target '{self.attributes}'; set its "
                f"views.targets=('{self.label}', '{self.attributes}')"
            )
        return batch["targets"][self.attributes]

    def _sides(self, positions: int) -> tuple[int, int]:
        side = math.isqrt(positions)
        rows, columns = self.grid or (side, side)
        if rows * columns != positions:
            raise InputError(
                f"evaluation: the feature map has {positions} positions, not "
                f"{rows} x {columns}; set `grid` to its rows and columns"
            )
        return rows, columns

    def _summed(self, found: Shares, labels: np.ndarray) -> dict[str, Any]:
        """Average over the parts of an image, then over images; resample classes."""
        known = np.isfinite(found.area)
        if not known.any():
            raise InputError(
                "evaluation: no row of test has a part with a known box; prepare the "
                "data with boxes"
            )
        rows = known.any(axis=1)
        count = known.sum(axis=1)[rows]
        each = np.stack(
            [np.where(known, x, 0).sum(axis=1)[rows] / count for x in found]
        )
        each = np.concatenate([each, each[:1] - each[1:2]])
        classes, place = np.unique(labels[rows], return_inverse=True)
        sums = np.zeros((len(classes), len(each) + 1))
        np.add.at(sums, place, np.concatenate([each, np.ones((1, len(place)))]).T)
        rng = np.random.default_rng(self.seed)
        drawn = rng.integers(len(classes), size=(self.resamples, len(classes)))
        resampled = np.stack([sums[one].sum(axis=0) for one in drawn])
        resampled = resampled[:, :-1] / resampled[:, -1:]
        inside, area, control, excess = each.mean(axis=1).tolist()
        low, high = np.percentile(resampled[:, 3], [2.5, 97.5]).tolist()
        errors = resampled.std(axis=0)
        return {
            "inside": inside,
            "standard_error": float(errors[0]),
            "area": area,
            "excess": excess,
            "excess_standard_error": float(errors[3]),
            "low": low,
            "high": high,
            "control": control,
            "images": int(rows.sum()),
            "classes": len(classes),
            "parts": int(known.sum()),
            "parts_without_a_box": int((~known).sum()),
        }

    def _sample(
        self,
        probe: Probe,
        test: "_Test",
        boxes: np.ndarray,
        sides: tuple[int, int],
    ) -> dict[str, np.ndarray]:
        """Keep some images with the evidence for their first two parts."""
        parts = test.rows.targets["parts"]
        shown = np.flatnonzero((parts[:, :2] >= 0).all(axis=1))
        if parts.shape[1] < 2 or not len(shown):
            return {}
        shown = shown[
            np.linspace(0, len(shown) - 1, min(_SHOWN, len(shown))).astype(int)
        ]
        images = []
        for row in test.rows.index[shown]:
            generated = self.upright(self.test[int(row)], np.random.default_rng(0))
            images.append(generated["views"][self.modality][0])
        if images[0].dtype != np.uint8 or images[0].shape[-1] not in (1, 3):
            return {}
        evidence = probe.evidence(test.maps[shown])
        own = np.take_along_axis(evidence, parts[shown, None, :2], axis=2)
        task = self.train.targets[self.attributes]
        names = task.get("names") or [str(k) for k in range(evidence.shape[2])]
        return {
            "image": np.stack(images),
            "evidence": rearrange(
                own, "n (r c) s -> n s r c", r=sides[0], c=sides[1]
            ).astype(np.float32),
            "box": boxes[shown, :2],
            "name": np.array([names[k] for k in parts[shown, :2].ravel()]),
        }

    def _describe(self, train: "_Fitted", test: "_Test") -> dict[str, Any]:
        def part(split: str, source: Source, read: Extracted) -> dict[str, Any]:
            name = in_words(self.spec, split, source)
            return {"source": name, "rows": len(read.index)}

        return {
            "train": part("train", self.train, train.rows),
            "test": part("test", self.test, test.rows),
            "views": in_words(self.spec, "views", self.views),
            "upright": in_words(self.spec, "upright", self.upright),
            "modality": self.modality,
            "map": self.path or "the features' local",
            "features": {"dimensions": test.maps.shape[2]},
            "boxes": {"scale": self.scale},
            "evidence": {
                "definition": "max(0, x W + w - mean attribute) of a position; W by "
                "ridge on all positions of the seen classes",
                "strength": self.strength,
                "averaged": "over the parts of an image, then over images",
                "intervals": f"2.5 and 97.5 % of {self.resamples} resamples of classes",
            },
            "chosen": "nothing; every number is reported",
            "batch_size": self.batch_size,
            "seed": self.seed,
        }


class _Map(NamedTuple):
    """The reference's features: a map alone."""

    local: jax.Array


class _Fitted(NamedTuple):
    """Sums over train, and its rows without features."""

    sums: Moments
    rows: Extracted


class _Test(NamedTuple):
    """Maps float32[n, p, c] of test, and its rows without features."""

    maps: np.ndarray
    rows: Extracted


def _targets(batch: dict[str, Any]) -> Extracted:
    """Return the targets and the index of a batch, without features."""
    nothing: Any = jnp.zeros((len(batch["index"]), 0))
    present: Any = batch["index"] >= 0
    return Extracted(nothing, nothing, batch["targets"], batch["index"], present)


def _joined(parts: list[Extracted]) -> Extracted:
    """Join batches, without the rows that pad the last one."""
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    return jax.tree.map(lambda array: array[joined.index >= 0], joined)


def _batch_moments(
    maps: jax.Array, attributes: jax.Array, real: jax.Array, rows: Extracted
) -> tuple[Moments, Extracted]:
    """Return the moments of maps[b, m, p, c], and the rows."""
    m = maps.shape[1]
    flat = rearrange(maps, "b m p c -> (b m) p c")
    return moments(flat, jnp.repeat(attributes, m, axis=0), real.reshape(-1)), rows


def _blocks(rows: int, size: int = 256) -> list[slice]:
    return [slice(start, start + size) for start in range(0, rows, size)]


@styled
def draw_maps(
    images: np.ndarray,
    evidence: np.ndarray,
    boxes: np.ndarray,
    names: Sequence[str],
) -> Figure:
    """Draw images, one a column, and the evidence for each of their parts with its box.

    images: uint8[n, h, w, c]; evidence: float[n, s, rows, columns]; boxes: float[n, s,
    4] as (left, top, right, bottom) in shares; names: of the parts, n * s in order.
    """
    count, parts = evidence.shape[:2]
    check_parts(count * (parts + 1))
    names, note = legible(names)
    height, width = images.shape[1:3]
    figure = Figure(figsize=(WIDTH, 0.4 + WIDTH / count * (parts + 1) * 1.2))
    figure.set_layout_engine("constrained", h_pad=0.02, w_pad=0.02, hspace=0.0)
    grid = figure.add_gridspec(parts + 1, count)
    for column in range(count):
        show_image(figure.add_subplot(grid[0, column]), images[column], QUIET)
        for part in range(parts):
            axes = figure.add_subplot(grid[part + 1, column])
            show_image(axes, images[column], QUIET)
            axes.imshow(
                evidence[column, part],
                cmap="inferno",
                alpha=0.65,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
                interpolation="nearest",
                vmin=0,
            )
            left, top, right, bottom = boxes[column, part]
            if np.isfinite(boxes[column, part]).all():
                axes.add_patch(
                    matplotlib.patches.Rectangle(
                        (left * width - 0.5, top * height - 0.5),
                        (right - left) * width,
                        (bottom - top) * height,
                        fill=False,
                        edgecolor=RUNS[5],
                        linewidth=1.8,
                    )
                )
            if not note:  # else no font can write them, and their numbers say nothing
                name = short(names[column * parts + part])
                axes.set_xlabel(name, fontsize=6.5, labelpad=2)
    set_title(figure, "Where the evidence for each part lies, and the part's box")
    return figure
