"""How far the prediction on each of many examples is proved, and how far it is known to break."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from cure_jax.certification.attack_dataset import attack_dataset
from cure_jax.certification.batches import MakeRegion, Model, as_pytree, checked, shown
from cure_jax.certification.dataset import certify_dataset

__all__ = ["DatasetRadii", "certified_radii"]


@dataclasses.dataclass(frozen=True)
class DatasetRadii:
    """Per-example radii, in the order of the examples and in the units of the regions (pixels).

    Attributes:
      proved: by norm, `[examples]`: a radius at which the prediction was proved; 0 where it was at none.
      broken: by norm, `[examples]`: a radius at which an attack broke it; 0 where the example itself is misclassified,
        infinite where no attack succeeded up to the largest radius that was tried.
    """

    proved: dict[str, np.ndarray]
    broken: dict[str, np.ndarray]

    def curves(self, points: int = 200) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """By norm: radii, and the fractions of examples proved and not broken there.

        `report.plots.certified_against_radius` draws them. They hold for regions that grow with their radius.

        Args:
          points: radii in each curve, from 0 to the largest radius found.
        """
        return {norm: self._curve(norm, points) for norm in self.proved}

    def _curve(self, norm: str, points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        proved, broken = self.proved[norm], self.broken[norm]
        largest = max(float(np.max(proved)), float(np.max(broken, where=np.isfinite(broken), initial=0.0)))
        radii = np.linspace(0, largest or 1.0, points)
        # What is misclassified has the radius 0, and is not proved at 0 either.
        right = broken > 0
        certified = np.mean((proved[None, :] >= radii[:, None]) & right, axis=1)
        return radii, certified, np.mean(broken[None, :] > radii[:, None], axis=1)


def certified_radii(  # noqa: PLR0913  (the options of a long-running job)
    f: Model,
    images: np.ndarray,
    labels: np.ndarray,
    regions: Mapping[str, MakeRegion],
    *,
    high: Mapping[str, float],
    key: jax.Array,
    tolerance: float = 0.01,
    method: str | Sequence[str] = "crown",
    steps: int = 40,
    restarts: int = 3,
    batch_size: int = 100,
    mesh: Mesh | None = None,
    show_progress: bool | None = None,
) -> DatasetRadii:
    """Encloses the robust radius of each example by bisection: proofs from below, attacks from above.

    Args:
      f: as for `certify_dataset`.
      images: `[examples, *x]`, pixels in [0, 1].
      labels: `[examples]`, integers in [0, classes).
      regions: by norm, a function from an example and its radius to a region that grows with the radius,
        `{"l2": lambda x, eps: l2_ball(x, eps, (0.0, 1.0))}`.
      high: by norm, the largest radius that is tried.
      key: for the random starts of the attacks.
      tolerance: as a fraction of `high`: how close to each other the last radii of each bisection are.
      method: as for `certify_dataset`.
      steps: of the attack, as for `attack_dataset`.
      restarts: of the attack.
      batch_size: examples at once.
      mesh: as for `certify_dataset`.
      show_progress: whether to show a progress bar; default: on a terminal and in a notebook.

    Returns:
      A proved and a broken radius for each example and norm.

    Raises:
      ValueError: if `high` lacks a norm or has one that is not positive and finite, `tolerance` is not in (0, 1], and
        as `certify_dataset` and `attack_dataset`.

    Soundness:
      As `certify_dataset`, for the radius in `proved`: it was itself proved. Bounds need not be monotone, so smaller
      ones are proved only because their regions lie inside.

    Examples:
      >>> import jax, numpy as np, cure_jax as cj
      >>> radii = cj.certified_radii(
      ...     lambda x: x,
      ...     np.array([[0.8, 0.3]], np.float32),
      ...     np.array([0]),
      ...     {"linf": cj.linf_ball},
      ...     high={"linf": 1.0},
      ...     key=jax.random.key(0),
      ... )
      >>> bool(radii.proved["linf"][0] <= 0.25 <= radii.broken["linf"][0] < 0.27)
      True
    """
    images, labels, _ = checked(f, images, labels, regions, batch_size)
    _check(regions, high, tolerance)
    # As a pytree, f is compiled once for all radii.
    data, options = (as_pytree(f), images, labels), {"batch_size": batch_size, "mesh": mesh, "show_progress": False}
    halvings = math.ceil(-math.log2(tolerance))
    with shown((3 + 2 * halvings) * len(images) * len(regions), "radii", show_progress) as advance:

        def enclosed(norm: str, make: MakeRegion, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
            region = {norm: as_pytree(make)}

            def proves(radii: np.ndarray) -> np.ndarray:
                advance(f"{norm}, proofs", len(images))
                return certify_dataset(*data, region, radii={norm: radii}, method=method, **options).verified[norm]

            def stands(radii: np.ndarray) -> np.ndarray:
                advance(f"{norm}, attacks", len(images))
                attacking = {"key": key, "steps": steps, "restarts": restarts, **options}
                return attack_dataset(*data, region, radii={norm: radii}, **attacking).survived[norm]

            zero, top = np.zeros(len(images), images.dtype), np.full(len(images), high[norm], images.dtype)
            proved, _ = _bisected(proves, zero, top, halvings)
            _, first = _bisected(stands, proved, top, halvings)
            return proved, np.where(stands(zero), first, 0)

        numbered = enumerate(regions.items())
        found = {norm: enclosed(norm, make, jax.random.fold_in(key, index)) for index, (norm, make) in numbered}
    proved, broken = ({norm: pair[part] for norm, pair in found.items()} for part in (0, 1))
    return DatasetRadii(proved, broken)


def _bisected(
    holds: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray, halvings: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each example a radius where it holds, or `low`; and one where it does not, infinite if it holds at `high`."""
    whole = holds(high)
    low, top = np.where(whole, high, low), high
    for _ in range(halvings):
        middle = low + (top - low) / 2
        held = whole | holds(middle)
        low, top = np.where(held, middle, low), np.where(held, top, middle)
    return low, np.where(whole, np.inf, top)


def _check(regions: Mapping[str, MakeRegion], high: Mapping[str, float], tolerance: float) -> None:
    if wrong := {norm: high.get(norm) for norm in regions if not 0 < high.get(norm, math.nan) < math.inf}:
        raise ValueError(f"high has {wrong}; expected a positive, finite radius for each of {', '.join(regions)}.")
    if not 0 < tolerance <= 1:
        raise ValueError(f"tolerance is {tolerance}; expected a fraction of high, above 0 and at most 1.")
