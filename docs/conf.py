"""The site: `sphinx-build -W docs runs/site`.

Sphinx, MyST and autodoc, as jax, flax, optax, orbax, jax_verify and auto_LiRPA have them (equinox and its family have
mkdocs): docstrings are Google's with mathematics, the documents are Markdown that reads well in a repository too, and a
warning can be made an error. Notebooks are shown with the output that they were saved with; tests/docs runs them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

import cure_jax

project = "cure_jax"
author = "The cure_jax authors"
version = release = cure_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "plain_docstrings",
    "public_names",
    "repository_links",
]
exclude_patterns = ["extensions"]
html_theme = "furo"
html_title = "cure_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]

# Notebooks are shown as they were saved.
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say shapes and meaning; signatures would be a page long
autodoc_default_options = {"members": True, "undoc-members": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_custom_sections = ["Soundness"]
