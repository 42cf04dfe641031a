"""Imports run one way, so that each room can be read, and replaced, by itself."""

import ast
from pathlib import Path

import pytest

from polyview.__main__ import COMMANDS

ROOT = Path(__file__).parent.parent
# What each room may import of this project, beside itself and `errors`.
ALLOWED = {
    "errors": set(),
    "command": set(),
    "config": set(),
    "data": {"files"},
    "nn": set(),
    "objectives": set(),
    "optimizer": set(),
    "recipes": {"config", "data", "workdir"},
    "mesh": {"metrics"},
    "files": set(),
    "metrics": {"files"},
    "flops": {"objectives", "step"},
    "banner": {"mesh", "metrics"},
    "dump": {"checkpoint", "mesh", "metrics"},
    "microbatch": set(),
    "layouts": {"nn"},
    "step": {"microbatch", "objectives"},
    "checkpoint": {"config", "files"},
    "evaluation": {"config", "data", "files", "mesh"},
    "restore": {"checkpoint", "config", "step"},
    "workdir": {"config", "files", "mesh", "metrics"},
    "train": {
        "banner",
        "config",
        "dump",
        "step",
        "optimizer",
        "checkpoint",
        "mesh",
        "metrics",
        "microbatch",
        "evaluation",
        "data",
        "restore",
        "workdir",
    },
    "dry_run": {"banner", "bench", "mesh", "metrics", "train"},
}


def imports(path: Path) -> set[str]:
    """The modules a file imports, dotted; `from a import b` gives a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports out from the top"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT / "polyview").parts[0].removesuffix(".py")


@pytest.mark.parametrize(
    "path", files("polyview"), ids=lambda p: str(p.relative_to(ROOT))
)
def test_a_room_imports_only_what_lies_below_it(path):
    here = room(path)
    found = imports(path)
    assert not {
        name for name in found if name.split(".")[0] in ("sgi", "configs", "tests")
    }
    if here in COMMANDS or here in ("__init__", "__main__"):
        return
    rooms = {p.name.removesuffix(".py") for p in (ROOT / "polyview").iterdir()}
    used = {n.split(".")[1] for n in found if n.startswith("polyview.")} & rooms
    assert here in ALLOWED, f"{here} is a new room: say here what it may import"
    assert used <= ALLOWED[here] | {here, "errors"}


@pytest.mark.parametrize("path", files("polyview/data"), ids=lambda p: p.name)
def test_data_is_numpy_alone(path):
    heads = {name.split(".")[0] for name in imports(path)}
    assert not heads & {"jax", "flax", "optax", "orbax"}


def test_only_one_file_splits_and_merges_modules():
    users = [
        path.name
        for path in files("polyview")
        if {"split", "merge"}
        & {call_of_nnx(n) for n in ast.walk(ast.parse(path.read_text()))}
    ]
    assert users == ["step.py"]


def call_of_nnx(node: ast.AST) -> str | None:
    """The name f of a call `nnx.f(...)`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if isinstance(node.func.value, ast.Name) and node.func.value.id == "nnx":
            return node.func.attr
    return None


def code_lines(path: Path) -> int:
    """Lines of code and comments: what is neither blank nor a docstring."""
    text = path.read_text()
    prose = set()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
            continue
        if ast.get_docstring(node) is not None:
            prose |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(1 for number, line in lines if line.strip() and number not in prose)


@pytest.mark.parametrize(
    "name",
    [
        "atari",
        "record",
        "recording",
        "dqn_replay",
        "replay",
        "environment",
        "scores",
        "variables",
    ],
)
def test_play_and_what_is_recorded_of_it_need_no_jax(name):
    """Its imports, and theirs within the project; `prepare` is a command."""
    reached, ahead = set(), [f"sgi.{name}"]
    while ahead:
        module = ahead.pop()
        path = ROOT / f"{module.replace('.', '/')}.py"
        if module in reached or not path.is_file():
            continue
        reached.add(module)
        ahead += imports(path)
        assert not {n.split(".")[0] for n in imports(path)} & {"jax", "flax", "optax"}


def test_from_source_to_gradient_is_8_files_and_1000_lines():
    names = (
        "configs/polyview_fashion_mnist.py",
        "polyview/data/pipeline.py",
        "polyview/data/views.py",
        "polyview/mesh.py",
        "polyview/train.py",
        "polyview/step.py",
        "polyview/nn/towers.py",
        "polyview/objectives/polyview.py",
    )
    lines = {name: code_lines(ROOT / name) for name in names}
    assert sum(lines.values()) < 1000, lines
