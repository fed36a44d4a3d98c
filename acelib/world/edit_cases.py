"""Edit cases of any benchmark: edits that belong together, and what is asked after them.

``records.Case`` is a chain of facts and its questions, as in MQuAKE. Other benchmarks have no chain
but prompts of many kinds; all of them, and MQuAKE's too, are edit cases here.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..records import Case, Edit
from .wording import few_shot
from .world import World

FACT = "fact"  #: the kind of the edits themselves


@dataclass(frozen=True)
class Question:
    """A prompt and what it should be answered with."""

    prompt: str
    #: accepted, the first as it is written; none: whatever the model said before the edit
    answers: tuple[str, ...] = ()
    #: another object, whose probability the first answer's must exceed; "": none
    against: str = ""


@dataclass(frozen=True)
class Probe:
    """One thing that is asked after an edit, by one question or several."""

    kind: str
    questions: tuple[Question, ...]
    #: its answers must be what they were, right or wrong
    stays: bool = False
    #: all questions must be answered; else any of them
    every: bool = False
    #: it counts only if the unedited model answers all of these
    given: tuple[Question, ...] = ()
    #: the model thinks aloud, and what follows "Answer:" counts
    thoughts: bool = False


@dataclass(frozen=True)
class EditCase:
    """Edits that are made together, and what is asked then."""

    name: str  #: its id, or its place, in a file
    edits: tuple[Edit, ...]
    probes: tuple[Probe, ...]


def fact_probes(case: EditCase) -> tuple[Probe, ...]:
    """A probe of each edit: its prompt, and the new object."""
    return tuple(
        Probe(FACT, (Question(edit.text, (edit.target_new,), edit.target_true),))
        for edit in case.edits
    )


def of_case(case: Case, world: World) -> EditCase:
    """The edit case of a chain: other wordings of its edits, and its multi-hop questions.

    A multi-hop question is asked behind four demonstrations of the world, any of a case's questions
    is enough, and it counts only if the unedited model knows every fact that no edit changes.
    Source: ACE, Section 6.1 and Appendix C.1; MQuAKE, Section 4.
    """
    answers = (case.new_answer, *case.new_answer_alias)
    new = {(edit.text, edit.target_new) for edit in case.edits}
    hops = [
        hop
        for hop in dict.fromkeys((*case.hops, *case.new_hops))
        if (hop.cloze, hop.answer) not in new
    ]
    multi_hop = Probe(
        "multi-hop",
        tuple(Question(few_shot(world, question, case), answers) for question in case.questions),
        given=tuple(Question(hop.cloze, (hop.answer, *hop.answer_alias)) for hop in hops),
        thoughts=True,
    )
    wordings = tuple(
        Probe(
            "paraphrase",
            (
                Question(
                    text.replace("{}", edit.subject).rstrip(), (edit.target_new,), edit.target_true
                ),
            ),
        )
        for edit in case.edits
        for text in edit.paraphrases
    )
    return EditCase(str(case.case_id), case.edits, (*wordings, multi_hop))
