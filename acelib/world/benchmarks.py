"""Edit cases from files of published benchmarks: MQuAKE, CounterFact, zsRE, RippleEdits, and the
form of EasyEdit and KnowEdit. Each may be a JSON list or a JSON object a line.

* ``mquake``: ``mquake.read_cases``.
* ``counterfact`` (Meng et al., 2022): one ``requested_rewrite``, ``paraphrase_prompts`` and
  ``neighborhood_prompts``; these are of the old object. Prompts for generation are passed over.
* ``zsre`` (``zsre_mend_eval``): a question ``src`` about ``subject``. As ROME reads it, the new
  object is the first of ``answers``; ``zsre-alt``, as EasyEdit does, takes ``alt``, and passes over
  records where it is empty. The question ``loc`` is about something else.
* ``easyedit``: ``prompt``, ``subject``, ``target_new``; ``rephrase_prompt``, and prompts in
  ``locality_prompt``, or by name in ``locality`` and ``portability``. CounterFact, zsRE and the
  Wikidata sets come in this form too.
* ``rippleedits`` (Cohen et al., 2024): an ``edit`` that is a whole sentence, and tests of six
  kinds. A test counts only if the unedited model answers its ``condition_queries``. Here one of
  several answers is enough; the published check asks for all of them, anywhere in 30 letters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from ..records import Edit, is_text, quoted
from .edit_cases import EditCase, Probe, Question, of_case
from .json_records import Record, records_of
from .mquake import MISSING, Filled, Number, Part, Target, Text, Texts, cases_of
from .world import World

PartT = TypeVar("PartT", bound="Part")
PLACE = "{}"  #: of the subject in a template

# ---------------------------------------------------------------------------------------- fields


def _names(value: object) -> tuple[str, ...]:
    """The texts of a text, a list, or a list of lists, in order; () of None."""
    if value is None:
        return ()
    if is_text(value):
        return (value.strip(),) if value.strip() else ()
    if isinstance(value, (list, tuple)):  # a default is a tuple
        return tuple(name for part in value for name in _names(part))
    raise PydanticCustomError("must_be", "a text, or a list of texts or of lists of texts")


def _some_names(value: object) -> tuple[str, ...]:
    names = _names(value)
    if not names:
        raise PydanticCustomError("must_be", "a text, or a list of one or more texts")
    return names


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
SomeNames = Annotated[tuple[str, ...], BeforeValidator(_some_names)]
OrNothing = Annotated[
    str, BeforeValidator(lambda value: value if is_text(value) else _names(value) or "")
]


def _read(kind: type[PartT], record: Record) -> PartT:
    """The fields of a record. Raises ValueError that names the first wrong one."""
    try:
        return kind.model_validate(record.values)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
    field = ".".join(str(step) for step in wrong["loc"])
    must = wrong["msg"] if wrong["type"] == "must_be" else "a JSON object"
    raise ValueError(
        f"{record.place}: field {field!r} must be {must}, got {quoted(wrong['input'])}"
    ) from None


# ---------------------------------------------------------------------------------------- by form


class _Rewrite(Part):
    subject: Text = MISSING
    prompt: Text = MISSING
    relation_id: OrNothing = ""
    target_new: Target = MISSING
    target_true: Target = MISSING


class _CounterFact(Part):
    case_id: Number = MISSING
    requested_rewrite: _Rewrite = MISSING
    paraphrase_prompts: Texts = MISSING
    neighborhood_prompts: Texts = MISSING


def _counterfact(record: Record, world: World) -> EditCase:
    found = _read(_CounterFact, record)
    asked, pids = found.requested_rewrite, {r.pid: key for key, r in world.relations.items()}
    new, old = asked.target_new.str.strip(), asked.target_true.str.strip()
    edit = _edit(
        record,
        asked.subject,
        asked.prompt,
        new,
        old,
        relation=pids.get(asked.relation_id, asked.relation_id),
    )
    return EditCase(
        str(found.case_id),
        (edit,),
        (
            *_asked("paraphrase", found.paraphrase_prompts, (new,), against=old),
            *_asked("neighbour", found.neighborhood_prompts, (old,), against=new, stays=True),
        ),
    )


class _NewQuestion(Part):
    model_config = ConfigDict(populate_by_name=True)

    question: OrNothing = Field(default="", alias="New Question")
    answer: Names = Field(default=(), alias="New Answer")


class _Zsre(Part):
    subject: Text = MISSING
    src: Text = MISSING
    answers: SomeNames = MISSING
    alt: OrNothing = ""
    rephrase: Names = ()
    loc: OrNothing = ""
    loc_ans: Names = ()
    portability: _NewQuestion = Field(default_factory=_NewQuestion)


def _zsre(record: Record, world: World, alt: bool = False) -> EditCase | None:
    found = _read(_Zsre, record)
    if alt and not found.alt:
        return None
    new, old = (found.alt, found.answers[0]) if alt else (found.answers[0], "")
    names = (new,) if alt else found.answers
    further = found.portability if found.portability.answer else None
    elsewhere = [f"{found.loc.rstrip('?')}?"] if found.loc else []
    return EditCase(
        record.place.rpartition(", ")[2],
        (_edit(record, found.subject, found.src, new, old),),
        (
            *_asked("paraphrase", found.rephrase, names, against=old),
            # Its new answer follows from ``alt``.
            *(_asked("multi-hop", [further.question], further.answer) if alt and further else ()),
            *_asked("unrelated", elsewhere, found.loc_ans, stays=True),
        ),
    )


def _zsre_alt(record: Record, world: World) -> EditCase | None:
    return _zsre(record, world, alt=True)


def _aligned(value: object) -> list[dict[str, object]]:
    """Prompts and their answers: a list of objects, or an object of two lists."""
    if isinstance(value, dict) and isinstance(value.get("prompt"), list):
        prompts, answers = value["prompt"], value.get("ground_truth")
        if not isinstance(answers, list) or len(answers) != len(prompts):
            raise PydanticCustomError("must_be", "as many answers as prompts")
        return [
            {"prompt": prompt, "ground_truth": answer}
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
    return value if isinstance(value, list) else [value] if isinstance(value, dict) else []


class _Prompt(Part):
    prompt: SomeNames = MISSING
    ground_truth: Names = ()


Prompts = Annotated[list[_Prompt], BeforeValidator(_aligned)]
ByName = Annotated[dict[str, Prompts], BeforeValidator(lambda value: value or {})]


class _EasyEdit(Part):
    subject: Text = MISSING
    prompt: Text = MISSING
    target_new: SomeNames = MISSING
    ground_truth: Names = ()
    rephrase_prompt: Names = ()
    locality_prompt: Names = ()
    locality_ground_truth: Names = ()
    locality: ByName = Field(default_factory=dict)
    portability: ByName = Field(default_factory=dict)


#: What prompts are about, by their names in KnowEdit; other names stay as they are.
KINDS = {
    "Relation_Specificity": "same subject",
    "Forgetfulness": "forgetfulness",
    "Logical_Generalization": "logic",
    "Subject_Aliasing": "alias",
    "Reasoning": "multi-hop",
    "reasoning": "multi-hop",
    "one_hop": "multi-hop",
    "neighborhood": "neighbour",
}


def _easyedit(record: Record, world: World) -> EditCase:
    found = _read(_EasyEdit, record)
    new, old = found.target_new[0], next(iter(found.ground_truth), "")
    parts = ((found.portability, False), (found.locality, True))
    further = [
        probe
        for by_name, stays in parts
        for name, prompts in by_name.items()
        for one in prompts
        for probe in _asked(KINDS.get(name, name), one.prompt, one.ground_truth, stays=stays)
    ]
    return EditCase(
        str(record.values.get("case_id", record.place.rpartition(", ")[2])),
        (_edit(record, found.subject, found.prompt, new, old),),
        (
            *_asked("paraphrase", found.rephrase_prompt, found.target_new, against=old),
            *_asked(
                "neighbour", found.locality_prompt, found.locality_ground_truth[:1], stays=True
            ),
            *further,
        ),
    )


# ---------------------------------------------------------------------------------------- ripple


class _Answer(Part):
    value: OrNothing = ""
    aliases: Names = ()


class _Query(Part):
    prompt: Text = MISSING
    answers: list[_Answer] = MISSING


class _Test(Part):
    test_queries: Annotated[list[_Query], Filled] = MISSING
    test_condition: Text = "OR"
    condition_queries: list[_Query] = Field(default_factory=list)


class _Sentence(Part):
    prompt: Text = MISSING
    relation: Text = MISSING


class _RippleEdit(_Sentence):
    original_fact: _Sentence | None = None  #: in the files
    previous_fact: _Sentence | None = None  #: as the code writes it


class _Ripple(Part):
    edit: _RippleEdit = MISSING
    Relation_Specificity: list[_Test] = Field(default_factory=list)
    Logical_Generalization: list[_Test] = Field(default_factory=list)
    Subject_Aliasing: list[_Test] = Field(default_factory=list)
    Compositionality_I: list[_Test] = Field(default_factory=list)
    Compositionality_II: list[_Test] = Field(default_factory=list)
    Forgetfulness: list[_Test] = Field(default_factory=list)


RIPPLES = {
    "Logical_Generalization": "logic",
    "Compositionality_I": "composition I",
    "Compositionality_II": "composition II",
    "Subject_Aliasing": "alias",
    "Relation_Specificity": "same subject",
    "Forgetfulness": "forgetfulness",
}
#: How RippleEdits words a relation, where it is not "The [name of the] RELATION [city] of {} is".
WORDED = {
    "SIBLING": "The names of the siblings of {} are",
    "CAST_MEMBER": "The names of the cast members of {} are",
    "NUMBER_OF_CHILDREN": "The number of children {} has is",
    "SEX_OR_GENDER": "The gender of {} is",
    "NATIVE_LANGUAGE": "The mother tongue of {} is",
    "COUNTRY": "The name of the country which {} is associated with is",
    "ETHNIC_GROUP": "The name of the ethnic group which {} is associated with is",
    "RELIGION": "The name of the religion which {} is associated with is",
    "CONTINENT": "The name of the continent which {} is part of is",
    "CAPITAL_OF": "The name of the country which {} is the capital of is",
    "CURRENCY": "The name of the currency in {} is",
    "POSITION_HELD": "The name of the position held by {} is",
    "AWARD_RECEIVED": "The name of the award {} won is",
    "MEMBER_OF_SPORTS_TEAM": "The name of the sports team which {} is a member of is",
    "LEAGUE": "The name of the league which {} plays in is",
    "LIKELY_ANTHEM": "The name of the anthem that is most likely to be performed in {} is",
    "FOLLOWS": "{} follows",
    "FOLLOWED_BY": "{} is followed by",
    "IS_ALIVE": "Is {} still alive?",
}


def _ripple(record: Record, world: World) -> EditCase:
    values = dict(record.values)
    if "Relation_Specifity" in values:  # so spelled in its documentation
        values["Relation_Specificity"] = values.pop("Relation_Specifity")
    found = _read(_Ripple, record._replace(values=values))
    before = found.edit.original_fact or found.edit.previous_fact
    now, then = _readings(record, found.edit), _readings(record, before) if before else {}
    # Both sentences go on alike as far as their subject does.
    head = ([head for head in now if head in then] or list(now)[:1])[-1]
    edit = _edit(record, head[1], head[0], now[head], then.get(head, ""))
    probes = [
        Probe(
            kind,
            tuple(_question(query) for query in test.test_queries),
            every=test.test_condition.upper() == "AND",
            given=tuple(_question(query) for query in test.condition_queries),
        )
        for field, kind in RIPPLES.items()
        for test in getattr(found, field)
        if all(_question(query).answers for query in test.test_queries)
    ]
    return EditCase(record.place.rpartition(", ")[2], (edit,), tuple(probes))


def _readings(record: Record, sentence: _Sentence) -> dict[tuple[str, str], str]:
    """Readings of a sentence: (template, subject) -> object, the one of the longest object first.

    A name may hold "is" too; which reading is meant, a second sentence about the subject says.
    """
    text = sentence.prompt.strip().removesuffix(".")
    words = sentence.relation.lower().replace("_", " ")
    templates = [f"The {name}{words}{city} of {PLACE} is" for name, city in _WAYS]
    readings = {}
    for template in [WORDED[sentence.relation]] if sentence.relation in WORDED else templates:
        head, tail = (part.strip() for part in template.split(PLACE))
        if not text.startswith(head):
            continue
        rest = text[len(head) :]
        for end in re.finditer(rf"{re.escape(f' {tail}')}\s+", rest):
            subject, new = rest[: end.start()].strip(), rest[end.end() :].strip()
            if subject and new:
                readings[template, subject] = new
    if not readings:
        raise ValueError(
            f"{record.place}: field 'edit.prompt' must be a sentence about its relation "
            f"({quoted(WORDED.get(sentence.relation, templates[0]))}), got "
            f"{quoted(sentence.prompt)}"
        )
    return readings


_WAYS = (("name of the ", ""), ("", ""), ("name of the ", " city"))


def _question(query: _Query) -> Question:
    names = [name for one in query.answers for name in (*_names(one.value), *one.aliases)]
    return Question(query.prompt.rstrip(), tuple(dict.fromkeys(names)))


# ---------------------------------------------------------------------------------------- shared


def _edit(
    record: Record, subject: str, prompt: str, new: str, old: str, relation: str = ""
) -> Edit:
    """The edit of a prompt, filled or a template. Raises ValueError that names the record."""
    subject = subject.strip()
    template = prompt.strip()
    if PLACE not in template:
        at = template.find(subject)
        at = template.casefold().find(subject.casefold()) if at < 0 else at
        if at < 0:
            raise ValueError(
                f"{record.place}: the prompt must hold the subject {quoted(subject)}, got "
                f"{quoted(prompt)}"
            )
        subject = template[at : at + len(subject)]
        template = f"{template[:at]}{PLACE}{template[at + len(subject) :]}"
    try:
        return Edit(subject, template, new.strip(), old.strip(), relation=relation)
    except ValueError as error:
        raise ValueError(f"{record.place}: {error}") from None


def _asked(
    kind: str,
    prompts: Iterable[str],
    answers: tuple[str, ...],
    *,
    against: str = "",
    stays: bool = False,
) -> Iterator[Probe]:
    """A probe of each prompt; without an answer only what must stay can be asked."""
    for prompt in prompts:
        if prompt.strip() and (answers or stays):
            yield Probe(kind, (Question(prompt.rstrip(), answers, against),), stays=stays)


FORMS: dict[str, Callable[[Record, World], EditCase | None]] = {
    "counterfact": _counterfact,
    "zsre": _zsre,
    "zsre-alt": _zsre_alt,
    "easyedit": _easyedit,
    "rippleedits": _ripple,
}
MQUAKE = "mquake"
NAMES = (MQUAKE, *FORMS)


def form_of(values: Mapping[str, Any]) -> str:
    """The form of a record, by its fields; "" if it is none of ``NAMES``."""
    rewrite = values.get("requested_rewrite")
    if rewrite is not None:
        return MQUAKE if isinstance(rewrite, list) else "counterfact"
    fields = {"rippleedits": {"edit"}, "zsre": {"src"}, "easyedit": {"prompt", "target_new"}}
    return next((form for form, names in fields.items() if names <= set(values)), "")


def read_edit_cases(path: str | Path, world: World, form: str = "") -> list[EditCase]:
    """The edit cases of a file.

    world: names the relations of Wikidata ids, and demonstrates MQuAKE's questions.
    form: one of ``NAMES``; "": what the first record looks like.
    Raises ValueError for an unknown form, a file that cannot be read or is of none, and, naming
    record and field, for a field that is missing or wrong.
    """
    if form and form not in NAMES:
        raise ValueError(f"form {quoted(form)} is unknown; allowed: {', '.join(NAMES)}")
    records = records_of(path)
    form = form or form_of(records[0].values)
    if not form:
        raise ValueError(
            f"{records[0].place}: its fields are {quoted(list(records[0].values))}, those of none "
            f"of the forms {', '.join(NAMES)}"
        )
    if form == MQUAKE:
        listed = [record.values for record in records]
        return [of_case(case, world) for case in cases_of(listed, Path(path).name, world.relations)]
    found = [FORMS[form](record, world) for record in records]
    return [case for case in found if case is not None]
