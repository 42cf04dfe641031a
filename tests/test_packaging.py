"""`pip install` brings every package, the configs and the commands, and no data."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import agents.__main__
import dvf.__main__
import polyview.__main__
import sgi.__main__
from polyview import cli
from polyview.config import file as config_file
from polyview.config.file import list_configs, load_config

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_folder_of_code_is_packaged():
    folders = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for package in ("agents", "dvf", "polyview", "sgi")
        for path in (ROOT / package).rglob("*.py")
    }
    configs = {
        ".".join(("polyview", *path.parent.relative_to(ROOT).parts))
        for path in (ROOT / "configs").rglob("*.py")
    }
    packages = PROJECT["tool"]["setuptools"]["packages"]
    assert set(packages) == folders | configs


def test_package_changelog_and_citation_have_one_version():
    """The build reads the package's version; changelog and citation have the same."""
    assert PROJECT["project"]["dynamic"] == ["version"]
    version = PROJECT["tool"]["setuptools"]["dynamic"]["version"]
    assert version == {"attr": "polyview.__version__"}
    sections = re.findall(
        r"^## \[(.*?)\](?: - (\S+))?$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    (unreleased, _), (newest, date), *_ = sections
    assert (unreleased, newest) == ("Unreleased", polyview.__version__)
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {newest}\n" in citation
    assert f"\ndate-released: {date}\n" in citation


def test_pinned_requirements_match_the_dependencies():
    """Each dependency, and nothing else, is pinned for `make` within its range."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    required = (
        project["dependencies"]
        + extras["dev"]
        + extras["docs"]
        + extras["atari"]
        + extras["dvf"]
        + extras["agents"]
    )
    ranges = {
        canonicalize_name(r.name): r.specifier for r in map(Requirement, required)
    }
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [Requirement(line.split("#")[0]) for line in lines if line.split("#")[0]]
    assert {canonicalize_name(pin.name) for pin in pins} == set(ranges)
    for pin in pins:
        (exact,) = pin.specifier
        name = canonicalize_name(pin.name)
        assert exact.operator == "==" and exact.version in ranges[name], str(pin)


@pytest.mark.parametrize(
    "package, flag, wrong",
    [
        (agents, "video --run", "vidoe"),
        (dvf, "prepare --env", "prepar"),
        (polyview, "report --run", "reprt"),
        (sgi, "report --run", "reprt"),
    ],
    ids=["agents", "dvf", "polyview", "sgi"],
)
def test_an_installed_command_runs_its_module(
    package, flag, wrong, monkeypatch, capsys
):
    names = package.__main__.COMMANDS
    for name in names:
        assert (Path(package.__file__).parent / f"{name}.py").is_file()
    monkeypatch.setattr(sys, "argv", [package.__name__])
    cli.choose(package.__name__, names)
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in names)
    meant = f"'{flag.split()[0]}'?"
    for words, why in (flag.split(), "expected"), ([wrong], meant):
        monkeypatch.setattr(sys, "argv", [package.__name__, *words])
        with pytest.raises(SystemExit) as end:
            cli.choose(package.__name__, names)
        assert end.value.code == 2 and why in capsys.readouterr().err


def test_an_installed_package_includes_the_configs(tmp_path, monkeypatch):
    installed = tmp_path / "site" / "configs"
    installed.mkdir(parents=True)
    (installed / "x.py").write_text("def get_config(argument):\n    return {'a': 1}\n")
    monkeypatch.setattr(config_file, "__file__", str(tmp_path / "site/config/file.py"))
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/x.py").a == 1
    assert list_configs(Path("configs"))[0].startswith("configs/x.py ")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "x.py").write_text(
        "def get_config(argument):\n    return {'a': 2}\n"
    )
    assert load_config("configs/x.py").a == 2, "the user's own config must come first"


def test_importing_the_package_imports_no_heavy_library():
    """Neither JAX nor NumPy: `import polyview` must be fast."""
    program = (
        "import sys, polyview\n"
        "assert not {'jax', 'numpy', 'flax', 'grain'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.slow
def test_a_wheel_contains_only_code_and_configs(tmp_path):
    source = tmp_path / "source"  # since building leaves files in its source
    for name in ("agents", "dvf", "polyview", "sgi", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if ".dist-info/" not in n]
        size = sum(archive.getinfo(name).file_size for name in names)
        (entry,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert b"polyview = polyview.__main__:main" in archive.read(entry)
    others = {name for name in names if not name.endswith(".py")}
    packages = ("agents", "dvf", "polyview", "sgi")
    assert {name.split("/")[0] for name in names} == set(packages)
    assert others == {f"{name}/trusted.txt" for name in packages} and size < 2e6
    packed = {n for n in names if n.startswith("polyview/configs/")}
    configs = (ROOT / "configs").rglob("*.py")
    assert packed == {f"polyview/{path.relative_to(ROOT)}" for path in configs}
