"""A file is there as a whole or as it was: what every file of a run is written through."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_writable(folder: str | Path, what: str) -> None:
    """Raises ValueError, naming ``what``, unless files can be written in ``folder``, or where it
    would be made.
    """
    folder = Path(folder).absolute()
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=there, buffering=0) as file:
            file.write(b"0")
    except OSError as error:
        raise ValueError(f"{what} {folder} cannot be written: {error.strerror}") from None


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
