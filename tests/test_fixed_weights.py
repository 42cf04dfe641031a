"""Fixed weights: outside the state, stored once by digest, checked by digest."""

import hashlib
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file
from test_resume import logged, saved_arrays, stop_at

from polyview import devices
from polyview.config.text import from_json, to_json
from polyview.errors import InputError
from polyview.nn.fixed import Fixed
from polyview.nn.towers import Features
from polyview.runs.checksum import flatten
from polyview.runs.load import load
from polyview.training.train import train
from polyview.training.trainer import Trainer

PROBE = {
    "model.towers.image.frozen": "True",
    "target_decay": "0.9",
    "checkpoint_every": "2",
}


class Body(nnx.Module):
    """A fixed matrix of `size` numbers followed by a trained row."""

    def __init__(self, size: int, *, rngs: nnx.Rngs):
        draw = jax.random.normal(rngs.params(), (size // 64, 64)) / 8
        self.body, self.row = Fixed(draw), nnx.Param(jnp.ones(64))

    def __call__(self, batch, *, key, train):
        x = batch["views"]["image"].reshape(*batch["views"]["image"].shape[:2], 64)
        z = x / 255 * self.body[...][0][None, None] * self.row[...][None, None]
        return {"image": Features(z, z, None)}


def bodied(digits, size: int) -> ConfigDict:
    """The digits config with `Body` as its model."""
    config = digits("views=2", **{"target_decay": 0.9})
    with config.unlocked():
        config.model = {"partial": "test_fixed_weights:Body", "size": size}
    return config


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_checkpoint_size_depends_only_on_the_trained_state(digits, tmp_path):
    sizes = []
    for size in (2**16, 2**20):
        trainer, workdir = Trainer(bodied(digits, size)), tmp_path / str(size)
        state = train(trainer, workdir)
        kept = sum(x.nbytes for x in jax.tree.leaves(state))
        assert set(flatten(state.params)) == {"row"} and not state.statistics
        sizes.append(bytes_of(workdir / "checkpoints" / "4"))
        assert sizes[-1] <= 1.1 * kept + 200_000
        (file,) = (workdir / "fixed").iterdir()
        assert file.stat().st_size >= 4 * size
        assert hashlib.sha256(file.read_bytes()).hexdigest() == file.stem
    # The small difference comes from the compression of different numbers.
    assert abs(sizes[0] - sizes[1]) < 5000


def test_a_step_never_changes_fixed_weights(digits, tmp_path):
    trainer = Trainer(digits("views=2", **PROBE))
    with jax.set_mesh(trainer.mesh):
        trainer.check(tmp_path)
        state = trainer.create(tmp_path)
        before = jax.device_get((trainer.fixed, state))
        _, batch = next(iter(trainer.batches(0)))
        inputs = 0, jnp.int32(0), devices.put(batch, trainer.mesh)
        state, values = trainer.take(state, inputs)
    assert values["healthy"]
    names = set(flatten(trainer.fixed))
    assert all(name.startswith("towers.image.encoder.") for name in names)
    assert any(name.endswith("mean") for name in names), "statistics must be fixed, too"
    assert not any("encoder" in name for name in flatten(state))
    jax.tree.map(np.testing.assert_array_equal, before[0], trainer.fixed)
    changed = jax.tree.map(lambda a, b: (a != b).any(), before[1].params, state.params)
    assert any(jax.tree.leaves(changed))


@pytest.fixture(scope="module")
def donor(digits_run):
    """A trained run on digits."""
    return digits_run()


@pytest.fixture
def probe(digits, donor, tmp_path):
    """A probe run with its encoder from a run that is then deleted."""
    shutil.copytree(donor, tmp_path / "donor")
    config = digits("views=2", **PROBE, init_from=tmp_path / "donor")
    train(Trainer(config), tmp_path / "probe")
    shutil.rmtree(tmp_path / "donor")
    return tmp_path / "probe"


def test_a_probe_loads_after_its_donor_is_deleted(probe, donor):
    ours, theirs = load(probe).arrays, load(donor).arrays
    encoder = [name for name in theirs if ".encoder." in name]
    assert len(encoder) > 10
    for name in encoder:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_a_damaged_or_missing_file_is_refused(probe):
    (file,) = (probe / "fixed").iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{file.name} is damaged: its sha256 is"):
        load(probe)
    file.unlink()
    with pytest.raises(InputError, match=f"{file.stem} .*: --weights FILE"):
        load(probe)


def test_a_resumed_run_uses_the_weights_named_by_its_checkpoint(probe, digits):
    """If the file is missing, the weights are not initialised again. The run ends like
    an uninterrupted one; test_resume kills processes."""
    config = digits("views=2", **PROBE, init_from=probe.parent / "donor")
    lines, arrays = logged(probe), saved_arrays(probe, 4)
    (file,) = (probe / "fixed").iterdir()
    moved = probe.parent / "moved.safetensors"
    file.rename(moved)
    stop_at(probe, 2)
    with pytest.raises(InputError, match="--weights FILE"):
        train(Trainer(config), probe)
    moved.rename(file)
    train(Trainer(config), probe)
    assert logged(probe) == lines
    resumed = saved_arrays(probe, 4)
    assert resumed.keys() == arrays.keys()
    for name, array in resumed.items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


def test_weights_from_a_file_are_not_copied_into_the_run(
    donor, digits, tmp_path, monkeypatch
):
    """The run stores only the digest; --weights or the data folder gives the file."""
    arrays = {
        name.removeprefix("towers.image.encoder."): np.asarray(array)
        for name, array in load(donor).arrays.items()
        if ".encoder." in name
    }
    file, run = tmp_path / "theirs.safetensors", tmp_path / "run"
    save_file({f"backbone.{name}": a for name, a in arrays.items()}, file)
    plain = digits("views=2", **PROBE).to_dict()
    init = {"towers.image.encoder": (str(file), "backbone")}
    config = from_json(to_json(plain | {"init": init}))
    train(Trainer(config), run)
    assert not (run / "fixed").exists()
    digest = json.loads((run / "checkpoints/4/digest/metadata").read_text())
    sha = hashlib.sha256(file.read_bytes()).hexdigest()
    assert [entry["sha256"] for entry in digest["fixed"]] == [sha]
    assert str(tmp_path) not in json.dumps(digest["fixed"]), (
        "the checkpoint must not name a path"
    )

    with pytest.raises(InputError, match=f"{sha} .*--weights FILE"):
        load(run)
    loaded = load(run, weights=[file]).arrays
    name = next(iter(arrays))
    np.testing.assert_array_equal(loaded[f"towers.image.encoder.{name}"], arrays[name])
    other = tmp_path / "other.safetensors"
    save_file({"x": np.zeros(1)}, other)
    with pytest.raises(InputError, match=f"{sha}.* {other} is [0-9a-f]+"):
        load(run, weights=[other])
    monkeypatch.setenv("POLYVIEW_DATA", str(tmp_path))
    (tmp_path / "weights").mkdir()
    shutil.copy(file, tmp_path / "weights" / f"{sha}.safetensors")
    assert load(run).arrays.keys() == loaded.keys()


def test_an_invalid_digest_is_never_used_as_a_path(probe):
    path = probe / "checkpoints/4/digest/metadata"
    digest = json.loads(path.read_text())
    digest["fixed"][0]["sha256"] = "../../../../etc/passwd"
    path.write_text(json.dumps(digest))
    with pytest.raises(InputError, match="not a sha256"):
        load(probe)


def test_nonfinite_weights_are_refused(donor, digits, tmp_path):
    file = tmp_path / "nan.safetensors"
    arrays = {n: np.asarray(a) for n, a in load(donor).arrays.items()}
    name = next(n for n in arrays if n.endswith("kernel") and ".encoder." in n)
    save_file(arrays | {name: np.full_like(arrays[name], np.nan)}, file)
    plain = digits("views=2", **PROBE).to_dict()
    init = {"towers.image.encoder": str(file)}
    config = from_json(to_json(plain | {"init": init}))
    with pytest.raises(InputError, match=f"{name} of {file} is not finite"):
        train(Trainer(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert load_file(file).keys() == arrays.keys()
