"""Where questions are lost: the first hop that a chain of thought does not name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from ..records import Case
from ..study.stats import SHARE, Mean, interval
from ..study.tables import BASELINE


def questions(rows: pd.DataFrame, cases: Mapping[str, Sequence[Case]]) -> pd.DataFrame:
    """One row per model, editor and question, without the unedited model.

    rows: of a comparison of editors.   cases: by model, those that the rows are of.
    Returns columns model, editor, case_id, lost_at (0: every hop is named), edited (whether the hop
    where the question is lost was edited), first wrong hop ("hop 2", "none"), who (editor, model).
    """
    edited = {
        (model, case.case_id): _edited_hops(case) for model, some in cases.items() for case in some
    }
    some = rows[rows.editor != BASELINE].explode("lost_at").astype({"lost_at": int})
    some = some[["model", "editor", "case_id", "lost_at"]].reset_index(drop=True)
    keys = zip(some.model, some.case_id, some.lost_at, strict=True)
    return some.assign(
        edited=[hop > 0 and edited[model, case][hop - 1] for model, case, hop in keys],
        who=some.editor + ", " + some.model,
        **{"first wrong hop": some.lost_at.map(lambda hop: f"hop {hop}" if hop else "none")},
    )


def _edited_hops(case: Case) -> list[bool]:
    """For each hop of the new chain, whether an edit wrote it."""
    edits = {(edit.text, edit.target_new) for edit in case.edits}
    return [(hop.cloze, hop.answer) in edits for hop in case.new_hops]


def share(part: pd.DataFrame, hit: pd.Series, seed: int) -> Mean:
    """Share of the questions of a case for which ``hit`` is true, in percent, mean over cases."""
    by_case = 100 * hit.groupby(part.case_id).mean()
    return interval(by_case, seed, bounds=SHARE)


def table(lost: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Share of questions (%) by the first wrong hop, and by whether it was edited.

    lost: ``questions``.   Returns (model, editor) x columns of ``Mean``.
    """
    labels = sorted(lost["first wrong hop"].unique(), key=lambda name: (name != "none", name))
    lines = {}
    for (model, editor), part in lost.groupby(["model", "editor"], sort=False):
        hits = {label: part["first wrong hop"] == label for label in labels}
        hits["lost at an edited hop"] = part.edited
        hits["lost at another"] = (part.lost_at > 0) & ~part.edited
        lines[model, editor] = {label: share(part, hit, seed) for label, hit in hits.items()}
    return pd.DataFrame(lines, dtype=object).T


def at_later_hops(lost: pd.DataFrame, seed: int) -> dict[str, dict[str, Mean]]:
    """Share of all questions (%) that are lost after the first hop, by model and editor."""
    return {
        model: {
            name: share(part, part.lost_at > 1, seed)
            for name, part in of_model.groupby("editor", sort=False)
        }
        for model, of_model in lost.groupby("model", sort=False)
    }


def at_edited_hops(lost: pd.DataFrame, seed: int, without: str = "ACE") -> dict[str, Mean]:
    """Of the questions that editors but ``without`` lose, the share (%) that is lost at an edited
    hop, by model.
    """
    lost = lost[(lost.lost_at > 0) & (lost.editor != without)]
    return {
        model: share(part, part.edited, seed) for model, part in lost.groupby("model", sort=False)
    }
