"""Encode recorded play: episodes of latents, for models of what comes later.

    python -m sgi.latents --run runs/breakout --recording breakout_random \\
        --name breakout_latents

State i of an episode is the latent of the stack of frames before action i, as a few
numbers. With it stand the variables of the game that the console's RAM holds, and the
score gained on arrival there: 0 at the first state. What the last action gained is not
recorded, as no frame follows it.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from tqdm import tqdm

from polyview import errors
from polyview.cli import Parser
from polyview.data.prepare import episodes, records
from polyview.data.sources.protocol import default_data_dir
from polyview.errors import InputError, nearest
from sgi import recording
from sgi.ram import ADDRESSES
from sgi.replay import Replay, Stacks

DESCRIPTION = """
Encode recorded play: episodes of latents, for models of what comes later.

    python -m sgi.latents --run runs/breakout --recording breakout_random \\
        --name breakout_latents

The run is one of configs/sgi_pretrain.py or configs/sgi_demo.py. Its encoder, not the
average of it, sees each stack of frames as in play, without augmentation. The latent is
reduced to --dims numbers by principal components of the training episodes, each of
deviation 1. The last tenth of the steps becomes the split test, the tenth before it
validation, by whole episodes.
"""
VERSION = "1.0.0"  # of the data
LICENCE = "the screens are the game's"
_SHARE = 0.1  # of the steps, in validation and in test
_FITTED = 10_000  # most latents that the components are fitted to
_NONE = 1e-9  # of the largest variance: a component below it is rounding


def main(arguments: list[str] | None = None) -> None:
    """Write the episodes that the command line asks for; see `--help`."""
    options = _parse(arguments)
    directory = options.data_dir / options.name
    described = recording.describe(options.recording, options.data_dir)
    game = described["game"]
    if game not in ADDRESSES:
        raise InputError(f"no known variables of '{game}'{nearest(game, ADDRESSES)}")
    exists = records.prepared(directory)
    # `ahead`: every step is a state, that of an unfinished episode too.
    source = Replay(options.recording, options.split, options.data_dir, ahead=0)
    if "ram" not in source[0]:
        raise InputError(
            f"recording '{options.recording}' has no RAM of the console (imported "
            "recordings have none); record play with sgi.prepare"
        )
    # JAX is imported late, so that usage errors do not wait for it.
    network = _Network.load(*options.run)
    if network.actions != len(source.actions):
        raise InputError(
            f"--run {options.run[0]} plays a game with {network.actions} actions, but "
            f"'{options.recording}' is play of {game} with {len(source.actions)}"
        )
    settings = {
        "run": options.run[0],
        "step": network.step,
        "encoder": network.digest,
        "recording": options.recording,
        "split": options.split,
        "play": source.digest,
        "dims": options.dims,
    }
    if exists:
        before = episodes.describe(directory).get("settings")
        records.check_same(directory, before, settings)
    else:
        _write(directory, source, network, game, settings, options.batch)
    found = episodes.describe(directory)
    counts, lost = found["counts"], found["lost"]
    print(
        f"{directory} {'already exists' if exists else 'written'}: "
        f"{counts['episodes']:,} training episodes, {counts['states']:,} states, "
        f"{lost['share']:.1%} of pairs lost at discount {lost['discount']}; "
        f"{options.dims} numbers explain {found['explained']:.1%} of the latent"
    )


def _write(
    directory: Path,
    source: Replay,
    network: "_Network",
    game: str,
    settings: Mapping[str, Any],
    batch: int,
) -> None:
    """Encode the recording and write its episodes."""
    starts = np.append(np.flatnonzero(np.diff(source.episode, prepend=-1)), len(source))
    # One state has none that comes later. Only a cut leaves such an episode.
    spans = [
        Span(int(start), int(stop))
        for start, stop in zip(starts[:-1], starts[1:], strict=True)
        if stop - start > 1
    ]
    parts = divided(spans, repr(source))
    dims, names = settings["dims"], list(ADDRESSES[game])
    states, explained = _reduced(source, network, parts["train"], dims, batch)
    episodes.write(
        directory,
        {name: _Episodes(source, states, part, game) for name, part in parts.items()},
        policies=["recorded play"],
        source=f"{settings['recording']}, encoded by {settings['run']}",
        licence=LICENCE,
        version=VERSION,
        provenance={
            "game": game,
            "settings": dict(settings),
            "state": [f"component {number}" for number in range(dims)],
            "action": source.actions,
            "box": [0.0, 1.0],
            "variables": names,
            "explained": explained,
        },
        fields={"variables": len(names), "rewards": None},
    )


class Span(NamedTuple):
    """An episode as rows of a recording: from start to stop - 1."""

    start: int
    stop: int


def divided(spans: list[Span], what: str) -> dict[str, list[Span]]:
    """Divide episodes, in order of play, into train, validation and test.

    Test takes the fewest last episodes with a tenth of all steps, validation the fewest
    before them. Raises InputError if none is left for train.
    """
    lengths = [span.stop - span.start for span in spans]
    left = np.cumsum(lengths[::-1])[::-1]  # steps from each episode on
    ends, taken = [len(spans)], 0
    for _ in range(2):
        enough = np.flatnonzero(left - taken >= _SHARE * sum(lengths))
        ends.append(int(enough[-1]) if len(enough) else 0)
        taken = left[ends[-1]] if ends[-1] else taken
    stop, test, validation = ends
    if not 0 < validation < test < stop:
        raise InputError(
            f"{what} has {len(spans)} episodes of two steps or more: too few for "
            "training, validation and test; record more steps"
        )
    return {
        "train": spans[:validation],
        "validation": spans[validation:test],
        "test": spans[test:],
    }


class _Network:
    """The encoder of a checkpoint: latents of stacks, on one device.

    actions, history: of the network. step: of the checkpoint. digest: of the encoder's
    weights and statistics.
    """

    def __init__(self, loaded: Any):
        import jax

        from polyview.model import merge_module
        from polyview.runs.checksum import checksums
        from sgi.layers import flat
        from sgi.network import Network

        module = loaded.module
        if not isinstance(module, Network):
            raise InputError(
                f"the run's model is no network of SGI, but a {type(module).__name__}; "
                "give a run of configs/sgi_pretrain.py"
            )
        self.actions, self.history, self.step = (
            module.actions,
            module.history,
            loaded.step,
        )
        own = {n: a for n, a in loaded.arrays.items() if n.startswith("encoder.")}
        text = json.dumps(checksums(own), sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        graph, *arrays = loaded.parts

        def encode(arrays: list[dict], stacks: jax.Array) -> jax.Array:
            network = cast(Network, merge_module(graph, *arrays))
            return flat(network.encode(stacks, train=False))

        self._arrays, self._encode = arrays, jax.jit(encode)

    @classmethod
    def load(cls, run: str, step: int | None) -> "_Network":
        """Read a pre-trained run. Raises InputError for another kind, or for none."""
        from polyview.runs.load import load

        return cls(load(run, step))

    def latents(
        self, source: Replay, rows: np.ndarray, batch: int, what: str
    ) -> Iterator[np.ndarray]:
        """Generate the latents of these rows of a recording, float32[<= batch, d]."""
        views = Stacks(offsets=(0,), history=self.history)
        unused = np.random.default_rng(0)
        for start in tqdm(range(0, len(rows), batch), desc=what, delay=3):
            # The last rows are padded, so that one program serves all.
            padded = np.minimum(np.arange(start, start + batch), len(rows) - 1)
            seen = [
                views(source[row], unused)["views"]["frames"] for row in rows[padded]
            ]
            found = np.asarray(self._encode(self._arrays, np.concatenate(seen)))
            yield found[: len(rows) - start]


def _reduced(
    source: Replay, network: _Network, train: list[Span], dims: int, batch: int
) -> tuple[np.ndarray, float]:
    """Return principal components of all latents, float32[n, dims], of deviation 1.

    They are fitted to latents spread evenly over the training episodes. The share of
    the variance that they explain there is returned as well. Raises InputError for more
    components than the latents have.
    """
    from sklearn.decomposition import PCA  # takes a second

    rows = np.concatenate([np.arange(*span) for span in train])
    rows = rows[:: -(-len(rows) // _FITTED)]
    fitted = np.concatenate([*network.latents(source, rows, batch, "components")])
    if dims > min(fitted.shape):
        raise InputError(
            f"--dims is {dims}, but there are {len(fitted)} latents of "
            f"{fitted.shape[1]} numbers; give {min(fitted.shape)} or less"
        )
    components = PCA(dims, whiten=True, svd_solver="covariance_eigh")
    # The covariance of numbers that hardly vary is lost in float32.
    components.fit(fitted.astype(np.float64))
    variances = components.explained_variance_
    real = int((variances > _NONE * max(variances[0], 1e-30)).sum())
    if real < dims:
        raise InputError(
            f"--dims is {dims}, but the latents vary in {real} directions only; give "
            f"{max(real, 1)} or less, or a run that has learnt more"
        )
    every = network.latents(source, np.arange(len(source)), batch, "latents")
    states = [components.transform(part.astype(np.float64)) for part in every]
    explained = float(components.explained_variance_ratio_.sum())
    return np.concatenate(states).astype(np.float32), explained


@dataclass(frozen=True)
class _Episodes:
    """Episodes of a split. states: float32[n, d], of all rows of the recording."""

    source: Replay
    states: np.ndarray
    spans: list[Span]
    game: str

    def __len__(self) -> int:
        return len(self.spans)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        addresses = [*ADDRESSES[self.game].values()]
        taken = np.eye(len(self.source.actions), dtype=np.float32)
        for start, stop in self.spans:
            play = self.source[start]  # of the whole episode
            # What an action gained is told of the state that it leads to.
            rewards = np.append(np.float32(0), play["reward"][:-1])
            yield {
                "states": self.states[start:stop],
                "variables": play["ram"][:, addresses].astype(np.float32),
                "rewards": rewards.astype(np.float32),
                "policy": 0,
                "actions": taken[play["action"][:-1]],
                "terminal": bool(play["terminal"][-1]),
            }


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m sgi.latents",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--run", required=True, metavar="RUN[@STEP]", help="a pre-trained run")
    add("--recording", required=True, help="recorded play with the console's RAM")
    add("--name", required=True, help="name of the new data set")
    add("--dims", type=int, default=32, help="numbers of a state (32)")
    add("--split", default="train", help="the steps, such as train[:50%%] (train)")
    add("--batch", type=int, default=256, help="stacks encoded at a time (256)")
    add(
        "--data_dir",
        type=Path,
        default=default_data_dir(),
        help="folder of the data sets (default: $POLYVIEW_DATA, else ./data)",
    )
    options = parser.parse_args(arguments)
    for name in ("dims", "batch"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} is {getattr(options, name)}; give 1 or more")
    if Path(options.name).name != options.name:
        raise InputError(
            f"--name {options.name} is a path; give its folder as --data_dir"
        )
    run, at, step = (
        options.run.rpartition("@") if "@" in options.run else (options.run, "", "")
    )
    if at and not step.isdecimal():
        raise InputError(f"--run {options.run}: write RUN or RUN@STEP")
    options.run = (run, int(step) if at else None)
    return options


if __name__ == "__main__":
    errors.run(main)
