"""Recognises activation functions of `jax.nn` in a jaxpr, to record each as one equation.

Part by part they cannot be bounded (leaky ReLU and ELU select by a predicate that depends on the input) or only loosely
(GELU and SiLU multiply x with a function of x). A call counts as the function of `jax.nn` if it has its NAME and if its
jaxpr is equal, equation by equation, to that of the function traced afresh on the same types: a user's own function of
the same name is something else. GELU and flax's PReLU are not jitted; they are a run of equations, compared alike.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Run", "named_call", "named_run"]

# By the name of their `jit`; aliases such as `swish` and those of flax share it.
_CALLS: Mapping[str, Callable[..., jax.Array]] = {
    "celu": jax.nn.celu,
    "clip": jnp.clip,
    "elu": jax.nn.elu,
    "hard_silu": jax.nn.hard_silu,
    "hard_tanh": jax.nn.hard_tanh,
    "leaky_relu": jax.nn.leaky_relu,
    "mish": jax.nn.mish,
    "relu6": jax.nn.relu6,
    "selu": jax.nn.selu,
    "silu": jax.nn.silu,
    "soft_sign": jax.nn.soft_sign,
    "softplus": jax.nn.softplus,
    "sparse_plus": jax.nn.sparse_plus,
}


def _prelu(x: jax.Array, negative_slope: jax.Array) -> jax.Array:
    """What `flax.linen.PReLU` and `flax.nnx.PReLU` compute."""
    return jnp.where(x >= 0, x, negative_slope * x)


_RUNS: Sequence[tuple[str, Callable[..., jax.Array], int]] = (
    ("gelu_tanh", functools.partial(jax.nn.gelu, approximate=True), 1),
    ("gelu", functools.partial(jax.nn.gelu, approximate=False), 1),
    ("leaky_relu", _prelu, 2),
)
_JITS = ("jit", "pjit")
_DEEPEST_MAP = 3
# In the jaxpr of a call, the parameter that holds what is called; all others are about how it is run.
_INNER = ("jaxpr", "call_jaxpr")


class Run(NamedTuple):
    """Consecutive equations that compute one function.

    Attributes:
      name: of the function.
      function: the function.
      atoms: its operands.
      length: the number of equations.
    """

    name: str
    function: Callable[..., jax.Array]
    atoms: tuple[Any, ...]
    length: int


def named_call(equation: Any) -> str | None:
    """The name of the activation that a `jit` or `custom_jvp` equation calls, or None."""
    if equation.primitive.name == "custom_jvp_call":
        return "logaddexp" if _is_logaddexp(equation) else None
    name = equation.params.get("name")
    if name not in _CALLS or equation.primitive.name not in _JITS or (name == "clip" and len(equation.invars) < 3):
        return None
    x, *parameters = (_type(atom) for atom in equation.invars)
    for depth in range(min(len(x.shape), _DEEPEST_MAP) + 1):
        # Under `jax.vmap`, constants are broadcast in other places.
        function = _CALLS[name]
        for _ in range(depth):
            function = jax.vmap(function, (0, *(None,) * len(parameters)))
        expected = _call_of(_traced(function, [x, *parameters]), name)
        if expected is not None and _same_jaxpr(expected, equation.params["jaxpr"]):
            return name
    return None


def _is_logaddexp(equation: Any) -> bool:
    """Has no name: known by what it does. Elsewhere it would be its parts."""
    found, types = equation.params["call_jaxpr"], [_type(atom) for atom in equation.invars]
    if len(types) != 2 or getattr(found, "jaxpr", found).eqns[:1] == []:
        return False
    expected = _traced(jnp.logaddexp, types)
    calls = [] if expected is None else getattr(expected, "jaxpr", expected).eqns[-1:]
    return any(
        call.primitive.name == equation.primitive.name and _same_jaxpr(call.params["call_jaxpr"], found)
        for call in calls
    )


def named_run(equations: Sequence[Any], start: int) -> Run | None:
    """The activation whose equations begin at index `start`, or None."""
    for name, function, arity in _RUNS:
        names = _primitives(function, arity)
        found = equations[start : start + len(names)]
        if tuple(equation.primitive.name for equation in found) != names:
            continue
        output = found[-1].outvars[0].aval
        types = [jax.ShapeDtypeStruct(shape, output.dtype) for shape in (output.shape, ())[:arity]]
        expected = getattr(_traced(function, types), "jaxpr", None)
        atoms: dict[Any, Any] = {}
        if expected is not None and _same_equations(expected.eqns, found, atoms, free=expected.invars):
            return Run(name, function, tuple(atoms[variable] for variable in expected.invars), len(names))
    return None


def _type(atom: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype, weak_type=atom.aval.weak_type)


def _traced(function: Callable[..., jax.Array], types: Sequence[jax.ShapeDtypeStruct]) -> Any:
    """The jaxpr of a function, or None where it does not take operands of these types."""
    try:
        return jax.make_jaxpr(function)(*types)
    except (TypeError, ValueError):
        return None


@functools.cache
def _primitives(function: Callable[..., jax.Array], arity: int) -> tuple[str, ...]:
    types = [jax.ShapeDtypeStruct((), jnp.float32)] * arity
    return tuple(equation.primitive.name for equation in _traced(function, types).jaxpr.eqns)


def _call_of(closed: Any, name: str) -> Any:
    """The jaxpr of the `jit` of that name, which may stand inside a `custom_jvp_call`."""
    while closed is not None:
        (equation, *others) = getattr(closed, "jaxpr", closed).eqns or (None,)
        if equation is None or others:
            return None
        inner = next((equation.params[key] for key in _INNER if key in equation.params), None)
        if equation.params.get("name") == name and equation.primitive.name in _JITS:
            return inner
        closed = inner
    return None


def _same_jaxpr(expected: Any, found: Any) -> bool:
    """Whether two closed jaxprs are equal up to the names of their variables."""
    if getattr(expected, "consts", ()) or getattr(found, "consts", ()):
        return False
    expected, found = getattr(expected, "jaxpr", expected), getattr(found, "jaxpr", found)
    if len(expected.invars) != len(found.invars) or len(expected.eqns) != len(found.eqns):
        return False
    if [str(v.aval) for v in expected.invars] != [str(v.aval) for v in found.invars]:
        return False
    atoms = dict(zip(expected.invars, found.invars, strict=True))
    return _same_equations(expected.eqns, found.eqns, atoms) and all(
        _same_atom(one, other, atoms, ()) for one, other in zip(expected.outvars, found.outvars, strict=True)
    )


def _same_equations(
    expected: Sequence[Any], found: Sequence[Any], atoms: dict[Any, Any], free: Sequence[Any] = ()
) -> bool:
    """Whether equations are equal, given what the variables of `expected` stand for; those in `free` may be found."""
    for one, other in zip(expected, found, strict=True):
        if one.primitive.name != other.primitive.name or len(one.invars) != len(other.invars):
            return False
        if not all(_same_atom(a, b, atoms, free) for a, b in zip(one.invars, other.invars, strict=True)):
            return False
        if not _same_parameters(one.params, other.params):
            return False
        atoms.update(zip(one.outvars, other.outvars, strict=True))
    return True


def _same_atom(expected: Any, found: Any, atoms: dict[Any, Any], free: Sequence[Any]) -> bool:
    if _is_literal(expected):
        same_type = _is_literal(found) and expected.aval.dtype == found.aval.dtype
        return same_type and np.array_equal(expected.val, found.val)
    if expected not in atoms and any(expected is variable for variable in free):
        atoms[expected] = found
    return atoms.get(expected) is found


def _is_literal(atom: Any) -> bool:
    return hasattr(atom, "val")


def _same_parameters(expected: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    for key in _INNER:
        if key in expected and key in found:
            return expected.get("name") == found.get("name") and _same_jaxpr(expected[key], found[key])
    return set(expected) == set(found) and all(expected[key] == found[key] for key in expected)
