"""Tables: rows of experiments -> DataFrames, the published value beside the measured one -> HTML.

Published cells are the numbers of the papers (``data/paper``), measured cells are ``Mean``s over
cases, in percent, with their intervals. Nothing here runs a model.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isnan, nan

import pandas as pd
from pandas.io.formats.style import Styler

from ..paper.published import published
from ..provenance import ROOT
from ..world.world import CATEGORIES
from .stats import SHARE, Mean, interval, paired

BASELINE = "Base"  #: the unedited model: judged by the old answers, so no rival of the editors
#: What edits are judged by: columns of the rows of a comparison.
METRICS = ("multi_hop", "efficacy", "paraphrase", "specificity", "specificity_token")
#: metric -> what tables and figures call it, where its name would not do. Published specificity is
#: of the edited and of other relations, and so is the one measured beside it.
NAMES = {"multi_hop": "multi-hop", "specificity_token": "specificity, same last token"}
BLOCKS = {"attn": "attention", "ffn": "FFN"}
CSS = {
    "": "font-variant-numeric: tabular-nums",
    "th, td": "padding: .2rem .45rem; text-align: right",
    "td": "vertical-align: top",
    "th.row_heading": "text-align: left; vertical-align: top; white-space: nowrap",
    "thead tr:first-child th": "text-align: center",
    "caption": "caption-side: top; text-align: left; max-width: 46rem; position: sticky; left: 0",
    "td.best": "font-weight: 700",
    "td.text": "text-align: left",
    "td.first": "border-left: 1px solid rgba(128, 128, 128, .4)",
    ".interval": "display: block; font-size: .8em; font-weight: 400; opacity: .8; "
    "white-space: nowrap",
}


def paired_table(
    rows: pd.DataFrame,
    a: str = "ACE",
    others: Sequence[str] | None = None,
    metrics: Sequence[str] = METRICS,
    seed: int = 0,
) -> pd.DataFrame:
    """``paired`` differences of editor ``a`` to the others by metric, in percentage points.

    others: names of editors; by default all but the unedited model.
    """
    others = (
        [name for name in rows.editor.unique() if name not in (a, BASELINE)]
        if others is None
        else others
    )
    points = rows.assign(**{metric: 100 * rows[metric] for metric in metrics})
    return pd.DataFrame(
        {
            metric: {f"{a} − {other}": paired(points, a, other, metric, seed) for other in others}
            for metric in metrics
        }
    )


def multi_hop_table(
    rows: pd.DataFrame,
    quoted: pd.DataFrame | None = None,
    model: str = "gptj-mini",
    metric: str = "multi_hop",
    seed: int = 0,
) -> pd.DataFrame:
    """Table 2: accuracy by number of edits and over all cases, published and measured, in percent.

    rows: of editors on cases, with a column ``model`` if there are several.
    quoted: ``published(2)`` (default) or ``published(10)``.
    Returns editors x (source, number of edits); the published average is the printed one, which is
    not the mean of its row.
    """
    quoted = published(2) if quoted is None else quoted
    rows = rows.assign(n_edits=rows.n_edits.astype(str))

    def mean(part: pd.DataFrame, count: str | None = None) -> Mean:
        part = part if count is None else part[part.n_edits == count]
        return interval(100 * part[metric], seed, bounds=SHARE)

    counts = sorted({*rows.n_edits, *quoted.n_edits} - {"all"})
    cells = {count: partial(mean, count=count) for count in counts} | {"average": mean}
    column = quoted.n_edits.replace("all", "average")
    return _beside(quoted.assign(column=column), rows, cells, model, "edits")


def metrics_table(
    rows: pd.DataFrame,
    quoted: pd.DataFrame | None = None,
    model: str = "gptj-mini",
    metrics: Sequence[str] = METRICS[1:],
    seed: int = 0,
) -> pd.DataFrame:
    """Table 3: efficacy, paraphrase and specificity, published and measured, in percent.

    Behind them, measured only, the facts of subjects that end in the same token.
    Arguments and result as ``multi_hop_table``; columns are ``NAMES``.
    """
    quoted = published(3) if quoted is None else quoted

    def mean(part: pd.DataFrame, metric: str) -> Mean:
        return interval(100 * part[metric], seed, bounds=SHARE)

    cells = {NAMES.get(metric, metric): partial(mean, metric=metric) for metric in metrics}
    return _beside(quoted.assign(column=quoted.metric.replace(NAMES)), rows, cells, model, "metric")


def by_model(
    table: pd.DataFrame, beside: Mapping[str, str | None], caption: Callable[[str, str], str]
) -> list[Table]:
    """A wide table as one styled table per model.

    Its measured columns, and before them those of the published model that it stands for, if any.
    beside: published model, or None, by measured model (``claims.counterparts``).
    caption: its text for a published model (in words, if there is none) and a measured one.
    """
    columns = {
        model: [
            column
            for column in table.columns
            if column[0] in (f"published {quoted}", f"measured {model}")
        ]
        for model, quoted in beside.items()
    }
    return [
        style(table[columns[model]], caption(quoted or "no published model", model))
        for model, quoted in beside.items()
    ]


def settings(editor) -> dict[str, str]:
    """Layers and hyper-parameters of an editor in the words of the paper, "–" for those it has not.

    λ is the weight of what is to be kept (of AlphaEdit: of the change), the others are of the
    search of a target vector, or of FT's training; of ACE, of its query stage.
    """
    write = getattr(editor, "query", editor)
    names = {
        "λ": "weight",
        "steps": "steps",
        "lr": "lr",
        "decay": "decay",
        "clamp": "clamp",
        "KL": "kl",
    }
    objective = getattr(write, "objective", None)
    values = {
        column: getattr(write, name, getattr(objective, name, None))
        for column, name in names.items()
    }
    return {
        "layers": _layers(editor),
        **{column: "–" if value is None else f"{value:g}" for column, value in values.items()},
    }


def _layers(editor) -> str:
    """The layers that an editor writes, in words."""
    if hasattr(editor, "query_layers"):
        query, value = (
            ", ".join(map(str, some)) for some in (editor.query_layers, editor.value_layers)
        )
        return f"query {query}; value {value}"
    if hasattr(editor, "layers"):
        return ", ".join(map(str, editor.layers))
    return "located for each fact"


def layers_table(
    scores: pd.DataFrame, quoted: pd.DataFrame | None = None, model: str = "gptj-mini", top: int = 9
) -> pd.DataFrame:
    """Table 1: the ``top`` layers of greatest summed importance by category and block, best first.

    Published and measured.
    scores: columns category, block ("attn", "ffn"), layer, importance, perhaps model; one row per
    question, or their sum.
    Returns (category, block) x (source, rank), 0-based layers, equal ones in ascending order;
    published ones as printed. A model with fewer layers leaves ranks empty.
    """
    keys = ["category", "block"]
    sources = {"published GPT-J": published(1) if quoted is None else quoted}
    scores = scores if "model" in scores else scores.assign(model=model)
    for of, part in scores.groupby("model", sort=False):
        sums = part.groupby([*keys, "layer"])["importance"].sum().reset_index()
        sums = sums.sort_values(["importance", "layer"], ascending=[False, True])
        sources[f"measured {of}"] = sums.assign(rank=sums.groupby(keys).cumcount() + 1)
    parts = {
        source: part[part["rank"] <= top].pivot(index=keys, columns="rank", values="layer")
        for source, part in sources.items()
    }
    order = [
        (name, block)
        for name in CATEGORIES
        for block in BLOCKS
        if any((name, block) in part.index for part in parts.values())
    ]
    table = pd.concat(
        {source: part.reindex(order) for source, part in parts.items()},
        axis=1,
        names=["source", "rank"],
    ).astype("Int64")
    return table.set_axis(
        pd.MultiIndex.from_tuples([(CATEGORIES[name], BLOCKS[block]) for name, block in order])
    )


class Table(Styler):
    """A Styler whose plain text is its caption and size.

    No address, and no digit that another machine may round differently.
    """

    def __repr__(self) -> str:
        n_rows, n_columns = self.data.shape
        return f"{html.unescape(self.caption)} ({n_rows} rows x {n_columns} columns)"


def style(table: pd.DataFrame, caption: str) -> Table:
    """``table`` as HTML, intervals below their means, n on hover. Equal tables give equal HTML.

    Cells are of class "published" or "measured" by their column: its labels say so, name a shipped
    model, or it holds ``Mean``s. Where groups of columns are compared, those of ``Mean``s and the
    published ones of the same label have their "best", several if equal, never the unedited model.
    """
    caption = " ".join(caption.split())  # a template breaks its lines
    paths = [
        tuple(map(str, column)) if isinstance(column, tuple) else (str(column),)
        for column in table.columns
    ]
    compared = {
        path[1:]
        for j, path in enumerate(paths)
        if len(path) > 1
        and path[0].startswith("measured ")
        and any(isinstance(cell, Mean) for cell in table.iloc[:, j])
    }
    classes = pd.DataFrame("", table.index, table.columns)
    models = [path.parent.name for path in (ROOT / "data" / "models").glob("*/config.json")]
    for j, path in enumerate(paths):
        cells, kind = table.iloc[:, j], _kind(path, table.iloc[:, j], models)
        rivals = kind and path[0].startswith(kind) and path[1:] in compared
        numbers = [cell.mean if isinstance(cell, Mean) else cell for cell in cells]
        values = [
            number if rivals and name != BASELINE and isinstance(number, float) else nan
            for name, number in zip(cells.index, numbers, strict=True)
        ]
        best = max((value for value in values if not isnan(value)), default=nan)
        text = (
            " text"
            if all(isinstance(cell, str) for cell in cells)
            and (not kind or max(map(len, cells), default=0) > 30)
            else ""
        )
        first = (
            " first" if len(path) > 1 and path[0] not in [other[0] for other in paths[:j]] else ""
        )
        classes.iloc[:, j] = [
            kind + text + first + (" best" if abs(value - best) < 1e-9 else "") for value in values
        ]
    places = max(
        (
            len(f"{cell:g}".partition(".")[2])
            for cell in table.to_numpy().ravel()
            if isinstance(cell, float)
        ),
        default=0,
    )
    name = hashlib.sha256(
        repr((caption, list(table.columns), list(table.index))).encode()
    ).hexdigest()[:8]
    result = Table(table, uuid=name, cell_ids=False, caption=html.escape(caption, quote=False))
    result.set_table_styles(
        [{"selector": selector, "props": props} for selector, props in CSS.items()]
    ).set_td_classes(classes)
    for axis in (0, 1):  # labels are escaped like cells, those of all levels and their names
        result.format_index(escape="html", axis=axis).format_index_names(escape="html", axis=axis)
    return result.set_table_attributes('class="dataframe"').format(
        lambda cell: _html(cell, min(places, 3))
    )


def _kind(path: Sequence[str], cells: pd.Series, models: Sequence[str]) -> str:
    """Of a column with these labels: "published", "measured", or ""."""
    said = " ".join(path)
    if "published" in said.lower():
        return "published"
    return (
        "measured"
        if any(word in said for word in ("measured", *models))
        or any(isinstance(cell, Mean) for cell in cells)
        else ""
    )


def _beside(
    quoted: pd.DataFrame, rows: pd.DataFrame, cells: Mapping[str, Callable], model: str, name: str
) -> pd.DataFrame:
    """Editors x (source, column): the quoted values, then the measured ones by model.

    cells: what a column says of the rows of an editor; the number of cases is added.
    """
    parts = {
        f"published {of}": part.pivot(index="editor", columns="column", values="value").filter(
            list(cells)
        )
        for of, part in quoted.groupby("model", sort=False)
    }
    for of, part in (rows if "model" in rows else rows.assign(model=model)).groupby(
        "model", sort=False
    ):
        editors = dict(list(part.groupby("editor", sort=False)))
        of_editor = {**cells, "cases": len}
        parts[f"measured {of}"] = pd.DataFrame(
            {
                column: {editor: cell(group) for editor, group in editors.items()}
                for column, cell in of_editor.items()
            },
            dtype=object,
        )
    order = sorted(
        dict.fromkeys([*quoted.editor, *rows.editor]), key=lambda editor: editor != BASELINE
    )  # the unedited model first
    return pd.concat(
        {source: part.reindex(order) for source, part in parts.items()},
        axis=1,
        names=["source", name],
    )


def _html(cell, places: int) -> str:
    if isinstance(cell, Mean):
        mean, _, bounds = format(cell).partition(" ")
        return f'<span title="n = {cell.n}">{mean}</span>' + (
            f'<span class="interval">{bounds}</span>' if bounds else ""
        )
    if cell is None or cell is pd.NA or (isinstance(cell, float) and isnan(cell)):
        return "–"
    return f"{cell:z.{places}f}" if isinstance(cell, float) else html.escape(str(cell))
