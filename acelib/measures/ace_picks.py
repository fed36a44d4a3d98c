"""Chapter 03's cases to pick from: what every editor's model answers to each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pandas as pd

from ..records import Case
from ..study.picks import AXIS, Pick, lines, map_with_menu, numbers, restyling

TITLE = "Pick a case: what every editor's model answers"
ALT = (
    "Map of cases by editors, with a menu of models; darker is more of three questions right. What "
    "rests on a cell tells the edits of the case, its question, and the answers."
)
HOVER = "%{y}<br><br>%{x}: %{text}<extra></extra>"
LINE, FRAME, LABELS = 8, 130, 75  #: pixels of a case, around all cases, of editors' names


def cases(rows: pd.DataFrame, judged: Mapping[str, Sequence[Case]]) -> Pick:
    """Share of right answers to the three questions of a case, cases x editors, by model.

    Cases are in the order of their number of edits and of hops. The unedited model is judged by the
    old answer.
    rows: of ``ace.experiment``.   judged: ``experiments.cases_of`` of it.
    """
    entries = [
        restyling(str(model), *_content(part, judged[str(model)]))
        for model, part in rows.groupby("model", sort=False)
    ]
    ticks = entries[0]["args"][1]["yaxis"]
    return Pick(map_with_menu(entries, LABELS, ticks, hovertemplate=HOVER), TITLE, ALT)


def _content(part: pd.DataFrame, some: Sequence[Case]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Data of one model; its axis, whose ticks are the numbers of edits, and the height."""
    ordered = sorted(some, key=lambda case: (case.n_edits, case.n_hops, case.case_id))
    ids, editors = [case.case_id for case in ordered], list(part.editor.unique())
    share = part.pivot(index="case_id", columns="editor", values="multi_hop_each")
    answers = part.pivot(index="case_id", columns="editor", values="answers")
    data = {
        "x": [editors],
        "y": [[_told(case) for case in ordered]],
        "z": [numbers(100 * share.loc[ids, editors], 0)],
        "text": [answers.loc[ids, editors].map(_counted).to_numpy().tolist()],
    }
    starts = [0, *(i for i, (a, b) in enumerate(pairwise(ordered), 1) if a.n_edits != b.n_edits)]
    ticks = {
        "tickvals": starts,
        "ticktext": [f"{ordered[i].n_edits} edit{'s' * (ordered[i].n_edits > 1)}" for i in starts],
    }
    axis = {**AXIS, "autorange": "reversed", "ticks": "outside", **ticks}
    return data, {"yaxis": axis, "height": FRAME + LINE * len(ordered)}


def _told(case: Case) -> str:
    """A case in a few lines: its edits, its first question, and the answers that are right."""
    edits = [f"{edit.text} {edit.target_true} → {edit.target_new}" for edit in case.edits]
    right = f"right: {case.new_answer} (before: {case.answer})"
    return lines(f"case {case.case_id}", *edits, case.questions[0], right)


def _counted(answers: Sequence[str]) -> str:
    """ "Paris, Paris, Rome" as "Paris (2 of 3), Rome (1 of 3)"."""
    counts = Counter(answer.strip() or "nothing" for answer in answers)
    return lines(
        ", ".join(f"{answer} ({count} of {len(answers)})" for answer, count in counts.most_common())
    )
