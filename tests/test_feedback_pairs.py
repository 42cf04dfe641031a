"""Captions say what is seen, walks know their values, and pairs come back as played."""

import copy
import importlib.util
import json
import re
import shutil

import numpy as np
import pytest

from agents import demonstrate, prepare
from agents.environments import captions
from agents.environments.captions import captioner
from agents.environments.rows import rows
from agents.environments.worlds import KINDS as KINDS_OF_WORLDS
from agents.environments.worlds import world
from agents.feedback import pairs, walks
from agents.recording import SPLITS
from polyview.data.prepare import records
from polyview.errors import InputError, OutOfRange

pytest.importorskip("minigrid")
with_envpool = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None, reason="needs envpool"
)
COLOURS = ["red", "green", "blue", "purple", "yellow", "grey"]
KINDS = {4: "door", 5: "key", 6: "ball", 7: "box"}
STATES = ["open", "closed", "locked"]
PLACE = re.compile(
    r"an? ((?:open |closed |locked )?(?:\w+) (?:door|key|ball|box)) "
    r"(?:(right in front of you)|(?:(\d+) steps? ahead)?(?: and )?"
    r"(?:(\d+) steps? to the (left|right))?)"
)
LEVEL = "babyai:GoToLocal"


class Letters:
    """A tokenizer of letters."""

    def rows(self, texts, length):
        numbers = np.zeros((1, length), np.int32)
        numbers[0, : len(texts[0])] = [ord(c) for c in texts[0]]
        return numbers, numbers > 0


def spelt(tokens):
    return "".join(map(chr, tokens[tokens >= 0]))


def crowded(rng):
    """A grid of BabyAI with some things, and what they are by their places."""
    grid = np.ones((7, 7, 3), np.uint8) * [1, 0, 0]
    things = {}
    for cell in rng.permutation(49)[: rng.integers(1, 12)]:
        column, row = divmod(int(cell), 7)
        kind, colour, state = rng.choice([2, *KINDS]), rng.integers(6), rng.integers(3)
        grid[column, row] = kind, colour, state * (kind == 4)
        if kind != 2:
            name = f"{COLOURS[colour]} {KINDS[kind]}"
            name = f"{STATES[state]} {name}" if kind == 4 else name
            things[6 - row, column - 3] = name
    return grid.astype(np.uint8), things


def read_caption(text):
    """The things that a caption names, by (steps ahead, steps to the right)."""
    things = {}
    seen = re.search(r"You see ([^.]+)\.", text)
    for part in seen[1].split("; ") if seen and seen[1] != "no objects" else []:
        name, front, ahead, aside, side = PLACE.fullmatch(part).groups()
        right = int(aside or 0) * (-1 if side == "left" else 1)
        things[1 if front else int(ahead or 0), right] = name
    held = re.search(r"You carry an? ([^.]+)\.", text)
    return things | ({(0, 0): held[1]} if held else {})


def test_a_caption_says_all_that_is_seen_and_where(rng):
    for _ in range(150):
        grid, things = crowded(rng)
        text = captions.babyai(grid)
        assert read_caption(text) == things
        places = [place for place in read_caption(text) if place != (0, 0)]
        away = [ahead + abs(right) for ahead, right in places]
        assert away == sorted(away)
        assert ("A wall is right" in text) == (grid[3, 5, 0] == 2)
        assert captions.shows_object(text) == bool(things)
        assert "You see" in text and not re.search(r"\ba [aeiou]|\ban [^aeiou]", text)
    assert captions.babyai(np.zeros((7, 7, 3), np.uint8)) == "You see no objects."


def test_a_goal_aware_caption_says_what_the_instruction_names_alone(rng):
    named = {
        "put the red ball next to a box": ["red ball", "box"],
        "go to the grey object": ["grey door", "grey key", "grey ball", "grey box"],
        "open a door on your left": ["door"],
        "pick up an object": ["door", "key", "ball", "box"],
    }
    for instruction, names in named.items():
        for _ in range(40):
            grid, things = crowded(rng)
            text = captions.babyai(grid, instruction, goal_only=True)
            kept = {
                place: name
                for place, name in things.items()
                if any(name.endswith(one) for one in names)
            }
            assert read_caption(text) == kept
            assert captions.shows_object(text) == bool(kept)
            assert "wall" not in text and text
            said = text.partition("You do not see ")[2].partition(".")[0]
            if "object" not in instruction:
                missing = [
                    f"a {one}"
                    for one in names
                    if not any(name.endswith(one) for name in things.values())
                ]
                assert said == " or ".join(missing)
            else:
                assert bool(said) == (not kept)


def test_a_caption_of_textrearrange_says_what_the_picture_shows():
    room, describe = world("rearrange:train"), captioner("rearrange:train")
    words = importlib.import_module("agents.rearrange.words")
    closed = 0
    for seed in range(4):
        room.reset(seed)
        for action in (0, 16, 28, 2, 5, 1, 33, 35, 4):
            room.step(action)
            state, text = room.environment.state, describe(room)
            assert not captions.shows_object(text)  # of BabyAI
            at = int(state.agent)
            names = [words.CATEGORIES[n] for n in state.episode.categories]
            places = np.asarray(state.places).tolist()
            hidden = at < 2 and not state.open[at]
            closed += hidden
            there = [n for n, p in zip(names, places, strict=True) if p == at]
            held = [n for n, p in zip(names, places, strict=True) if p == 8]
            where, *seen, hold = re.findall(r"[^.]+\.", text)
            assert where.startswith(f"You stand at the {words.RECEPTACLES[at]}")
            assert ("closed" in where) == hidden
            assert ("open" in where) == (at < 2 and not hidden)
            assert len(seen) == (not hidden)
            said = re.findall(r"an? (\w+)", " ".join(seen))
            assert sorted(said) == ([] if hidden else sorted(there))
            assert re.findall(r"an? (\w+)", hold) == held or "nothing" in hold
    assert closed


def test_a_caption_of_metaworld_is_the_offsets_in_centimetres():
    state = np.zeros(39, np.float32)
    state[:4], state[4:7], state[36:] = (
        [0, 0.6, 0.2, 1],
        [0.1, 0.55, 0.204],
        [0.1, 1, 0],
    )
    assert captions.metaworld(state, "push-v3") == (
        "The gripper is open. The block is 10 cm to the right of and 5 cm behind the "
        "gripper. The goal is 45 cm ahead of and 20 cm below the block."
    )
    state[3], state[:3] = 0, [0.1, 1, 0]
    text = "The gripper is closed. The goal is at the gripper."
    assert captions.metaworld(state, "reach-wall-v3") == text


def test_what_has_no_caption_is_refused():
    with pytest.raises(InputError, match="goal-aware captions are for BabyAI"):
        captioner("wordle:english", goal_only=True)
    with pytest.raises(InputError, match="names an object.*'win'"):
        captions.babyai(np.zeros((7, 7, 3), np.uint8), "win", goal_only=True)
    with pytest.raises(InputError, match=r"\[7, 7, 3\], not \[3, 7, 7\]"):
        captions.babyai(np.zeros((3, 7, 7), np.uint8))
    with pytest.raises(InputError, match=r"\[39\], not \[36\]"):
        captions.metaworld(np.zeros(36), "push-v3")
    assert all(callable(captioner(f"{kind}:any")) for kind in KINDS_OF_WORLDS)
    with pytest.raises(InputError, match="no world"):
        captioner("chess:blitz")


def remaining(room, bot, taken):
    """The steps that minigrid's bot needs from here, in copies of both."""
    own, bot = copy.deepcopy((room.environment, bot))
    for number in range(1, own.max_steps + 1):
        _, reward, ended, cut, _ = own.step(bot.replan(taken))
        taken = None
        if ended or cut:
            return number if reward > 0 else np.nan
    return np.nan


@pytest.mark.parametrize("level, seed", [("PickupLoc", 4), ("UnlockPickup", 10)])
def test_values_are_the_steps_that_the_bot_still_needs(level, seed):
    from minigrid.utils.baby_ai_bot import BabyAIBot

    name = f"babyai:{level}"
    room = world(name)
    found = walks.walk(room, seed, caption=captioner(name), random=0.3)
    room.reset(seed)
    bot, taken, chance = BabyAIBot(room.environment), None, 0
    for moment in found.moments[:-1]:
        np.testing.assert_array_equal(room.arrived["grid"], moment.observation["grid"])
        assert moment.caption == captions.babyai(moment.observation["grid"])
        np.testing.assert_equal(moment.value, -remaining(room, bot, taken))
        action = bot.replan(taken)
        taken = moment.action if action != moment.action else None
        chance += action != moment.action
        room.step(moment.action)
    assert found.success and found.moments[-1].value == 0 and chance
    assert found.moments[-1].action is None


def test_a_walk_without_chance_is_a_demonstration(monkeypatch):
    room, describe = world(LEVEL), captioner(LEVEL)
    episode = demonstrate.demonstrate(room, 11)
    room.on_end = print  # whatever the caller has set is left as it was
    found = walks.walk(room, 11, caption=describe)
    assert room.on_end is print
    count = len(episode["actions"])
    assert [m.action for m in found.moments[:-1]] == episode["actions"].tolist()
    assert [m.value for m in found.moments] == list(range(-count, 1))
    assert found[:3] == (episode["instruction"], 0, 11) and found.success
    for moment, grid in zip(found.moments, episode["grid"], strict=True):
        np.testing.assert_array_equal(moment.observation["grid"], grid)
        assert moment.caption == captions.babyai(grid)  # at the end too

    other = walks.walk(room, 12, caption=describe, task=4, random=0.5, valued=False)
    assert other.task == 4 and all(np.isnan(m.value) for m in other.moments)
    again = walks.walk(world(LEVEL), 12, caption=describe, random=0.5)
    assert [m.action for m in again.moments] == [m.action for m in other.moments]
    game = world("wordle:english")
    lost = walks.walk(game, 12, caption=captioner(game.name), random=1.0)
    assert len(lost.moments) == 7 and not lost.success
    assert "No guesses are left" in lost.moments[-1].caption
    values = np.array([moment.value for moment in lost.moments])
    assert np.isfinite(values[:3]).all() and np.isnan(values[-1])
    with pytest.raises(OutOfRange, match="random"):
        walks.walk(room, 1, caption=describe, random=1.5)

    def lose(room):
        def act(observation, taken=None, asked=[]):  # noqa: B006, it counts
            asked.append(1)
            if len(asked) > 2:
                raise demonstrate.Failed
            return 0

        return act

    monkeypatch.setattr(walks, "expert", lose)
    failed = walks.walk(room, 11, caption=describe)
    assert len(failed.moments) == 3 and not failed.success
    assert [m.action for m in failed.moments] == [0, 0, None]
    assert all(np.isnan(m.value) for m in failed.moments)


@pytest.fixture(scope="module")
def levels(tmp_path_factory):
    """A folder with pairs of two levels."""
    folder = tmp_path_factory.mktemp("data") / "levels"
    few = {"n": 12, "validation": 2, "test": 3, "random": 0.3}
    pairs.prepare([LEVEL, "babyai:PickupLoc"], folder, **few)
    return folder


def test_pairs_come_back_as_they_were_played(levels):
    described = pairs.describe("levels", levels.parent)
    assert described["tasks"] == [LEVEL, "babyai:PickupLoc"]
    assert (
        described["world"] == "babyai" and described["settings"]["goal_only"] is False
    )
    assert described["observations"] == {"grid": [7, 7, 3]}
    assert described["action"]["names"][3] == "pick up" and described["versions"]
    every, episodes = [], []
    rooms = {}
    for split in SPLITS:
        found = pairs.read("levels", split, levels.parent)
        counts = described["counts"][split]
        assert counts["pairs"] == len(found) and counts["across"] == 0
        assert counts["episodes"] == len(found) + counts["equal"] + counts["short"]
        every += found
        episodes.append({int(pair["episode"][0]) for pair in found})
    assert [len(seeds) for seeds in episodes] == [24, 4, 6]  # one pair of each
    assert not set.intersection(*episodes[:2]) and not set.intersection(*episodes[1:])
    assert [pair["pair"] for pair in every] == list(range(34))
    assert [pair["task"] for pair in every[:4]] == [0, 1, 0, 1]  # they take turns
    first = [pair["time"][0] < pair["time"][1] for pair in every]
    assert 6 < sum(first) < 28
    for pair in every[:10]:
        name = described["tasks"][pair["task"]]
        room = rooms.setdefault(name, world(name))
        one = walks.walk(
            room, int(pair["episode"][0]), caption=captioner(name), random=0.3
        )
        assert one.instruction == pair["instruction"]
        assert pair["episode"][0] == pair["episode"][1]
        assert abs(pair["time"][0] - pair["time"][1]) >= pairs.APART
        assert pair["caption_1"] != pair["caption_2"]
        for which in range(2):
            moment = one.moments[pair["time"][which]]
            assert pair[f"caption_{which + 1}"] == moment.caption
            assert pair["value"][which] == moment.value
            np.testing.assert_array_equal(
                pair["grid"][which], moment.observation["grid"]
            )
        assert pair["grid"].dtype == np.uint8 and pair["value"].dtype == np.float64


def test_pairs_across_episodes_have_their_share_and_one_instruction(tmp_path):
    few = {"n": 20, "validation": 4, "test": 1, "across": 0.3}
    made = [
        pairs.prepare(["wordle:english"], tmp_path / name, seed=seed, **few)
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    ]
    assert all("25 pairs, 20 for training" in line for line in made)
    described = [pairs.describe(name, tmp_path) for name in ("one", "same", "other")]
    # The digest is of what was made, not of where it lies.
    assert described[0] == described[1]
    assert described[0]["digest"] != described[2]["digest"]
    for split, across in zip(SPLITS, (6, 1, 0), strict=True):
        found = pairs.read("one", split, tmp_path)
        assert described[0]["counts"][split]["across"] == across
        mixed = [len(set(pair["episode"])) == 2 for pair in found]
        assert sum(mixed) == across
        half = sum(mixed[: len(found) // 2])
        assert abs(half - across / 2) <= 1  # they take turns
    state = np.concatenate([p["state"] for p in pairs.read("one", "train", tmp_path)])
    statistics = described[0]["statistics"]["state"]
    np.testing.assert_allclose(statistics["mean"], state.mean(0, np.float64), atol=1e-9)
    source = pairs.source("one", "validation")
    assert source["target"].endswith(":ArrayRecord") and source["name"] == "one"
    assert "already" in pairs.prepare(["wordle:english"], tmp_path / "one", **few)
    with pytest.raises(InputError, match=r"across 0\.3, not 0\.0"):
        pairs.prepare(["wordle:english"], tmp_path / "one", **(few | {"across": 0.0}))


def test_pairs_that_cannot_be_made_are_refused(tmp_path):
    few = {"n": 3, "validation": 1, "test": 1}
    with pytest.raises(InputError, match="200 have no two moments 6 steps apart"):
        pairs.prepare(["wordle:english"], tmp_path / "far", apart=6, random=0.0, **few)
    room = world("wordle:english")
    alike = pairs.Pairs(room, lambda room: "the same", 3, apart=1)
    with pytest.raises(
        InputError, match=r"after 0 of 3.*and 0 no known value; \d{3} p"
    ):
        list(alike)
    assert alike.counts["equal"] > 150 and alike.counts["pairs"] == 0
    with pytest.raises(InputError, match="across"):
        list(pairs.Pairs(room, lambda room: "the same", 3, across=1.0, apart=1))
    for names, message in (
        ([], "no world to pair"),
        ([LEVEL, "wordle:english"], "not one world"),
        ([LEVEL, LEVEL], "given twice"),
    ):
        with pytest.raises(InputError, match=message):
            pairs.prepare(names, tmp_path / "none", **few)
    for wrong in ({"across": 1.5}, {"random": -0.1}, {"n": 0}, {"each": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            pairs.prepare([LEVEL], tmp_path / "none", **(few | wrong))
    assert not any(tmp_path.iterdir())


def test_other_data_are_no_pairs(levels, tmp_path):
    with pytest.raises(InputError, match="no pairs 'none'.*--pairs"):
        pairs.read("none", "train", tmp_path)
    records.write(
        tmp_path / "plain",
        {"train": [{"x": 1}]},
        version="1",
        targets={},
        source="",
        licence="",
    )
    with pytest.raises(InputError, match="holds no pairs, but other data"):
        pairs.describe("plain", tmp_path)
    shutil.copytree(levels, tmp_path / "flipped")
    (file,) = (tmp_path / "flipped").glob("train*")
    data = bytearray(file.read_bytes())
    middle = data.index(b"caption_1")
    data[middle : middle + 9] = bytes(9)
    file.write_bytes(data)
    with pytest.raises(InputError, match="'flipped', split train, are damaged"):
        pairs.read("flipped", "train", tmp_path)
    (tmp_path / "broken").mkdir()
    for key, value, told in (("counts", None, "counts"), ("tasks", [], "tasks are")):
        manifest = json.loads((levels / "manifest.json").read_text())
        manifest["provenance"][key] = value
        (tmp_path / "broken" / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(InputError, match=f"damaged: its {told}"):
            pairs.describe("broken", tmp_path)


@pytest.mark.parametrize("field", ["pair", "value", "caption_2", "episode"])
def test_a_pair_that_lacks_a_field_is_told(levels, tmp_path, field):
    records.write(
        tmp_path / "less",
        {
            split: [
                {name: value for name, value in pair.items() if name != field}
                for pair in pairs.read("levels", split, levels.parent)
            ]
            for split in SPLITS
        },
        version="1",
        targets={},
        source="",
        licence="",
        provenance=json.loads((levels / "manifest.json").read_text())["provenance"],
    )
    with pytest.raises(InputError, match=rf"damaged \(record 0 has no {field}\)"):
        pairs.read("less", "validation", tmp_path)


def test_the_command_prepares_pairs(tmp_path, capsys):
    small = "--n 4 --validation 1 --test 1 --each 2 --apart 2".split()
    where = ["--data_dir", str(tmp_path)]
    prepare.main(["--pairs", LEVEL, "--goal_only", *small, *where])
    assert "6 pairs, 4 for training" in capsys.readouterr().out
    described = pairs.describe("pairs_babyai_gotolocal", tmp_path)
    assert described["settings"]["goal_only"] is True
    for pair in pairs.read("pairs_babyai_gotolocal", "train", tmp_path):
        for which in range(2):
            goal = captions.babyai(pair["grid"][which], pair["instruction"], True)
            assert pair[f"caption_{which + 1}"] == goal
    for arguments, message in (
        (["--pairs", LEVEL, "--env", LEVEL], "either"),
        (["--pairs", LEVEL, "--noise", "0.1"], "--noise only applies with --env"),
        (["--env", LEVEL, "--n", "3"], "--n only applies with --pairs"),
        (["llm", "--goal_only"], "--goal_only only applies with --pairs"),
        (["--pairs", "chess:blitz"], "no world"),
    ):
        with pytest.raises(InputError, match=message):
            prepare.main([*arguments, *where])


CAPTIONED = {"text": Letters(), "length": 60, "caption": True, "caption_length": 900}


def check_captions(shown, goal_only=False):
    for grid, text, caption in zip(
        shown["grid"], shown["text"], shown["caption"], strict=True
    ):
        assert spelt(caption) == captions.babyai(grid, spelt(text), goal_only)


def test_rows_show_captions():
    several = rows(LEVEL, 2, 0, limit=5, **CAPTIONED)
    assert several.shapes["caption"] == ((900,), np.int32)
    check_captions(several.begin().observation)
    for action in (1, 2, 2, 0, 2, 1):  # over the end of an episode
        check_captions(several.step(np.full(2, action)).observation)
    goal = rows(LEVEL, 2, 0, goal_only=True, **CAPTIONED)
    check_captions(goal.begin().observation, goal_only=True)
    with pytest.raises(InputError, match="need a tokenizer"):
        rows(LEVEL, 1, 0, caption=True)
    with pytest.raises(InputError, match="set caption too"):
        rows(LEVEL, 1, 0, goal_only=True)


@with_envpool
def test_envpool_shows_the_same_captions():
    from agents.environments.envpool import EnvPool

    for goal_only in (False, True):
        pool = EnvPool(LEVEL, 2, 3, most=8, limit=4, goal_only=goal_only, **CAPTIONED)
        check_captions(pool.begin().observation, goal_only)
        seen = [pool.step(np.full(2, a)).observation for a in (1, 2, 2, 0, 2, 1)]
        for shown in seen:
            check_captions(shown, goal_only)
        assert len({shown["text"].tobytes() for shown in seen}) > 1  # over an end
    with pytest.raises(InputError, match="need a tokenizer"):
        EnvPool(LEVEL, 2, 3, most=8, caption=True)
