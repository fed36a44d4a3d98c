"""Chapters: notebooks that papermill executes, with a record of everything their numbers depend on.

papermill is the only thing that writes outputs. Each executed notebook carries, in
``metadata.acelib`` and on its last cell, its provenance: parameters, hashes of its code cells, of
the library that they reach, of its sentences, of the data and of the rows that it reads; versions,
device, time; how many rows were read and how many computed. A chapter is stale when the parameters
or one of the hashes differ from today's; prose, layout, comments and docstrings may change without
making it so.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
from joblib import Parallel, delayed
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from ..files import replacing
from ..provenance import ROOT, circumstances, code, code_hash, data_hash, digest, imports
from ..study import rows
from ..study.parameters import chapter_of
from .contents import checked_parameters, find

ENVIRONMENT = {  #: what a chapter's kernel sees, under papermill and under nbval alike
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "JUPYTER_PREFER_ENV_PATH": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    # tqdm's, about widgets that pages do not use; and ours, which a chapter tells by itself
    "PYTHONWARNINGS": "ignore:IProgress not found,ignore:the second moment of layer",
    "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
}


LAST = "claims"  #: the chapter that reads what the others hand over


class ChapterError(RuntimeError):
    """A chapter stopped with an error of its own; the message says in which cell and why."""


# ---------------------------------------------------------------------- provenance


def hashes(notebook: Path, root: Path = ROOT) -> dict[str, str]:
    """Hashes of all that a notebook's outputs depend on.

    notebook: its code cells; library: the modules that they reach; text: the template of its
    sentences; data; rows: those in results/ that are the chapter's; claims: what ``LAST`` is
    handed.
    """
    cells = [
        cell.source
        for cell in nbformat.read(notebook, 4).cells
        if cell.cell_type == "code" and "injected-parameters" not in _tags(cell)
    ]
    modules = {name for cell in cells for name in imports(cell)}
    found = {
        "notebook": digest(map(code, cells)),
        "library": code_hash(tuple(sorted(modules)), root),
        "text": _text_hash(notebook.stem, root),
        "data": data_hash(root),
        "rows": _rows_hash(notebook.stem, root),
    }
    if notebook.stem == LAST:
        handed = sorted((root / "results" / "claims").glob("*.json"))
        found["claims"] = digest(path.read_bytes() for path in handed)
    return found


def _text_hash(chapter: str, root: Path) -> str:
    """Hash of the template of a chapter's sentences, if it has one."""
    template = root / "notebooks" / "text" / f"{chapter}.md.j2"
    return digest([template.read_bytes()] if template.exists() else [])


def _rows_hash(chapter: str, root: Path) -> str:
    """Hash of the rows that ship for a chapter; not of their manifests, which certifying renews."""
    return digest(
        part
        for path in sorted((root / "results").glob("*/*.jsonl"))
        if chapter_of(path.parent.name, root) == chapter
        for part in (path.relative_to(root).as_posix(), path.read_bytes().partition(b"\n")[2])
    )


def record_of(path: Path) -> dict:
    """The provenance of an executed notebook; empty if there is none or it cannot be read."""
    try:
        return dict(nbformat.read(path, 4).metadata.get("acelib", {}))
    except (OSError, ValueError, AttributeError):  # not there, no JSON, no notebook
        return {}


def stale(
    notebook: Path,
    chosen: Mapping[str, Any] | None = None,
    output: Path | None = None,
    root: Path = ROOT,
) -> list[str]:
    """Why ``output`` is not what executing ``notebook`` now would give; empty if it is.

    output: default: the notebook itself.
    """
    record = record_of(output or notebook)
    if not record:
        return ["it was never executed"]
    reasons = [
        f"the {what} changed"
        for what, now in hashes(notebook, root).items()
        if record["hashes"].get(what) != now
    ]
    return reasons + ["the parameters changed"] * (record["parameters"] != dict(chosen or {}))


def provenance_block(record: Mapping) -> str:
    """The record as a folded MyST admonition with a table."""

    def join(mapping: Mapping) -> str:
        return ", ".join(f"{key} `{value}`" for key, value in mapping.items())

    given = ", ".join(
        f"`{key} = {json.dumps(value)}`" for key, value in record["parameters"].items()
    )
    threads = f"{record['threads']} thread{'s' * (record['threads'] != 1)}"
    lines = {
        "Parameters": given or "the defaults in the parameters cell",
        **{f"Rows of {name}": text for name, text in record.get("rows", {}).items()},
        "Hashes": join(record["hashes"]),
        "Versions": join(record["versions"]),
        "Commit": f"`{record['commit']}`" if record["commit"] else "not in a git repository",
        "Machine": f"{record['device']}, {threads}, {record['machine']}",
        "Executed": f"{record['date']}, in {record['wall_time_s']:.0f} s",
    }
    table = "\n".join(
        "| {} | {} |".format(name, text.replace("|", "\\|")) for name, text in lines.items()
    )
    head = ":::{admonition} Provenance of this page\n:class: dropdown provenance"
    return f"{head}\n\n| | |\n|---|---|\n{table}\n:::"


# ---------------------------------------------------------------------- execution


def execute(
    notebook: Path,
    chosen: Mapping[str, Any] | None = None,
    output: Path | None = None,
    progress: bool = False,
    root: Path = ROOT,
) -> dict:
    """Run a chapter under papermill and write it, with its provenance, in one step to ``output``.

    chosen: parameters that differ from the defaults.   output: default: in place; rows that are
    computed then ship, in results/.   progress: show a bar, one step per cell.
    Returns the record. Raises ValueError (unknown parameter), ChapterError (a cell failed; the part
    executed is kept in ``runs/.partial``), KeyboardInterrupt. In all three cases ``output`` is as
    it was.
    """
    # 1. The hashes are of what runs, not of what stands there when it is done.
    chosen, found = checked_parameters(notebook, chosen or {}), hashes(notebook, root)
    partial = root / "runs" / ".partial" / str(os.getpid()) / notebook.name
    partial.parent.mkdir(parents=True, exist_ok=True)
    source = nbformat.read(notebook, 4)
    source.cells = [cell for cell in source.cells if "provenance" not in _tags(cell)]
    source.metadata.pop("acelib", None)
    nbformat.write(_canonical(source), partial)
    log = partial.with_suffix(".rows.jsonl")
    log.unlink(missing_ok=True)
    output = output or notebook
    environment = {rows.LOG: str(log.resolve()), rows.UPDATE: str(int(output == notebook))}
    # 2. Run it.
    start = time.perf_counter()
    with _kernel_environment(environment):
        try:
            nb = papermill.execute_notebook(
                str(partial),
                str(partial),
                dict(chosen),
                kernel_name="python3",
                cwd=str(notebook.parent.resolve()),
                progress_bar={"desc": notebook.stem} if progress else False,
                extra_arguments=["--log-level=50"],
            )
        except papermill.PapermillExecutionError as err:
            where = f"{notebook.stem} stopped in cell {err.cell_index}"
            raise ChapterError(
                f"{where}: {err.ename}: {err.evalue} (the part executed is in {partial})"
            ) from err
    seconds = round(time.perf_counter() - start, 1)
    # 3. Keep it, with all that it depends on; rows that it has computed are rows that it read.
    found["rows"] = _rows_hash(notebook.stem, root)
    record = {
        "parameters": chosen,
        "hashes": found,
        "rows": rows.log_sentences(log),
        "wall_time_s": seconds,
        **circumstances(),
    }
    nb = _captioned(_canonical(nb))
    nb.metadata["acelib"] = record
    nb.cells.append(
        new_markdown_cell(
            provenance_block(record), id="provenance", metadata={"tags": ["provenance"]}
        )
    )
    _write(nb, output)
    partial.unlink()
    log.unlink(missing_ok=True)
    with suppress(OSError):  # another chapter of this process is there
        partial.parent.rmdir()
    return record


def run(
    names: Sequence[str],
    chosen: Mapping[str, Any],
    folder: Path | None,
    force: bool = False,
    progress: bool = True,
    root: Path = ROOT,
    sizes: Mapping[str, Mapping[str, Any]] | None = None,
    jobs: int = 1,
) -> Iterator[tuple[str, dict | None]]:
    """Execute chapters into ``folder`` or in place (None).

    Yields (name, record), None for a chapter that is up to date.

    sizes: parameters by chapter (``profile``), which ``chosen``, for all chapters, overrides.
    jobs: chapters at once; ``LAST`` comes last. All names and parameters are checked before the
    first chapter starts; rerun after an interruption, it continues.
    """
    _sweep(root)
    sources = [find(name, root) for name in names]
    tasks = [
        (
            source,
            checked_parameters(source, {**(sizes or {}).get(source.stem, {}), **chosen}),
            folder / source.name if folder else source,
        )
        for source in sources
    ]
    # what the others hand over decides whether LAST is up to date: it is asked when they are done
    first, last = (
        [task for task in tasks if (task[0].stem == LAST) is late] for late in (False, True)
    )
    for batch in (first, last):
        todo = [task for task in batch if force or stale(*task, root)]
        yield from ((task[0].stem, None) for task in batch if task not in todo)
        alone = min(jobs, len(todo)) < 2

        def work(source: Path, parameters: dict, output: Path, bar: bool = progress and alone):
            return source.stem, execute(source, parameters, output, bar, root)

        if alone:
            yield from (work(*task) for task in todo)
        else:
            parallel = Parallel(jobs, return_as="generator_unordered")
            yield from parallel(delayed(work)(*task) for task in todo)


def _sweep(root: Path) -> None:
    """Remove what processes that are gone have left in ``runs/.partial``."""
    for folder in (root / "runs" / ".partial").glob("*"):
        if folder.name.isdecimal() and not psutil.pid_exists(int(folder.name)):
            shutil.rmtree(folder, ignore_errors=True)


def _tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _canonical(nb: NotebookNode) -> NotebookNode:
    """Without what differs from run to run although nothing changed: timings, paths, random cell
    ids.
    """
    nb.metadata = nbformat.from_dict(
        {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {
                "name": "python",
                "file_extension": ".py",
                "mimetype": "text/x-python",
            },
        }
    )
    for i, cell in enumerate(nb.cells):
        kept = {
            key: value
            for key, value in cell.metadata.items()
            if key not in ("papermill", "execution") and value != []
        }
        cell.metadata = nbformat.from_dict(kept)
        cell["id"] = (
            "injected-parameters" if "injected-parameters" in _tags(cell) else f"cell-{i:02d}"
        )
    nb.nbformat, nb.nbformat_minor = 4, 5
    return nb


def _captioned(nb: NotebookNode) -> NotebookNode:
    """What a figure was found to show (``Text.figure``) comes first in its caption and alt text.

    What is drawn is kept beside, in the cell's metadata "drawn", so that the next run finds it.
    """
    for cell in nb.cells:
        found = [
            output.metadata["image/png"]["alt"]
            for output in cell.get("outputs", [])
            if "alt" in output.get("metadata", {}).get("image/png", {})
        ]
        shown = cell.metadata.get("mystnb", {})
        if found and "figure" in shown:
            drawn = cell.metadata.setdefault(
                "drawn", {"caption": shown["figure"]["caption"], "alt": shown["image"]["alt"]}
            )
            shown["figure"]["caption"] = f"{found[0]} {drawn['caption']}"
            shown["image"]["alt"] = f"{found[0]} {drawn['alt']}"
    return nb


def _write(nb: NotebookNode, path: Path):
    with replacing(path) as part:
        part.write_text(nbformat.writes(nb) + "\n", "utf-8", newline="\n")


@contextmanager
def _kernel_environment(more: Mapping[str, str]):
    values = {**ENVIRONMENT, **more}
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)
