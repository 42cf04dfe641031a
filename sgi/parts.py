"""Specs that SGI's configs share; nothing here is built or imported."""

from typing import Any

from polyview.errors import InputError, nearest

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"blocks": 1, "expand": 2, "widths": (8, 16, 16)},  # ours, for a CPU
    "S": {"widths": (32, 64, 64)},
    "M": {"blocks": 3, "expand": 2, "widths": (32, 64, 64)},
    "L": {"blocks": 5, "expand": 4, "widths": (48, 96, 96)},
}


def network(
    size: str, actions: int, *, sigma: float, dtype: str, param_dtype: str
) -> dict:
    """Return the spec of a network for a number of actions, with noise `sigma`."""
    if size not in SIZES:
        raise InputError(f"size={size}{nearest(size, SIZES)}")
    encoder = {"partial": "sgi.encoders:Residual", "depthwise": "shifts"}  # or "lax"
    if size == "S":
        encoder = {"partial": "sgi.encoders:Nature"}
    return {
        "partial": "sgi.network:Network",
        "actions": actions,
        "encoder": {**encoder, **SIZES[size]},
        "hidden": 64 if size == "tiny" else 512,
        "sigma": sigma,
        "film_value_from": "advantage",  # "value" is the evident intent
        "standardise": False,
        "history": 4,
        "image": 84,
        "dtype": dtype,
        "param_dtype": param_dtype,
    }
