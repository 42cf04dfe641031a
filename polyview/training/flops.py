"""Model FLOPs of a training step, whatever a program computes beside them.

Model FLOPs are 2 for each multiply-add of the matrix products and convolutions of the
modules' forward pass in training, the same again for each operand of a product that
depends on the parameters (its gradient costs as much), one more forward pass for a
moving average of the model, and 6 N^2 d for a contrastive loss of N embeddings of d
features, or for each of the losses that `accumulate` makes of a batch. Loops count each
time they run; padding counts as pixels; recomputation, photometry, norms, the optimiser
and what a loss computes twice or leaves out do not count.

XLA's own account of a compiled program is of no use here: it counts the body of a loop
once, and recomputation as work.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from polyview.model import merge_module
from polyview.objectives.contrastive import Contrastive

CONVENTION = " ".join(__doc__.split("\n\n")[1].split())


def of_step(run, shapes: dict) -> tuple[dict[str, int], str]:
    """FLOPs of a step by the convention, and the type most of them are in.

    shapes: of the global batch, as `Trainer.trace` returns them.
    """
    parts = run.abstract.graph, run.shape.params, run.shape.statistics, run.fixed
    found, z = module_products(parts, shapes)
    forward = sum(product.flops for product in found)
    backward = sum(product.flops * product.gradients for product in found)
    target = 0 if run.config.get("target_decay") is None else forward
    loss = 0
    if isinstance(run.objective, Contrastive):
        b, m, d = z[run.objective.modality].shape
        loss = 6 * (b * m) ** 2 * d // (run.config.get("accumulate") or 1)
    flops = {"forward": forward, "backward": backward, "target": target, "loss": loss}
    dtypes = Counter()
    for product in found:
        dtypes[product.dtype] += product.flops
    return flops | {"total": sum(flops.values())}, dtypes.most_common(1)[0][0]


def module_products(parts: Sequence, shapes: dict) -> tuple[list["Product"], dict]:
    """Products of a module's forward pass in training, and the shapes of its z.

    parts: of the module, as `polyview.model.split_module` gives them. Photometry is
    left out.
    """
    graph, params, statistics, fixed = parts

    def features(params, statistics, fixed, batch):
        module = merge_module(graph, params, statistics, fixed)
        for _, part in nnx.iter_modules(module):
            if hasattr(part, "photometry"):
                part.photometry = None
        found = module(batch, key=jax.random.key(0), train=True)
        return {name: of.z for name, of in found.items()}

    inputs = params, statistics, fixed, shapes
    program, z = jax.make_jaxpr(features, return_shape=True)(*inputs)
    trained = len(jax.tree.leaves(params))
    depends = [place < trained for place in range(len(program.jaxpr.invars))]
    return products(program.jaxpr, depends)[0], z


class Product(NamedTuple):
    """A matrix product or a convolution."""

    flops: int  # of computing it: 2 for each multiply-add
    gradients: int  # operands that need one, of 2
    dtype: str  # of the operands


def products(jaxpr, depends: Sequence[bool]) -> tuple[list[Product], list[bool]]:
    """Every product of a traced program, those of loops as often as they run.

    depends: whether each input depends on the parameters; the second list says so of
    each output. Raises ValueError for a product in a loop of unknown length, and in an
    operation whose inside is not known.
    """
    known = dict(zip(jaxpr.invars, depends, strict=True))

    def of(variables) -> list[bool]:
        # Neither literals nor constants depend on anything.
        return [not isinstance(v, Literal) and known.get(v, False) for v in variables]

    def opened(inner) -> Jaxpr:
        return inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner

    def held(calls) -> bool:
        parts = [opened(call) for call in calls]
        return any(products(part, [False] * len(part.invars))[0] for part in parts)

    found: list[Product] = []
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        into = of(equation.invars)
        inside: list[Product] = []
        out = [any(into)] * len(equation.outvars)
        calls = [v for v in params.values() if isinstance(v, ClosedJaxpr | Jaxpr)]
        if name in _FLOPS:
            dtype = str(equation.invars[0].aval.dtype)
            inside = [Product(_FLOPS[name](equation), sum(into), dtype)]
        elif name == "stop_gradient":
            out = [False] * len(out)
        elif name == "scan":
            carried = slice(
                params["num_consts"], params["num_consts"] + params["num_carry"]
            )
            before = None
            while into != before:  # what depends on the parameters after some rounds
                before = list(into)
                inside, out = products(opened(params["jaxpr"]), into)
                ends = out[: params["num_carry"]]
                into[carried] = [
                    a or b for a, b in zip(into[carried], ends, strict=True)
                ]
            inside = [p._replace(flops=p.flops * params["length"]) for p in inside]
        elif name == "cond":
            branches = [products(opened(b), into[1:]) for b in params["branches"]]
            inside = max(
                (b[0] for b in branches), key=lambda b: sum(p.flops for p in b)
            )
            out = [any(some) for some in zip(*(b[1] for b in branches), strict=True)]
        elif name == "while":
            if held(calls):
                raise ValueError("a loop of unknown length holds a matrix product")
        elif calls and len(opened(calls[0]).invars) != len(into):
            # What scatter does to two numbers, for example.
            if held(calls):
                raise ValueError(f"the products inside {name} cannot be counted")
        elif calls:
            inside, out = products(opened(calls[0]), into)
            if name == "shard_map":  # its inside is the part of one device
                inside = [
                    p._replace(flops=p.flops * params["mesh"].size) for p in inside
                ]
        found += inside
        known.update(zip(equation.outvars, out, strict=True))
    return found, of(jaxpr.outvars)


def _of_matmul(equation) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(left[i] for i in contracted)


def _of_convolution(equation) -> int:
    kernel = equation.invars[1].aval
    outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    taps = kernel.size // outputs
    # A dilated input is mostly zeros that nothing multiplies.
    zeros = math.prod(equation.params["lhs_dilation"])
    return 2 * equation.outvars[0].aval.size * taps // zeros


_FLOPS = {"dot_general": _of_matmul, "conv_general_dilated": _of_convolution}
