"""Rows of several environments, which take turns. Numpy only.

Row i, counted over all hosts, belongs to environment i mod n, of n environments. Any
block of rows whose length is a multiple of n, such as a host's or a minibatch, has
equally many of each.
"""

from collections.abc import Callable, Mapping

import numpy as np

from polyview.errors import InputError, check_range
from polyview.rl.environment import Rows, Step


class Joined:
    """Rows of several environments as `polyview.rl.environment:Rows`.

    An observation is called "environment/name", and is zeros in the rows of others.

    Args:
      environments: {name: makes rows, given count, seed and first}.
      count, seed, first: as of `polyview.rl.rows:HostRows`. Each environment gets a
        seed of its own.
      scales: {name: what its rewards are multiplied by}; 1 of those not named.

    Attributes:
      groups: the number of environments.

    Raises InputError for rows that they cannot share, and for an unknown name.
    """

    def __init__(
        self,
        environments: Mapping[str, Callable[..., Rows]],
        count: int,
        seed: int,
        *,
        first: int = 0,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        self.groups = len(environments)
        check_range(1, groups=self.groups)
        if count % self.groups or first % self.groups:
            raise InputError(
                f"{count} rows from {first} cannot be shared by {self.groups} "
                "environments; give a multiple of that"
            )
        scales = scales or {}
        if unknown := sorted(scales.keys() - environments.keys()):
            raise InputError(
                f"scales names {unknown[0]}; there are {', '.join(environments)}"
            )
        check_range(0.0, 1e30, scales=list(scales.values()))
        each = {"count": count // self.groups, "first": first // self.groups}
        self._rows = {  # by name, as they are when a config is read again from JSON
            name: environments[name](seed=seed * self.groups + number, **each)
            for number, name in enumerate(sorted(environments))
        }
        self._scales = [float(scales.get(name, 1.0)) for name in self._rows]
        self.count = count
        parts = self._rows.values()
        self.actions = max(rows.actions for rows in parts)
        self.limit = max(rows.limit for rows in parts)
        self.shapes = {
            f"{name}/{field}": kind
            for name, rows in self._rows.items()
            for field, kind in rows.shapes.items()
        }
        self.versions = {k: v for rows in parts for k, v in rows.versions.items()}

    def begin(self) -> Step:
        """Begin the first episode of each row."""
        return self._joined([rows.begin() for rows in self._rows.values()])

    def step(self, actions: np.ndarray) -> Step:
        """Take int[n] actions. The arrays of the result are the caller's."""
        return self._joined(
            [
                rows.step(actions[number :: self.groups])
                for number, rows in enumerate(self._rows.values())
            ]
        )

    def saved(self) -> dict[str, np.ndarray]:
        """Return what `restore` needs: that of each, with zeros in others' rows."""
        found = {}
        for number, (name, rows) in enumerate(self._rows.items()):
            for key, value in rows.saved().items():
                found[f"{name}/{key}"] = self._spread(number, value)
        return found

    def restore(self, saved: Mapping[str, np.ndarray]) -> Step:
        """Return the step at which `saved` was called, and go on from there."""
        steps = []
        for number, (name, rows) in enumerate(self._rows.items()):
            prefix = f"{name}/"
            own = {
                key.removeprefix(prefix): np.asarray(value)[number :: self.groups]
                for key, value in saved.items()
                if key.startswith(prefix)
            }
            steps.append(rows.restore(own))
        return self._joined(steps)

    def close(self) -> None:
        """End the processes of all."""
        for rows in self._rows.values():
            rows.close()

    def _joined(self, steps: list[Step]) -> Step:
        shown = {}
        for number, (name, step) in enumerate(zip(self._rows, steps, strict=True)):
            for field, value in step.observation.items():
                shown[f"{name}/{field}"] = self._spread(number, value)
        rewards = [
            step.reward * np.float32(scale)
            for step, scale in zip(steps, self._scales, strict=True)
        ]
        ends = zip(*(step[2:] for step in steps), strict=True)
        return Step(shown, _in_turn(rewards), *map(_in_turn, ends))

    def _spread(self, number: int, value: np.ndarray) -> np.ndarray:
        rows = np.zeros((self.count, *value.shape[1:]), value.dtype)
        rows[number :: self.groups] = value
        return rows


def _in_turn(parts: tuple[np.ndarray, ...] | list[np.ndarray]) -> np.ndarray:
    return np.stack(parts, 1).reshape(-1, *parts[0].shape[1:])
