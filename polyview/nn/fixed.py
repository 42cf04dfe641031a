"""Weights that no step changes: a frozen encoder, the body of a language model.

Variables of this type are an argument of the step, not part of its state. They are not
trained, donated, averaged or checked, and checkpoints do not contain them.
"""

from flax import nnx


class Fixed(nnx.Variable):
    """A variable that is never written after the module is created."""


def freeze(module: nnx.Module) -> None:
    """Turn every variable of a module and its submodules into `Fixed`."""
    for _, part in nnx.iter_modules(module):
        for name, value in list(vars(part).items()):
            if isinstance(value, nnx.Variable):
                setattr(part, name, Fixed(value[...]))
