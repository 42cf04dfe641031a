"""What scores of reliability read from a model: a row a sample, on the host.

Features, logits, further logits (of dropout and of an ensemble), and which units of a
layer are active.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from polyview import devices
from polyview.data.sources.protocol import Source
from polyview.errors import InputError
from polyview.evaluation.features import Decoded, Extracted, check_finite

MANY = 8192  # units, above which a layer must be named, and no bound is computed
_SAME = 0.01  # of calibration rows that may equal training rows


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

    def some(self, kept: np.ndarray) -> "Read":
        """Return the rows of a mask, bool[n]."""
        return Read(
            h=self.h[kept],
            logits=None if self.logits is None else self.logits[kept],
            several={name: x[:, kept] for name, x in self.several.items()},
            active=None if self.active is None else self.active[kept],
            targets={name: x[kept] for name, x in self.targets.items()},
            row=self.row[kept],
            digest=self.digest[kept],
        )


def known(array: np.ndarray | None) -> np.ndarray:
    """Return a field of `Read` that is there, as the caller has seen to."""
    assert array is not None
    return array


@dataclasses.dataclass(frozen=True)
class Reader:
    """How data are seen and what is read; the attributes are those of `Reliability`."""

    views: Callable
    modality: str
    logits: str | None
    draws: int
    members: Mapping[str, Callable]
    batch_size: int
    seed: int

    def _batches(self, source: Source, mesh: Mesh) -> Iterator[dict]:
        options: dict = {"batch_size": self.batch_size, "seed": self.seed, "most": 0}
        return iter(Decoded(source, self.views, mesh=mesh, **options))

    def pattern_layer(
        self, model: Any, source: Source, layer: str | None, mesh: Mesh
    ) -> tuple[str | None, str]:
        """Return the path of the activation to read, or None, and a warning.

        source: the test rows, one batch of which the model sees; layer: the activation
        that is asked for. Raises InputError if it is no activation of the model.
        """
        if not hasattr(model, "activations"):
            if layer is not None:
                raise InputError(
                    f"evaluation: a function has no activation {layer!r} that can "
                    "be read; leave out `layer`, or give a model"
                )
            return None, ""
        batch = next(self._batches(source, mesh), None)
        if batch is None:
            raise InputError("evaluation: test has no rows; choose another source")
        found: list[Any] = model.activations(devices.put(batch, mesh))
        if layer is None:
            encoder = f"towers.{self.modality}.encoder"
            inside = [one for one in found if one.path.startswith(encoder)]
            relus = [one for one in inside if not one.smooth]
            if inside and not inside[-1].smooth:
                units = int(np.prod(inside[-1].shape[1:]))
                if units <= MANY:
                    return inside[-1].path, ""
                return None, (
                    f"the pattern is h above its median over train: {inside[-1].path} "
                    f"has {units} units; name a smaller layer"
                )
            why = f"its last activation is {inside[-1].kind}" if inside else "no ReLU"
            if relus:
                why += f"; name a ReLU by layer={_listed(relus)}"
            return None, f"the pattern is h above its median over train: {why}"
        named = next((one for one in found if one.path == layer), None)
        if named is None:
            raise InputError(
                f"evaluation: the model has no activation {layer!r}; set `layer` "
                f"to one of {_listed(found)}"
            )
        if named.smooth:
            return layer, (
                f"{layer} is smooth ({named.kind}): its units are not on or "
                "off, and a pattern is no region in which the network is linear"
            )
        return layer, ""

    def read(
        self, model: Any, source: Source, name: str, layer: str | None, mesh: Mesh
    ) -> Read:
        """Return what the model gives for every row that has the modality.

        name: what errors call the source; layer: from `pattern_layer`. Raises
        InputError as the call of an evaluation does.
        """
        whole = jax.jit(_unchanged, out_shardings=devices.replicated(mesh))
        parts = []
        for batch in self._batches(source, mesh):
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
        check_finite(
            Extracted(
                h=read.h,
                z=read.h if read.logits is None else read.logits,
                targets=read.targets,
                index=read.row,
                present=np.ones(len(read.h), bool),
            ),
            f"evaluation: {name}",
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


def check_apart(read: Mapping[str, Read]) -> None:
    """Raise InputError if calibration or test images fitted what they measure.

    read: {"train", "calibration", "test"}, and others.
    """
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


def check_member(name: str, theirs: Sequence[str], own: Sequence[str]) -> None:
    """Raise InputError unless a member answers these classes in this order."""
    if len(theirs) != len(own):
        what = f"answers {len(theirs)} classes, this run {len(own)}"
    else:
        pairs = enumerate(zip(theirs, own, strict=True))
        other = next((i for i, (one, two) in pairs if one != two), None)
        if other is None:
            return
        what = f"has class {other} '{theirs[other]}', this run '{own[other]}'"
    raise InputError(
        f"evaluation: the member {name} {what}; an ensemble averages answers to the "
        "same classes in the same order: leave it out of `members`"
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
