"""Which chapters there are, and their parameters: read before anything heavy is imported."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..provenance import ROOT
from ..records import quoted
from ..study.parameters import chapters, in_place_of


def known(root: Path = ROOT) -> dict[str, Path]:
    """Chapters by name, in order: {"01_storage": .../notebooks/01_storage.ipynb, ...}."""
    return {name: root / "notebooks" / f"{name}.ipynb" for name in chapters(root)}


def strays(root: Path = ROOT) -> list[Path]:
    """Notebooks that lie among the chapters and are none."""
    return sorted({*(root / "notebooks").glob("*.ipynb")} - {*known(root).values()})


def find(name: str, root: Path = ROOT) -> Path:
    """The source of chapter ``name`` (with or without folder and suffix).

    Raises ValueError listing the known chapters.
    """
    there = known(root)
    if (stem := Path(name).stem if name.endswith(".ipynb") else name) not in there:
        raise ValueError(
            f"unknown notebook {quoted(name)}; known: "
            f"{', '.join(there) or 'none, is this a clone of the repository?'}"
        )
    return there[stem]


def parameters(notebook: Path) -> dict[str, dict[str, str]]:
    """The parameters of a chapter: {name: {"default": source text, "help": comment}}; none if no
    cell is tagged "parameters".

    Raises ValueError if there is no such notebook, or it cannot be read.
    """
    try:
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
        tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
        return {
            name: parameter
            for cell in tagged
            for name, parameter in _assigned("".join(cell["source"]))
        }
    except Exception as error:  # of any kind, if it is no notebook
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{notebook} cannot be read as a notebook: {why}") from None


def _assigned(source: str) -> list[tuple[str, dict[str, str]]]:
    """What a cell assigns, and the comments behind it."""
    lines = io.StringIO(source).readline
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(lines)
        if token.type == tokenize.COMMENT
    }
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            said = comments.get(node.end_lineno or node.lineno, "")
            text = ast.get_source_segment(source, node.value) or ""
            found.append((ast.unparse(target), {"default": text, "help": said}))
    return found


def checked_parameters(notebook: Path, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """``chosen`` with every value in the type of its default.

    Raises ValueError naming an unknown parameter, or one whose value cannot stand in place of its
    default (``in_place_of``); or if the notebook cannot be read or tags no parameters.
    """
    declared, result = parameters(notebook), {}
    if chosen and not declared:
        raise ValueError(f"{notebook.stem}: no cell is tagged 'parameters'")
    for key, value in chosen.items():
        if key not in declared:
            listed = ", ".join(
                f"{name} = {parameter['default']}" for name, parameter in declared.items()
            )
            raise ValueError(f"{notebook.stem} has no parameter {quoted(key)}; known: {listed}")
        try:
            default = ast.literal_eval(declared[key]["default"])
        except (ValueError, SyntaxError):
            default = None
        try:
            result[key] = in_place_of(default, value, declared[key]["help"])
        except ValueError as error:
            raise ValueError(f"parameter {key!r} of {notebook.stem} {error}") from None
    return result


def profile(name: str, root: Path = ROOT) -> dict[str, dict[str, Any]]:
    """Parameters of all chapters by the name of a profile in ``book/profiles.toml``: {"03_ace":
    {"n_cases": 3000}, ...}.

    Raises ValueError listing the known profiles.
    """
    known_ = tomllib.loads((root / "book" / "profiles.toml").read_text("utf-8"))
    if name not in known_:
        raise ValueError(f"unknown profile {quoted(name)}; known: {', '.join(known_)}")
    return known_[name]


def run_folder(name: str, root: Path = ROOT) -> Path:
    """Where the run ``name`` is kept: runs/<name>.

    Raises ValueError if it is not a plain folder name.
    """
    if not re.fullmatch(r"\w[\w.-]{,59}", name):
        raise ValueError(
            f"run name {quoted(name)} is not a folder name; "
            "use at most 60 letters, digits, '-', '_' and '.'"
        )
    return root / "runs" / name
