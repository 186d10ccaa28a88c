"""Complete verification: attack, bounds from cheap to tight, then branch and bound."""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Float

from cure_jax.bounds import alpha_crown
from cure_jax.certification.batches import as_pytree
from cure_jax.certification.specification import UnsafeSet
from cure_jax.graph import Graph, Node
from cure_jax.regions import Box, Region
from cure_jax.regions.region import check_region
from cure_jax.validation import as_class
from cure_jax.verification.branch_and_bound import Settings, search
from cure_jax.verification.input_splitting import split_inputs
from cure_jax.verification.outcome import Outcome
from cure_jax.verification.problem import Limits, Problem, Progress, Specification, all_rows, of_class, rounded_down
from cure_jax.verification.roots import is_box, others, root_bounds, traced
from cure_jax.verification.saved import Saved
from cure_jax.verification.split_bound import branching
from cure_jax.verification.verdict import Status, Verdict
from cure_jax.verification.witness import attack, confirmed, evaluated

__all__ = ["Branching", "Options", "verify", "verify_property"]

Branching = Literal["auto", "activations", "inputs"]
# Inputs that are split themselves where there are no more.
_FEW_INPUTS = 8
_GIBIBYTE = 2**30


@dataclasses.dataclass(frozen=True)
class Options:
    """How verification is done; none of it changes what is true.

    Attributes:
      batch_size: domains that are bounded at once, of one compiled shape.
      steps: of Adam, for each domain.
      candidates: neurons of each layer that are tried; the best of each layer may be split.
      boxes: boxes of inputs that are bounded at once.
      branching: what is split: "activations" (at their kinks), "inputs" (for boxes), or "auto": inputs where there are
        at most 8.
      attack_steps: of the attack at the beginning, for each specification and restart.
      attack_restarts: its random starts.
      max_domains: at most so many are bounded.
      max_memory: of the domains that wait, in GiB.
      seed: of the attack.
    """

    batch_size: int = 32
    steps: int = 20
    candidates: int = 4
    boxes: int = 256
    branching: Branching = "auto"
    attack_steps: int = 50
    attack_restarts: int = 5
    max_domains: int = 10**7
    max_memory: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        whole = ("batch_size", "steps", "candidates", "boxes", "attack_steps", "attack_restarts", "max_domains")
        for name in whole:
            least = {"batch_size": 2, "candidates": 2, "boxes": 2, "steps": 0}.get(name, 1)
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}. Raise it.")
        if self.branching not in ("auto", "activations", "inputs"):
            raise ValueError(f"branching is {self.branching!r}; expected 'auto', 'activations' or 'inputs'.")


def verify(  # noqa: PLR0913  (a question, and how long it may take)
    f: Callable[[jax.Array], jax.Array],
    x: Float[ArrayLike, "*x"],
    label: int,
    region: Region,
    timeout: float | int = 60.0,
    *,
    suspects: Sequence[np.ndarray] = (),
    options: Options | None = None,
    progress: Callable[[Progress], None] | None = None,
    state_file: str | os.PathLike | None = None,
) -> Verdict:
    """Decides whether a classifier predicts `label` on a whole region: complete for networks of ReLUs.

    An attack looks for a counterexample. Then the whole region is bounded, and what is not proved is split: at the
    kinks of ReLUs and other functions of two straight pieces, or, for boxes of few inputs, along the inputs.

    Args:
      f: one example `[*x]` to logits `[classes]`. As a `jax.tree_util.Partial` of a pure function it is compiled once
        for all parameters and all regions of a kind; any other callable is compiled anew in every call, which takes
        longer than most searches.
      x: the example; it must lie in `region`.
      label: the class, in [0, classes).
      region: from `linf_ball`, `l2_ball`, `l1_ball`, `box`, ...
      timeout: in seconds, compilation included; it is looked at between batches, so it may be exceeded by the time of
        one, and of a compilation.
      suspects: inputs `[*x]` that may be counterexamples, such as those of `attack_dataset`; tried first.
      options: how it is done.
      progress: called after each batch.
      state_file: where the state of the search by splitting is kept, every minute and when the time is over: the same
        call with this file goes on from there. It is deleted when the search has ended.

    Returns:
      The verdict. Ties count against the label: a point where another logit is as great is a counterexample.

    Raises:
      ValueError: for a label out of range, several labels, an `x` outside of the region or of another shape, or a
        `state_file` that is damaged or of another search.
      UnsupportedPrimitive: if `f` contains a primitive without a rule.
      OSError: if `state_file` cannot be written.

    Soundness:
      VERIFIED: every domain has a finite bound above 0, in float32 with some room for rounding, which is not a bound of
      it; leaves in float64. FALSIFIED: the witness is in the region, in float64, and `f` is wrong there in float32 and
      in float64.

    References:
      Bunel et al., Branch and Bound for Piecewise Linear Neural Network Verification (JMLR 2020); Wang et al.,
      Beta-CROWN (NeurIPS 2021).

    Examples:
      >>> import jax.numpy as jnp, cure_jax as cj
      >>> f = lambda x: jnp.stack([1.1 - jnp.abs(x[0]) - jnp.abs(x[1] + x[0]), 0.0 * x[0]])
      >>> x = jnp.zeros(2)
      >>> cj.verify(f, x, 0, cj.linf_ball(x, 0.35)).status.name, cj.verify(f, x, 0, cj.linf_ball(x, 0.4)).status.name
      ('VERIFIED', 'FALSIFIED')
    """
    start, options = time.monotonic(), options or Options()
    x = jnp.asarray(x)
    check_region(region, "verify")
    classes = _classes(f, x, label, region)
    problem = Problem(as_pytree(f), region, of_class(label, classes))
    outcome = _decide(problem, _limits(start, timeout, options, progress), options, [x, *suspects], state_file)
    return _verdict(outcome, start)


def verify_property(
    f: Callable[[jax.Array], jax.Array],
    unsafe_sets: Sequence[UnsafeSet],
    timeout: float | int = 60.0,
    *,
    options: Options | None = None,
    progress: Callable[[Progress], None] | None = None,
    state_file: str | os.PathLike | None = None,
) -> Verdict:
    """Decides whether none of some sets of unsafe inputs and outputs is reached.

    Args:
      f: one example `[*x]` to an array; see `verify`.
      unsafe_sets: one or more. Their boxes are in float64; the network is bounded in float32, on boxes rounded outward.
      timeout: for all of them together; see `verify`.
      options: how it is done.
      progress: called after each batch.
      state_file: as for `verify`; for several boxes it is a file each, with a number at the end of the name.

    Returns:
      The verdict: VERIFIED if no input of any box has an output that satisfies all rows of its set. A witness is in
      float64; it lies in its box, and satisfies the rows (ties are unsafe) in float64 and, rounded, in float32.

    Raises:
      ValueError: if there is no set, shapes do not fit together, or for a `state_file` as `verify`.
      UnsupportedPrimitive: if `f` contains a primitive without a rule.
      OSError: if `state_file` cannot be written.

    Soundness:
      As `verify`.

    Examples:
      >>> import jax.numpy as jnp, numpy as np, cure_jax as cj
      >>> from cure_jax.certification import UnsafeSet
      >>> never = UnsafeSet(np.array([-1.0]), np.array([1.0]), np.array([[1.0]]), np.array([0.1]))
      >>> cj.verify_property(lambda x: jnp.abs(x), [never]).status.name
      'VERIFIED'
    """
    start, options = time.monotonic(), options or Options()
    if not unsafe_sets:
        raise ValueError("verify_property got no unsafe set; expected at least one.")
    network, found = as_pytree(f), []
    problems = _problems(network, unsafe_sets)
    for number, problem in enumerate(problems):
        limits = _limits(start, timeout, options, progress)
        file = f"{os.fspath(state_file)}.{number}" if state_file is not None and len(problems) > 1 else state_file
        found.append(_decide(problem, limits, options, [], file))
        if found[-1].status is Status.FALSIFIED:
            break
    return _verdict(_together(found), start)


def _classes(f: Callable[[jax.Array], jax.Array], x: jax.Array, label: int, region: Region) -> int:
    """The number of classes, where everything fits together."""
    box = region.bounding_box()
    if x.shape != box.shape:
        raise ValueError(
            f"The example and its region must have the same shape; got {x.shape} and {box.shape}. Build the region "
            "around this example."
        )
    own = as_class(label)
    if own.ndim:
        raise ValueError(f"Got labels of shape {own.shape}; expected one label.")
    logits = jax.eval_shape(f, jax.ShapeDtypeStruct(x.shape, x.dtype))
    if len(logits.shape) != 1 or logits.shape[0] < 2:
        raise ValueError(f"f returns shape {logits.shape}; expected the logits of one example, at least 2.")
    if not 0 <= int(own) < logits.shape[0]:
        raise ValueError(f"The label is {label}; expected 0..{logits.shape[0] - 1}. Number the classes from 0.")
    if not bool(region.contains(x, float(1e-6 * (1 + jnp.max(jnp.abs(x)))))):
        raise ValueError("The example lies outside of the region. Build the region around this example.")
    return logits.shape[0]


def _limits(
    start: float, timeout: float | int, options: Options, progress: Callable[[Progress], None] | None
) -> Limits:
    memory = int(options.max_memory * _GIBIBYTE)
    return Limits(start + timeout, options.max_domains, memory, progress or (lambda progress: None), start)


def _verdict(outcome: Outcome, start: float) -> Verdict:
    point = None if outcome.witness is None else outcome.witness.point
    seconds = time.monotonic() - start
    return Verdict(outcome.status, point, float(outcome.margin), outcome.domains, seconds, outcome.reason)


def _problems(f: Partial, unsafe_sets: Sequence[UnsafeSet]) -> list[Problem]:
    """One for each box and number of rows."""
    groups: dict[tuple[bytes, bytes, int], list[UnsafeSet]] = {}
    for one in unsafe_sets:
        key = (np.asarray(one.lower, np.float64).tobytes(), np.asarray(one.upper, np.float64).tobytes())
        groups.setdefault((*key, len(one.offsets)), []).append(one)
    problems = []
    for group in groups.values():
        ends = (np.asarray(group[0].lower, np.float64), np.asarray(group[0].upper, np.float64))
        if not np.all(np.isfinite(ends)) or not np.all(ends[0] <= ends[1]):
            raise ValueError(
                "A box of an unsafe set is not finite, or its lower end exceeds the upper one. Correct it."
            )
        dtype = jax.dtypes.canonicalize_dtype(np.float64)
        region = Box(jnp.asarray(rounded_down(ends[0], dtype)), jnp.asarray(-rounded_down(-ends[1], dtype)))
        weights = np.stack([np.asarray(one.weights, np.float64) for one in group])
        offsets = np.stack([np.asarray(one.offsets, np.float64) for one in group])
        outputs = math.prod(jax.eval_shape(f, region.lower).shape)
        if weights.shape[-1] != outputs:
            raise ValueError(f"weights have {weights.shape[-1]} columns; f has {outputs} outputs. Give one for each.")
        problems.append(Problem(f, region, Specification(weights, offsets), ends))
    return problems


def _together(found: Sequence[Outcome]) -> Outcome:
    """The worst of several."""
    order = (Status.FALSIFIED, Status.UNKNOWN, Status.TIMEOUT, Status.VERIFIED)
    worst = min(found, key=lambda outcome: order.index(outcome.status))
    margin = worst.margin if worst.witness else min(outcome.margin for outcome in found)
    return worst._replace(margin=margin, domains=sum(outcome.domains for outcome in found))


def _decide(
    problem: Problem,
    limits: Limits,
    options: Options,
    suspects: Sequence[ArrayLike],
    state_file: str | os.PathLike | None,
) -> Outcome:
    """One problem: attack, bounds, branches."""
    region = problem.region
    graph = traced(problem.f, region)
    for number, suspect in enumerate(suspects):
        witness = confirmed(problem, np.asarray(suspect)[None])
        if witness is not None:
            why = "a given point is misclassified" if number else "the example itself is misclassified"
            return Outcome(Status.FALSIFIED, witness, witness.margin, 0, why)
    if not isinstance(graph.output, Node):
        return _constant(problem)
    key = jax.random.key(options.seed)
    witness = attack(problem, key, options.attack_steps, options.attack_restarts)
    if witness is not None:
        return Outcome(Status.FALSIFIED, witness, witness.margin, 0, "the attack found a counterexample")
    if limits.exceeded(0, 0):
        return Outcome(Status.TIMEOUT, None, -math.inf, 0, limits.exceeded(0, 0))
    by_inputs = _splits_inputs(region, graph, options.branching)
    how = "inputs" if by_inputs else "activations, boxes of parts"
    saved = None if state_file is None else Saved(state_file, problem, how)
    if by_inputs:
        return split_inputs(problem, limits, options.boxes, saved)
    return _by_activations(problem, graph, limits, options, saved)


def _constant(problem: Problem) -> Outcome:
    """A function that does not depend on its input has one value."""
    point = np.asarray(problem.region.project(problem.region.bounding_box().center))
    witness = confirmed(problem, point[None])
    if witness is not None:
        return Outcome(Status.FALSIFIED, witness, witness.margin, 1, "f does not depend on its input")
    value = float(np.min(evaluated(problem, point)))
    status = Status.VERIFIED if np.isfinite(value) and value > 0 else Status.UNKNOWN
    return Outcome(status, None, value, 1, "f does not depend on its input")


def _splits_inputs(region: Region, graph: Graph, wanted: Branching) -> bool:
    boxed = is_box(region)
    if wanted == "inputs" and not boxed:
        raise ValueError("branching='inputs' needs a box or an l_inf ball as region. Use 'auto' or 'activations'.")
    if wanted != "auto":
        return wanted == "inputs"
    box = region.bounding_box()
    return boxed and int(np.sum(np.asarray(box.lower < box.upper))) <= _FEW_INPUTS and bool(graph.equations)


def _by_activations(problem: Problem, graph: Graph, limits: Limits, options: Options, saved: Saved | None) -> Outcome:
    stuck = ", ".join(sorted({equation.name for equation in others(graph)}))
    root = jax.block_until_ready(root_bounds(problem.f, problem.region))
    numbers = range(len(problem.specifications.offsets))
    settings = Settings(options.batch_size, options.steps, options.candidates)
    if stuck and not branching(graph):
        lower = np.asarray(_optimised(problem.f, problem.region, problem.rounded))
        numbers = [number for number in numbers if not 0 < np.max(lower[number]) < math.inf]
        if not numbers:
            return Outcome(Status.VERIFIED, None, float(np.min(np.max(lower, axis=1))), 1, "bounds of the whole region")
    return search(problem, root, limits, settings, stuck=stuck, numbers=numbers, saved=saved)


@jax.jit
def _optimised(f: Partial, region: Region, specifications: Specification) -> jax.Array:
    """Lower bounds of all rows by alpha-CROWN, `[specifications, rows]`."""

    def rows(x: jax.Array) -> jax.Array:
        return all_rows(f, specifications, x).ravel()

    lower = alpha_crown(rows, lower_only=True)(region).lower
    return lower.reshape(specifications.offsets.shape)
