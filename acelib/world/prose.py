"""Natural text: paragraphs that ship, or of a file of the user's own."""

from __future__ import annotations

from pathlib import Path

from ..provenance import ROOT

PROSE = ROOT / "data" / "text" / "prose.txt"  #: English, in the public domain


def paragraphs(path: str | Path = PROSE) -> list[str]:
    """The paragraphs of a text file, as blank lines part them; their lines are joined.

    path: default, the prose that ships.
    Raises ValueError for a file that cannot be read, is no UTF-8, or holds no text.
    """
    try:
        text = Path(path).read_text("utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error.reason})") from None
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip():
            blocks[-1].append(line.strip())
        elif blocks[-1]:
            blocks.append([])
    found = [" ".join(lines) for lines in blocks if lines]
    if not found:
        raise ValueError(f"{path} holds no text")
    return found
