r"""Gradient projection: natural training inside certified training.

Certified training costs clean accuracy. CURE keeps the part of natural training that does not work against the
certificate: parameter tensor by parameter tensor, the natural update is admitted in proportion to the cosine of its
angle with the certified one, and dropped where the two oppose each other.

`combine` is that formula, for any two updates. `gradient_projection` applies it at every step of an optimiser,
`epoch_projection` to how far two copies of the network go in an epoch.
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


class EpochProjectionState(NamedTuple):
    """State of `epoch_projection`: two optimisers, and the two ends and the start of the paths they take."""

    step: jax.Array  # shape=(), dtype=jnp.int32
    certified: optax.OptState
    natural: optax.OptState  # stays as inner.init(params) before the first period that is projected
    start: optax.Params  # at the beginning of this period
    natural_params: optax.Params  # where the natural path has come to


def epoch_projection(
    inner: optax.GradientTransformation,
    beta: float,
    start_step: int,
    period: int,
    learning_rate: optax.Schedule,
) -> optax.GradientTransformationExtraArgs:
    r"""Combine whole epochs of certified and of natural training, as published.

    Two copies of the parameters leave the same point :math:`\theta_0`. One is trained with certified gradients, the
    other with natural ones, each by its own copy of an optimiser; at the end of the period both are replaced by

    .. math::

      \theta_0 + (1 - \beta) \, \Delta_c + \beta \, \max(\cos(\Delta_n, \Delta_c), 0) \, \Delta_n ,

    leaf by leaf, with :math:`\Delta` how far each has gone, see `combine`. In between the parameters are those of the
    certified path. Natural gradients belong to the other one: take them at `natural_params` of the state.

    Args:
      inner: The optimiser without its learning rate, such as `optax.scale_by_adam()`.
      beta: The share of the natural update, in [0, 1].
      start_step: Periods that begin at this step, counted from 0, or later are projected.
      period: Steps from one combination to the next, usually those of an epoch; at its multiples both paths meet.
      learning_rate: Step -> learning rate, for both paths; it is applied here.

    Returns:
      A transformation with `update(certified_grads, state, params, natural=natural_grads)`. Before the first projected
      period the natural gradients are ignored, whatever they hold.

    Raises:
      ValueError: If `beta` is outside [0, 1], `start_step` negative or `period` less than 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> optimizer = epoch_projection(optax.identity(), 0.5, start_step=0, period=2, learning_rate=lambda step: 1.0)
      >>> params = jnp.array([0.0, 0.0])
      >>> state = optimizer.init(params)
      >>> for _ in range(2):
      ...     updates, state = optimizer.update(jnp.array([-1.0, 0.0]), state, params, natural=jnp.array([-2.0, 0.0]))
      ...     params = params + updates
      ...     print(params)
      [1. 0.]
      [3. 0.]

    References:
      Jiang et al., `Towards Generalized Certified Robustness with Multi-Norm Training
      <https://arxiv.org/abs/2410.03000>`_, 2026, Section 4.3
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"epoch_projection got beta={beta}; a share in [0, 1] was expected. Pass, say, beta=0.8.")
    if start_step < 0 or period < 1:
        raise ValueError(
            f"epoch_projection got start_step={start_step} and period={period}; a step counted from 0 and a positive "
            "number of steps were expected. Pass the steps of an epoch as period."
        )
    inner = optax.with_extra_args_support(inner)
    first = -(-start_step // period) * period

    def init_fn(params: optax.Params) -> EpochProjectionState:
        return EpochProjectionState(
            step=jnp.zeros([], jnp.int32),
            certified=inner.init(params),
            natural=inner.init(params),
            start=params,
            natural_params=params,
        )

    def update_fn(
        updates: optax.Updates,
        state: EpochProjectionState,
        params: optax.Params | None = None,
        *,
        natural: optax.Updates | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, EpochProjectionState]:
        if natural is None or params is None:
            raise TypeError(
                "epoch_projection got no natural gradients or no parameters; update(certified_grads, state, params, "
                "natural=natural_grads) was expected. Pass zeros like the certified ones before start_step."
            )
        projects = state.step >= first
        ends = (state.step + 1) % period == 0

        def moved(gradients: optax.Updates, inner_state: Any, point: optax.Params) -> tuple[Any, Any]:
            change, inner_state = inner.update(gradients, inner_state, point, **extra_args)
            rate = jnp.asarray(learning_rate(state.step))
            return optax.apply_updates(point, jax.tree.map(lambda u: (-rate * u).astype(u.dtype), change)), inner_state

        certified_params, certified_state = moved(updates, state.certified, params)
        natural_params, natural_state = jax.lax.cond(
            projects,
            lambda: moved(natural, state.natural, state.natural_params),
            lambda: (certified_params, state.natural),
        )

        def meet() -> optax.Params:
            gone = [jax.tree.map(jnp.subtract, end, state.start) for end in (certified_params, natural_params)]
            return jax.tree.map(jnp.add, state.start, combine(gone[0], gone[1], beta))

        target = jax.lax.cond(ends & projects, meet, lambda: certified_params)
        change = jax.tree.map(jnp.subtract, target, params)
        # As the caller computes them, to the last bit.
        reached = optax.apply_updates(params, change)
        new_start, new_natural = jax.tree.map(
            lambda new, old: jnp.where(ends, new, old), (reached, reached), (state.start, natural_params)
        )
        step = jnp.asarray(optax.safe_increment(state.step))
        return change, EpochProjectionState(step, certified_state, natural_state, new_start, new_natural)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)  # pyright: ignore[reportArgumentType]
