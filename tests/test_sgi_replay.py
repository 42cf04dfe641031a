"""Windows of recorded play match a slow reference, at every border."""

import pickle

import numpy as np
import pytest

from polyview.data import pipeline
from polyview.data.pipeline import batches, ordered
from polyview.errors import InputError
from sgi import recording
from sgi.recording import Step
from sgi.replay import Replay, Window

# The last episode is unfinished; one has a single step.
EPISODES = (70, 3, 1, 130, 300, 90)
TOTAL = sum(EPISODES)


def steps():
    """Play with distinguishable frames, actions, rewards and memory."""
    rng = np.random.default_rng(0)
    for number, length in enumerate(EPISODES):
        for time in range(length):
            ended = time == length - 1 and number < len(EPISODES) - 1
            yield Step(
                rng.integers(1, 256, (84, 84), np.uint8),
                int(rng.integers(6)),
                float(rng.normal()),
                ended,
                time == 0,
                rng.integers(0, 256, 128, np.uint8),
            )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("play")
    provenance = {"game": "pong", "actions": list("abcdef")}
    recording.write(
        folder / "play",
        steps(),
        TOTAL,
        source="",
        licence="",
        provenance=provenance,
    )
    return folder


@pytest.fixture
def replay(data_dir):
    return lambda *arguments, **options: Replay(
        "play", *arguments, data_dir=data_dir, **options
    )


def episodes(play):
    """The play as lists of steps, one per episode."""
    result = []
    for step in play:
        if step.first or not result:
            result.append([])
        result[-1].append(step)
    return result


def reference(play, index, goal_offset, jumps=5, history=4, ahead=49):
    """The window of sample `index`, built frame by frame from the definition."""
    samples = [
        (episode, time)
        for episode in episodes(play)
        for time in range(len(episode))
        if episode[-1].terminal or time + ahead < len(episode)
    ]
    episode, t = samples[index]

    def frame(time):
        if time < 0:
            return np.zeros((84, 84), np.uint8)
        return episode[min(time, len(episode) - 1)].frame

    def step(time):
        nothing = Step(None, 0, 0.0, False, False)
        return episode[time] if time < len(episode) else nothing

    goal = min(t + goal_offset, len(episode) - 1)
    around = range(t - history + 1, t + jumps + 1)
    stack = range(goal - history + 1, goal + 1)
    return {
        "views": {
            "frames": np.stack([frame(time) for time in around]),
            "goal": np.stack([frame(time) for time in stack]),
        },
        "present": {
            "frames": np.array([time >= 0 for time in around]),
            "goal": np.array([time >= 0 for time in stack]),
        },
        "targets": {
            "action": np.array([step(t + k).action for k in range(jumps)], np.int32),
            "reward": np.array([step(t + k).reward for k in range(jumps)], np.float32),
            "terminal": np.array([step(t + k).terminal for k in range(jumps + 2)]),
            "ram": episode[t].ram,
        },
    }


def stream(seed, index, epoch):
    """The random stream that the pipeline passes for a row."""
    bits = pipeline._philox(seed, number=index, epoch=epoch, purpose=pipeline._VIEWS)
    return np.random.Generator(bits)


def assert_same(result, expected):
    for part in ("views", "present", "targets"):
        assert result[part].keys() == expected[part].keys()
        for name, value in expected[part].items():
            assert result[part][name].dtype == value.dtype, name
            np.testing.assert_array_equal(result[part][name], value, err_msg=name)


class Always:
    """A generator that always draws the given number."""

    def __init__(self, offset):
        self.offset = offset

    def integers(self, low, high):
        assert low <= self.offset < high
        return self.offset


@pytest.mark.parametrize("offset", [2, 3, 20, 49])
def test_windows_match_the_reference(replay, offset):
    source, play = replay(), list(steps())
    assert len(source) == TOTAL - 49
    for index in [*range(0, len(source), 7), *range(66, 76), len(source) - 1]:
        window = Window()(source[index], Always(offset))
        assert_same(window, reference(play, index, offset))


def test_windows_of_other_sizes_match_the_reference(replay):
    source, play = replay(ahead=9), list(steps())
    window = Window(jumps=9, history=2, goal=(1, 8))
    for index in range(0, len(source), 11):
        expected = reference(play, index, 6, jumps=9, history=2, ahead=9)
        assert_same(window(source[index], Always(6)), expected)
    single = Window(jumps=0, goal=None)(source[80], Always(0))
    assert single["views"].keys() == {"frames"}
    assert single["views"]["frames"].shape == (4, 84, 84)
    assert single["targets"]["action"].shape == (0,)


def test_batches_depend_only_on_seed_and_step(replay):
    source, play = replay(), list(steps())
    options = {"seed": 5, "batch_size": 32, "steps": 40}  # 17 steps an epoch
    per_epoch = len(source) // 32
    seen = []
    for step, batch in batches(source, Window(), **options):
        assert batch["views"]["frames"].shape == (32, 9, 84, 84)
        assert batch["views"]["goal"].shape == (32, 4, 84, 84)
        epoch, place = divmod(step, per_epoch)
        order = pipeline.permutation(len(source), 5, epoch)
        rows = order[place * 32 : (place + 1) * 32]
        np.testing.assert_array_equal(batch["index"], rows)
        seen.append(batch)
        if step % 13:
            continue
        for b, index in enumerate(rows.tolist()):
            offset = int(stream(5, index, epoch).integers(2, 50))
            row = {
                part: {name: value[b] for name, value in batch[part].items()}
                for part in ("views", "present", "targets")
            }
            assert_same(row, reference(play, index, offset))
    for step, batch in batches(source, Window(), start=33, **options):
        assert_same(batch, seen[step])
    assert step == 39


def test_goals_are_uniform_over_their_range(replay):
    """Chi-square over the 48 offsets, in an episode long enough for all."""
    source = replay()
    example = source[70 + 3 + 1 + 130 + 100]
    frames = {frame.tobytes(): t for t, frame in enumerate(example["frames"])}
    counts = np.zeros(60)
    window = Window(jumps=0)
    rng = np.random.default_rng(0)
    for _ in range(4800):
        goal = window(example, rng)["views"]["goal"][-1]
        counts[frames[goal.tobytes()] - example["time"]] += 1
    assert counts[:2].sum() == 0 and counts[50:].sum() == 0
    # The 99.9 % quantile of chi-square with 47 degrees of freedom.
    assert ((counts[2:50] - 100) ** 2 / 100).sum() < 82.7


@pytest.mark.parametrize("split", ["train[:300]", "train[300:]", "train[65:71]"])
def test_a_split_is_an_independent_recording(replay, split):
    """No window crosses its bounds; an episode that it cuts counts as unfinished."""
    start, stop = split[6:-1].split(":")
    play = list(steps())[int(start or 0) : int(stop or TOTAL)]
    source = replay(split)
    expected = [
        time
        for episode in episodes(play)
        for time in range(len(episode))
        if episode[-1].terminal or time + 49 < len(episode)
    ]
    assert [source[i]["time"] for i in range(len(source))] == expected
    for index in {0, len(source) // 2, len(source) - 1}:
        window = Window()(source[index], Always(9))
        assert_same(window, reference(play, index, 9))


def test_examples_share_the_memory_of_their_episode(replay):
    """Neighbours share the arrays of their episode; reading copies nothing."""
    source = replay()
    one, other = source[100], source[101]
    assert np.shares_memory(one["frames"], other["frames"])
    assert not one["frames"].flags.owndata


def test_a_pickled_source_opens_its_files_again(replay):
    source = replay()
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 1000 and len(copy) == len(source)
    np.testing.assert_array_equal(copy[5]["frames"], source[5]["frames"])


def test_ordered_reads_every_sample_once_in_order(replay):
    source = replay("train[:300]")
    window = Window(jumps=0, goal=None)
    rows = np.concatenate(
        [batch["index"] for batch in ordered(source, window, batch_size=64)]
    )
    assert rows[rows >= 0].tolist() == list(range(len(source)))


def test_invalid_recordings_and_windows_are_refused(replay, data_dir, tmp_path):
    with pytest.raises(InputError, match="python -m sgi.prepare --game breakout"):
        Replay("breakout_random", data_dir=tmp_path)
    with pytest.raises(InputError, match="no finished episode and none of 50"):
        replay("train[:40]")
    source = replay(ahead=5)
    with pytest.raises(InputError, match="set `ahead` of the source to 49"):
        Window()(source[len(source) - 1], Always(9))
    with pytest.raises(IndexError):
        source[len(source)]


def test_a_damaged_recording_is_refused_by_name(data_dir, tmp_path):
    folder = tmp_path / "play"
    folder.mkdir()
    for file in (data_dir / "play").iterdir():
        content = bytearray(file.read_bytes())
        if file.suffix == ".array_record":
            content[len(content) // 2] ^= 255
        (folder / file.name).write_bytes(content)
    with pytest.raises(InputError, match="'play' is damaged"):
        Replay("play", data_dir=tmp_path)
