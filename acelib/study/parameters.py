"""Parameters of chapters: their defaults stand in the notebook's tagged cell and nowhere else."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from math import inf, ulp
from pathlib import Path
from sys import float_info
from typing import Any

from ..provenance import ROOT
from ..records import is_text, quoted


def chapters(root: Path = ROOT) -> list[str]:
    """Names of the chapters, in order: notebooks that the table of contents lists."""
    contents = root / "_toc.yml"
    text = contents.read_text("utf-8") if contents.exists() else ""
    return re.findall(r"^[\s-]*file: notebooks/([\w.-]+?)(?:\.ipynb)?\s*$", text, re.M)


def chapter_of(name: str, root: Path = ROOT) -> str:
    """The chapter that an experiment or a check belongs to: the longest of ``chapters`` that
    ``name`` begins with, "03_ace" of "03_ace_metrics"; "" if there is none.
    """
    found = [stem for stem in chapters(root) if f"{name}_".startswith(f"{stem}_")]
    return max(found, key=len, default="")


def defaults(chapter: str, root: Path = ROOT) -> dict[str, object]:
    """Name -> value of the parameters of a chapter, as its notebook in the repository has them.

    Raises ValueError if no cell is tagged "parameters", or a default is not a plain value; OSError
    if there is no such notebook.
    """
    notebook = json.loads((root / "notebooks" / f"{chapter}.ipynb").read_text("utf-8"))
    values: dict[str, object] = {}
    tagged = [
        cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])
    ]
    if not tagged:
        raise ValueError(f"{chapter}: no cell is tagged 'parameters'")
    for cell in tagged:
        for node in ast.parse("".join(cell["source"])).body:
            if isinstance(node, ast.AnnAssign) and node.value:
                values[ast.unparse(node.target)] = _plain(chapter, node.target, node.value)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    values[ast.unparse(target)] = _plain(chapter, target, node.value)
    return values


def in_place_of(default: object, value: Any, comment: str = "") -> Any:
    """``value`` in the type of ``default``: a whole number may stand for any number.

    Numbers are greater than 0, unless the default is not or the parameter's comment says what 0
    does. Texts and lists, and what lists hold, are not empty where the default is not.
    Raises ValueError that says what is allowed.
    """
    if isinstance(default, (list, tuple)):
        words, fits = _rule(default, comment)
        words = f"a list of one or more, each {words}" if default else "a list"
        good = isinstance(value, (list, tuple)) and all(map(fits, value))
        good = good and bool(value or not default)
    else:
        words, fits = _rule([default], comment)
        good = fits(value)
    if not good:
        raise ValueError(f"must be {words} (default {default!r}), got {quoted(value)}")
    return float(value) if isinstance(default, float) else value


def _rule(some: Sequence, comment: str) -> tuple[str, Callable[[Any], bool]]:
    """What can stand in place of ``some``, in words and as a test."""
    kind = type(some[0]) if some else None
    if kind is bool:
        return "true or false", lambda one: isinstance(one, bool)
    if kind is str:
        empty = "" in some
        words = "a text" if empty else "a text that is not empty"
        return words, lambda one: is_text(one) and bool(empty or one.strip())
    if kind in (int, float):
        words = "a whole number" if kind is int else "a number"
        if min(some) < 0:
            least, words = -float_info.max, words
        elif min(some) == 0 or re.search(r"(?<![\d.,])0(?![.,]?\d)", comment):
            least, words = 0, f"{words}, 0 or more"
        else:
            least, words = ulp(0), f"{words} greater than 0"
        return words, lambda one: type(one) in (int, kind) and least <= one < inf
    return "anything", lambda one: True


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
