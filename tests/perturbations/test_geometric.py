import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax import perturbations
from cure_jax.perturbations import PUBLISHED, Perturbation
from cure_jax.regions import Box
from launch.checks import containment

RNG = np.random.default_rng(0)
IMAGE = np.float32(RNG.random((6, 7, 1)))
IMAGE[:2] = 0
CASES = containment.cases()


@pytest.mark.parametrize("name", CASES)
def test_the_transformation_is_the_reference(name):
    perturbation = CASES[name].perturbation
    whole = perturbation.parameters()
    thetas = np.stack([whole.sample(key) for key in jax.random.split(jax.random.key(1), 20)])
    expected = containment.reference(perturbation, IMAGE, np.float64(thetas))
    found = jax.vmap(lambda theta: perturbation.apply(jnp.asarray(IMAGE), theta))(thetas)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("name", ["rotation", "translation", "blur", "Sc R C B", "B R blur Sh"])
def test_pixels_never_leave_their_bounds(name):
    found = containment.examine(CASES[name], IMAGE[None], 600, 10, np.random.default_rng(3))
    # 1e-13 is what float64 rounds: no room for the float32 of the bounds.
    assert found.interval <= 1e-13
    assert found.lines <= 1e-13
    assert max(found.interval_width) < 3
    assert min(found.lines_width) < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_million_parameters_never_leave_their_bounds(name):
    found = containment.examine(CASES[name], IMAGE[None], 1_000_000, 2000, np.random.default_rng(4))
    assert found.samples >= 1_000_000
    assert max(found.interval, found.lines) <= 1e-13


def test_bounds_hold_where_a_pixel_lands_on_another_one():
    """A quarter turn and whole shifts: floors must be rounded outward, and both sides of a kink be seen."""
    x = jnp.asarray(np.float32(RNG.random((4, 4, 1))))
    for perturbation, low, high in (
        (perturbations.rotation(-180, 180), [90.0], [90.0]),
        (perturbations.rotation(-180, 180), [89.9], [90.1]),
        (perturbations.translation((-2, 2), (-2, 2)), [1.0, -1.0], [1.0, -1.0]),
        (perturbations.translation((-2, 2), (-2, 2)), [0.9, -1.1], [1.1, -0.9]),
        (perturbations.scaling(0.5, 2), [1.0], [1.0]),
    ):
        low, high = np.float32(low), np.float32(high)
        thetas = np.linspace(low, high, 101, dtype=np.float64)
        images = containment.reference(perturbation, np.asarray(x), thetas)
        bounds = containment.bounds_of(perturbation, x, low[None], high[None])
        lower, upper, slopes, lower_line, upper_line = (np.float64(part[0]) for part in bounds)
        line = np.tensordot(thetas, slopes, axes=1)
        assert np.all((images >= line + lower_line - 1e-13) & (images <= line + upper_line + 1e-13))
        assert np.all((images >= lower - 1e-13) & (images <= upper + 1e-13))


def test_a_cell_that_moves_pixels_far_gets_the_range_of_the_image():
    x = jnp.asarray(IMAGE)
    perturbation = perturbations.rotation(-180, 180)
    region = Box(jnp.array([-180.0]), jnp.array([180.0]))
    found = jax.jit(lambda region: cj.crown(lambda theta: perturbation.apply(x, theta))(region))(region)
    assert bool(jnp.all(jnp.isfinite(found.lower) & jnp.isfinite(found.upper)))
    images = containment.reference(perturbation, IMAGE, np.linspace([-180.0], [180.0], 200))
    assert np.all(images >= np.float64(found.lower) - 1e-5)
    assert np.all(images <= np.float64(found.upper) + 1e-5)


def test_a_scaling_by_nothing_is_bounded_by_the_image():
    found = cj.ibp(lambda theta: perturbations.scaling(0.5, 1).apply(jnp.asarray(IMAGE), theta))(
        Box(jnp.array([-0.5]), jnp.array([0.5]))
    )
    assert bool(jnp.all((found.lower <= 0) & (found.upper >= 0)))
    assert not bool(jnp.any(jnp.isnan(found.lower) | jnp.isnan(found.upper)))


def test_crown_knows_that_pixels_move_together():
    """A difference of pixels that IBP bounds as if each had a parameter of its own."""
    x = jnp.asarray(IMAGE)
    perturbation = perturbations.brightness(-0.1, 0.1)

    def contrast(theta):
        image = perturbation.apply(x, theta)
        return image[3, 3, 0] - image[3, 4, 0]

    region = cj.box(jnp.array([0.0]), jnp.array([0.01]))
    widths = [float(bound(contrast)(region).upper - bound(contrast)(region).lower) for bound in (cj.ibp, cj.crown)]
    assert widths[0] > 0.019
    assert widths[1] < 1e-4


def test_windows_of_a_convolution_and_dense_coefficients_agree():
    """A stride makes CROWN keep coefficients of the layers inside on windows of the image."""
    x = jnp.asarray(IMAGE)
    kernel = jnp.asarray(np.float32(RNG.normal(size=(3, 3, 1, 2))))
    perturbation = perturbations.rotation(-10, 10)

    def convolved(theta):
        image = perturbation.apply(x, theta)[None]
        numbers = ("NHWC", "HWIO", "NHWC")
        hidden = jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        return jax.nn.relu(hidden)

    def dense(theta):
        """Unrolled, so that no window is left."""
        image = jnp.pad(perturbation.apply(x, theta), ((1, 1), (1, 1), (0, 0)))
        shifted = jnp.stack([image[i : i + 6, j : j + 7, 0] for i in range(3) for j in range(3)])
        return jax.nn.relu(jnp.einsum("khw,kc->hwc", shifted, kernel.reshape(9, 2)))[None]

    region = cj.box(jnp.array([2.0]), jnp.array([2.5]))
    found, expected = cj.crown(convolved)(region), cj.crown(dense)(region)
    np.testing.assert_allclose(found.lower, expected.lower, atol=1e-5)
    np.testing.assert_allclose(found.upper, expected.upper, atol=1e-5)


def test_cells_cover_all_parameters_with_common_ends():
    perturbation = perturbations.compose(perturbations.scaling(0.95, 1.05), perturbations.rotation(-5, 5))
    assert isinstance(perturbation, Perturbation)
    shape = (28, 28, 1)
    cells = perturbation.cells(shape)
    assert cells.dtype == np.float32
    assert float(cells[:, 0].min()) <= 0.95
    assert float(cells[:, 2].max()) >= 1.05
    for side in range(2):
        lows, highs = set(cells[:, side].tolist()), set(cells[:, 2 + side].tolist())
        assert len(lows) == len(highs) == len(lows & highs) + 1
    assert len(cells) == np.prod([len(set(cells[:, side].tolist())) for side in range(2)])


def test_parts_of_a_cell_share_their_end_until_it_is_too_small():
    perturbation = perturbations.compose(perturbations.rotation(-5, 5), perturbations.brightness(0, 0.01))
    shape = (28, 28, 1)
    cell = perturbation.cells(shape)[0]
    seen = set()
    for _ in range(100):
        parts = perturbation.split(cell, shape)
        if not len(parts):
            break
        (side,) = np.flatnonzero(parts[0, :2] != parts[1, :2])
        assert parts[0, 2 + side] == parts[1, side]
        assert np.all(np.minimum(parts[0, :2], parts[1, :2]) == cell[:2])
        assert np.all(np.maximum(parts[0, 2:], parts[1, 2:]) == cell[2:])
        seen.add(int(side))
        cell = parts[0]
    assert seen == {0, 1}
    assert not len(perturbation.split(cell, shape))


def test_interval_of_images_is_perturbed_as_a_whole():
    """The image may depend on the input too."""
    x, radius = jnp.asarray(IMAGE), 0.05
    perturbation = perturbations.rotation(-10, 10)

    def rotated(point):
        return perturbation.apply(point[1:].reshape(IMAGE.shape), 10 * point[:1])

    center = jnp.concatenate([jnp.array([0.5]), x.ravel()])
    region = cj.linf_ball(center, radius)
    for bound in (cj.ibp, cj.crown):
        found = bound(rotated)(region)
        for key in jax.random.split(jax.random.key(2), 5):
            image = rotated(region.sample(key))
            assert bool(jnp.all((image >= found.lower - 1e-6) & (image <= found.upper + 1e-6)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: perturbations.rotation(10, -10), "empty"),
        (lambda: perturbations.rotation(-10, float("nan")), "empty"),
        (lambda: perturbations.rotation(-400, 400), "degrees"),
        (lambda: perturbations.scaling(95, 105), "factor"),
        (lambda: perturbations.brightness(-25, 25), r"\[0, 1\]"),
        (lambda: perturbations.blur(-1, 1), "standard deviation"),
        (lambda: perturbations.compose(), "at least one"),
        (lambda: perturbations.by_name("twirl", (0.0, 1.0)), "expected one of rotation"),
        (lambda: perturbations.rotation(-1, 1).cells((28, 28)), "channels"),
        (lambda: perturbations.rotation(-1, 1).apply(jnp.zeros((3, 3, 1)), jnp.zeros(2)), "rotation"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_published_ranges_are_perturbations_of_their_data():
    for published in PUBLISHED.values():
        shape = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3), "tinyimagenet": (64, 64, 3)}[published.dataset]
        assert len(published.perturbation.cells(shape)) < published.cells


def test_names_make_what_their_functions_make():
    assert perturbations.by_name("rotation", (-10.0, 10.0)) == perturbations.rotation(-10, 10)
    assert perturbations.by_name("translation", (-2, 2)) == perturbations.translation((-2, 2), (-2, 2))
