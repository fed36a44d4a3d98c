"""Cases as files of the form in which MQuAKE-CF-3k is published: written, and read with checks.

A record is read by pydantic: each field has a check that knows in words what the field must be, and
the first one that fails becomes one sentence naming case, field, what is allowed and what is there.
Source: Zhong et al., 2023, arXiv:2305.14795.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from ..records import Case, Edit, Hop, is_text, quoted
from .json_records import fields_once
from .world import Relation, World, load_relations

# ---------------------------------------------------------------------------------------- written


def cases_to_json(cases: Sequence[Case], world: World) -> str:
    """Cases in the schema of MQuAKE-CF-3k; each rewrite also holds ``paraphrases`` and ``hops``.

    Ids fall back to names and keys.
    """

    def qid(name: str) -> str:
        return world.entities[name].qid or name if name in world.entities else name

    def pid(key: str) -> str:
        return world.relations[key].pid if key in world.relations else key

    def rewrite(edit: Edit, case: Case) -> dict:
        asked = next((hop.question for hop in case.new_hops if hop.cloze == edit.text), "")
        targets = {
            field: {"str": getattr(edit, field), "id": qid(getattr(edit, field))}
            for field in ("target_new", "target_true")
        }
        return {
            "prompt": edit.prompt,
            "relation_id": pid(edit.relation),
            **targets,
            "subject": edit.subject,
            "question": asked,
            "paraphrases": edit.paraphrases,
            "hops": edit.hops,
        }

    def triples(case: Case, chain: Sequence[tuple[str, str, str]]) -> list[list[str]]:
        return [
            [qid(subject), pid(key), qid(target)]
            for (subject, _, target), key in zip(chain, case.relations, strict=True)
        ]

    return json.dumps(
        [
            {
                "case_id": case.case_id,
                "requested_rewrite": [rewrite(edit, case) for edit in case.edits],
                "questions": case.questions,
                "answer": case.answer,
                "answer_alias": case.answer_alias,
                "new_answer": case.new_answer,
                "new_answer_alias": case.new_answer_alias,
                "single_hops": [vars(hop) for hop in case.hops],
                "new_single_hops": [vars(hop) for hop in case.new_hops],
                "orig": {
                    "triples": triples(case, case.chain),
                    "triples_labeled": case.chain,
                    "new_triples": triples(case, case.new_chain),
                    "new_triples_labeled": case.new_chain,
                    "edit_triples": [
                        [qid(edit.subject), pid(edit.relation), qid(edit.target_new)]
                        for edit in case.edits
                    ],
                },
            }
            for case in cases
        ],
        indent=1,
        ensure_ascii=False,
    )


# ---------------------------------------------------------------------------------------- fields


def _must_be(allowed: str, holds: Callable[[Any], object]) -> Callable[[Any], Any]:
    """The check of a field.   allowed: what it must be, in words."""

    def check(value: Any) -> Any:
        if not holds(value):
            raise PydanticCustomError("must_be", "{allowed}", {"allowed": allowed})
        return value

    return check


def _is_filled(value: object) -> bool:
    return is_text(value) and bool(value.strip())


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def _are_triples(value: object) -> bool:
    rows = value if isinstance(value, list) else []
    return bool(rows) and all(_are_texts(row) and len(row) == 3 for row in rows)


def _without_blanks(texts: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(text for text in texts or () if text.strip())


# The last of several ``BeforeValidator`` runs first.
Number = Annotated[
    int, BeforeValidator(_must_be("a whole number", lambda value: type(value) is int))
]
Text = Annotated[str, BeforeValidator(_must_be("a non-empty text", _is_filled))]
Texts = Annotated[
    tuple[str, ...],
    BeforeValidator(_without_blanks),
    BeforeValidator(_must_be("a list of texts", lambda value: value is None or _are_texts(value))),
]
Triples = Annotated[
    tuple[tuple[str, str, str], ...],
    BeforeValidator(lambda rows: tuple(map(tuple, rows))),
    BeforeValidator(_must_be("a list of triples of texts", _are_triples)),
]
#: of objects that are checked in turn
Filled = BeforeValidator(
    _must_be("a list of JSON objects, one or more", lambda value: value and type(value) is list)
)
MISSING: Any = Field(default=None)  #: a field that is not there is checked as if it held None


class Part(BaseModel):
    """A JSON object; fields that are not named here are passed over."""

    model_config = ConfigDict(strict=True, validate_default=True)


class _Hop(Part):
    question: Text = MISSING
    cloze: Text = MISSING
    answer: Text = MISSING
    answer_alias: Texts = MISSING


class Target(Part):
    str: Text = MISSING


class _Rewrite(Part):
    relation_id: Text = MISSING
    subject: Text = MISSING
    prompt: Text = MISSING
    target_new: Target = MISSING
    target_true: Target = MISSING
    paraphrases: Texts = MISSING
    hops: Texts = MISSING


class _Chains(Part):
    triples: Triples = MISSING
    triples_labeled: Triples = MISSING
    new_triples_labeled: Triples = MISSING


class _Record(Part):
    case_id: Number = MISSING
    orig: _Chains = MISSING
    requested_rewrite: Annotated[list[_Rewrite], Filled] = MISSING
    questions: Annotated[
        Texts, AfterValidator(_must_be("a non-empty list of texts", lambda texts: texts))
    ] = MISSING
    answer: Text = MISSING
    answer_alias: Texts = MISSING
    answer_extended: Texts = MISSING
    new_answer: Text = MISSING
    new_answer_alias: Texts = MISSING
    single_hops: Annotated[list[_Hop], Filled] = MISSING
    new_single_hops: Annotated[list[_Hop], Filled] = MISSING


# ------------------------------------------------------------------------------------------ read


def read_cases(path: str | Path, relations: Mapping[str, Relation] | None = None) -> list[Case]:
    """Read cases from our file or a published MQuAKE file.

    Extra keys, missing paraphrases, hops and aliases, and typing errors of the published templates
    are accepted; ``answer_extended`` of MQuAKE-T joins the aliases of the old answer. Whether edits
    of different cases contradict each other is for ``cases.conflicts`` to say.
    relations: they name the Wikidata ids; default: the shipped ones.
    Raises ValueError for an unreadable file, for a field or a case that is there twice, and, naming
    the case and the field, for a field that is missing, empty, of a wrong kind, or of another
    number of hops than the chain.
    """
    try:
        records = json.loads(Path(path).read_text("utf-8"), object_pairs_hook=fields_once)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a JSON file: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} cannot be read as a JSON file: it is nested too deep") from None
    if not isinstance(records, list):
        raise ValueError(f"{path} must hold a list of cases, got {type(records).__name__}")
    return cases_of(records, Path(path).name, relations)


def cases_of(
    records: Sequence[object], name: str, relations: Mapping[str, Relation] | None = None
) -> list[Case]:
    """The cases of records that were read already.   name: of their file, for messages.

    Raises ValueError as ``read_cases`` does of records.
    """
    keys = {relation.pid: key for key, relation in (relations or load_relations()).items()}
    cases = [_case(values, f"{name}, record {i}", keys) for i, values in enumerate(records)]
    case_id, n = next(iter(Counter(case.case_id for case in cases).most_common(1)), (None, 0))
    if n > 1:
        raise ValueError(f"{name}: {n} cases have the case_id {case_id}; each must have its own")
    return cases


def _case(values: object, place: str, keys: Mapping[str, str]) -> Case:
    """The case of a record.   place: of the record, if its number is wrong too."""
    try:
        record = _Record.model_validate(values)
    except ValidationError as error:
        raise ValueError(_sentence(error, place, values)) from None
    where, chains = f"case {record.case_id}", record.orig
    _check_hops(record, where, values)
    aliases = (record.answer, *record.answer_alias)
    return Case(
        case_id=record.case_id,
        edits=tuple(_edit(part, where, keys) for part in record.requested_rewrite),
        questions=record.questions,
        answer=record.answer,
        answer_alias=(
            *record.answer_alias,
            *(name for name in record.answer_extended if name not in aliases),
        ),
        new_answer=record.new_answer,
        new_answer_alias=record.new_answer_alias,
        hops=tuple(map(_hop, record.single_hops)),
        new_hops=tuple(map(_hop, record.new_single_hops)),
        chain=chains.triples_labeled,
        new_chain=chains.new_triples_labeled,
        relations=tuple(keys.get(pid, pid) for _, pid, _ in chains.triples),
    )


def _sentence(error: ValidationError, place: str, values: Any) -> str:
    """What is wrong with the first wrong field of a record."""
    wrong = error.errors(include_url=False)[0]
    steps, said = wrong["loc"], quoted(wrong["input"])
    if not steps:
        return f"{place}: it must hold JSON objects, got {said}"
    where = place if steps[0] == "case_id" else f"case {values['case_id']}"
    field = ".".join(step for step in steps if isinstance(step, str))
    if wrong["type"] == "must_be":
        return f"{where}: field {field!r} must be {wrong['msg']}, got {said}"
    return f"{where}: field {field!r} must hold JSON objects, got {said}"


def _check_hops(record: _Record, where: str, values: Any) -> None:
    """Raises ValueError unless there is one hop and one triple for each fact of the chain."""
    n = len(record.orig.triples)
    for field in ("single_hops", "new_single_hops"):
        if len(getattr(record, field)) != n:
            raise ValueError(
                f"{where}: field {field!r} must be a list of JSON objects, {n}, one for each fact "
                f"of the chain, got {quoted(values[field])}"
            )
    for field in ("triples_labeled", "new_triples_labeled"):
        if len(getattr(record.orig, field)) != n:
            raise ValueError(
                f"{where}: field {'orig.' + field!r} must be a list of {n} triples, as many as "
                f"'orig.triples', got {quoted(values['orig'][field])}"
            )


def _hop(part: _Hop) -> Hop:
    return Hop(
        question=part.question.rstrip(),
        cloze=part.cloze.rstrip(),
        answer=part.answer.rstrip(),
        answer_alias=part.answer_alias,
    )


def _edit(part: _Rewrite, where: str, keys: Mapping[str, str]) -> Edit:
    try:
        return Edit(
            subject=part.subject,
            prompt=part.prompt,
            target_new=part.target_new.str,
            target_true=part.target_true.str,
            relation=keys.get(part.relation_id, part.relation_id),
            paraphrases=part.paraphrases,
            hops=part.hops,
        )
    except ValueError as error:
        raise ValueError(f"{where}: field 'requested_rewrite': {error}") from None
