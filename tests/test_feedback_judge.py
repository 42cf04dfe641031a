"""Judges, their labels on disk, and the audit, against slow references."""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats
from test_agents_llm import row_by_loops
from test_agents_weights import PAIRS, WORDS

from agents import judge as command
from agents.environments import captions
from agents.feedback import audit, labels, pairs, prompts, reading
from agents.feedback import judge as judging
from agents.feedback.judge import Asked, Embedding, Oracle, Scalar, Shorter
from agents.llm import tokenizer, vocabulary
from agents.llm.llama import Body
from polyview import devices
from polyview.data.prepare import records
from polyview.errors import InputError, OutOfRange
from polyview.model import Model, split_module

SIZES = {"layers": 1, "width": 24, "heads": 4, "kv_heads": 2, "hidden": 40}
WHOLE = [" A", " B"]  # tokens of more than a letter
TEXT = "".join(map(chr, range(32, 127))) + "\n"


class Letters:
    """Stands in for a tokenizer: a token for each letter, and for each of `WHOLE`."""

    def encode(self, text: str) -> list[int]:
        if text in WHOLE[:2]:
            return [len(TEXT) + WHOLE.index(text)]
        return [TEXT.index(letter) for letter in text]


def body(*, rngs):
    return Body(**SIZES, vocabulary=len(TEXT) + len(WHOLE), rngs=rngs)


ASKED = [
    *(prompts.comparison(key, "go", "near", "far") for key in prompts.WORDINGS),
    prompts.rating("go", "near"),
]


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """One short example each, and few sizes: little to read and to compile."""
    for name, wording in {**prompts.WORDINGS, "RATED": prompts.RATED}.items():
        answer = wording.examples[-1][-1]
        short = wording._replace(examples=[("go", "near", "far", answer)])
        if name == "RATED":
            monkeypatch.setattr(prompts, name, short)
        else:
            monkeypatch.setitem(prompts.WORDINGS, name, short)
    monkeypatch.setattr(reading, "_BUCKET", 64)
    monkeypatch.setattr(audit, "_DRAWS", 10)


@pytest.fixture(scope="module")
def reader() -> reading.Reader:
    made = nnx.eval_shape(lambda: reading.Reader(body=body, rngs=nnx.Rngs(0)))
    graph, shapes = nnx.split(made)
    drawn = np.random.default_rng(0)
    return nnx.merge(  # by numpy: JAX compiles a program for each array
        graph,
        jax.tree.map(lambda x: jnp.float32(drawn.normal(0, 0.4, x.shape)), shapes),
    )


@pytest.fixture(scope="module")
def language(reader) -> reading.Language:
    """A tiny random body that reads, on one device."""
    with pytest.MonkeyPatch.context() as patch:
        one = partial(jax.make_mesh, devices=jax.devices()[:1])
        patch.setattr(jax, "device_count", lambda: 1)
        patch.setattr(jax, "make_mesh", one)
        model = Model(split_module(reader), devices.replicated(devices.make_mesh()))
    return reading.Language(model, "0" * 64, Letters(), 1000)


def alone(reader, tokens: list[int]) -> np.ndarray:
    """Hidden states of one text, by loops over its positions: float64[t, width]."""
    return row_by_loops(reader.body, np.asarray(reader.body.embedding[...])[tokens])


def logits(reader, prompt: prompts.Prompt, choices: list[str]) -> np.ndarray:
    """Logits of answers to a whole prompt."""
    last = alone(reader, Letters().encode(prompt.text))[-1]
    table = np.asarray(reader.body.embedding[...])
    return np.array([table[Letters().encode(choice)[0]] @ last for choice in choices])


def pair_of(number: int, values=(0.0, -1.0), goal="go to the red ball", **changed):
    return {
        "pair": number,
        "instruction": goal,
        "task": 0,
        "caption_1": f"a ball {number % 7}",
        "caption_2": f"a key {number % 5} off",
        "value": np.array(values, np.float64),
        "episode": np.array([number, number]),
        "time": np.array([3, 0]),
        "grid": np.zeros((2, 7, 7, 3), np.uint8),
        **changed,
    }


def drawn_pairs(count: int, seed: int = 0) -> list[dict]:
    random = np.random.default_rng(seed)
    goals = ["go to the red ball", "go to a key", "open the door"]
    return [pair_of(n, random.integers(-9, 0, 2), goals[n % 3]) for n in range(count)]


def labelled(found, made) -> labels.Labels:
    ids = np.array([pair["pair"] for pair in made])
    first, second = np.array(found, float).T
    given = np.full(len(ids), labels.SCORED)
    return labels.Labels("x", {}, ids, first, second, given)


def test_answers_equal_reading_the_whole_prompt(language, reader):
    """With a shared beginning, in batches, with padding, each prompt once."""
    asked = [
        prompts.comparison("default", f"go {n}", "near" * n, "far") for n in (1, 12)
    ]
    answers = reading.Answers(language, [*asked, asked[0]], prompts.LETTERS)
    assert len(answers) == 2
    for prompt in asked[::-1]:
        expected = logits(reader, prompt, [" A", " B"])
        np.testing.assert_allclose(answers[prompt], expected, atol=1e-5)


def test_a_language_model_is_asked_in_both_orders(language, reader):
    """Evidence is for the pair's first caption, wherever it is shown."""
    made = drawn_pairs(2)
    ask = Asked(language, {"kind": "model"})(made)
    for pair in made[::-1]:
        goal, one, other = (pair[k] for k in ("instruction", "caption_1", "caption_2"))
        a, b = logits(
            reader,
            prompts.comparison("default", goal, one, other),
            [" A", " B"],
        )
        first, second = ask(pair)
        assert first == pytest.approx(a - b, abs=1e-5) and abs(first) > 1e-3
        a, b = logits(
            reader, prompts.comparison("default", goal, other, one), [" A", " B"]
        )
        assert second == pytest.approx(b - a, abs=1e-5)


def test_answers_do_not_depend_on_which_are_asked_for(language):
    """To the last bit: so an interrupted file goes on as it would have."""
    made = drawn_pairs(9)
    judges = Asked(language, {}), Scalar(language, {}), Embedding(language, {})
    for one in (*judges, Oracle(flip=0.3, ties=0.2), Shorter()):
        ask = one(made)
        every = [ask(pair) for pair in made]
        ask = one(made)
        assert [ask(pair) for pair in made[::-4]] == every[::-4]


def test_a_shuffled_goal_is_always_another(language, monkeypatch):
    made, seen = drawn_pairs(40), []
    keep = prompts.comparison

    def comparison(wording, goal, a, b):
        seen.append(goal)
        return keep(wording, goal, a, b)

    monkeypatch.setattr(prompts, "comparison", comparison)
    Asked(language, {}, shuffled=True, seed=1)(made)
    own = [pair["instruction"] for pair in made for _ in range(2)]
    assert len(seen) == 80 and set(seen) == set(own)
    assert not any(map(str.__eq__, seen, own))
    with pytest.raises(InputError, match="none to shuffle"):
        Asked(language, {}, shuffled=True)([pair_of(0), pair_of(1)])


def test_ratings_are_expected_digits(language, reader):
    made = drawn_pairs(1)
    ask = Scalar(language, {})(made)
    for pair in made:
        rated = []
        for name in ("caption_1", "caption_2"):
            prompt = prompts.rating(pair["instruction"], pair[name])
            shares = np.exp(logits(reader, prompt, [*"0123456789"]))
            rated.append(sum(n * p for n, p in enumerate(shares / shares.sum())))
        first, second = ask(pair)
        assert first == second == pytest.approx(rated[0] - rated[1], abs=1e-5)


def test_embeddings_compare_mean_states_with_the_goal(language, reader):
    def mean(text):
        state = alone(reader, Letters().encode(text)).mean(0)
        return state / np.linalg.norm(state)

    (pair,) = made = drawn_pairs(1)
    goal, nothing = mean(pair["instruction"]), mean("N/A")
    one, other = mean(pair["caption_1"]), mean(pair["caption_2"])
    expected = one @ goal - one @ nothing - (other @ goal - other @ nothing)
    assert Embedding(language, {})(made)(pair)[0] == pytest.approx(expected, abs=1e-5)


def test_the_shorter_caption_is_preferred():
    pair = pair_of(0, caption_1="near", caption_2="farther")
    assert Shorter()([])(pair) == (3.0, 3.0)


def test_what_cannot_be_asked_is_refused(language):
    with pytest.raises(InputError, match="empty goal"):
        Asked(language, {})([pair_of(0, goal=" ")])
    with pytest.raises(InputError, match="empty goal"):
        Scalar(language, {})([pair_of(0, goal="")])
    Asked(language, {}, "explore")([pair_of(0, goal="")])  # it names no goal
    with pytest.raises(InputError, match="did you mean 'explore'"):
        Asked(language, {}, "explor")([pair_of(0)])
    with pytest.raises(InputError, match="'go' is 2 tokens"):
        reading.Answers(language, [], ["go"])
    long = pair_of(0, caption_1="far " * 300)
    for one in (Asked, Scalar, Embedding):
        with pytest.raises(InputError, match=r"context\s+has 1000: shorten"):
            one(language, {})([long])


def test_a_changed_text_needs_another_version():
    """Labels name the version of what was asked: set it, then this digest."""
    digest = hashlib.sha256(repr([ASKED, prompts.NOTHING]).encode()).hexdigest()[:8]
    assert (prompts.VERSION, digest) == ("2", "529413b7")


@pytest.mark.parametrize("split", ["smollm", "llama-bpe", "gpt-2"])
def test_what_is_read_apart_has_the_tokens_of_the_whole(split):
    """Also by tokenizers that merge newlines, which they do unless a word follows."""
    merges = [" ".join(pair) for pair in (*PAIRS, "ĊĊ")]
    about = {"model": "gpt2", "split": split, "where": ""}
    made = vocabulary.of_lists([*WORDS, "ĊĊ"], merges, [], **about)
    words = tokenizer.of_text(made, "")

    def encode(text):
        return words.encode(text).ids

    assert len(encode("\n\n")) == 1
    for prompt in ASKED:
        assert encode(prompt.shared) + encode(prompt.own) == encode(prompt.text)


def test_an_oracle_errs_as_it_is_told():
    made = drawn_pairs(3000)
    truth = np.array([np.sign(p["value"][0] - p["value"][1]) for p in made])
    plain = np.array([Oracle()(made)(pair) for pair in made])
    np.testing.assert_array_equal(plain, np.stack([truth, truth], 1))
    flipped = np.array([Oracle(flip=0.2, ties=0.1)(made)(pair) for pair in made])[:, 0]
    differ = truth != 0
    assert np.mean(flipped[differ] == 0) == pytest.approx(0.1, abs=0.02)
    decided = differ & (flipped != 0)
    wrong = np.mean(flipped[decided] != truth[decided])
    assert wrong == pytest.approx(0.2, abs=0.02)
    # More flips turn these and others: accuracy falls for each set of pairs.
    more = np.array([Oracle(flip=0.4)(made)(pair) for pair in made])[:, 0]
    assert np.all(
        more[decided & (flipped != truth)] != truth[decided & (flipped != truth)]
    )
    other = np.array([Oracle(flip=0.2, seed=1)(made)(pair) for pair in made])[:, 0]
    assert np.mean(other != flipped) > 0.2


def test_both_orders_remove_a_bias_of_position():
    made = drawn_pairs(200)
    bias = math.log(9)
    plain = labelled([Oracle(flip=0.1)(made)(pair) for pair in made], made)
    biased = [Oracle(flip=0.1, bias=bias)(made)(pair) for pair in made]
    found = labelled(biased, made)
    np.testing.assert_allclose(found.scores(), plain.scores(), atol=1e-12)
    assert labels.preference(found) == labels.preference(plain)
    one_order = labels.preference(found, orders="first")
    assert set(one_order.values()) == {1.0}
    report = audit.audit(made, found)
    assert report["first_answers"] == 1 and report["agreement"] == 0
    assert report["accuracy"] == audit.audit(made, plain)["accuracy"]
    assert (
        report["accuracy_one_order"]["share"] < 0.6 < 0.8 < report["accuracy"]["share"]
    )


def test_oracles_refuse_what_they_cannot_know():
    with pytest.raises(InputError, match="pair 3 has the values 0.0 and nan"):
        Oracle()([])(pair_of(3, (0.0, math.nan)))
    for wrong in ({"flip": 1.1}, {"ties": -0.1}, {"bias": math.nan}, {"seed": -1}):
        with pytest.raises(OutOfRange):
            Oracle(**wrong)


HEADER = {"pairs": "d", "judge": {"kind": "oracle"}, "model": None, "prompt": None}


def written(path: Path, *lines: str, header=HEADER) -> Path:
    path.write_text("".join(f"{line}\n" for line in (json.dumps(header), *lines)))
    return path


LINES = [
    '{"pair": 4, "first": 2.0, "second": 1.0}',
    '{"pair": 5, "first": -3.0, "second": 1.0}',
    '{"pair": 6, "first": 0.25, "second": -0.05}',
    '{"pair": 7, "label": 0}',
    '{"pair": 8, "label": 1}',
    '{"pair": 9, "label": 2}',
    '{"pair": 10, "label": 3}',
    '{"pair": 7, "label": 1}',
    '{"pair": 4, "first": 2.0, "second": 2.0}',
    '{"pair": 11, "first": 4.0, "second": -4.0}',
]


def test_preferences_equal_their_definition(tmp_path):
    """Ties by a quantile, unknown left out, duplicates kept, opposite ones counted."""
    found = labels.read(written(tmp_path / "a.jsonl", *LINES), "d")
    assert found.header == HEADER and found.ids.tolist()[:3] == [4, 5, 6]
    np.testing.assert_allclose(found.scores()[:3], [1.5, -1.0, 0.1])
    sizes = sorted([1.5, 1.0, 0.1, 2.0, 0.0])
    for quantile in (0.0, 0.2, 0.5, 0.6):
        at = quantile * 4  # of five sizes, linearly
        below, share = int(at), at - int(at)
        least = sizes[below] + share * (sizes[min(below + 1, 4)] - sizes[below])
        expected = {4: 1.0, 5: 0.0, 6: 1.0, 7: 0.5, 8: 0.0, 9: 0.5, 11: 0.5}
        for pair, size in ((5, 1.0), (6, 0.1)):
            expected[pair] = 0.5 if size < least else expected[pair]
        expected[4] = (float(1.5 >= least) + 1 + 0.5 * (1.5 < least)) / 2
        assert labels.preference(found, quantile) == expected
    assert labels.contradictions(found) == 1
    # The first question alone has other scores, and another quantile.
    first = labels.preference(found, 0.5, orders="first")
    assert (first[4], first[5], first[6], first[11]) == (1.0, 0.0, 0.5, 1.0)
    some = labels.preference(found, 0.5, calibration=[5])
    assert (some[5], some[6]) == (0.0, 0.5)
    with pytest.raises(InputError, match="calibrate ties is labelled"):
        labels.preference(found, calibration=[99])
    for quantile in (-0.1, 1.5, math.nan):
        with pytest.raises(OutOfRange, match="tie_quantile"):
            labels.preference(found, quantile)
    with pytest.raises(InputError, match="orders='last'"):
        labels.preference(found, orders="last")


def test_labels_that_prefer_nothing_are_refused(tmp_path):
    ties = written(tmp_path / "a.jsonl", LINES[5], LINES[6], LINES[9])
    with pytest.raises(InputError, match="all labels are ties or unknown"):
        labels.preference(labels.read(ties))
    # Nor those of which a pair has two, one against the other.
    both = [f'{{"pair": {n}, "label": {label}}}' for n in (3, 5) for label in (0, 1)]
    cancelling = labels.read(written(tmp_path / "c.jsonl", *both, LINES[5]))
    for orders in labels.ORDERS:
        with pytest.raises(InputError, match="cancel one another: they prefer nothing"):
            labels.preference(cancelling, orders=orders)
    one = labels.read(written(tmp_path / "d.jsonl", *both, LINES[3]))
    with pytest.raises(InputError, match="prefer the first observation"):
        labels.preference(one)
    for line, which in ((LINES[3], "first"), (LINES[4], "second")):
        one = labels.read(written(tmp_path / "b.jsonl", line, LINES[5]))
        with pytest.raises(InputError, match=f"prefer the {which} observation"):
            labels.preference(one)
        assert len(labels.preference(one, orders="first")) == 2


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("", "it is not JSON"),
        ("[1]", "no object of JSON"),
        ('{"first": 1, "second": 2}', "its pair is None"),
        ('{"pair": true, "label": 1}', "its pair is True"),
        ('{"pair": -1, "label": 1}', "its pair is -1"),
        ('{"pair": 1, "label": 4}', "its label is 4"),
        ('{"pair": 1, "label": true}', "its label is True"),
        ('{"pair": 1, "label": 0, "first": 1}', "give pair, first and"),
        ('{"pair": 1, "first": 1}', "give pair, first and"),
        ('{"pair": 1, "first": NaN, "second": 1}', "first is nan"),
        ('{"pair": 1, "first": 1, "second": 1e999}', "second is inf"),
        ('{"pair": 1, "first": "1", "second": 1}', "first is '1'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, wrong):
    path = written(tmp_path / "a.jsonl", LINES[0], line, LINES[1])
    with pytest.raises(InputError, match=rf"line 3: .*{wrong}"):
        labels.read(path)


def test_labels_of_others_are_refused(tmp_path):
    path = written(tmp_path / "a.jsonl", LINES[0])
    with pytest.raises(InputError, match="of other pairs: their digest is d, and.* e"):
        labels.read(path, "e")
    for key, value in (("judge", {}), ("model", "m"), ("prompt", "p")):
        with pytest.raises(InputError, match=f"labels of {key} .*another --name"):
            labels.begin(path, HEADER | {key: value})
    assert labels.begin(path, HEADER) == {4}
    for header in (
        {},
        {"pairs": 3},
        {"pairs": "d", "judge": 3},
        {"pairs": "d", "x": 1},
    ):
        with pytest.raises(InputError, match="line 1: "):
            labels.read(written(path, header=header))
    assert labels.read(written(path, header={"pairs": "d"})).header["model"] is None
    path.write_bytes(path.read_bytes() + b'{"pair')
    with pytest.raises(InputError, match="line 2: it is cut off"):
        labels.read(path)
    with pytest.raises(InputError, match="there are no labels"):
        labels.read(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="evidence on pair 2 is nan"):
        labels.line(2, math.nan, 1.0)
    with pytest.raises(InputError, match="is no name of labels"):
        labels.path_of(tmp_path, "../a")


def test_the_audit_equals_loops(rng):
    """Shares, halves, groups, ranks with ties; pairs of unknown value left out."""
    made = drawn_pairs(60)
    for pair in made:
        pair["caption_1"] = "You see a locked red door 2 steps ahead."
        pair["caption_2"] = "You do not see a key. You carry a green key."
    for number in (3, 7):
        made[number]["value"][1] = math.nan
    for number in (10, 11, 12):
        made[number]["caption_1"] = "You see no objects."
    said = np.round(rng.normal(size=(60, 2)), 1)
    said[5] = [0.0, 0.0]
    found = audit.audit(made, labelled(said, made))
    assert found["pairs"] == 60 and found["valued"] == 58
    answers = [s > 0 for s in said[:, 0]] + [s < 0 for s in said[:, 1]]
    halves = np.sum(said == 0) / 2
    assert found["first_answers"] == pytest.approx((sum(answers) + halves) / 120)
    same = [np.sign(a) == np.sign(b) for a, b in said]
    assert found["agreement"] == pytest.approx(np.mean(same))
    rows = [
        (abs(sum(s)) / 2, sum(s) / 2, p["value"][0] - p["value"][1], n)
        for n, (p, s) in enumerate(zip(made, said, strict=True))
        if np.isfinite(p["value"]).all()
    ]

    def share(rows):
        right = [s * g > 0 for _, s, g, _ in rows if s * g]
        return pytest.approx(np.mean(right)), len(right)

    def of(own):
        return own["share"], own["pairs"]

    assert of(found["accuracy"]) == share(rows)
    low, high = found["accuracy"]["interval"]
    assert low < found["accuracy"]["share"] < high
    ordered = sorted(rows, key=lambda row: -row[0])
    assert of(found["by_confidence"]["halves"][0]) == share(ordered[:29])
    assert of(found["by_confidence"]["quarters"][3]) == share(ordered[-14:])
    hidden = [row for row in rows if row[3] in (10, 11, 12)]
    assert of(found["by_seen"]["one"]) == share(hidden)
    assert found["by_seen"]["neither"]["share"] is None
    _, scores, gaps, _ = map(np.array, zip(*rows, strict=True))
    expected = stats.spearmanr(scores, gaps).statistic
    assert found["spearman"]["value"] == pytest.approx(expected)
    assert (
        found["spearman"]["interval"][0] < expected < found["spearman"]["interval"][1]
    )
    expected = stats.kendalltau(scores, gaps).statistic
    assert found["kendall"]["value"] == pytest.approx(expected)
    json.dumps(found, allow_nan=False)
    assert "58 pairs" not in audit.told(found) and "60 pairs" in audit.told(found)


def test_what_a_caption_says_is_not_seen_is_not_counted_as_seen():
    """Captions of the goal alone, of a view with the goal, with others, and empty."""
    goal, views = "go to the red ball", np.zeros((3, 7, 7, 3), np.uint8)
    views[0, 3, 4], views[1, 2, 2] = (6, 0, 0), (5, 1, 0)
    told = [captions.babyai(view, goal, goal_only=True) for view in views]
    plain = [captions.babyai(view) for view in views]
    assert "not see a red ball" in told[1] and "green key" in plain[1]
    for found, seen in ((told, (4, 4, 1)), (plain, (1, 4, 4))):
        made = [
            pair_of(3 * n + k, caption_1=found[n], caption_2=found[k])
            for n in range(3)
            for k in range(3)
        ]
        groups = audit.audit(made, labelled([[1, 1]] * 9, made))["by_seen"]
        counts = [groups[name]["pairs"] for name in ("neither", "one", "both")]
        assert tuple(counts) == seen


def test_an_audit_without_values_or_evidence_says_so():
    made = [pair_of(n, (math.nan, math.nan)) for n in range(3)]
    found = audit.audit(made, labelled([[1, 1]] * 3, made))
    assert audit.told(found).endswith("no true values: there is no accuracy")
    same = [pair_of(n) for n in range(3)]
    found = audit.audit(same, labelled([[1, 1]] * 3, same))
    assert found["spearman"] == {"value": None, "interval": None}
    assert "accuracy 1.000" in audit.told(found)


@pytest.fixture
def made_pairs(tmp_path, monkeypatch) -> Path:
    """A data folder with the pairs `some`: 12, 8 and 4 of them."""
    monkeypatch.setenv("POLYVIEW_DATA", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", os.devnull)
    every = iter(drawn_pairs(24))
    records.write(
        tmp_path / "some",
        {
            split: list(itertools.islice(every, count))
            for split, count in (("train", 12), ("validation", 8), ("test", 4))
        },
        version="1",
        targets={},
        source="a test",
        licence="none",
        provenance={
            "holds": "pairs",
            "world": "babyai",
            "tasks": ["babyai:GoToObj"],
            "settings": {},
            "versions": {},
            "observations": {"grid": [7, 7, 3]},
            "counts": {},
        },
    )
    return tmp_path / "some"


def run(*arguments, judged="oracle"):
    command.main(["--pairs", "some", "--judge", judged, *map(str, arguments)])


@pytest.mark.parametrize("judged", ["oracle", "model"])
def test_an_interrupted_file_goes_on_byte_for_byte(
    made_pairs, language, monkeypatch, judged, capsys
):
    monkeypatch.setattr(reading, "of_model", lambda name, layers: language)
    asked = ["--flip", 0.2] if judged == "oracle" else []
    path = made_pairs / "labels" / "a.jsonl"
    run("--name", "a", *asked, judged=judged)
    whole = path.read_bytes()
    assert len(whole.splitlines()) == 21
    told = capsys.readouterr().out
    assert "20 pairs" in told and "pairs/s" in told
    report = json.loads(path.with_suffix(".json").read_text())
    assert (
        report["splits"]["validation"]["pairs"] == 8 and report["all"]["valued"] == 20
    )
    run("--name", "a", *asked, judged=judged)  # nothing is left to do
    assert path.read_bytes() == whole
    for cut in (20, len(whole) // 2, len(whole) - 1)[judged == "model" :]:
        path.write_bytes(whole[:cut])
        run("--name", "a", *asked, judged=judged)
        assert path.read_bytes() == whole
    # Killed while it labels, and a part first: of each split, then the rest.
    path.unlink()
    keep, count = labels.line, itertools.count()

    def killed(*line):
        if next(count) == 9:
            raise KeyboardInterrupt
        return keep(*line)

    monkeypatch.setattr(labels, "line", killed)
    with pytest.raises(KeyboardInterrupt):
        run("--name", "a", *asked, judged=judged)
    assert len(path.read_bytes().splitlines()) == 10
    run("--name", "a", *asked, judged=judged)
    assert path.read_bytes() == whole
    path.unlink()
    run("--name", "a", "--n", 7, *asked, judged=judged)
    assert len(path.read_bytes().splitlines()) == 15
    run("--name", "a", *asked, judged=judged)
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_a_report_keeps_what_earlier_commands_have_labelled(made_pairs, capsys):
    path = made_pairs / "labels" / "oracle.json"
    run("--split", "test", "--n", 3)
    run("--split", "validation")
    capsys.readouterr()
    run("--split", "train")
    assert capsys.readouterr().out.partition(": ")[2].startswith("12 pairs, ")
    report = json.loads(path.read_text())
    counts = {split: own["pairs"] for split, own in report["splits"].items()}
    assert counts == {"train": 12, "validation": 8, "test": 3}
    assert report["all"]["pairs"] == 23
    run("--split", "validation")  # nothing is left to do
    again = json.loads(path.read_text())
    assert again["splits"] == report["splits"] and again["all"] == report["all"]


def test_what_a_model_cannot_be_asked_leaves_nothing_and_done_pairs_are_not_read(
    made_pairs, language, monkeypatch
):
    narrow = dataclasses.replace(language, context=9)
    monkeypatch.setattr(reading, "of_model", lambda name, layers: narrow)
    with pytest.raises(InputError, match="shorten"):
        run("--name", "a", judged="model")
    with pytest.raises(InputError, match="--goal nonsense"):
        run("--name", "a", "--goal", "nonsense", judged="model")
    assert not (made_pairs / "labels").exists()
    monkeypatch.setattr(reading, "of_model", lambda name, layers: language)
    run("--name", "a", judged="embedding")
    read = []
    monkeypatch.setattr(judging, "mean_states", lambda *texts: read.append(texts))
    run("--name", "a", judged="embedding")
    assert not read


def test_labels_of_a_user_are_checked_and_copied(made_pairs, tmp_path):
    digest = pairs.describe("some")["digest"]
    lines = [
        '{"pair": 0, "label": 0}',
        '{"pair": 1, "label": 3}',
        '{"pair": 0, "label": 1}',
    ]
    mine = written(tmp_path / "mine.jsonl", *lines, header={"pairs": digest})
    run(judged=str(mine))
    assert (made_pairs / "labels" / "mine.jsonl").read_bytes() == mine.read_bytes()
    report = json.loads((made_pairs / "labels" / "mine.json").read_text())["all"]
    assert (report["pairs"], report["unknown"], report["contradictions"]) == (2, 1, 1)
    written(mine, *lines[:1], header={"pairs": digest})
    with pytest.raises(InputError, match="holds other labels"):
        run(judged=str(mine))
    written(mine, '{"pair": 24, "label": 0}', header={"pairs": digest})
    with pytest.raises(InputError, match="labels of pair 24, which some lacks"):
        run("--name", "b", judged=str(mine))
    written(mine, *lines, header={"pairs": "0" * 64})
    with pytest.raises(InputError, match=f"and that of these is {digest}"):
        run("--name", "b", judged=str(mine))
    assert not (made_pairs / "labels" / "b.jsonl").exists()


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        ({}, "has no body of a language model"),
        ({"model": None}, "has no body of a language model"),
        ({"model": {"partial": "agents.feedback.distil:Sought"}}, "has no body of a"),
        ({"model": {"body": {"partial": "polyview.nn.resnet:ResNet"}}}, "has no body"),
        ({"model": {"body": {"layers": 1}}, "views": None}, "views.text is no token"),
        ({"model": {"body": {"layers": 1}}, "views": {"text": "x"}}, "is no tokenizer"),
    ],
)
def test_runs_of_another_kind_are_told_in_a_line(made_pairs, tmp_path, config, wrong):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=wrong) as error:
        run("--run", tmp_path / "run", judged="model")
    assert str(error.value).count("\n") <= 1
    assert not re.search(r"\w+Error|object", str(error.value))


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"judged": "oracel"}, "did you mean 'oracle'"),
        ({"judged": "none.jsonl"}, "there are no labels"),
        (["--goal", "explore"], "--goal only applies to --judge model"),
        (["--layers", 3], "--layers only applies"),
        (["--split", "training"], "did you mean 'train'"),
        (["--n", 0], "--n is 0"),
        (["--flip", 2], "flip=2.0"),
        (["--name", "a/b"], "is no name of labels"),
    ],
)
def test_the_command_refuses(made_pairs, arguments, wrong):
    own, more = ([], arguments) if isinstance(arguments, dict) else (arguments, {})
    with pytest.raises(InputError, match=wrong):
        run(*own, **more)
    assert not (made_pairs / "labels").exists()
