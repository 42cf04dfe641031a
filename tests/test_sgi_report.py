"""Reports and films of fine-tuned runs show the results and note what is missing."""

import dataclasses
import functools
import json
import math
import re
import sys
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
from PIL import Image

from polyview.errors import InputError
from polyview.model import Parts, abstract_module
from polyview.rl.aggregates import AGGREGATES, interval
from polyview.rl.distributional import expected
from polyview.runs.load import Loaded
from sgi import load as loading
from sgi import report, scores, video
from sgi.atari import Game
from sgi.encoders import Nature
from sgi.heads import support
from sgi.network import Network
from sgi.playing import Uniform
from sgi.reporting.figures import learning_curve, profiles
from sgi.reporting.methods import labels, methods_of
from sgi.reporting.notes import notes_on
from sgi.reporting.page import aggregates, html_page
from sgi.reporting.read import read
from sgi.reporting.seeds import pooled
from sgi.reporting.tables import improvement, score_columns, summary
from sgi.scores import GAMES, human_normalised

STEPS = 1000


@pytest.fixture(autouse=True)
def protocol(monkeypatch):
    """Give the published protocol the numbers of these small runs."""
    monkeypatch.setitem(scores.PROTOCOL, "step", STEPS)
    monkeypatch.setitem(scores.PROTOCOL, "episodes", 4)


def evaluation(game, step, means, **changes):
    """An evaluation of four games a seed, with the given means."""
    games = [[mean - 3, mean + 3, mean - 1, mean + 1] for mean in means]
    return {
        "game": game,
        "step": step,
        "seeds": list(range(len(means))),
        "scores": games,
        "mean": means,
        "epsilon": 0.001,
        "episodes": 4,
        "cap": 27_000,
        "protocol": {"sticky": 0.0},
    } | changes


def make_run(path, game="pong", means=(0.0, 10.0), init_from=None, **changes):
    """A finished run with one seed per mean."""
    (path / "eval").mkdir(parents=True)
    config = {
        "game": game,
        "seed": 0,
        "seeds": len(means),
        "init_from": init_from,
        "model": {"actions": len(game), "hidden": 64},
        "log_every": len(path.name),
    }
    (path / "config.json").write_text(json.dumps(config | changes))
    for step, at in (0, [-20.0] * len(means)), (STEPS, list(means)):
        text = json.dumps(evaluation(game, step, at))
        (path / f"eval/{step}.json").write_text(text)
    lines = [{"step": step, "loss": 2.0} for step in (500, STEPS)]
    write_lines(path / "metrics.jsonl", lines)
    rng = np.random.default_rng(0)
    lines = [
        {"step": int(step), "seed": seed, "score": float(rng.normal()), "steps": 9}
        for step in range(40, STEPS, 40)
        for seed in range(len(means))
        if rng.random() < 0.8
    ]
    write_lines(path / "episodes.jsonl", lines)
    return path


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def change(path, step=STEPS, **changes):
    file = path / f"eval/{step}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def two_methods(folder):
    """Two games, from scratch and pre-trained, two seeds each."""
    return [
        make_run(folder / f"{game}_{start}", game, means, start and f"runs/{game}")
        for game, start, means in [
            ("pong", "", (0.0, 10.0)),
            ("pong", "pre", (-5.0, 5.0)),
            ("freeway", "", (7.4, 7.4)),
            ("freeway", "pre", (14.8, 29.6)),
        ]
    ]


def test_the_sgi_table_shows_scores_and_intervals(tmp_path):
    runs = read(two_methods(tmp_path))
    columns = score_columns(runs)
    cells = [[column(run) for column in columns.values()] for run in runs]
    assert list(columns)[:3] == ["game", "method", "run"]
    # A resampled mean of two seeds equals each seed with probability 1/4, so the seeds
    # are the ends of a 95% interval.
    human = [f"{(score + 20.7) / 35.3:.3f}" for score in (5, 0, 10)]
    assert cells[2] == [
        *("pong", "from scratch", "pong_", "1,000", "2", "5.0", "0.0 to 10.0"),
        *(human[0], " to ".join(human[1:]), "-20.0"),
    ]
    assert [row[0] for row in cells] == ["freeway", "freeway", "pong", "pong"]
    assert cells[1][1] == "pre-trained" and cells[1][7] == "0.750"


def test_aggregates_are_over_seeds_and_games(tmp_path):
    runs = read(two_methods(tmp_path))
    scratch, pretrained = methods_of(runs)
    assert (scratch.label, pretrained.label) == ("from scratch", "pre-trained")
    assert scratch.games == pretrained.games == ("freeway", "pong")
    expected = [[0.5, human_normalised("pong", -5)], [1, human_normalised("pong", 5)]]
    np.testing.assert_allclose(pretrained.scores, expected)
    page = html_page(runs)
    for name, aggregate in AGGREGATES.items():
        low, high = interval(np.array(expected), aggregate)
        value = aggregate(np.array(expected))
        assert f">{name}<" in page
        assert f">{value:.3f} ({low:.3f} to {high:.3f})<" in page
    of_spr = [human_normalised(game, GAMES[game].spr) for game in scratch.games]
    assert "SPR, published</td>" in page and f">{np.mean(of_spr):.3f}<" in page
    assert "SGI-M/L" not in page  # SGI's is over 26 games


def test_published_aggregates_are_shown_beside_all_26_games(tmp_path):
    runs = [make_run(tmp_path / game, game, (GAMES[game].der,)) for game in GAMES]
    page = aggregates(read(runs))
    assert page.count(">0.161<") == page.count(">0.285<") == 2  # ours, and DER's
    assert ">0.753<" in page and "not checked against the paper" in page
    assert " to " not in page[: page.index("<p>")]  # one seed: no interval


def test_a_learning_curve_averages_the_last_ten_finished_games(tmp_path):
    (run,) = read([make_run(tmp_path / "a", means=(0.0, 0.0, 0.0))])
    steps, curve = learning_curve(run)
    assert curve.shape == (3, len(steps))
    for seed in range(3):
        for step, value in zip(steps, curve[seed], strict=True):
            finished = [
                line["score"]
                for line in run.episodes
                if line["seed"] == seed and line["step"] <= step
            ]
            assert finished and value == pytest.approx(np.mean(finished[-10:]))
    first = [min(e["step"] for e in run.episodes if e["seed"] == s) for s in range(3)]
    assert steps[0] == max(first)


def test_a_learning_curve_starts_once_every_seed_has_a_score(tmp_path):
    path = make_run(tmp_path / "a", means=(0.0, 0.0))
    write_lines(path / "episodes.jsonl", [{"step": 9, "seed": 1, "score": 3.0}])
    assert learning_curve(read([path])[0]) is None
    write_lines(
        path / "episodes.jsonl",
        [{"step": 9, "seed": 1, "score": 3.0}, {"step": 20, "seed": 0, "score": 5}],
    )
    steps, curve = learning_curve(read([path])[0])
    assert (steps == 20).all() and (curve == [[5], [3]]).all()


def test_the_sgi_page_is_complete_and_needs_no_network(tmp_path):
    page = html_page(read(two_methods(tmp_path)))
    text = re.sub(r"base64,[^\"]*", "", page)
    assert not re.search(r"https?:|//\w|<script|<link|@import|url\(", text)
    sources = re.findall(r'src="([^"]{30})', page)
    assert len(sources) == 2 + 2 + 1  # aggregates, profiles, two games, loss
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert str(tmp_path) not in page
    words = " ".join(text.split())
    assert "random and human below" in words and scores.SOURCE in words
    assert "SGI's own scores of each game are not publicly confirmed" in words
    assert "<strong>5.0</strong>" in page and "<strong>22.2</strong>" in page


def test_text_from_a_run_is_escaped_in_the_sgi_report(tmp_path):
    path = make_run(tmp_path / "<b>bold", game="<i>game")
    page = html_page(read([path]))
    assert "<b>bold" not in page and "&lt;b&gt;bold" in page
    assert "<i>game" not in page and "&lt;i&gt;game" in page


def test_the_sgi_report_command_writes_a_page_or_an_image(
    tmp_path, monkeypatch, capsys
):
    runs = [str(path) for path in two_methods(tmp_path)]
    page, image = tmp_path / "page.html", tmp_path / "curves.png"
    for output in page, image:
        flags = ["report", "--run", *runs, "--output", str(output)]
        monkeypatch.setattr(sys, "argv", flags)
        report.main()
        assert "pong     from scratch  pong_" in capsys.readouterr().out
    assert page.read_text().startswith("<!doctype html>")
    assert image.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(sys, "argv", [*flags[:-1], "curves.jpg"])
    with pytest.raises(InputError, match="must end in .html or .png"):
        report.main()


def test_one_seed_has_no_interval(tmp_path):
    runs = read([make_run(tmp_path / "a", means=(3.0,))])
    columns = score_columns(runs)
    assert (
        columns["score"](runs[0]) == "3.0" and columns["95% interval"](runs[0]) == "–"
    )
    assert "(" not in re.search(r"<td>from scratch</td>.*", aggregates(runs))[0]
    assert notes_on(runs) == ["a is one run: no interval over seeds"]


def test_a_game_outside_the_table_has_raw_scores_only(tmp_path):
    runs = read([make_run(tmp_path / "a", game="space_invaders")])
    columns = score_columns(runs)
    assert columns["score"](runs[0]) == "5.0" and columns["HNS"](runs[0]) == "–"
    assert "space_invaders has no published human score" in notes_on(runs)[0]
    page = html_page(runs)
    assert "Aggregates over games" not in page and "Published scores" not in page


def test_seeds_of_several_runs_are_merged(tmp_path):
    paths = [make_run(tmp_path / name, means=(1.0, 2.0)) for name in ("a", "bb")]
    runs = read(paths)
    assert notes_on(runs) == [
        "no aggregate of from scratch: seed 0 of pong is in several runs; leave one out"
    ]
    change(paths[1], seeds=[2, 3])
    (method,) = methods_of(read(paths))
    assert method.scores.shape == (4, 1)


def single(folder, name, seed, mean, **changes):
    """A run of one seed."""
    path = make_run(folder / name, means=(mean,), seed=seed, **changes)
    change(path, seeds=[seed])
    change(path, step=0, seeds=[seed])
    lines = (
        (path / "episodes.jsonl").read_text().replace('"seed": 0', f'"seed": {seed}')
    )
    (path / "episodes.jsonl").write_text(lines)
    return path


def test_runs_that_differ_only_in_their_seed_share_a_row(tmp_path, monkeypatch):
    """Mean and interval are those of one run with these seeds."""
    means = {"a": -5.0, "b": 5.0, "c": 12.0, "d": 3.0}
    apart = [
        single(tmp_path, name, seed, mean)
        for seed, (name, mean) in enumerate(means.items())
    ]
    rows = (
        pooled(read(apart)),
        read([make_run(tmp_path / "all", means=[*means.values()])]),
    )
    cells, expected = (
        [column(row) for column in score_columns([row]).values()] for (row,) in rows
    )
    assert cells[2] == "a, b and 2 more" and cells[4] == "4"
    assert cells[3:] == expected[3:] and " to " in cells[6]
    steps, curve = learning_curve(rows[0][0])
    assert curve.shape == (4, len(steps))

    runs = read(apart)
    assert notes_on(runs) == []
    assert summary(runs).count("from scratch") == 1
    monkeypatch.setattr("sgi.reporting.page.picture", lambda figure, description: "")
    assert re.search(r">a, b and 2 more<.*>4<.*>3.8<", html_page(runs))


def test_only_comparable_runs_of_a_config_share_a_row(tmp_path):
    """A repeated seed, another config, step or protocol keeps runs apart."""
    first = single(tmp_path, "first", 0, 1.0)
    others = {
        "seed": single(tmp_path, "seed", 0, 2.0),
        "config": single(tmp_path, "config", 1, 2.0, n_step=3),
        "start": single(tmp_path, "start", 2, 2.0, init_from="runs/a"),
        "game": single(tmp_path, "game", 1, 2.0, game="freeway"),
        "protocol": single(tmp_path, "protocol", 1, 2.0),
        "step": single(tmp_path, "step", 1, 2.0),
        "none": single(tmp_path, "none", 1, 2.0),
    }
    change(others["protocol"], epsilon=0.5)
    (others["step"] / "eval/1000.json").rename(others["step"] / "eval/900.json")
    (others["none"] / "eval/1000.json").unlink()
    for name, other in others.items():
        assert len(pooled(read([first, other]))) == 2, name
    # A setting that changes no number may differ.
    free = single(tmp_path, "free", 1, 2.0, keep=7)
    assert len(pooled(read([first, free]))) == 1
    runs = read([others["start"], single(tmp_path, "x", 3, 2.0, init_from="runs/b")])
    note = (
        "pre-trained pool runs of pong that start from different runs: runs/a, runs/b"
    )
    assert any(note in line for line in notes_on(runs))


def test_two_methods_have_a_probability_of_improvement(tmp_path, monkeypatch):
    """Games are matched by name, whatever their order in the two methods."""
    runs = read(two_methods(tmp_path))
    scratch, pretrained = methods_of(runs)
    turned = dataclasses.replace(
        pretrained, games=pretrained.games[::-1], scores=pretrained.scores[:, ::-1]
    )
    # Freeway: all 4 pairs are won. Pong: only 5 > 0 of (-5, 5) against (0, 10).
    for other in (pretrained, turned):
        _, (row,) = improvement([scratch, other])
        assert row[:3] == ["P(pre-trained > from scratch)", "2", "0.625"]
        assert re.fullmatch(r"0\.\d+ to (0|1)\.\d+", row[3])
    monkeypatch.setattr("sgi.reporting.page.picture", lambda figure, description: "")
    assert "P(pre-trained &gt; from scratch)" in aggregates(runs)
    assert re.search(r"P\(pre-trained > from scratch\) +2 +0\.625 ", summary(runs))
    assert improvement([scratch]) is improvement([scratch] * 3) is None
    fewer = dataclasses.replace(
        pretrained, games=pretrained.games[:1], scores=pretrained.scores[:, :1]
    )
    assert improvement([scratch, fewer]) is None
    single_seed = dataclasses.replace(scratch, scores=scratch.scores[:1])
    assert improvement([single_seed, pretrained])[1][0][3] == "–"


def test_a_profile_is_drawn_for_each_method(tmp_path):
    compared = methods_of(read(two_methods(tmp_path)))
    (axes,) = profiles(compared, {}).axes
    assert len(axes.lines) == len(axes.collections) == 2
    for line, method in zip(axes.lines, compared, strict=True):
        for threshold, share in zip(*line.get_data(), strict=True):
            assert share == pytest.approx(np.mean(method.scores > threshold))
    alone = dataclasses.replace(compared[0], scores=compared[0].scores[:1])
    (axes,) = profiles([alone], {}).axes
    assert len(axes.lines) == 1 and not axes.collections, "one seed has no band"


def test_keys_that_distinguish_methods_are_named(tmp_path):
    larger = {"actions": 4, "hidden": 128}
    runs = read([make_run(tmp_path / "a"), make_run(tmp_path / "b", model=larger)])
    assert labels(runs) == {"a": "from scratch A", "b": "from scratch B"}
    assert notes_on(runs)[:2] == [
        "from scratch A: model.hidden 64",
        "from scratch B: model.hidden 128",
    ]


@pytest.mark.parametrize(
    "alter, note",
    [
        (lambda a, b: change(b, epsilon=0.05), "different protocols (epsilon)"),
        (lambda a, b: change(b, protocol={"sticky": 0.25}), "(protocol.sticky)"),
        (
            lambda a, b: change(b, cap=40, episodes=2),
            "b differs from the published protocol (episodes 2 instead of 4, cap 40 "
            "instead of 27000): do not compare its HNS",
        ),
        (
            lambda a, b: (b / "eval/1000.json").rename(b / "eval/900.json"),
            "b is evaluated at step 900, but trained to 1,000",
        ),
        (
            lambda a, b: (b / "eval/1000.json").rename(b / "eval/900.json"),
            "no aggregate of from scratch: its runs were evaluated at steps 900 to",
        ),
        (
            lambda a, b: change(b, scores=[[1.0]] * 3, seeds=[0, 1, 2]),
            "no aggregate of from scratch: its games have 2 to 3 seeds",
        ),
        (
            lambda a, b: (b / "eval/1000.json").unlink(),
            "b has no evaluation of the agent yet",
        ),
        (
            lambda a, b: make_run(a.parent / "c", init_from="runs/x"),
            "the aggregates are over different games",
        ),
    ],
)
def test_runs_that_are_not_comparable_are_noted(tmp_path, alter, note):
    paths = [make_run(tmp_path / "a"), make_run(tmp_path / "b", game="freeway")]
    assert notes_on(read(paths)) == []
    alter(*paths)
    found = notes_on(read(sorted(tmp_path.iterdir())))
    assert any(note in line for line in found), found


def test_an_agent_without_evaluations_is_shown(tmp_path, monkeypatch):
    run = tmp_path / "new"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"game": "pong", "seeds": 2}))
    runs = read([run])
    assert notes_on(runs) == ["new has no evaluation of the agent yet"]
    assert "new" in html_page(runs)
    output = tmp_path / "x.png"
    monkeypatch.setattr(
        sys, "argv", ["report", "--run", str(run), "--output", str(output)]
    )
    with pytest.raises(InputError, match="no curve"):
        report.main()


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda run: (run / "config.json").write_text("{}"), "it names no game"),
        (lambda run: change(run, scores=[[1.0], []]), "holds no scores of seeds"),
        (lambda run: change(run, scores=[[1.0]]), "holds no scores of seeds"),
        (lambda run: change(run, scores=["x", "y"]), "holds no scores of seeds"),
        (lambda run: change(run, scores=[], seeds=[]), "holds no scores of seeds"),
        (lambda run: change(run, scores=[[1], [float("nan")]]), "holds no scores"),
        (lambda run: change(run, seeds=None), "holds no scores of seeds"),
        (
            lambda run: write_lines(run / "episodes.jsonl", [{"step": 1, "seed": 0}]),
            "no seed or no score",
        ),
        (
            lambda run: write_lines(
                run / "episodes.jsonl", [{"step": 1, "seed": [1], "score": 1}]
            ),
            "unhashable",
        ),
        (
            lambda run: write_lines(
                run / "episodes.jsonl", [{"step": 1, "seed": 0, "score": math.inf}]
            ),
            "a score is not finite",
        ),
        (
            lambda run: change(run, scores=[[1]] * 1001, seeds=[*range(1001)]),
            "1001 seeds are more",
        ),
    ],
)
def test_a_damaged_run_is_refused_by_the_sgi_report(tmp_path, damage, message):
    run = make_run(tmp_path / "a")
    damage(run)
    with pytest.raises(InputError, match=message):
        read([run])


@pytest.mark.parametrize("seeds", ["x", [1]])
def test_an_invalid_config_is_an_error_that_names_the_run(tmp_path, seeds, monkeypatch):
    good, bad = make_run(tmp_path / "a"), make_run(tmp_path / "b", "freeway")
    config = json.loads((bad / "config.json").read_text())
    (bad / "config.json").write_text(json.dumps(config | {"seeds": seeds}))
    flags = ["report", "--run", str(good), str(bad), "--output", f"{tmp_path}/x.png"]
    monkeypatch.setattr(sys, "argv", flags)
    with pytest.raises(InputError) as found:
        report.main()
    assert f"({bad})" in str(found.value)


def drawn_agent():
    """A small agent of Breakout with weights from NumPy: initialising it is slow."""
    encoder = functools.partial(Nature, widths=(4, 4, 4))
    network = functools.partial(Network, actions=4, encoder=encoder, hidden=8)
    rng = np.random.default_rng(0)
    graph, *shapes = abstract_module(network)
    params, statistics, _ = jax.tree.map(lambda x: rng.normal(size=x.shape), shapes)
    statistics = jax.tree.map(abs, statistics)  # variances are among them
    config = ml_collections.ConfigDict({"game": "breakout"})
    return Loaded(config, 7, Parts(graph, params, statistics, {}))


def test_a_film_contains_every_screen(tmp_path):
    pytest.importorskip("ale_py")
    game = Game("breakout")
    screens, score, over = video.film(game, Uniform(4), 400, seed=0)
    assert over and len(screens) < 400 and score == int(score) >= 0
    video.write(tmp_path / "x.gif", screens)
    shown = []
    with Image.open(tmp_path / "x.gif") as film:
        for number in range(film.n_frames):
            film.seek(number)  # repeated screens are one image, shown longer
            times = film.info["duration"] // video.MILLISECONDS
            shown += times * [np.asarray(film.convert("RGB"))]
    np.testing.assert_array_equal(shown, screens)


def test_the_video_command_films_the_greedy_agent(tmp_path, monkeypatch, capsys):
    pytest.importorskip("ale_py")
    model = drawn_agent()
    stacks = np.random.default_rng(0).integers(0, 256, (9, 4, 84, 84), np.uint8)
    latents = model.module.encode(np.moveaxis(stacks, 1, -1), train=False)
    returns = expected(model.module.head(latents, key=None), support())
    policy = loading.greedy(model)
    acts = [policy(stack, None) for stack in stacks]
    assert acts == returns.argmax(-1).tolist() and len(set(acts)) > 1

    loaded = []
    monkeypatch.setattr(loading, "load", lambda *which: loaded.append(which) or model)
    output = tmp_path / "x.gif"
    flags = ["--run", "b", "--output", str(output), "--steps", "5", "--seed", "2"]
    video.main([*flags, "--at", "7"])
    assert loaded == [(Path("b"), 2, 7)]
    assert "breakout, 5 steps of the agent of step 7" in capsys.readouterr().out
    with Image.open(output) as film:
        assert film.size == (160, 210)
    for wrong in (["--steps", "0"], ["--output", "x.mp4"], ["--game_seed", "-1"]):
        with pytest.raises(InputError, match=wrong[0]):
            video.main([*flags, *wrong])
    with pytest.raises(InputError, match="cannot write"):
        video.write(output / "x.gif", [np.zeros((2, 2, 3), np.uint8)])
