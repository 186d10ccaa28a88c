"""Smooth elementwise functions: one record of traits each, from which `curves` derives everything else.

Derivatives are written so that their relative error is small, in tails too: 1 - tanh(x)^2 is all rounding at x = 9.
Inflections and turning points of SiLU, GELU and Mish are roots of their derivatives, found in float64; the functions
are so flat there that what is left of the error lies far below the rounding that intervals and lines allow for.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from cure_jax.graph import Equation
from cure_jax.rules.curves import Curve, rule
from cure_jax.rules.registry import Condition, register

__all__ = ["CURVES", "is_square"]

_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
_GELU_CUBE, _GELU_SCALE = 0.044715, math.sqrt(2 / math.pi)
# Beyond, SiLU and Mish are 0 or x in float64 too, and derivatives of x * 0 stay finite.
_CURVED = 800.0
# Beyond, GELU is 0 or x in float64 too, and cubes stay finite.
_GELU_CURVED = 40.0


def _exp(x: jax.Array) -> jax.Array:
    """exp(x), the largest number where that overflows, with finite derivatives."""
    return jnp.exp(jnp.minimum(x, math.log(float(jnp.finfo(x.dtype).max)) - 1e-3))


def _bell(x: jax.Array) -> jax.Array:
    """1 - tanh(x)^2."""
    decayed = jnp.exp(-2 * jnp.abs(x))
    return 4 * decayed / (1 + decayed) ** 2


def _normal_density(x: jax.Array) -> jax.Array:
    return jnp.exp(-(jnp.clip(x, -_GELU_CURVED, _GELU_CURVED) ** 2) / 2) / math.sqrt(2 * math.pi)


def _constants(equation: Equation) -> list[jax.Array]:
    dtype = equation.output.dtype
    return [jnp.asarray(constant, dtype) for constant in equation.constants]


def _alpha(equation: Equation) -> jax.Array:
    """The parameter of ELU and CELU, `[*output]`."""
    alpha = 1 if len(equation.operands) == 1 else _constants(equation)[0]
    return jnp.broadcast_to(jnp.asarray(alpha, equation.output.dtype), equation.output.shape)


def _elu_slope(equation: Equation, x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, 1, _alpha(equation) * jnp.exp(jnp.minimum(x, 0)))


def _celu_slope(equation: Equation, x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, 1, jnp.exp(jnp.minimum(x, 0) / _alpha(equation)))


def _selu_slope(equation: Equation, x: jax.Array) -> jax.Array:
    del equation
    return _SELU_SCALE * jnp.where(x > 0, 1, _SELU_ALPHA * jnp.exp(jnp.minimum(x, 0)))


def _silu_slope(equation: Equation, x: jax.Array) -> jax.Array:
    del equation
    x = jnp.clip(x, -_CURVED, _CURVED)
    return lax.logistic(x) * (1 + x * lax.logistic(-x))


def _gelu_slope(equation: Equation, x: jax.Array) -> jax.Array:
    del equation
    return lax.erfc(-x * math.sqrt(0.5)) / 2 + jnp.clip(x, -_GELU_CURVED, _GELU_CURVED) * _normal_density(x)


def _gelu_tanh_slope(equation: Equation, x: jax.Array) -> jax.Array:
    del equation
    x = jnp.clip(x, -_GELU_CURVED, _GELU_CURVED)
    inner = _GELU_SCALE * (x + _GELU_CUBE * x**3)
    return lax.logistic(2 * inner) + x / 2 * _bell(inner) * _GELU_SCALE * (1 + 3 * _GELU_CUBE * x**2)


def _mish_slope(equation: Equation, x: jax.Array) -> jax.Array:
    del equation
    x = jnp.clip(x, -_CURVED, _CURVED)
    soft = jax.nn.softplus(x)
    return jnp.tanh(soft) + x * _bell(soft) * lax.logistic(x)


def _hard_silu_slope(equation: Equation, x: jax.Array) -> jax.Array:
    """At the kinks, the slopes of the parabola between them."""
    del equation
    return jnp.where(jnp.abs(x) <= 3, (2 * jnp.clip(x, -3, 3) + 3) / 6, (x > 0).astype(x.dtype))


def _of_x(slope: Callable[[jax.Array], jax.Array]) -> Callable[[Equation, jax.Array], jax.Array]:
    """A derivative without parameters."""
    return lambda equation, x: slope(x)


def _gelu_noise(equation: Equation, x: jax.Array) -> jax.Array:
    """1 + tanh(...) and 1 + erf(...) cancel on the left."""
    del equation
    return 4 * (1 + jnp.minimum(jnp.abs(x), 20))


def _slope_noise(equation: Equation, x: jax.Array) -> jax.Array:
    """Where these functions turn, their derivatives cancel, but only across the few units between inflections."""
    del equation
    return jnp.full_like(x, 4)


def _exp2_noise(equation: Equation, x: jax.Array) -> jax.Array:
    """Computed as exp(x log 2), whose argument is rounded; so are those of the next two."""
    return jnp.abs(x) * equation.evaluate(x)


def _erfc_noise(equation: Equation, x: jax.Array) -> jax.Array:
    # Up to 1, it is computed as 1 - erf(x).
    return jnp.where(x > 1.01, jnp.clip(x, 0, 20) ** 2 * equation.evaluate(x), 2)


def _integer_power_noise(equation: Equation, x: jax.Array) -> jax.Array:
    return abs(equation.params["y"]) * jnp.abs(equation.evaluate(x))


def _exponent(equation: Equation) -> jax.Array:
    return jnp.broadcast_to(_constants(equation)[0], equation.output.shape)


def _power_slope(equation: Equation, x: jax.Array) -> jax.Array:
    """The derivative of x^e; for e < 2 that of a point right of 0, where it is finite, in the place of 0."""
    e, size = _exponent(equation), jnp.abs(x)
    near_zero = (e >= 0) & (e < 2)
    # Its own derivative may overflow long before it does.
    least = _sqrt_least(x)
    kept = jnp.where(near_zero & (size < least), lax.stop_gradient(size), size)
    size = jnp.where(near_zero, jnp.maximum(kept, _power_least(x)), kept)
    return jnp.where(_is_even(e), jnp.sign(x), 1) * e * size ** (e - 1)


def _power_least(x: jax.Array) -> jax.Array:
    return jnp.asarray(16 * jnp.finfo(x.dtype).tiny, x.dtype)


def _power_noise(equation: Equation, x: jax.Array) -> jax.Array:
    """Of the logarithm behind it; and near 0 what its slope there, and small numbers that count as 0, leave out."""
    e, least = _exponent(equation), _power_least(x)
    size = jnp.abs(x)
    rounded = jnp.abs(e) * (1 + jnp.abs(jnp.log(jnp.maximum(size, least)))) * jnp.abs(equation.evaluate(x))
    flat = jnp.where(e > 0, jnp.maximum(e, 1) * least**e / jnp.finfo(x.dtype).eps, 0)
    return rounded + jnp.where(size < least, flat, 0)


def _is_whole(exponent: jax.Array) -> jax.Array:
    return jnp.isfinite(exponent) & (exponent == jnp.round(exponent))


def _is_even(exponent: jax.Array) -> jax.Array:
    return _is_whole(exponent) & (exponent / 2 == jnp.round(exponent / 2))


def _power_inflections(equation: Equation) -> tuple[jax.Array, ...]:
    """Concave between the two: left of 0 for odd exponents, everywhere for those between 0 and 1, else nowhere."""
    e = _exponent(equation)
    odd, flat = _is_whole(e) & ~_is_even(e), (e > 0) & (e < 1)
    first = jnp.where(odd | flat, -math.inf, math.inf)
    return first.astype(e.dtype), jnp.where(odd, 0, math.inf).astype(e.dtype)


def _power_range(equation: Equation) -> tuple[jax.Array, float]:
    """Only odd powers are negative."""
    e = _exponent(equation)
    return jnp.where(_is_whole(e) & ~_is_even(e), -math.inf, 0).astype(e.dtype), math.inf


def _power_defined(equation: Equation, lower: jax.Array, upper: jax.Array) -> jax.Array:
    """Of negative numbers only whole powers; of 0 only those that are not negative."""
    e = _exponent(equation)
    right = jnp.where(e < 0, lower > 0, lower >= 0)
    return jnp.isfinite(e) & (right | (_is_whole(e) & ((e >= 0) | (upper < 0))))


def _integer_power_slope(equation: Equation, x: jax.Array) -> jax.Array:
    exponent = equation.params["y"]
    return exponent * lax.integer_pow(x, exponent - 1)


def _elu_inflections(equation: Equation) -> tuple[jax.Array, ...]:
    """Convex up to alpha = 1; above that, the kink at 0 is concave."""
    return (jnp.where(_alpha(equation) > 1, 0, math.inf),)


def _elu_lipschitz(equation: Equation) -> jax.Array:
    return jnp.maximum(1, jnp.max(_alpha(equation)))


def _positive(equation: Equation, lower: jax.Array, upper: jax.Array) -> jax.Array:
    del equation, upper
    return lower > 0


def _right_of_minus_one(equation: Equation, lower: jax.Array, upper: jax.Array) -> jax.Array:
    del equation, upper
    return lower > -1


def _not_negative(equation: Equation, lower: jax.Array, upper: jax.Array) -> jax.Array:
    del equation, upper
    return lower >= 0


def _without_zero(equation: Equation, lower: jax.Array, upper: jax.Array) -> jax.Array:
    del equation
    return (lower > 0) | (upper < 0)


def _alpha_is_positive(equation: Equation, lower: jax.Array, upper: jax.Array) -> jax.Array:
    del lower, upper
    return _alpha(equation) > 0


def _sqrt_least(x: jax.Array) -> jax.Array:
    """Where the derivative of the root stops growing towards 0, so that its own stays finite."""
    return jnp.finfo(x.dtype).tiny ** jnp.asarray(0.5, x.dtype)


def _sqrt_slope(x: jax.Array) -> jax.Array:
    """Half of 1 / sqrt(x), with a finite derivative at 0."""
    return lax.rsqrt(jnp.maximum(x, _sqrt_least(x))) / 2


def _sqrt_noise(equation: Equation, x: jax.Array) -> jax.Array:
    """How far the root may rise above a line through a point of it that is less steep than its tangent there."""
    del equation
    least = _sqrt_least(x)
    return jnp.where(x < least, jnp.sqrt(least) / 2 / jnp.finfo(x.dtype).eps, 0)


def _right_of_zero(lower: jax.Array, upper: jax.Array) -> jax.Array:
    del upper
    return lower >= 0


def _erf_slope(x: jax.Array) -> jax.Array:
    return 2 * math.sqrt(2) * _normal_density(x * math.sqrt(2))


def _atan_slope(x: jax.Array) -> jax.Array:
    """1 / (1 + x^2), without a square that overflows."""
    inner, outer = jnp.clip(x, -1, 1), 1 / jnp.maximum(jnp.abs(x), 1)
    return jnp.where(jnp.abs(x) <= 1, 1 / (1 + inner**2), outer**2 / (1 + outer**2))


def _one_bounded_first(equation: Equation) -> bool:
    return equation.positions == (0,) and equation.bounded[0].shape == equation.output.shape


def _power(*, even: bool, positive: bool) -> Condition:
    return lambda equation: (equation.params["y"] % 2 == 0) == even and (equation.params["y"] >= 2) == positive


def is_square(equation: Equation) -> bool:
    """Whether a product is that of a node with itself."""
    return len(equation.bounded) == 2 and equation.bounded[0] == equation.bounded[1]


_GELU = Curve(
    _gelu_slope,
    lipschitz=1.129,
    inflections=(-math.sqrt(2), math.sqrt(2)),
    convex_first=False,
    turns=(-0.7517915246935643,),
    noise=_gelu_noise,
)
_POSITIVE = (0.0, math.inf)

CURVES: dict[str, Curve] = {
    "exp": Curve(_of_x(_exp), range=_POSITIVE),
    "exp2": Curve(_of_x(lambda x: math.log(2) * _exp(x * math.log(2))), range=_POSITIVE, noise=_exp2_noise),
    "expm1": Curve(_of_x(_exp), range=(-1.0, math.inf)),
    "log": Curve(_of_x(lambda x: 1 / x), convex_first=False, scale=0.0, defined=_positive),
    "log1p": Curve(_of_x(lambda x: 1 / (1 + x)), convex_first=False, scale=0.0, defined=_right_of_minus_one),
    "sqrt": Curve(
        _of_x(_sqrt_slope),
        convex_first=False,
        range=_POSITIVE,
        noise=_sqrt_noise,
        scale=0.0,
        defined=_not_negative,
    ),
    "rsqrt": Curve(_of_x(lambda x: -lax.rsqrt(x) / x / 2), range=_POSITIVE, scale=0.0, defined=_positive),
    "square": Curve(_of_x(lambda x: 2 * x), turns=(0.0,), range=_POSITIVE),
    "pow": Curve(
        _power_slope,
        inflections=_power_inflections,
        turns=(0.0,),
        range=_power_range,
        noise=_power_noise,
        scale=0.0,
        defined=_power_defined,
    ),
    "logistic": Curve(_of_x(lambda x: _bell(x / 2) / 4), lipschitz=0.25, inflections=(0.0,), range=(0.0, 1.0)),
    "tanh": Curve(_of_x(_bell), lipschitz=1.0, inflections=(0.0,), range=(-1.0, 1.0)),
    "erf": Curve(_of_x(_erf_slope), lipschitz=1.129, inflections=(0.0,), range=(-1.0, 1.0)),
    "erfc": Curve(
        _of_x(lambda x: -_erf_slope(x)),
        lipschitz=1.129,
        inflections=(0.0,),
        convex_first=False,
        range=(0.0, 2.0),
        noise=_erfc_noise,
    ),
    "atan": Curve(_of_x(_atan_slope), lipschitz=1.0, inflections=(0.0,)),
    "soft_sign": Curve(
        _of_x(lambda x: (1 / (1 + jnp.abs(x))) ** 2),
        lipschitz=1.0,
        inflections=(0.0,),
        range=(-1.0, 1.0),
    ),
    "softplus": Curve(_of_x(lax.logistic), lipschitz=1.0, range=_POSITIVE),
    "sparse_plus": Curve(_of_x(lambda x: jnp.clip((x + 1) / 2, 0, 1)), lipschitz=1.0, range=_POSITIVE),
    "elu": Curve(
        _elu_slope,
        lipschitz=_elu_lipschitz,
        inflections=_elu_inflections,
        defined=_alpha_is_positive,
        straight=_right_of_zero,
    ),
    "celu": Curve(_celu_slope, lipschitz=1.0, defined=_alpha_is_positive, straight=_right_of_zero),
    "selu": Curve(_selu_slope, lipschitz=_SELU_SCALE * _SELU_ALPHA, inflections=(0.0,), straight=_right_of_zero),
    "silu": Curve(
        _silu_slope,
        lipschitz=1.1,
        inflections=(-2.3993572805154676, 2.3993572805154676),
        convex_first=False,
        turns=(-1.278464542761074,),
        noise=_slope_noise,
    ),
    "mish": Curve(
        _mish_slope,
        lipschitz=1.0885,
        inflections=(-2.256376396360793, 1.4905711794854286),
        convex_first=False,
        turns=(-1.1924312145154958,),
        noise=_slope_noise,
    ),
    "hard_silu": Curve(
        _hard_silu_slope,
        lipschitz=1.5,
        inflections=(-3.0, 3.0),
        convex_first=False,
        turns=(-1.5,),
        noise=_slope_noise,
        straight=lambda lower, upper: (lower >= 3) | (upper <= -3),
    ),
    "gelu": _GELU,
    "gelu_tanh": _GELU._replace(
        slope=_gelu_tanh_slope,
        inflections=(-1.4185040087908286, 1.4185040087908286),
        turns=(-0.7524614220710165,),
    ),
}

for _name, _curve in CURVES.items():
    register(_name, rule(_curve), when=_one_bounded_first, otherwise="only its first operand may depend on the input")

_POWER = Curve(_integer_power_slope, noise=_integer_power_noise)
_NEGATIVE_POWER = _POWER._replace(scale=0.0, defined=_without_zero, apart=True)
_ODD = {"inflections": (0.0,), "convex_first": False}
register("integer_pow", rule(_POWER._replace(turns=(0.0,), range=_POSITIVE)), when=_power(even=True, positive=True))
register("integer_pow", rule(_POWER._replace(**_ODD)), when=_power(even=False, positive=True))
register("integer_pow", rule(_NEGATIVE_POWER._replace(range=_POSITIVE)), when=_power(even=True, positive=False))
register("integer_pow", rule(_NEGATIVE_POWER._replace(**_ODD)), when=_power(even=False, positive=False))
# The square of a node, written as its product with itself; other products are in `bilinear`.
register("mul", rule(CURVES["square"]), when=is_square)
