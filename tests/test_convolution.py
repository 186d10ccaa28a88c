import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend import core as jex
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cure_jax import convolution as module
from cure_jax import numerics
from tests.arrays import close, lowered, normal

LAYOUT = ("NHWC", "HWIO", "NHWC")
# size of the images, of the kernel, strides, padding
WINDOWS = [
    ((7, 7), (1, 1), (1, 1), "SAME"),
    ((7, 6), (1, 1), (2, 2), "VALID"),
    ((8, 8), (1, 1), (3, 3), ((1, 2), (0, 3))),
    ((7, 5), (2, 2), (1, 1), "SAME"),
    ((6, 9), (2, 3), (2, 1), "VALID"),
    ((8, 8), (3, 3), (1, 1), ((1, 1), (1, 1))),
    ((8, 7), (3, 3), (2, 2), ((1, 1), (1, 1))),
    ((9, 8), (3, 2), (2, 3), "SAME_LOWER"),
    ((10, 9), (3, 3), (3, 3), ((0, 2), (1, 0))),
    ((8, 8), (4, 4), (2, 2), ((1, 1), (1, 1))),
    ((9, 7), (4, 5), (1, 2), ((3, 0), (4, 1))),
    ((8, 8), (5, 5), (2, 2), "SAME"),
    ((11, 9), (5, 4), (3, 1), "VALID"),
    ((9, 9), (3, 3), (2, 2), ((-1, 2), (1, -2))),
    # Cotangents much larger than the kernel.
    ((16, 15), (2, 2), (2, 2), "SAME"),
    ((21, 24), (3, 2), (2, 3), "VALID"),
    ((25, 23), (3, 3), (2, 2), ((-2, 1), (2, -1))),
]
DILATED = {
    "kernel": {"rhs_dilation": (2, 3)},
    "kernel and strides": {"rhs_dilation": (2, 1), "padding": ((2, 1), (0, 1)), "window_strides": (1, 2)},
    "image": {"lhs_dilation": (2, 3), "padding": ((1, 2), (0, 1))},
    "all": {"lhs_dilation": (3, 2), "rhs_dilation": (2, 2), "padding": ((1, 2), (2, 1)), "window_strides": (2, 3)},
}
LEFT_TO_JAX = {
    "1-d": ((2, 9, 3), (3, 3, 4), {"dimension_numbers": ("NWC", "WIO", "NWC"), "window_strides": (2,)}),
    "3-d": ((2, 4, 3, 4, 2), (2, 2, 2, 2, 3), {"dimension_numbers": ("NHWDC", "HWDIO", "NHWDC")}),
    "NCHW": ((2, 3, 8, 7), (4, 3, 3, 3), {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}),
    "no layout": ((2, 3, 8, 7), (4, 3, 3, 3), {"dimension_numbers": None}),
    "feature groups": ((2, 8, 7, 4), (3, 3, 2, 6), {"feature_group_count": 2}),
    "batch groups": ((4, 8, 7, 3), (3, 3, 3, 6), {"batch_group_count": 2}),
}


def pair(**options: Any) -> list[Callable[..., jax.Array]]:
    """Returns the convolution under test and JAX's, with the same options."""
    options = {"window_strides": (2, 1), "padding": "SAME", "dimension_numbers": LAYOUT} | options
    return [functools.partial(f, **options) for f in (module.convolution, lax.conv_general_dilated)]


def first_order(convolution: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Returns a function of lhs and rhs that computes value and gradients."""

    def compute(lhs, rhs):
        value, pull = jax.vjp(convolution, lhs, rhs)
        return value, pull(jnp.sin(value))

    return compute


def second_order(convolution: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Returns a function of lhs and rhs that computes tangents, and the gradient of a function of the gradients.

    All of it is sums of products: float32 holds the result for small integers, in whatever order it is added up.
    """

    def steepness(lhs, rhs):
        value, pull = jax.vjp(convolution, lhs, rhs)
        return sum(jnp.sum(gradient) for gradient in pull(value * value))

    def compute(lhs, rhs):
        tangents = lhs * lhs - 1, rhs * rhs - rhs
        return jax.jvp(convolution, (lhs, rhs), tangents), jax.grad(steepness, (0, 1))(lhs, rhs)

    return compute


def equations(jaxpr: Any) -> Iterator[Any]:
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    yield from jaxpr.eqns
    for inner in jex.subjaxprs(jaxpr):
        yield from equations(inner)


def primitives(f: Callable[..., Any], *args: Any) -> set[str]:
    return {equation.primitive.name for equation in equations(jax.make_jaxpr(f)(*args))}


def shapes(f: Callable[..., Any], *args: Any) -> set[tuple[int, ...]]:
    return {v.aval.shape for equation in equations(jax.make_jaxpr(f)(*args)) for v in equation.outvars}


@pytest.mark.parametrize(
    ("size", "kernel", "strides", "padding", "dtype"),
    [(*window, np.float32) for window in WINDOWS] + [(*window, np.float64) for window in WINDOWS[1::4]],
)
def test_convolution_has_the_gradients_of_jax(size, kernel, strides, padding, dtype):
    with jax.enable_x64(dtype == np.float64):
        operands = normal(2, *size, 3, dtype=dtype), normal(*kernel, 3, 4, dtype=dtype)
        ours, theirs = (jax.jit(first_order(f)) for f in pair(window_strides=strides, padding=padding))
        close(ours(*operands), theirs(*operands), 1e-5 if dtype == np.float32 else 1e-13)
        assert "conv_general_dilated" not in primitives(ours, *operands)


@pytest.mark.parametrize("cached", [1, 3000, 30_000])
@pytest.mark.parametrize(("size", "kernel", "strides", "padding"), WINDOWS[-3:])
def test_kernel_gradients_are_summed_in_parts_that_fit_into_a_cache(
    size, kernel, strides, padding, cached, monkeypatch
):
    monkeypatch.setattr(module, "_CACHED", cached)
    ours, reference = pair(window_strides=strides, padding=padding)
    images, weights = normal(6, *size, 2), normal(*kernel, 2, 5)

    def gradient(convolution, images):
        return jax.grad(lambda weights: jnp.sum(jnp.sin(convolution(images, weights))))(weights)

    close(jax.jit(gradient, static_argnums=0)(ours, images), gradient(reference, images))
    hlo = jax.jit(gradient, static_argnums=0).lower(ours, images).as_text()
    assert ("stablehlo.while" in hlo) == (cached < 30_000)


@pytest.mark.parametrize("options", DILATED.values(), ids=DILATED)
def test_dilation_has_the_gradients_of_jax(options):
    operands = normal(2, 8, 7, 3), normal(3, 2, 3, 4)
    ours, theirs = (jax.jit(first_order(f)) for f in pair(**options))
    close(ours(*operands), theirs(*operands))
    assert "conv_general_dilated" not in primitives(ours, *operands)


@pytest.mark.parametrize("size", [(8, 7), (22, 20)])
@pytest.mark.parametrize("options", [{}, {"window_strides": (2, 3), "padding": "VALID"}, DILATED["all"]])
def test_second_derivatives_are_those_of_jax(options, size):
    operands = jnp.sign(normal(2, *size, 3)), jnp.round(normal(3, 2, 3, 4))
    ours, theirs = (jax.jit(second_order(f)) for f in pair(**options))
    close(ours(*operands), theirs(*operands), 0.0)
    # No partial sum is larger than this.
    assert max(leaf.max() for leaf in jax.tree.leaves(ours(*map(jnp.abs, operands)))) < 2**24
    assert "conv_general_dilated" not in primitives(ours, *operands)


@pytest.mark.parametrize(("image", "kernel", "options"), LEFT_TO_JAX.values(), ids=LEFT_TO_JAX)
def test_other_forms_are_left_to_jax(image, kernel, options):
    options = {"window_strides": (1,) * (len(image) - 2)} | options
    ours, theirs = (jax.jit(first_order(f)) for f in pair(**options))
    close(ours(normal(*image), normal(*kernel)), theirs(normal(*image), normal(*kernel)), 0.0)
    assert "convolution" not in primitives(ours, normal(*image), normal(*kernel))


@pytest.mark.parametrize(
    ("dtype", "options"), [(jnp.int32, {}), (jnp.bfloat16, {"preferred_element_type": jnp.float32})]
)
def test_other_types_are_left_to_jax(dtype, options):
    operands = (10 * normal(2, 8, 7, 3)).astype(dtype), (10 * normal(3, 3, 3, 4)).astype(dtype)
    ours, theirs = pair(**options)
    close(ours(*operands), theirs(*operands), 0.0)
    assert primitives(ours, *operands) == {"conv_general_dilated"}


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_other_platforms_get_the_forms_of_jax(platform):
    """Decided for the platform that a program is compiled for, not for the one that it is compiled on."""
    ours, theirs = pair(window_strides=(2, 2), padding="SAME")
    operands = normal(2, 8, 7, 3), normal(3, 3, 3, 4)
    convolutions = [lowered(f, platform, *operands).count("stablehlo.convolution") for f in (ours, theirs)]
    assert convolutions == [1, 1]
    gradients = [lowered(first_order(f), platform, *operands) for f in (ours, theirs)]
    assert [text.count("stablehlo.convolution") for text in gradients] == [3, 3]
    assert not any("dot_general" in text for text in gradients)
    # On CPU the gradients of a strided convolution are matrix products.
    assert "dot_general" in lowered(first_order(ours), "cpu", *operands)
    assert "stablehlo.while" not in lowered(jax.vmap(ours), platform, normal(3, 2, 8, 7, 3), normal(3, 3, 3, 3, 4))
    assert "stablehlo.while" in lowered(jax.vmap(ours), "cpu", normal(3, 2, 8, 7, 3), normal(3, 3, 3, 3, 4))
    assert "dot_general" not in lowered(jax.vmap(numerics.total), platform, normal(3, 4, 5))
    assert "dot_general" in lowered(jax.vmap(numerics.total), "cpu", normal(3, 4, 5))


@pytest.mark.parametrize("axes", [(0, 0), (1, 4), (0, None), (None, 0)])
def test_pairs_of_images_and_kernels_have_the_derivatives_of_jax(axes):
    ours, theirs = (jax.vmap(f, axes) for f in pair(window_strides=(2, 1), padding="SAME"))
    images, kernels = normal(2, 8, 7, 3), normal(3, 2, 3, 4)
    operands = [
        operand if axis is None else jnp.stack([operand, 2 * operand, -operand], axis)
        for operand, axis in zip((images, kernels), axes, strict=True)
    ]
    for derivative in (first_order, second_order):
        close(jax.jit(derivative(ours))(*operands), jax.jit(derivative(theirs))(*operands), 1e-4)
    twice = (jax.jit(jax.vmap(first_order(f), (None, 0))) for f in (ours, theirs))
    several = operands[0], jnp.stack([operands[1], 3 * operands[1]])
    close(*(f(*several) for f in twice), 1e-4)


@pytest.mark.parametrize("size", [(8, 7), (22, 20)])
def test_no_examples(size):
    ours, theirs = (jax.jit(first_order(f)) for f in pair())
    operands = normal(0, *size, 3), normal(3, 3, 3, 4)
    value, (image_gradient, kernel_gradient) = ours(*operands)
    assert value.shape == theirs(*operands)[0].shape
    assert image_gradient.shape == operands[0].shape
    np.testing.assert_array_equal(kernel_gradient, jnp.zeros(operands[1].shape))


def test_wrong_shapes_are_refused_as_in_jax():
    for f in pair():
        with pytest.raises(ValueError, match="feature dimension"):
            f(normal(2, 8, 7, 3), normal(3, 3, 5, 4))
        with pytest.raises(ValueError, match="String padding"):
            f(normal(2, 8, 7, 3), normal(3, 3, 3, 4), lhs_dilation=(2, 2))


def test_an_equation_can_be_bound_again():
    operands = normal(2, 8, 7, 3), normal(3, 3, 3, 4)
    for f in pair(rhs_dilation=(1, 2)):
        (equation,) = jax.make_jaxpr(f)(*operands).eqns
        params = equation.params | {"precision": (lax.Precision.HIGHEST, lax.Precision.HIGHEST)}
        rebound = functools.partial(module.convolution, **params)
        close(rebound(*operands), f(*operands))
        (again,) = jax.make_jaxpr(rebound)(*operands).eqns
        assert again.primitive is module.convolution_p
        assert again.params == params


def test_flax_takes_it():
    images = normal(2, 8, 8, 3)
    layers = [
        nn.Conv(4, (3, 3), strides=2, conv_general_dilated=f) for f in (module.convolution, lax.conv_general_dilated)
    ]
    variables = layers[0].init(jax.random.key(0), images)
    close(layers[0].apply(variables, images), layers[1].apply(variables, images))
    assert "convolution" in primitives(layers[0].apply, variables, images)


@pytest.mark.parametrize(
    ("image", "kernel", "axes"),
    [
        ((5, 2, 8, 7, 3), (3, 3, 3, 4), (0, None)),
        ((2, 8, 7, 3, 5), (3, 3, 3, 4), (4, None)),
        ((2, 8, 7, 3), (5, 3, 3, 3, 4), (None, 0)),
        ((2, 8, 7, 3), (3, 3, 5, 3, 4), (None, 2)),
        ((2, 5, 8, 7, 3), (3, 3, 3, 4, 5), (1, 4)),
    ],
)
def test_vmap(image, kernel, axes):
    operands = normal(*image), normal(*kernel)
    ours, theirs = (jax.jit(jax.vmap(first_order(f), axes)) for f in pair())
    close(ours(*operands), theirs(*operands))


def one_example_objectives(convolution: Callable[..., jax.Array]) -> dict[str, Callable[..., Any]]:
    """What the library does with a function of one example: trains, attacks, and bounds it, and trains the bounds."""

    def features(kernel, x):
        return jnp.sin(convolution(x[None], kernel)[0])

    def loss(kernel, x):
        return jnp.sum(jnp.sin(features(kernel, x)))

    def bounds(kernel, x):
        value, pull = jax.vjp(lambda x: jnp.ravel(features(kernel, x))[:6], x)
        return jax.vmap(lambda direction: pull(direction)[0])(jnp.eye(value.size))

    def bound_loss(kernel, x):
        return jnp.sum(jnp.abs(bounds(kernel, x)))

    def batched(f):
        return lambda kernel, x: jnp.mean(jax.vmap(f, (None, 0))(kernel, x))

    return {
        "loss": batched(loss),
        "training": jax.grad(batched(loss)),
        "attack": jax.vmap(jax.grad(loss, 1), (None, 0)),
        "training after attack": jax.grad(batched(lambda w, x: loss(w, x + 0.1 * jax.grad(loss, 1)(w, x)))),
        "gradient of each example": jax.vmap(jax.grad(loss), (None, 0)),
        "bounds": jax.vmap(bounds, (None, 0)),
        "training of bounds": jax.grad(batched(bound_loss)),
        "nested": jax.grad(lambda w, x: batched(batched(loss))(w, x.reshape(3, 2, *x.shape[1:]))),
        "checkpoint": jax.grad(jax.checkpoint(batched(loss))),
    }


OBJECTIVES = list(one_example_objectives(lax.conv_general_dilated))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_transformations_of_a_function_of_one_example(name):
    operands = normal(3, 3, 3, 4), normal(6, 8, 7, 3)
    ours, theirs = (jax.jit(one_example_objectives(f)[name]) for f in pair())
    close(ours(*operands), theirs(*operands))
    used = primitives(ours, *operands)
    assert "conv_general_dilated" not in used
    # One kernel for each example makes pairs; everything else is a single convolution of all examples.
    assert ("convolutions" in used) == (name == "gradient of each example")


@pytest.mark.parametrize("name", ["training", "training after attack", "training of bounds"])
def test_inside_loops(name):
    kernel, images = normal(3, 3, 3, 4), normal(6, 8, 7, 3)

    def with_scan(gradient):
        return lax.scan(lambda w, _: (w - 0.01 * gradient(w, images), None), kernel, None, length=3)[0]

    def with_fori_loop(gradient):
        return lax.fori_loop(0, 3, lambda _, w: w - 0.01 * gradient(w, images), kernel)

    expected, reference = kernel, jax.jit(one_example_objectives(pair()[1])[name])
    for _ in range(3):
        expected -= 0.01 * reference(expected, images)
    gradient = one_example_objectives(pair()[0])[name]
    close(jax.jit(with_scan, static_argnums=0)(gradient), expected)
    close(jax.jit(with_fori_loop, static_argnums=0)(gradient), expected)


@pytest.mark.parametrize("name", ["training", "training of bounds"])
def test_over_eight_devices(name):
    kernel, images = normal(3, 3, 3, 4), normal(16, 8, 7, 3)
    expected = jax.jit(one_example_objectives(pair()[1])[name])(kernel, images)
    gradient = one_example_objectives(pair()[0])[name]

    def step(kernel, images):
        return numerics.pmean(gradient(kernel, images), "data")

    mapped = jax.pmap(step, axis_name="data", in_axes=(None, 0), out_axes=None)
    close(mapped(kernel, images.reshape(8, 2, 8, 7, 3)), expected)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    shard_map = functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    close(jax.jit(shard_map(step, check_vma=False))(kernel, images), expected)

    sharded = jax.device_put(images, jax.NamedSharding(mesh, P("data")))
    close(jax.jit(gradient)(kernel, sharded), expected)


def test_shard_map_that_tracks_what_varies():
    kernel, images = normal(3, 3, 3, 4), normal(16, 8, 7, 3)
    expected = jax.jit(one_example_objectives(pair()[1])["training"])(kernel, images)
    gradient = one_example_objectives(pair()[0])["training"]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def cast_first(kernel, images):
        return lax.pmean(gradient(lax.pcast(kernel, "data", to="varying"), images), "data")

    def summed_by_jax(kernel, images):
        return gradient(kernel, images) / 8

    for f in (cast_first, summed_by_jax):
        mapped = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=(P(), P("data")), out_specs=P()))
        close(mapped(kernel, images), expected)


def test_a_mesh_with_explicit_axes():
    kernel, images = normal(3, 3, 3, 4), normal(16, 8, 7, 3)
    ours, theirs = (jax.jit(one_example_objectives(f)["training"]) for f in pair())
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        operands = jax.device_put((kernel, images), (jax.NamedSharding(mesh, P()), jax.NamedSharding(mesh, P("data"))))
        gradient = ours(*operands)
    close(gradient, theirs(kernel, images))


@jax.custom_vjp
def naive_convolution(lhs, rhs):
    return lax.conv_general_dilated(lhs, rhs, (2, 1), "SAME", dimension_numbers=LAYOUT)


def _naive_backward(operands, cotangent):
    return jax.vjp(pair()[1], *operands)[1](cotangent)


naive_convolution.defvjp(lambda lhs, rhs: (naive_convolution(lhs, rhs), (lhs, rhs)), _naive_backward)


@pytest.mark.parametrize("name", ["training", "training after attack", "nested"])
def test_no_kernel_gradient_is_computed_for_each_example(name):
    kernel, images = normal(3, 3, 3, 4), normal(6, 8, 7, 3)

    def has_kernel_for_each_example(convolution):
        sizes = {math.prod(shape) for shape in shapes(one_example_objectives(convolution)[name], kernel, images)}
        return 6 * kernel.size in sizes

    assert not has_kernel_for_each_example(pair()[0])
    assert has_kernel_for_each_example(naive_convolution)
