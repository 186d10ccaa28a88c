"""Assertions for tests of your own bounds, rules and regions, and generators of what to test them on.

A bound is refuted by one point that leaves it, so `assert_bounds_sound` looks for one as an attacker does: at random,
on the boundary, in the corners, and by gradient ascent of every output. `assert_rule_sound` does it for the rules of
single primitives, where bugs show best, and `assert_region_valid` for the promises of a region. They raise
`AssertionError` with what was exceeded, where and by how much.

`boxes`, `regions` and `networks` are strategies of hypothesis; `variants` and `with_vmap` run a test of chex under
every transformation. Both packages are optional: `pip install 'cure-jax[testing]'`.
"""

from cure_jax.testing.bound_assertions import assert_bounds_sound
from cure_jax.testing.generators import boxes, networks, regions, variants, with_vmap
from cure_jax.testing.region_assertions import assert_region_valid
from cure_jax.testing.rule_assertions import assert_rule_sound

__all__ = [
    "assert_bounds_sound",
    "assert_region_valid",
    "assert_rule_sound",
    "boxes",
    "networks",
    "regions",
    "variants",
    "with_vmap",
]
