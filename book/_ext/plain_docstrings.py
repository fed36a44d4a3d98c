"""Shows docstrings as they are written: a paragraph as one, other line breaks as they are, ``code``
as code, no markup.
"""

import re

LITERAL = re.compile(r"(``[^`\s](?:[^`]*[^`\s])?``)")
FULL = 85  #: columns from where on a line was broken because it was full; the page's are 100


def escaped(line: str) -> str:
    parts = LITERAL.split(line)
    return "".join(
        rf"\ {part}\ " if i % 2 else re.sub(r"([\\*`|_])", r"\\\1", part)
        for i, part in enumerate(parts)
    )


def joined(lines):
    """Lines with those that were only wrapped put together."""
    whole, before = [], ""  # the last line as it stands in the source
    for line in lines:
        word = line.split(" ")[0]
        wrapped = before.strip() and word and len(before) + 1 + len(word) > FULL
        if wrapped:
            whole[-1] += f" {line}"
        else:
            whole.append(line)
        before = line
    return whole


def as_line_blocks(app, what, name, obj, options, lines):
    shown = joined(lines)
    lines[:] = [f"| {escaped(line)}" if line.strip() else "" for line in shown] + [""]


def setup(app):
    app.connect("autodoc-process-docstring", as_line_blocks)
    return {"version": "1", "parallel_read_safe": True}
