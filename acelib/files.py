"""A file is there as a whole or as it was: what every file of a run is written through."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A hidden path beside ``path`` to write to; at the end it is moved onto ``path``, unless an
    exception left the block.

    The folder is made. Nothing of a write that failed stays. ``path`` is always the file before or
    the file after, never half of one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
