r"""Gradient projection: natural training inside certified training.

Certified training costs clean accuracy. CURE keeps the part of natural training that does not work against the
certificate: parameter tensor by parameter tensor, the natural update is admitted in proportion to the cosine of its
angle with the certified one, and dropped where the two oppose each other.

`combine` is that formula, for any two updates. `gradient_projection` applies it at every step of an optimiser; a
form that combines whole epochs calls `combine` on the two differences of parameters.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, Scalar


def combine(certified: PyTree, natural: PyTree, beta: float | Scalar) -> PyTree:
    r"""Combine a certified and a natural update, leaf by leaf.

    For every leaf, with :math:`g_c` the certified and :math:`g_n` the natural update,

    .. math::

      g = (1 - \beta) \, g_c + \beta \, \max(\cos(g_n, g_c), 0) \, g_n ,
      \qquad
      \cos(g_n, g_c) = \frac{\langle g_n, g_c \rangle}{\|g_n\|_2 \, \|g_c\|_2} ,

    where the cosine is 0 if either update is 0. Opposing updates thus give :math:`(1 - \beta) g_c`, equal ones
    :math:`g_c`. The map is homogeneous: scaling both updates scales the result, so a learning rate may be applied
    before or after.

    Args:
      certified: The certified update, any pytree of floating-point arrays.
      natural: The natural update, of the same structure, shapes and dtypes.
      beta: The share of the natural update, in [0, 1].

    Returns:
      The combined update, of the structure, shapes and dtypes of `certified`.

    Examples:
      >>> import jax.numpy as jnp
      >>> certified = {"aligned": jnp.array([2.0, 0.0]), "opposed": jnp.array([2.0, 0.0])}
      >>> natural = {"aligned": jnp.array([1.0, 0.0]), "opposed": jnp.array([-1.0, 0.0])}
      >>> update = combine(certified, natural, beta=0.5)
      >>> print(update["aligned"], update["opposed"])
      [1.5 0. ] [1. 0.]

    References:
      Jiang et al., `Towards Generalized Certified Robustness with Multi-Norm Training
      <https://arxiv.org/abs/2410.03000>`_, 2026

      Jiang and Singh, `RAMP: Boosting Adversarial Robustness Against Multiple l_p Perturbations for Universal
      Robustness <https://arxiv.org/abs/2402.06827>`_, 2024
    """

    def combine_leaf(certified_leaf: Array, natural_leaf: Array) -> Array:
        cosine = _cosine(natural_leaf, certified_leaf)
        share = jnp.asarray(beta, cosine.dtype)
        keep = (1 - share).astype(certified_leaf.dtype)
        admit = (share * jnp.maximum(cosine, 0)).astype(natural_leaf.dtype)
        return keep * certified_leaf + admit * natural_leaf

    return jax.tree.map(combine_leaf, certified, natural)


def _cosine(a: Array, b: Array) -> Scalar:
    """Cosine of the angle between two tensors, 0 if either is 0, in float32 or better."""
    unit_a, unit_b = _unit(a), _unit(b)
    # A sum of products instead of a dot product: accelerators round the operands of a float32 dot product.
    return jnp.clip(jnp.sum(unit_a * unit_b), -1, 1)


def _unit(a: Array) -> Array:
    """Scale `a` to 2-norm 1 and leave zeros zero; squares neither under- nor overflow."""
    a = a.astype(a.dtype if jnp.finfo(a.dtype).bits >= 32 else jnp.float32)
    largest = jnp.max(jnp.abs(a), initial=0)
    a = a / jnp.where(largest == 0, 1, largest)
    norm = jnp.sqrt(jnp.sum(jnp.square(a)))
    return a / jnp.where(norm == 0, 1, norm)


class GradientProjectionState(NamedTuple):
    """State of `gradient_projection`: one state of the inner transformation for each kind of gradient."""

    step: jax.Array  # shape=(), dtype=jnp.int32
    certified: optax.OptState  # as inner.init(params)
    natural: optax.OptState  # as inner.init(params); stays so before start_step


def gradient_projection(
    inner: optax.GradientTransformation, beta: float, start_step: int
) -> optax.GradientTransformationExtraArgs:
    r"""Combine certified and natural gradients after each went through its own copy of an optimiser.

    With :math:`u_c = \mathrm{inner}_c(g_c)` and :math:`u_n = \mathrm{inner}_n(g_n)` the updates that two
    independent copies of `inner` make of the certified gradient :math:`g_c` and the natural gradient :math:`g_n`,

    .. math::

      u =
      \begin{cases}
        u_c & \text{before step } t_0, \\
        (1 - \beta) \, u_c + \beta \, \max(\cos(u_n, u_c), 0) \, u_n & \text{from step } t_0 \text{ on,}
      \end{cases}

    leaf by leaf, see `combine`. Before `start_step` the natural gradient is ignored, whatever it holds (zeros will
    do, NaNs do no harm), and its copy of `inner` stays as it was initialised.

    Projecting the raw gradients instead of the updates goes wrong with adaptive optimisers. Before
    :func:`optax.adam`, which normalises the scale of its input, the factor :math:`1 - \beta` cancels. After it,
    updates point downhill and a raw natural gradient uphill, so that agreement looks like opposition.

    `inner` should hold no learning-rate schedule: chain it after, since every copy counts its own steps. (`combine`
    is homogeneous, so the result is the same.) In data-parallel training, average both gradients over the devices
    before the update.

    Args:
      inner: The optimiser without its learning rate, such as `optax.scale_by_adam()`. Extra arguments of the update
        function are passed on to both copies, if it takes any.
      beta: The share of the natural update, in [0, 1].
      start_step: The first step, counted from 0, at which the natural update takes part.

    Returns:
      A transformation whose `update` takes the certified gradients as updates and the natural ones as the keyword
      argument `natural`: `update(certified_grads, state, params, natural=natural_grads)`.

    Raises:
      ValueError: If `beta` is outside [0, 1] or `start_step` negative.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> optimizer = optax.chain(
      ...     gradient_projection(optax.scale_by_adam(), beta=0.8, start_step=0),
      ...     optax.scale_by_learning_rate(0.1),
      ... )
      >>> params = {"kernel": jnp.ones(3)}
      >>> state = optimizer.init(params)
      >>> certified = {"kernel": jnp.array([1.0, 1.0, 1.0])}
      >>> natural = {"kernel": jnp.array([-1.0, -1.0, -1.0])}
      >>> updates, state = optimizer.update(certified, state, params, natural=natural)
      >>> print(updates["kernel"].round(3))  # a step of Adam against the certified gradient, times 1 - beta
      [-0.02 -0.02 -0.02]

    References:
      Jiang et al., `Towards Generalized Certified Robustness with Multi-Norm Training
      <https://arxiv.org/abs/2410.03000>`_, 2026

      Jiang and Singh, `RAMP: Boosting Adversarial Robustness Against Multiple l_p Perturbations for Universal
      Robustness <https://arxiv.org/abs/2402.06827>`_, 2024
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"gradient_projection got beta={beta}; a share in [0, 1] was expected. Pass, say, beta=0.8.")
    if start_step < 0:
        raise ValueError(
            f"gradient_projection got start_step={start_step}; a step counted from 0 was expected. "
            "Pass start_step=0 to project from the first step on."
        )
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> GradientProjectionState:
        return GradientProjectionState(
            step=jnp.zeros([], jnp.int32), certified=inner.init(params), natural=inner.init(params)
        )

    def update_fn(
        updates: optax.Updates,
        state: GradientProjectionState,
        params: optax.Params | None = None,
        *,
        natural: optax.Updates | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GradientProjectionState]:
        if natural is None:
            raise TypeError(
                "gradient_projection got no natural gradients; update(certified_grads, state, params, "
                "natural=natural_grads) was expected. Pass zeros like the certified ones before start_step."
            )
        certified, certified_state = inner.update(updates, state.certified, params, **extra_args)

        def project(natural_state: optax.OptState) -> tuple[optax.Updates, optax.OptState]:
            natural_updates, natural_state = inner.update(natural, natural_state, params, **extra_args)
            return combine(certified, natural_updates, beta), natural_state

        def ignore(natural_state: optax.OptState) -> tuple[optax.Updates, optax.OptState]:
            return certified, natural_state

        combined, natural_state = jax.lax.cond(state.step >= start_step, project, ignore, state.natural)
        return combined, GradientProjectionState(
            step=jnp.asarray(optax.safe_increment(state.step)), certified=certified_state, natural=natural_state
        )

    # optax knows states only as trees of arrays, this one has a name.
    return optax.GradientTransformationExtraArgs(init_fn, update_fn)  # pyright: ignore[reportArgumentType]
