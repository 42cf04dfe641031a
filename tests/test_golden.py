"""Each config resolves to its text in `tests/golden/`; `make golden` rewrites them."""

import difflib

import pytest
from golden import CASES, FILES, ROOT, path_of, resolve, stand_ins

HELP = "if this is what you want: make golden, and commit the changed files"


@pytest.fixture(scope="module", autouse=True)
def data():
    with stand_ins():
        yield


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_a_config_resolves_to_its_golden_text(name, argument):
    if name == "sgi_finetune":
        pytest.importorskip("ale_py")
    path = path_of(name, argument)
    old = path.read_text() if path.exists() else ""
    new = resolve(name, argument)
    if new != old:
        where = str(path.relative_to(ROOT))
        lines = old.splitlines(), new.splitlines()
        diff = difflib.unified_diff(*lines, where, "now", lineterm="")
        pytest.fail("\n".join(["", *diff, "", HELP]), pytrace=False)


def test_every_config_has_a_golden_text_and_every_text_a_config():
    configs = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert {name for name, _ in CASES} == configs
    assert set(FILES.iterdir()) == {path_of(*case) for case in CASES}, HELP
