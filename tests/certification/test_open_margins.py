"""Methods that optimise bound the margins that are open and no others, each for its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import cure_jax as cj
from cure_jax.certification import METHODS, cascade, dataset
from cure_jax.certification.certificate import proves
from tests import networks


def test_optimised_methods_bound_what_is_open_alone(monkeypatch):
    """Margins of twelve classes: which are given to whom, and that each bound is one of the margin it is taken for."""
    classes, region = 12, {"l2": Partial(lambda x: cj.l2_ball(x, 0.1, within=(0.0, 1.0)))}
    f = networks.random_mlp(1, (2, 8, 8, classes))
    images = np.random.default_rng(1).uniform(size=(24, 2)).astype(np.float32)
    labels = np.array(jnp.argmax(jax.vmap(f)(images), axis=1))
    # One bound of each kind and a cheap one; their own order of the margins, `others` ascending.
    full = {
        method: np.asarray(
            jax.jit(jax.vmap(lambda x, y, method=method: METHODS[method](cj.margins(f, y))(region["l2"](x)).lower))(
                images, labels
            )
        )
        for method in ("ibp", "sdp_crown")
    }
    known, asked, bounded = np.full_like(full["ibp"], -np.inf), [], dataset._bounded

    def spy(f, make_region, x, label, against, *, method, **options):
        found = bounded(f, make_region, x, label, against, method=method, **options)
        against, wide = np.asarray(against), method == "ibp"
        for point, own, rivals, lower in zip(np.asarray(x), np.asarray(label), against, found["lower"], strict=True):
            (row,) = np.flatnonzero((images == point).all(axis=1))
            others = np.delete(np.arange(classes), own)
            columns = np.searchsorted(others, rivals)
            np.testing.assert_array_equal(others[columns], rivals)
            # An optimiser goes its own way in each program.
            np.testing.assert_allclose(lower, full[method][row, columns], rtol=3e-3, atol=1e-3)
            assert len(set(columns)) == len(columns)
            # The least one goes first; if it is proved, nothing that is open is left out.
            if not wide:
                open_ones = {*np.flatnonzero(known[row] <= 0)}
                assert {*columns} == {np.argmin(full["ibp"][row])} or open_ones <= {*columns}
            known[row, columns] = np.fmax(known[row, columns], lower)
        asked.append((method, against.shape[1]))
        return found

    monkeypatch.setattr(dataset, "_bounded", spy)
    result = cj.certify_dataset(f, images, labels, region, method=("ibp", "sdp_crown"), batch_size=4)
    sizes = [size for method, size in asked if method == "sdp_crown"]
    assert {size for method, size in asked if method == "ibp"} == {classes - 1}
    assert {1} < {*sizes} <= {1, 4, 11}
    np.testing.assert_array_equal(result.margin["l2"], known.min(axis=1))
    np.testing.assert_array_equal(result.verified["l2"], (np.maximum(*full.values()) > 0).all(axis=1))
    assert (full["ibp"] > 0).all(axis=1).sum() < result.verified["l2"].sum() < len(images)


def test_a_bound_counts_for_its_own_margin_alone():
    # By method, [examples, margins]. The second one proves what is asked for, and would lower what is not.
    table = {
        "cheap": np.array([[1.0, -1.0, 1.0, 0.0, 2.0], [-1.0, -1.0, -1.0, -1.0, -1.0], [3.0, 1.0, 1.0, -2.0, np.nan]]),
        "tight": np.array(
            [[-9.0, 2.0, -9.0, 3.0, -9.0], [1.0, 1.0, np.nan, 1.0, 1.0], [-9.0, -9.0, -9.0, 4.0, np.inf]]
        ),
    }
    asked = []

    def prove(method, rows, columns):
        asked.append((method, rows.tolist(), columns.tolist()))
        return {"lower": table[method][rows[:, None], columns], "admissible": np.ones(len(rows), bool)}

    hopeful, nothing = np.ones(3, bool), np.full(5, -np.inf)
    run = cascade.Cascade(["cheap", "tight"], hopeful, nothing, prove, 2, by_margin=["tight"])
    while run.stage is not None:
        run.step()
    np.testing.assert_array_equal(run.lower[0], [1.0, 2.0, 1.0, 3.0, 2.0])
    np.testing.assert_array_equal(run.lower[1], [1.0, 1.0, -1.0, 1.0, 1.0])
    # An infinite bound is no proof, and where the least margin is not proved the others are not asked for.
    np.testing.assert_array_equal(run.lower[2], [3.0, 1.0, 1.0, -2.0, np.inf])
    np.testing.assert_array_equal(proves(run.lower), [True, False, False])
    whole = [*range(5)]
    # The least one goes first, and then what is still open.
    assert asked == [
        ("cheap", [0, 1], [whole] * 2),
        ("cheap", [2], [whole]),
        ("tight", [0, 2], [[1], [4]]),
        ("tight", [0], [[3]]),
        ("tight", [1], [[0]]),
        ("tight", [1], [[1, 2, 3, 4]]),
    ]


@pytest.mark.parametrize("stages", [("cheap", "a", "b"), ("cheap", "a", "line", "b", "c"), ("a", "b"), ("cheap", "c")])
@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_nothing_is_lost_by_what_is_left_out(stages, batch_size):
    """What is proved are the examples of which every margin is proved by some method, each told once."""
    rng, shape = np.random.default_rng(len(stages)), (60, 6)
    table = {name: rng.normal(0.3, 1.0, size=shape) for name in stages}
    hopeful, admissible = rng.random(60) < 0.9, rng.random(60) < 0.9
    asked = np.zeros(shape, int)

    def prove(method, rows, columns):
        asked[rows[:, None], columns] += 1
        return {"lower": table[method][rows[:, None], columns], "admissible": admissible[rows]}

    run, told = cascade.Cascade(stages, hopeful, np.full(6, -np.inf), prove, batch_size, by_margin=["a", "b", "c"]), []
    while run.stage is not None:
        told.append(run.step())
        assert sum(told) == np.sum(~run.unfinished)
    assert sum(told) == len(hopeful)
    best = np.max([table[name] for name in stages], axis=0)
    expected = np.where(hopeful, (best > 0).all(axis=1), (table[stages[0]] > 0).all(axis=1)) & admissible
    np.testing.assert_array_equal(proves(run.lower) & run.admissible, expected)
    assert 0 < np.sum(expected & hopeful) < np.sum(hopeful & admissible)
    assert asked.sum() < len(stages) * asked.size
