"""A config can combine two packages although neither imports the other."""

import json

import jax
import numpy as np
import pytest
from composed import ENCODER

from polyview.config.file import load_config
from polyview.config.spec import build
from polyview.errors import InputError
from polyview.model import abstract_module, merge_module
from polyview.runs import init
from polyview.runs.checksum import flatten
from polyview.runs.load import load
from polyview.training.train import train
from polyview.training.trainer import Trainer
from sgi import parts, recording
from sgi.recording import Step
from sgi.replay import Replay, Stacks

EPISODES = (40, 25)


@pytest.fixture
def data_dir(tmp_path, rng, monkeypatch):
    """Recorded play of two finished episodes."""
    monkeypatch.setenv("POLYVIEW_DATA", str(tmp_path))
    steps = (
        Step(
            rng.integers(1, 256, (84, 84), np.uint8),
            int(rng.integers(6)),
            0.0,
            time == length - 1,
            time == 0,
        )
        for length in EPISODES
        for time in range(length)
    )
    provenance = {"game": "pong", "actions": list("abcdef")}
    recording.write(
        tmp_path / "play",
        steps,
        sum(EPISODES),
        source="",
        licence="",
        provenance=provenance,
    )
    return tmp_path


def test_stacks_hold_the_frames_up_to_each_step(data_dir, rng):
    play = Replay("play", ahead=0)
    first = play[0]["frames"].copy()
    for index, time in ((0, 0), (2, 2), (38, 38), (40, 0), (64, 24)):
        example = play[index]
        assert example["time"] == time
        frames, last = example["frames"], len(example["frames"]) - 1
        seen = Stacks(offsets=(0, 3))(example, rng)
        assert seen["present"]["frames"].all()
        for view, at in enumerate((time, min(time + 3, last))):
            stack = seen["views"]["frames"][view]
            for place, past in enumerate((at - 3, at - 2, at - 1, at)):
                expected = frames[past] if past >= 0 else np.zeros_like(frames[0])
                np.testing.assert_array_equal(stack[..., place], expected)
        assert seen["targets"]["action"] == example["action"][time]
    np.testing.assert_array_equal(play[0]["frames"], first)  # not modified
    cut = Replay("play", "train[:20]", ahead=0)
    with pytest.raises(InputError, match="set `ahead` of the source to 3"):
        Stacks(offsets=(0, 3))(cut[18], rng)


def test_an_sgi_encoder_trained_by_poly_view_initialises_sgi(data_dir, tmp_path):
    run = tmp_path / "run"
    train(Trainer(load_config("tests/composed.py")), run)
    written = (run / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in written]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert np.isfinite([line["loss"] for line in lines]).all()

    options = {"sigma": 0.0, "dtype": "float32", "param_dtype": "float32"}
    spec = parts.network("S", 6, **options) | {"encoder": ENCODER, "hidden": 16}
    network = abstract_module(build(spec, where="model"))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda s: s.update(sharding=sharding), network[1:])
    entry = {"encoder": (str(run), "towers.frames.encoder.map")}
    laid = init.lay_over(
        init.entries_of({"init": entry}), merge_module(*network), shapes
    )
    taken = {name: a for part in laid.parts for name, a in flatten(part).items()}
    theirs = load(run).arrays
    encoder = [name for name in taken if name.startswith("encoder.")]
    assert len(encoder) == 6 and laid.fresh and not set(encoder) & set(laid.fresh)
    for name in encoder:
        source_name = name.replace("encoder.", "towers.frames.encoder.map.", 1)
        np.testing.assert_array_equal(taken[name], theirs[source_name])
