"""Forward and backward pass of the encoders, beside PyTorch on the same cores.

    python -m benchmarks.networks --peer_python /path/to/python [--output FILE.json]
    python -m benchmarks.networks --smoke    # small sizes, writes nothing

The peer's Python has torch alone. Both networks have the same layers, in float32 and
training mode; the loss is the mean square of the features. Theirs runs in the faster of
torch's two memory layouts. Ours and theirs take turns, each in a process of its own
that reports the fastest of its calls; a figure is the median over processes. "products"
are the multiply-adds of the layers, forward and backward, as a share of a large matrix
product.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "networks.json"
# Network, pixels, batch.
ROWS = [
    ("resnet18", 64, 32),
    ("resnet18", 32, 64),
    ("resnet50", 96, 16),
    ("resnet50", 224, 8),
    ("vit_s", 64, 32),
    ("vit_b", 224, 4),
]
SMOKE = [("resnet18", 32, 2), ("vit_s", 32, 2)]
STAGES = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
VITS = {"vit_s": (384, 12, 6), "vit_b": (768, 12, 12)}  # width, depth, heads


def main() -> None:
    """Measure each row, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--smoke", action="store_true", help="small sizes, any machine, ours alone")
    add("--peer_python", help="a Python with torch")
    add("--processes", type=int, default=3, help="of each, in turns (default: 3)")
    add("--calls", type=int, default=5, help="timed calls a process (default: 5)")
    add("--output", type=Path, default=RESULTS, help="JSON (default: %(default)s)")
    add("--row", type=json.loads, help=argparse.SUPPRESS)
    add("--form", choices=["ours", "torch"], help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.row:
        measure = {"ours": ours, "torch": theirs}[flags.form]
        print(json.dumps(measure(*flags.row, flags.calls)))
        return
    pythons = {"ours": sys.executable}
    if flags.peer_python:
        pythons["torch"] = flags.peer_python
    rows = []
    for name, size, batch in SMOKE if flags.smoke else ROWS:
        found: dict = {form: [] for form in pythons}
        for _ in range(1 if flags.smoke else flags.processes):
            for form, python in pythons.items():
                words = [python, __file__, "--form", form]
                words += ["--row", json.dumps((name, size, batch))]
                found[form].append(apart([*words, "--calls", str(flags.calls)]))
        rows.append(summary(name, size, batch, found))
        print(line(rows[-1]), flush=True)
    if not flags.smoke:
        from polyview import hosts

        record = {
            "command": "python -m benchmarks.networks --peer_python PYTHON "
            f"--processes {flags.processes} --calls {flags.calls}",
            "machine": hosts.machine(),
            "rows": rows,
        }
        flags.output.write_text(json.dumps(record, indent=1) + "\n")


def apart(words: list[str]):
    """Run a command in a process of its own; return the JSON of its last line."""
    root = Path(__file__).parent.parent
    done = subprocess.run(words, capture_output=True, text=True, cwd=root)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(name: str, size: int, batch: int, found: dict) -> dict:
    """Return a row of the table."""
    row: dict = {"network": name, "pixels": size, "batch": batch}
    for form, processes in found.items():
        seconds = [process["seconds"] for process in processes]
        row[form] = {"seconds": statistics.median(seconds), "all": seconds}
    row["ours"]["share_of_matmul_rate"] = statistics.median(
        process["share"] for process in found["ours"]
    )
    row["ours"]["compile_seconds"] = found["ours"][0]["compile_seconds"]
    if "torch" in found:
        row["torch"]["layout"] = found["torch"][0]["layout"]
        row["torch"]["version"] = found["torch"][0]["torch"]
        row["ratio"] = row["ours"]["seconds"] / row["torch"]["seconds"]
    return row


def line(row: dict) -> str:
    """Format a row of the table."""
    text = f"{row['network']:9} {row['pixels']:4} px, batch {row['batch']:3}"
    text += f"   ours {row['ours']['seconds']:.3f} s"
    text += f" ({row['ours']['share_of_matmul_rate']:.0%} of the matrix rate)"
    if "torch" in row:
        text += f"   torch {row['torch']['seconds']:.3f} s   {row['ratio']:.2f}x"
    return text


def fastest(call, calls: int) -> float:
    """Return the seconds of the fastest call, after one that is not timed."""
    call()
    seconds = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def ours(name: str, size: int, batch: int, calls: int) -> dict:
    """Measure our network."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import jax
    import jax.numpy as jnp
    import numpy as np

    from polyview.model import (
        abstract_module,
        initialise_module,
        merge_module,
        split_module,
    )
    from polyview.nn import resnet, vit
    from polyview.training import flops
    from polyview.training.peak import matmul_rate

    make = (
        getattr(resnet, name)
        if name in STAGES
        else lambda rngs: getattr(vit, name)(image=size, rngs=rngs)
    )
    graph, *_ = abstract_module(make)
    _, params, statistics, fixed = split_module(initialise_module(make, np.uint32(0)))
    x = jax.random.normal(jax.random.key(0), (batch, size, size, 3))

    def step(params, statistics, x):
        def loss(params):
            module = merge_module(graph, params, statistics, fixed)
            h, _ = module(x, train=True)
            return jnp.mean(h**2), split_module(module).statistics

        return jax.value_and_grad(loss, has_aux=True)(params)

    traced = jax.make_jaxpr(step)(params, statistics, x).jaxpr
    found, _ = flops.products(traced, [False] * len(traced.invars))
    began = time.perf_counter()
    compiled = jax.jit(step).lower(params, statistics, x).compile()
    compile_seconds = time.perf_counter() - began
    seconds = fastest(
        lambda: jax.block_until_ready(compiled(params, statistics, x)), calls
    )
    share = sum(p.flops for p in found) / seconds / matmul_rate("float32")
    return {"seconds": seconds, "share": share, "compile_seconds": compile_seconds}


def theirs(name: str, size: int, batch: int, calls: int) -> dict:
    """Measure PyTorch's network, in the faster of its memory layouts."""
    import torch

    torch.manual_seed(0)
    found = {}
    for layout in ("contiguous_format", "channels_last"):
        network = torch_resnet(name) if name in STAGES else torch_vit(name, size)
        network = network.to(memory_format=getattr(torch, layout)).train()
        x = torch.randn(batch, 3, size, size)
        x = x.to(memory_format=getattr(torch, layout))

        def call(network=network, x=x):
            network.zero_grad(set_to_none=True)
            (network(x) ** 2).mean().backward()

        found[layout] = fastest(call, calls)
    best = min(found, key=found.get)
    return {"seconds": found[best], "layout": best, "torch": torch.__version__}


def torch_resnet(name: str):
    """A ResNet as torchvision builds it, without its classifier."""
    from torch import nn

    def conv(inputs, outputs, size, stride=1):
        return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)

    class Block(nn.Module):
        def __init__(self, inputs, width, stride, bottleneck):
            super().__init__()
            relu, norm = nn.ReLU(inplace=True), nn.BatchNorm2d
            out = 4 * width if bottleneck else width
            if bottleneck:
                layers = [conv(inputs, width, 1), norm(width), relu]
                layers += [conv(width, width, 3, stride), norm(width), relu]
                layers += [conv(width, out, 1), norm(out)]
            else:
                layers = [conv(inputs, width, 3, stride), norm(width), relu]
                layers += [conv(width, width, 3), norm(width)]
            self.body, self.relu, self.features = nn.Sequential(*layers), relu, out
            self.shortcut = None
            if stride != 1 or inputs != out:
                self.shortcut = nn.Sequential(conv(inputs, out, 1, stride), norm(out))

        def forward(self, x):
            rest = x if self.shortcut is None else self.shortcut(x)
            return self.relu(self.body(x) + rest)

    layers = [conv(3, 64, 7, 2), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    layers.append(nn.MaxPool2d(3, 2, 1))
    features = 64
    for stage, count in enumerate(STAGES[name]):
        for index in range(count):
            stride = 2 if stage and not index else 1
            block = Block(features, 64 * 2**stage, stride, name == "resnet50")
            layers.append(block)
            features = block.features
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def torch_vit(name: str, size: int):
    """A pre-norm vision transformer whose features are those of its class token."""
    import torch
    from torch import nn

    width, depth, heads = VITS[name]

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.into, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.mlp = nn.Sequential(
                nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )

        def forward(self, x):
            parts = self.into(self.norm1(x)).unflatten(-1, (3, heads, -1))
            q, k, v = parts.permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + self.out(y.transpose(1, 2).flatten(2))
            return x + self.mlp(self.norm2(x))

    class Vit(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, width, 16, 16)
            self.token = nn.Parameter(torch.zeros(1, 1, width))
            self.positions = nn.Parameter(torch.zeros(1, (size // 16) ** 2 + 1, width))
            self.blocks = nn.Sequential(*[Block() for _ in range(depth)])
            self.norm = nn.LayerNorm(width)

        def forward(self, x):
            x = self.patches(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
            return self.norm(self.blocks(x))[:, 0]

    return Vit()


if __name__ == "__main__":
    main()
