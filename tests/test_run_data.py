"""A run belongs to the data it began with, and its checkpoints can be read back."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from polyview import cli, hosts
from polyview.config.file import load_config
from polyview.config.spec import build
from polyview.data import workers
from polyview.data.prepare import records
from polyview.data.sources.array_record import ArrayRecord
from polyview.data.sources.folder import Folder
from polyview.data.sources.protocol import CorruptRecord, identity
from polyview.errors import InputError, Preempted
from polyview.runs.checkpoint import Checkpoints
from polyview.runs.workdir import check_workdir, claim_workdir, claimed_workdir

CONFIG = load_config("configs/polyview_gaussian.py:steps=2,batch_size=16")
DATA = {"source": {"rows": 24, "digest": "abc"}}


def checkpointed(workdir, data=DATA):
    claim_workdir(workdir, CONFIG, data)
    (workdir / "checkpoints" / "5").mkdir(parents=True)


@pytest.mark.parametrize("other", [{"rows": 99}, {"digest": "def"}])
def test_a_run_is_not_resumed_on_other_data(tmp_path, other):
    checkpointed(tmp_path)
    claim_workdir(tmp_path, CONFIG, DATA)
    message = r"24 rows \(abc\), now \d+ \((abc|def)\)"
    with pytest.raises(InputError, match=message):
        claim_workdir(tmp_path, CONFIG, {"source": DATA["source"] | other})
    claim_workdir(tmp_path, CONFIG, DATA)


def test_numbers_that_a_config_takes_from_its_data_are_not_what_is_blamed(tmp_path):
    checkpointed(tmp_path)  # with other data than the config's source has
    other = CONFIG.copy_and_resolve_references()
    other.views.deviation = 0.7
    with pytest.raises(InputError, match=r"other data: .* 24 rows \(abc\), now"):
        check_workdir(tmp_path, other)


def test_a_run_of_an_earlier_version_takes_the_data_it_finds(tmp_path):
    checkpointed(tmp_path)
    (tmp_path / "data.json").unlink()
    claim_workdir(tmp_path, CONFIG, DATA)
    with pytest.raises(InputError, match="other data"):
        claim_workdir(tmp_path, CONFIG, {"source": {"rows": 1, "digest": ""}})


def test_a_workdir_without_a_checkpoint_takes_a_new_config(tmp_path):
    claim_workdir(tmp_path, CONFIG, DATA)
    other = load_config("configs/polyview_gaussian.py:steps=3,batch_size=16")
    data = {"source": identity(build(other.source))}
    claim_workdir(tmp_path, other, data)
    (tmp_path / "damaged" / "5").mkdir(parents=True)  # even a damaged one counts
    with pytest.raises(InputError, match="another config"):
        check_workdir(tmp_path, CONFIG)


def write(directory, rows, value=0):
    records.write(
        directory,
        {"train": [{"x": np.full(2, value + i, np.float32)} for i in range(rows)]},
        version="1",
        targets={},
        source="",
        licence="",
    )


def test_the_digest_changes_with_the_rows_and_their_part(tmp_path):
    write(tmp_path / "a", 4)
    write(tmp_path / "b", 4)
    write(tmp_path / "c", 4, value=1)
    found = [
        identity(ArrayRecord(name, split, tmp_path))["digest"]
        for name, split in (
            ("a", "train"),
            ("b", "train"),
            ("c", "train"),
            ("a", "train[:2]"),
            ("a", "train[2:]"),
        )
    ]
    assert found[0] == found[1] and len(set(found[1:])) == 4
    images = tmp_path / "images"
    images.mkdir()
    (images / "1.png").write_bytes(b"12")
    before = Folder(images).digest
    (images / "1.png").write_bytes(b"123")
    assert Folder(images).digest != before


def test_processes_with_other_data_all_stop(monkeypatch):
    def everywhere(own):
        return np.stack([own, own, own ^ 1])

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    monkeypatch.setattr(
        "jax.experimental.multihost_utils.process_allgather", everywhere
    )
    with pytest.raises(
        InputError, match=r"process 2 has another data than process 0.*7"
    ):
        hosts.check_equal("data", "7 rows")


def test_what_stops_the_first_process_alone_stops_the_others(tmp_path, monkeypatch):
    """Only the first waits for the lock of a workdir."""
    told = np.frombuffer(b"another process trains in it", np.uint8)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(
        "jax.experimental.multihost_utils.process_allgather",
        lambda own: np.stack([np.pad(told, (0, own.size - told.size)), own]),
    )
    why = "process 0 stops, and so do all: another process trains in it"
    with pytest.raises(InputError, match=why), claimed_workdir(tmp_path, CONFIG):
        raise AssertionError("it must not begin")
    with pytest.raises(KeyError, match="own"), hosts.together():
        raise KeyError("own")


@pytest.mark.parametrize("name", ["[seed-0]", "lr=[0.1,0.2]", "what?", "a*"])
def test_a_path_where_checkpoints_would_not_be_found_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="in its path"):
        check_workdir(tmp_path / name / "run", CONFIG)
    (tmp_path / "link").symlink_to(tmp_path / name)
    with pytest.raises(InputError, match="in its path"):
        check_workdir(tmp_path / "link", CONFIG)


@pytest.mark.parametrize("name", ["run", "run/checkpoints"])
def test_a_workdir_that_is_a_link_to_nothing_or_a_file_is_refused(tmp_path, name):
    """As when the disk is not mounted; a new run must not take its place."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(tmp_path / "absent")
    with pytest.raises(InputError, match=f"{name} is a link to .*absent, .*mount or"):
        claim_workdir(tmp_path / "run", CONFIG)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(InputError, match=f"{name} is a link to"):
        claim_workdir(tmp_path / "run", CONFIG)
    path.unlink()
    path.write_text("")
    with pytest.raises(InputError, match=f"{name} is a file; name a folder"):
        claim_workdir(tmp_path / "run", CONFIG)
    assert [p.name for p in tmp_path.rglob("*")] == name.split("/")


def test_a_save_that_cannot_be_read_back_stops_the_run(tmp_path, monkeypatch):
    state = {"a": jax.numpy.arange(3.0), "b": jax.numpy.ones((4, 4))}
    with Checkpoints(tmp_path / "good") as checkpoints:
        checkpoints.save(1, state, "{}")
    checkpoints = Checkpoints(tmp_path / "bad")
    checkpoints.save(1, state, "{}")
    checkpoints._manager.wait_until_finished()
    for manifest in (tmp_path / "bad" / "1" / "state").rglob("manifest.ocdbt"):
        manifest.unlink()
    with pytest.raises(InputError, match="cannot read back what was written"):
        checkpoints.save(2, state, "{}")
    checkpoints.close()


def test_a_damaged_checkpoint_behind_a_link_to_another_disk_is_set_aside(tmp_path):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        if os.stat(elsewhere).st_dev == os.stat(tmp_path).st_dev:
            pytest.skip("one disk only")
        (tmp_path / "checkpoints").symlink_to(elsewhere)
        state = {"a": jax.numpy.arange(3.0)}
        with Checkpoints(tmp_path / "checkpoints") as checkpoints:
            checkpoints.save(1, state, "{}")
            checkpoints.save(2, state, "{}")
            checkpoints.wait()
            shutil.rmtree(Path(elsewhere, "2", "state"))
            step, _ = checkpoints.restore_newest(state)
        assert step == 1 and (tmp_path / "damaged" / "2").is_dir()


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            RuntimeError(
                "Worker process was terminated unexpectedly with exit code -9."
            ),
            Preempted,
            r"code -9\).*`workers`",
        ),
        (OSError(errno.ENOSPC, "No space"), Preempted, "--shm-size"),
        (RuntimeError("a bug of the source"), RuntimeError, "a bug"),
        (OSError(errno.EACCES, "Permission"), OSError, "Permission"),
    ],
)
def test_lost_workers_are_explained_in_a_line(error, kind, message):
    with pytest.raises(kind, match=message), workers.explained("the source"):
        raise error


def test_a_source_that_cannot_be_sent_to_workers_is_named():
    error = TypeError("cannot pickle '_thread.lock' object")
    error.add_note("Dataset: SourceMapDataset(source=_Batches) cannot be pickled!")
    with pytest.raises(InputError, match=r"mine.*workers=0"), workers.explained("mine"):
        raise error


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            RuntimeError("Unable to initialize backend 'cuda': none"),
            "use JAX_PLATFORMS",
        ),
        (AssertionError(), "JAX cannot use JAX_PLATFORMS"),
        (
            RuntimeError("Could not determine process_index for this process"),
            r"JAX_NUM_CPU_DEVICES \(or XLA_FLAGS\) asks for none; give 1 or more",
        ),
    ],
)
def test_an_absent_device_is_a_line(monkeypatch, error, why):
    def absent():
        raise error

    monkeypatch.setattr(jax, "devices", absent)
    with pytest.raises(InputError, match=why):
        cli.check_jax()


@pytest.mark.slow
def test_no_device_at_all_is_not_blamed_on_the_platform(command):
    config = "configs/polyview_digits.py"
    done = command("main", "--config", config, "--dry-run", devices=0)
    assert done.returncode == 2 and done.output.count("\n") == 1
    assert "JAX_NUM_CPU_DEVICES (or XLA_FLAGS) asks for none" in done.output


@pytest.mark.parametrize("value", ["disallow", "disallow_explicit"])
def test_a_guard_that_no_run_passes_is_refused(value):
    with jax.transfer_guard(value):
        with pytest.raises(InputError, match=f"JAX_TRANSFER_GUARD={value} .* unset it"):
            cli.check_jax()
    with jax.transfer_guard("log_explicit"):
        cli.check_jax()


def test_steps_that_are_not_compiled_are_refused():
    with jax.disable_jit(), pytest.raises(InputError, match="JAX_DISABLE_JIT"):
        cli.check_jax()


def test_short_memory_is_not_called_damage(tmp_path, monkeypatch):
    write(tmp_path / "set", 4)
    source = ArrayRecord("set", "train", tmp_path)

    class Short:
        def __init__(self, *_):
            raise RuntimeError("can't start new thread")

        def __getitem__(self, index):
            raise RuntimeError("INTERNAL: Cannot allocate memory")

    monkeypatch.setattr(source, "_records", object.__new__(Short))
    with pytest.raises(InputError, match="cannot be read now"):
        source[0]
    monkeypatch.setattr(
        "polyview.data.sources.array_record.ArrayRecordDataSource", Short
    )
    with pytest.raises(InputError, match="cannot be read now"):
        ArrayRecord("set", "train", tmp_path)
    (tmp_path / "1.png").write_bytes(b"1")
    folder = Folder(tmp_path)

    def full(self):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_bytes", full)
    with pytest.raises(InputError, match="cannot be read now"):
        folder[0]
    monkeypatch.undo()
    (tmp_path / "1.png").unlink()
    with pytest.raises(CorruptRecord):
        folder[0]


def test_a_limited_address_space_is_an_error_and_no_hang(tmp_path):
    write(tmp_path / "set", 4)
    program = f"""
import resource
from polyview.data.sources.array_record import ArrayRecord
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
ArrayRecord("set", "train", {str(tmp_path)!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert "InputError" in done.stderr and "ulimit -v" in done.stderr


def test_help_needs_no_docstrings():
    """`python -OO` strips them."""
    assert cli.first_line(None) == "" and cli.first_line("One.\n\nTwo.") == "One."
    for path in (Path(cli.__file__).parent).glob("*.py"):
        assert "__doc__." not in path.read_text(), path
