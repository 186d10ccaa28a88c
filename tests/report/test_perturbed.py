import numpy as np
import pytest

from cure_jax.report import Along, margins_along, margins_along_each

BOUNDS = {"crown": ([0.0, 1.0, 2.0], [0.3, 0.2]), "ibp": ([0.0, 2.0], [-1.0])}
IMAGES = {"0": np.zeros((4, 4, 1)), "2": np.ones((4, 4, 1))}
ANGLE = Along(IMAGES, [0.0, 1.0, 2.0], [0.5, 0.4, 0.6], BOUNDS, "angle")


def test_every_bound_is_drawn_on_its_cells(tmp_path, figures):
    margins_along(tmp_path / "a.png", ANGLE)
    (figure,) = figures
    panel = figure.axes[-1]
    assert len(figure.axes) == 3
    assert [text.get_text() for text in panel.get_legend().get_texts()][1:] == ["proved by crown", "proved by ibp"]
    assert panel.get_xlabel() == "angle"
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_every_parameter_has_a_row(tmp_path, figures):
    margins_along_each(tmp_path / "a.png", [ANGLE, ANGLE._replace(parameters=[1.0, 2.0, 4.0], parameter_name="shift")])
    (figure,) = figures
    plots = figure.axes[2::3]
    assert [panel.get_xlabel() for panel in plots] == ["angle", "shift"]
    assert plots[1].get_xlim() == (1.0, 4.0)
    assert len(figure.legends[0].get_texts()) == 3
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_ends_must_fit_the_cells(tmp_path):
    for draw in (margins_along, lambda path, along: margins_along_each(path, [along])):
        with pytest.raises(ValueError, match="one more than cells"):
            draw(tmp_path / "a.png", ANGLE._replace(bounds={"x": ([0.0], [1.0])}))
    with pytest.raises(ValueError, match="no images"):
        margins_along(tmp_path / "a.png", ANGLE._replace(images={}))


def test_rows_must_have_as_many_images(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        margins_along_each(tmp_path / "a.png", [])
    with pytest.raises(ValueError, match=r"\[1, 2\] images"):
        margins_along_each(tmp_path / "a.png", [ANGLE, ANGLE._replace(images={"0": IMAGES["0"]})])
