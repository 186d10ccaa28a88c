"""Many examples: the same verdicts as one by one, whatever the batch size and the devices."""

import contextlib
import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.tree_util import Partial

import cure_jax as cj
from cure_jax.certification import METHODS, cascade, dataset
from cure_jax.certification.certificate import proves
from cure_jax.training.config import make_regions, norm_exponent
from tests import networks

REGIONS = {
    "linf": lambda x: cj.linf_ball(x, 0.05, within=(0.0, 1.0)),
    "l2": lambda x: cj.l2_ball(x, 0.08, within=(0.0, 1.0)),
}
F = networks.random_mlp(3)
IMAGES = np.random.default_rng(0).uniform(size=(21, 2)).astype(np.float32)
LABELS = np.array(jnp.argmax(jax.vmap(F)(IMAGES), axis=1))
LABELS[:3] = (LABELS[:3] + 1) % 3


@pytest.mark.parametrize(
    "method", ["crown", pytest.param("best", marks=pytest.mark.slow), ("ibp", "lipschitz")], ids=str
)
def test_verdicts_are_those_of_single_examples(method):
    result = cj.certify_dataset(F, IMAGES, LABELS, REGIONS, method=method, batch_size=8)
    for norm, make_region in REGIONS.items():
        one = jax.jit(lambda x, y, make_region=make_region: cj.certify(F, x, y, make_region(x), method).verified)
        single = [one(x, y) for x, y in zip(IMAGES, LABELS, strict=True)]
        np.testing.assert_array_equal(result.verified[norm], single)
    assert not result.correct[:3].any()
    assert result.correct[3:].all()
    np.testing.assert_array_equal(result.union, result.verified["linf"] & result.verified["l2"])
    assert 0 < result.union.sum() < len(IMAGES)


@pytest.fixture
def tried(monkeypatch):
    """The methods of all batches, in their order."""
    tried, bounded = [], dataset._bounded

    def spy(*args, method, **options):
        tried.append(method)
        return bounded(*args, method=method, **options)

    monkeypatch.setattr(dataset, "_bounded", spy)
    return tried


def test_several_methods_are_tried_in_their_order(tried):
    regions = {"l2": REGIONS["l2"]}
    first = cj.certify_dataset(F, IMAGES, LABELS, regions, method="crown_ibp", batch_size=1)
    tried.clear()
    both = cj.certify_dataset(F, IMAGES, LABELS, regions, method=("crown_ibp", "ibp"), batch_size=1)
    left = first.correct & ~first.verified["l2"]
    assert tried == ["crown_ibp"] * len(IMAGES) + ["ibp"] * left.sum()
    assert 0 < left.sum() < first.correct.sum()
    assert both.method == "crown_ibp,ibp"
    assert np.all(both.margin["l2"] >= first.margin["l2"])


def test_optimised_methods_bound_what_is_open_alone(monkeypatch):
    """Margins of twelve classes: which are given to whom, and that each bound is one of the margin it is taken for."""
    classes, region = 12, {"l2": Partial(lambda x: cj.l2_ball(x, 0.12, within=(0.0, 1.0)))}
    f = networks.random_mlp(4, (2, 8, 8, classes))
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
    known, asked, bounded = full["ibp"].copy(), [], dataset._bounded

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
            # Nothing that is open is left out.
            assert wide or {*np.flatnonzero(full["ibp"][row] <= 0)} <= {*columns}
            known[row, columns] = np.fmax(known[row, columns], lower)
        asked.append((method, against.shape[1]))
        return found

    monkeypatch.setattr(dataset, "_bounded", spy)
    result = cj.certify_dataset(f, images, labels, region, method=("ibp", "sdp_crown"), batch_size=4)
    sizes = [size for method, size in asked if method == "sdp_crown"]
    assert {size for method, size in asked if method == "ibp"} == {classes - 1}
    assert sizes == sorted(sizes)
    assert {*sizes} <= {1, 4, 11}
    assert len({*sizes} - {classes - 1}) == 2
    np.testing.assert_allclose(result.margin["l2"], known.min(axis=1), rtol=1e-6)
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
    # An infinite bound is no proof.
    np.testing.assert_array_equal(run.lower[2], [3.0, 1.0, 1.0, 4.0, np.inf])
    np.testing.assert_array_equal(proves(run.lower), [True, False, False])
    whole = [*range(5)]
    # Two of one example and of the next one are open, and four are bounded; of the last one all.
    assert asked == [
        ("cheap", [0, 1], [whole] * 2),
        ("cheap", [2], [whole]),
        ("tight", [0, 2], [[0, 1, 2, 3], [1, 2, 3, 4]]),
        ("tight", [1], [whole]),
    ]


def test_time_that_is_enough_changes_nothing():
    slow = cj.certify_dataset(F, IMAGES, LABELS, REGIONS, method=("ibp", "crown"), batch_size=4)
    assert slow.unfinished == {}
    fast = cj.certify_dataset(F, IMAGES, LABELS, REGIONS, method=("ibp", "crown"), batch_size=4, timeout=3600)
    for norm in REGIONS:
        np.testing.assert_array_equal(fast.margin[norm], slow.margin[norm])
        np.testing.assert_array_equal(fast.verified[norm], slow.verified[norm])
        assert not fast.unfinished[norm].any()


def test_what_there_is_no_time_for_is_given_up(tried, monkeypatch, caplog):
    options = {"method": ("ibp", "crown"), "batch_size": 7}
    whole = cj.certify_dataset(F, IMAGES, LABELS, REGIONS, **options)
    now, bounded = [0.0], dataset._bounded

    def slow(*args, method, **options):
        now[0] += {"ibp": 1.0, "crown": 10.0}[method]
        return bounded(*args, method=method, **options)

    monkeypatch.setattr(dataset, "_bounded", slow)
    monkeypatch.setattr(cascade.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(cascade, "compile_seconds", lambda: contextlib.nullcontext(lambda: 0.0))
    tried.clear()
    done = cj.certify_dataset(F, IMAGES, LABELS, REGIONS, **options, timeout=16)
    # Three batches of the cheap method in each norm; then ten seconds are left for one of the other one.
    assert tried == ["ibp"] * 6 + ["crown"]
    assert sum(int(where.sum()) for where in done.unfinished.values()) > 0
    for norm in REGIONS:
        finished = ~done.unfinished[norm]
        assert np.all(done.verified[norm] <= whole.verified[norm])
        assert not np.any(done.verified[norm] & ~finished)
        np.testing.assert_allclose(done.margin[norm][finished], whole.margin[norm][finished], atol=1e-6)
    assert re.search(r"The time is over \(16 s\): not every method was tried on \d+ examples in", caplog.text)
    # The clock is looked at between batches: one batch of one norm is tried, however little time there is.
    tried.clear()
    nothing = cj.certify_dataset(F, IMAGES, LABELS, REGIONS, **options, timeout=0.5)
    assert tried == ["ibp"]
    assert nothing.unfinished["l2"].all()
    assert np.all(nothing.margin["l2"] == -np.inf)


def test_the_norm_that_proves_most_in_a_second_is_next(monkeypatch):
    proved, order, clock = {"linf": 1, "l2": 3}, [], itertools.count()

    def prove(norm, stage, rows, columns):
        order.append(norm)
        lower = np.where(np.arange(len(rows))[:, None] < proved[norm], 1.0, -1.0)
        return {"lower": lower, "admissible": np.ones(len(rows), bool)}

    def fresh(norm):
        return cascade.Cascade(["a"], np.ones(12, bool), np.full(1, -np.inf), functools.partial(prove, norm), 4)

    monkeypatch.setattr(cascade.time, "monotonic", lambda: float(next(clock)))
    decided = []
    cascade.run({norm: fresh(norm) for norm in proved}, lambda doing, count: decided.append((count, doing)), 1e6)
    assert order == ["linf", "l2", "l2", "l2", "linf", "linf"]
    assert decided[:4] == [(0, "compiling linf a"), (4, "linf a"), (0, "compiling l2 a"), (4, "l2 a")]
    assert [count for count, _ in decided[4:]] == [4] * 4


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_no_time_is_refused(timeout):
    with pytest.raises(ValueError, match=r"timeout is .*; expected seconds above 0"):
        cj.certify_dataset(F, IMAGES, LABELS, REGIONS, timeout=timeout)


def test_batches_and_devices_make_no_difference():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    expected = cj.certify_dataset(F, IMAGES, LABELS, REGIONS, batch_size=32)
    for options in ({"batch_size": 1}, {"batch_size": 16, "mesh": mesh}):
        result = cj.certify_dataset(F, IMAGES, LABELS, REGIONS, **options)
        for norm in REGIONS:
            np.testing.assert_array_equal(result.verified[norm], expected.verified[norm])
            np.testing.assert_allclose(result.margin[norm], expected.margin[norm], atol=1e-5)


def test_attacks_draw_the_same_numbers_however_they_are_divided():
    mesh, key = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), jax.random.key(0)
    whole = cj.attack_dataset(F, IMAGES, LABELS, REGIONS, key=key, steps=2, restarts=1)
    divided = cj.attack_dataset(F, IMAGES, LABELS, REGIONS, key=key, steps=2, restarts=1, batch_size=16, mesh=mesh)
    for norm in REGIONS:
        np.testing.assert_array_equal(divided.survived[norm], whole.survived[norm])
    assert 0 < whole.union.sum() < len(IMAGES)


def test_an_attack_gives_its_points():
    wide = {"linf": lambda x: cj.linf_ball(x, 0.3, within=(0.0, 1.0)), "l2": lambda x: cj.l2_ball(x, 0.05)}
    found = cj.attack_dataset(F, IMAGES, LABELS, wide, key=jax.random.key(0), steps=10, restarts=2, batch_size=8)
    assert 0 < found.union.sum() < len(IMAGES) - 3
    clean = jax.vmap(F)(IMAGES)
    for norm, make_region in wide.items():
        points = found.points[norm]
        inside = [
            make_region(x).contains(point, 1e-6)
            for x, point in zip(jnp.asarray(IMAGES), jnp.asarray(points), strict=True)
        ]
        assert np.all(inside)
        logits = np.asarray(jax.vmap(F)(points))
        np.testing.assert_array_equal(logits.argmax(1) == LABELS, found.survived[norm])
        # What survived was looked at, too: the attack came closer to the border than the example is.
        closer = [
            cj.margins(lambda x: x, label)(after).min() < cj.margins(lambda x: x, label)(before).min()
            for label, after, before in zip(LABELS, jnp.asarray(logits), clean, strict=True)
        ]
        assert np.all(np.asarray(closer)[found.survived[norm]])
    # An example that is misclassified is its own counterexample.
    np.testing.assert_array_equal(found.points["l2"][:3], IMAGES[:3])


def test_what_an_attack_broke_is_only_tried_cheaply(tried):
    # As `Partial`s they are compiled once.
    f, regions = Partial(F), {"l2": Partial(lambda x: cj.l2_ball(x, 0.3, within=(0.0, 1.0)))}
    options = {"method": "best", "batch_size": 1}
    without = cj.certify_dataset(f, IMAGES, LABELS, regions, **options)
    all_tried = list(tried)
    tried.clear()
    attack = cj.attack_dataset(f, IMAGES, LABELS, regions, key=jax.random.key(0))
    with_attack = cj.certify_dataset(f, IMAGES, LABELS, regions, attack=attack, **options)
    np.testing.assert_array_equal(with_attack.verified["l2"], without.verified["l2"])
    broken = without.correct.sum() - attack.survived["l2"].sum()
    assert broken > 0
    for stage in set(all_tried):
        assert all_tried.count(stage) - tried.count(stage) == (0 if stage == "ibp" else broken)


def test_what_an_attack_broke_is_never_verified(caplog):
    attack = cj.attack_dataset(F, IMAGES, LABELS, REGIONS, key=jax.random.key(0), steps=2, restarts=1)
    verified = cj.certify_dataset(F, IMAGES, LABELS, REGIONS).verified["linf"]
    contradicted = int(np.flatnonzero(verified)[0])
    attack.survived["linf"][contradicted] = False
    result = cj.certify_dataset(F, IMAGES, LABELS, REGIONS, attack=attack)
    assert result.verified["linf"].sum() == verified.sum() - 1
    assert not result.verified["linf"][contradicted]
    assert f"verify in linf what the attack broke: examples {contradicted}." in caplog.text
    assert "l2" not in caplog.text


@pytest.mark.parametrize("survived", [{"linf": np.ones(21, bool)}, {"linf": np.ones(21, bool), "l2": np.ones(1, bool)}])
def test_an_attack_of_other_examples_or_norms_is_refused(survived):
    with pytest.raises(ValueError, match=r"expected \(21,\) for each of l2"):
        cj.certify_dataset(F, IMAGES, LABELS, REGIONS, attack=cj.certification.DatasetAttack(survived))


RADII = np.linspace(0.0, 0.2, len(IMAGES), dtype=np.float32)
WITH_RADII = {"linf": REGIONS["linf"], "l2": lambda x, eps: cj.l2_ball(x, eps, within=(0.0, 1.0))}


def test_examples_may_have_radii_of_their_own():
    options = {"batch_size": 8}
    result = cj.certify_dataset(F, IMAGES, LABELS, WITH_RADII, radii={"l2": RADII}, **options)
    l2 = {"l2": WITH_RADII["l2"]}
    best = cj.certify_dataset(F, IMAGES, LABELS, l2, radii={"l2": RADII}, method="best", **options)
    assert np.all(best.union >= result.verified["l2"])
    one = jax.jit(lambda x, y, eps: cj.certify(F, x, y, WITH_RADII["l2"](x, eps)).verified)
    single = [one(x, y, eps) for x, y, eps in zip(IMAGES, LABELS, RADII, strict=True)]
    np.testing.assert_array_equal(result.verified["l2"], single)
    assert 0 < np.sum(single) < 18
    plain = cj.certify_dataset(F, IMAGES, LABELS, {"linf": REGIONS["linf"]}, **options)
    np.testing.assert_array_equal(result.verified["linf"], plain.verified["linf"])


def test_radii_per_pixel_and_devices():
    per_pixel = np.stack([RADII, np.zeros_like(RADII)], axis=1)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    arguments = (F, IMAGES, LABELS, {"l2": WITH_RADII["l2"]})
    whole, pixel, divided = (
        cj.certify_dataset(*arguments, radii={"l2": radii}, batch_size=16, **options)
        for radii, options in ((RADII, {}), (per_pixel, {}), (per_pixel, {"mesh": mesh}))
    )
    # The second pixel stands still.
    assert np.all(pixel.margin["l2"][3:] >= whole.margin["l2"][3:] - 1e-5)
    assert pixel.margin["l2"].sum() > whole.margin["l2"].sum() + 0.1
    np.testing.assert_array_equal(divided.verified["l2"], pixel.verified["l2"])
    key = jax.random.key(0)
    survived = cj.attack_dataset(*arguments, radii={"l2": per_pixel}, key=key, steps=5).survived["l2"]
    assert np.all(survived >= pixel.verified["l2"])
    assert survived.sum() < 18


@pytest.mark.parametrize(
    ("radii", "message"),
    [
        ({"l1": RADII}, "radii names l1; regions has linf, l2"),
        ({"l2": RADII[1:]}, r"shape \(20,\); expected \(21,\).* or \(21, 2\)"),
        ({"l2": -RADII}, "finite and at least 0"),
        ({"l2": RADII + np.inf}, "finite and at least 0"),
    ],
)
def test_bad_radii_are_refused(radii, message):
    with pytest.raises(ValueError, match=message):
        cj.certify_dataset(F, IMAGES, LABELS, WITH_RADII, radii=radii)
    with pytest.raises(ValueError, match=message):
        cj.attack_dataset(F, IMAGES, LABELS, WITH_RADII, radii=radii, key=jax.random.key(0))


def test_a_batch_that_does_not_divide_over_the_mesh_is_refused():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    for function, options in ((cj.certify_dataset, {}), (cj.attack_dataset, {"key": jax.random.key(0)})):
        with pytest.raises(ValueError, match=r"batch_size 12 does not divide over the 8 devices.*multiple of 8"):
            function(F, IMAGES, LABELS, REGIONS, batch_size=12, mesh=mesh, **options)


def test_no_attack_breaks_a_certificate():
    proved = cj.certify_dataset(F, IMAGES, LABELS, REGIONS)
    attacked = cj.attack_dataset(F, IMAGES, LABELS, REGIONS, key=jax.random.key(0), steps=20, restarts=2)
    for norm in REGIONS:
        assert np.all(attacked.survived[norm] >= proved.verified[norm])
    assert not attacked.survived["linf"][:3].any()
    assert np.all(attacked.union >= proved.union)


def test_a_certificate_of_a_network_compiles_once_for_all_batches():
    traces = []

    def counted(x):
        traces.append(1)
        return F(x)

    cj.certify_dataset(counted, IMAGES, LABELS, {"linf": REGIONS["linf"]}, batch_size=4)
    few = len(traces)
    traces.clear()
    cj.certify_dataset(counted, np.tile(IMAGES, (4, 1)), np.tile(LABELS, 4), {"linf": REGIONS["linf"]}, batch_size=4)
    assert len(traces) <= few


@pytest.mark.parametrize(
    ("method", "norm"), [("crown", "linf"), ("sdp_crown", "l2"), pytest.param("best", "linf", marks=pytest.mark.slow)]
)
def test_partials_are_compiled_once_for_all_their_arrays(method, norm):
    traces = []

    def counted(params, x):
        traces.append(1)
        return networks.mlp(params, x)

    def ball(eps, x):
        return cj.lp_ball(x, eps, norm_exponent(norm))

    def certify(seed, eps):
        f, make_region = Partial(counted, networks.mlp_params(seed)), Partial(ball, jnp.float32(eps))
        regions = {norm: make_region}
        return cj.certify_dataset(f, IMAGES, LABELS, regions, method=method, batch_size=32).margin[norm]

    first = certify(3, 0.05)
    traces.clear()
    second, larger = certify(4, 0.05), certify(3, 0.1)
    assert len(traces) <= 2  # of the number of classes, which compiles nothing
    # What `best` has decided it does not look at again with a tighter method.
    assert method == "best" or np.all(larger < first)
    assert np.any(second != first)


def test_functions_that_hold_equal_arrays_are_compiled_once_and_others_are_not_mistaken_for_them():
    traces = []

    @dataclasses.dataclass(frozen=True)
    class Shifted:
        by: np.ndarray

        def __call__(self, params, x):
            traces.append(1)
            return networks.mlp(params, x - self.by)

    params, by = networks.mlp_params(3), np.full(IMAGES.shape[1:], 0.1, np.float32)

    regions = make_regions({"linf": 0.05})

    def certify(by):
        traces.clear()
        f = Partial(Shifted(by), params)
        return cj.certify_dataset(f, IMAGES, LABELS, regions, batch_size=32).margin["linf"]

    first = certify(by)
    np.testing.assert_array_equal(certify(by.copy()), first)
    assert len(traces) <= 1  # of the number of classes, which compiles nothing
    by[:] = 0.2
    changed = certify(by)
    expected = cj.certify_dataset(lambda x: networks.mlp(params, x - by), IMAGES, LABELS, regions, batch_size=32)
    np.testing.assert_allclose(changed, expected.margin["linf"], rtol=1e-5, atol=1e-6)
    assert np.any(changed != first)


def test_what_a_plain_callable_holds_may_change_between_calls():
    class Held:
        flipped, eps = False, 0.01

    def f(x):
        return F(x)[::-1] if Held.flipped else F(x)

    regions = {"linf": lambda x: cj.linf_ball(x, Held.eps, within=(0.0, 1.0))}
    before = cj.certify_dataset(f, IMAGES, LABELS, regions)
    Held.eps = 0.1
    larger = cj.certify_dataset(f, IMAGES, LABELS, regions)
    assert np.all(larger.margin["linf"] < before.margin["linf"])
    Held.flipped, Held.eps = True, 0.01
    flipped = cj.certify_dataset(f, IMAGES, 2 - LABELS, regions)
    np.testing.assert_allclose(flipped.margin["linf"], before.margin["linf"], atol=1e-6)
    np.testing.assert_array_equal(flipped.correct, before.correct)


def test_bad_examples_are_refused():
    with pytest.raises(ValueError, match="images"):
        cj.certify_dataset(F, IMAGES * 3, LABELS, REGIONS)
    with pytest.raises(ValueError, match="labels"):
        cj.certify_dataset(F, IMAGES, LABELS + 7, REGIONS)
    with pytest.raises(ValueError, match="21 images and 20 labels"):
        cj.certify_dataset(F, IMAGES, LABELS[:-1], REGIONS)
    with pytest.raises(ValueError, match="no regions"):
        cj.certify_dataset(F, IMAGES, LABELS, {})
    with pytest.raises(ValueError, match="batch_size is 0"):
        cj.certify_dataset(F, IMAGES, LABELS, REGIONS, batch_size=0)
    with pytest.raises(ValueError, match="Unknown method"):
        cj.certify_dataset(F, IMAGES, LABELS, REGIONS, method="exact")


def test_radii_in_units_of_0_to_255_are_told(caplog):
    cj.certify_dataset(
        F, IMAGES[:2], LABELS[:2], {"linf": lambda x: cj.linf_ball(x, 0.999, within=(0.0, 1.0))}, method="ibp"
    )
    assert not caplog.text
    cj.certify_dataset(
        F, IMAGES[:2], LABELS[:2], {"linf": lambda x: cj.linf_ball(x, 8, within=(0.0, 1.0))}, method="ibp"
    )
    assert "The radius of linf is 8, but no two images" in caplog.text
    assert "divide radii of pixels in 0 to 255 by 255" in caplog.text


def test_what_a_network_says_of_one_example_is_explained():
    def of_batches(images):
        return images @ jnp.ones((7, 3))

    for call in (
        lambda: cj.certify_dataset(of_batches, IMAGES, LABELS, REGIONS),
        lambda: cj.certify(of_batches, IMAGES[0], 0, REGIONS["linf"](IMAGES[0])),
    ):
        with pytest.raises(TypeError) as raised:
            call()
        assert f"one example, of shape {IMAGES.shape[1:]}; expected a function of one" in "".join(
            raised.value.__notes__
        )
