"""Layer-wise decay of the learning rate: the nearer a layer is to the input, the lower.

With n blocks and decay r, block i (from 0) learns at the rate times r^(n - i), and what
comes before the blocks at r^(n + 1) (Clark et al. 2020; Bao et al. 2022, whose indices
these are). What comes after them, and projectors and heads, have the whole rate.
"""

from typing import Any

import jax
import optax

from polyview.errors import TINY, InputError, check_range

# What an encoder of `polyview.nn` applies before its blocks: the patches, tokens or
# pixels, and their positions.
_BEFORE = {"embed", "cls", "position", "conv"}


def layer_rates(params: Any, decay: float) -> Any:
    """Return the factor of each parameter's learning rate, in the tree of `params`.

    An encoder is a dict with a list `blocks`, wherever it stands; each counts its own.
    """
    if not isinstance(params, dict):
        return 1.0
    blocks = params.get("blocks")
    if not isinstance(blocks, dict):
        return {name: layer_rates(part, decay) for name, part in params.items()}
    n = len(blocks)
    # The norm of a ResNet belongs to its first convolution; others are the last layer.
    before = _BEFORE | {"norm"} if "conv" in params else _BEFORE

    def filled(part: Any, factor: float) -> Any:
        return jax.tree.map(lambda _: factor, part)

    rates = {
        name: filled(part, decay ** (n + 1) if name in before else 1.0)
        for name, part in params.items()
    }
    return rates | {
        "blocks": {i: filled(block, decay ** (n - i)) for i, block in blocks.items()}
    }


def by_layer(
    transformation: optax.GradientTransformation, decay: float | None
) -> optax.GradientTransformation:
    """Return the transformation with its updates multiplied by `layer_rates`.

    The optimisers' updates are proportional to the rate, weight decay included. None
    changes nothing. Raises OutOfRange unless 0 < decay <= 1, and InputError when the
    state is made for parameters without a list of blocks.
    """
    if decay is None:
        return transformation
    check_range(TINY, 1.0, layer_decay=decay)

    def init(params: Any) -> optax.EmptyState:
        if decay < 1 and all(
            r == 1 for r in jax.tree.leaves(layer_rates(params, decay))
        ):
            raise InputError(
                "optimizer.layer_decay: no trained encoder has a list of blocks, as a "
                "ViT or a ResNet has; set it to None"
            )
        return optax.EmptyState()

    def scale(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        rates = layer_rates(updates, decay)
        return jax.tree.map(lambda u, rate: u * rate, updates, rates), state

    return optax.chain(transformation, optax.GradientTransformation(init, scale))
