"""Parameters of chapters: their defaults stand in the notebook's tagged cell and nowhere else."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path

from ..provenance import ROOT


def chapter_of(name: str, root: Path = ROOT) -> str:
    """The chapter that an experiment or a check belongs to: the longest notebook name that ``name``
    begins with, "03_ace" of "03_ace_metrics"; "" if there is none.
    """
    stems = [path.stem for path in (root / "notebooks").glob("*.ipynb")]
    return max((stem for stem in stems if f"{name}_".startswith(f"{stem}_")), key=len, default="")


def defaults(chapter: str, root: Path = ROOT) -> dict[str, object]:
    """Name -> value of the parameters of a chapter, as its notebook in the repository has them.

    Raises ValueError if a default is not a plain value; OSError if there is no such notebook.
    """
    notebook = json.loads((root / "notebooks" / f"{chapter}.ipynb").read_text("utf-8"))
    values: dict[str, object] = {}
    for cell in notebook["cells"]:
        if "parameters" not in cell["metadata"].get("tags", []):
            continue
        for node in ast.parse("".join(cell["source"])).body:
            if isinstance(node, ast.AnnAssign) and node.value:
                values[ast.unparse(node.target)] = _plain(chapter, node.target, node.value)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    values[ast.unparse(target)] = _plain(chapter, target, node.value)
    return values


def differing(values: Mapping[str, object], expected: Mapping[str, object]) -> list[str]:
    """Names whose value is not the expected one; a tuple may stand for a list."""
    return [name for name, value in expected.items() if not _same(values.get(name), value)]


def _same(one: object, other: object) -> bool:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _plain(chapter: str, target: ast.expr, value: ast.expr) -> object:
    try:
        return ast.literal_eval(value)
    except ValueError:
        raise ValueError(
            f"{chapter}: the default of {ast.unparse(target)} is no plain value: "
            f"{ast.unparse(value)}"
        ) from None
