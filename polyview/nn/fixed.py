"""Weights that no step changes: a frozen encoder, the body of a language model.

By their type they are an argument of the step instead of a part of its state: not
trained, donated, averaged or checked, and not written with each checkpoint.
"""

from flax import nnx


class Fixed(nnx.Variable):
    """A variable that is never written after the module was made."""


def freeze(module: nnx.Module) -> None:
    """Turn every variable of a module, and of all inside it, into `Fixed`."""
    for _, part in nnx.iter_modules(module):
        for name, value in list(vars(part).items()):
            if isinstance(value, nnx.Variable):
                setattr(part, name, Fixed(value[...]))
