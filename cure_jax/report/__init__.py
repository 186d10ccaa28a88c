"""Results as tables and pictures."""

from cure_jax.report.certified_ranges import Perturbed, perturbed_images
from cure_jax.report.comparisons import compare_curves, trade_off
from cure_jax.report.every_norm import radius_of_every_norm
from cure_jax.report.examples import alignment_histograms, certified_subsets, margin_differences, union_diagram
from cure_jax.report.perturbed import Along, margins_along, margins_along_each
from cure_jax.report.plots import certified_against_radius, compare_methods
from cure_jax.report.summaries import Statistic, Summary, contents, headline, summarize
from cure_jax.report.tables import latex, markdown, terminal

__all__ = [
    "Along",
    "Perturbed",
    "Statistic",
    "Summary",
    "alignment_histograms",
    "certified_against_radius",
    "certified_subsets",
    "compare_curves",
    "compare_methods",
    "contents",
    "headline",
    "latex",
    "margin_differences",
    "margins_along",
    "margins_along_each",
    "markdown",
    "perturbed_images",
    "radius_of_every_norm",
    "summarize",
    "terminal",
    "trade_off",
    "union_diagram",
]
