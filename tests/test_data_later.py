"""Later states: geometric offsets, and pairs beyond an end that are missing."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from polyview.config.spec import build
from polyview.config.trust import allow_list
from polyview.data.later import Later, lost_share, offsets
from polyview.data.pipeline import batches
from polyview.data.sources.protocol import CorruptRecord
from polyview.errors import InputError, OutOfRange


def episode(length, **fields):
    """States (t + 1, -t - 1), so that a row tells its time and is never zero."""
    ramp = np.arange(1, length + 1, dtype=np.float32)
    return {"states": np.stack([ramp, -ramp], 1), "policy": 3, **fields}


def law(discount, most, longest):
    """P(Dt = k) for k = 1 .. longest, by the definition: failures, then a success."""
    chances = [(1 - discount) * discount ** (k - 1) for k in range(1, longest + 1)]
    if most is not None:
        tail = 1 - sum(chances[: most - 1])
        chances = [*chances[: most - 1], tail, *[0.0] * (longest - most)]
    return np.array(chances[:longest])


def assert_drawn_from(counts, chances):
    """By chi-square, with all cells of fewer than ten expected draws as one."""
    counts, chances = np.asarray(counts), np.asarray(chances)
    expected = counts.sum() * chances / chances.sum()
    rare = expected < 10
    assert counts[rare].sum() <= expected[rare].sum() + 20
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] < 10:
        counts, expected = counts[:-1], expected[:-1]
    square = ((counts - expected) ** 2 / expected).sum()
    free = max(len(counts) - 1, 1)
    assert square < stats.chi2.isf(1e-3, free)


@pytest.mark.parametrize("most", [None, 1, 4])
@pytest.mark.parametrize("discount", [0.0, 0.5, 0.9])
def test_offsets_follow_the_geometric_law(rng, discount, most):
    drawn = offsets(rng, 40_000, discount, most)
    assert drawn.dtype == np.int64 and drawn.min() >= 1
    longest = 60 if most is None else most
    chances = law(discount, most, longest)
    counts = np.bincount(drawn, minlength=longest + 1)[1:]
    if most is None:  # all beyond `longest` together
        counts = np.append(counts[:longest], counts[longest:].sum())
        chances = np.append(chances, 1 - chances.sum())
    assert counts.sum() == len(drawn)
    assert_drawn_from(counts, chances)


class Given:
    """A generator that draws the numbers it is given."""

    def __init__(self, numbers):
        self.numbers = numbers

    def random(self, count):
        assert count == len(self.numbers)
        return np.asarray(self.numbers)


def test_an_offset_is_the_first_step_whose_cumulative_chance_exceeds_the_number(rng):
    """So batches are the same wherever uniform numbers are."""
    numbers = rng.random(200)
    for discount in (0.3, 0.97):
        slow = []
        for number in numbers:
            k, below = 1, 1 - discount
            while below <= number:
                k, below = k + 1, 1 - discount ** (k + 1)
            slow.append(k)
        fast = offsets(Given(numbers), len(numbers), discount)
        np.testing.assert_array_equal(fast, slow)
    extremes = offsets(Given([0.0, 1 - 2**-53]), 2, 1 - 1e-9)
    assert extremes[0] == 1 and 1e10 < extremes[1] < 1e11


def pairs(example, rng, **options):
    made = Later(**{"m": 60_000, "discount": 0.7} | options)(example, rng)
    views, present = made["views"], made["present"]
    np.testing.assert_array_equal(present["state"], present["later"])
    return views["state"], views["later"], present["state"], made["targets"]["offset"]


@pytest.mark.parametrize("most", [None, 3])
def test_pairs_within_an_episode_have_the_enumerated_joint_law(rng, most):
    length = 6
    state, later, real, offset = pairs(episode(length), rng, most=most)
    start, end = (x[:, 0].astype(int) - 1 for x in (state, later))
    np.testing.assert_array_equal((end - start)[real], offset[real])
    chances, counts = [], []
    for t in range(length - 1):  # the last state has no successor
        for k, chance in enumerate(law(0.7, most, length - 1 - t), 1):
            chances.append(chance / (length - 1))
            counts.append((real & (start == t) & (offset == k)).sum())
    lost = 1 - sum(chances)
    assert_drawn_from([*counts, (~real).sum()], [*chances, lost])
    assert lost_share([length], 0.7, most) == pytest.approx(lost, abs=1e-12)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 40])
def test_a_pair_beyond_the_end_is_missing_and_never_clipped(rng, length):
    actions = -np.arange(1.0, length + 1)[:, None]  # never zero either
    example = episode(length, actions=actions)
    made = Later(500, 0.9, actions="actions")(example, rng)
    state, later, action = (made["views"][n] for n in ("state", "later", "action"))
    real, offset = made["present"]["state"], made["targets"]["offset"]
    for name in ("later", "action"):
        np.testing.assert_array_equal(made["present"][name], real)
    assert real.any() == (length >= 2) and not real.all()
    for view in (state, later, action):
        assert (view[~real] == 0).all() and (view[real] != 0).all()
    assert (later[real, 0] - state[real, 0] == offset[real]).all()
    np.testing.assert_array_equal(action[:, 0], -state[:, 0])
    if length >= 2:
        assert set(state[real, 0]) <= set(range(1, length))
        assert later[real, 0].max() <= length
    # The last state as a later one is as rare as its offsets, not where the rest ends.
    at_end = (later[real, 0] == length).mean() if real.any() else 0
    assert at_end == 1 if length == 2 else at_end < 0.7


def test_pairs_depend_on_the_generator_alone():
    example, views = episode(30), Later(8, 0.9, most=9, targets=("policy",))
    made, again, other = (views(example, np.random.default_rng(s)) for s in (4, 4, 5))
    for part in made:
        for name, value in made[part].items():
            np.testing.assert_array_equal(value, again[part][name])
    assert (made["targets"]["offset"] != other["targets"]["offset"]).any()
    assert made["views"]["state"].dtype == made["views"]["later"].dtype == np.float32
    assert made["targets"]["policy"] == 3 and made["targets"]["policy"].shape == ()
    renamed = Later(8, 0.9, most=9, names=("now", "then"), states="positions")
    same = renamed({"positions": example["states"]}, np.random.default_rng(4))
    assert list(same["views"]) == list(same["present"]) == ["now", "then"]
    np.testing.assert_array_equal(same["views"]["then"], made["views"]["later"])


@pytest.mark.parametrize("fewer", [0, 1])
def test_actions_are_those_of_the_first_states_of_their_type(rng, fewer):
    actions = np.arange(1, 12 - fewer)
    for given, dtype in ((actions, np.int64), (actions / 1.0, np.float32)):
        example = episode(11, actions=given)
        made = Later(50, 0.5, actions="actions")(example, rng)
        action = made["views"]["action"]
        assert action.shape == (50,) and action.dtype == dtype
        np.testing.assert_array_equal(action, made["views"]["state"][:, 0])


@dataclass(frozen=True)
class Episodes:
    """Episodes of these lengths; of one, a state is not a number."""

    lengths: tuple[int, ...]
    corrupt: int = -1
    targets = {}

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        length = self.lengths[index]
        example = episode(length, actions=np.zeros((max(length - 1, 0), 3)))
        if index == self.corrupt:
            example["states"][4, 1] = np.nan
        return example | {"policy": index}


def test_a_batch_of_episodes_of_unequal_lengths():
    lengths = (30, 2, 1, 7, 0, 12)
    views = Later(16, 0.8, actions="actions", targets=("policy",))
    read = dict(
        batches(Episodes(lengths), views, seed=3, batch_size=6, steps=4, start=0)
    )
    batch = read[2]
    shapes = {name: x.shape for name, x in batch["views"].items()}
    assert shapes == {"state": (6, 16, 2), "later": (6, 16, 2), "action": (6, 16, 3)}
    assert {x.dtype for x in batch["views"].values()} == {np.dtype(np.float32)}
    for mask in batch["present"].values():
        assert mask.shape == (6, 16) and mask.dtype == bool
    assert batch["targets"]["offset"].shape == (6, 16)
    assert batch["targets"]["offset"].dtype == np.int64
    np.testing.assert_array_equal(batch["targets"]["policy"], batch["index"])
    length = np.take(lengths, batch["index"])
    np.testing.assert_array_equal(batch["present"]["later"].any(1), length >= 2)
    gone = ~batch["present"]["later"]
    assert gone[length >= 2].any() and (batch["views"]["later"][gone] == 0).all()
    resumed = dict(
        batches(Episodes(lengths), views, seed=3, batch_size=6, steps=4, start=2)
    )
    np.testing.assert_array_equal(resumed[2]["views"]["later"], batch["views"]["later"])


def test_an_episode_that_is_not_finite_is_replaced_by_the_next():
    source, views = Episodes((9,) * 5, corrupt=2), Later(4, 0.5, targets=("policy",))
    ((_, batch),) = batches(source, views, seed=0, batch_size=5, steps=1)
    assert sorted(batch["index"]) == [0, 1, 3, 3, 4]
    assert np.isfinite(batch["views"]["state"]).all()


def test_the_share_of_lost_pairs_is_that_of_draws(rng):
    lengths = [0, 1, 2, 5, 40]
    for discount, most in ((0.9, None), (0.9, 4), (0.99, 30), (0.0, None)):
        lost = []
        for length in lengths:
            *_, real, _ = pairs(
                episode(length), rng, m=20_000, discount=discount, most=most
            )
            lost.append(1 - real.mean())
        share = lost_share(lengths, discount, most)
        # Five standard errors of the mean share of five episodes.
        near = 5 * 0.5 / np.sqrt(20_000 * len(lengths))
        assert np.mean(lost) == pytest.approx(share, abs=near)
        assert share == pytest.approx(
            np.mean([lost_share([length], discount, most) for length in lengths])
        )
    assert lost_share([1], 0.5) == 1 and lost_share([2], 0.5) == 0.5
    assert lost_share(np.array([200]), 1 - 3 / 200) == pytest.approx(1 / 3, abs=0.03)
    for wrong in ([], [3, -1]):
        with pytest.raises(InputError, match="the lengths of one or more episodes"):
            lost_share(wrong, 0.9)


@pytest.mark.parametrize("discount", [-0.1, 1.0, 1.5, float("nan"), "0.9"])
def test_a_discount_out_of_range_is_refused(rng, discount):
    for call in (
        lambda: Later(1, discount),
        lambda: offsets(rng, 1, discount),
        lambda: lost_share([5], discount),
    ):
        with pytest.raises(OutOfRange, match="discount="):
            call()


def test_numbers_and_names_out_of_range_are_refused(rng):
    for wrong in ({"m": 0}, {"most": 0}, {"most": 2.5}):
        with pytest.raises(OutOfRange):
            Later(**{"m": 1, "discount": 0.5} | wrong)
    for call in (lambda: offsets(rng, 1, 0.5, 0), lambda: lost_share([5], 0.5, 0)):
        with pytest.raises(OutOfRange, match="most=0"):
            call()
    for wrong, why in (
        ({"targets": "policy"}, "views.targets is a string"),
        ({"names": "state"}, "views.names is a string"),
        ({"names": ("state", "state")}, "two different names"),
        ({"names": ("state",)}, "two different names"),
        ({"names": ("state", "action")}, "neither 'action'"),
        ({"targets": ("offset",)}, "draw themselves"),
    ):
        with pytest.raises(InputError, match=why):
            Later(1, 0.5, **wrong)


@pytest.mark.parametrize(
    ("fields", "error", "why"),
    [
        ({"states": np.zeros(5)}, InputError, r"shape \(5,\), not \[t, d\]"),
        ({"states": np.float32(0)}, InputError, r"shape \(\), not \[t, d\]"),
        ({"states": np.zeros((5, 2, 2))}, InputError, r"shape \(5, 2, 2\), not"),
        ({"states": np.array([["a"]])}, InputError, "type <U1, not numbers"),
        ({"states": [[0.0], [np.nan]]}, CorruptRecord, "'states' is not .* at step 1"),
        ({"states": [[np.inf], [0.0]]}, CorruptRecord, "not finite at step 0"),
        ({"states": [[0.0], [0.0], [1e300]]}, CorruptRecord, "at step 2"),
        ({"actions": np.zeros((3, 1))}, InputError, "there are 5 states"),
        ({"actions": np.zeros((6, 1))}, InputError, "there are 5 states"),
        ({"actions": np.float32(0)}, InputError, "there are 5 states"),
        ({"actions": [0, 0, 0, np.nan]}, CorruptRecord, "'actions' .* at step 3"),
        ({"states": None}, InputError, "no field 'states'"),
        ({"actions": None}, InputError, "no field 'actions'"),
        ({"policy": None}, InputError, "no field 'policy'"),
    ],
)
def test_a_wrong_episode_is_refused(rng, fields, error, why):
    example = episode(5, actions=np.zeros((4, 1))) | fields
    example = {name: value for name, value in example.items() if value is not None}
    views = Later(2, 0.5, actions="actions", targets=("policy",))
    with pytest.raises(error, match=why):
        views(example, rng)


def test_an_untrusted_config_may_ask_for_later_states():
    spec = {"target": "polyview.data.later:Later", "m": 2, "discount": 0.5}
    assert build(spec, trusted=allow_list()) == Later(2, 0.5)
