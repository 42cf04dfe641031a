"""What happens inside a module: outputs of its modules, and its activations, by path.

A path such as "towers.image.encoder" names a module, whose output is read. With an
ending, "towers.image.encoder:relu" or ":relu.1", it names an activation that the module
computes itself: its only ReLU, or the second of several in the order of computation.
A ReLU gives its output; a smooth activation its input up to a positive factor, whose
sign is that of a unit. Activations are found in the traced program, so a module need
not declare them. Those in loops (`lax.scan`, `lax.map`, `lax.cond`) are not found, nor
is a ReLU that is not written as `jax.nn.relu`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from polyview.errors import nearest

RELU = "relu"
# Primitives of smooth activations; SiLU is made of the logistic function, GELU of the
# error function or, as an approximation, of tanh. `erfc` falls with its input.
SMOOTH = {"erf": "gelu", "erfc": "gelu", "tanh": "tanh", "logistic": "sigmoid"}
_FALLS = "erfc"
_SCOPE = "module:"  # before the path of a module, among the scopes of an operation


class Activation(NamedTuple):
    """An activation that a module computes.

    kind: "relu", or a value of `SMOOTH` for one whose units are not on or off; shape:
    of its output.
    """

    path: str
    kind: str
    shape: tuple[int, ...]

    @property
    def smooth(self) -> bool:
        """Whether its units are not on or off."""
        return self.kind != RELU


def activations(module: nnx.Module, run: Callable[[], Any]) -> list[Activation]:
    """Return the activations of `run()`, which calls a module, in order.

    module: a copy, which is changed.
    """
    _enter_scopes(_parts(module))
    return _named(jax.make_jaxpr(run)().jaxpr)


def outputs(
    module: nnx.Module, run: Callable[[], Any], paths: Sequence[str]
) -> dict[str, Any]:
    """Return what modules and activations at these paths give in `run()`.

    module: a copy, which is changed; `run` calls it. A module that is called several
    times gives its last output. Raises ValueError if there is no module or activation
    at a path, or if it is not called.
    """
    parts = _parts(module)
    inside = [path for path in paths if ":" in path]
    found: dict[str, Any] = {}
    for path in paths:
        if path in inside:
            continue
        if path not in parts:
            raise ValueError(f"there is no module at {path!r}{nearest(path, parts)}")
        _store_output(parts[path], path, found)

    def of_modules() -> dict[str, Any]:
        run()
        return found

    if inside:
        _enter_scopes(parts)
        program, tree = jax.make_jaxpr(of_modules, return_shape=True)()
        named = {site.path: place for place, site in enumerate(_named(program.jaxpr))}
        for path in inside:
            if path not in named:
                near = nearest(path, named)
                raise ValueError(f"there is no activation at {path!r}{near}")
        values, sites = _evaluate(program)
        found = jax.tree.unflatten(jax.tree.structure(tree), values)
        found |= {path: sites[named[path]] for path in inside}
    else:
        of_modules()
    if silent := [path for path in paths if path not in found]:
        raise ValueError(f"the module at {silent[0]!r} is not called")
    return found


def _parts(module: nnx.Module) -> dict[str, nnx.Module]:
    return {".".join(map(str, path)): part for path, part in nnx.iter_modules(module)}


def _store_output(module: nnx.Module, path: str, found: dict[str, Any]) -> None:
    """Make a module store what it returns in `found`."""

    def call(original: Callable, *arguments: Any, **options: Any) -> Any:
        found[path] = original(*arguments, **options)
        return found[path]

    _wrap(module, call)


def _enter_scopes(parts: dict[str, nnx.Module]) -> None:
    """Make modules name the operations that they compute by their path."""
    for path, part in parts.items():

        def call(
            original: Callable, *arguments: Any, path: str = path, **options: Any
        ) -> Any:
            with jax.named_scope(_SCOPE + path):
                return original(*arguments, **options)

        if callable(part):
            _wrap(part, call)


def _wrap(module: nnx.Module, call: Callable) -> None:
    """Make `module(...)` be `call(what it was, ...)`; the module must be a copy."""
    kind: Any = type(module)

    class Wrapped(kind):
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            def original(*arguments: Any, **options: Any) -> Any:
                return kind.__call__(self, *arguments, **options)

            return call(original, *arguments, **options)

    object.__setattr__(module, "__class__", Wrapped)


class _Site(NamedTuple):
    """An activation in a program: its module, its kind and the shape of its output."""

    module: str
    kind: str
    shape: tuple[int, ...]


def _named(program: Jaxpr) -> list[Activation]:
    """Return the activations of a program; several of a kind in a module count up."""
    sites = list(_walk(program, ""))
    together = Counter((site.module, site.kind) for site in sites)
    before: Counter = Counter()
    named = []
    for site in sites:
        key = site.module, site.kind
        number = f".{before[key]}" if together[key] > 1 else ""
        before[key] += 1
        named.append(Activation(f"{key[0]}:{key[1]}{number}", site.kind, site.shape))
    return named


def _walk(program: Jaxpr, module: str) -> Iterator[_Site]:
    for equation in program.eqns:
        own = _module_of(equation) or module
        if kind := _kind_of(equation):
            output: Any = equation.outvars[0].aval
            yield _Site(own, kind, output.shape)
        elif (inner := _inner(equation)) is not None:
            yield from _walk(inner.jaxpr, own)


def _evaluate(program: ClosedJaxpr) -> tuple[list[Any], list[Any]]:
    """Return the outputs of a program, and those of its activations as `_walk` does."""
    sites: list[Any] = []

    def evaluate(jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[Any]) -> list:
        values: dict[Var, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        values |= dict(zip(jaxpr.invars, inputs, strict=True))

        def value(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else values[atom]

        for equation in jaxpr.eqns:
            operands = [value(atom) for atom in equation.invars]
            inner, kind = _inner(equation), _kind_of(equation)
            if kind or inner is None:
                primitive = equation.primitive
                params = primitive.get_bind_params(equation.params)
                result = primitive.bind(*operands, **params)
                results = result if primitive.multiple_results else [result]
            else:
                results = evaluate(inner.jaxpr, inner.consts, operands)
            if kind:
                sign = -1 if equation.primitive.name == _FALLS else 1
                sites.append(results[0] if kind == RELU else sign * operands[0])
            values |= dict(zip(equation.outvars, results, strict=True))
        return [value(atom) for atom in jaxpr.outvars]

    return evaluate(program.jaxpr, program.consts, []), sites


def _kind_of(equation: JaxprEqn) -> str | None:
    """Return the kind of activation that an operation is, or None."""
    name = equation.primitive.name
    if name in SMOOTH:
        return SMOOTH[name]
    if name == "custom_jvp_call":
        inner = equation.params["call_jaxpr"].jaxpr.eqns
        if len(inner) == 1 and inner[0].params.get("name") == RELU:
            return RELU
    return None


def _inner(equation: JaxprEqn) -> ClosedJaxpr | None:
    """Return the program that an operation runs once, or None."""
    name, params = equation.primitive.name, equation.params
    if name in ("jit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2"):
        inner: Any = params.get("jaxpr", params.get("call_jaxpr"))
        return inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
    return None


def _module_of(equation: JaxprEqn) -> str | None:
    """Return the path of the innermost module that an operation stands in."""
    scopes = str(equation.source_info.name_stack).split("/")
    paths = [s.removeprefix(_SCOPE) for s in scopes if s.startswith(_SCOPE)]
    return paths[-1] if paths else None
