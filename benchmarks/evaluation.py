"""Features of 60,000 rows and the sweep of a linear probe, beside PyTorch.

    python -m benchmarks.evaluation --peer_python /path/to/python [--output FILE.json]
    python -m benchmarks.evaluation --smoke    # few rows, writes nothing

Both read the same numbers: images of noise, 32 px, through a ResNet-18 with fixed
weights; then features of noise, 512 a row, in 10 classes. Ours calls
`polyview.evaluation.features.extract`, with the whole input pipeline, and
`LinearProbe.fit`. Theirs takes slices of an array that is already in memory, in
inference mode; and trains all 40 probes at once, by one product a step, with
mini-batches, momentum and schedule as ours. The two take turns, each in a process of
its own; compilation is included in ours. The peer's Python has torch and NumPy.
"""

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.networks import apart, torch_resnet

RESULTS = Path(__file__).parent / "results" / "evaluation.json"
PIXELS, BATCH, DIMENSIONS, CLASSES = 32, 500, 512, 10
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
DECAYS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2)
STEPS = 2000
MOMENTUM = 0.9


def main() -> None:
    """Measure both parts in turns, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--smoke", action="store_true", help="few rows, any machine, ours alone")
    add("--peer_python", help="a Python with torch")
    add("--rows", type=int, default=60_000, help="(default: 60000)")
    add("--processes", type=int, default=3, help="of each, in turns (default: 3)")
    add("--output", type=Path, default=RESULTS, help="JSON (default: %(default)s)")
    add("--part", choices=sorted(PARTS), help=argparse.SUPPRESS)
    add("--form", choices=["ours", "torch"], help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.part:
        print(json.dumps(PARTS[flags.part][flags.form](flags.rows)))
        return
    if flags.smoke:
        flags.rows, flags.processes, flags.peer_python = 2 * BATCH, 1, None
    pythons = {"ours": sys.executable}
    if flags.peer_python:
        pythons["torch"] = flags.peer_python
    table = {}
    for part in PARTS:
        seconds: dict = {form: [] for form in pythons}
        for _ in range(flags.processes):
            for form, python in pythons.items():
                words = [python, "-m", "benchmarks.evaluation", "--part", part]
                words += ["--form", form, "--rows", str(flags.rows)]
                seconds[form].append(apart(words))
        table[part] = {"seconds": seconds}
        middle = {form: statistics.median(found) for form, found in seconds.items()}
        text = "   ".join(f"{form} {value:.1f} s" for form, value in middle.items())
        if "torch" in middle:
            table[part]["ratio"] = middle["ours"] / middle["torch"]
            text += f"   {table[part]['ratio']:.2f}x"
        print(f"{part:10}{text}", flush=True)
    if not flags.smoke:
        from polyview import hosts

        record = {
            "command": "python -m benchmarks.evaluation --peer_python PYTHON "
            f"--rows {flags.rows} --processes {flags.processes}",
            "machine": hosts.machine(),
            "rows": flags.rows,
            "heads": len(RATES) * len(DECAYS),
            "table": table,
        }
        flags.output.write_text(json.dumps(record, indent=1) + "\n")


def images(rows: int) -> np.ndarray:
    """Return images of noise, uint8[n, h, w, 3]."""
    shape = rows, PIXELS, PIXELS, 3
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def labelled(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features of noise, float32[n, d], and labels, int[n]."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(rows, DIMENSIONS)).astype(np.float32)
    return features, rng.integers(0, CLASSES, rows)


def our_features(rows: int) -> float:
    """Measure the extraction of the features of all rows."""
    import jax

    from polyview import devices
    from polyview.data.augment import ResizeCenterCrop
    from polyview.data.sources.memory import InMemory
    from polyview.data.views import Generated
    from polyview.evaluation.features import extract
    from polyview.model import initialise_module, merge_module, split_module
    from polyview.nn.resnet import resnet18
    from polyview.nn.towers import Features

    graph, *parts = split_module(initialise_module(resnet18, np.uint32(0)))
    mesh = devices.make_mesh()

    @jax.jit
    def represent(batch):
        views = batch["views"]["image"]
        x = views.reshape(-1, *views.shape[2:]).astype("float32") / 255
        h, _ = merge_module(graph, *parts)(x, train=False)
        h = h.reshape(*views.shape[:2], -1)
        return {"image": Features(z=h, h=h, local=None)}

    source = InMemory({"image": images(rows), "label": np.zeros(rows, int)})
    with jax.set_mesh(mesh):
        views = Generated(1, ResizeCenterCrop(PIXELS, fraction=1.0))
        began = time.perf_counter()
        extract(represent, source, views, batch_size=BATCH, mesh=mesh)
        return time.perf_counter() - began


def their_features(rows: int) -> float:
    """Measure PyTorch's forward pass over all rows, in memory."""
    import torch

    network = torch_resnet("resnet18").to(memory_format=torch.channels_last).eval()
    array = torch.from_numpy(images(rows)).permute(0, 3, 1, 2)
    began = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, rows, BATCH):
            network(array[first : first + BATCH].float() / 255).numpy()
    return time.perf_counter() - began


def our_probe(rows: int) -> float:
    """Measure the fit of all probes."""
    from polyview.evaluation.probe import LinearProbe

    features, labels = labelled(rows)
    pairs = [(rate, decay) for rate in RATES for decay in DECAYS]
    probe = LinearProbe(RATES, DECAYS, steps=STEPS, batch_size=BATCH)
    began = time.perf_counter()
    probe.fit(features, labels, CLASSES, pairs, seed=0)
    return time.perf_counter() - began


def their_probe(rows: int) -> float:
    """Measure the same fit by PyTorch."""
    import torch

    features, labels = labelled(rows)
    pairs = torch.tensor([(rate, decay) for rate in RATES for decay in DECAYS])
    began = time.perf_counter()
    x, labels = torch.from_numpy(features), torch.from_numpy(labels)
    x = (x - x.mean(0)) / x.std(0, correction=0)
    rate, decay = (column[:, None] for column in pairs.T)
    weight = torch.zeros(DIMENSIONS, len(pairs), CLASSES, requires_grad=True)
    bias = torch.zeros(len(pairs), CLASSES, requires_grad=True)
    velocity = [torch.zeros_like(p) for p in (weight, bias)]
    steps = rows // BATCH
    epochs = math.ceil(STEPS / steps)
    for number in range(epochs * steps):
        if number % steps == 0:
            order = torch.randperm(rows)
        first = number % steps * BATCH
        chosen = order[first : first + BATCH]
        logits = (x[chosen] @ weight.flatten(1)).unflatten(1, bias.shape) + bias
        target = labels[chosen][:, None].expand(-1, len(pairs))
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), target.flatten(), reduction="sum"
        )
        loss = loss / BATCH + (decay / 2 * weight.square()).sum()
        anneal = (1 + math.cos(math.pi * number / (epochs * steps))) / 2
        gradients = torch.autograd.grad(loss, (weight, bias))
        with torch.no_grad():
            for p, v, g in zip((weight, bias), velocity, gradients, strict=True):
                v.mul_(MOMENTUM).add_(g)
                p.sub_(rate * anneal * v)
    return time.perf_counter() - began


PARTS = {
    "features": {"ours": our_features, "torch": their_features},
    "probe": {"ours": our_probe, "torch": their_probe},
}

if __name__ == "__main__":
    main()
