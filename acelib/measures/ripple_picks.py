"""The ripples of chapter 06 to pick from: what every editor's one edit changes."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ..study.picks import FROM_WHITE, Pick, map_with_menu, numbers, restyling

TITLE = "Pick an edit: what every editor makes of it"
ALT = (
    "Map of kinds of questions by editors for one edit, with a menu of edits. Numbers are wrong "
    "answers. What rests on a cell tells how many questions of the kind were asked."
)
HOVER = "%{x}<br>%{y} asked<br>%{customdata:.0f} wrong, %{z:.1f} %<extra></extra>"
LINE, FRAME, LABELS = 17, 130, 65  #: pixels of a line, around all lines, of editors' names


def one_edit(rows: pd.DataFrame, edits: pd.DataFrame) -> Pick:
    """Wrong answers after one edit, kinds of questions x editors, by model and edit.

    Kinds are category and relation. Of those that must stay, those that no editor damages are left
    out. Rows count answers; what an edited model says instead they do not hold.
    rows: ``ripple_analysis.numbered``.   edits: ``ripple_analysis.edits_table``.
    """
    editors = list(rows.editor.unique())
    entries = []
    for (model, edit), part in rows.groupby(["model", "edit"], sort=False):
        fact = edits.loc[(model, edit)]
        label = f"{model} {edit + 1}: {fact.fact} {fact.new}"
        entries.append(restyling(label, *_content(part, editors)))
    cells = dict(colorscale=FROM_WHITE, texttemplate="%{text}", hovertemplate=HOVER)
    lines = {"dtick": 1, "tickfont": {"size": 10}}
    return Pick(map_with_menu(entries, LABELS, lines, **cells), TITLE, ALT)


def _content(part: pd.DataFrame, editors: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Data of one edit, and the height that its lines take."""
    kinds = ["category", "relation"]
    wrong, asked = (
        part.pivot_table(index=kinds, columns="editor", values=of, observed=True)[editors]
        for of in ("wrong", "asked")
    )
    must = part.groupby(kinds, observed=True).change.first()
    kept = must | wrong.gt(0).any(axis=1)
    wrong, asked = wrong[kept], asked[kept]
    names = [
        f"{category}{f': {relation}' if relation else ''} ({count:.0f})".replace("_", " ")
        for (category, relation), count in asked.iloc[:, 0].items()
    ]
    data = {
        "x": [editors],
        "y": [names],
        "z": [numbers(100 * wrong / asked)],
        "text": [wrong.map(lambda count: f"{count:.0f}" if count else "").to_numpy().tolist()],
        "customdata": [numbers(wrong, 0)],
    }
    return data, {"height": FRAME + LINE * len(names)}
