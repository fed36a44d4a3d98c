"""``{front} sentences``, ``figure``, ``table``: what was found, from the rows that ship."""

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from acelib.book import front
from acelib.study.sentences import Text


class Front(SphinxDirective):
    required_arguments = 1

    def run(self):
        rows = front.shipped()
        return getattr(self, self.arguments[0])(rows)

    def _said(self, text, node):
        self.state.nested_parse(StringList(text.splitlines(), "front"), 0, node)
        return node

    def sentences(self, rows):
        return self._said(front.sentences(rows), nodes.container()).children

    def figure(self, rows):
        text = Text("front")
        label = " ".join(text.render("alt").split())
        caption = self._said(text.render("figure"), nodes.container())
        html = ""
        for form in ("wide", "narrow"):  # of which the page shows one, by its width
            drawn = front.svg(rows, narrow=form == "narrow")
            drawn = drawn.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
            html += f'<div class="front-figure {form}">{drawn}</div>'
        raw = nodes.raw("", html, format="html")
        return [raw, nodes.container("", *caption.children, classes=["front-caption"])]

    def table(self, rows):
        html = f'<div class="cell_output">{front.table(rows).to_html()}</div>'
        return [nodes.raw("", html, format="html")]


def setup(app):
    app.add_directive("front", Front)
    return {"version": "1", "parallel_read_safe": True}
