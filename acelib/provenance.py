"""What a number depends on: hashes of the library's code and of the data, versions, machine.

Only what can change a number counts: comments, docstrings and blank lines do not, nor do the modules that only start or time
things. A chapter depends on the whole library; a row of an experiment on the modules that made it and all that they import.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import platform
import subprocess
import tokenize
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Iterable

ROOT = Path(
    os.environ.get("ACELIB_ROOT") or Path(__file__).resolve().parent.parent
)  #: the repository
MACHINERY = (
    "cli.py",
    "console.py",
    "chapters.py",
    "provenance.py",
    "speed.py",
)  #: library files that no number depends on
PACKAGES = ("acelib", "torch", "transformers", "nnsight", "numpy", "pandas")


def code(source: str) -> str:
    """Python ``source`` without comments, docstrings and blank lines. Raises SyntaxError if it is no Python."""
    lines, dropped = source.splitlines(), set()
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and ast.get_docstring(node, clean=False) is not None
        ):
            text = node.body[0]
            if not lines[text.lineno - 1][
                : text.col_offset
            ].strip():  # not on the line of its "def"
                dropped.update(range(text.lineno - 1, text.end_lineno))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, column = token.start[0] - 1, token.start[1]
        if token.type == tokenize.COMMENT:
            lines[row] = lines[row][:column].rstrip()
        if token.type in (tokenize.COMMENT, tokenize.NL) and not lines[row].strip():
            dropped.add(row)
    return "\n".join(line for i, line in enumerate(lines) if i not in dropped)


def digest(parts: Iterable[str | bytes]) -> str:
    """Sixteen hex digits that change with any part or with their order."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part if isinstance(part, bytes) else part.encode()).digest())
    return whole.hexdigest()[:16]


@cache
def library_hash(root: Path = ROOT, of: tuple[str, ...] = ()) -> str:
    """Hash of the library's code as it was when first asked in this process: of all of it, or of some modules and what they import.

    of: dotted names, ("acelib.study.experiments", "acelib.editors.ace"); all modules if none. Names outside the library count for nothing.
    """
    files = _reached(root, of) if of else (root / "acelib").rglob("*.py")
    return digest(
        part
        for path in sorted(files)
        if path.name not in MACHINERY
        for part in (path.relative_to(root).as_posix(), code(path.read_text("utf-8")))
    )


def _reached(root: Path, names: Iterable[str]) -> set[Path]:
    """The library's files that importing ``names`` can import, wherever in a file an import stands; machinery is not followed."""
    found, todo = set(), list(names)
    while todo:
        name = todo.pop()
        stem = root.joinpath(*name.split("."))
        path = next(
            (path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()),
            None,
        )
        if (
            not name.startswith("acelib.")
            or path is None
            or path in found
            or path.name in MACHINERY
        ):
            continue
        found.add(path)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                todo += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = importlib.util.resolve_name(
                    "." * node.level + (node.module or ""), package
                )
                todo += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return found


@cache
def data_hash(root: Path = ROOT) -> str:
    """Hash of ``data/**`` as it was when first asked in this process: all but ``*.md``, hidden files and the state of a training."""
    files = sorted(
        path
        for path in (root / "data").rglob("*")
        if path.is_file()
        and path.suffix != ".md"
        and path.stem != "state"
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    return digest(
        part for path in files for part in (path.relative_to(root).as_posix(), path.read_bytes())
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit(root: Path = ROOT) -> str:
    """Short commit, with "+" where tracked files differ from it; empty outside git."""

    def git(*words: str) -> str:
        return subprocess.run(
            ("git", "-C", str(root), *words), capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + "+" * bool(
            git("status", "--porcelain", "--untracked-files=no")
        )
    except (OSError, subprocess.CalledProcessError):
        return ""


def default_device():
    """Where models go unless told: the accelerator if there is one that has float64, which second moments and closed forms need; else the CPU."""
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None or found.type == "mps" else found


def circumstances() -> dict:
    """Where and when: device, threads, machine, date, versions, commit."""
    import torch

    return {
        "device": str(default_device()),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
