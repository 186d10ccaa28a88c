"""Results as tables and pictures."""

from cure_jax.report.plots import certified_against_radius, compare_methods
from cure_jax.report.tables import Statistic, Summary, latex, markdown, summarize, terminal

__all__ = [
    "Statistic",
    "Summary",
    "certified_against_radius",
    "compare_methods",
    "latex",
    "markdown",
    "summarize",
    "terminal",
]
