"""Pictures of perturbed images and of the radii of every norm."""

import math

import numpy as np
import pytest
from PIL import Image

from cure_jax.report import Perturbed, perturbed_images, radius_of_every_norm

pytest.importorskip("matplotlib")
IMAGE = np.linspace(0, 1, 36).reshape(6, 6, 1)


def row(lowest):
    lower = np.array([lowest, 1.0])
    return Perturbed("2 x 2 patch", IMAGE, 1 - IMAGE, lower, lower + 2, lower + 1)


def area(path, colour):
    """How many pixels have a colour."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    return np.sum(np.all(pixels == np.array(colour), axis=-1))


def test_what_is_proved_and_what_is_not_look_different(tmp_path):
    for name, lowest in (("proved", 0.5), ("not", -0.5)):
        perturbed_images(tmp_path / f"{name}.png", [row(lowest), row(1.0)], 1)
    # Text has a few pixels of any grey.
    assert area(tmp_path / "not.png", (0xC4, 0xC4, 0xC4)) > 10 * area(tmp_path / "proved.png", (0xC4, 0xC4, 0xC4)) + 500


def test_radii_are_drawn_one_colour_a_curve(tmp_path):
    curve = ([1.0, 2.0, math.inf], [1.0, 0.3, 0.1])
    radius_of_every_norm(tmp_path / "one.png", {"hull": curve})
    radius_of_every_norm(tmp_path / "two.png", {"hull": curve, "balls": (curve[0], [1.0, 0.15, 0.1])})
    assert area(tmp_path / "one.png", (0, 0x72, 0xB2)) > 100
    assert area(tmp_path / "one.png", (0xD5, 0x5E, 0)) == 0
    assert area(tmp_path / "two.png", (0xD5, 0x5E, 0)) > 100


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(ValueError, match="Got no perturbed images"):
        perturbed_images(tmp_path / "picture.png", [], 0)
    for curves in ({}, {"hull": ([1.0, 2.0], [1.0])}, {"hull": ([1.0], [0.0])}):
        with pytest.raises(ValueError, match="exponents and as many positive radii"):
            radius_of_every_norm(tmp_path / "picture.png", curves)
