"""The pages are correct: links, commands, flags, keys, messages; and their blocks run.

A fence marked "bash runnable" or "python runnable" is run, in the order of its
page, in an empty directory with the project's configs and launchers.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from golden import AGENTS, RECORDED

import dvf.recording
from polyview.config.file import load_config
from polyview.config.overrides import apply_overrides
from polyview.config.schema import OPTIONAL
from sgi import recording

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


class Block(NamedTuple):
    """A fenced block, and the line of the page where its text begins."""

    language: str
    runnable: bool
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    found, text = [], page.read_text()
    for fence in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.M | re.S):
        language, _, word = fence[1].partition(" ")
        assert word in ("", "runnable"), f"{page.name}: ```{fence[1]}"
        line = text.count("\n", 0, fence.start()) + 2
        found.append(Block(language, word == "runnable", fence[2], line))
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)


def code(page: Path) -> list[str]:
    """The spans between backticks in the prose, each joined into one line."""
    return [" ".join(s.split()) for s in re.findall(r"`([^`]+)`", prose(page))]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and MyST give to the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads}


@by_page
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{target} of {page.name}"
        if anchor:
            assert anchor in anchors(linked), f"{target} of {page.name}"


def test_the_index_links_every_page():
    index = ROOT / "docs" / "index.md"
    named = set(re.findall(r"\]\((\w+\.md)\)", index.read_text()))
    assert named == {page.name for page in PAGES[1:]} - {"index.md"}


class Command(NamedTuple):
    """A call of a program of the project: "polyview.main", "launch/slurm.sh"."""

    program: str
    words: list[str]


def commands(shell: str) -> Iterator[Command]:
    """The programs that shell lines call; `--` may pass one to another."""
    shell = re.sub(r"<<'(\w+)'\n.*?^\1$", "", shell, flags=re.M | re.S)
    for line in shell.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            word = words.pop(0)
            if word == "-m" and words and re.match(r"\w+\.\w", words[0]):
                program = words.pop(0)
            elif word.startswith("launch/"):
                program = word
            else:
                continue
            ends = [n for n, w in enumerate(words) if w in ("--", "|", "&&", ";")]
            mine = words[: min(ends, default=len(words))]
            yield Command(program, mine)
            words = words[len(mine) :]


def shells(page: Path) -> Iterator[str]:
    """Shell blocks, and commands between backticks."""
    for block in blocks(page):
        if block.language in ("", "bash") and "import " not in block.text:
            yield block.text
    for span in code(page):
        if span.startswith(("python ", "bash ")):
            yield span


def usage(launcher: Path) -> str:
    """The header of a launcher, which is also its help."""
    text = launcher.read_text()
    return text.partition("\nset -")[0] if "usage" in text else ""


@cache
def accepted(program: str) -> set[str]:
    """The flags that a program accepts."""
    path = ROOT / program
    if program.startswith("benchmarks."):  # --help imports what it measures with
        text = (ROOT / f"{program.replace('.', '/')}.py").read_text()
    elif path.suffix == ".sh":
        text = usage(path) + "--help"
    else:
        words = [path] if path.suffix == ".py" else ["-m", program]
        words = [sys.executable, *words, "--help"]
        run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, f"{program}: {run.stderr}"
        text = run.stdout + "--help"
    return set(re.findall(r"--[a-z][\w-]*", text))


@by_page
def test_commands_and_flags_exist(page):
    for program, words in (c for shell in shells(page) for c in commands(shell)):
        known = accepted(program)
        for word in words:
            flag = word.partition("=")[0]
            if flag.startswith("--") and not flag.startswith("--config."):
                assert flag in known, f"{program} {flag}"


def programs() -> list[str]:
    """Every program of the project."""
    packages = ("polyview", "sgi", "dvf", "agents")
    modules = [path for name in packages for path in (ROOT / name).glob("*.py")]
    return [
        *(f"{p.parent.name}.{p.stem}" for p in modules if "__main__" in p.read_text()),
        *(f"launch/{p.name}" for p in (ROOT / "launch").glob("*.sh") if usage(p)),
    ]


@by_page
def test_flags_in_the_prose_exist(page):
    flags = {span.split()[0] for span in code(page) if re.match(r"--[a-z]", span)}
    flags = {flag.partition("=")[0] for flag in flags if "--config." not in flag}
    known = set().union(*map(accepted, programs())) if flags else set()
    assert flags <= known


@pytest.fixture
def load(monkeypatch):
    """`load("configs/x.py:a=b")`, with recorded play faked."""
    described = {"policy": "DQN", "actions": ["NOOP"] * 6}
    monkeypatch.setattr(recording, "describe", lambda name: described)
    monkeypatch.setattr(dvf.recording, "describe", lambda name: RECORDED)
    for name, stand_in in AGENTS.items():
        monkeypatch.setattr(name, stand_in)

    def read(config: str):
        if config.startswith("configs/sgi_finetune.py"):
            pytest.importorskip("ale_py")
        return load_config(f"{ROOT}/{config}")

    return read


@by_page
def test_configs_and_their_keys_exist(page, load):
    for _, words in (c for shell in shells(page) for c in commands(shell)):
        named = [b for a, b in zip(words, words[1:], strict=False) if a == "--config"]
        # A command without --config reads that of its run; here, a small one.
        name = named[0] if named else "configs/polyview_digits.py"
        path = name.partition(":")[0]
        if not path.startswith("configs/") or path == "configs/x.py":
            continue  # a file of the reader's own
        assert (ROOT / path).is_file(), path
        reads = (":run=", ":reward=", "_folder.py:", "tokenizer=", "vision=")
        reads += ("gea_online.py:",)
        if any(word in name for word in reads):
            continue  # it reads that run, or data of the reader's own
        config = load(name)
        keys = [word.removeprefix("--config.") for word in words if "--config." in word]
        for key, _, value in (key.partition("=") for key in keys):
            if re.search(r"[{]|\.\.\.|^[A-Z]+$", value):  # a placeholder
                assert has(config, key), f"{name} {key}"
            else:
                apply_overrides(config, {key: value})


def has(config, key: str) -> bool:
    if key in OPTIONAL:
        return True
    for name in key.split("."):
        if not hasattr(config, "keys") or name not in config:
            return False
        config = config[name]
    return True


LOSSES = ("geometric", "arithmetic", "sufficient_statistics")
SAMPLES = [
    *(f"configs/polyview_cifar10.py:objective={loss}" for loss in LOSSES),
    "configs/crossmodal_emoji.py",
    "configs/sgi_pretrain.py",
    "configs/sgi_finetune.py",
]


@by_page
def test_config_keys_in_the_prose_exist(page, load):
    found = re.findall(r"--config\.([\w.]+\w)", " ".join(code(page)))
    keys = {k for k in found if k not in ("key", "group.key", "a.b")}
    made = [load(name) for name in SAMPLES] if keys else []
    assert not {key for key in keys if not any(has(c, key) for c in made)}


@cache
def literals() -> dict[str, str]:
    """The strings in each file; a zero byte replaces each field of an f-string."""
    found = {}
    for folder in ("polyview", "sgi", "dvf", "agents"):
        for path in (ROOT / folder).rglob("*.py"):
            strings = []
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (getattr(part, "value", "\0") for part in node.values)
                    parts = (p if isinstance(p, str) else "\0" for p in parts)
                    strings.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    strings.append(node.value)
            found[str(path)] = "\n".join(" ".join(s.split(" ")) for s in strings)
    return found


def is_in_the_code(message: str) -> bool:
    """Whether one file holds every part of a message between its `...`."""
    fixed = [part.strip() for part in re.split(r"\.{3,}", message)]
    fixed = [part for part in fixed if len(part) > 2]
    assert fixed, message
    return any(all(f in text for f in fixed) for text in literals().values())


TROUBLE = ROOT / "docs" / "troubleshooting.md"


@pytest.mark.parametrize(
    "message", re.findall(r"^### `(.*)`$", TROUBLE.read_text(), re.M)
)
def test_quoted_messages_exist_in_the_code(message):
    assert is_in_the_code(message)


@by_page
def test_python_blocks_parse(page):
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text)


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """The environment of a user on one device; commands share compiled programs."""
    folder = Path(sys.executable).parent
    cache_dir = str(tmp_path_factory.mktemp("docs_compiled"))
    settings = os.environ | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    settings.pop("POLYVIEW_DATA", None)
    return settings


@pytest.mark.docs
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.runnable for block in blocks(page))],
    ids=lambda page: page.name,
)
def test_runnable_blocks_run(page, environment, tmp_path):
    for name in ("configs", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    run = {
        "bash": ["bash", "-euo", "pipefail", "-c"],
        "python": [sys.executable, "-c"],
    }
    for block in blocks(page):
        if block.runnable:
            done = subprocess.run(
                [*run[block.language], block.text],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=300,
            )
            where = f"{page.name}, line {block.line}"
            assert done.returncode == 0, f"{where}:\n{done.stdout}"
            print(f"== {where}\n{done.stdout}")
