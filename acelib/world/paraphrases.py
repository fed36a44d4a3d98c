"""Facts asked in several wordings: those of the world, or of ParaRel's files.

ParaRel keeps a relation in two files of one name, a JSON object a line: patterns with a place for
subject and object, ``graphs_json/P36.jsonl`` ({"pattern": "The capital of [X] is [Y]."}), and
facts, ``trex_lms_vocab/P36.jsonl`` ({"sub_label": "France", "obj_label": "Paris"}). A causal model
is asked for what comes next, so that only patterns that end in the object are wordings here.
Source: Elazar et al. (2021), ParaRel.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..records import Fact, is_text, quoted
from .world import World

PATTERNS, FACTS = "graphs_json", "trex_lms_vocab"  #: folders of ParaRel
SUBJECT, OBJECT = "[X]", "[Y]"


@dataclass(frozen=True)
class Reworded:
    """A fact and the prompts that ask for it, each of which ends right before the object.

    Raises ValueError for a fact without subject or answer, or for fewer than two different prompts.
    """

    fact: Fact
    prompts: tuple[str, ...]
    group: str  #: that figures show it in: a category of the world, "other", or a relation

    def __post_init__(self):
        for name in ("subject", "object"):
            text = getattr(self.fact, name)
            if not is_text(text) or not text.strip():
                raise ValueError(f"{name} of {quoted(self.fact)} is empty; a fact has an answer")
        if len({*self.prompts}) < max(2, len(self.prompts)):
            raise ValueError(
                f"{quoted(self.fact.subject)}, {self.fact.relation}: {len({*self.prompts})} "
                f"different wordings of {len(self.prompts)}; at least two are needed, all different"
            )

    @property
    def name(self) -> str:
        """What rows call it."""
        return f"{self.fact.subject} | {self.fact.relation}"


def of_world(world: World, k: int) -> list[Reworded]:
    """All facts of a world in the first ``k`` wordings of their relation.

    Raises ValueError for fewer than two wordings, or more than every relation has.
    """
    most = min(len(relation.cloze) for relation in world.relations.values())
    if not 2 <= k <= most:
        raise ValueError(f"{k} wordings of a fact are asked for; allowed: 2 to {most}")
    found = []
    for fact in world.facts:
        relation = world.relations[fact.relation]
        prompts = tuple(text.replace("{}", fact.subject) for text in relation.cloze[:k])
        found.append(Reworded(fact, prompts, relation.category or "other"))
    return found


def of_pararel(folder: str | Path, k: int) -> list[Reworded]:
    """All facts of ParaRel in the first ``k`` wordings of their relation.

    folder: with the folders ``graphs_json`` and ``trex_lms_vocab``. Relations with fewer wordings
    that end in the object are left out.
    Raises ValueError for fewer than two wordings, a folder without such a relation, or, naming
    file, line and field, for a line that is none of ParaRel's.
    """
    if k < 2:
        raise ValueError(f"{k} wordings of a fact are asked for; at least two are needed")
    folder, found = Path(folder), list[Reworded]()
    for path in sorted((folder / PATTERNS).glob("*.jsonl")):
        wordings = _wordings(path)[:k]
        facts = folder / FACTS / path.name
        if len(wordings) < k or not facts.exists():
            continue
        for where, line in _lines(facts):
            subject, answer = (_text(line, name, where) for name in ("sub_label", "obj_label"))
            prompts = tuple(text.replace(SUBJECT, subject) for text in wordings)
            found.append(Reworded(Fact(subject, path.stem, answer), prompts, path.stem))
    if not found:
        raise ValueError(
            f"{folder}: no relation has facts in {FACTS}/ and {k} wordings in {PATTERNS}/ that end "
            "in the object"
        )
    return list({one.name: one for one in found}.values())


def answers_of(pool: Sequence[Reworded], relation: str) -> list[str]:
    """The different answers of a relation, in order."""
    answers = (one.fact.object for one in pool if one.fact.relation == relation)
    return list(dict.fromkeys(answers))


def _wordings(path: Path) -> list[str]:
    """The different patterns of a file that end in the object, up to it."""
    texts = []
    for where, line in _lines(path):
        pattern = _text(line, "pattern", where).strip().removesuffix(".").rstrip()
        if pattern.count(SUBJECT) != 1 or pattern.count(OBJECT) != 1:
            raise ValueError(
                f"{where}: field 'pattern' must hold {SUBJECT} and {OBJECT} once each, got "
                f"{quoted(pattern)}"
            )
        if pattern.endswith(OBJECT):
            texts.append(pattern.removesuffix(OBJECT).rstrip())
    return list(dict.fromkeys(texts))


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file, and where each stands."""
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{path.name}, line {number}"
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError(f"{where}: no JSON: {quoted(line)}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{where}: must be an object, got {quoted(values)}")
        yield where, values


def _text(line: dict[str, Any], name: str, where: str) -> str:
    value = line.get(name)
    if not is_text(value) or not value.strip():
        raise ValueError(f"{where}: field {name!r} must be a text, got {quoted(value)}")
    return value.strip()
