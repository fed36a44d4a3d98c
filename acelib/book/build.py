"""The built book: of the committed chapters, or with the chapters of a run in their place."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from ..provenance import ROOT
from .contents import run_folder

MINE = "This page is from the run **{name}**."
COMMITTED = "This page is the committed book's. It says nothing of the run **{name}**."
TOLD = ("intro.md", "found.md")  #: pages in which the committed rows are summed up


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
            try:
                marked = _marked(chapter.read_text("utf-8"), name)
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ValueError(f"{chapter} cannot be read as a notebook") from None
            (source / "notebooks" / chapter.name).write_text(marked, "utf-8")
        # What other pages say is of the committed rows, and says so.
        for other in sorted((source / "notebooks").glob("*.ipynb")):
            if other.name not in {chapter.name for chapter in chapters}:
                other.write_text(_marked(other.read_text("utf-8"), name, COMMITTED), "utf-8")
        for page in (source / "book" / told for told in TOLD):
            title, _, rest = page.read_text("utf-8").partition("\n")
            page.write_text(f"{title}\n\n{_note(name, COMMITTED)}\n{rest}", "utf-8")
        shutil.copy(root / "_toc.yml", source)
        config = (root / "_config.yml").read_text("utf-8")
        config = config.replace("\ntitle: ", f"\ntitle: Run {name} of ", 1)
        (source / "_config.yml").write_text(config, "utf-8")
        return _built(source, root / "_build" / "runs" / name)


def _marked(notebook: str, name: str, said: str = MINE) -> str:
    """An executed chapter that says, below its first cell, whose rows it shows."""
    nb = json.loads(notebook)
    cell = {"cell_type": "markdown", "id": "run", "metadata": {}, "source": _note(name, said)}
    nb["cells"].insert(1, cell)
    return json.dumps(nb)


def _note(name: str, said: str) -> str:
    return f":::{{admonition}} Run {name}\n:class: warning\n\n{said.format(name=name)}\n:::\n"


def _built(source: Path, output: Path) -> Path:
    """Jupyter Book of ``source`` in ``output/_build/html``; every warning is an error."""
    main = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
    options = ["--path-output", str(output), "--quiet", "-W", "-n", "--keep-going"]
    done = subprocess.run([sys.executable, "-c", main, "build", str(source), *options])
    if done.returncode:
        raise BuildError("the book was not built; its warnings are above")
    return output / "_build" / "html" / "index.html"
