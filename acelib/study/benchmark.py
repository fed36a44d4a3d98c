"""Edit cases of any benchmark on a model: the edits of a case together, judged, undone.

Answers are generated and read by the rule of ``world.spoken``, as those of a model that speaks
freely; chains of thought by what follows "Answer:". Where a benchmark names two objects, the
published score stands beside: whether the right one is the more probable, a mean over its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import nan
from typing import Any

import pandas as pd

from ..editing.moments import Moments
from ..model.answers import generate, recall
from ..model.lm import LM
from ..model.update import Update
from ..world.edit_cases import FACT, EditCase, Probe, Question, fact_probes
from ..world.spoken import counts
from ..world.wording import first_answer, matches, normalise, parse_answer
from .free import ANSWER_TOKENS, said
from .stats import SHARE, Mean, interval

THOUGHT_TOKENS = 80
PERCENT = 100.0
Asked = list[tuple[int, Question, bool]]  #: case, question, whether the model thinks aloud


def readable(lm: LM, cases: Sequence[EditCase]) -> tuple[list[EditCase], int]:
    """The cases without the probes that are longer than a model reads, and how many those are."""
    most = lm.model.config.max_position_embeddings

    def fits(probe: Probe) -> bool:
        more = THOUGHT_TOKENS if probe.thoughts else ANSWER_TOKENS
        return all(
            len(lm.tokenizer(q.prompt)["input_ids"]) + max(more, _longest(lm, q)) <= most
            for q in (*probe.questions, *probe.given)
        )

    kept = [replace(case, probes=tuple(filter(fits, case.probes))) for case in cases]
    n = sum(len(case.probes) for case in cases) - sum(len(case.probes) for case in kept)
    return kept, n


def _longest(lm: LM, question: Question) -> int:
    """Tokens of the longer of the two objects that are compared."""
    names = [*question.answers[:1], question.against] if question.against else []
    return max((len(lm.answer_ids(name)) for name in names), default=0)


def judge_cases(
    lm: LM,
    editor: Any,
    cases: Sequence[EditCase],
    moments: Moments | None,
    chunk: int = 24,
    progress: Callable[[int, int], object] | None = None,
) -> pd.DataFrame:
    """One row for each edit and each probe of each case, before and after the case's edits.

    Columns: case; kind; prompt, of the first question; answers, accepted ones; before, after: what
    the model says; counts: whether it answers all that is ``given``; right_before, right_after: an
    accepted answer, of what must stay an unchanged one too (nan if none is known); score_before,
    score_after: whether the right object is more probable than the other (nan without two).
    progress: called with (cases done, cases).
    Raises ValueError as the editor does.
    """
    rows: list[dict] = []
    for start in range(0, len(cases), chunk):
        part = cases[start : start + chunk]
        rows += _judged(lm, editor, part, moments)
        if progress:
            progress(start + len(part), len(cases))
    return pd.DataFrame(rows)


def _judged(lm: LM, editor: Any, cases: Sequence[EditCase], moments: Moments | None) -> list[dict]:
    """The rows of some cases, edited in one batch."""
    probes = [(i, p) for i, case in enumerate(cases) for p in (*fact_probes(case), *case.probes)]
    asked: Asked = [(i, q, p.thoughts) for i, p in probes for q in p.questions]
    given: Asked = [(i, q, False) for i, p in probes for q in p.given]
    updates = editor.each(lm, [case.edits for case in cases], moments)
    # 1. What the model says, as it is and edited for each case; what is given, only as it is.
    before, after = _answers(lm, [*asked, *given], None), _answers(lm, asked, updates)
    known = [
        _accepted(text, q, False)
        for text, (_, q, _) in zip(before[len(asked) :], given, strict=True)
    ]
    scores = [_scores(lm, asked, one) for one in (None, updates)]
    # 2. A row for each probe, of as many questions as it has.
    rows, at, place = [], 0, 0
    for i, probe in probes:
        span = slice(at, at := at + len(probe.questions))
        here = slice(place, place := place + len(probe.given))
        texts = list(zip(before[: len(asked)][span], after[span], strict=True))
        rows.append(
            {
                "case": cases[i].name,
                "kind": probe.kind,
                "prompt": _shown(probe),
                "answers": " / ".join(probe.questions[0].answers),
                "before": " / ".join(one for one, _ in texts),
                "after": " / ".join(other for _, other in texts),
                "counts": all(known[here]),
                **_right(probe, texts),
                **{
                    f"score_{when}": _together(probe, some[span])
                    for when, some in zip(("before", "after"), scores, strict=True)
                },
            }
        )
    return rows


def _shown(probe: Probe) -> str:
    """The first question without the demonstrations before it."""
    return probe.questions[0].prompt.rpartition("\n\n")[2].removesuffix("\nThoughts:")


def _answers(lm: LM, asked: Asked, updates: Sequence[Update] | None) -> list[str]:
    """What the model says to each question, under the update of its case."""
    texts: dict[int, str] = {}
    for aloud in (False, True):
        places = [n for n, (_, _, thoughts) in enumerate(asked) if thoughts is aloud]
        prompts = [asked[n][1].prompt for n in places]
        owners = updates and [updates[asked[n][0]] for n in places]
        if not places:
            continue
        if aloud:
            found = generate(lm, prompts, owners, THOUGHT_TOKENS, first_answer)
            found = [parse_answer(text) for text in found]
        else:
            found = said(lm, prompts, owners)
        texts |= dict(zip(places, found, strict=True))
    return [texts[n] for n in range(len(asked))]


def _accepted(text: str, question: Question, thoughts: bool) -> bool:
    return (matches if thoughts else counts)(text, question.answers)


def _right(probe: Probe, texts: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Whether a probe is answered, before and after."""
    pairs = list(zip(probe.questions, texts, strict=True))
    before = [_accepted(one, q, probe.thoughts) if q.answers else nan for q, (one, _) in pairs]
    after = [
        _accepted(other, q, probe.thoughts) or (probe.stays and normalise(other) == normalise(one))
        for q, (one, other) in pairs
    ]
    return {"right_before": _together(probe, before), "right_after": _together(probe, after)}


def _together(probe: Probe, values: Iterable[float]) -> float:
    """Any of the questions, or all of them; nan if none has a value."""
    there = [value for value in values if value == value]
    return float((all if probe.every else any)(there)) if there else nan


def _scores(lm: LM, asked: Asked, updates: Sequence[Update] | None) -> list[float]:
    """Whether the first answer of each question is more probable than the other object."""
    places = [n for n, (_, q, _) in enumerate(asked) if q.against and q.answers]
    scores = [nan] * len(asked)
    if not places:
        return scores
    prompts = [asked[n][1].prompt for n in places] * 2
    objects = [asked[n][1].answers[0] for n in places] + [asked[n][1].against for n in places]
    owners = updates and [updates[asked[n][0]] for n in places] * 2
    logs = recall(lm, prompts, objects, owners).logprob
    means = [log / len(lm.answer_ids(name)) for log, name in zip(logs, objects, strict=True)]
    half = len(places)
    for n, right, other in zip(places, means[:half], means[half:], strict=True):
        scores[n] = float(right > other)
    return scores


def summary(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """By kind, the edits first: asked, how many probes count; cases; before, after, score: ``Mean``
    over cases of their shares, percent, of score after the edit.

    rows: of ``judge_cases``.
    """
    found = []
    for kind, some in rows.groupby("kind", sort=False):
        counted = some[some["counts"]]
        shares = {
            name: _share(counted, column, seed)
            for name, column in (
                ("before", "right_before"),
                ("after", "right_after"),
                ("score", "score_after"),
            )
        }
        asked = dict(asked=len(counted), of=len(some), cases=counted.case.nunique())
        found.append({"kind": kind, **asked, **shares})
    return pd.DataFrame(found).set_index("kind")


def _share(rows: pd.DataFrame, column: str, seed: int) -> Mean:
    by_case = rows.groupby("case", sort=False)[column].mean()
    return interval(list(PERCENT * by_case), seed, bounds=SHARE)


def edited(rows: pd.DataFrame) -> tuple[int, int]:
    """How many cases have all their edits said, and how many there are."""
    facts = rows[rows.kind == FACT].groupby("case").right_after.min()
    return int((facts == 1).sum()), len(facts)
