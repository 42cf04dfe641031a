"""Runs of version 0.1 can still be evaluated, embedded, exported and initialised from.

tests/old_runs/ holds small runs written by version 0.1: digits, a probe of that run, a
run with a non-finite step, SGI, and an agent initialised from SGI.
"""

import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from polyview.config.file import load_config
from polyview.config.text import from_json, to_json
from polyview.config.trust import renewed
from polyview.errors import InputError
from polyview.reporting.page import html_page
from polyview.reporting.read import read
from polyview.reporting.tables import summary
from polyview.runs.embedding import embed
from polyview.runs.evaluating import Asked, evaluate
from polyview.runs.exporting import export
from polyview.runs.load import load
from polyview.runs.workdir import check_workdir, read_config
from polyview.training.nonfinite import replay_run
from polyview.training.trainer import Trainer

OLD = Path(__file__).parent / "old_runs"


@pytest.fixture
def old(tmp_path, data_dir, monkeypatch):
    """`old(name)` -> the directory of an old run."""
    monkeypatch.setenv("POLYVIEW_DATA", str(data_dir))

    def unpacked(name):
        with tarfile.open(OLD / f"{name}.tar.gz") as archive:
            archive.extractall(tmp_path, filter="data")
        return tmp_path / name

    return unpacked


def test_a_run_is_evaluated_as_before_and_reported(old, capsys, optimized):
    run = old("pretrained")
    before = json.loads((run / "eval" / "4.json").read_text())
    table = summary(read([run]))
    assert f"{100 * before['knn']['top1']:.2f}" in table and "kNN %" in table
    page = html_page(read([run]))
    assert "map of pretrained" in page and "sweep of pretrained" in page
    evaluate(run, None, Asked(overrides={"evaluation.probe.steps": "50"}))
    after = json.loads((run / "eval" / "4.json").read_text())
    for measure in ("knn", "linear_probe"):
        assert before[measure].items() <= after[measure].items()
    for name, health in before["health"].items():  # of floats that round otherwise now
        assert after["health"][name] == pytest.approx(health, rel=1e-6)
    assert "4.json: linear probe" in capsys.readouterr().out


def test_a_run_is_embedded_exported_and_initialised_from(old, tmp_path, digits):
    run = old("pretrained")
    assert "360 of 360 rows" in embed(run, "digits:test", tmp_path / "x.npz")
    report = export(run, "safetensors", tmp_path / "x.safetensors")
    assert "agree with polyview" in report
    arrays = load(run).arrays
    config = digits("views=2", init_from=run)
    small = {"projector.out": 8, "encoder.stages": (1, 1), "encoder.widths": (4, 8)}
    towers = {f"model.towers.image.{key}": value for key, value in small.items()}
    config.update_from_flattened_dict(towers)
    trainer = Trainer(config)
    with jax.set_mesh(trainer.mesh):
        trainer.check(tmp_path / "new")
        state = trainer.create(tmp_path / "new")
    encoder = state.params["towers"]["image"]["encoder"]["conv"]["kernel"]
    np.testing.assert_array_equal(encoder, arrays["towers.image.encoder.conv.kernel"])


def test_a_probe_with_its_frozen_tower_in_the_statistics_is_loaded(old):
    probe, donor = load(old("probe")), load(old("pretrained"))
    fixed = jax.tree.leaves(probe.parts.fixed)
    assert fixed and not jax.tree.leaves(probe.parts.statistics)
    for name, array in donor.arrays.items():
        if ".encoder." in name:
            np.testing.assert_array_equal(probe.arrays[name], array)


def test_a_dumped_step_is_replayed(old, capsys):
    replay_run(Trainer, old("dumped"))
    output = capsys.readouterr().out
    assert "step 2, rows [" in output and "healthy 0" in output


def test_an_old_run_is_not_resumed(old):
    run = old("pretrained")
    new = from_json(to_json(renewed(read_config(run).to_dict())))
    with pytest.raises(InputError, match="is a run of version 0.1: .* not resumed"):
        check_workdir(run, new)


def test_a_pre_trained_atari_network_initialises_an_agent(old, monkeypatch):
    pytest.importorskip("ale_py")
    from sgi.learner import donated

    monkeypatch.chdir(old("sgi").parents[0])
    arrays = load("sgi").arrays
    assert len(arrays) > 50
    root = Path(__file__).parent.parent
    small = {"init_from": "sgi", "model.hidden": "8"}
    small["model.encoder.widths"] = "(4, 4, 4)"
    config = load_config(f"{root}/configs/sgi_finetune.py:game=pong,size=S", small)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    laid = donated(config, one)
    kernel = laid.parts[0]["encoder"]["layers"][0]["kernel"]
    np.testing.assert_array_equal(kernel, arrays["encoder.layers.0.kernel"])
    assert all("sigma" in n or n.startswith("head.") for n in laid.fresh), laid.fresh


def test_an_agent_is_loaded_and_reported(old):
    pytest.importorskip("ale_py")
    from sgi.load import load as load_agent
    from sgi.reporting.read import read as read_agents

    run = old("agent")
    first, second = (load_agent(run, seed) for seed in (0, 1))
    assert first.step == 50 and first.arrays.keys() == second.arrays.keys()
    (reported,) = read_agents([run])
    assert reported.evaluated == 50 and len(reported.scores) == 2
