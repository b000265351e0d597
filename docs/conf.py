"""Sphinx: Python pages from docstrings, C++ pages from headers (headers.py), the rest from Markdown."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import my_ops

project = "my_ops"
author = "The my_ops authors"
copyright = author
release = version = my_ops.__version__

extensions = ["headers", "schemas", "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
exclude_patterns = ["_build"]
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["wrapped.css"]
html_title = f"my_ops {release}"
