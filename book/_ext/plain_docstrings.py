"""Shows docstrings as they are written: with their own line breaks, ``code`` as code, no markup."""

import re

LITERAL = re.compile(r"(``[^`\s](?:[^`]*[^`\s])?``)")


def escaped(line: str) -> str:
    parts = LITERAL.split(line)
    return "".join(
        rf"\ {part}\ " if i % 2 else re.sub(r"([\\*`|_])", r"\\\1", part)
        for i, part in enumerate(parts)
    )


def as_line_blocks(app, what, name, obj, options, lines):
    lines[:] = [f"| {escaped(line)}" if line.strip() else "" for line in lines] + [""]


def setup(app):
    app.connect("autodoc-process-docstring", as_line_blocks)
    return {"version": "1", "parallel_read_safe": True}
