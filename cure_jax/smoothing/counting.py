"""How a base classifier votes on noisy views of an image: one compiled loop, memory that does not grow with them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Int32, Key

from cure_jax.certification.batches import Batches, divided
from cure_jax.smoothing.noise import Noise

__all__ = ["class_counts", "count_all"]

Model = Callable[[jax.Array], jax.Array]


def class_counts(
    f: Model,
    image: Int32[Array, "*x"],
    noise: Noise,
    key: Key[Array, ""],
    count: Int32[Array, ""] | int,
    *,
    samples_at_once: int = 100,
) -> Int32[Array, " classes"]:
    """Votes of the classes on the noisy views 0, ..., count - 1 of one image. Pure: jit it, vmap it.

    Args:
      f: the base classifier, one example `[*x]` in pixels to logits `[classes]`.
      image: in whole levels of the noise (`cure_jax.smoothing.on_grid`).
      noise: from `gaussian`, `uniform`, `laplace`, `splitting`.
      key: of the views; the view of a number is a function of the two.
      count: of views; it may be traced: one program serves any number.
      samples_at_once: views in one step of the loop; bounds its memory, and changes nothing else.

    Returns:
      Votes. A view whose logits are not all finite has none.
    """
    classes = jax.eval_shape(lambda image: f(noise.numbered(image, key, jnp.int32(0))), image).shape[0]
    count = jnp.asarray(count, jnp.int32)

    def vote(number: jax.Array) -> jax.Array:
        logits = f(noise.numbered(image, key, number))
        is_vote = (number < count) & jnp.all(jnp.isfinite(logits))
        return ((jnp.arange(classes) == jnp.argmax(logits)) & is_vote).astype(jnp.int32)

    def step(index: jax.Array, votes: jax.Array) -> jax.Array:
        numbers = index * samples_at_once + jnp.arange(samples_at_once, dtype=jnp.int32)
        return votes + jnp.sum(jax.vmap(vote)(numbers), axis=0, dtype=jnp.int32)

    steps = (count + samples_at_once - 1) // samples_at_once
    return jax.lax.fori_loop(jnp.int32(0), steps, step, jnp.zeros(classes, jnp.int32))


def count_all(  # noqa: PLR0913  (one argument for each thing that varies)
    f: Model,
    images: Int[np.ndarray, "examples *x"],
    noise: Noise,
    key: Key[Array, ""],
    count: int,
    *,
    samples_at_once: int,
    batch_size: int,
    mesh: Mesh | None,
    advance: Callable[[int], None] = lambda count: None,
) -> Int[np.ndarray, "examples classes"]:
    """Votes on many images: each has views of its own, whatever `batch_size` and `mesh`."""
    batches = Batches((f, key, np.int32(count)), (images, np.arange(len(images), dtype=np.int32)), batch_size, mesh)
    counted = functools.partial(_counted, noise=noise, samples_at_once=samples_at_once, mesh=mesh)
    return batches.apply(counted, advance=advance)["votes"].astype(np.int64)


@functools.partial(jax.jit, static_argnames=("noise", "samples_at_once", "mesh"))
def _counted(  # noqa: PLR0913  (one argument for each thing that varies)
    f: Model,
    key: jax.Array,
    count: jax.Array,
    images: jax.Array,
    numbers: jax.Array,
    *,
    noise: Noise,
    samples_at_once: int,
    mesh: Mesh | None,
) -> dict[str, jax.Array]:
    def batch(f: Model, key: jax.Array, count: jax.Array, *examples: jax.Array) -> dict[str, Any]:
        def one(image: jax.Array, number: jax.Array) -> jax.Array:
            own = jax.random.fold_in(key, number)
            return class_counts(f, image, noise, own, count, samples_at_once=samples_at_once)

        return {"votes": jax.vmap(one)(*examples)}

    return divided(batch, mesh, 3)(f, key, count, images, numbers)
