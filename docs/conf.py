"""The documentation: `make docs` builds it from these pages, the YAML files and the docstrings."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generate

project = "perceptrail"
copyright = "the perceptrail authors"  # noqa: A001  (Sphinx's name for it)
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "perceptrail"
default_role = "code"  # of names in docstrings
myst_heading_anchors = 3
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"  # docstrings say what types cannot: shapes and units
autodoc_preserve_defaults = True
suppress_warnings = ["myst.header"]  # parts of other files begin at their own level

generate.write(Path(__file__).parent / "generated")
