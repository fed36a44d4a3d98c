"""Formulas without network: MathJax, out of a package of the registry, comes with the book."""

from importlib.util import find_spec
from pathlib import Path

from sphinx.errors import ExtensionError
from sphinx.util.fileutil import copy_asset

PACKAGE = "sphinx-mathjax-offline"
FILE = "tex-svg.js"  #: draws glyphs itself, and needs no other file


def source() -> Path:
    """MathJax in its package. Raises ExtensionError if that is not installed."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ExtensionError(f"{PACKAGE} is not installed; it comes with acelib[book]")
    return Path(spec.origin).parent / "static" / "mathjax" / FILE


def copy(app, exception):
    if exception is None and app.builder.format == "html":
        copy_asset(str(source()), str(Path(app.outdir) / "_static" / "mathjax"))


def setup(app):
    source()
    app.config.mathjax_path = f"mathjax/{FILE}"
    app.connect("build-finished", copy)
    return {"version": "1", "parallel_read_safe": True}
