"""A report shows the results of runs, is self-contained and refuses damaged runs."""

import html
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from polyview import drawing
from polyview.errors import InputError
from polyview.evaluation import frozen_figures, missing_figures
from polyview.evaluation.accuracy import Accuracy
from polyview.evaluation.base import Result, write_result
from polyview.evaluation.frozen import FrozenFeatures
from polyview.report import main
from polyview.reporting import figures, tables
from polyview.reporting.page import html_page, training
from polyview.reporting.read import read

NAMES = ["<coat>", "boot", "a very long class name"]


def result(top1=0.5, **protocol_changes):
    return {
        "protocol": {"seed": 0, "knn": {"k": 20}, **protocol_changes},
        "knn": {"top1": 0.25},
        "linear_probe": {
            "top1": top1,
            "chosen": {"learning_rate": 0.1, "weight_decay": 0.0},
            "sweep": {
                "learning_rate": [0.1, 1.0],
                "weight_decay": [0.0, 0.01],
                "validation_top1": [[0.5, 0.4], [0.1, 0.3]],
            },
            "classes": NAMES,
            "per_class": [0.5, 0.5, None],
            "confusion": [[2, 2, 0], [1, 1, 0], [0, 0, 0]],
            "warning": "the best learning_rate lies at the end of the sweep",
        },
        "health": {"h": {"rankme": 3.25}},
    }


# Only its class matters here; the results are made up.
PROTOCOL = object.__new__(FrozenFeatures)


def made(numbers, figure_data=None):
    """A result as an evaluation of frozen features, or of a classifier, returns it."""
    kind = Accuracy if "classifier" in numbers else FrozenFeatures
    columns, errors = kind.columns(numbers), kind.standard_errors(numbers)
    return Result(numbers, figure_data, columns=columns, standard_errors=errors)


def make_run(path, loss="geometric", step=20, **changes):
    path.mkdir()
    config = {
        "batch_size": 64,
        "views": {"m": 4},
        "objective": {"loss": {"partial": f"polyview.objectives.contrastive:{loss}"}},
    }
    (path / "config.json").write_text(json.dumps(config))
    seconds = [1.0, 2.5, 1.0]  # resumed once, after 2.5 seconds
    lines = [
        {"step": s, "loss": 3.0 / s, "image/rankme": 2.0, "time": {"seconds": t}}
        for s, t in zip((5, 10, 20), seconds, strict=True)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    rng = np.random.default_rng(0)
    sample = {
        "h": rng.normal(size=(30, 6)).astype(np.float32),
        "label": rng.integers(0, 3, 30),
        "query": rng.integers(0, 255, (2, 8, 8, 1), dtype=np.uint8),
        "neighbour": rng.integers(0, 255, (2, 8, 8, 8, 1), dtype=np.uint8),
        "query_label": np.array([0, 1]),
        "neighbour_label": rng.integers(0, 3, (2, 8)),
    }
    write_result(path, str(step), made(result(**changes), sample), PROTOCOL)
    write_result(path, "pixels", made(result(0.125)), PROTOCOL)
    return path


def test_the_report_table_shows_each_run_and_reference(tmp_path):
    runs = read(
        [make_run(tmp_path / "a"), make_run(tmp_path / "b", loss="nt_xent", top1=0.625)]
    )
    first, second, reference = tables.rows(runs)  # the shared reference is listed once
    assert (first.method, first.m, first.views_per_step) == ("geometric", 4, 256)
    assert first.scores == {"linear probe %": 50, "kNN %": 25, "RankMe": 3.25}
    assert (first.steps, first.seconds) == (20, 3.5)
    assert (second.method, second.scores["linear probe %"]) == ("nt_xent", 62.5)
    assert (reference.method, reference.scores["linear probe %"]) == (
        "raw pixels",
        12.5,
    )
    assert "62.50" in tables.text_table([first, second, reference])


def test_runs_that_differ_only_in_seed_are_averaged(tmp_path):
    runs = []
    for seed, (loss, top1) in enumerate(
        [("geometric", 0.5), ("geometric", 0.6), ("geometric", 0.7), ("nt_xent", 0.4)]
    ):
        run = make_run(tmp_path / f"r{seed}", loss=loss)
        config = json.loads((run / "config.json").read_text())
        config |= {"seed": seed, "workers": seed}  # workers change no result
        (run / "config.json").write_text(json.dumps(config))
        write_result(run, "20", made(result(top1)), PROTOCOL)
        runs.append(run)
    head, body = tables.over_seeds(read(runs))
    assert head == ["runs", "seeds", "linear probe %", "kNN %", "RankMe"]
    assert body == [["r0, r1, r2", "3", "60.00 ± 10.00", "25.00 ± 0.00", "3.25 ± 0"]]
    assert "60.00 ± 10.00" in html_page(read(runs))
    assert tables.over_seeds(read(runs[2:])) is None


def test_evaluations_on_other_data_are_listed_separately(tmp_path):
    run = make_run(tmp_path / "a")
    for step, top1 in ((9, 0.7), (20, 0.8)):
        write_result(run, f"{step}-on-<flowers>", made(result(top1)), PROTOCOL)
    runs = read([run])
    head, body = tables.transfers(runs)
    assert body == [["a", "<flowers>", "20", "80.00", "25.00", "3.25"]]
    assert "&lt;flowers&gt;" in html_page(runs)
    assert tables.transfers(read([make_run(tmp_path / "b")])) is None


def test_features_near_collapse_are_reported(tmp_path):
    run = make_run(tmp_path / "a")
    assert not tables.collapsed(*read([run]))
    line = {"step": 20, "image/rankme": 2.0, "image/standard_deviation": 0.02}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    numbers = result() | {"health": {"h": {"rankme": 1.01, "standard_deviation": 0.5}}}
    (run / "eval" / "20.json").write_text(json.dumps(numbers))
    alerts = tables.collapsed(*read([run]))
    assert len(alerts) == 2 and all("close to collapse" in alert for alert in alerts)
    assert "h of the test split" in alerts[0] and "RankMe 1.0" in alerts[0]
    assert "z of &#x27;image&#x27;" in html_page(read([run]))


def test_the_report_page_is_complete_and_needs_no_network(tmp_path):
    runs = read([make_run(tmp_path / "a"), make_run(tmp_path / "b", loss="x")])
    page = html_page(runs)
    text = re.sub(r"base64,[^\"]*", "", page)
    assert not re.search(r"https?:|//\w|<script|<link|@import|url\(", text)
    sources = re.findall(r'src="([^"]{30})', page)
    assert len(sources) == 2 + 2 * 4  # two curves; map, neighbours, sweep, confusion
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert str(tmp_path) not in page
    assert "lies at the end of the sweep" in page
    assert "polyview.objectives.contrastive:x" in page


def test_the_report_command_writes_the_page(tmp_path, monkeypatch, capsys):
    runs = [str(make_run(tmp_path / name)) for name in "ab"]
    output = tmp_path / "page.html"
    monkeypatch.setattr(
        sys, "argv", ["report", "--run", *runs, "--output", str(output)]
    )
    main()
    assert "geometric" in capsys.readouterr().out
    assert output.read_text().startswith("<!doctype html>")
    monkeypatch.setattr(sys, "argv", ["report", *runs])
    with pytest.raises(InputError, match="required: --run"):
        main()


def test_a_classifier_has_its_own_column(tmp_path):
    probed, classifier = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    assert "classifier" not in tables.text_table(tables.rows(read([probed])))
    numbers = {"protocol": {"seed": 1}, "classifier": {"top1": 0.3125}}
    for step in (10, 20):
        write_result(classifier, f"{step}-top", made(numbers), object.__new__(Accuracy))
        (classifier / "eval" / "20.json").unlink(missing_ok=True)
    runs = read([probed, classifier])
    head, _, _, line, *_ = tables.text_table(tables.rows(runs)).splitlines()
    assert "classifier %" in head and "31.25" in line
    assert all(note.startswith("a: ") for note in tables.notes(runs))
    page = html_page(runs)
    assert ">31.25<" in page and "classifier % over the steps" in page


def row(run, score, error=None):
    errors = {} if error is None else {"kNN %": error}
    return tables.Row(run, "m", {"kNN %": score}, errors)


@pytest.mark.parametrize(
    ("lines", "best"),
    [
        ([row("a", 90, 3), row("b", 84.9, 4)], "a"),  # sqrt(9 + 16) = 5 < 5.1
        ([row("a", 85, 3), row("b", 90, 4)], None),  # exactly 5
        ([row("a", 80, 3), row("b", 84, 4), row("c", 90, 3)], "c"),
        ([row("a", 80, 3), row("b", 86, 4), row("c", 90, 3)], None),
        ([row("a", 90, 3), row("b", 90, 3)], None),
        ([row("a", 90, 3), row("b", 50)], None),
        ([row("a", 90, 3), tables.Row("b", "m", {})], None),
    ],
)
def test_the_best_is_bold_only_beyond_the_standard_error(lines, best):
    found = tables.clearly_best(lines, "kNN %")
    assert (found and found.run) == best


def test_standard_errors_are_shown_also_of_results_that_store_none(tmp_path):
    test = {"test": {"rows": 10_000}}
    runs = [
        make_run(tmp_path / "a", **test),
        make_run(tmp_path / "b", top1=0.6, **test),
    ]
    stored = json.loads((runs[0] / "eval" / "20.json").read_text())
    del stored["standard_errors"]
    (runs[0] / "eval" / "20.json").write_text(json.dumps(stored))
    for run in runs:
        (run / "eval" / "20.npz").unlink()  # drawing its map takes a second
    first, second, _ = tables.rows(read(runs))
    assert first.errors["linear probe %"] == pytest.approx(0.5)  # sqrt(.25 / 10,000)
    assert second.errors["linear probe %"] == pytest.approx(math.sqrt(0.24))
    page = html_page(read(runs))
    assert "<strong>60.00 ± 0.49</strong>" in page and ">50.00 ± 0.50<" in page
    assert "<strong>25.00" not in page and html.escape(tables.BEST) in page


def test_what_could_not_be_computed_is_noted_with_its_reason(tmp_path):
    run = make_run(tmp_path / "a")
    numbers = result(balanced=1) | {"not_computed": {"linear_probe": "too few rows"}}
    del numbers["linear_probe"]
    numbers["knn"] |= {"balanced_accuracy": 0.2, "majority_class": 0.4}
    write_result(run, "20", made(numbers), PROTOCOL)
    assert "a: no linear probe: too few rows" in tables.notes(read([run]))
    text = tables.summary(read([run]))
    assert re.search(r"a: kNN +25.00 +– +20.00 +40.00\n", text)


def test_names_without_glyphs_become_numbers_with_a_note(monkeypatch):
    """𝐁 stands for any character that only a fallback font has; STIX has it."""
    names = ["猫", "a$b", "𝐁"]
    try:
        for fallbacks, shown in (
            ((), ["0", "a$b", "2"]),
            (("absent", "STIXGeneral"), ["0", "a$b", "𝐁"]),
        ):
            monkeypatch.setattr(drawing, "FALLBACKS", fallbacks)
            drawing.families.cache_clear()
            drawing._glyphs.cache_clear()
            figure = frozen_figures.confusion(np.eye(3, dtype=int), names)
            (axes,) = figure.axes
            ticks = axes.get_xticklabels()
            assert [label.get_text() for label in ticks] == shown
            assert ticks[2].get_fontfamily() == list(drawing.families())
            assert "no installed font" in figure.get_supxlabel()
            drawing.png(figure)  # matplotlib warns of a missing glyph
            line = [{"step": 1, "x": 1.0}]
            drawing.png(figures.curve({"跑": line, "b": line}, "x"))
    finally:
        drawing.families.cache_clear()
        drawing._glyphs.cache_clear()
    assert (
        drawing.short("猫" * 9) == "猫" * 5 + "…"
        and drawing.short("猫" * 5) == "猫" * 5
    )


def test_a_large_confusion_matrix_shows_the_largest_of_each_block():
    counts = np.eye(501, dtype=int)
    counts[0, 1] = 3
    (axes,) = frozen_figures.confusion(counts, ["x"] * 501).axes
    cells = np.asarray(axes.images[0].get_array())
    expected = 100 * np.eye(167)
    expected[0, 0] = 100
    np.testing.assert_array_equal(cells, expected)
    assert "largest of 3 x 3" in axes.get_xlabel()


def test_the_chance_of_a_metric_is_a_level_in_its_curve(tmp_path):
    run = make_run(tmp_path / "a")
    lines = [{"step": s, "spr": 1.0 / s, "spr_chance": 2.0} for s in (10, 20)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    page = html_page(read([run]))
    assert "spr over the steps" in page and "spr_chance over the steps" not in page
    lines += [{"step": 30, "spr": 0.1, "spr_chance": odd} for odd in ("?", [], 1e999)]
    (axes,) = figures.curve({"a": lines, "b": lines}, "spr").axes
    levels = [line.get_ydata() for line in axes.lines if line.get_linestyle() == ":"]
    np.testing.assert_array_equal(levels, [[2.0, 2.0]])


@pytest.mark.parametrize("time", [{}, {"time": None}, {"time": {}}])
def test_metrics_without_times_are_shown(tmp_path, time):
    run = make_run(tmp_path / "a")
    line = json.dumps({"step": 20, "loss": 1.0, **time})
    (run / "metrics.jsonl").write_text(line + "\n")
    runs = read([run])
    assert tables.rows(runs)[0].seconds is None
    assert "loss over the steps" in html_page(runs)


def test_text_from_a_run_is_escaped_in_the_report(tmp_path):
    run = make_run(tmp_path / "<b>bold")
    page = html_page(read([run]))
    assert "<b>bold" not in page and "&lt;b&gt;bold" in page


def test_different_protocols_are_noted(tmp_path):
    runs = read([make_run(tmp_path / "a"), make_run(tmp_path / "b", knn={"k": 200})])
    assert any("different protocols (knn.k)" in note for note in tables.notes(runs))
    assert not any("different protocols" in n for n in tables.notes(runs[:1]))


def test_a_run_without_evaluations_is_shown(tmp_path):
    run = tmp_path / "new"
    run.mkdir()
    (run / "config.json").write_text("{}")
    runs = read([run])
    assert "no evaluation" in tables.notes(runs)[0]
    assert "new" in html_page(runs)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def make_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda run: (run / "config.json").unlink(), "is not a run"),
        (lambda run: (run / "config.json").write_text("{"), "config.json cannot be"),
        (lambda run: (run / "eval/20.json").write_text("[]"), "not a JSON object"),
        (lambda run: (run / "eval/20.json").write_bytes(b'"\xff"'), "20.json cannot"),
        (lambda run: make_folder(run / "eval/20.json"), "20.json cannot be read"),
        (lambda run: truncate(run / "eval/20.npz"), "20.npz is damaged"),
        (lambda run: (run / "eval/20.npz").write_bytes(b"PK?"), "20.npz is damaged"),
        (lambda run: make_folder(run / "eval/20.npz"), "20.npz is damaged"),
        (lambda run: make_folder(run / "metrics.jsonl"), "jsonl cannot be read"),
    ],
)
def test_a_damaged_run_is_refused_by_the_report(tmp_path, damage, message):
    run = make_run(tmp_path / "a")
    damage(run)
    with pytest.raises(InputError, match=message):
        read([run])


def test_figures_accept_the_smallest_inputs():
    lines = [{"step": 1, "loss": float("nan")}]
    figures.curve({"a": lines, "b": []}, "loss").savefig("/dev/null", format="png")
    for rows in (1, 3, 6):
        h = np.ones((rows, 2), np.float32)
        frozen_figures.embedding(h, None, []).savefig("/dev/null", format="png")
    many = np.arange(40) % 25  # more classes than colours
    names = [str(c) for c in range(25)]
    h = np.random.default_rng(0).normal(size=(40, 4))
    frozen_figures.embedding(h, many, names).savefig("/dev/null", format="png")
    frozen_figures.confusion(np.eye(25, dtype=int), names).savefig(
        "/dev/null", format="png"
    )


BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page_without_errors(tmp_path, width):
    """No console message, no broken image, nothing wider than the screen."""
    runs = read([make_run(tmp_path / "a"), make_run(tmp_path / "b", "nt_xent")])
    frame = html.escape(html_page(runs), quote=True)
    script = """
      const page = document.getElementById("page").contentDocument;
      const broken = [...page.images].filter(i => !i.complete || !i.naturalWidth);
      document.title = [page.documentElement.scrollWidth, page.images.length,
                        broken.length].join(" ");
    """
    (tmp_path / "page.html").write_text(
        f'<html><body style="margin:0"><iframe id="page" width="{width}" height="2000" '
        f'style="border:0" srcdoc="{frame}"></iframe>'
        f"<script>window.onload = () => {{ {script} }}</script></body></html>"
    )
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    quiet += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"]
    quiet += ["--disable-background-networking", "--virtual-time-budget=10000"]
    words = [BROWSER, *quiet, "--dump-dom", f"file://{tmp_path / 'page.html'}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=90)
    assert "CONSOLE" not in done.stderr, done.stderr
    wide, images, broken = re.search(r"<title>(\d+) (\d+) (\d+)<", done.stdout).groups()
    assert int(wide) <= width and int(images) > 5 and broken == "0"


def replaced(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def report_on(monkeypatch, *runs, output):
    flags = ["--run", *map(str, runs), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["report", *flags])
    main()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("eval/20.json", {"linear_probe": 5}),
        ("eval/20.json", {"linear_probe": {"top1": "x"}}),
        ("eval/20.json", {"health": {"h": {"standard_deviation": "x"}}}),
        ("eval/20.json", {"machine": 5}),
        ("eval/20.json", {"evaluation": "sgi.probes:Variables", "variables": {}}),
        (
            "eval/20.json",
            {
                "evaluation": "polyview.evaluation.missing:MissingModalities",
                "subsets": {"a": [{"looks": [*map(str, range(2000))], "top1": 1}]},
            },
        ),
        ("config.json", {"objective": "x"}),
        ("config.json", {"views": {"m": "x"}}),
        ("config.json", {"seed": [1]}),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error_that_names_the_run(
    tmp_path, name, values
):
    good, bad = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    (good / "eval" / "20.npz").unlink()  # drawing its map takes a second
    (bad / "eval" / "20.npz").unlink()
    replaced(bad / name, **values)
    with pytest.raises(InputError) as found:
        html_page(read([good, bad]))
    assert f"({bad})" in str(found.value)


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1, "a/rankme": null}',
        f'{{"step": 1{"0" * 400}, "loss": 1}}',
        f'{{"step": 1, "loss": 1{"0" * 400}}}',
        '{"step": 1, "time": {"seconds": "x"}}',
    ],
)
def test_metrics_that_are_not_numbers_are_an_error(tmp_path, line):
    run = make_run(tmp_path / "a")
    (run / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(InputError):
        html_page(read([run]))


def test_the_number_of_metric_figures_is_limited(tmp_path, monkeypatch):
    run = make_run(tmp_path / "a")
    values = {f"m{number:02d}": 1.0 for number in range(20)} | {"loss": math.inf}
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, **values}) + "\n")
    monkeypatch.setattr("polyview.reporting.page._MOST_CURVES", 3)
    page = training(read([run]))
    assert re.findall(r'alt="(\w+) over', page) == ["loss", "m00", "m01"]
    assert "Not drawn: 18 more" in page


@pytest.mark.parametrize("name", ["config.json", "eval/20.json", "eval/20.npz"])
def test_pipes_and_huge_files_are_not_read(tmp_path, name):
    run = make_run(tmp_path / "a")
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(InputError, match="not a regular file|no config.json"):
        read([run])
    (run / name).unlink()
    with (run / name).open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="longer than"):
        read([run])


def test_a_too_deeply_nested_evaluation_is_an_error(tmp_path):
    run = make_run(tmp_path / "a")
    (run / "eval" / "20.json").write_text("[" * 200_000)
    with pytest.raises(InputError, match="20.json .*nested too deeply"):
        read([run])


def packed(header="", content=b"", *, at=None, method=zipfile.ZIP_STORED):
    """An .npz of one array; `at` sets a byte of its two entries: {place: value}."""
    header = header and header.ljust(117) + "\n"
    magic = header and b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("h.npy", (magic or b"") + header.encode() + content)
    data = bytearray(file.getvalue())
    central = data.find(b"PK\x01\x02")
    for place, value in (at or {}).items():
        data[place] = data[central + place + 2] = value
    return bytes(data)


def array(shape, kind="<f4"):
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (packed(array((10**15,))), "take more than"),
        (packed(array((10**15,), "<U0")), "take more than"),
        (packed(array((0, 10**15))), "take more than"),
        (
            packed(array((1,)), bytes(2**28), method=zipfile.ZIP_DEFLATED),
            "take more than",
        ),
        (packed(array((4,))), "EOF"),
        (packed("{'descr'"), "."),
        (packed("x" * 117), "."),
        (packed(content=b"x"), "."),
        (packed(at={6: 1}), "encrypted"),
        (packed(at={8: 99}), "not supported"),
        (b"PK", "."),
        (b"", "."),
    ],
)
def test_impossible_arrays_are_refused_by_their_headers(tmp_path, content, message):
    run = make_run(tmp_path / "a")
    (run / "eval" / "20.npz").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(InputError, match=f"20.npz is damaged.*{message}"):
        read([run])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**28 + 2**24  # memory for the file, none for its expanded content


def test_dollar_signs_in_names_are_not_formulas(tmp_path):
    run = make_run(tmp_path / "lr$\\foo$")
    (run / "metrics.jsonl").write_text('{"step": 1, "a$\\\\foo$": 1}\n')
    path = run / "eval" / "20.json"
    numbers = json.loads(path.read_text())
    numbers["linear_probe"]["classes"] = ["$\\foo$", "b", "$x^$"]
    path.write_text(json.dumps(numbers))
    assert "lr$\\foo$" in html_page(read([run]))


def test_unprintable_names_are_escaped(tmp_path, monkeypatch, capsys):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/s\xff"))
    run = make_run(folder)
    replaced(run / "eval" / "20.json", note="\x1b]0;owned\x07", other="\ud800")
    report_on(monkeypatch, run, output=folder / "page.html")
    printed = capsys.readouterr().out
    assert "s\\udcff: \\x1b]0;owned\\x07" in printed and "\x1b" not in printed
    assert "s\\udcff" in (folder / "page.html").read_text(encoding="utf-8")


def test_the_number_of_parts_of_a_figure_is_limited():
    with pytest.raises(ValueError, match="1000001 points"):
        frozen_figures.embedding(np.zeros((1_000_001, 1)), None, [])
    with pytest.raises(ValueError, match="with .* letters"):
        drawing.png(missing_figures.retrieval({}, ["a", "b" * 20_000]))
    with pytest.raises(ValueError, match="of 1000001 parts"):
        frozen_figures.nearest(
            *np.zeros((2, 1, 10**6, 0, 0, 0), np.uint8), None, None, []
        )
