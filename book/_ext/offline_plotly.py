"""Figures to pick from without network: plotly, out of its package, comes once with the book."""

from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from sphinx.errors import ExtensionError
from sphinx.util.fileutil import copy_asset

FILE = "plotly.min.js"
PLUGIN = "acelib_picks"  #: the renderer, as acelib's package names it


def source() -> Path:
    """plotly's script in its package. Raises ExtensionError if that is not installed."""
    spec = find_spec("plotly")
    if spec is None or spec.origin is None:
        raise ExtensionError("plotly is not installed; it comes with acelib[book]")
    return Path(spec.origin).parent / "package_data" / FILE


def copy(app, exception):
    if exception is None and app.builder.format == "html":
        copy_asset(str(source()), str(Path(app.outdir) / "_static" / "plotly"))


def setup(app):
    source()
    if PLUGIN not in entry_points(group="myst_nb.mime_renderers").names:
        raise ExtensionError("acelib is installed without its renderer of figures; install it anew")
    app.connect("build-finished", copy)
    return {"version": "1", "parallel_read_safe": True}
