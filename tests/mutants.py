"""Planted bugs: each makes a wrong certificate possible, and the suite must notice every one of them.

A mutant replaces one function of the library by one with the bug, for as long as its context lasts. Compiled functions
are forgotten on the way in and out, so that none of them holds the other version.
"""

import contextlib
import dataclasses
import math
import sys
import types
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import pytest

import cure_jax as cj
from cure_jax import numerics, rules
from cure_jax.bounds.folding import coefficients, constants, linear, vertices
from cure_jax.bounds.norms import spectral
from cure_jax.certification import cascade, certificate
from cure_jax.graph import recording
from cure_jax.perturbations import Geometric
from cure_jax.regions import Interval, L0Ball, LpBall, ball
from cure_jax.rules import elementwise, local, pooling, registry
from cure_jax.verification import leaf, split_bound

Plant = Callable[[pytest.MonkeyPatch], None]


@contextlib.contextmanager
def planted(plant: Plant) -> Iterator[None]:
    """The library with one bug in it."""
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        yield
    jax.clear_caches()


def _replace_rules(patch: pytest.MonkeyPatch, primitive: str, rule: registry.Rule) -> None:
    patch.setattr(registry, "_TABLE", registry._TABLE | {primitive: [(lambda equation: True, rule)]})


def relu_intercept_too_small(patch: pytest.MonkeyPatch) -> None:
    right = elementwise.relu_slopes

    def wrong(lower, upper, alpha):
        lower_slope, upper_slope, intercept = right(lower, upper, alpha)
        return lower_slope, upper_slope, 0.7 * intercept

    patch.setattr(elementwise, "relu_slopes", wrong)


def unstable_neurons_treated_as_stable(patch: pytest.MonkeyPatch) -> None:
    def wrong(lower, upper, alpha):
        del alpha
        slope = (upper > -lower).astype(lower.dtype)
        return slope, slope, jnp.zeros_like(lower)

    patch.setattr(elementwise, "relu_slopes", wrong)


def l2_ball_with_the_dual_exponent_of_l1(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ball, "numerics", types.SimpleNamespace(**(vars(numerics) | {"dual": lambda p: math.inf})))


def first_layer_with_the_wrong_dual_exponent(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(numerics, "dual", lambda p: math.inf)


def linf_ball_with_the_2_norm(patch: pytest.MonkeyPatch) -> None:
    right = LpBall.support

    def wrong(self, coefficients):
        if self.p < math.inf:
            return right(self, coefficients)
        box = self.bounding_box()
        return jnp.sum(coefficients * box.center) + numerics.norm(coefficients * box.radius, 2)

    patch.setattr(LpBall, "support", wrong)


def pixel_box_caps_on_the_wrong_side(patch: pytest.MonkeyPatch) -> None:
    right = LpBall.room
    patch.setattr(LpBall, "room", lambda self: right(self)[::-1])


def few_pixels_and_one_less(patch: pytest.MonkeyPatch) -> None:
    right = L0Ball.support
    patch.setattr(L0Ball, "support", lambda self, a: right(dataclasses.replace(self, k=self.k - 1), a))


def half_of_each_cell_forgotten(patch: pytest.MonkeyPatch) -> None:
    right = Geometric.split
    patch.setattr(Geometric, "split", lambda self, cell, shape: right(self, cell, shape)[:1])


def signs_of_coefficients_swapped(patch: pytest.MonkeyPatch) -> None:
    right = linear.pull_relaxed
    swapped = lambda relaxation: registry.Relaxation(relaxation.upper, relaxation.lower)  # noqa: E731
    patch.setattr(
        linear, "pull_relaxed", lambda equation, relaxation, *rest: right(equation, swapped(relaxation), *rest)
    )


def offsets_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(constants, "_moved", lambda line, bases: line)


def offsets_of_outputs_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(constants.Bases, "inner", lambda self, coefficients, node: jnp.zeros((), node.dtype))


def windows_that_reach_into_the_padding(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(coefficients.Window, "masked", lambda self, shape: self)


def windows_one_pixel_off(patch: pytest.MonkeyPatch) -> None:
    right = local._through_window
    patch.setattr(local, "_through_window", lambda axis, stride, extent, low: right(axis, stride, extent, low + 1))


def slopes_that_leave_the_unit_interval(patch: pytest.MonkeyPatch) -> None:
    module = sys.modules["cure_jax.bounds.alpha_crown"]
    patch.setattr(module, "jnp", types.SimpleNamespace(**(vars(jnp) | {"clip": lambda x, low, high: x})))


def pixels_that_move_by_half_of_their_radius(patch: pytest.MonkeyPatch) -> None:
    rows = sys.modules["cure_jax.bounds.vertex_crown"]._Rows
    right = rows.above

    def wrong(self, found):
        above = right(self, found)
        return above._replace(ways=above.ways / 2)

    patch.setattr(rows, "above", wrong)


def layers_that_move_in_one_direction(patch: pytest.MonkeyPatch) -> None:
    """Of dense layers."""
    module = sys.modules["cure_jax.bounds.vertex_crown"]
    right = module.Changes
    patch.setattr(module, "Changes", lambda ways, axes: right(ways.at[:, 1].set(0), axes))


def neurons_bounded_from_the_wrong_side(patch: pytest.MonkeyPatch) -> None:
    """Concave lower bounds of neurons in place of their convex upper ones; the first layer is both."""
    rows = sys.modules["cure_jax.bounds.vertex_crown"]._Rows
    right = rows.of_neurons

    def wrong(self, above, selected):
        found, other = right(self, above, selected), right(self, ~above, selected)
        return jnp.concatenate([found[..., :2], -other[..., 2:]], axis=-1)

    patch.setattr(rows, "of_neurons", wrong)


def neurons_with_the_bounds_of_their_neighbours(patch: pytest.MonkeyPatch) -> None:
    rows = sys.modules["cure_jax.bounds.vertex_crown"]._Rows
    right = rows.of_neurons

    def wrong(self, above, selected):
        found = right(self, above, selected)
        return jnp.roll(found.reshape(-1, self.values), 1, axis=0).reshape(found.shape)

    patch.setattr(rows, "of_neurons", wrong)


def margins_that_are_left_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cascade, "size_for", lambda margins, others: 1)


def windows_that_stand_still_at_the_first_entry(patch: pytest.MonkeyPatch) -> None:
    right = vertices._window_of

    def wrong(window, value, axes):
        return right(window, value, tuple(axis if axis.stride else axis._replace(start=0) for axis in axes))

    patch.setattr(vertices, "_window_of", wrong)


def multipliers_of_a_smaller_ball(patch: pytest.MonkeyPatch) -> None:
    module = sys.modules["cure_jax.bounds.sdp_crown"]
    right = module.layer_bound

    def wrong(layer, coefficients, slopes, multiplier):
        smaller = layer.ball._replace(radius=0.9 * layer.ball.radius)
        return right(layer._replace(ball=smaller), coefficients, slopes, multiplier)

    patch.setattr(module, "layer_bound", wrong)


def norms_that_are_estimates(patch: pytest.MonkeyPatch) -> None:
    """From below, as those of a power iteration are."""
    right = spectral._explicit_norm
    patch.setattr(spectral, "_explicit_norm", lambda *block: 0.98 * right(*block))


def ends_of_a_neuron_confused(patch: pytest.MonkeyPatch) -> None:
    right = linear.bound_sides

    def wrong(*args) -> Interval:
        ends = right(*args)
        return Interval(jnp.where(jnp.isfinite(ends.lower), ends.lower, ends.upper), jnp.full_like(ends.upper, jnp.inf))

    patch.setattr(linear, "bound_sides", wrong)


def last_layer_with_upper_for_lower(patch: pytest.MonkeyPatch) -> None:
    right = linear.concretize

    def wrong(bound, graph, region, intervals):
        swapped = {index: Interval(box.upper, box.lower) for index, box in intervals.items()}
        return right(bound, graph, region, swapped)

    patch.setattr(linear, "concretize", wrong)


def margins_off_by_one(patch: pytest.MonkeyPatch) -> None:
    def wrong(f, label, against=None):
        del against

        def differences(x):
            logits = f(x)
            others = jnp.arange(logits.size - 1)
            others = others + (others > label).astype(others.dtype)
            return logits[jnp.asarray(label)] - logits[others]

        return differences

    patch.setattr(cj, "margins", wrong)
    patch.setattr(certificate, "margins", wrong)


def functions_known_by_identity(patch: pytest.MonkeyPatch) -> None:
    """As JAX keeps what it has traced."""
    make = jax.make_jaxpr
    unwrapped = lambda f: f.__closure__[0].cell_contents if f.__code__.co_freevars == ("f",) else f  # noqa: E731
    wrong = types.SimpleNamespace(**(vars(jax) | {"make_jaxpr": lambda f: make(unwrapped(f))}))
    patch.setattr(recording, "jax", wrong)


def labels_in_eight_bits(patch: pytest.MonkeyPatch) -> None:
    """Classes that 8 bits do not tell apart are one."""

    def wrong(classes, number, dtype):
        every = jnp.arange(number, dtype=jnp.int32).astype(jnp.int8)
        same = jax.vmap(lambda one: one == every)(classes.astype(jnp.int8).ravel())
        return same.reshape(*classes.shape, number).astype(dtype)

    fewer_bits = types.SimpleNamespace(**(vars(jax) | {"nn": types.SimpleNamespace(one_hot=wrong)}))
    patch.setattr(sys.modules["cure_jax.certification.margins"], "jax", fewer_bits)


def repeated_coordinates_as_a_ball(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recording, "_BROADCASTING", ())


def weights_with_their_signs(patch: pytest.MonkeyPatch) -> None:
    wrong = lambda equation, q, radius: jnp.abs(equation.evaluate(radius))  # noqa: E731
    _replace_rules(patch, "dot_general", registry.Affine(wrong))


def max_pool_below_its_largest_upper_bound(patch: pytest.MonkeyPatch) -> None:
    def wrong(equation, intervals, alpha):
        relaxation = pooling._relax(equation, intervals, alpha)
        return registry.Relaxation(relaxation.lower, relaxation.lower)

    _replace_rules(patch, "reduce_max", pooling._MAXIMUM._replace(relax=wrong))


def examples_outside_of_their_region(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LpBall, "contains", lambda self, x, tolerance=0.0: jnp.asarray(True))


def splits_that_keep_the_other_side(patch: pytest.MonkeyPatch) -> None:
    right = split_bound.Network.cut
    patch.setattr(split_bound.Network, "cut", lambda self, index, sides: right(self, index, -sides))


def multipliers_that_cost_nothing(patch: pytest.MonkeyPatch) -> None:
    """A layer's constant without what its slopes take from it."""

    def wrong(layer, coefficients, slopes, multiplier):
        del slopes
        return sdp_crown_module.layer_bound(layer, coefficients, 0.5 * coefficients, multiplier)

    sdp_crown_module = sys.modules["cure_jax.bounds.sdp_crown"]
    patch.setattr(split_bound, "layer_bound", wrong)


def pieces_from_their_kink(patch: pytest.MonkeyPatch) -> None:
    """Where the kink is far away, nothing is left of the operand."""
    patch.setattr(rules, "piece", lambda kink, slope, x: kink + slope * (x - kink))


def leaves_without_their_region(patch: pytest.MonkeyPatch) -> None:
    """The dual of a leaf at the middle of the region, not at its worst input."""

    def wrong(affine, weights, evaluate):
        _, point = evaluate(weights @ affine.coefficients)
        return float(weights @ affine.constants), point

    patch.setattr(leaf, "_bound", wrong)
