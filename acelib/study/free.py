"""Judging edited models that speak freely: answers are generated and read, not forced.

As ``judge``, with four differences that a pretrained model needs. An answer counts by the rule of
``world.spoken``; the bare name stands beside it. What an edit must leave alone are facts that the
model knew. Multi-hop questions are asked behind demonstrations of two facts that it knows, once
with a chain of thought and once for the answer at once. And facts about subjects whose name ends in
the same token are a third kind of what must stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from ..editing.moments import Moments
from ..model.answers import generate
from ..model.lm import LM
from ..model.update import Update
from ..records import Case, Edit, Fact
from ..world import shots
from ..world.spoken import counts, first_line, is_bare
from ..world.wording import first_answer, matches, parse_answer, single_hop_cloze
from ..world.world import World, untouched
from .endings import endings, last_token

KINDS = ("near", "far", "token")  #: of facts that must stay
ANSWER_TOKENS = 12  #: of an answer that is a name
#: column -> what it is, for tables
METRICS = {
    "efficacy": "efficacy",
    "efficacy_bare": "efficacy, bare name",
    "paraphrase": "paraphrase",
    "near": "same relation",
    "far": "other relations",
    "token": "same last token",
    "thoughts": "chain of thought",
    "direct": "direct answer",
}


@dataclass(frozen=True, kw_only=True)
class FreeProtocol:
    """How an edited model that speaks freely is judged."""

    n_shots: int = 4  #: demonstrations of two known facts before a multi-hop question
    n_kept: int = 8  #: facts of each kind that must stay
    n_wordings: int = 3  #: other wordings of each edit
    thought_tokens: int = 60
    seed: int = 0


Asked = list[tuple[str, Sequence[str]]]  #: prompts, and the answers that are accepted


def said(
    lm: LM,
    prompts: Sequence[str],
    updates: Sequence[Update | None] | None = None,
    max_new_tokens: int = ANSWER_TOKENS,
) -> list[str]:
    """First lines of greedy continuations: what the model answers to prompts that end in an answer.
    Blank lines before it are passed over only on the prompt's own line.
    """
    texts = generate(lm, prompts, updates, max_new_tokens, until=_has_line)
    return [first_line(text) for text in texts]


def _has_line(text: str) -> bool:
    return "\n" in text


def edit_and_judge(
    lm: LM,
    known: World,
    editor: Any,
    cases: Sequence[Case],
    moments: Moments | None,
    protocol: FreeProtocol,
) -> list[dict]:
    """One row per case, as ``judge.edit_and_judge``; None: the unedited model."""
    if editor is None:
        return [{**row, "written": 0.0} for row in judge(lm, known, cases, None, protocol)]
    updates = editor.each(lm, [case.edits for case in cases], moments)
    rows = judge(lm, known, cases, updates, protocol)
    return [{**row, "written": update.norm()} for row, update in zip(rows, updates, strict=True)]


def judge(
    lm: LM,
    known: World,
    cases: Sequence[Case],
    updates: Sequence[Update] | None,
    protocol: FreeProtocol,
) -> list[dict]:
    """One row per case: what the model, edited by ``updates[i]`` for case i (or not at all), says.

    known: the world, with the facts only that the model knows.
    efficacy, paraphrase: share of the edits, and of their other wordings, whose expected object is
    said; efficacy_bare: the same by the bare name.   near, far, token: share of facts that keep
    their answer, of the edited relations, of other relations, about other subjects that end in the
    same token; nan if there is none.   thoughts, direct: any of the case's questions is answered,
    with a chain of thought or at once; ..._each: share of the questions; ..._old: any of them still
    has the old answer.   Without updates the old answers are expected.
    """
    edited = updates is not None
    kept = [kept_facts(lm, known, case, protocol) for case in cases]
    # 1. Prompts that end in an answer, of all cases in one batch.
    groups: dict[str, list[Asked]] = {
        "efficacy": [[(e.text, _names(known, _object(e, edited))) for e in c.edits] for c in cases],
        "paraphrase": [_other_wordings(known, c, edited, protocol.n_wordings) for c in cases],
    }
    for kind in KINDS:
        groups[kind] = [[_ask(known, fact) for fact in some[kind]] for some in kept]
    texts = {name: _answers(lm, asked, updates, said) for name, asked in groups.items()}
    # 2. Multi-hop questions, with thoughts and at once.
    shown = [shots.shown_chains(known, _taken(case), protocol.n_shots) for case in cases]
    think = partial(_thoughts, max_new_tokens=protocol.thought_tokens)
    asked: dict[str, list[Asked]] = {
        name: [[(form(known, s, q), ()) for q in c.questions] for c, s in pairs]
        for name, form, pairs in (
            ("thoughts", shots.with_thoughts, list(zip(cases, shown, strict=True))),
            ("direct", shots.direct, list(zip(cases, shown, strict=True))),
        )
    }
    chains = _answers(lm, asked["thoughts"], updates, think)
    at_once = _answers(lm, asked["direct"], updates, said)
    # 3. What the answers count for.
    rows = []
    for i, case in enumerate(cases):
        right = {
            name: [
                counts(t, ok) for t, (_, ok) in zip(texts[name][i], groups[name][i], strict=True)
            ]
            for name in groups
        }
        bare = [
            is_bare(text, _object(edit, edited))
            for text, edit in zip(texts["efficacy"][i], case.edits, strict=True)
        ]
        rows.append(
            {
                "case_id": case.case_id,
                "n_edits": case.n_edits,
                "n_hops": case.n_hops,
                **{name: _mean(values) for name, values in right.items()},
                "efficacy_bare": _mean(bare),
                **_multi_hop(case, edited, "thoughts", chains[i], matches),
                **_multi_hop(case, edited, "direct", at_once[i], counts),
            }
        )
    return rows


def kept_facts(lm: LM, known: World, case: Case, protocol: FreeProtocol) -> dict[str, list[Fact]]:
    """Facts that the model knows and that the edits of a case leave alone, up to ``n_kept`` of each
    of ``KINDS``; no fact is of two kinds, none is about an edited subject.
    """
    rng = Random(f"{protocol.seed}/{case.case_id}/kept")
    stays, subjects = untouched(known, case.edits), {edit.subject for edit in case.edits}
    relations = {edit.relation for edit in case.edits}
    free = [fact for fact in known.facts if fact.subject not in subjects and stays(fact)]
    ends = endings(lm, known)
    ending = {last_token(lm, edit.text, edit.subject.strip()) for edit in case.edits}
    chosen: dict[str, list[Fact]] = {}
    taken: set[Fact] = set()
    tests: dict[str, Callable[[Fact], bool]] = {
        "token": lambda fact: ends[fact] in ending,
        "near": lambda fact: fact.relation in relations,
        "far": lambda fact: fact.relation not in relations,
    }
    for kind, test in tests.items():
        pool = [fact for fact in free if fact not in taken and test(fact)]
        chosen[kind] = rng.sample(pool, min(protocol.n_kept, len(pool)))
        taken.update(chosen[kind])
    return {kind: chosen[kind] for kind in KINDS}


# ---------------------------------------------------------------- prompts and answers


def _ask(known: World, fact: Fact) -> tuple[str, Sequence[str]]:
    return single_hop_cloze(known, fact), _names(known, fact.object)


def _names(known: World, name: str) -> tuple[str, ...]:
    """A name and its aliases."""
    return (name, *known.aliases(name))


def _object(edit: Edit, edited: bool) -> str:
    return edit.target_new if edited else edit.target_true


def _other_wordings(known: World, case: Case, edited: bool, n: int) -> Asked:
    return [
        (wording.replace("{}", edit.subject), _names(known, _object(edit, edited)))
        for edit in case.edits
        for wording in edit.paraphrases[:n]
    ]


def _taken(case: Case) -> frozenset[str]:
    """The names that no demonstration may have."""
    targets = {name for edit in case.edits for name in (edit.target_new, edit.target_true)}
    return case.entities | targets


def _answers(
    lm: LM, groups: Sequence[Asked], updates: Sequence[Update] | None, ask: Callable[..., list[str]]
) -> list[list[str]]:
    """What the model says to the prompts of every case, each under the update of its case."""
    flat = [prompt for asked in groups for prompt, _ in asked]
    owners = updates and [updates[i] for i, asked in enumerate(groups) for _ in asked]
    texts = iter(ask(lm, flat, owners) if flat else [])
    return [[next(texts) for _ in asked] for asked in groups]


def _thoughts(
    lm: LM, prompts: Sequence[str], updates: Sequence[Update] | None, max_new_tokens: int
) -> list[str]:
    return generate(lm, prompts, updates, max_new_tokens, first_answer)


def _multi_hop(
    case: Case, edited: bool, name: str, texts: Sequence[str], right: Callable[..., bool]
) -> dict[str, Any]:
    """What the answers to the questions of a case count for."""
    new = (case.new_answer, *case.new_answer_alias)
    old = (case.answer, *case.answer_alias)
    answers = [parse_answer(text) if name == "thoughts" else text for text in texts]
    hits = [right(answer, new if edited else old) for answer in answers]
    return {
        name: float(any(hits)),
        f"{name}_each": _mean(hits),
        f"{name}_old": float(any(right(answer, old) for answer in answers)),
        f"{name}_said": answers,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
