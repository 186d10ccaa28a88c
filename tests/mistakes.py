"""The most common mistakes, and what is said about each: run as a program it makes them all, and prints a table.

As a program, because in a test the run-time checks of types would speak before the library does.
"""

import sys
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError

import cure_jax as cj
from cure_jax import training
from cure_jax.models import Fitted
from cure_jax.training.checks import check

X = jnp.array([0.8, 0.3])
BALL = cj.linf_ball(X, 0.1)
REGIONS = training.make_regions({"linf": 0.1})
IMAGES, LABELS = np.array([[0.8, 0.3], [0.1, 0.6]], np.float32), np.array([0, 1])


def f(x: jax.Array) -> jax.Array:
    """A classifier of one example."""
    return x


def dataset(regions: object, model: object = f, images: np.ndarray = IMAGES, labels: np.ndarray = LABELS) -> object:
    return cj.certify_dataset(model, images, labels, regions)  # pyright: ignore[reportArgumentType]


def fitted() -> Fitted:
    model = nn.Dense(2)
    return Fitted(model, None, model.init(jax.random.key(0), jnp.zeros((1, 2))), (2,))


def trained() -> Fitted:
    model = nn.Sequential([lambda images: images.reshape(len(images), -1), nn.Dense(2)])
    return Fitted(model, None, model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1))), (4, 4, 1))


def config(**fields: object) -> object:
    made = training.default_config()
    for name, value in fields.items():
        setattr(made, name, value)
    check(made)
    return made


MISTAKES: Mapping[str, Callable[[], object]] = {
    "a radius where a function from an example to its region is wanted": lambda: dataset({"linf": 0.1}),
    "one ball for all examples": lambda: dataset({"linf": BALL}),
    "an Interval for all examples": lambda: dataset({"linf": cj.Interval(X - 0.1, X + 0.1)}),
    "one function without the name of its norm": lambda: dataset(lambda x: cj.linf_ball(x, 0.1)),
    "a radius where a region is wanted": lambda: cj.certify(f, X, 0, 0.1),  # pyright: ignore
    "an Interval where a region is wanted": lambda: cj.crown(f)(cj.Interval(X, X)),  # pyright: ignore
    "the example where a region is wanted": lambda: cj.crown(f)(X),  # pyright: ignore
    "a function where a region is wanted": lambda: cj.verify(f, X, 0, lambda x: BALL),  # pyright: ignore
    "a region beside the function": lambda: cj.crown(f, BALL),  # pyright: ignore
    "a trained network where a function is wanted": lambda: cj.crown(fitted())(BALL),  # pyright: ignore
    "a trained network for a data set": lambda: dataset(training.make_regions({"linf": 0.1}), fitted()),
    "one region for a union": lambda: cj.certify_union(f, X, 0, BALL),  # pyright: ignore
    "a function as method": lambda: cj.certify(f, X, 0, BALL, method=cj.crown),  # pyright: ignore
    "one class where several are wanted": lambda: cj.margins(f, 0, jnp.array(1))(X),
    "a method that does not exist": lambda: cj.certify(f, X, 0, BALL, method="croun"),
    "the exponent as a word": lambda: cj.lp_ball(X, 0.1, p="inf"),  # pyright: ignore
    "a radius without its norm": lambda: training.make_regions(0.1),  # pyright: ignore
    "a norm by another name": lambda: training.make_regions({"inf": 0.1}),
    "a network that returns more than logits": lambda: cj.certify(lambda x: (x, x), X, 0, BALL),  # pyright: ignore
    "a network of batches": lambda: cj.certify(lambda x: x[None], X, 0, BALL),
    "a flax module in the place of a function": lambda: dataset(REGIONS, nn.Dense(2)),
    "a module's apply without its parameters": lambda: dataset(REGIONS, nn.Dense(2).apply),
    "channels first, for a network trained with channels last": lambda: trained().classifier(jnp.zeros((1, 4, 4))),
    "images and labels that are no pair": lambda: training.fit(nn.Dense(2), IMAGES, LABELS),  # pyright: ignore
    "an attack on more than logits": lambda: cj.pgd(lambda x: (x, x), X, 0, BALL, key=jax.random.key(0)),  # pyright: ignore
    "images in 0 to 255": lambda: dataset(training.make_regions({"linf": 0.1}), images=IMAGES * 255),
    "labels that are one-hot": lambda: dataset(training.make_regions({"linf": 0.1}), labels=np.eye(2, dtype=int)),
    "a region of another example's shape": lambda: cj.certify(f, X, 0, cj.linf_ball(jnp.zeros(3), 0.1)),
    "the name of a loss alone": lambda: config(losses={"linf": "ibp"}),
    "a field that was renamed": lambda: config(l1=1e-5),
    "a field that is misspelt": lambda: config(epoch=3),
    "a work directory that is not there": lambda: training.load("/nowhere/cure_jax_run"),
}


def said(make: Callable[[], object]) -> str:
    """The type of the error that a mistake raises, what it says, and what is added to the words of others."""
    try:
        make()
    except (TypeError, ValueError, NotImplementedError, OSError, FlaxError) as error:
        notes = "".join(f" *{note}*" for note in getattr(error, "__notes__", []) if "JAX_TRACEBACK" not in note)
        return f"`{type(error).__name__}`: {error}{notes}"
    return "nothing"


def document() -> str:
    """All of them, as docs/mistakes.md has them."""
    head = [
        "# Common mistakes",
        "",
        "What is said about each: what came, what was expected, what to do; in italics what is added to the words of "
        "jax and flax. Printed by `python tests/mistakes.py`, which makes them all; a test compares.",
        "",
        "| mistake | message |",
        "| --- | --- |",
    ]
    rows = [f"| {name} | {said(make).replace('|', chr(92) + '|')} |" for name, make in MISTAKES.items()]
    return "\n".join([*head, *rows, ""])


if __name__ == "__main__":
    sys.stdout.write(document())
