"""Spans of demonstrations, and success of policies that act."""

import numpy as np
import pytest

from agents.data import Context
from agents.environments.rows import PADDING
from agents.environments.worlds import made_of
from agents.evaluation.success import Success
from agents.playing import Lane, play
from polyview.data.sources.protocol import CorruptRecord
from polyview.errors import InputError
from polyview.rl.acting import Acted
from polyview.rl.environment import Finished, Outcome


class Letters:
    """Stands in for a tokenizer: a token for each letter."""

    def rows(self, texts, length):
        tokens = np.zeros((len(texts), length), np.int32)
        real = np.zeros((len(texts), length), bool)
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = [ord(letter) for letter in text]
            real[row, : len(text)] = True
        return tokens, real


class Counting:
    """A world that asks for a number of steps, and shows how many are done."""

    kind, actions, box, limit, on_end = "counting", ("wait", "go"), None, 6, None
    shapes, versions, environment = {"state": (2,)}, {}, None

    def __init__(self, name="counting:a"):
        self.name = name
        self.reset(0)

    def reset(self, seed):
        self.seed, self.wanted, self.done, self.steps = seed, 1 + seed % 5, 0, 0
        return self._seen()

    def _seen(self):
        state = np.array([self.done, self.wanted], np.float32)
        self.observation = {"state": state, "instruction": f"go {self.wanted}"}
        return self.observation

    def step(self, action):
        self.done, self.steps = self.done + int(action), self.steps + 1
        self.success = self.done == self.wanted
        over = self.success or self.steps == self.limit
        end = Finished(float(self.success), self.steps) if over else None
        if over:
            self.reset(self.seed + 1000)
        return Outcome(self._seen(), float(end is not None and end.score), over, end)


class Goer:
    """A model that goes, unless three steps are wanted; keeps what it was shown."""

    def __init__(self):
        self.shown, self.firsts = [], []

    def call(self, method, *arguments):
        if method == "recall":
            past, now = arguments
            return past["views"]["state"], past["real"], past["actions"]
        memory, now, first, key = arguments
        assert key is None
        self.firsts.append(first)
        states = np.concatenate([memory[0], now["state"][:, None]], 1)
        self.shown.append((now["text"].copy(), states, *memory[1:]))
        action = (now["state"][:, 1] != 3).astype(np.int32)
        return memory, Acted(action, None, None)


def success(rows, episodes=6, span=1, **options):
    views = Context(["state"], span, text=Letters(), length=6)
    return Success([Counting], views, episodes=episodes, rows=rows, **options)


@pytest.mark.parametrize("rows", [1, 2, 5, 100])
def test_success_does_not_depend_on_how_many_play_side_by_side(rows):
    found = success(rows)(Goer(), None)
    own = found["worlds"]["counting:a"]
    # Seeds 0 .. 5 want 1, 2, 3, 4, 5, 1 steps, and three are never gone.
    assert own["successes"] == [True, True, False, True, True, True]
    assert own["steps"] == [1, 2, 6, 4, 5, 1]
    assert found["success"] == pytest.approx(5 / 6)
    assert "0.833" in found.summary and found.columns == {"success": found["success"]}


def test_each_world_has_a_rate_and_the_split_other_seeds():
    views = Context(["state"], text=Letters(), length=6)
    worlds = [Counting, lambda: Counting("counting:b")]
    found = Success(worlds, views, episodes=4, split="test")(Goer(), None)
    assert list(found["worlds"]) == ["counting:a", "counting:b"]
    # Seeds from 2 ** 20, which is 1 modulo 5, want 2, 3, 4, 5 steps.
    assert found["worlds"]["counting:b"]["successes"] == [True, False, True, True]
    assert found["worlds"]["counting:b"]["steps"] == [2, 6, 4, 5]
    other = success(2, episodes=2, split="test", seed=1)(Goer(), None)
    assert other["worlds"]["counting:a"]["successes"] == [False, True]
    with pytest.raises(InputError, match="one name"):
        Success([Counting, Counting], views)(Goer(), None)
    strange = Context(["grid"], text=Letters(), length=6)
    with pytest.raises(InputError, match="counting:a shows state.*'grid'"):
        Success([Counting], strange, episodes=1)(Goer(), None)
    short = success(2, episodes=4, limit=2)(Goer(), None)
    assert short["worlds"]["counting:a"]["successes"] == [True, True, False, False]


def test_a_window_holds_the_last_steps_of_its_episode_alone():
    views = Context(["state"], 3, text=Letters(), length=6)
    lanes = [Lane(Counting(), iter([3, 0]), 0), Lane(Counting(), iter([1]), 0)]
    model = Goer()
    for number in play(model, lanes, views):
        if lanes[number].ended:
            lanes[number].over()
    texts, states, present, taken = zip(*model.shown, strict=True)
    # Four steps from seed 3, then one from seed 0.
    done = [list(state[0, :, 0]) for state in states]
    assert done == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [0, 0, 0]]
    assert [list(mask[0]) for mask in present] == [
        [False, False],
        [False, True],
        *[[True] * 2] * 2,
        [False, False],
    ]
    assert [list(actions[0]) for actions in taken] == [
        [0, 0],
        [0, 1],
        *[[1, 1]] * 2,
        [0, 0],
    ]
    assert not np.any(model.firsts)  # the window is shown anew each time
    told = ["".join(map(chr, row[0][row[0] != PADDING])) for row in texts]
    assert told == ["go 4"] * 4 + ["go 1"]


def test_a_policy_that_sees_whole_episodes_is_told_where_they_begin():
    views = Context(["state"], 7, text=Letters(), length=6)  # the limit is 6
    lanes = [Lane(Counting(), iter([3, 0]), 0), Lane(Counting(), iter([2, 2, 2]), 0)]
    model = Goer()
    for number in play(model, lanes, views):
        if lanes[number].ended:
            lanes[number].over()
    first = [list(own) for own in np.stack(model.firsts, 1)]
    # Four steps and one, then nothing; three episodes that never end.
    assert first[0][:5] == [True, False, False, False, True]
    assert [i for i, begins in enumerate(first[1]) if begins] == [0, 6, 12]


class Pusher:
    """A continuous world that keeps the actions that it was given."""

    name, kind, actions, box, limit, on_end = "p", "p", None, (2, -1.0, 1.0), 2, None
    shapes, versions, environment, success = {"state": (1,)}, {}, None, False

    def __init__(self):
        self.taken = []
        self.reset(0)

    def reset(self, seed):
        self.observation = {"state": np.zeros(1, np.float32), "instruction": "push"}
        return self.observation

    def step(self, action):
        self.taken.append(action)
        return Outcome(self.observation, 0.0, False, None)


def test_continuous_actions_are_clipped_to_the_box():
    class Strong:
        def call(self, method, *arguments):
            return None, Acted(np.array([[3.0, -0.5]]), None, None)

    world = Pusher()
    lane = Lane(world, iter([0]), 0)
    for _ in play(Strong(), [lane], Context(["state"])):
        if lane.ended:
            lane.over()
    assert [list(action) for action in world.taken] == [[1.0, -0.5]] * 2
    assert lane.played == [(0, False, 2)]


def episode(length=5):
    states = np.arange(2 * (length + 1), dtype=np.float32).reshape(length + 1, 2)
    return {
        "instruction": "go",
        "task": 1,
        "state": states,
        "actions": np.arange(10, 10 + length),
    }


def test_a_span_is_consecutive_and_every_step_is_drawn_alike(rng):
    views = Context(["state"], 3, text=Letters(), length=4, before="<", after=">")
    seen: list[int] = []
    for _ in range(500):
        found = views(episode(), rng)
        present = found["present"]["state"]
        actions = found["targets"]["action"][present]
        np.testing.assert_array_equal(np.diff(actions), 1)
        np.testing.assert_array_equal(
            found["views"]["state"][present, 0], 2 * (actions - 10)
        )
        assert not found["views"]["state"][~present].any()
        seen.extend(actions)
    assert np.ptp(np.bincount(np.array(seen) - 10)) < 90  # of about 214 each
    told = found["views"]["text"]
    assert told.tolist() == [[ord(c) for c in "<go>"]] and told.dtype == np.int32
    assert found["targets"]["task"] == 1 and found["present"]["text"].tolist() == [True]


def test_draws_are_single_steps(rng):
    views = Context(["state"], draws=200)
    found = views(episode(), rng)
    assert "text" not in found["views"] and found["present"]["state"].all()
    actions = found["targets"]["action"]
    assert np.bincount(actions - 10).min() > 20
    np.testing.assert_array_equal(found["views"]["state"][:, 0], 2 * (actions - 10))


def test_what_cannot_be_shown_is_refused(rng):
    with pytest.raises(InputError, match="no step"):
        Context(["state"])(episode(0), rng)
    with pytest.raises(InputError, match="3 rows, and there are 5 actions"):
        Context(["state"])(episode() | {"state": np.zeros((3, 2))}, rng)
    with pytest.raises(CorruptRecord, match="not finite"):
        Context(["state"])(episode() | {"actions": np.full(5, np.nan)}, rng)
    with pytest.raises(InputError, match="no field 'instructoin'"):
        Context(["state"], text=Letters(), instruction="instructoin")(episode(), rng)
    with pytest.raises(InputError, match="keep one"):
        Context(["state"], 2, 2)
    with pytest.raises(InputError, match="a list"):
        Context("state")
    with pytest.raises(InputError, match="did you mean 'test'"):
        success(1, split="tset")
    with pytest.raises(InputError, match="is no world"):
        made_of("nowhere")
    with pytest.raises(InputError, match="numpy 0.0, but"):
        success(1, versions={"numpy": "0.0"})  # before training
    absent = success(1, versions={"nowhere": "1.0"})  # training may do without it
    with pytest.raises(InputError, match="nowhere 1.0.*is not installed"):
        absent(Goer(), None)
