import numpy as np
import pytest

from cure_jax.report import margins_along


def test_every_bound_is_drawn_on_its_cells(tmp_path, figures):
    bounds = {"crown": ([0.0, 1.0, 2.0], [0.3, 0.2]), "ibp": ([0.0, 2.0], [-1.0])}
    images = {"0": np.zeros((4, 4, 1)), "2": np.ones((4, 4, 1))}
    margins_along(tmp_path / "a.png", images, [0.0, 1.0, 2.0], [0.5, 0.4, 0.6], bounds, parameter_name="angle")
    (figure,) = figures
    panel = figure.axes[-1]
    assert len(figure.axes) == 3
    assert [text.get_text() for text in panel.get_legend().get_texts()][1:] == ["proved by crown", "proved by ibp"]
    assert panel.get_xlabel() == "angle"
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_ends_must_fit_the_cells(tmp_path):
    with pytest.raises(ValueError, match="one more than cells"):
        margins_along(
            tmp_path / "a.png", {"0": np.zeros((2, 2))}, [0.0], [0.0], {"x": ([0.0], [1.0])}, parameter_name=""
        )
    with pytest.raises(ValueError, match="no images"):
        margins_along(tmp_path / "a.png", {}, [0.0], [0.0], {}, parameter_name="")
