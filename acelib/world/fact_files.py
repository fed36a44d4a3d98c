"""Facts from files of published benchmarks, each with a prompt that ends right before the object.

* LAMA's T-REx (Petroni et al., 2019): ``TREx/P36.jsonl`` holds a fact a line, ``relations.jsonl``
  beside it or above it a template for each relation. A causal model is asked for what comes next,
  so that a template must end in the object.
* ParaRel (Elazar et al., 2021): a folder, read by ``paraphrases.of_pararel``.
* Any file of ``benchmarks``: what its edits would change, as it is before them.
"""

from __future__ import annotations

from pathlib import Path

from ..records import Fact, is_text, quoted
from .benchmarks import read_edit_cases
from .json_records import Record, records_of
from .paraphrases import OBJECT, SUBJECT, of_pararel
from .world import World

TEMPLATES = "relations.jsonl"
LEAST = 2  #: wordings that ParaRel's relations must have; the first is asked


def read_facts(path: str | Path, world: World) -> list[tuple[Fact, str]]:
    """The facts of a file, or of ParaRel's folder, and their prompts, each once.

    Raises ValueError for a file that cannot be read or holds no fact with its object, and, naming
    record and field, for one that is wrong.
    """
    path = Path(path)
    if path.is_dir():
        found = [(one.fact, one.prompts[0]) for one in of_pararel(path, LEAST)]
    else:
        records = records_of(path)
        lama = "sub_label" in records[0].values
        found = _lama(path, records) if lama else _before_edits(path, world)
    if not found:
        raise ValueError(f"{path.name} holds no fact with its object; edits need a true one")
    return list(dict.fromkeys(found))


def _lama(path: Path, records: list[Record]) -> list[tuple[Fact, str]]:
    """Facts of T-REx."""
    templates = _templates(path)
    found = []
    for record in records:
        relation = record.values.get("predicate_id", path.stem)
        subject, answer = (_text(record, field) for field in ("sub_label", "obj_label"))
        if relation not in templates:
            raise ValueError(
                f"{record.place}: field 'predicate_id' must be a relation of {TEMPLATES} "
                f"({', '.join(templates)}), got {quoted(relation)}"
            )
        head = templates[relation]
        if not head.endswith(OBJECT):
            raise ValueError(
                f"{record.place}: the template of {relation}, {quoted(head)}, does not end in "
                f"{OBJECT}; a causal model cannot be asked with it"
            )
        prompt = head.removesuffix(OBJECT).rstrip().replace(SUBJECT, subject)
        found.append((Fact(subject, relation, answer), prompt))
    return found


def _templates(path: Path) -> dict[str, str]:
    """Template by relation, without the period, of the nearest ``relations.jsonl``."""
    places = [folder / TEMPLATES for folder in (path.absolute().parent, path.absolute().parents[1])]
    there = [place for place in places if place.is_file()]
    if not there:
        raise ValueError(
            f"{path.name} holds LAMA's facts, whose templates are in {TEMPLATES}: it must lie "
            "beside the file, or in the folder above"
        )
    found = {}
    for record in records_of(there[0]):
        relation, template = (_text(record, field) for field in ("relation", "template"))
        if template.count(SUBJECT) != 1 or template.count(OBJECT) != 1:
            raise ValueError(
                f"{record.place}: field 'template' must hold {SUBJECT} and {OBJECT} once each, got "
                f"{quoted(template)}"
            )
        found[relation] = template.removesuffix(".").rstrip()
    return found


def _before_edits(path: Path, world: World) -> list[tuple[Fact, str]]:
    """What edits would change, of those that say what is true before."""
    return [
        (Fact(edit.subject, edit.relation, edit.target_true), edit.text)
        for case in read_edit_cases(path, world)
        for edit in case.edits
        if edit.target_true
    ]


def _text(record: Record, field: str) -> str:
    value = record.values.get(field)
    if not is_text(value) or not value.strip():
        raise ValueError(
            f"{record.place}: field {field!r} must be a non-empty text, got {quoted(value)}"
        )
    return value.strip()
