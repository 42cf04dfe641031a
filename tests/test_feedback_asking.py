"""A language model acts, foresees and explains, and is tuned on texts of a world."""

import json
import math
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_agents_llm import row_by_loops
from test_agents_weights import gguf_file, put

from agents import ask, parts
from agents.data import Context
from agents.demonstrate import demonstrate
from agents.environments.captioned import Captioned, Moves, Permuted
from agents.environments.captions import captioner
from agents.environments.worlds import world
from agents.feedback import probes, texts
from agents.feedback.tuning import Answered, AnswerLoss, Perplexity, paragraphs
from agents.feedback.walks import Moment, Walk
from agents.llm import prompted as llm_prompted
from agents.llm.llama import Body
from agents.llm.prompted import Asked, Prompted, prompted
from agents.llm.running import language_model, of_model, of_run
from agents.llm.tokenizer import Tokenizer
from agents.playing import Lane
from polyview.config.file import load_config
from polyview.config.spec import build
from polyview.errors import InputError
from polyview.model import merge_module
from polyview.rl.aggregates import success_interval
from polyview.rl.environment import Outcome
from polyview.training.train import train
from polyview.training.trainer import Trainer

pytest.importorskip("minigrid")

SIZES = {"layers": 2, "width": 24, "heads": 4, "kv_heads": 2, "hidden": 40}
STRINGS = [[5, 6], [5], [5, 7, 9], [8], [5, 7, 6]]  # some begin others
END = 2


def body(*, rngs):
    return Body(**SIZES, vocabulary=40, theta=100.0, rngs=rngs)


@pytest.fixture(scope="module")
def small():
    """A model that is asked for one of `STRINGS`."""
    given = {"body": body, "strings": STRINGS, "end": END}
    made = nnx.eval_shape(lambda: Prompted(**given, rngs=nnx.Rngs(0)))
    graph, shapes = nnx.split(made)
    drawn = np.random.default_rng(0)
    return nnx.merge(  # by numpy: JAX compiles a program for each array
        graph,
        jax.tree.map(lambda x: jnp.float32(drawn.normal(0, 0.4, x.shape)), shapes),
    )


def log_prob_by_loops(scores_of, prompt):
    """log p of each string: one pass a prefix, softmax over what may follow it.

    scores_of: the scores of a vocabulary after a text.
    """
    whole = [tuple(string) for string in STRINGS]
    found = []
    for string in whole:
        path = list(string)
        if any(len(one) > len(path) and one[: len(path)] == string for one in whole):
            path.append(END)
        total = 0.0
        for depth, token in enumerate(path):
            before = tuple(path[:depth])
            follow = {
                one[depth] if len(one) > depth else END
                for one in whole
                if one[:depth] == before
            }
            scores = scores_of([*prompt, *before])
            total -= math.log(sum(math.exp(scores[x] - scores[token]) for x in follow))
        found.append(total)
    return found


def test_answers_are_scored_in_one_pass_as_each_by_itself(small, rng):
    prompts = [rng.integers(0, 40, length).tolist() for length in (1, 3, 6)]
    text = np.full((3, 8), -1, np.int32)
    for row, prompt in enumerate(prompts):
        text[row, : len(prompt)] = prompt
    found = jax.jit(lambda rows: small.log_prob(rows))(text)
    np.testing.assert_allclose(np.exp(found).sum(1), 1, rtol=1e-5)

    table = np.asarray(small.body.embedding[...], np.float64)

    def scores_of(tokens):
        return table @ row_by_loops(small.body, table[tokens])[-1]

    for row, prompt in enumerate(prompts):
        loops = log_prob_by_loops(scores_of, prompt)
        np.testing.assert_allclose(found[row], loops, rtol=2e-5, atol=1e-6)


def test_a_prompt_that_is_too_long_for_the_body_is_refused(small, monkeypatch):
    monkeypatch.setattr(small.body, "context", 10)
    rows = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    assert jax.eval_shape(lambda x: small.log_prob(x), rows).shape == (1, 5)
    longer = jax.ShapeDtypeStruct((1, 9), jnp.int32)
    with pytest.raises(InputError, match="context of 10"):
        jax.eval_shape(lambda x: small.log_prob(x), longer)


class Letters:
    """A token for each letter."""

    def encode(self, text):
        return [ord(letter) for letter in text]

    def rows(self, texts, length):
        tokens, real = np.zeros((len(texts), length), np.int32), np.zeros(length, bool)
        for row, text in enumerate(texts):
            tokens[row, : len(text)], real[: len(text)] = self.encode(text), True
        return tokens, np.stack([real] * len(texts))


class Says:
    """Stands in for `Prompted`: log p of answers is a function of the prompt."""

    def __init__(self, function):
        self.function, self.read = function, []

    def call(self, method, text):
        assert method == "log_prob"
        told = ["".join(map(chr, row[row >= 0])) for row in text]
        self.read += [one for one in told if one != "\0"]
        return np.array([self.function(one) for one in told], np.float32)


def test_each_prompt_is_read_once_and_what_is_said_anyway_is_taken_away():
    model = Says(lambda told: [len(told), 2 * len(told)])
    asked = Asked(model, Letters(), blank="none")
    prompts = ["a" * 40, "b", "a" * 40, *(f"c{n}" for n in range(20))]
    found = asked.scores(prompts)
    assert found.tolist() == [[len(p) - 4, 2 * len(p) - 8] for p in prompts]
    assert asked.scores(["b"]).tolist() == [[-3, -6]]
    assert sorted(model.read) == sorted({*prompts, "none"})
    assert asked.distinct == len(model.read)
    raw = Asked(model, Letters()).scores(["none"])
    assert raw.tolist() == [[4, 8]]
    with pytest.raises(InputError, match="empty"):
        asked.scores([""])


def prompt_of(goal, caption):
    return f"{goal}|{caption}"


def captioned(level="GoToObj"):
    name = f"babyai:{level}"
    return Captioned(world(name), captioner(name), prompt_of)


def test_a_model_acts_on_the_caption_and_the_goal_of_each_step():
    """One that reads where the object is, and goes there, succeeds."""

    def next_action(told):
        goal, _, seen = told.partition("|")
        if "right in front of you" in seen.split("A wall")[0]:
            best = 6
        elif "ahead" in seen and "A wall" not in seen:
            best = 2
        elif "to the left" in seen:
            best = 0
        else:
            best = 1
        assert "go to" in goal or told in ("\0", "N/A|N/A")
        return [float(n == best) for n in range(7)]

    model = Says(next_action)
    rooms = [captioned() for _ in range(3)]
    left = iter(range(6))
    lanes = [Lane(room, left, 40) for room in rooms]
    views = Context(["grid"], text=Letters(), length=400)
    found = probes.played(
        lanes, Asked(model, Letters(), prompt_of(*["N/A"] * 2)), views
    )
    assert found["rate"] == 1 and found["episodes"] == 6
    assert len(model.read) == len(set(model.read))
    assert found["interval"] == list(success_interval(6, 6))
    seeds = range(20)
    chance = probes.by_chance(world("babyai:GoToObj"), seeds, 10)["rate"]
    expert = probes.by_expert(world("babyai:GoToObj"), seeds, 64)["rate"]
    assert chance < 0.6 and expert == 1


def test_a_captioned_world_is_the_world_itself_beyond_an_episode(rng):
    plain, room = world("babyai:GoToObj"), captioned()
    caption = captioner("babyai:GoToObj")
    begun = plain.reset(5)
    asked = room.reset(5)
    ended = []
    plain.on_end = lambda: ended.append(caption(plain))
    room.on_end = lambda: ended.append(room.arrived["instruction"])
    for _ in range(120):
        assert asked["instruction"] == prompt_of(
            begun["instruction"], caption_of(begun)
        )
        np.testing.assert_array_equal(asked["grid"], begun["grid"])
        action = int(rng.integers(7))
        here, there = plain.step(action), room.step(action)
        assert here[1:] == there[1:] and plain.success == room.success
        arrived = prompt_of(plain.arrived["instruction"], caption(plain))
        assert room.arrived["instruction"] == arrived
        begun, asked = here.observation, there.observation
    np.testing.assert_array_equal(plain.fingerprint(), room.fingerprint())
    assert ended and [one.partition("|")[2] for one in ended[1::2]] == ended[::2]


def caption_of(observation):
    room = captioned()
    room.arrived = observation
    return captioner("babyai:GoToObj")(room)


@pytest.mark.parametrize("level", ["GoToObj", "UnlockPickup"])
def test_permuted_actions_have_the_effects_of_others(level):
    plain, room = world(f"babyai:{level}"), Permuted(level, 3)
    assert room.effects != tuple(range(7)) and sorted(room.effects) == [*range(7)]
    assert Permuted(level, 3).effects == room.effects != Permuted(level, 4).effects
    for seed in range(2):
        here, there = demonstrate(plain, seed), demonstrate(room, seed)
        assert [room.effects[action] for action in there["actions"]] == [
            *here["actions"]
        ]
        np.testing.assert_array_equal(here["grid"], there["grid"])


class Arm:
    """Stands in for a task of Meta-World, and keeps what it is told."""

    name, kind, actions, box, limit = "metaworld:reach-v3", "metaworld", None, None, 5
    shapes, versions, environment, success, on_end = {}, {}, None, False, None
    observation = arrived = {}

    def __init__(self):
        self.told = []

    def reset(self, seed):
        return {}

    def step(self, action):
        self.told.append(action.tolist())
        return Outcome({}, 0.0, False, None)


def test_moves_of_an_arm_keep_the_gripper_as_it_was_told():
    arm = Arm()
    room = Moves(arm)
    names = room.actions
    for name in ("move up", "close the gripper", "move left", "open the gripper"):
        room.step(names.index(name))
    assert arm.told == [[0, 0, 1, 0], [0, 0, 0, 1], [-1, 0, 0, 1], [0, 0, 0, -1]]
    room.reset(0)
    room.step(names.index("move nearer"))
    assert arm.told[-1] == [0, -1, 0, 0]
    with pytest.raises(InputError, match="no move 8"):
        room.step(8)
    with pytest.raises(InputError, match="no task of Meta-World"):
        Moves(world("babyai:GoToObj"))


NAMES = ("left", "right", "forward")


def walk_of(captions, actions):
    moments = [
        Moment(caption, {}, 0.0, action)
        for caption, action in zip(captions, [*actions, None], strict=True)
    ]
    return Walk("go", 0, 0, tuple(moments), True)


WALKS = [
    walk_of(["one", "two", "two", "three"], [0, 2, 2]),
    walk_of(["four", "five", "four"], [1, 0]),
    walk_of(["six", "six"], [1]),
]


def test_questions_are_about_what_followed():
    found = probes.next_questions(WALKS, NAMES, seed=0)
    assert found.left_out == 2  # nothing changed there
    truth = [("one", 0, "two"), ("two", 2, "three"), ("four", 1, "five")]
    truth += [("five", 0, "four")]
    for question, (now, action, then) in zip(found.asked, truth, strict=True):
        first, second = question.prompts
        assert f"Observation: {now}\nAction: {NAMES[action]}\n" in first
        assert f"A: {then}\n" in first and f"B: {then}\n" in second
        other = first.partition("B: ")[2].split("\n")[0]
        assert other != then and f"A: {other}\n" in second
    assert [question.episode for question in found.asked] == [0, 0, 1, 1]
    inverse = probes.inverse_questions(WALKS, NAMES)
    assert [question.right for question in inverse.asked] == [0, 2, 1, 0]
    assert inverse.left_out == 2 and "one" in inverse.asked[0].prompts[0]


def test_a_preferred_place_does_not_count_in_both_orders():
    questions = probes.next_questions(WALKS, NAMES, seed=0).asked
    true = {question.prompts[0] for question in questions}

    def biased(told):  # it knows, but likes B more
        return [0.1 if told in true else -0.1, 5.0]

    found = probes.answer_next(Asked(Says(biased), Letters()), questions)
    assert found["rate"] == 1 and found["one_order"] == 0
    assert found["says_first"] == 0 and found["orders_agree"] == 0


def test_an_action_is_explained_by_the_gain_over_no_content():
    questions = probes.inverse_questions(WALKS, NAMES).asked
    right = {question.prompts[0]: question.right for question in questions}

    def likes_forward(told):
        gain = np.eye(3)[right[told]] if told in right else np.zeros(3)
        return np.array([0.0, 0.0, 9.0]) + gain

    model = Says(likes_forward)
    raw = probes.answer_inverse(Asked(model, Letters()), questions, NAMES)
    assert raw["rate"] == 0.25 and raw["said"] == {"forward": 4}
    assert raw["commonest"] == 0.5 and raw["balanced"] == pytest.approx(1 / 3)
    found = probes.answer_inverse(Asked(model, Letters(), "N/A"), questions, NAMES)
    assert found["rate"] == found["balanced"] == 1


def test_the_interval_of_questions_that_are_alike_is_that_of_episodes(rng):
    apart = rng.random(60) < 0.7
    number = np.arange(60)
    alone = probes._rate(apart, number)
    assert alone["interval"] == pytest.approx(
        list(success_interval(int(apart.sum()), 60)), abs=4e-3
    )
    alike = probes._rate(np.repeat(apart, 5), np.repeat(number, 5))
    assert alike["interval"] == pytest.approx(alone["interval"], abs=4e-3)
    spread = probes._rate(np.tile(apart, 5), np.arange(300))
    assert np.ptp(spread["interval"]) < 0.6 * np.ptp(alone["interval"])
    certain = probes._rate(np.ones(300, bool), np.repeat(number, 5))
    assert certain["interval"] == pytest.approx(list(success_interval(60, 60)))


# Texts, and training on them.


def test_texts_follow_from_the_arguments_and_splits_share_no_walk():
    def made(task="captions", **options):
        return texts.Texts("babyai:GoToObj", task, 4, **options)

    one = made()
    assert made().digest == one.digest != made(seed=1).digest
    assert one.digest != made(permute=2).digest
    prompts = {row["prompt"] for row in one}
    assert {row["episode"] for row in one} == {*range(4)}
    for now, then in pairwise(one):
        if now["episode"] == then["episode"]:  # the answer is what is seen next
            assert f"Observation:{now['answer']}\nAction:" in then["prompt"]
    assert len({made(split=split).digest for split in ("train", "test")}) == 2
    policy = made("policy")
    room = world("babyai:GoToObj")
    walks = list(texts.walks(room, "train", 4))
    expert = [demonstrate(room, walk.seed) for walk in walks]
    taken = [room.actions[action] for one in expert for action in one["actions"]]
    assert [row["answer"] for row in policy] == [f" {name}" for name in taken]
    assert not prompts & {row["prompt"] for row in policy}
    for wrong in ({"split": "tset"}, {"task": "captoins"}):
        with pytest.raises(InputError, match="did you mean"):
            texts.Texts("babyai:GoToObj", **{"task": "policy", "episodes": 1} | wrong)
    with pytest.raises(InputError, match="only actions of BabyAI"):
        texts.made("rearrange:train", permute=1)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A data folder with a tiny language model."""
    folder = tmp_path_factory.mktemp("shelf")
    file = tmp_path_factory.mktemp("model") / "tiny.gguf"
    put(gguf_file(file, llama__context_length=1024), "tiny", folder)
    (folder / "plain.txt").write_text(
        "\n\n".join(" ".join(f"{w}{n}" for n in range(20)) for w in ("the", "one"))
        + "\n\ntoo short\n\n| a | table |\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYVIEW_DATA", str(folder))
        yield folder


@pytest.fixture(scope="module")
def base(shelf):
    """The tiny model as it was prepared, on one device."""
    one = partial(jax.make_mesh, devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda: 1)
        patch.setattr(jax, "make_mesh", one)
        return language_model("tiny", 1)


def config_of(shelf, **overrides):
    first = f"model=tiny,plain={shelf}/plain.txt,steps=3,episodes=4,rank=2,rate=0.02"
    first += ",length=360,room=359,layers=1"
    small = {"evaluations.perplexity.source.episodes": "1", "log_every": "1"}
    small |= {"evaluations.perplexity.answers": "3"}
    config = load_config(f"configs/rewards_tuning.py:{first}", small | overrides)
    with config.unlocked():
        config.model.body.lora.targets = ("query", "down")
        # Plain text has the shape of answers, and so their programs.
        config.evaluations.perplexity.length = 360
    return config


def test_the_loss_is_that_of_answers_alone(shelf, base, on_devices):
    on_devices(1)
    config = config_of(shelf)
    views, source = build(config.views), build(config.source)
    rows = [views(source[index], np.random.default_rng(0)) for index in range(8)]
    for index, row in enumerate(rows):
        text, places = row["views"]["text"][0], row["targets"]["places"]
        tokens = [int(token) for token in text[text >= 0]]
        whole = source[index]["prompt"] + source[index]["answer"]
        assert views.text.decode(tokens[:-1]) == whole and tokens[-1] == views.end
        own = tokens[int(places[0]) : int(places[places >= 0][-1]) + 1]
        assert views.text.decode(own[:-1]) == source[index]["answer"]
    batch = {
        part: {
            name: np.stack([row[part][name] for row in rows]) for name in rows[0][part]
        }
        for part in ("views", "targets")
    }
    text = batch["views"]["text"][:, 0]
    tokens, real = np.where(text >= 0, text, 0), text >= 0
    logs = np.asarray(base.call("log_likelihood", tokens, real), np.float64)
    each = [
        logs[row, place - 1]
        for row, places in enumerate(batch["targets"]["places"])
        for place in places[places >= 0]
    ]
    module = merge_module(*base.parts)
    key = jax.random.key(0)
    loss, metrics = jax.jit(lambda b: AnswerLoss()(module, None, b, key))(batch)
    np.testing.assert_allclose(loss, -np.mean(each), rtol=1e-4)
    np.testing.assert_allclose(metrics["perplexity"], np.exp(loss), rtol=1e-6)
    with pytest.raises(InputError, match="views.room is 4; give more"):
        Answered(views.text, 360, 4)(source[0], np.random.default_rng(0))


@pytest.fixture(scope="module")
def run(shelf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "captions"
    one = partial(jax.make_mesh, devices=jax.devices()[:1])  # it compiles faster
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda: 1)
        patch.setattr(jax, "make_mesh", one)
        train(Trainer(config_of(shelf)), folder)
    return folder


def test_forgetting_is_measured_against_the_body_without_adapters(
    run, shelf, base, on_devices
):
    on_devices(1)
    found = json.loads((run / "eval" / "3-perplexity.json").read_text())
    words = Tokenizer(config_of(shelf).views.text.sha256)
    every = [words.encode(text) for text in paragraphs(shelf / "plain.txt")]
    rows, real = words.rows(paragraphs(shelf / "plain.txt") * 4, 360)
    own = np.asarray(base.call("log_likelihood", rows, real))
    logs = [n for row, tokens in enumerate(every) for n in own[row, : len(tokens) - 1]]
    assert found["before"]["plain"] == pytest.approx(math.exp(-np.mean(logs)), rel=1e-4)
    assert found["after"]["answers"] < found["before"]["answers"]
    assert found["forgotten"] != 1
    assert found["protocol"]["paragraphs"] == 2
    assert "plain text" in found["summary"]


def test_the_command_asks_what_a_run_made_of_a_model(
    run, shelf, capsys, monkeypatch, on_devices
):
    on_devices(1)
    # All prompts have one shape: one program for each question.
    monkeypatch.setattr(llm_prompted, "_BUCKET", 512)
    monkeypatch.setattr(llm_prompted, "_ROWS", (4,))
    output = shelf / "found.json"
    common = ["--env", "babyai:GoToObj", "--model", "tiny", "--episodes", "1"]
    common += ["--goal_only", "--limit", "2", "--output", str(output)]
    ask.main([*common, "--run", str(run), "--trust", "agents"])
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(output.read_text())
    assert [line.split()[0] for line in lines] == [*ask.WHAT]
    assert "of 1 episodes; chance" in lines[0] and found["policy"]["limit"] == 2
    for what, line in zip(ask.WHAT[1:], lines[1:], strict=True):
        assert f"of {found[what]['questions']} questions; " in line
    assert found["run"] == str(run) and found["calibrated"] and found["goal_only"]
    # Its weights, and not those of the model that it began with.
    asked = texts.acting("go", "You see a red ball.", ("go forward", "turn left"))
    scores = []
    for speaker in (of_model("tiny", 1), of_run(run, "tiny", ("agents",))):
        own = prompted(speaker, ("go forward", "turn left"))
        scores.append(Asked(own, speaker.tokenizer).scores([asked]))
    assert np.abs(scores[0] - scores[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--env", "babyai:GoToObj", "--what", "polic"], "invalid choice"),
        (["--env", "babyai:GoToObj", "--episodes", "0"], "--episodes is 0"),
        (["--env", "metaworld:reach-v3", "--permute", "1"], "only actions of BabyAI"),
        (["--env", "babyai:GoToObj", "--run", "nowhere"], "nowhere"),
        (["--env", "babyai:GoToObj", "--run", "x", "--layers", "1"], "--layers"),
        (["--env", "babyai:GoToObj", "--model", "absent"], "absent"),
    ],
)
def test_wrong_commands_are_told_in_a_line(wrong, told, shelf):
    with pytest.raises(InputError, match=told) as error:
        ask.main([*([] if "--model" in wrong else ["--model", "tiny"]), *wrong])
    assert str(error.value).count("\n") <= 1


def test_plain_text_is_paragraphs_of_prose(shelf, tmp_path):
    assert len(paragraphs(shelf / "plain.txt")) == 2
    prose = " ".join(["word"] * 20)
    (tmp_path / "b.md").write_text(f"# Head\n\n{prose} last\n\n```\n{prose}\n```\n")
    (tmp_path / "a.md").write_text(prose)
    assert paragraphs(tmp_path) == [prose, f"{prose} last"]
    (tmp_path / "none.txt").write_text("few words")
    with pytest.raises(InputError, match="no paragraph"):
        paragraphs(tmp_path / "none.txt")
    with pytest.raises(InputError, match="give a file"):
        paragraphs(tmp_path / "absent.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        paragraphs(tmp_path / "bytes.txt")
    with pytest.raises(InputError, match="give a file"):
        Perplexity(str(tmp_path / "absent"), None, [], None)


def test_a_strangers_run_calls_nothing_that_is_not_trusted(shelf, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    evil = {"target": "os:system", "command": f"touch {tmp_path / 'done'}"}
    config = {"model": {"body": {"partial": "agents.llm.llama:Body", "layers": evil}}}
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="os:system"):
        of_run(run, "tiny")
    with pytest.raises(InputError, match="os:system"):
        parts.scale_of(str(run))
    assert not (tmp_path / "done").exists()
