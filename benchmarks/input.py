"""From a 500x375 JPEG to 8 views of 224 px on one core: views per second.

    python -m benchmarks.input --peer_python /path/to/python

Ours decodes once and crops on the host (`host`); colour and blur run jitted on the
device, here the same core (`whole`). The peer is the usual PyTorch pipeline: Pillow and
torchvision's SimCLR transform, with one decode for all views. It runs in a separate
environment with torch, torchvision and Pillow. The floor is one decode and eight crops
in OpenCV alone. Every row is a separate process, pinned to one core; the figure is that
of the median round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

VIEWS = 8
SIZE = 224
IMAGES = 16
RESULTS = Path(__file__).parent / "results" / "input.json"


def write_photographs(folder: Path) -> None:
    """Write JPEGs with the spectrum (1/f) and the edges of photographs."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    height, width = 375, 500
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    amplitude = 1 / np.maximum(np.hypot(fy, fx), 1 / width)
    for number in range(IMAGES):
        noise = rng.normal(size=(3, height, width))
        smooth = np.fft.irfft2(np.fft.rfft2(noise) * amplitude, s=(height, width))
        luma = smooth.mean(0, keepdims=True)  # colours in photographs correlate
        image = (0.3 * smooth + luma).transpose(1, 2, 0)
        image = np.clip(128 + 50 * image / image.std(), 0, 255).astype(np.uint8)
        for _ in range(12):
            centre = (int(rng.integers(width)), int(rng.integers(height)))
            axes = tuple(int(side) for side in rng.integers(10, 90, 2))
            colour = tuple(int(value) for value in rng.integers(0, 256, 3))
            angle = int(rng.integers(180))
            shape = cv2.ellipse(image.copy(), centre, axes, angle, 0, 360, colour, -1)
            image = cv2.addWeighted(image, 0.3, shape, 0.7, 0)
        quality = (cv2.IMWRITE_JPEG_QUALITY, 92)
        cv2.imwrite(str(folder / f"{number:02d}.jpg"), image, quality)


def floor(files: list[Path]):
    """OpenCV alone: one decode and eight crops of the average size."""
    import cv2
    import numpy as np

    cv2.setNumThreads(1)
    encoded = [np.frombuffer(file.read_bytes(), np.uint8) for file in files]
    side = 318  # sqrt(.54 375 500): the mean area of crops

    def once():
        for data in encoded:
            image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
            for view in range(VIEWS):
                part = image[view : view + side, 20 * view : 20 * view + side]
                cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)

    return once


def host(files: list[Path]):
    """Our host part: decode, crop, flip, batch."""
    from polyview.data.augment import RandomResizedCrop
    from polyview.data.pipeline import ordered
    from polyview.data.sources.memory import InMemory
    from polyview.data.views import Generated

    source = InMemory({"image": [file.read_bytes() for file in files]})
    views = Generated(VIEWS, RandomResizedCrop(SIZE), targets=())

    def once():
        (batch,) = ordered(source, views, batch_size=len(files))
        return batch["views"]["image"]

    return once


def whole(files: list[Path]):
    """Our whole pipeline, from the file to the input of the encoder."""
    import jax

    from polyview.nn.photometry import Photometry

    on_host = host(files)
    keys = jax.random.split(jax.random.key(0), len(files))

    @jax.jit
    def on_device(images):
        return Photometry()(images.astype("float32") / 255, keys)

    return lambda: on_device(on_host()).block_until_ready()


def peer(files: list[Path], photometry: bool = True):
    """Pillow and torchvision, as in PyTorch versions of SimCLR."""
    # The packaged torchvision lacks operators for a CPU build of torch. Transforms need
    # none, but the import of the package registers their shapes: skip that.
    skipped = "torchvision._meta_registrations"
    sys.modules[skipped] = types.ModuleType(skipped)
    import torch
    from PIL import Image
    from torchvision import transforms

    torch.set_num_threads(1)
    geometry = [
        transforms.RandomResizedCrop(SIZE, scale=(0.08, 1.0)),
        transforms.RandomHorizontalFlip(),
    ]
    colour = [
        transforms.RandomApply([transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
        transforms.RandomGrayscale(p=0.2),
        transforms.RandomApply([transforms.GaussianBlur(23, (0.1, 2.0))], p=0.5),
    ]
    transform = transforms.Compose(
        [*geometry, *(colour if photometry else []), transforms.ToTensor()]
    )

    def once():
        views = []
        for file in files:
            image = Image.open(file).convert("RGB")
            views += [transform(image) for _ in range(VIEWS)]
        return torch.stack(views)

    return once


def peer_host(files: list[Path]):
    """The peer without colour and blur, to compare with our host part."""
    return peer(files, photometry=False)


ROWS = {
    "floor": floor,
    "host": host,
    "whole": whole,
    "peer": peer,
    "peer_host": peer_host,
}


def measure(row: str, folder: Path, core: int, rounds: int) -> float:
    """Measure views per second of one row in this process, pinned to one core."""
    os.sched_setaffinity(0, {core})
    once = ROWS[row](sorted(folder.glob("*.jpg")))
    once()  # compile, open files, fill caches
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - start)
    return IMAGES * VIEWS / statistics.median(seconds)


def measured_apart(
    python: str, row: str, folder: Path, options: argparse.Namespace
) -> float | None:
    # The peer's environment lacks polyview; this file is all it needs.
    program = [__file__] if row.startswith("peer") else ["-m", "benchmarks.input"]
    command = [python, *program, "--row", row, "--folder", str(folder)]
    command += ["--core", str(options.core), "--rounds", str(options.rounds)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1], file=sys.stderr)
        return None
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peer_python", default="", help="python with torch and torchvision"
    )
    parser.add_argument("--core", type=int, default=0, help="the core to measure on")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(measure(options.row, options.folder, options.core, options.rounds))
        return

    speed: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder))
        for row in ROWS:
            python = options.peer_python if row.startswith("peer") else sys.executable
            found = bool(python) and Path(python).exists()
            speed[row] = (
                measured_apart(python, row, Path(folder), options) if found else None
            )
    print_table(speed)
    RESULTS.parent.mkdir(exist_ok=True)

    from polyview import hosts  # missing in the peer's environment

    result = {
        "command": "python -m benchmarks.input --peer_python PYTHON",
        "machine": {"cpu": hosts.processor(), "cores": os.cpu_count()},
        "unit": "views/s/core, 500x375 JPEG to 8 views of 224 px",
        "views_per_second": speed,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def print_table(speed: dict[str, float | None]) -> None:
    def show(value: float | None, form: str = "{:.0f}") -> str:
        return "not measured" if value is None else form.format(value)

    def ratio(a: str, b: str) -> str:
        if speed[a] is None or speed[b] is None:
            return "not measured"
        return f"{speed[a] / speed[b]:.1f}x"

    print(f"{'views/s/core':34}{'ours':>12}{'peer':>14}{'floor':>9}{'ratio':>14}")
    for name, ours, theirs in (
        ("host part against the whole peer", "host", "peer"),
        ("host part against the peer's", "host", "peer_host"),
        ("whole", "whole", "peer"),
    ):
        print(
            f"{name:34}{show(speed[ours]):>12}{show(speed[theirs]):>14}"
            f"{show(speed['floor']):>9}{ratio(ours, theirs):>14}"
        )


if __name__ == "__main__":
    main()
