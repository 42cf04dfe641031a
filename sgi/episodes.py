"""What evaluations of recorded play share: features of its steps, by whole episodes."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from polyview.errors import InputError
from polyview.evaluation.features import Extracted, extract
from sgi.recording import HISTORY
from sgi.replay import Replay, Window


class Parts(NamedTuple):
    """Masks bool[n] of the rows; each episode is in one part, in the order of play."""

    fit: np.ndarray
    validation: np.ndarray
    test: np.ndarray


class Read(NamedTuple):
    """Features of a recording's steps, n rows.

    Attributes:
      source: the recording.
      features: of each row; see `polyview.evaluation.features`.
      episode: int[n], the row's episode.
      parts: to which part the row belongs.
    """

    source: Replay
    features: Extracted
    episode: np.ndarray
    parts: Parts


@dataclasses.dataclass(frozen=True)
class OfEpisodes:
    """An evaluation of recorded play, whose episodes are divided into parts.

    Attributes:
      recording: name of a recording; read when called.
      data_dir: its folder; see `sgi.replay.Replay`.
      every: use every so many-th step as a row: neighbours are much alike.
      history: frames of an observation.
      validation, test: shares of the episodes, at least one each; test takes the last.
      batch_size: global batch size of the encoder.
    """

    recording: str
    data_dir: str | None = None
    every: int = 2
    history: int = HISTORY
    validation: float = 0.2
    test: float = 0.2
    batch_size: int = 100

    def read(self, represent: Callable, mesh: Mesh, *, jumps: int, name: str) -> Read:
        """Extract `represent(batch)["frames"]` of each row, a window of `jumps` steps.

        Raises InputError if the recording has too few episodes.
        """
        source = Replay(
            self.recording, data_dir=self.data_dir, ahead=jumps, every=self.every
        )
        features = extract(
            represent,
            source,
            Window(jumps=jumps, history=self.history, goal=None),
            batch_size=self.batch_size,
            mesh=mesh,
            modality="frames",
            name=name,
        )
        episode = source.episode[features.index]
        return Read(source, features, episode, self._parts(episode))

    def _parts(self, episode: np.ndarray) -> Parts:
        order = np.unique(episode)
        count = [max(1, round(s * len(order))) for s in (self.validation, self.test)]
        if len(order) <= sum(count):
            raise InputError(
                f"recording '{self.recording}' has {len(order)} episodes: too few for "
                "fitting, validation and test; record more steps"
            )
        test = order[-count[1]]
        validation = order[-sum(count)]
        return Parts(
            episode < validation,
            (validation <= episode) & (episode < test),
            test <= episode,
        )
