"""Shared pieces of configs of language-model policies."""

from collections.abc import Mapping
from typing import Any

from agents.llm import prepared
from polyview.errors import InputError

# Szot et al. 2024b (LLaRP's code): rank 8, alpha 32; adapters and GEA take rank 128.
LORA = {"rank": 8, "alpha": 32.0}


def body(
    name: str, layers: int | None = None, lora: Mapping[str, Any] | None = LORA
) -> dict[str, Any]:
    """Return the spec of a prepared model's body; layers: the first ones, None for all.

    Raises InputError for a model that is not prepared or has fewer blocks.
    """
    settings = dict(prepared.describe(name)["settings"])
    if layers is not None:
        if not 1 <= layers <= settings["layers"]:
            raise InputError(
                f"layers={layers}, and {name} has {settings['layers']}: give 1 to "
                f"{settings['layers']}"
            )
        settings["layers"] = layers
    return {
        "partial": "agents.llm.llama:Body",
        **settings,
        "lora": None if lora is None else dict(lora),
    }


def body_weights(name: str, at: str = "body") -> dict[str, Any]:
    """Return the `init` that lays a prepared model's weights over a body at `at`."""
    return {
        at: {
            "from": f"sha256:{prepared.describe(name)['weights']}",
            "path": "",
            "first": [f"{at}.blocks.*"],
        }
    }


def tokenizer(name: str) -> dict[str, Any]:
    """Return the spec of a prepared model's tokenizer."""
    return {
        "target": "agents.llm.tokenizer:Tokenizer",
        "sha256": prepared.describe(name)["tokenizer"],
    }
