"""What a number depends on: hashes of the code and of the data, versions, machine.

Code counts as its syntax tree: layout, comments, docstrings and the order of imports can change no
number. A row of an experiment depends on the modules that compute it and on all that they import,
and so does a chapter of the book.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from itertools import groupby
from pathlib import Path

#: the repository
ROOT = Path(os.environ.get("ACELIB_ROOT") or Path(__file__).resolve().parent.parent)
PACKAGES = ("acelib", "torch", "transformers", "nnsight", "numpy", "pandas")

#: Modules that keep records of numbers and can change none: nobody depends on them.
APART = (
    "acelib.provenance",
    "acelib.files",
    "acelib.study.store",
    "acelib.study.rows",
)


def code(source: str) -> str:
    """The syntax tree of Python ``source`` as text, the same in every layout and in every version
    of Python.

    Comments and docstrings are left out; imports that follow each other are in alphabetical order.
    Raises SyntaxError if ``source`` is no Python.
    """
    return _text(ast.parse(source))


def _text(part) -> str:
    """A node as "Name(field=..., ...)", without empty fields: versions of Python differ in them."""
    if isinstance(part, list):
        return f"[{', '.join(_in_order(part))}]"
    if not isinstance(part, ast.AST):
        return repr(part)
    fields = dict(ast.iter_fields(part))
    if _has_docstring(part):
        fields["body"] = fields["body"][1:]
    kept = [
        f"{name}={_text(value)}"
        for name, value in fields.items()
        if name not in ("ctx", "kind", "type_comment")
        and (value not in (None, []) or isinstance(part, ast.Constant))
    ]
    return f"{type(part).__name__}({', '.join(kept)})"


def _has_docstring(node: ast.AST) -> bool:
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return isinstance(node, owners) and ast.get_docstring(node, clean=False) is not None


def _in_order(nodes: list) -> Iterator[str]:
    """The texts of nodes; imports that follow each other are sorted."""
    for are_imports, run in groupby(
        nodes, lambda node: isinstance(node, (ast.Import, ast.ImportFrom))
    ):
        texts = map(_text, run)
        yield from sorted(texts) if are_imports else texts


def digest(parts: Iterable[str | bytes]) -> str:
    """Sixteen hex digits that change with any part or with their order."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part if isinstance(part, bytes) else part.encode()).digest())
    return whole.hexdigest()[:16]


@cache
def code_hash(modules: tuple[str, ...], root: Path = ROOT) -> str:
    """Hash of modules and of all that they import, as it was when first asked in this process.

    modules: dotted names, ("acelib.study.judge", "acelib.editors.ace"). An import counts wherever
    in a file it stands; names outside the library, and ``APART``, count for nothing.
    """
    return digest(
        part
        for path in sorted(reached(modules, root))
        for part in (path.relative_to(root).as_posix(), code(path.read_text("utf-8")))
    )


def imports(source: str, package: str = "") -> list[str]:
    """Dotted names of all that Python ``source`` may import: of modules, and of what is taken from
    them.

    package: where relative imports start.
    """
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return names


def module_file(name: str, root: Path = ROOT) -> Path | None:
    """The file of a module of the library, by its dotted name; None for any other name."""
    stem = root.joinpath(*name.split("."))
    files = (stem.with_suffix(".py"), stem / "__init__.py")
    return next((path for path in files if name.startswith("acelib.") and path.is_file()), None)


def reached(modules: Iterable[str], root: Path = ROOT) -> set[Path]:
    """The library's files that importing ``modules`` can import, but for ``APART``, which is not
    followed either.
    """
    paths, todo = set(), list(modules)
    while todo:
        name = todo.pop()
        path = None if name in APART else module_file(name, root)
        if path is None or path in paths:
            continue
        paths.add(path)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        todo += imports(path.read_text("utf-8"), package)
    return paths


@cache
def data_hash(root: Path = ROOT) -> str:
    """Hash of ``data/**`` as it was when first asked in this process: all but ``*.md``, hidden
    files and the state of a training.
    """
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
    """Where models go unless told: the accelerator if there is one that has float64, which second
    moments and closed forms need; else the CPU.
    """
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
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
