"""The inverse model is scored on unseen play, beside what can be known of an action."""

import dataclasses
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyview import devices
from polyview.model import initialise_module
from sgi import ceiling, recording
from sgi.actions import Actions
from sgi.ceiling import grouped, knowable
from sgi.encoders import Nature
from sgi.network import Network
from sgi.recording import Step

LENGTHS = (30, 41, 25, 52, 33, 47)
NAMES = ["NOOP", "LEFT", "RIGHT"]
SCORED = Actions("play", every=1, validation=0.2, test=0.3, batch_size=64)


def steps():
    """Play in which an action adds 10 times its number to the brightness."""
    rng = np.random.default_rng(0)
    for length in LENGTHS:
        level = 0
        for time in range(length):
            frame = np.full((84, 84), level % 256, np.uint8)
            action = int(rng.choice(3, p=[0.5, 0.3, 0.2]))
            yield Step(frame, action, 0.0, time == length - 1, time == 0, None)
            level += 10 * action


@pytest.fixture(scope="module", autouse=True)
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("play")
    for name, actions, policy in (
        ("play", NAMES, "agent"),
        ("breakout", ["NOOP", "FIRE", "RIGHT", "LEFT"], "random"),
    ):
        recording.write(
            folder / name,
            steps(),
            sum(LENGTHS),
            source="",
            licence="",
            provenance={
                "game": "breakout",
                "actions": actions,
                "policy": policy,
                "sticky": 0.0,
            },
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYVIEW_DATA", str(folder))
        yield folder


class Brightness:
    """Infers an action from the last two frames, and takes RIGHT for LEFT."""

    @staticmethod
    @jax.jit
    def _infer(frames):
        last = frames[:, -2:, 0, 0].astype(jnp.int32)
        action = (last[:, 1] - last[:, 0]) % 256 // 10
        return jax.nn.one_hot(jnp.where(action == 2, 1, action), 3)

    def call(self, method, frames):
        assert method == "infer" and frames.shape[1:] == (5, 84, 84)
        return self._infer(frames)


def test_accuracy_counts_the_steps_whose_next_frame_is_known():
    result = SCORED(Brightness(), devices.make_mesh())
    played = list(steps())
    ends = np.cumsum(LENGTHS)
    for part, first, last in ("validation", 3, 4), ("test", 4, 6):
        rows = [s for s in played[ends[first - 1] : ends[last - 1]] if not s.terminal]
        assert result["protocol"]["rows"][part] == len(rows)
    counts = np.bincount([s.action for s in rows])
    confusion = np.diag(counts)
    confusion[2, 1], confusion[2, 2] = confusion[2, 2], 0
    np.testing.assert_array_equal(result["confusion"], confusion)
    assert result["accuracy"] == pytest.approx(1 - counts[2] / len(rows))
    assert result["chance"] == counts.max() / len(rows)
    assert result["ceiling"] is None, "the ceiling is that of random play"
    assert set(Actions.figures(result, {})) == {"answers"}
    assert result.columns.keys() == {"actions: accuracy %", "actions: chance %"}


def test_a_network_infers_the_action_before_the_last_frame():
    encoder = partial(Nature, widths=(4, 4, 4))
    make = partial(Network, actions=3, encoder=encoder, hidden=16, standardise=True)
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, 36, 36), np.uint8)

    @jax.jit
    def inferred_and_expected(frames):
        network = initialise_module(partial(make, image=36), np.uint32(0))

        def projected(first):
            stacks = jnp.moveaxis(frames[:, first : first + 4], 1, -1)
            return network.project(network.encode(stacks, train=False), train=False)

        expected = network.inverse(projected(0), projected(1))
        return network.infer(frames), expected

    inferred, expected = inferred_and_expected(frames)
    np.testing.assert_allclose(inferred, expected, rtol=1e-6)


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_what_is_knowable_of_four_actions_of_which_two_do_the_same(sticky):
    """The action LEFT came before. Late RIGHT and late NOOP each show another frame,
    but if the whole step is late, all actions show what LEFT shows."""

    def frames(shown):
        return [f"{shown} {late}".encode() for late in range(4)] + [b"left"]

    noop, right, left = frames("noop"), frames("right"), [b"left"] * 5
    best = 2 * (1 - sticky**4) + 1
    assert knowable([noop, noop, right, left], sticky) == pytest.approx(best / 4)


def test_actions_are_grouped_if_a_chain_of_pairs_does_the_same():
    same = np.eye(5, dtype=bool)
    for one, other in (0, 3), (3, 4):
        same[one, other] = same[other, one] = True
    assert grouped(same) == [[0, 3, 4], [1], [2]]


def test_the_ceiling_of_breakout_merges_fire_and_noop():
    pytest.importorskip("ale_py")
    few = ceiling.ceiling("breakout", sticky=0.0, states=30)
    assert few.groups == [[0, 1], [2], [3]]
    assert 0.5 < few.accuracy < 0.75, "paddles at the wall do not move"
    assert ceiling.ceiling("breakout", sticky=0.5, states=30).accuracy < few.accuracy
    scored = dataclasses.replace(SCORED, recording="breakout", states=30)
    result = scored(Brightness(), devices.make_mesh())
    assert result["groups"] == [["NOOP", "FIRE"], ["RIGHT"], ["LEFT"]]
    span = few.accuracy - result["chance"]
    assert result["reached"] == pytest.approx(
        (result["accuracy"] - result["chance"]) / span
    )
    # RIGHT is taken for FIRE, which nothing distinguishes from NOOP.
    right = np.asarray(result["confusion"])[:2, :2].sum()
    assert result["accuracy_of_groups"] == right / result["protocol"]["rows"]["test"]


def test_frames_of_a_late_action_have_the_frequency_of_sticky_play():
    pytest.importorskip("ale_py")
    from sgi.atari import Game

    quiet, right = Game("breakout"), 2
    quiet.reset(30)
    model = Counter()
    late = [0.6 * 0.4**n for n in range(4)] + [0.4**4]
    for frame, chance in zip(
        ceiling.after(quiet, quiet.state(), 0, right), late, strict=True
    ):
        model[frame] += chance
    game, seen = Game("breakout", sticky=0.4), Counter()
    for _ in range(200):  # a reset does not start the random numbers again
        game.reset(30)  # without action: whether it is repeated makes no difference
        seen[game.step(right).frame.tobytes()] += 1
    assert seen.keys() <= model.keys()
    squares = sum((seen[f] - 200 * p) ** 2 / (200 * p) for f, p in model.items())
    assert squares < 18.5  # 1 in 1000, of 4 degrees of freedom
