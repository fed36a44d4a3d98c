"""The front page and the README: what was found, editor by kind of evidence, from rows that ship.

Rows are read as they lie in ``results/``; that they are today's is what ``tests/test_results.py``
asks. No number is typed: sentences are a template, ``notebooks/text/front.md.j2``.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from ..files import replacing
from ..paper.published import published
from ..provenance import ROOT
from ..study import store
from ..study.drawing import INK, figure, hue, whiskers
from ..study.sentences import Text
from ..study.stats import POINTS, SHARE, Mean, interval
from ..study.tables import BASELINE, Table, style

CHAPTER = "03_ace"  #: whose rows are read
LOCATED, SEARCHED = "ACE (located)", "ACE"
#: Editors as the front page calls them, in its order; the published ACE locates its layers.
CALLED = {
    BASELINE: BASELINE,
    "FT": "FT",
    "ROME": "ROME",
    "MEMIT": "MEMIT",
    "PMET": "PMET",
    "AlphaEdit": "AlphaEdit",
    "IFMET": "IFMET",
    LOCATED: "ACE, layers by attribution",
    SEARCHED: "ACE, layers by search",
}
REACHED, KEPT, ALIKE = "multi_hop", "specificity_token", "specificity_near"
PLOT = {REACHED: "multi-hop questions answered (%)", KEPT: "facts of like names kept (%)"}
WIDTH = 100  #: of lines of text
BETTER: dict = dict(ha="right", fontsize=8, color=INK)
BEGIN, END = "<!-- front: acelib run --all --update -->", "<!-- end of front -->"
PICTURE = Path("book") / "_static" / "front.svg"


def shipped(root: Path = ROOT) -> pd.DataFrame:
    """One row per case, editor and reference model: ``REACHED``, ``KEPT``, ``ALIKE``, in percent.

    Raises ValueError if no rows of chapter 03 ship.
    """
    rows = []
    for path in sorted((root / "results" / CHAPTER).glob("*.jsonl")):
        found = store.read(path)
        rows += [
            {
                **found.manifest["names"],
                **{name: 100 * row[name] for name in (*PLOT, ALIKE)},
                "case": item,
            }
            for (item, _), line in found.lines.items()
            for row in line.rows
        ]
    if not rows:
        raise ValueError("no rows of chapter 03 are in results/; acelib run 03_ace --update")
    return pd.DataFrame(rows)


def shares(rows: pd.DataFrame, metric: str) -> dict[str, dict[str, Mean]]:
    """Mean over cases with its 95 % interval, in percent: {model: {editor: ...}}."""
    found: dict[str, dict[str, Mean]] = {}
    for (model, editor), part in rows.groupby(["model", "editor"]):
        mean = interval(list(part[metric].dropna()), bounds=SHARE)
        found.setdefault(str(model), {})[str(editor)] = mean
    return found


def by_evidence(rows: pd.DataFrame) -> pd.DataFrame:
    """Editors x (source, what): multi-hop accuracy as published and as measured, in percent."""
    quoted = published(2)
    quoted = quoted[quoted.n_edits == "all"].replace({"editor": {SEARCHED: LOCATED}})
    cells: dict[tuple[str, str], Mapping[str, object]] = {
        (f"published {model}", "multi-hop"): dict(zip(part.editor, part.value, strict=True))
        for model, part in quoted.groupby("model", sort=False)
    }
    for model, editors in shares(rows, REACHED).items():
        cells[f"measured {model}", "multi-hop"] = editors
    there = [name for name in CALLED if any(name in cell for cell in cells.values())]
    table = pd.DataFrame(
        {key: [cell.get(name, float("nan")) for name in there] for key, cell in cells.items()},
        index=[CALLED[name] for name in there],
        dtype=object,
    )
    return table.rename_axis(columns=["source", "what"])


def table(rows: pd.DataFrame) -> Table:
    """``by_evidence``, styled."""
    return style(by_evidence(rows), Text("front").render("table"))


def leads(rows: pd.DataFrame, name: str) -> dict[str, tuple[str, Mean]]:
    """By model: the best other editor, ACE in either form left out, and how far ``name`` is ahead
    of it in multi-hop accuracy on the same cases, in percentage points.
    """
    found = {}
    for model, editors in shares(rows, REACHED).items():
        others = [one for one in editors if one not in (BASELINE, LOCATED, SEARCHED)]
        best = max(others, key=lambda one: editors[one].mean)
        of = {
            one: rows[(rows.model == model) & (rows.editor == one)].set_index("case")[REACHED]
            for one in (name, best)
        }
        found[model] = best, interval(list((of[name] - of[best]).dropna()), bounds=POINTS)
    return found


def keepers(rows: pd.DataFrame, name: str) -> dict[str, tuple[Mean, str, Mean]]:
    """By model, what ``name`` keeps of the other facts of edited relations, and which editor keeps
    most of them, in percent.
    """
    found = {}
    for model, editors in shares(rows, ALIKE).items():
        best = max((one for one in editors if one != BASELINE), key=lambda one: editors[one].mean)
        found[model] = editors[name], best, editors[best]
    return found


def sentences(rows: pd.DataFrame) -> str:
    """What was found, in a few sentences of Markdown."""
    text = Text("front").render(
        "found",
        located=leads(rows, LOCATED),
        searched=leads(rows, SEARCHED),
        kept=keepers(rows, LOCATED),
    )
    return fill(" ".join(text.split()), WIDTH, break_on_hyphens=False)


@figure
def picture(rows: pd.DataFrame, narrow: bool = False) -> Figure:
    """What an edit reaches against what it leaves alone, a panel a model, with 95 % intervals.

    narrow: for a phone, panels and legend one below the other.
    """
    reached, kept = (shares(rows, name) for name in PLOT)
    n = len(reached)
    shape, size = ((n, 1), (3.9, 2.9 * n + 1.3)) if narrow else ((1, n), (8.6, 3.7))
    fig, grid = plt.subplots(*shape, figsize=size, sharex=True, sharey=True, squeeze=False)
    axes = grid.ravel()
    for ax, model in zip(axes, reached, strict=True):
        for name in [one for one in CALLED if one in reached[model]]:
            x, y = reached[model][name], kept[model][name]
            look: dict = dict(color=hue(name), lw=1.1, ms=6, label=CALLED[name])
            ax.errorbar(x.mean, y.mean, whiskers([y]), whiskers([x]), _mark(name), **look)
        ax.set(title=model)
        ax.annotate("better ↗", (1, 1), (-4, 10), "axes fraction", "offset points", **BETTER)
    plt.setp(grid[-1], xlabel=PLOT[REACHED])
    plt.setp(grid[:, 0], ylabel=PLOT[KEPT])
    place: dict = {"loc": "outside right center"}
    if narrow:
        place = {"loc": "outside lower center", "ncols": 2}
    fig.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, **place)
    return fig


def _mark(name: str) -> str:
    return {LOCATED: "D", SEARCHED: "s", BASELINE: "x"}.get(name, "o")


def svg(rows: pd.DataFrame, narrow: bool = False) -> str:
    """``picture`` as SVG, the same for the same rows; both forms can stand on one page."""
    out = io.StringIO()
    with plt.rc_context({"svg.hashsalt": "front", "svg.fonttype": "path"}):
        picture(rows, narrow).savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r'(\bid="|href="#|url\(#)', r"\1narrow-", text) if narrow else text


def summary(rows: pd.DataFrame) -> str:
    """The README's part: the sentences, the figure, the table in Markdown."""
    found = by_evidence(rows)
    heads = [column[0] for column in found.columns]
    alt = " ".join(Text("front").render("alt").split())
    return "\n".join(
        [sentences(rows), "", f"![{alt}]({PICTURE.as_posix()})", "", *_markdown(found, heads)]
    )


def _markdown(found: pd.DataFrame, heads: list[str]) -> list[str]:
    body = [
        f"| {name} | {' | '.join(map(_cell, row))} |"
        for name, row in zip(found.index, found.to_numpy(), strict=True)
    ]
    head = f"| multi-hop questions answered, % | {' | '.join(heads)} |"
    return [head, f"|---|{'---|' * len(heads)}", *body]


def _cell(value: object) -> str:
    return f"{value:.0f}" if isinstance(value, Mean) else "–" if value != value else f"{value}"


def keep(root: Path = ROOT) -> None:
    """Writes the figure, and the README's part between ``BEGIN`` and ``END``, if they differ.

    Nothing if no rows of chapter 03 ship.
    """
    if not list((root / "results" / CHAPTER).glob("*.jsonl")):
        return
    rows = shipped(root)
    readme, drawn = root / "README.md", svg(rows)
    before, _, rest = readme.read_text("utf-8").partition(BEGIN)
    text = f"{before}{BEGIN}\n{summary(rows)}\n{END}{rest.partition(END)[2]}"
    for path, new in ((readme, text), (root / PICTURE, drawn)):
        if not path.exists() or path.read_text("utf-8") != new:
            with replacing(path) as part:
                part.write_text(new, "utf-8", newline="\n")
