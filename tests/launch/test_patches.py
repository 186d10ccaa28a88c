"""The table of patches and few pixels: what it counts, and that it ends with an error where a proof is broken."""

import json
import types

import jax.numpy as jnp
import numpy as np
import pytest

from launch.checks import patches

IMAGES = 6


def threat(everything_is_proved):
    """All images but the first two are turned black, which is no digit of most classes."""
    kept = iter([True, True] + [False] * (IMAGES - 2))
    return patches.Threat(
        "black",
        lambda f, images, labels: (np.full(len(images), everything_is_proved), 7),
        lambda f, x, label, key: x if next(kept) else jnp.zeros_like(x),
        lambda f, x, label: jnp.ones(9),
    )


@pytest.mark.parametrize("everything_is_proved", [True, False])
def test_what_is_proved_and_broken_ends_in_an_error(everything_is_proved, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(patches, "_patch", lambda side: threat(everything_is_proved))
    flags = {"_NETWORKS": ["digits/max"], "_WORKDIR": str(tmp_path), "_IMAGES": IMAGES, "_PATCHES": ["1"]}
    for flag, value in {**flags, "_PIXELS": []}.items():
        monkeypatch.setattr(patches, flag, types.SimpleNamespace(value=value))
    if everything_is_proved:
        with pytest.raises(SystemExit, match="proved and broken"):
            patches.main()
    else:
        patches.main()
    (row,) = json.loads((tmp_path / "patches.json").read_text())
    assert row["correct"] == 1
    assert row["certified"] == everything_is_proved
    assert 2 / IMAGES <= row["attacked"] < 1
    assert (row["broken"] > 0) == everything_is_proved
    assert "| digits/max | black | 100 |" in capsys.readouterr().out
    assert (tmp_path / "digits_max.png").stat().st_size > 1000
