"""Language models in the data folder.

    weights/<sha256>.safetensors    arrays by their path in `agents.llm.llama:Body`
    weights/<sha256>.json           the tokenizer
    NAME/model.json                 settings, and the digests of both

Configs name both files by their digest, so that a run never takes others
in their place.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from agents.llm import gguf, hub
from agents.llm.source import Source, check_settings, stacked
from agents.llm.tokenizer import of_text
from polyview import files
from polyview.data.sources.protocol import default_data_dir
from polyview.errors import InputError
from polyview.runs.weights import file_digest


def read(path: Path) -> Source:
    """Return the model of a GGUF file, or of a folder as the hub keeps it."""
    if path.is_dir():
        return hub.read(path)
    if not path.is_file():
        raise InputError(f"{path} is neither a GGUF file nor a folder")
    return gguf.read(path)


def write(name: str, source: Source, data_dir: Path, where: str, licence: str) -> str:
    """Write a model into the data folder as `name`; return a summary.

    where: its origin. Raises InputError as `agents.llm.source:stacked`; then nothing is
    written under the name.
    """
    arrays = stacked(source, where)
    tokenizer = source.tokenizer.encode()
    size = of_text(source.tokenizer, where).get_vocab_size()
    if size > source.settings["vocabulary"]:
        raise InputError(
            f"{where}: its tokenizer has {size} tokens, its body only "
            f"{source.settings['vocabulary']}"
        )
    about: dict[str, Any] = {"format": 1, "name": name, "source": where}
    about |= {"licence": licence, "settings": source.settings}
    about |= {"special": source.special, "template": source.template}
    # Float32, whatever the file has: a run may ask for less.
    contents = {
        "weights": (save(arrays), "safetensors"),
        "tokenizer": (tokenizer, "json"),
    }
    for kind, (content, ending) in contents.items():
        digest = hashlib.sha256(content).hexdigest()
        about[kind] = digest
        path = data_dir / "weights" / f"{digest}.{ending}"
        if not (path.is_file() and file_digest(path) == digest):
            files.write_whole(path, content)
    content = json.dumps(about, indent=1).encode()
    files.write_whole(data_dir / name / "model.json", content)
    return summary(name, about, data_dir)


def summary(name: str, about: dict[str, Any], data_dir: Path) -> str:
    """Return a line or two on a prepared model."""
    settings = about["settings"]
    return (
        f"{data_dir / name}: {settings['layers']} blocks of width {settings['width']}, "
        f"{settings['vocabulary']:,} tokens, from {about['source']}\n"
        f"weights {about['weights']}"
    )


def describe(name: str, data_dir: Path | None = None) -> dict[str, Any]:
    """Return what `NAME/model.json` says.

    Raises InputError if there is none, or if it is damaged.
    """
    if Path(name).name != name:
        raise InputError(f"{name!r} is a path; give the name of a prepared model")
    path = (data_dir or default_data_dir()) / name / "model.json"
    if not path.is_file():
        raise InputError(
            f"no language model {name!r} in {path.parent.parent.absolute()}; run: "
            f"python -m agents.prepare llm, or with --weights FILE --name {name}"
        )
    try:
        about = files.read_json(path)
        kinds = {"weights": str, "tokenizer": str, "settings": dict, "special": dict}
        kinds |= {"name": str, "source": str}
        if not all(isinstance(about.get(key), kind) for key, kind in kinds.items()):
            raise ValueError("it lacks settings or digests")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    check_settings(about["settings"], str(path))
    return about


def of_tokenizer(sha256: str, data_dir: Path) -> dict[str, Any] | None:
    """Return the description of a prepared model with this tokenizer, if there is."""
    for path in sorted(data_dir.glob("*/model.json")):
        try:
            about = describe(path.parent.name, data_dir)
        except InputError:  # another's file, or a damaged one
            continue
        if about["tokenizer"] == sha256:
            return about
    return None


def check_present(about: dict[str, Any], data_dir: Path) -> None:
    """Raise InputError if a file of a prepared model is absent or damaged."""
    for kind, ending in (("weights", "safetensors"), ("tokenizer", "json")):
        path = data_dir / "weights" / f"{about[kind]}.{ending}"
        if not path.is_file() or file_digest(path) != about[kind]:
            raise InputError(
                f"{path} is absent or damaged; remove {data_dir / about['name']} and "
                "prepare the model again"
            )
