"""A checkpoint is restored whole or not at all, on any devices."""

import errno
import gc
import json
import logging
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from polyview import devices
from polyview.errors import InputError
from polyview.runs import checkpoint, checksum

# When a read fails, as in these tests, Orbax leaves a coroutine unawaited.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def collected():
    """Collect Orbax's leftovers here, so that no later test gets their warnings."""
    yield
    gc.collect()


TEXT = json.dumps({"model": {"target": "polyview.nn:Nothing"}})


@pytest.fixture
def state():
    """A state with every kind of leaf."""
    return {
        "step": jnp.int32(7),
        "params": {
            "a": {0: jnp.arange(64.0).reshape(8, 8)},
            "b": jnp.ones(3, "bfloat16"),
        },
        "flags": jnp.array([True, False]),
    }


@pytest.fixture
def saved(tmp_path, state):
    """A folder with that state saved at steps 1, 2 and 3."""
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, state | {"step": jnp.int32(step)}, TEXT)
    checkpoints.close()
    return tmp_path / "checkpoints"


def largest_data(step):
    """The largest file of a step's arrays, whatever its name."""
    files = [f for f in step.glob("state/**/d/*") if f.is_file()]
    return max(files, key=lambda f: f.stat().st_size)


def flip(path, position=0.5):
    data = bytearray(path.read_bytes())
    data[int(position * len(data))] ^= 4
    path.write_bytes(data)


def restore(folder, state):
    checkpoints = checkpoint.Checkpoints(folder, keep=3)
    try:
        return checkpoints.restore_newest(state)
    finally:
        checkpoints.close()


def test_every_leaf_is_restored_equal(saved, state):
    step, found = restore(saved, state)
    assert step == 3
    expected = state | {"step": jnp.int32(3)}
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_arrays_are_restored_onto_other_devices(saved, state):
    mesh = devices.make_mesh(data=2, fsdp=4)
    sharding = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    template = {
        "params": {"a": {0: jax.ShapeDtypeStruct((8, 8), "float32", sharding=sharding)}}
    }
    found = checkpoint.read_state(saved / "3", template)["params"]["a"][0]
    assert found.sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_array_equal(found, state["params"]["a"][0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool", "uint8", "float64"])
def test_a_checksum_does_not_depend_on_the_devices(monkeypatch, dtype, x64):
    """Nor on whether the host computes it; with more words than it takes at once."""
    mesh = devices.make_mesh(data=8)
    values = jax.random.normal(jax.random.key(0), (8, 11, 2**14)).astype(dtype)
    scalar = values[1, 1, 1]
    one = {"a": values, "scalar": scalar}
    spread = {"a": jax.device_put(values, devices.rows(mesh)), "scalar": scalar}
    on_host = checkpoint.checksums(one)
    assert checkpoint.checksums(spread) == on_host
    monkeypatch.setattr(checksum, "_in_host_memory", lambda array: False)
    assert checkpoint.checksums(one) == on_host
    assert checkpoint.checksums(spread) == on_host


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "float64"])
def test_a_checksum_detects_any_single_flipped_bit(dtype, x64):
    values = np.asarray(jnp.arange(5, dtype=dtype))
    before = checkpoint.checksums({"a": jnp.asarray(values)})["a"][2]
    raw = values.view(np.uint8)
    for bit in range(8 * raw.size):
        flipped = raw.copy()
        flipped[bit // 8] ^= 1 << bit % 8
        after = checkpoint.checksums({"a": jnp.asarray(flipped.view(values.dtype))})
        assert after["a"][2] != before


def test_a_flipped_bit_is_detected_and_the_previous_step_is_used(saved, state, caplog):
    flip(largest_data(saved / "3"))
    with caplog.at_level(logging.WARNING, logger="polyview"):
        step, _ = restore(saved, state)
    assert step == 2
    assert len([r for r in caplog.records if r.name.startswith("polyview")]) == 1
    assert (saved.parent / "damaged" / "3").is_dir(), "the damaged step is not aside"


@pytest.mark.parametrize("item", ["config", "digest"])
def test_a_damaged_config_or_digest_is_detected(saved, state, item):
    path = saved / "3" / item / "metadata"
    path.write_bytes(path.read_bytes()[:-20])
    assert restore(saved, state)[0] == (2 if item == "digest" else 3)
    if item == "config":
        with pytest.raises(checkpoint.Damaged):
            checkpoint.read_config(saved / "3")


def test_a_truncated_or_missing_array_file_is_detected(saved, state):
    data = largest_data(saved / "3")
    data.write_bytes(data.read_bytes()[:10])
    largest_data(saved / "2").unlink()
    assert restore(saved, state)[0] == 1


def test_if_all_checkpoints_are_damaged_restoring_is_an_error(saved, state):
    for step in (1, 2, 3):
        largest_data(saved / str(step)).unlink()
    with pytest.raises(InputError, match="remove that folder to start from step 0"):
        restore(saved, state)
    with pytest.raises(InputError, match="remove that folder"):
        restore(saved, state)  # starting again does not start anew either
    shutil.rmtree(saved.parent / "damaged")
    assert restore(saved, state) is None


def test_a_checkpoint_on_a_failing_disk_is_not_set_aside(saved, state, monkeypatch):
    """Else a missing disk or missing permissions would set all of them aside."""

    def away(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(checkpoint.ocp.PyTreeCheckpointHandler, "restore", away)
        broken.setattr(Path, "open", away)
        with pytest.raises(InputError, match="cannot be read now .Input/output error"):
            restore(saved, state)
    assert restore(saved, state)[0] == 3
    assert not (saved.parent / "damaged").exists()


def test_checkpoints_set_aside_earlier_are_not_overwritten(saved, state):
    aside = saved.parent / "damaged"
    (aside / "3").mkdir(parents=True)
    (aside / "3" / "earlier").touch()
    largest_data(saved / "3").unlink()
    assert restore(saved, state)[0] == 2
    assert (aside / "3" / "earlier").exists() and (aside / "3_2" / "state").is_dir()


def test_nothing_is_set_aside_through_a_link(saved, state, tmp_path):
    (tmp_path / "mine").mkdir()
    (saved.parent / "damaged").symlink_to(tmp_path / "mine")
    largest_data(saved / "3").unlink()
    with pytest.raises(InputError, match="is a link"):
        restore(saved, state)
    assert (saved / "3").is_dir() and not list((tmp_path / "mine").iterdir())


def test_a_pipe_in_a_checkpoint_does_not_block(saved, state):
    os.mkfifo(saved / "3" / "state" / "pipe")
    (saved / "2" / "digest" / "metadata").unlink()
    os.mkfifo(saved / "2" / "digest" / "metadata")
    assert restore(saved, state)[0] == 1


def test_a_half_written_step_is_not_a_checkpoint(saved, state):
    (saved / "3").rename(saved / "4.orbax-checkpoint-tmp-1")
    assert restore(saved, state)[0] == 2


def test_without_checkpoints_nothing_is_restored(tmp_path, state):
    assert restore(tmp_path / "checkpoints", state) is None


def test_a_state_of_another_model_is_an_error_and_not_damage(saved, state):
    with pytest.raises(InputError, match="another model"):
        restore(saved, state | {"more": jnp.ones(2)})
    with pytest.raises(InputError, match="flags"):
        restore(saved, state | {"flags": jnp.ones(2)})
    assert (saved / "3").is_dir()


def test_a_run_is_not_resumed_with_other_settings_of_jax(saved, state):
    """By the setting, and where an array's type shows it, by the array."""
    with jax.enable_x64(True):
        with pytest.raises(InputError, match="JAX_ENABLE_X64=False, now it is True"):
            restore(saved, state)
        wide = jax.ShapeDtypeStruct((8, 8), np.float64)
        why = r"'float32'\], not .*'float64'\]; set JAX_ENABLE_X64=0"
        with pytest.raises(InputError, match=why):
            restore(saved, state | {"params": {"a": {0: wide}}})
    with jax.default_prng_impl("rbg"):
        with pytest.raises(InputError, match="set JAX_DEFAULT_PRNG_IMPL=threefry2x32"):
            restore(saved, state)
    assert restore(saved, state)[0] == 3


def test_keep_must_be_at_least_two(tmp_path):
    with pytest.raises(InputError, match="at least 2"):
        checkpoint.Checkpoints(tmp_path, keep=1)
