"""Model FLOPs of a training step, independent of how a program computes it.

`CONVENTION` says what counts. XLA's own count for a compiled program cannot be used: it
counts the body of a loop once, and counts recomputation as work.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

from polyview.model import merge_module
from polyview.objectives.contrastive import Contrastive

if TYPE_CHECKING:
    from polyview.training.trainer import Trainer

CONVENTION = (
    "Model FLOPs are 2 for each multiply-add of the matrix products and convolutions "
    "of the modules' forward pass in training, the same again for each operand of a "
    "product that depends on the parameters (its gradient costs as much), one more "
    "forward pass for a moving average of the model, and 6 N^2 d for a contrastive "
    "loss of N embeddings of d features, or for each of the losses that `accumulate` "
    "makes of a batch. Loops count each time they run; padding counts as pixels; "
    "recomputation, photometry, norms, the optimiser and what a loss computes twice "
    "or leaves out do not count."
)


def of_step(run: "Trainer", shapes: dict) -> tuple[dict[str, int], str]:
    """Count the FLOPs of a step by `CONVENTION`; also return their commonest type.

    shapes: the global batch's, from `Trainer.trace`.
    """
    parts = run.abstract.graph, run.shape.params, run.shape.statistics, run.fixed
    counted, z = module_products(parts, shapes)
    forward = sum(product.flops for product in counted)
    backward = sum(product.flops * product.gradients for product in counted)
    target = 0 if run.config.get("target_decay") is None else forward
    loss = 0
    if isinstance(run.objective, Contrastive):
        sizes = [z[name].shape for name in run.objective.modalities]
        (b, _, d), m = sizes[0], sum(size[1] for size in sizes)
        loss = 6 * (b * m) ** 2 * d // (run.config.get("accumulate") or 1)
    flops = {"forward": forward, "backward": backward, "target": target, "loss": loss}
    dtypes: Counter[str] = Counter()
    for product in counted:
        dtypes[product.dtype] += product.flops
    return flops | {"total": sum(flops.values())}, dtypes.most_common(1)[0][0]


def module_products(parts: Sequence, shapes: dict) -> tuple[list["Product"], dict]:
    """Return the products of a module's forward pass in training, and the shapes of z.

    parts: from `polyview.model.split_module`. Photometry is left out.
    """
    graph, params, statistics, fixed = parts

    def features(params: dict, statistics: dict, fixed: dict, batch: dict) -> dict:
        module = merge_module(graph, params, statistics, fixed)
        for _, part in nnx.iter_modules(module):
            if hasattr(part, "photometry"):
                part.photometry = None
        output = module(batch, key=jax.random.key(0), train=True)
        return {name: own.z for name, own in output.items()}

    inputs = params, statistics, fixed, shapes
    program, z = jax.make_jaxpr(features, return_shape=True)(*inputs)
    trained = len(jax.tree.leaves(params))
    depends = [place < trained for place in range(len(program.jaxpr.invars))]
    return products(program.jaxpr, depends)[0], z


class Product(NamedTuple):
    """A matrix product or a convolution."""

    flops: int  # forward: 2 for each multiply-add
    gradients: int  # operands that need a gradient: 0, 1 or 2
    dtype: str  # of the operands


def products(jaxpr: Jaxpr, depends: Sequence[bool]) -> tuple[list[Product], list[bool]]:
    """Return every product of a traced program, with FLOPs over all loop iterations.

    depends: whether each input depends on the parameters; the second list returned is
    the same for the outputs. Raises ValueError for a product inside a loop of unknown
    length, or inside an operation that cannot be counted.
    """
    known = dict(zip(jaxpr.invars, depends, strict=True))

    def depending(variables: Sequence[Var | Literal]) -> list[bool]:
        # Literals and constants do not depend on the parameters.
        return [not isinstance(v, Literal) and known.get(v, False) for v in variables]

    def opened(inner: Jaxpr | ClosedJaxpr) -> Jaxpr:
        return inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner

    def has_products(calls: Sequence[Jaxpr | ClosedJaxpr]) -> bool:
        parts = [opened(call) for call in calls]
        return any(products(part, [False] * len(part.invars))[0] for part in parts)

    found: list[Product] = []
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        into = depending(equation.invars)
        inside: list[Product] = []
        out = [any(into)] * len(equation.outvars)
        calls = [v for v in params.values() if isinstance(v, ClosedJaxpr | Jaxpr)]
        if name in _FLOPS:
            operand: Any = equation.invars[0].aval
            flops = _FLOPS[name](equation)
            inside = [Product(flops, sum(into), str(operand.dtype))]
        elif name == "stop_gradient":
            out = [False] * len(out)
        elif name == "scan":
            body = opened(params["jaxpr"])
            carry = _whole(equation.outvars, body.outvars)
            sliced = len(into) - _whole(equation.invars, body.invars)
            carried = slice(len(into) - sliced - carry, len(into) - sliced)
            before = None
            while into != before:  # until the carry depends on nothing new
                before = list(into)
                inside, out = products(body, into)
                ends = out[:carry]
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
            if has_products(calls):
                raise ValueError("a matrix product in a loop of unknown length")
        elif calls and len(opened(calls[0]).invars) != len(into):
            # For example, the function by which scatter combines two numbers.
            if has_products(calls):
                raise ValueError(f"cannot count the matrix products inside {name}")
        elif calls:
            inside, out = products(opened(calls[0]), into)
            if name == "shard_map":  # its body is the work of one device
                inside = [
                    p._replace(flops=p.flops * params["mesh"].size) for p in inside
                ]
        found += inside
        known.update(zip(equation.outvars, out, strict=True))
    return found, depending(jaxpr.outvars)


def _whole(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    """Count what a loop does not slice or stack: its body sees them whole.

    Versions of JAX name these counts differently.
    """
    pairs = zip(outside, inside, strict=True)
    return sum(out.aval.ndim == within.aval.ndim for out, within in pairs)


def _of_matmul(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(left[i] for i in contracted)


def _of_convolution(equation: Any) -> int:
    kernel = equation.invars[1].aval
    outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    taps = kernel.size // outputs
    # The zeros of a dilated input are not multiplied.
    zeros = math.prod(equation.params["lhs_dilation"])
    return 2 * equation.outvars[0].aval.size * taps // zeros


_FLOPS = {"dot_general": _of_matmul, "conv_general_dilated": _of_convolution}
