"""From a JAX function to a flat list of equations: the only file that reads jaxprs.

`trace(f, example)` follows `f` once with abstract values and returns a `Graph`: the equations that
depend on the input, in order of execution, with every call (`jit`, `custom_jvp_call`, `remat`, ...)
inlined and everything that does not depend on the input already computed. What remains of a
network such as `Dense -> relu -> Dense` is

    dot_general, add, max, dot_general, add

Activation functions of `jax.nn` that cannot be bounded part by part stay one equation (`activations`). Others become
equations that have rules: a result of `split` is a slice, a quotient a product with a reciprocal, a product of entries
one of pairs, and loops and branches are written out (`control_flow`).

An operand of an equation is either a `Node` (a value that depends on the input, to be bounded) or a plain
array. Nodes are broadcast by equations of their own, so that elementwise ones have nodes of one shape. Later rooms
never see a jaxpr: `rules` says what each kind of equation does to sets, `bounds` folds over the list.

Numerical precision is settled here, in one place: every `dot_general` and convolution is given the
requested `precision`, because `jax.default_matmul_precision` does not reach equations that are bound again.
"""

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex

from cure_jax import activations
from cure_jax.control_flow import CONTROL_FLOW, Recorder, Refused
from cure_jax.convolution import convolution
from cure_jax.rewriting import REWRITTEN

__all__ = ["Equation", "Graph", "Node", "UnsupportedPrimitive", "trace"]

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
_COMPARISONS = ("gt", "ge", "lt", "le")
# Not defined for all real numbers: those whose rules have a domain of operands.
_PARTIAL = ("integer_pow", "log", "log1p", "pow", "rsqrt", "sqrt")
# Affine entry by entry, as quotients have constant divisors, and where products have one bounded factor.
_STRAIGHT = ("add", "sub", "neg", "mul", "div")
# Whole numbers and truth values of up to this size are computed while tracing, also under `jax.jit`: they count the
# steps of loops and say where entries go.
_MOST_WHOLE_NUMBERS = 2**16
# Found, not imported: flax need not be there.
_LIBRARIES = tuple(
    os.path.dirname(os.path.abspath(spec.origin)) + os.sep
    for spec in map(importlib.util.find_spec, ("jax", "flax", "cure_jax"))
    if spec is not None and spec.origin is not None
)


class UnsupportedPrimitive(NotImplementedError):
    """A primitive that depends on the input has no bound rule."""


@dataclasses.dataclass(frozen=True)
class Node:
    """A value of the network that depends on its input."""

    index: int
    shape: tuple[int, ...]
    dtype: Any

    def zeros(self) -> jax.Array:
        """An array of zeros of the node's shape and dtype."""
        return jnp.zeros(self.shape, self.dtype)


Operand = Node | jax.Array
ComputeConstant = Callable[[str, Callable[..., Any], Sequence[Any], str], Any]


@dataclasses.dataclass(frozen=True)
class Equation:
    """One primitive application: `output = primitive(*operands, **params)`."""

    name: str
    params: Mapping[str, Any]
    operands: tuple[Operand, ...]
    output: Node
    source: str
    bind: Callable[..., jax.Array] = dataclasses.field(repr=False)

    @property
    def bounded(self) -> tuple[Node, ...]:
        """The operands that depend on the input, in order (a node used twice appears twice)."""
        return tuple(operand for operand in self.operands if isinstance(operand, Node))

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions of the bounded operands."""
        return tuple(i for i, operand in enumerate(self.operands) if isinstance(operand, Node))

    @property
    def constants(self) -> tuple[jax.Array, ...]:
        """The operands that do not depend on the input, in order."""
        return tuple(operand for operand in self.operands if not isinstance(operand, Node))

    def evaluate(self, *values: jax.Array) -> jax.Array:
        """Applies the primitive to one value for each bounded operand; the others are as traced."""
        remaining = iter(values)
        return self.bind(*[next(remaining) if isinstance(operand, Node) else operand for operand in self.operands])

    def replace_constants(self, function: Callable[[jax.Array], jax.Array]) -> "Equation":
        """The same equation with `function` applied to every operand that is not bounded."""
        operands = tuple(operand if isinstance(operand, Node) else function(operand) for operand in self.operands)
        return dataclasses.replace(self, operands=operands)

    def unsupported(self, reason: str = "") -> UnsupportedPrimitive:
        """The error for an equation that no rule covers, naming primitive and source line."""
        return _unsupported(self.name, self.source, reason)


def _unsupported(name: str, source: str, reason: str) -> UnsupportedPrimitive:
    detail = f" ({reason})" if reason else ""
    return UnsupportedPrimitive(
        f"No bound rule for primitive `{name}`{detail} at {source}. Expected only primitives listed by "
        "cure_jax.rules.supported(); rewrite this line with those, or give it bounds with cure_jax.custom_bounds."
    )


@dataclasses.dataclass(frozen=True)
class Graph:
    """A function of one array as a list of equations in order of execution.

    `output` is a `Node`, or an array when the function does not depend on its input.
    """

    input: Node
    output: Operand
    equations: tuple[Equation, ...]

    def evaluate(self, x: jax.Array) -> jax.Array:
        """The function itself, through the equations (with the precision the graph was traced with)."""
        values = {self.input.index: x}
        for equation in self.equations:
            values[equation.output.index] = equation.evaluate(*(values[node.index] for node in equation.bounded))
        return values[self.output.index] if isinstance(self.output, Node) else self.output


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
    return Graph(source, output, _needed(tracer.equations, output))


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
            self._recorded(lambda x: [jnp.broadcast_to(jnp.max(x), shape)], [equation.output], equation.source)[0]
            for equation in partial
        ]
        known = output if isinstance(output, Node) else jnp.broadcast_to(output, shape)
        return self._record("defined", {}, [known, *tops], kind, partial[0].source, lambda x, *tops: x)

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
            raise _unsupported(name, source, "it has side effects")
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
        if name in ("select_n", "sort", "top_k"):
            chosen = self._chosen(equation, operands, source)
            if chosen is not None:
                return chosen
        if name in REWRITTEN and (name != "pow" or isinstance(operands[1], Node)):
            function = REWRITTEN[name](equation.params)
            return self._recorded(function, operands, source)
        if equation.primitive.multiple_results:
            raise _unsupported(name, source, "it has several results")
        if name == "is_finite" or (name == "ne" and operands[0] is operands[1]):
            # A node stands for real numbers. Where it may be none, `defined` says that nothing is known.
            (judged, *_) = operands
            assert isinstance(judged, Node)
            self.judged.append(judged)
            return [jnp.full(output.shape, name == "is_finite")]
        if name in _BROADCASTING:
            operands = [self._broadcast(operand, tuple(output.shape), source) for operand in operands]
        if name == "div" and isinstance(operands[1], Node):
            return self._recorded(lambda x, y: [x * lax.integer_pow(y, -1)], operands, source)
        return [self._record(name, equation.params, operands, output, source, bind)]

    def _constant(self, equation: Any, bind: Callable[..., Any], operands: Sequence[Any], source: str) -> Any:
        """What does not depend on the input."""
        name = equation.primitive.name
        if _is_whole(equation) and not any(isinstance(operand, jax.core.Tracer) for operand in operands):
            with jax.ensure_compile_time_eval():
                return bind(*operands)
        return self.constants(name, bind, operands, source)

    def _recorded(self, function: Callable[..., list[Any]], operands: Sequence[Operand], source: str) -> list[Operand]:
        """The results of a function of arrays, by the equations that it consists of."""
        types = [jax.ShapeDtypeStruct(operand.shape, operand.dtype) for operand in operands]
        return self.run(jax.make_jaxpr(function)(*types), operands, source)

    def _written_out(self, equation: Any, operands: Sequence[Operand], source: str) -> list[Operand]:
        """A loop or a branch, by the equations inside."""
        name = equation.primitive.name
        recorder = Recorder(
            run=lambda closed, values: self.run(closed, values, source),
            record=lambda function, values: self._recorded(function, values, source),
            number=lambda x: None if isinstance(x, jax.core.Tracer) else int(x),
            depends=lambda x: isinstance(x, Node),
        )
        try:
            return CONTROL_FLOW[name](recorder, equation.params, operands, [out.aval for out in equation.outvars])
        except Refused as refused:
            raise _unsupported(name, source, str(refused)) from refused

    def _call(self, equation: Any, operands: list[Operand], source: str | None) -> Sequence[Operand]:
        """An activation function by its name, of anything else the equations inside."""
        if any(isinstance(operand, Node) for operand in operands):
            name, output = activations.named_call(equation), equation.outvars[0].aval if equation.outvars else None
            if name == "logaddexp" and output is not None:
                operands = [self._in_shape(operand, tuple(output.shape), source or "") for operand in operands]
                return [self._record(name, {}, operands, output, source or "an unknown line", jnp.logaddexp)]
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
        return [self._record(name, {}, operands, output, source or "an unknown line", bind)]

    def _chosen(self, equation: Any, operands: Sequence[Operand], source: str) -> list[Operand] | None:
        """The results of a choice that depends on the input; None for a choice that does not, or that has no rule."""
        outputs, name = [variable.aval for variable in equation.outvars], equation.primitive.name
        if name == "select_n":
            return self._where(operands, outputs[0], source)
        # Where the entries stand depends on the input; recorded, as it may not be needed.
        x, *others = operands
        bind = lambda *values: equation.primitive.bind(*values, **equation.params)  # noqa: E731
        places = [self._record("argsort", {}, operands, output, source, bind) for output in outputs[1:]]
        if name == "top_k":
            axis, count = equation.params.get("axis", len(x.shape) - 1), equation.params["k"]
            last = lambda x: lax.slice_in_dim(lax.sort(x, dimension=axis), x.shape[axis] - count, None, axis=axis)  # noqa: E731
            return [*self._recorded(lambda x: [lax.rev(last(x), (axis,))], [x], source), *places]
        if not others:
            params = {"dimension": equation.params["dimension"]}
            return [self._record("sort", params, [x], outputs[0], source, functools.partial(lax.sort, **params))]
        if not isinstance(x, Node) or equation.params["num_keys"] > 1:
            return None
        return [*self._recorded(lambda x: [lax.sort(x, dimension=equation.params["dimension"])], [x], source), *places]

    def _where(self, operands: Sequence[Operand], output: Any, source: str) -> list[Operand] | None:
        """A choice of two by a comparison that depends on the input (`rules.pieces`)."""
        predicate, *cases = operands
        shape, dtype = tuple(output.shape), jnp.dtype(output.dtype)
        comparison = self._comparison(predicate) if isinstance(predicate, Node) and len(cases) == 2 else None
        if comparison is None or not jnp.issubdtype(dtype, jnp.floating):
            return None
        name, compared = comparison
        compared = [self._in_shape(operand, shape, source) for operand in compared]
        cases = [self._in_shape(operand, shape, source) for operand in cases]
        order = getattr(lax, name)
        bind = lambda left, right, *cases: lax.select_n(order(left, right), *cases)  # noqa: E731
        nodes = [operand for operand in compared if isinstance(operand, Node)]
        pieces = (
            [self._straight(nodes[0], case) for case in cases]
            if len(nodes) == 1 and nodes[0].dtype == dtype
            else [None]
        )
        straight = [piece for piece in pieces if piece is not None]
        if len(straight) < 2:
            self.judged.extend(operand for operand in compared if isinstance(operand, Node))
            return [self._record("where", {"comparison": name}, [*compared, *cases], output, source, bind)]
        # Right of the kink the node is greater.
        flipped = compared[0] is not nodes[0]
        params = {"pieces": tuple(straight if (name in ("gt", "ge")) != flipped else straight[::-1])}

        def chosen(*compared: jax.Array) -> jax.Array:
            return lax.select_n(order(*compared), *(piece(compared[flipped]) for piece in straight))

        self.judged.append(nodes[0])
        return [self._record("piecewise_linear", params, compared, output, source, chosen)]

    def _comparison(self, predicate: Node) -> tuple[str, Sequence[Operand]] | None:
        """What a predicate compares, before it was broadcast."""
        equation = self.equations[predicate.index - 1]
        if equation.name == "broadcast_in_dim" and equation.positions == (0,):
            comparison = self._comparison(equation.bounded[0])
            if comparison is None:
                return None
            name, operands = comparison
            shaped = lambda x: equation.bind(jnp.broadcast_to(x, equation.bounded[0].shape))  # noqa: E731
            return name, [self._recorded(lambda x: [shaped(x)], [x], equation.source)[0] for x in operands]
        return (equation.name, equation.operands) if equation.name in _COMPARISONS else None

    def _in_shape(self, operand: Operand, shape: tuple[int, ...], source: str) -> Operand:
        if operand.shape == shape:
            return operand
        return self._recorded(lambda x: [jnp.broadcast_to(x, shape)], [operand], source)[0]

    def _straight(self, x: Node, y: Operand) -> Callable[[jax.Array], jax.Array] | None:
        """The affine function of x, entry by entry, that y is; None if it is not known to be one."""
        if not isinstance(y, Node):
            return lambda value: jnp.broadcast_to(y, value.shape)
        wanted, path = {y.index}, []
        for equation in reversed(self.equations[x.index : y.index]):
            if equation.output.index not in wanted:
                continue
            if not _is_straight(equation):
                return None
            wanted = wanted - {equation.output.index} | {node.index for node in equation.bounded}
            path.append(equation)
        if wanted != {x.index}:
            return None

        def straight(value: jax.Array) -> jax.Array:
            values = {x.index: value}
            for equation in reversed(path):
                values[equation.output.index] = equation.evaluate(*(values[node.index] for node in equation.bounded))
            return values[y.index]

        return straight

    def _record(
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
        return self._recorded(lambda x: [lax.broadcast_in_dim(x, shape, trailing)], [operand], source)[0]

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


def _is_straight(equation: Equation) -> bool:
    """Whether an equation is affine entry by entry."""
    if equation.name not in _STRAIGHT or (equation.name == "mul" and len(equation.bounded) > 1):
        return False
    return all(node.shape == equation.output.shape for node in equation.bounded)


def _is_partial(equation: Equation) -> bool:
    """Whether its value may be no real number."""
    return equation.name in _PARTIAL and (equation.name != "integer_pow" or equation.params["y"] < 0)


def _needed(equations: Sequence[Equation], output: Operand) -> tuple[Equation, ...]:
    """The equations that `output` depends on, in order."""
    wanted = {output.index} if isinstance(output, Node) else set()
    kept = []
    for equation in reversed(equations):
        if equation.output.index in wanted:
            wanted.update(node.index for node in equation.bounded)
            kept.append(equation)
    return tuple(reversed(kept))


def _source_line(equation: Any) -> str | None:
    """`file:line (function)` of the innermost frame outside of JAX, Flax and the bound machinery."""
    traceback = equation.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        name = os.path.abspath(frame.file_name)
        if not (name.startswith(_LIBRARIES) and os.path.join("cure_jax", "models") not in name):
            return f"{frame.file_name}:{frame.line_num} ({frame.function_name})"
    return None
