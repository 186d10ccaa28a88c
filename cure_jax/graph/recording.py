"""The recorder of equations: with `activations`, the only file here that reads jaxprs.

Numerical precision is settled here, in one place: every `dot_general` and convolution is given the
requested `precision`, because `jax.default_matmul_precision` does not reach equations that are bound again.
"""

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex

from cure_jax.convolution import convolution
from cure_jax.graph import activations
from cure_jax.graph.choices import CHOICES, chosen, in_shape
from cure_jax.graph.control_flow import CONTROL_FLOW, Recorder, Refused
from cure_jax.graph.equations import Equation, Graph, Node, Operand, needed, unsupported
from cure_jax.graph.rewriting import REWRITTEN

__all__ = ["trace"]

ComputeConstant = Callable[[str, Callable[..., Any], Sequence[Any], str], Any]
# Call-like primitives and the parameter that holds what they call.
_CALLS: Mapping[str, str] = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}
# Primitives of `convolution` and `numerics`, which have the parameters of JAX's own.
_ALIASES = {"convolution": "conv_general_dilated", "total": "reduce_sum"}
# These take scalars and axes of size 1 in the place of the whole shape, without a `broadcast_in_dim` in the jaxpr.
_BROADCASTING = ("add", "sub", "mul", "div", "max", "min")
# They say where a value is kept or when it is computed. Of `stop_gradient` the derivative is not that of an identity:
# coefficients must not be pulled back through it.
_IDENTITIES = (
    "device_put",
    "layout_constraint",
    "name",
    "optimization_barrier",
    "sharding_constraint",
    "stop_gradient",
)
# Not defined for all real numbers: those whose rules have a domain of operands.
_PARTIAL = ("integer_pow", "log", "log1p", "pow", "rsqrt", "sqrt")
# Whole numbers and truth values of up to this size are computed while tracing, also under `jax.jit`: they count the
# steps of loops and say where entries go.
_MOST_WHOLE_NUMBERS = 2**16
# Found, not imported: flax need not be there.
_LIBRARIES = tuple(
    os.path.dirname(os.path.abspath(spec.origin)) + os.sep
    for spec in map(importlib.util.find_spec, ("jax", "flax", "cure_jax"))
    if spec is not None and spec.origin is not None
)


def trace(
    f: Callable[[jax.Array], jax.Array],
    example: jax.Array | jax.ShapeDtypeStruct,
    *,
    precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST,
    constants: ComputeConstant | None = None,
) -> Graph:
    """Traces a function of one array into a `Graph`.

    Args:
      f: function of ONE example `[*x]` returning one array; it may close over traced values (parameters).
      example: anything with the shape and dtype of the input; its values are not used.
      precision: given to every matrix product and convolution of the graph.
      constants: computes what does not depend on the input, instead of the primitive: `(name, primitive, operands,
        source line) -> result`.

    Returns:
      The graph, pruned to the equations its output needs.

    Raises:
      TypeError: if `f` does not return exactly one array, or the input is not float32 or float64.
      UnsupportedPrimitive: if a primitive with several results depends on the input; or how often a loop runs, or which
        branch is taken; or anything has side effects.
    """
    if example.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(
            f"A function to be bounded takes a float32 or float64 array; got {example.dtype}. Convert the example "
            "before its region is built; half precision would round the bounds themselves."
        )
    # A new function each time: JAX keeps what it has traced by identity, and what `f` closes over may have changed.
    closed = jax.make_jaxpr(lambda x: f(x))(jax.ShapeDtypeStruct(example.shape, example.dtype))
    inner = getattr(closed, "jaxpr", closed)
    if len(inner.outvars) != 1:
        raise TypeError(
            f"A function to be bounded must return one array; got {len(inner.outvars)} outputs. "
            "Return the logits alone, without auxiliary values."
        )
    tracer = _Flattener(_canonical(precision), constants or _as_it_is)
    source = Node(0, tuple(example.shape), jnp.dtype(example.dtype))
    (output,) = tracer.run(closed, [source], outer_source=None)
    output = tracer.defined(output, inner.outvars[0].aval)
    return Graph(source, output, needed(tracer.equations, output))


def _as_it_is(name: str, bind: Callable[..., Any], operands: Sequence[Any], source: str) -> Any:
    del name, source
    return bind(*operands)


def _canonical(precision: jax.lax.PrecisionLike) -> Any:
    """Any way to write a precision, in the form that primitives have as parameter."""
    if precision is None:
        return None
    pair = precision if isinstance(precision, tuple) else (precision, precision)
    return tuple(jax.lax.Precision(item) for item in pair)


class _Flattener:
    """Runs a jaxpr, computing what is constant and recording what is not."""

    def __init__(self, precision: Any, constants: ComputeConstant):
        self.precision = precision
        self.constants = constants
        self.equations: list[Equation] = []
        # Nodes that were taken for numbers, where something would come out otherwise if they were none.
        self.judged: list[Node] = []

    def defined(self, output: Operand, kind: Any) -> Operand:
        """The output, known only where all is that a judgement rests on: log(x) may be no number, and tanh hide it."""
        wanted, partial = {node.index for node in self.judged}, []
        for equation in reversed(self.equations):
            if equation.output.index in wanted:
                wanted.update(node.index for node in equation.bounded)
                if _is_partial(equation):
                    partial.append(equation)
        if not partial:
            return output
        shape = tuple(kind.shape)
        tops = [
            self.recorded(lambda x: [jnp.broadcast_to(jnp.max(x), shape)], [equation.output], equation.source)[0]
            for equation in partial
        ]
        known = output if isinstance(output, Node) else jnp.broadcast_to(output, shape)
        return self.record("defined", {}, [known, *tops], kind, partial[0].source, lambda x, *tops: x)

    def run(self, closed: Any, arguments: Sequence[Operand], outer_source: str | None) -> list[Operand]:
        inner, constants = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
        # A fresh environment for each call: variables are shared between cached sub-jaxprs.
        environment: dict[Any, Operand] = dict(zip(inner.constvars, map(_concrete, constants), strict=True))
        environment.update(zip(inner.invars, arguments, strict=True))

        def read(atom: Any) -> Operand:
            if isinstance(atom, jex.Literal):
                return _concrete(atom.val, getattr(atom.aval, "dtype", None))
            return environment[atom]

        # By the index of its last equation; the others are recorded too, and left out if nothing else needs them.
        runs: dict[int, activations.Run] = {}
        for i, equation in enumerate(inner.eqns):
            source = outer_source or _source_line(equation)
            run = activations.named_run(inner.eqns, i)
            if run is not None:
                runs[i + run.length - 1] = run
            outputs = None
            if i in runs:
                run, output = runs[i], equation.outvars[0].aval
                outputs = self._activation(run.name, [read(atom) for atom in run.atoms], output, source, run.function)
            if outputs is None:
                outputs = self._apply(equation, [read(atom) for atom in equation.invars], source)
            environment.update(zip(equation.outvars, outputs, strict=True))
        return [read(atom) for atom in inner.outvars]

    def _apply(self, equation: Any, operands: list[Operand], source: str | None) -> Sequence[Operand]:
        name = equation.primitive.name
        if name in _CALLS:
            return self._call(equation, operands, source)
        source = source or "an unknown line"
        if equation.effects:
            # What is written to a reference would come back as a constant.
            raise unsupported(name, source, "it has side effects")
        bind = self._binder(equation)
        if not any(isinstance(operand, Node) for operand in operands):
            result = self._constant(equation, bind, operands, source)
            return result if equation.primitive.multiple_results else [result]
        return self._bounded(equation, operands, source, bind)

    def _bounded(
        self, equation: Any, operands: list[Operand], source: str, bind: Callable[..., Any]
    ) -> Sequence[Operand]:
        """What depends on the input: as other equations, or as one more."""
        name, output = str(_ALIASES.get(equation.primitive.name, equation.primitive.name)), equation.outvars[0].aval
        if name in _IDENTITIES:
            return operands
        if name in CONTROL_FLOW:
            return self._written_out(equation, operands, source)
        if name in CHOICES:
            outputs = chosen(self, equation, operands, source)
            if outputs is not None:
                return outputs
        if name in REWRITTEN and (name != "pow" or isinstance(operands[1], Node)):
            function = REWRITTEN[name](equation.params)
            return self.recorded(function, operands, source)
        if equation.primitive.multiple_results:
            raise unsupported(name, source, "it has several results")
        if name == "is_finite" or (name == "ne" and operands[0] is operands[1]):
            # A node stands for real numbers. Where it may be none, `defined` says that nothing is known.
            (judged, *_) = operands
            assert isinstance(judged, Node)
            self.judged.append(judged)
            return [jnp.full(output.shape, name == "is_finite")]
        if name in _BROADCASTING:
            operands = [self._broadcast(operand, tuple(output.shape), source) for operand in operands]
        if name == "div" and isinstance(operands[1], Node):
            return self.recorded(lambda x, y: [x * lax.integer_pow(y, -1)], operands, source)
        return [self.record(name, equation.params, operands, output, source, bind)]

    def _constant(self, equation: Any, bind: Callable[..., Any], operands: Sequence[Any], source: str) -> Any:
        """What does not depend on the input."""
        name = equation.primitive.name
        if _is_whole(equation) and not any(isinstance(operand, jax.core.Tracer) for operand in operands):
            with jax.ensure_compile_time_eval():
                return bind(*operands)
        return self.constants(name, bind, operands, source)

    def recorded(self, function: Callable[..., list[Any]], operands: Sequence[Operand], source: str) -> list[Operand]:
        """The results of a function of arrays, by the equations that it consists of."""
        types = [jax.ShapeDtypeStruct(operand.shape, operand.dtype) for operand in operands]
        return self.run(jax.make_jaxpr(function)(*types), operands, source)

    def _written_out(self, equation: Any, operands: Sequence[Operand], source: str) -> list[Operand]:
        """A loop or a branch, by the equations inside."""
        name = equation.primitive.name
        recorder = Recorder(
            run=lambda closed, values: self.run(closed, values, source),
            record=lambda function, values: self.recorded(function, values, source),
            number=lambda x: None if isinstance(x, jax.core.Tracer) else int(x),
            depends=lambda x: isinstance(x, Node),
        )
        try:
            return CONTROL_FLOW[name](recorder, equation.params, operands, [out.aval for out in equation.outvars])
        except Refused as refused:
            raise unsupported(name, source, str(refused)) from refused

    def _call(self, equation: Any, operands: list[Operand], source: str | None) -> Sequence[Operand]:
        """An activation function by its name, of anything else the equations inside."""
        if any(isinstance(operand, Node) for operand in operands):
            name, output = activations.named_call(equation), equation.outvars[0].aval if equation.outvars else None
            if name == "logaddexp" and output is not None:
                operands = [in_shape(self, operand, tuple(output.shape), source or "") for operand in operands]
                return [self.record(name, {}, operands, output, source or "an unknown line", jnp.logaddexp)]
            if name is not None:
                bind = lambda *values: equation.primitive.bind(*values, **equation.params)[0]  # noqa: E731
                recorded = self._activation(name, operands, output, source, bind)
                if recorded is not None:
                    return recorded
        return self.run(equation.params[_CALLS[equation.primitive.name]], operands, source)

    def _activation(
        self, name: str, operands: list[Operand], output: Any, source: str | None, bind: Callable[..., jax.Array]
    ) -> list[Operand] | None:
        """One equation for an activation function of a node with constant parameters; None for any other."""
        x, *parameters = operands
        if not isinstance(x, Node) or x.shape != tuple(output.shape) or any(isinstance(p, Node) for p in parameters):
            return None
        return [self.record(name, {}, operands, output, source or "an unknown line", bind)]

    def record(
        self,
        name: str,
        params: Mapping[str, Any],
        operands: Sequence[Operand],
        output: Any,
        source: str,
        bind: Callable[..., Any],
    ) -> Node:
        # Index 0 is the input.
        node = Node(len(self.equations) + 1, tuple(output.shape), jnp.dtype(output.dtype))
        self.equations.append(Equation(name, params, tuple(operands), node, source, bind))
        return node

    def _broadcast(self, operand: Operand, shape: tuple[int, ...], source: str) -> Operand:
        """A node in the given shape, by an equation of its own if it has another one; constants as they are."""
        if not isinstance(operand, Node) or operand.shape == shape:
            return operand
        trailing = tuple(range(len(shape) - len(operand.shape), len(shape)))
        return self.recorded(lambda x: [lax.broadcast_in_dim(x, shape, trailing)], [operand], source)[0]

    def _binder(self, equation: Any) -> Callable[..., Any]:
        primitive, params = equation.primitive, dict(equation.params)
        is_convolution = _ALIASES.get(primitive.name, primitive.name) == "conv_general_dilated"
        if primitive.name == "dot_general" or is_convolution:
            params["precision"] = self.precision
        if primitive.name.startswith("scatter") and params["mode"] == lax.GatherScatterMode.PROMISE_IN_BOUNDS:
            # The same, and what is written out of bounds is dropped.
            params["mode"] = lax.GatherScatterMode.FILL_OR_DROP
        if primitive.name == "gather" and params["mode"] == lax.GatherScatterMode.PROMISE_IN_BOUNDS:
            # An index that breaks the promise is clamped in evaluation, but left out by the transposed primitive.
            params["mode"] = lax.GatherScatterMode.CLIP
        if is_convolution:
            return lambda lhs, rhs: convolution(lhs, rhs, **params)
        return lambda *operands: primitive.bind(*operands, **params)


def _concrete(x: Any, dtype: Any = None) -> jax.Array:
    """An array whose value is known while tracing, unless it is a tracer already."""
    if isinstance(x, jax.Array):
        return x
    with jax.ensure_compile_time_eval():
        return jnp.asarray(x, dtype=dtype)


def _is_whole(equation: Any) -> bool:
    """Whether an equation has few numbers as results, all of them exact; not the platform, which the program has."""
    types = [variable.aval for variable in equation.outvars]
    return equation.primitive.name != "platform_index" and all(
        getattr(kind, "dtype", None) in (jnp.bool_, jnp.int32, jnp.int64) and kind.size <= _MOST_WHOLE_NUMBERS
        for kind in types
    )


def _is_partial(equation: Equation) -> bool:
    """Whether its value may be no real number."""
    return equation.name in _PARTIAL and (equation.name != "integer_pow" or equation.params["y"] < 0)


def _source_line(equation: Any) -> str | None:
    """`file:line (function)` of the innermost frame outside of JAX, Flax and the bound machinery."""
    traceback = equation.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        name = os.path.abspath(frame.file_name)
        if not (name.startswith(_LIBRARIES) and os.path.join("cure_jax", "models") not in name):
            return f"{frame.file_name}:{frame.line_num} ({frame.function_name})"
    return None
