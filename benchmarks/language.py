"""Tokens a second of a language model's body, beside transformers on the same cores.

    python -m benchmarks.language --peer_python /path/to/python [--output FILE.json]
    python -m benchmarks.language --smoke    # a tiny body, writes nothing

The peer's Python has torch and transformers. Both bodies have the sizes of
SmolLM2-135M, random weights and float32. Three tasks: a forward pass of 8 rows of 64
positions; the same with the gradient of the mean square with respect to the inputs; and
32 steps of one position each for 16 rows, with a cache that has room for 128. Ours and
theirs take turns, each in a process of its own that reports the fastest of its calls; a
figure is the median over processes.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from benchmarks.networks import apart, fastest

RESULTS = Path(__file__).parent / "results" / "language.json"
SIZES = {
    "width": 576,
    "heads": 9,
    "kv_heads": 3,
    "hidden": 1536,
    "vocabulary": 49_152,
}
TINY = {"width": 64, "heads": 4, "kv_heads": 2, "hidden": 96, "vocabulary": 256}
LAYERS = (4, 8, 30)
ROWS, LENGTH = 8, 64
ACTING, STEPS, ROOM = 16, 32, 128
TOKENS = {"forward": ROWS * LENGTH, "gradient": ROWS * LENGTH, "cached": ACTING * STEPS}


def main() -> None:
    """Measure each task, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--smoke", action="store_true", help="a tiny body, ours alone")
    add("--peer_python", help="a Python with torch and transformers")
    add("--processes", type=int, default=3, help="of each, in turns (default: 3)")
    add("--calls", type=int, default=5, help="timed calls a process (default: 5)")
    add("--output", type=Path, default=RESULTS, help="JSON (default: %(default)s)")
    add("--layers", type=int, help=argparse.SUPPRESS)
    add("--form", choices=["ours", "transformers"], help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.layers:
        measure = {"ours": ours, "transformers": theirs}[flags.form]
        sizes = TINY if flags.smoke else SIZES
        print(json.dumps(measure(flags.layers, sizes, flags.calls)))
        return
    pythons = {"ours": sys.executable}
    if flags.peer_python:
        pythons["transformers"] = flags.peer_python
    rows = []
    for layers in (2,) if flags.smoke else LAYERS:
        found: dict = {form: [] for form in pythons}
        for _ in range(1 if flags.smoke else flags.processes):
            for form, python in pythons.items():
                words = [python, "-m", "benchmarks.language", "--form", form]
                words += ["--layers", str(layers), "--calls", str(flags.calls)]
                found[form].append(apart(words + ["--smoke"] * flags.smoke))
        for task in TOKENS:
            rows.append(summary(layers, task, found))
            print(line(rows[-1]), flush=True)
    if not flags.smoke:
        from polyview import hosts

        record = {
            "command": "python -m benchmarks.language --peer_python PYTHON "
            f"--processes {flags.processes} --calls {flags.calls}",
            "machine": hosts.machine(),
            "rows": rows,
        }
        flags.output.write_text(json.dumps(record, indent=1) + "\n")


def summary(layers: int, task: str, found: dict) -> dict:
    """Return a row of the table; ratio: of tokens a second, ours to theirs."""
    row: dict = {"layers": layers, "task": task}
    for form, processes in found.items():
        seconds = [process[task] for process in processes]
        rate = TOKENS[task] / statistics.median(seconds)
        row[form] = {"tokens_per_second": rate, "seconds": seconds}
        row[form]["version"] = processes[0]["version"]
    if len(found) == 2:
        rates = [row[form]["tokens_per_second"] for form in found]
        row["ratio"] = rates[0] / rates[1]
    return row


def line(row: dict) -> str:
    """Format a row of the table."""
    text = f"{row['layers']:2} blocks, {row['task']:8}"
    text += f"   ours {row['ours']['tokens_per_second']:7,.0f} tokens/s"
    if "ratio" in row:
        rate = row["transformers"]["tokens_per_second"]
        text += f"   transformers {rate:7,.0f}   {row['ratio']:.2f}x"
    return text


def ours(layers: int, sizes: dict[str, int], calls: int) -> dict:
    """Measure our body."""
    import jax
    import jax.numpy as jnp

    from agents.llm.llama import Body
    from polyview.model import initialise_module, merge_module, split_module

    def make(rngs):  # noqa: ANN001
        return Body(layers=layers, **sizes, rngs=rngs)

    parts = split_module(initialise_module(make, 0))
    x = jax.random.normal(jax.random.key(0), (ROWS, LENGTH, sizes["width"]))
    real = jnp.ones((ROWS, LENGTH), bool)

    def forward(fixed, x, train=False):
        body = merge_module(parts.graph, parts.params, parts.statistics, fixed)
        return body(x, real, train=train)[0]

    def loss(x, fixed):
        return jnp.mean(jnp.square(forward(fixed, x, train=True)))

    def step(fixed, x, cache):
        body = merge_module(parts.graph, parts.params, parts.statistics, fixed)
        return body(x, jnp.ones((ACTING, 1), bool), cache)

    run, grown = jax.jit(forward), jax.jit(jax.grad(loss))
    one = jax.jit(step, donate_argnums=2)
    single = x[:1, :1].repeat(ACTING, 0)
    body = merge_module(*parts)

    def acting():
        cache, hidden = body.empty_cache(ACTING, ROOM), single
        for _ in range(STEPS):
            hidden, cache = one(parts.fixed, hidden, cache)
        hidden.block_until_ready()

    return {
        "forward": fastest(lambda: run(parts.fixed, x).block_until_ready(), calls),
        "gradient": fastest(lambda: grown(x, parts.fixed).block_until_ready(), calls),
        "cached": fastest(acting, calls),
        "version": jax.__version__,
    }


def theirs(layers: int, sizes: dict[str, int], calls: int) -> dict:
    """Measure the body of transformers."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=sizes["vocabulary"],
        hidden_size=sizes["width"],
        intermediate_size=sizes["hidden"],
        num_hidden_layers=layers,
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv_heads"],
        max_position_embeddings=8192,
    )
    model = transformers.LlamaModel(config).eval().requires_grad_(False)
    x = torch.randn(ROWS, LENGTH, sizes["width"])

    def forward():
        with torch.inference_mode():
            model(inputs_embeds=x, use_cache=False)

    def gradient():
        given = x.clone().requires_grad_(True)
        hidden = model(inputs_embeds=given, use_cache=False).last_hidden_state
        hidden.square().mean().backward()

    def acting():
        with torch.inference_mode():
            hidden = x[:1, :1].repeat(ACTING, 1, 1)
            cache = transformers.DynamicCache(config=config)
            for _ in range(STEPS):
                found = model(
                    inputs_embeds=hidden, past_key_values=cache, use_cache=True
                )
                hidden, cache = found.last_hidden_state, found.past_key_values

    version = f"transformers {transformers.__version__}, torch {torch.__version__}"
    return {
        "forward": fastest(forward, calls),
        "gradient": fastest(gradient, calls),
        "cached": fastest(acting, calls),
        "version": version,
    }


if __name__ == "__main__":
    main()
