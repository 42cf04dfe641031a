"""A file is written whole or left as it was; reads are bounded."""

import os
import resource
import stat

import pytest

from polyview import files
from polyview.errors import InputError
from polyview.runs import metrics


@pytest.mark.parametrize("before", [None, b"old"])
def test_an_interrupted_write_leaves_only_the_old_file(tmp_path, before):
    path = tmp_path / "file"
    if before:
        path.write_bytes(before)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # like a full disk
    try:
        with pytest.raises(InputError, match=r"cannot write .*file: File too large"):
            files.write_whole(path, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(KeyboardInterrupt), files.writing_whole(path) as unfinished:
        unfinished.write_bytes(b"new")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == (["file"] if before else [])
    assert not before or path.read_bytes() == before


def test_a_folder_or_pipe_is_not_overwritten(tmp_path):
    """As root, a rename would replace /dev/null by a file."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InputError, match="it exists and is not a file"):
            files.write_whole(path, b"new")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_checking_a_folder_does_not_make_it(tmp_path):
    files.check_folder(tmp_path / "new" / "deep")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="file is not a folder"):
        files.check_folder(tmp_path / "file" / "deep")


def test_reads_require_a_regular_file_and_are_bounded(tmp_path):
    path = tmp_path / "x.json"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        files.read_json(tmp_path / "pipe")
    with pytest.raises(InputError, match="cannot be read: it is not a regular file"):
        metrics.read(tmp_path / "pipe")
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        files.read_json(path)
    path.write_text('{"a": 1}')
    assert files.read_json(path) == {"a": 1}
    with pytest.raises(ValueError, match="longer than 7 bytes"):
        files.read_bounded(path, 7)


def test_writes_follow_no_links_and_concurrent_writes_stay_whole(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_bytes(b"mine")
    path.symlink_to(victim)
    (tmp_path / ".file.unfinished").symlink_to(victim)
    with files.writing_whole(path) as one, files.writing_whole(path) as other:
        one.write_bytes(b"1" * 9)
        other.write_bytes(b"2" * 5)
    assert victim.read_bytes() == b"mine"
    assert path.read_bytes() in (b"1" * 9, b"2" * 5)


def test_an_ending_counts_in_any_case(tmp_path):
    files.check_new(tmp_path / "x.GIF", (".gif",))
    with pytest.raises(InputError, match=r"must end in \.gif"):
        files.check_new(tmp_path / "x.giff", (".gif",))
