"""Judging edited models: what they answer to the questions of a case, and what they should answer.

The protocol is the field's usual one: the edits of a case are applied together, judged, and undone.
Because cases are independent, many of them are edited and judged as one batch of differently edited
models (``update.overlaid``); the rows are those of the loop over one case after another.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..editing.moments import Moments
from ..model.answers import generate, recall
from ..model.lm import LM
from ..model.update import Update
from ..records import Case, Edit, Fact, Hop
from ..world.wording import few_shot, first_answer, matches, parse_answer, single_hop_cloze
from ..world.world import World, unrelated_facts
from .endings import same_ending_facts


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How an edited model is judged."""

    #: chain-of-thought demonstrations before each question; none of them has a name of the case
    n_shots: int = 4
    #: demonstrations without any of the case's relations either (Table 5)
    out_of_domain: bool = False
    #: facts per case for specificity, half of the edited relations, half of any other; beside it
    #: half as many about subjects whose names end in the same token as an edited one
    n_unrelated: int = 20
    max_new_tokens: int = 80
    seed: int = 0


def edit_and_judge(
    lm: LM,
    world: World,
    editor,
    cases: Sequence[Case],
    moments: Moments | None,
    protocols: Sequence[Protocol],
) -> list[list[dict]]:
    """By case, one row per protocol: ``judge`` of the model that ``editor`` has edited for the
    case, once for all protocols, or nobody (None).

    written: Frobenius norm of all that was changed. Answers may hide a fault of an editor; the size
    of what it writes does not.
    """
    updates = None if editor is None else editor.each(lm, [case.edits for case in cases], moments)
    written = [update.norm() for update in updates] if updates else [0.0] * len(cases)
    judged = [judge(lm, world, cases, updates, protocol) for protocol in protocols]
    return [
        [{**row, "written": size} for row in rows]
        for size, *rows in zip(written, *judged, strict=True)
    ]


def judge(
    lm: LM,
    world: World,
    cases: Sequence[Case],
    updates: Sequence[Update] | None,
    protocol: Protocol,
) -> list[dict]:
    """One row per case: what the model, edited by ``updates[i]`` for case i (or not at all),
    answers.

    multi_hop: any of the three questions is answered with an accepted answer (exact match after
    normalisation); multi_hop_each: share of the questions; multi_hop_substring: any answer contains
    an accepted one; lost_at: ``lost_hop`` of each question.
    efficacy, paraphrase: share of the case's edits, and of their other wordings, whose expected
    object is said; specificity: share of unrelated facts that keep their answer, those of an edited
    relation (specificity_near) and others (specificity_far) together, as published;
    specificity_token: of ``same_ending_facts``, of any relation, which it does not count. Without
    updates the old answers are expected, as in the paper's Base row.
    Source: ACE, Section 6.1; MQuAKE, Section 4.
    """
    edited = updates is not None
    # 1. Chains of thought, one per question.
    chains = _chains_of_thought(lm, world, cases, updates, protocol)
    # 2. Single facts: the edits, their other wordings, and what they must leave alone.
    n = protocol.n_unrelated
    facts = [unrelated_facts(world, case.edits, n, _rng(protocol, case)) for case in cases]
    alike = [
        same_ending_facts(lm, world, case.edits, n // 2, _rng(protocol, case)) for case in cases
    ]
    kinds = (
        [[(edit.text, _target(edit, edited)) for edit in case.edits] for case in cases],
        [list(_other_wordings(case, edited)) for case in cases],
        [[_asked(world, fact) for fact in some] for some in facts],
        [[_asked(world, fact) for fact in some] for some in alike],
    )
    said, reworded, kept, spared = (_recalled(lm, prompts, updates) for prompts in kinds)
    # 3. What the answers count for.
    return [
        {
            "case_id": case.case_id,
            "n_edits": case.n_edits,
            "n_hops": case.n_hops,
            **_reasoning(case, chains[i], edited),
            "efficacy": _mean(said[i]),
            "paraphrase": _mean(reworded[i]),
            **_specificity(case, facts[i], kept[i], spared[i]),
        }
        for i, case in enumerate(cases)
    ]


def _rng(protocol: Protocol, case: Case) -> random.Random:
    return random.Random(f"{protocol.seed}/{case.case_id}")


def lost_hop(text: str, hops: Sequence[Hop]) -> int:
    """The first hop whose answer a chain of thought does not name before its own answer.

    Counted from 1; 0 if it names them all.
    """
    thoughts = text.partition("Answer:")[0]
    for i, hop in enumerate(hops, 1):
        if not matches(thoughts, (hop.answer, *hop.answer_alias), substring=True):
            return i
    return 0


def _chains_of_thought(lm, world, cases, updates, protocol) -> list[list[str]]:
    """What the model generates for each question, by case."""
    prompts = [
        [
            few_shot(world, question, case, protocol.n_shots, protocol.out_of_domain)
            for question in case.questions
        ]
        for case in cases
    ]
    owners, flat = _flat(prompts, updates)
    return _by_case(prompts, generate(lm, flat, owners, protocol.max_new_tokens, first_answer))


def _recalled(lm, prompts: Sequence[Sequence[tuple[str, str]]], updates) -> list[list[bool]]:
    """Whether the model says the answer, for (prompt, answer) pairs by case."""
    owners, flat = _flat(prompts, updates)
    questions, answers = [question for question, _ in flat], [answer for _, answer in flat]
    return _by_case(prompts, recall(lm, questions, answers, owners).correct)


def _flat(by_case: Sequence[Sequence], updates) -> tuple[list[Update] | None, list]:
    """The items of all cases in one list, and the update of each."""
    flat = [item for items in by_case for item in items]
    if updates is None:
        return None, flat
    return [updates[i] for i, items in enumerate(by_case) for _ in items], flat


def _by_case(shape: Sequence[Sequence], flat: Iterable) -> list[list]:
    """``flat`` in lists as long as those of ``shape``."""
    values = iter(flat)
    return [[next(values) for _ in items] for items in shape]


def _asked(world: World, fact: Fact) -> tuple[str, str]:
    return single_hop_cloze(world, fact), fact.object


def _target(edit: Edit, edited: bool) -> str:
    return edit.target_new if edited else edit.target_true


def _other_wordings(case: Case, edited: bool) -> Iterable[tuple[str, str]]:
    for edit in case.edits:
        for wording in edit.paraphrases:
            yield wording.replace("{}", edit.subject), _target(edit, edited)


def _reasoning(case: Case, chains: Sequence[str], edited: bool) -> dict:
    """The answers that the chains of thought end in, and what they count for."""
    answers = [parse_answer(text) for text in chains]
    if edited:
        hops, accepted = case.new_hops, (case.new_answer, *case.new_answer_alias)
    else:
        hops, accepted = case.hops, (case.answer, *case.answer_alias)
    exact = [matches(answer, accepted) for answer in answers]
    contained = [matches(answer, accepted, substring=True) for answer in answers]
    return {
        "answers": answers,
        "multi_hop": float(any(exact)),
        "multi_hop_each": _mean(exact),
        "multi_hop_substring": float(any(contained)),
        "lost_at": [lost_hop(text, hops) for text in chains],
    }


def _specificity(
    case: Case, facts: Sequence[Fact], kept: Sequence[bool], spared: Sequence[bool]
) -> dict:
    """Shares of facts that are kept: of all relations, of the edited ones, of others; of subjects
    that end in the same token, ``spared``.
    """
    relations = {edit.relation for edit in case.edits}
    pairs = list(zip(facts, kept, strict=True))
    return {
        "specificity": _mean(kept),
        "specificity_near": _mean([ok for fact, ok in pairs if fact.relation in relations]),
        "specificity_far": _mean([ok for fact, ok in pairs if fact.relation not in relations]),
        "specificity_token": _mean(spared),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
