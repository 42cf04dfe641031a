"""An invalid command line exits with status 2 and tells how to correct it.

`benchmarks.command_line` times the same list, each line in its own process.
"""

import importlib
import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from PIL import Image

from polyview import errors, prepare
from polyview.config.file import load_config
from polyview.config.text import text_digest, to_json
from polyview.runs.checkpoint import Checkpoints
from polyview.runs.workdir import claim_workdir
from polyview.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
DIGITS = "--config configs/polyview_digits.py"
TRAIN = f"polyview.main {DIGITS} --workdir new"
PLAY = "sgi.finetune --config configs/sgi_finetune.py:size=S"
FOLDER = "polyview.prepare folder --data_dir new"
# Command lines, and text that each error must contain. `files` makes the files named
# here; `new` must exist neither before nor after.
WRONG = [
    # Missing arguments.
    ("polyview.main", "--list shows some"),
    (f"polyview.main {DIGITS}", "give --workdir DIR"),
    ("polyview.main --config= --workdir new", "give --config FILE.py"),
    ("polyview.prepare", "required: dataset"),
    (f"{FOLDER} --name x", "requires --input DIR"),
    ("sgi.prepare --data_dir new", "required: --game"),
    # Misspelt arguments.
    (f"{TRAIN} --config.stepz=3", "did you mean 'steps'?"),
    (f"{TRAIN} --steps=3", "--config.key=value"),
    (f"{TRAIN} --config.steps 3", "write --config.steps=VALUE"),
    (f"{TRAIN} --dry_rum", "did you mean '--dry-run'?"),
    (f"{TRAIN} --config.source.name=digit", "did you mean 'digits'?"),
    (f"{TRAIN} --config.source.split=trian", "the data set has: train, test"),
    (
        f"{TRAIN} --config.objective.target=polyview.objectives.contrastive:Contrast",
        "did you mean 'Contrastive'?",
    ),
    ("polyview.main --config configs/polyview_digit.py", "polyview_digits.py'?"),
    ("polyview.main --config configs/polyview_digits.py:view=4", "'views'?"),
    (f"{FOLDER} --inptu images --name x", "did you mean '--input'?"),
    ("polyview.prepare fashion_mnits --data_dir new", "did you mean 'fashion_mnist'?"),
    (
        "polyview.evaluate --run run --config.evaluations.frozen.knn.kk=5",
        "did you mean 'k'?",
    ),
    ("polyview.report --run run --outptu x.html", "did you mean '--output'?"),
    ("sgi.prepare --game pongg --data_dir new", "the nearest: pong"),
    # Values of the wrong type or out of range.
    (f"{TRAIN} --config.steps=many", "expected int, like 300"),
    (f"{TRAIN} --config.steps=-1", "must be 1 or more"),
    (f"{TRAIN} --config.microbatch={'(' * 5000}", "expected an integer"),
    (f"{TRAIN} --config.mesh.fsdp=9", "--config.mesh.data=-1"),
    (f"{TRAIN} --config.batch_size=1000000", "only 1437 examples"),
    (f"{FOLDER} --input images --name x --test_fraction 2", "between 0 and 1"),
    (f"{FOLDER} --input images --name x --test_fraction 1", "between 0 and 1"),
    (f"{FOLDER} --input images --name ../x", "give --data_dir"),
    ("polyview.evaluate --run run --step 7", "it has [4]"),
    ("polyview.embed --run run --input images --output x.csv", "end in .npz"),
    ("polyview.bench --config configs/polyview_digits.py --steps 0", "1 or more"),
    ("sgi.prepare --game pong --sticky 1.5 --data_dir new", "a probability"),
    (f"{PLAY} --workdir new", "start=scratch"),
    # Missing files, or files of the wrong kind.
    ("polyview.main --config configs --workdir new", "name a file in it"),
    ("polyview.main --config broken.py --workdir new", "SyntaxError"),
    ("polyview.main --config README.md --workdir new", "must end in .py"),
    (f"polyview.main {DIGITS} --workdir file", "name a folder"),
    (f"{TRAIN} --config.init_from=nowhere", "no checkpoint"),
    (f"{FOLDER} --input nowhere --name x", "not a folder"),
    ("polyview.evaluate --run nowhere", "no checkpoint"),
    ("polyview.embed --run run --input nowhere --output new.npz", "not a folder"),
    ("polyview.report --run run --output new/x.html", "folder does not exist"),
    ("polyview.evaluate --run untrusted", "calls 'os:system'"),
    ("sgi.report --run run", "not a run of sgi.finetune"),
    ("sgi.video --run nowhere --output new.gif", "no checkpoint"),
    # Contradictory options.
    (f"{TRAIN} --config.epochs=3", "the other None"),
    (f"{TRAIN} --config.microbatch=8 --config.accumulate=2", "keep one"),
    (f"{TRAIN} --dry-run --print-config", "not allowed with"),
    ("polyview.main --replay --workdir run --config.seed=3", "leave out --config"),
    (f"polyview.main {DIGITS} --workdir run", "is a run of another config"),
    (f"{TRAIN} --processes 2 --process 0", "--processes requires --distributed"),
    (f"{TRAIN} --distributed --coordinator node0", "HOST:PORT"),
    ("polyview.prepare digits --data_dir new --name x", "leave it out"),
    ("polyview.evaluate --run run --watch --references", "takes one run"),
    ("sgi.prepare --game pong --import images --steps 5", "leave it out"),
    (f"{PLAY},start=scratch --workdir new --config.init_from=run", "leave one"),
]


def files(folder: Path) -> None:
    """Make the files that the commands name: data, two runs, one untrusted, and others.

    POLYVIEW_DATA must be `folder / "data"`; the current directory is the project's.
    """
    if not (folder / "data").exists():
        prepare.main(["digits", "--data_dir", str(folder / "data")])
    small = {"steps": "4", "batch_size": "8"}
    untrained(load_config("configs/polyview_digits.py", small), folder / "run")
    shutil.copytree(folder / "run", folder / "untrusted")
    rename_model(folder / "untrusted" / "checkpoints" / "4", "os:system")
    (folder / "file").write_text("not a folder")
    (folder / "broken.py").write_text("def get_config(:\n")
    for number in range(6):
        path = folder / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(path)


def untrained(config, workdir: Path) -> None:
    """Write a finished run of zeros without compiling anything."""
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), Trainer(config).shape)
    claim_workdir(workdir, config)
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(config.steps, state, to_json(config))
    checkpoints.close()


def rename_model(step: Path, target: str) -> None:
    """Change the model in a checkpoint's config, and its digest to match."""
    item = json.loads((step / "config" / "metadata").read_text())
    config = json.loads(item["config"])
    config["model"] = {"target": target, "command": "touch owned"}
    item["config"] = json.dumps(config)
    (step / "config" / "metadata").write_text(json.dumps(item))
    digest = json.loads((step / "digest" / "metadata").read_text())
    digest["config"] = text_digest(item["config"])
    (step / "digest" / "metadata").write_text(json.dumps(digest))


def words_of(line: str, folder: Path) -> list[str]:
    """Split a command line; replace the files made by `files` by paths in `folder`."""
    names = {"new", "new.npz", "new.gif", "new/x.html", "file", "run", "images"}
    names |= {"untrusted", "broken.py"}
    return [
        str(folder / word) if word in names else word.replace("=run", f"={folder}/run")
        for word in shlex.split(line)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data_dir):
    made = tmp_path_factory.mktemp("commands")
    (made / "data").symlink_to(data_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYVIEW_DATA", str(data_dir))
        patch.chdir(ROOT)
        files(made)
        yield made


@pytest.mark.parametrize(
    ("line", "message"), WRONG, ids=[line[:150] for line, _ in WRONG]
)
def test_an_invalid_command_line_is_a_one_line_error(
    folder, monkeypatch, capsys, line, message
):
    name, *words = words_of(line, folder)
    if name.startswith("sgi"):
        pytest.importorskip("ale_py")
    monkeypatch.setattr(sys, "argv", [name, *words])
    before = sorted(os.listdir(folder))
    with pytest.raises(SystemExit) as end:
        errors.run(importlib.import_module(name).main)
    printed = capsys.readouterr()
    assert end.value.code == 2, printed.err
    assert message in printed.err and printed.err.startswith("error: ")
    assert (
        printed.err.count("\n") <= 2 and len(printed.err) < 2100 and printed.out == ""
    )
    assert sorted(os.listdir(folder)) == before, "the command left files behind"
    assert not (ROOT / "owned").exists()


def test_at_least_forty_command_lines_are_listed():
    assert len(WRONG) >= 40 and len({line for line, _ in WRONG}) == len(WRONG)
