"""The suite has teeth: checks of its own that fail for every planted bug, and pass without."""

import functools
import math
from collections.abc import Callable

import jax
import pytest

from tests import mutants
from tests.bounds import (
    test_coefficients,
    test_extremes,
    test_sdp_crown,
    test_soundness,
    test_spectral,
    test_vertex_crown,
)
from tests.certification import test_certificate, test_open_margins
from tests.regions import test_l0_ball, test_support
from tests.rules import test_rules
from tests.verification import test_leaf, test_split_bound

LINES = test_rules.test_intervals_and_lines_hold_every_value
SUPPORT = test_support.test_no_point_of_the_region_exceeds_the_support
WINDOWS = test_coefficients.test_windows_are_dense_coefficients
GRID = test_soundness.test_bounds_hold_on_a_grid
DOMAINS = functools.partial(test_split_bound.test_any_multipliers_are_sound_on_any_sides, "mlp", "linf")
VERTICES = functools.partial(test_vertex_crown.test_concave_functions_are_bounded_exactly, (0.0, 1.0), jax.nn.relu)

# The planted bug, and the check of the suite that is meant to notice it.
CAUGHT: dict[mutants.Plant, Callable[[], None]] = {
    mutants.relu_intercept_too_small: functools.partial(LINES, "relu"),
    mutants.unstable_neurons_treated_as_stable: functools.partial(LINES, "relu"),
    mutants.max_pool_below_its_largest_upper_bound: functools.partial(LINES, "reduce_max"),
    mutants.weights_with_their_signs: functools.partial(test_rules.test_magnitudes_are_row_norms, "dot right", 1.0),
    mutants.l2_ball_with_the_dual_exponent_of_l1: functools.partial(SUPPORT, 2.0, None),
    mutants.linf_ball_with_the_2_norm: functools.partial(SUPPORT, math.inf, (0.0, 1.0)),
    mutants.pixel_box_caps_on_the_wrong_side: functools.partial(SUPPORT, 2.0, (0.0, 1.0)),
    mutants.few_pixels_and_one_less: functools.partial(
        test_l0_ball.test_support_is_attained_at_the_best_corner, (2, 3), "pixel", 1
    ),
    mutants.first_layer_with_the_wrong_dual_exponent: functools.partial(GRID, "ibp", 2.0, "mlp"),
    mutants.last_layer_with_upper_for_lower: functools.partial(GRID, "ibp", 2.0, "mlp"),
    mutants.signs_of_coefficients_swapped: functools.partial(GRID, "crown_ibp", math.inf, "mlp"),
    mutants.ends_of_a_neuron_confused: functools.partial(GRID, "crown", math.inf, "mlp"),
    mutants.offsets_forgotten: functools.partial(GRID, "crown", math.inf, "mlp"),
    mutants.offsets_of_outputs_forgotten: functools.partial(
        test_soundness.test_linear_maps_are_exact, "crown", math.inf
    ),
    mutants.windows_that_reach_into_the_padding: functools.partial(WINDOWS, "two"),
    mutants.windows_one_pixel_off: functools.partial(WINDOWS, "two"),
    mutants.slopes_that_leave_the_unit_interval: functools.partial(GRID, "alpha_crown", math.inf, "mlp"),
    mutants.repeated_coordinates_as_a_ball: functools.partial(
        test_soundness.test_a_ball_with_repeated_coordinates_is_no_ball, "scalar", 2.0
    ),
    mutants.multipliers_of_a_smaller_ball: functools.partial(
        test_sdp_crown.test_every_slope_and_every_multiplier_is_sound, (0.0, 1.0)
    ),
    mutants.pixels_that_move_by_half_of_their_radius: VERTICES,
    mutants.layers_that_move_in_one_direction: VERTICES,
    mutants.neurons_bounded_from_the_wrong_side: functools.partial(
        test_vertex_crown.test_deep_networks_of_all_activations, 2, False
    ),
    mutants.neurons_with_the_bounds_of_their_neighbours: functools.partial(
        test_vertex_crown.test_deep_networks_of_all_activations, 2, False
    ),
    mutants.windows_that_stand_still_at_the_first_entry: functools.partial(
        test_vertex_crown.test_windows_are_dense_coefficients, "one channel", False
    ),
    mutants.norms_that_are_estimates: functools.partial(test_spectral.test_blocks_are_bounded_from_above, "tall"),
    mutants.splits_that_keep_the_other_side: DOMAINS,
    mutants.multipliers_that_cost_nothing: DOMAINS,
    mutants.pieces_from_their_kink: functools.partial(
        test_extremes.test_a_kink_that_is_far_away_changes_nothing, "sdp_crown", 2.0
    ),
    mutants.leaves_without_their_region: functools.partial(
        test_leaf.test_a_leaf_with_a_counterexample_gives_it, "linf"
    ),
    mutants.margins_that_are_left_out: test_open_margins.test_a_bound_counts_for_its_own_margin_alone,
    mutants.margins_off_by_one: test_certificate.test_margins_are_in_ascending_order_of_the_other_classes,
    mutants.examples_outside_of_their_region: (
        test_certificate.test_an_example_outside_of_its_region_is_never_verified
    ),
}


@pytest.mark.parametrize("plant", CAUGHT, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_caught(plant):
    CAUGHT[plant]()
    with mutants.planted(plant), pytest.raises(AssertionError):
        CAUGHT[plant]()
