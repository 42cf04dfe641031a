"""The command line describes a config without running it, and starts fast."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import polyview.__main__
import sgi.__main__
from polyview import cli
from polyview import main as command_line
from polyview.config.file import load_config
from polyview.config.text import to_json
from polyview.errors import InputError

ROOT = Path(__file__).parent.parent
COMMANDS = (
    *(f"polyview.{name}" for name in polyview.__main__.COMMANDS),
    *(f"sgi.{name}" for name in sgi.__main__.COMMANDS),
)


def output_of(monkeypatch, capsys, *words) -> str:
    monkeypatch.setattr(sys, "argv", ["polyview.main", *map(str, words)])
    monkeypatch.chdir(ROOT)
    command_line.main()
    return capsys.readouterr().out


def test_every_config_is_listed_with_its_first_line(monkeypatch, capsys):
    lines = output_of(monkeypatch, capsys, "--list").splitlines()
    paths = sorted(map(str, Path("configs").glob("*.py")))
    assert [line.split()[0] for line in lines] == paths
    assert all(len(line.split()) > 3 for line in lines)


def test_a_folder_is_listed_without_running_its_files(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.py").write_text('"""Said."""\nraise SystemExit(9)\n')
    (tmp_path / "b.py").write_text("def broken(:\n")
    listed = output_of(monkeypatch, capsys, "--list", tmp_path)
    assert "a.py  Said." in listed and "b.py  (not Python: " in listed
    with pytest.raises(InputError, match="no configs in .*none"):
        output_of(monkeypatch, capsys, "--list", tmp_path / "none")


def test_a_printed_config_includes_the_overrides(monkeypatch, capsys):
    path = "configs/polyview_digits.py:views=2"
    text = output_of(
        monkeypatch, capsys, "--config", path, "--print-config", "--config.steps=7"
    )
    assert text == to_json(load_config(path, {"steps": "7"})) + "\n"
    assert json.loads(text)["steps"] == 7


def test_a_dry_run_prints_sizes_and_writes_nothing(
    monkeypatch, capsys, tmp_path, data_dir
):
    monkeypatch.setenv("POLYVIEW_DATA", str(data_dir))
    config = "configs/polyview_digits.py:views=2"
    words = ["--config", config, "--workdir", tmp_path / "run", "--dry-run"]
    printed = output_of(monkeypatch, capsys, *words, "--config.batch_size=8")
    assert "parameters" in printed and "MiB a device, as compiled" in printed
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="batch_size=1000000"):
        output_of(monkeypatch, capsys, *words, "--config.batch_size=1000000")


def test_compiled_programs_are_kept_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")

    def folder(**environment):
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        cli.cache_compiled()
        return os.environ["JAX_COMPILATION_CACHE_DIR"]

    home = str(tmp_path)
    assert folder(HOME=home, XDG_CACHE_HOME="") == f"{home}/.cache/polyview"
    assert folder(XDG_CACHE_HOME=f"{home}/cache") == f"{home}/cache/polyview"
    assert folder(HOME=home, XDG_CACHE_HOME="cc") == f"{home}/.cache/polyview"
    assert folder(XDG_CACHE_HOME="/proc/nowhere") == ""
    assert folder(JAX_COMPILATION_CACHE_DIR="/mine") == "/mine"
    assert folder(JAX_COMPILATION_CACHE_DIR="") == ""


def test_a_run_requires_a_config_and_a_workdir(monkeypatch, capsys):
    with pytest.raises(InputError, match="--list shows some"):
        output_of(monkeypatch, capsys, "--workdir", "x")
    with pytest.raises(InputError, match="give --workdir DIR"):
        output_of(monkeypatch, capsys, "--config", "configs/polyview_digits.py")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_does_not_import_jax(name):
    program = (
        f"import sys, runpy; sys.argv = [{name!r}, '--help']\n"
        f"try: runpy.run_module({name!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'jax' not in sys.modules and 'grain' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert b"usage: " in done.stdout
