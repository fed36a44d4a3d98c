"""Figures to pick from on a page of the book: folded away, their data beside them, no network.

``study.picks`` makes them, the script of the book draws them when they are opened, and only then
loads plotly, which comes once with the book (``book/_ext/offline_plotly.py``).
"""

from __future__ import annotations

import html
import json

from ..study.picks import MIME


def fold(figure: dict) -> str:
    """A figure of plotly's as HTML: its title, to be opened, and its data for the script.

    figure: the output of a ``Pick``.
    """
    said = figure["layout"]["meta"]
    title, alt = (html.escape(said[name]) for name in ("title", "alt"))
    # A script ends at the first "</", wherever in a text that stands.
    data = json.dumps(figure, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return (
        f'<details class="pick"><summary>{title}</summary>\n'
        f'<div class="pick-plot" role="group" aria-label="{alt}"></div>\n'
        "<noscript>This needs JavaScript; what is above and below it does not.</noscript>\n"
        f'<script type="application/json">{data}</script>\n</details>'
    )


class PickRenderer:
    """A renderer of MyST-NB's for the outputs of ``Pick``."""

    mime_priority_overrides = (("html", MIME, 1),)

    @staticmethod
    def handle_mime(renderer, data, inline):
        """The nodes of an output; None for outputs of other kinds."""
        from docutils import nodes

        if inline or data.mime_type != MIME:
            return None
        content = data.content if isinstance(data.content, dict) else json.loads(data.string)
        return [nodes.raw("", fold(content), format="html", classes=["output"])]
