"""From a folder of photographs to a report: the commands of the README, timed.

    python -m benchmarks.folder --workdir DIR

Draws 3,000 photographs of six kinds of things, in sizes from 60 to 400 pixels and files
of seven formats, and runs the commands that a newcomer would. Writes
results/folder.json.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from polyview import hosts

RESULTS = Path(__file__).parent / "results" / "folder.json"
KINDS = ("ring", "disc", "square", "cross", "stripes", "dots")
ENDINGS = (".jpg", ".JPG", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".webp")
COMMANDS = (
    "prepare folder --input {photos} --name photos",
    "main --config configs/polyview_folder.py:data=photos --workdir {run}",
    "evaluate --run {run} --references",
    "report --run {run} --output {run}/report.html",
)


def main() -> None:
    """Draw the photographs unless they are there, and time each command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--output", type=Path, default=RESULTS)
    flags = parser.parse_args()
    photos, run = flags.workdir / "photos", flags.workdir / "run"
    if not photos.exists():
        draw_all(photos, flags.images)
    os.environ["POLYVIEW_DATA"] = str(flags.workdir / "data")
    seconds = {}
    for command in COMMANDS:
        began = time.monotonic()
        words = shlex.split(command.format(photos=photos, run=run))
        subprocess.run(
            [sys.executable, "-m", f"polyview.{words[0]}", *words[1:]], check=True
        )
        seconds[words[0]] = round(time.monotonic() - began, 1)
    seconds["in all"] = round(sum(seconds.values()), 1)
    results = {
        path.stem: json.loads(path.read_text())["columns"]
        for path in sorted((run / "eval").glob("*.json"))
    }
    record = {
        "command": "python -m benchmarks.folder --workdir DIR",
        "machine": hosts.machine(),
        "images": flags.images,
        "seconds": seconds,
        "evaluations": results,
    }
    flags.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(seconds))


def draw_all(folder: Path, count: int) -> None:
    """Write photographs of each kind into class folders."""
    rng = np.random.default_rng(0)
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        path = folder / kind / f"{number:05d}{ENDINGS[number % len(ENDINGS)]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(kind, rng)).save(path)


def photograph(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Draw a thing of any colour, place and size before a blurred, noisy background."""
    height, width = rng.integers(60, 400, 2)
    coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
    image = cv2.resize(coarse, (int(width), int(height)), interpolation=cv2.INTER_CUBIC)
    side = int(rng.uniform(0.4, 0.8) * min(height, width))
    thing = _thing(kind, side, rng)[..., None]
    top, left = rng.integers(0, height - side), rng.integers(0, width - side)
    place = image[top : top + side, left : left + side]
    colour = rng.integers(0, 256, 3).astype(np.float32)
    place[:] = (place * (1 - thing) + colour * thing).astype(np.uint8)
    noise = rng.normal(0, rng.uniform(2, 12), image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def _thing(kind: str, side: int, rng: np.random.Generator) -> np.ndarray:
    """Return how much of each pixel a thing covers: float32[side, side]."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    turn = rng.uniform(0, np.pi)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    radius, repeats = np.hypot(x, y), rng.integers(3, 6)
    shapes = {
        "ring": (radius > 0.55) & (radius < 0.9),
        "disc": radius < 0.8,
        "square": np.maximum(abs(u), abs(v)) < 0.6,
        "cross": (np.minimum(abs(u), abs(v)) < 0.2) & (radius < 0.95),
        "stripes": (np.sin(np.pi * repeats * u) > 0) & (radius < 0.95),
        "dots": np.sin(np.pi * repeats * u) * np.sin(np.pi * repeats * v) > 0.3,
    }
    return cv2.GaussianBlur(shapes[kind].astype(np.float32), (3, 3), 0)


if __name__ == "__main__":
    main()
