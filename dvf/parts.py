"""Shared pieces of configs of the future."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from dvf import recording
from dvf.rewards import spread
from polyview.config import parts
from polyview.errors import InputError, nearest

_log = logging.getLogger(__name__)

METHODS = ("ddpm", "velocity", "flow", "infonce", "td")
CLIP = 4.0  # deviations; ours
_MAP_SAMPLES = 64  # futures a value of a map
_MAP_SIDE = 2  # places along the side of a cell, where no roll-outs tell


def scale(data: str) -> dict[str, list[float]]:
    """Return the mean and deviation of the states of recorded episodes."""
    found = recording.describe(data)["statistics"]["states"]
    return {"mean": found["mean"], "std": found["std"]}


def policies(data: str) -> int:
    """Return how many policies acted in recorded episodes."""
    return recording.describe(data)["policies"]


def check_horizon(data: str, discount: float) -> None:
    """Warn if episodes are short for a discount: most far offsets are then missing.

    A model is trained on no offset longer than its episodes, and asked for all.
    """
    counts = recording.describe(data)["counts"]
    length = counts["states"] / counts["episodes"]
    if discount < 1 and length < 3 / (1 - discount):
        _log.warning(
            "%s: episodes of %.0f states are short for discount %g: %.0f %% of "
            "futures lie beyond their length and are never trained; take a smaller "
            "discount, or longer episodes",
            data,
            length,
            discount,
            100 * discount ** (length - 1),
        )


def episodes(data: str, split: str = "train") -> dict:
    """Return the source of recorded episodes, held in memory."""
    return {
        "target": "polyview.data.sources.held:Held",
        "source": parts.source(data, split),
    }


def by_policy(source: dict) -> dict:
    """Return a source whose rows also have the other episodes of their policy."""
    return {
        "target": "polyview.data.sources.by_class:ByClass",
        "source": source,
        "label": "policy",
        "field": "states",
    }


def process(method: str, steps: int = 50, sample_steps: int | None = None) -> dict:
    """Return the process of a method: ddpm, velocity or flow.

    steps: of diffusion. sample_steps: fewer for DDIM; of Euler for flow (20).
    """
    diffusion = "polyview.objectives.diffusion"
    if method == "flow":
        # Flow is not clipped: its first steps are far from the data.
        return {"target": f"{diffusion}:Flow", "sample_steps": sample_steps or 20}
    found: dict[str, Any] = {
        "target": f"{diffusion}:Diffusion",
        "schedule": {"target": f"{diffusion}:cosine", "steps": steps},
        "clip": CLIP,
    }
    if method == "velocity":
        found["prediction"] = {"target": f"{diffusion}:Velocity"}
    if sample_steps is not None:
        found |= {"sample_steps": sample_steps, "eta": 0.0}
    return found


def future(method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the model of a method that draws futures, and its objective.

    The model's conditions are the caller's.
    """
    if method == "infonce":
        model: dict[str, Any] = {"partial": "dvf.occupancy:ContrastiveOccupancy"}
        return model, {"target": "dvf.objectives:Contrast"}
    model = {
        "partial": "dvf.occupancy:DiffusionOccupancy",
        "process": process(method),
        "denoiser": {
            "partial": "polyview.nn.denoiser:MlpDenoiser",
            "hidden": (256, 256, 256),
        },
    }
    return model, {"target": "dvf.objectives:Denoising"}


def discs(data: str, count: int, seed: int, radius: float = 0.5) -> dict:
    """Return `count` rewards in free cells of the maze that was played in.

    radius: in cells.
    """
    maze = recording.maze_of(recording.describe(data))
    places = spread(maze.centre_of(np.arange(len(maze))), count, seed)
    return {
        "target": "dvf.rewards:Discs",
        "centres": places.round(4).tolist(),
        "radius": radius * maze.cell,
    }


def walls(data: str) -> list[list[float]]:
    """Return the walls of the maze that was played in: left, bottom, width, height."""
    return recording.maze_of(recording.describe(data)).blocks().tolist()


def evaluations(
    data: str,
    method: str,
    discount: float,
    reward: dict,
    split: str = "test",
    rollouts: bool = False,
    actions: bool = False,
    most: int | None = None,
) -> dict[str, dict]:
    """Return the evaluations of a method: of futures, of values, and of a choice.

    split: "validation" to choose by, "test" once. rollouts, actions: whether the model
    is told policies by roll-outs, and the first action. most: the largest offset.
    """
    check_method(method)
    count = policies(data)
    estimate = _estimate(data, method, discount, most)
    estimate = _of_policies(estimate, data, rollouts)
    truth = {
        "truth": parts.source(data, f"{'actions' if actions else 'values'}_{split}"),
        "estimate": estimate,
        "discount": discount,
    }
    found = {
        "value": {
            "target": "dvf.evaluation.accuracy:ValueAccuracy",
            **truth,
            "reward": reward,
        }
    }
    if count > 1 or actions:  # else there is nothing to choose
        found["control"] = {
            "target": "dvf.evaluation.choice:PolicyChoice",
            **truth,
            "reward": reward,
        }
    if method != "td":
        found["occupancy"] = {
            "target": "dvf.evaluation.distance:OccupancyDistance",
            **truth,
            "cell": recording.describe(data)["maze"]["cell"] / 2,
            "walls": walls(data),
        }
    return found


def maps(
    data: str,
    method: str,
    discount: float,
    reward: dict,
    rollouts: bool = False,
    most: int | None = None,
) -> dict[str, dict]:
    """Return the evaluation that draws values over the maze, for the first reward.

    Roll-outs stand beside them if the data have some from places all over the maze.
    rollouts: whether the model is told policies by roll-outs. most: the largest offset.
    """
    described = recording.describe(data)
    maze, count = described["maze"], described["policies"]
    estimate = _estimate(data, method, discount, most)
    estimate = _of_policies(estimate, data, rollouts)
    # Many places, and all by the same random numbers: a map shows differences.
    estimate |= {"samples": min(estimate["samples"], _MAP_SAMPLES), "common": True}
    side = described.get("settings", {}).get("places", 0)
    own = {
        "target": "dvf.evaluation.maps:ValueMaps",
        "maze": {name: maze[name] for name in ("rows", "cell", "centre")},
        "side": side or _MAP_SIDE,
        "rest": described.get("rest", [0.0] * len(scale(data)["mean"])),
        "policies": count,
        "reward": {**reward, "centres": reward["centres"][:1]},
        "estimate": estimate,
        "discount": discount,
        "truth": parts.source(data, recording.MAP) if side else None,
    }
    return {"maps": own}


def recorded(
    data: str, variables: Sequence[str], method: str, discount: float, split: str
) -> dict[str, dict]:
    """Return the evaluation of values of recorded variables, and of the score.

    variables: names of the numbers of the field "variables". split: "validation" to
    choose by, "test" once.
    """
    returns = {
        "target": "dvf.evaluation.recorded:RecordedReturns",
        "episodes": parts.source(data, split),
        "labelled": parts.source(data, "train"),
        "variables": {name: number for number, name in enumerate(variables)},
        "estimate": _estimate(data, method, discount),
        "discount": discount,
        # What comes later weighs g^horizon, 5 %.
        "horizon": round(3 / (1 - discount)),
    }
    return {"returns": returns}


def _estimate(
    data: str, method: str, discount: float, most: int | None = None
) -> dict[str, Any]:
    """Return what takes values from a model of a method. most: the largest offset."""
    if method == "td":
        return {"target": "dvf.value:Direct"}
    found: dict[str, Any] = {
        "target": "dvf.value:FromFutures",
        "discount": discount,
        "samples": 256,
    }
    cap = {} if most is None else {"most": most}
    found |= cap
    if method == "infonce":
        found["samples"] = 16  # offsets: all candidates are weighed at each
        found["candidates"] = {
            "target": "dvf.value:later_states",
            "source": episodes(data),
            "discount": discount,
            **cap,
        }
    return found


def _of_policies(estimate: dict[str, Any], data: str, rollouts: bool) -> dict[str, Any]:
    """Return an estimate that also knows the policies: by number, or by roll-outs."""
    if rollouts:
        shown = {"target": "dvf.rollouts:of_policies", "source": episodes(data)}
        return {**estimate, "rollouts": shown}
    count = policies(data)
    return {**estimate, **({"policies": count} if count > 1 else {})}


def check_method(method: str) -> None:
    """Raise InputError for an unknown method."""
    if method not in METHODS:
        raise InputError(f"method={method!r}{nearest(method, METHODS)}")
