"""The built book: of the committed chapters, or with the chapters of a run in their place."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from ..provenance import ROOT
from .contents import run_folder


class BuildError(RuntimeError):
    """Jupyter Book stopped, or warned; it has said why."""


def build(root: Path = ROOT) -> Path:
    """Build the committed chapters; returns the first page. Raises BuildError."""
    return _built(root, root)


def build_run(name: str, root: Path = ROOT) -> Path:
    """Build the book with the chapters of the run ``name``; returns the first page.

    Raises ValueError that lists the runs if this one holds no executed chapter; BuildError.
    """
    chapters = sorted(run_folder(name, root).glob("*.ipynb"))
    if not chapters:
        known = sorted({path.parent.name for path in root.glob("runs/[!.]*/*.ipynb")})
        raise ValueError(
            f"runs/{name} holds no executed chapter; known runs: {', '.join(known) or 'none'}"
        )
    with TemporaryDirectory() as folder:
        source = Path(folder)
        for part in ("book", "notebooks"):
            shutil.copytree(root / part, source / part)
        for chapter in chapters:
            shutil.copy(chapter, source / "notebooks")
        shutil.copy(root / "_toc.yml", source)
        config = (root / "_config.yml").read_text("utf-8")
        config = config.replace("\ntitle: ", f"\ntitle: Run {name} of ", 1)
        (source / "_config.yml").write_text(config, "utf-8")
        return _built(source, root / "_build" / "runs" / name)


def _built(source: Path, output: Path) -> Path:
    """Jupyter Book of ``source`` in ``output/_build/html``; every warning is an error."""
    main = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
    options = ["--path-output", str(output), "-W", "-n", "--keep-going"]
    done = subprocess.run([sys.executable, "-c", main, "build", str(source), *options])
    if done.returncode:
        raise BuildError("the book was not built; its warnings are above")
    return output / "_build" / "html" / "index.html"
