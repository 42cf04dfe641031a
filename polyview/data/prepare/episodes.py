"""Write episodes of states, and futures from given states, and check them.

    episodes    states float32[t, d], policy int, terminal bool, and where there are any
                actions float32[t - 1, a]; further fields have a row a state
    futures     state float32[d], policy int, futures float32[r, n, d], and perhaps
                action float32[a]

An episode is one record: action i leads from state i to state i + 1, `policy` is the
number of the policy that acted, and `terminal` says whether the last state ends the
episode, rather than a limit of time. `polyview.data.later:Later` takes pairs of states
from it. In `futures`, [j, k] is the state k + 1 steps after `state` in the j-th of r
roll-outs.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from polyview.data.later import lost_share
from polyview.data.prepare import records
from polyview.data.prepare.moments import Moments
from polyview.data.sources.manifest import read_manifest
from polyview.data.sources.protocol import class_task
from polyview.errors import InputError

DISCOUNT = 0.97  # of the share of lost pairs that a manifest gives


class Examples(Sized, Protocol):
    """Examples of a split, with a length for the progress bar."""

    def __iter__(self) -> Iterator[dict[str, Any]]: ...


def write(
    directory: Path,
    splits: Mapping[str, Examples],
    *,
    policies: Sequence[str],
    source: str,
    licence: str,
    version: str,
    provenance: Mapping[str, Any],
    futures: Collection[str] = (),
    fields: Mapping[str, int | None] | None = None,
) -> None:
    """Write episodes and futures and their manifest, all or nothing.

    Args:
      directory: folder of the data set; it must not exist.
      splits: the examples of each split; see the module.
      policies: the name of each policy, by its number.
      source, licence, version: for the manifest.
      provenance: how they were made, with "state" and "action", the names of their
        numbers, and "box", the least and the largest action. Counts and the share of
        lost pairs of `train` are added.
      futures: which splits hold futures; the others hold episodes.
      fields: further fields of an episode, float32 with a row a state: how many numbers
        a row has, None for a number without an axis.

    Raises InputError for numbers that are not finite, shapes that do not fit, actions
    outside the box, an unknown policy, and a number of the states that never changes in
    `train`; then nothing is written.
    """
    counts: dict[str, Any] = {}
    lost: dict[str, Any] = {"discount": DISCOUNT}
    statistics: dict[str, Any] = {}
    names = {key: len(provenance[key]) for key in ("state", "action")}
    check = _Check(
        names["state"], names["action"], provenance["box"], len(policies), fields or {}
    )
    records.write(
        directory,
        {
            split: _Split(
                split,
                examples,
                check,
                split in futures,
                provenance["state"],
                counts,
                lost,
                statistics,
            )
            for split, examples in splits.items()
        },
        version=version,
        targets={"policy": class_task(policies)},
        source=source,
        licence=licence,
        # Complete by the time the manifest is written, as the statistics.
        provenance={**provenance, "counts": counts, "lost": lost},
        statistics=statistics,
    )


def describe(directory: Path) -> dict[str, Any]:
    """Return the provenance of the episodes in a folder, and two things more.

    `statistics` are mean and deviation of the states, `policies` is their number.
    Raises InputError if the folder holds no episodes, or if their manifest is damaged.
    """
    manifest = read_manifest(directory)
    provenance = manifest.get("provenance")
    known = {"counts": dict, "lost": dict}
    if not isinstance(provenance, dict) or not all(
        type(provenance.get(key)) is kind for key, kind in known.items()
    ):
        raise InputError(f"{directory} holds no recorded episodes, but other data")
    counts, share = provenance["counts"], provenance["lost"].get("share")
    if not all(type(count) is int for count in counts.values()) or not {
        "episodes",
        "states",
    } <= set(counts):
        raise InputError(f"{directory} is damaged: its counts are {counts}")
    if type(share) is not float:
        raise InputError(f"{directory} is damaged: its share of lost pairs is {share}")
    states = manifest.get("statistics", {}).get("states", {})
    if not {"mean", "std"} <= set(states):
        raise InputError(f"{directory} is damaged: its states have no mean and std")
    policies = manifest["targets"].get("policy", {}).get("classes")
    if type(policies) is not int:
        raise InputError(f"{directory} does not say how many policies acted")
    added = {"statistics": manifest["statistics"], "policies": policies}
    return {**provenance, **added}


@dataclass(frozen=True)
class _Check:
    """Raises InputError for what no episode can hold."""

    state: int
    action: int
    box: Sequence[float]
    policies: int
    fields: Mapping[str, int | None]

    def episode(self, example: Mapping[str, Any], where: str) -> None:
        length = len(example["states"])
        shapes: dict[str, tuple[int, ...]] = {"states": (length, self.state)}
        if "actions" in example:
            shapes["actions"] = (length - 1, self.action)
        for name, numbers in self.fields.items():
            shapes[name] = (length,) if numbers is None else (length, numbers)
        if length < 2:
            raise InputError(f"{where} has {length} states; give 2 or more")
        self._numbers(example, shapes, where)

    def future(self, example: Mapping[str, Any], where: str) -> None:
        futures = np.shape(example["futures"])
        shapes: dict[str, tuple[int, ...]] = {
            "state": (self.state,),
            "futures": (*futures[:2], self.state),
        }
        if len(futures) != 3 or 0 in futures:
            raise InputError(f"{where} has futures of shape {futures}, not [r, n, d]")
        if "action" in example:
            shapes["action"] = (self.action,)
        self._numbers(example, shapes, where)

    def _numbers(
        self, example: Mapping[str, Any], shapes: Mapping[str, Any], where: str
    ) -> None:
        for name, shape in shapes.items():
            values = example[name]
            if values.shape != shape or values.dtype != np.float32:
                raise InputError(
                    f"{where}: {name} is {values.dtype}{list(values.shape)}, not "
                    f"float32{list(shape)}"
                )
            if not np.isfinite(values).all():
                raise InputError(f"{where}: {name} has a number that is not finite")
            low, high = self.box
            outside = (values < low) | (values > high)
            if name in ("action", "actions") and outside.any():
                raise InputError(
                    f"{where}: an action of {values[outside][0]} is outside the box "
                    f"[{low:g}, {high:g}]"
                )
        if not 0 <= example["policy"] < self.policies:
            raise InputError(
                f"{where}: there is no policy {example['policy']}, only 0 .. "
                f"{self.policies - 1}"
            )


@dataclass
class _Split:
    """Checked examples of a split, and what they add to the manifest."""

    name: str
    examples: Examples
    check: _Check
    of_futures: bool
    state: Sequence[str]
    counts: dict[str, Any]
    lost: dict[str, Any]
    statistics: dict[str, Any]
    unit: str = field(init=False)

    def __post_init__(self) -> None:
        self.unit = " records" if self.of_futures else " episodes"

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        lengths: list[int] = []
        moments = Moments()
        for number, example in enumerate(self.examples):
            where = f"{self.name} {number}"
            if self.of_futures:
                self.check.future(example, where)
            else:
                self.check.episode(example, where)
                lengths.append(len(example["states"]))
                moments.add(example["states"])
            yield example
        if self.name == "train" and lengths:
            self.counts |= {"episodes": len(lengths), "states": sum(lengths)}
            self.lost["share"] = lost_share(lengths, self.lost["discount"])
            mean, std = moments.mean, moments.std
            if not std.all():
                constant = int(std.argmin())
                raise InputError(
                    f"number {constant} of the states ({self.state[constant]}) is "
                    f"{mean[constant]:g} throughout: nothing can be learnt of it; "
                    "leave it out"
                )
            self.statistics["states"] = {"mean": mean.tolist(), "std": std.tolist()}
