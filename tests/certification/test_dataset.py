"""Many examples: the same verdicts as one by one, whatever the batch size and the devices."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.tree_util import Partial

import cure_jax as cj
from cure_jax.certification import dataset
from tests.certification.examples import IMAGES, LABELS, REGIONS, F


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


def test_what_is_misclassified_is_not_attacked(monkeypatch):
    # The package has a function of this name.
    module = importlib.import_module("cure_jax.certification.attack_dataset")
    labels, attack, nowhere = [], module._attacked, (LABELS + 1) % 3

    def attacked(f, make_region, key, x, label, *rest, **options):
        labels.extend(np.asarray(label))
        return attack(f, make_region, key, x, label, *rest, **options)

    monkeypatch.setattr(module, "_attacked", attacked)
    region, options = {"l2": REGIONS["l2"]}, {"key": jax.random.key(0), "steps": 1, "restarts": 1, "batch_size": 1}
    found = cj.attack_dataset(F, IMAGES, LABELS, region, **options)
    np.testing.assert_array_equal(labels, LABELS[3:])
    assert not np.any(found.survived["l2"][:3])
    found = cj.attack_dataset(F, IMAGES, nowhere, region, **options)
    assert len(labels) == len(LABELS) - 3
    assert not np.any(found.survived["l2"])
    np.testing.assert_array_equal(found.points["l2"], IMAGES)


def test_what_an_attack_broke_is_only_tried_cheaply(tried):
    # As `Partial`s they are compiled once.
    f, regions = Partial(F), {"l2": Partial(lambda x: cj.l2_ball(x, 0.3, within=(0.0, 1.0)))}
    options = {"method": ("ibp", "crown_ibp", "crown"), "batch_size": 1}
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
    more = cj.certify_dataset(F, IMAGES, LABELS, l2, radii={"l2": RADII}, method=("crown", "lipschitz"), **options)
    assert np.all(more.union >= result.verified["l2"])
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


def test_many_margins_make_batches_of_methods_that_optimise_smaller(monkeypatch):
    sizes, bounded = [], dataset._bounded

    def watched(f, make_region, x, *rest, method, **options):
        sizes.append((method, len(x)))
        return bounded(f, make_region, x, *rest, method=method, **options)

    monkeypatch.setattr(dataset, "_bounded", watched)
    options = {"method": ("ibp", "sdp_crown"), "batch_size": 8}
    expected = cj.certify_dataset(F, IMAGES, LABELS, {"l2": REGIONS["l2"]}, **options)
    assert set(sizes) == {("ibp", 8), ("sdp_crown", 8)}
    sizes.clear()
    monkeypatch.setattr(dataset, "_MARGINS", 0.25)
    found = cj.certify_dataset(F, IMAGES, LABELS, {"l2": REGIONS["l2"]}, **options)
    assert max(size for method, size in sizes if method == "sdp_crown") < 8
    assert all(size == 8 for method, size in sizes if method == "ibp")
    np.testing.assert_array_equal(found.verified["l2"], expected.verified["l2"])
