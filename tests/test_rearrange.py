"""TextRearrange: its episodes, its rules against a plain reference, and its solver."""

import hashlib
import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.rearrange import environment, goals, pictures, tasks, words
from agents.rearrange.environment import HAND, LIMIT, Rearrange, State
from agents.rearrange.glyphs import OBJECTS
from agents.rearrange.solver import look as looked
from agents.rearrange.solver import solve
from agents.rearrange.tasks import SPLITS, Episodes, table
from agents.rearrange.words import CATEGORIES, FAMILIES, RECEPTACLES, SKILLS
from polyview.errors import InputError, OutOfRange

EVALUATED = [name for name in SPLITS if name != "train"]


def together(most: int = 1000) -> Episodes:
    """The first episodes of all splits."""
    parts = zip(*(table(split).episodes for split in SPLITS), strict=True)
    return Episodes(*(np.concatenate([p[:most] for p in part]) for part in parts))


def started(episodes: Episodes) -> State:
    keys = np.zeros((len(episodes.text), 2), np.uint32)
    return jax.vmap(environment.start)(Episodes(*map(jnp.asarray, episodes)), keys)


@pytest.fixture(scope="module")
def step():
    return jax.jit(jax.vmap(environment.step, (0, 0, None)))


# --- Episodes


def test_a_text_is_said_in_one_split_only_whatever_the_seed():
    said = {}
    for split in SPLITS:
        for seed in (0, 1) if split != "train" else (0,):
            for text in table(split, seed).texts:
                assert said.setdefault(text, split) == split, text
    assert len(said) > 45_000


def test_training_has_150_000_distinct_tasks():
    train = table("train")
    columns = [c.reshape(len(train), -1).astype(np.int32) for c in train.episodes]
    rows = np.ascontiguousarray(np.concatenate(columns, 1))
    whole = rows.view([("", rows.dtype)] * rows.shape[1])
    assert len(np.unique(whole)) == len(train) >= 150_000
    assert len(train) % 3 == 0, "or splits of demonstrations may share an episode"
    assert sum(column.nbytes for column in train.episodes) < 10e6
    assert len(train.texts) > 40_000


def test_evaluation_has_a_thousand_fixed_episodes_of_each_split():
    """A change of this digest is a new benchmark: results do not compare."""
    digest = hashlib.sha256()
    for split in EVALUATED:
        made = table(split)
        assert len(made) == 1000
        for column in made.episodes:
            digest.update(np.ascontiguousarray(column).tobytes())
        digest.update("\n".join(made.texts).encode())
    assert digest.hexdigest()[:16] == DIGEST


DIGEST = "3a621c506dbdfa0a"


def test_an_episode_follows_from_split_and_seed():
    first, again = table("context", 5), tasks._table.__wrapped__("context", 5)
    for one, other in zip(first.episodes, again.episodes, strict=True):
        np.testing.assert_array_equal(one, other)
    assert first.texts == again.texts
    assert (first.episodes.places != table("context").episodes.places).any()


def test_splits_have_the_families_phrasings_objects_and_scenes_that_they_should():
    seen = {
        split: {FAMILIES[f] for f in np.unique(table(split).episodes.family)}
        for split in SPLITS
    }
    training = set(FAMILIES[:9])
    for split in ("train", "train_validation", "new_scenes", "rephrasing"):
        assert seen[split] == training
    assert seen["novel_objects"] < training
    others = [seen[split] for split in EVALUATED if not seen[split] & training]
    assert sorted(itertools.chain(*others)) == sorted(FAMILIES[9:])
    assert len(FAMILIES) == 17
    for name, phrasings in words.PHRASINGS.items():
        assert len(phrasings.train) >= 8 * (name in training)
        assert len(phrasings.evaluation) >= 4 * (1 + (name not in training))
        assert not set(phrasings.train) & set(phrasings.evaluation)
    for split in SPLITS:
        now = table(split).episodes
        assert ((now.scene >= 24) == (split == "new_scenes")).all()
        named = now.categories[now.wanted.any(1)] >= len(words.SEEN)
        assert (named == (split == "novel_objects")).all()
    assert len(np.unique(goals.ORDERS, axis=0)) == 32


def test_descriptions_are_of_every_seen_category_and_never_heard_in_training():
    assert set(words.DESCRIPTIONS) == set(words.SEEN)
    every = list(itertools.chain(*words.DESCRIPTIONS.values()))
    assert len(set(every)) == len(every)
    assert all(len(texts) >= 3 for texts in words.DESCRIPTIONS.values())
    heard = "\n".join(table("train").texts)
    assert not [text for text in (*every, *words.NEEDS) if text in heard]
    for name, texts in words.DESCRIPTIONS.items():
        assert not [t for t in texts for c in CATEGORIES if re.search(rf"\b{c}\b", t)]
        assert name in words.SEEN


def test_texts_are_short_and_complete():
    for split in EVALUATED:
        for text in table(split).texts:
            assert len(re.findall(r"\w+|[^\w\s]", text)) <= 23, text
            assert re.fullmatch(r"[A-Z][A-Za-z ,.:;?']*[.?]", text), text
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text


def named(text: str, names: tuple[str, ...]) -> list[str]:
    return re.findall("|".join(rf"\b{name}\b" for name in names), text)


@pytest.mark.parametrize("split", EVALUATED)
def test_the_goal_is_what_the_text_says(split):
    """Read the texts again, by rules of their own."""
    made = table(split)
    for row in range(len(made)):
        text, now = made.text(row), made.episode(row)
        categories = [CATEGORIES[c] for c in now.categories]
        places = [RECEPTACLES[p] for p in now.places]
        goal = [
            ({categories[i] for i in np.flatnonzero(objects)}, RECEPTACLES[t])
            for objects, t in zip(now.wanted, now.target, strict=True)
            if objects.any()
        ]
        nouns, rooms = named(text, CATEGORIES), named(text, RECEPTACLES)
        family = FAMILIES[now.family]
        assert set().union(*(kinds for kinds, _ in goal)) <= set(categories)
        if family in ("one", "aside", "store", "two", "three"):
            aside = "|".join(words.ASIDES).format(b=r"\w+")
            nouns = named(re.sub(aside, "", text), CATEGORIES)
            places_of = rooms[: len(nouns)]
            assert goal == [({n}, r) for n, r in zip(nouns, places_of, strict=True)]
        elif family == "pair":
            assert goal == [({n}, rooms[0]) for n in nouns]
        elif family == "either":
            assert goal == [(set(nouns) & set(categories), rooms[0])]
        elif family == "from":
            (kinds, target), source = goal[0], set(rooms) - {goal[0][1]}
            assert kinds == set(nouns) and {target, *source} == set(rooms)
            assert {places[i] for i in np.flatnonzero(now.wanted[0])} == source
        elif family in ("kind", "all"):
            plural = {p: k for k, p in words.ALL_OF.items()}
            word = named(text, (*words.GROUPS, *plural))[0]
            group = set(words.GROUPS[plural.get(word, word)]) & set(categories)
            assert goal == [(group, rooms[0])]
            assert now.every[0] == (family == "all")
        elif family == "described":
            (about,) = [
                name
                for name, texts in words.DESCRIPTIONS.items()
                if any(t.lower() in text.lower() for t in texts)
            ]
            assert goal == [({about}, rooms[0])]
        elif family == "need":
            (helps,) = [h for need, h in words.NEEDS.items() if need in text]
            assert goal == [(set(helps) & set(categories), rooms[0])]
        elif family == "beside":
            order = [RECEPTACLES[r] for r in goals.ORDERS[now.scene]]
            side = 1 if re.search(r"\bright\b", text) else -1
            assert goal == [({nouns[0]}, order[order.index(rooms[0]) + side])]
        elif family == "if_door":
            (door, *_), ends = rooms, rooms[1:]
            condition = text.index(re.search("open|closed", text)[0])
            if text.startswith(("Put", "Move", "The")):
                ends, door = [rooms[0], rooms[2]], rooms[1]
            said = text[condition:].startswith("open")
            holds = now.open[RECEPTACLES.index(door)] == said
            assert goal == [({nouns[0]}, ends[0 if holds else 1])]
        elif family == "if_there":
            to = goal[0][1]
            (source,) = {*rooms} - {to}
            there = [
                i for i in range(6) if categories[i] == nouns[0] and places[i] == source
            ]
            if there:
                assert np.flatnonzero(now.wanted[0]).tolist() == there
            else:
                assert goal[0][0] == {nouns[-1]} != {nouns[0]}
        doors = {RECEPTACLES[d]: now.doors[d] for d in range(2) if now.doors[d] >= 0}
        wish = {"open": {rooms[0]: 1}, "close": {rooms[0]: 0}, "store": {rooms[0]: 0}}
        assert doors == wish.get(family, {})
        assert bool(goal) == (family not in ("open", "close"))


# --- Rules


class Reference:
    """The rules again, in plain Python, by their words."""

    def __init__(self, episode: Episodes):
        self.kinds = [CATEGORIES[c] for c in episode.categories]
        self.at = [RECEPTACLES[p] for p in episode.places]
        self.closed = {RECEPTACLES[d] for d in range(2) if not episode.open[d]}
        self.agent = RECEPTACLES[episode.agent]
        self.hand, self.steps, self.episode = None, 0, episode

    def act(self, skill: str) -> bool:
        """Take a skill by its name; return whether it changed something."""
        self.steps += 1
        before = (list(self.at), set(self.closed), self.agent, self.hand)
        words_of = skill.split()
        verb, thing = words_of[0], words_of[-1]
        here = thing == self.agent
        within = self.agent not in self.closed
        if verb == "go":
            self.agent = thing
        elif verb == "pick" and self.hand is None and within:
            for item in range(6):
                if self.kinds[item] == thing and self.at[item] == self.agent:
                    self.hand, self.at[item] = item, "hand"
                    break
        elif verb == "place" and here and within and self.hand is not None:
            self.at[self.hand], self.hand = self.agent, None
        elif verb == "open" and here:
            self.closed.discard(thing)
        elif verb == "close" and here:
            self.closed.add(thing)
        return before != (list(self.at), set(self.closed), self.agent, self.hand)

    def measure(self) -> tuple[float, bool]:
        """The share of sub-goals that hold, and success."""
        reached, total, all_hold = 0, 0, True
        for clause in range(3):
            items = np.flatnonzero(self.episode.wanted[clause]).tolist()
            if not items:
                continue
            target = RECEPTACLES[self.episode.target[clause]]
            done = [item for item in items if self.at[item] == target]
            picked = [item for item in items if self.at[item] == "hand"]
            if self.episode.every[clause]:
                total += 2 * len(items)
                reached += 2 * len(done) + len(picked)
                all_hold &= len(done) == len(items)
            else:
                total += 2
                reached += 2 if done else len(picked)
                all_hold &= bool(done)
        doors = [d for d in range(2) if self.episode.doors[d] >= 0]
        right = [
            d
            for d in doors
            if (RECEPTACLES[d] not in self.closed) == bool(self.episode.doors[d])
        ]
        total += len(doors)
        reached += len(right) if all_hold else 0
        return reached / total, all_hold and right == doors


def test_random_play_agrees_with_the_reference(step, rng):
    """Skills are often those that change something, and that the goal asks for."""
    episodes = Episodes(*(column[::61] for column in together()))
    count = len(episodes.text)
    plain = [Reference(Episodes(*(c[i] for c in episodes))) for i in range(count)]
    state, legal = started(episodes), jax.jit(jax.vmap(environment.legal))
    next_of = jax.jit(jax.vmap(solve))
    measured = [own.measure() for own in plain]
    assert not any(success for _, success in measured)
    over, valid_ones = np.zeros(count, bool), 0
    for now in range(LIMIT):
        may = np.asarray(legal(state))
        actions = rng.integers(len(SKILLS), size=count)
        some = [rng.choice(np.flatnonzero(row)) for row in may]
        actions = np.where(rng.random(count) < 0.5, some, actions)
        actions = np.where(rng.random(count) < 0.3, next_of(state), actions)
        state, *results = step(state, actions, 0.05)
        reward, ended, cut, success = map(np.asarray, results)
        places, doors, agents = map(np.asarray, (state.places, state.open, state.agent))
        for i, own in enumerate(plain):
            valid = own.act(SKILLS[actions[i]])
            assert valid == may[i, actions[i]]
            before, (after, done) = measured[i][0], own.measure()
            measured[i] = after, done
            expected = 10 * done + 5 * (after - before) - 0.05 * (not valid)
            assert abs(reward[i] - expected) < 1e-5
            assert ended[i] == success[i] == done
            assert cut[i] == (now == LIMIT - 1 and not done)
            at = [HAND if p == "hand" else RECEPTACLES.index(p) for p in own.at]
            assert places[i].tolist() == at
            assert doors[i].tolist() == [r not in own.closed for r in RECEPTACLES[:2]]
            assert RECEPTACLES[agents[i]] == own.agent
            valid_ones += valid
        over |= ended
    assert valid_ones > 0.5 * count * LIMIT and over.mean() > 0.2


def test_a_number_that_is_no_skill_changes_nothing(step):
    state = started(Episodes(*(column[:2] for column in together())))
    after, reward, *_ = step(state, jnp.array([-1, 36]), 0.05)
    for name in ("places", "open", "agent"):
        np.testing.assert_array_equal(getattr(state, name), getattr(after, name))
    np.testing.assert_allclose(reward, -0.05)


def test_progress_adds_up_whatever_is_done_in_between(step):
    """No reward is to be had from picking up and placing again and again."""
    now = table("rephrasing").episodes
    row = np.flatnonzero(
        (now.family == FAMILIES.index("one")) & (now.places > 1).all(1)
    )
    state = started(Episodes(*(column[row[:1]] for column in now)))
    item, place = int(np.flatnonzero(now.wanted[row[0], 0])[0]), 0
    place = int(now.places[row[0], item])
    kind = int(now.categories[row[0], item])
    total = 0.0
    for skill in [place] + 5 * [8 + kind, 24 + place]:
        state, reward, *_ = step(state, jnp.array([skill]), 0.0)
        total += float(reward[0])
    assert total == pytest.approx(0)


# --- Solver


@pytest.fixture(scope="module")
def solved():
    """The steps of the solver from states, [n]; `LIMIT` + 1 where it fails."""

    def play(state: State):
        def body(carry, _):
            state, steps, over = carry
            action = jax.vmap(solve)(state)
            valid = jnp.take_along_axis(
                jax.vmap(environment.legal)(state), action[:, None], 1
            )[:, 0]
            state, _, _, _, success = jax.vmap(environment.step, (0, 0, None))(
                state, action, 0.0
            )
            wasted = (~valid & ~over).sum()
            return (state, steps + ~over, over | success), wasted

        count = state.agent.shape[0]
        first = state, jnp.zeros(count, jnp.int32), jnp.zeros(count, bool)
        (_, steps, over), wasted = jax.lax.scan(body, first, length=LIMIT)
        return jnp.where(over, steps, LIMIT + 1), wasted.sum()

    return jax.jit(play)


def test_the_solver_solves_every_episode_of_every_split(solved):
    steps, wasted = solved(started(together()))
    assert steps.shape == (12_000,) and int(steps.max()) <= 24 and int(wasted) == 0


def test_a_solver_that_knows_what_it_looked_at_solves_every_episode_too(step):
    state = started(together())
    look, next_skill = jax.jit(jax.vmap(looked)), jax.jit(jax.vmap(solve))
    seen = look(state, jnp.zeros((12_000, 8), bool))
    over, steps = np.zeros(12_000, bool), np.zeros(12_000, int)
    for _ in range(24):
        skill = np.asarray(next_skill(state, seen))
        # It picks up nothing that it has not seen.
        where = np.asarray(state.agent)
        picks = np.char.startswith(np.array(SKILLS)[skill], "pick")
        assert np.asarray(seen)[np.arange(12_000), where][picks].all()
        state, _, _, _, success = step(state, skill, 0.0)
        seen = look(state, seen)
        steps += ~over
        over |= np.asarray(success)
    assert over.all() and steps.max() == 24
    by_split = steps.reshape(len(SPLITS), -1).mean(1).round(1)
    assert dict(zip(SPLITS, by_split, strict=True))["train_validation"] == 7.6


def test_the_page_tells_the_truth(solved):
    """Examples and numbers of texts and steps, but those of training's length."""
    page = (Path(__file__).parent.parent / "docs" / "rearrange.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|$", page, re.M)
    lines = [[cell.strip() for cell in row.split("|")] for row in rows]
    splits = {cells[0].strip("`"): cells for cells in lines if len(cells) == 6}
    assert list(splits) == list(SPLITS)
    steps = np.asarray(solved(started(together()))[0]).reshape(-1, 1000)
    for own, (split, cells) in zip(steps, splits.items(), strict=True):
        assert cells[2] in table(split).texts
        assert cells[3] == f"{len(table(split).texts):,}"
        if split != "train":
            assert cells[4:] == [f"{own.mean():.1f}", f"{own.max()}"]
    examples = {cells[0].strip("`"): cells[1] for cells in lines if len(cells) == 2}
    assert list(examples) == list(FAMILIES[:9])
    now = table("train")
    for family, text in examples.items():
        rows_of = now.episodes.text == now.texts.index(text)
        assert {FAMILIES[f] for f in now.episodes.family[rows_of]} == {family}


def test_the_solver_solves_from_whatever_came_before(solved, step, rng):
    state = started(together())
    legal = jax.jit(jax.vmap(environment.legal))
    for _ in range(24):
        drawn = rng.random((len(state.agent), len(SKILLS)), np.float32)
        actions = np.where(np.asarray(legal(state)), drawn, 0).argmax(1)
        state, *_ = step(state, actions, 0.0)
    steps, wasted = solved(state)
    assert int(steps.max()) <= LIMIT and int(wasted) == 0


# --- Pictures


def blank(**changes):
    fields = {
        "categories": jnp.arange(6),
        "visible": jnp.ones(6, bool),
        "held": jnp.zeros(6, bool),
        "scene": 3,
        "receptacle": 0,
        "is_open": jnp.array(True),
        "key": jax.random.key(1),
        "time": 0,
    }
    return drawn(**(fields | changes))


drawn = jax.jit(pictures.picture)


def test_glyphs_differ_by_shape_alone():
    shapes = OBJECTS.reshape(len(CATEGORIES), -1) > 0
    for one, other in itertools.combinations(range(len(CATEGORIES)), 2):
        assert (shapes[one] != shapes[other]).sum() >= 8, (one, other)
    assert (shapes.sum(1) >= 20).all()


def test_a_picture_shows_each_object_in_its_cell_and_what_is_held():
    first = np.asarray(blank())
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8
    for item in range(6):
        other = np.asarray(blank(categories=jnp.arange(6).at[item].set(15)))
        where = np.argwhere((first != other).any(-1))
        down, across = divmod(item, 3)
        low, high = where.min(0), where.max(0)
        assert len(where) > 5 and (low >= [12 + 10 * down, 2 + 9 * across]).all()
        assert (high < [22 + 10 * down, 11 + 9 * across]).all()
    held = blank(held=jnp.arange(6) == 4)
    where = np.argwhere((first != np.asarray(held)).any(-1))
    assert len(where) > 10
    assert (where.min(0) >= [2, 20]).all() and (where.max(0) < [10, 28]).all()


def test_a_picture_shows_where_the_agent_stands_and_what_is_beside():
    pixels = [np.asarray(blank(receptacle=r))[:12, 2:19].mean((0, 1)) for r in range(8)]
    for one, other in itertools.combinations(pixels, 2):
        assert np.abs(one - other).max() > 12
    order = goals.ORDERS[3].tolist()
    edges = {}
    for place, receptacle in enumerate(order):
        image = np.asarray(blank(receptacle=receptacle))
        left, right = (
            np.median(image[:, c], (0, 1)) for c in (slice(2), slice(-2, None))
        )
        for side, colour in ((-1, left), (1, right)):
            beside = order[place + side] if 0 <= place + side < 8 else "wall"
            edges.setdefault(beside, []).append(colour)
    for colours in edges.values():
        assert len({tuple(colour) for colour in colours}) == 1
    assert len({tuple(colours[0]) for colours in edges.values()}) == 9


def test_a_tenth_of_the_pixels_is_noise_that_follows_from_the_state():
    nothing = jnp.zeros(6, bool)
    images = np.stack([blank(visible=nothing, time=t) for t in range(40)])
    typical = np.median(images, 0)
    changed = (images != typical).any(-1).mean()
    assert 0.09 < changed < 0.115
    np.testing.assert_array_equal(blank(time=3), blank(time=3))


@pytest.fixture(scope="module")
def context():
    return Rearrange("context")


def test_a_closed_door_hides_what_is_behind_it(context):
    state = context.begin_at(3)._replace(
        agent=jnp.int32(0), places=jnp.zeros(6, jnp.int32), open=jnp.zeros(2, bool)
    )
    observe = jax.jit(context.observe)
    other = state._replace(places=jnp.full(6, 5, jnp.int32))
    np.testing.assert_array_equal(observe(state)["image"], observe(other)["image"])
    ajar = jnp.array([True, False])
    state, other = state._replace(open=ajar), other._replace(open=ajar)
    assert (observe(state)["image"] != observe(other)["image"]).any()


def test_objects_contrast_with_every_surface():
    """Colours of objects are darker than what they stand on, in any light."""
    surface = np.asarray(pictures.unpack(pictures._BACKGROUNDS[:, :, 1, 20, 10]))
    ink = np.asarray(
        pictures.unpack(
            jax.vmap(pictures.colours)(jax.random.split(jax.random.key(0), 99))
        )
    )
    assert surface.mean(-1).min() > ink.mean(-1).max()


# --- The array environment


class Letters:
    """A tokenizer: the number of each letter."""

    def rows(self, texts, length):
        tokens, real = np.zeros((2, len(texts), length), np.int32)
        for row, text in enumerate(texts):
            if len(text) > length:
                raise InputError(f"{text!r} has {len(text)} tokens, not {length}")
            tokens[row, : len(text)] = [*text.encode()]
            real[row, : len(text)] = 1
        return tokens, real.astype(bool)


def test_the_text_of_an_observation_is_the_instruction():
    env = Rearrange("context", text=Letters(), length=120)
    shown = jax.jit(lambda row: env.observe(env.begin_at(row)))(7)["text"]
    assert shown.dtype == jnp.int32 and shown.shape == (120,)
    text = bytes(np.asarray(shown[shown >= 0]).tolist()).decode()
    assert text == env.table.text(7) and (shown[len(text) :] == -1).all()


def test_a_random_key_decides_the_episode(context):
    begin = jax.jit(jax.vmap(context.begin))
    keys = jax.random.split(jax.random.key(0), 300)
    state, again = begin(keys), begin(keys)
    jax.tree.map(np.testing.assert_array_equal, state, again)
    assert len(np.unique(state.episode.text)) > 150
    assert len(np.unique(state.key, axis=0)) == 300
    assert context.actions == 36 and context.limit == 32
    after, *results = jax.jit(context.step)(jax.tree.map(lambda x: x[0], state), 3)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for one, other in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape[1:]
    assert [r.dtype for r in results] == [jnp.float32] + 3 * [bool]


def test_wrong_splits_lengths_and_seeds_are_refused():
    with pytest.raises(InputError, match="did you mean 'context'"):
        Rearrange("contxt")
    with pytest.raises(InputError, match="tokens, not 12"):
        Rearrange("context", text=Letters(), length=12)
    for wrong in ({"seed": -1}, {"length": 0}, {"invalid_penalty": -0.1}):
        with pytest.raises(OutOfRange):
            Rearrange("context", **wrong)
    with pytest.raises(OutOfRange, match="row=1000"):
        Rearrange("context").begin_at(1000)
