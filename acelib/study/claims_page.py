"""The page of claims: verdicts by chapter, what each claim was measured by, and one claim that
stands for each chapter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from ..provenance import ROOT
from . import claims
from .claims import WORDS as WORDS
from .parameters import chapters as listed
from .power import words
from .sentences import each
from .stats import Mean

HEADS = {  #: verdict -> head of its list
    "holds": "Holds",
    "holds in part": "Holds in part",
    "disagree": "Holds on one model, fails on another",
    "cannot tell": "Cannot tell",
    "fails in part": "Fails in part",
    "fails": "Fails",
    "cannot be tested here": "Cannot be tested here",
    "not tested yet": "Not tested yet",
}
LEADS = {  #: chapter -> the claim that stands for it
    "01_storage": "zeroing_specific",
    "02_accumulation": "implicit_before_answer",
    "03_ace": "ace_leads_best",
    "04_ablations": "query_layers_needed",
    "05_knowledge_bottleneck": "ace_gains_from_layers",
    "06_ripple": "edits_propagate",
    "appendix_i_latency": "vectors_dominate",
    "appendix_j_alphaedit": "alphaedit_backbone",
    "appendix_l_robustness": "counterfactual_edits",
    "appendix_m_derivation": "importance_is_additive",
    "companion_query_localization": "ql_c10",
}
MODELS = ("gptj-mini", "qwen3-mini")
Values = Mapping[tuple[str, str], Mean]  #: by claim and model, as ``claims.kept_values`` gives them


def judged(values: Values, root: Path = ROOT) -> pd.DataFrame:
    """``claims.table``, in the order of the chapters in the book, with each chapter's title.

    Claims of a chapter, or of a paper, that the book does not have are left out.
    """
    table = claims.table(values)
    there = table.chapter.isin([*listed(root)])
    table = table[there | (table.chapter == "") & table.paper.isin(table.paper[there])]
    order = titles([*dict.fromkeys(table.chapter)], root)
    places = {name: i for i, name in enumerate(order)}
    rank = table.chapter.map(places).fillna(len(order))
    table = table.assign(title=table.chapter.map(order).fillna("no chapter"), rank=rank)
    return table.sort_values("rank", kind="stable").drop(columns="rank")


def titles(chapters: Sequence[str], root: Path = ROOT) -> dict[str, str]:
    """Titles of the book's chapters, in its order; behind them those of further ``chapters``."""
    names = dict.fromkeys([*listed(root), *sorted({*chapters} - {""})])
    return {name: _title(root / "notebooks" / f"{name}.ipynb") for name in names}


def _title(notebook: Path) -> str:
    first = json.loads(notebook.read_text("utf-8"))["cells"][0]["source"]
    return "".join(first).splitlines()[0].strip("# ")


def tally(rows: pd.DataFrame) -> str:
    """ "3 hold, 1 fails": how many of the claims have which verdict."""
    counts = {name: int((rows.verdict == name).sum()) for name in WORDS}
    return ", ".join(f"{n} {WORDS[name][n > 1]}" for name, n in counts.items() if n)


def verdict_numbers(rows: pd.DataFrame) -> dict:
    """How many claims there are, how many are tested in how many chapters, and their verdicts."""
    tested = rows[(rows.chapter != "") & (rows.verdict != claims.WAITING)]
    return {
        "claims": len(rows),
        "tested": len(tested),
        "chapters": tested.chapter.nunique(),
        "tally": tally(tested),
        "words": list(tested.verdict[tested.verdict.isin(WORDS)]),
        "untestable": int((rows.verdict == "cannot be tested here").sum()),
        "untested": int((rows.verdict == claims.WAITING).sum()),
    }


def papers(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The claims of each paper, without columns that only others have."""
    return {str(paper): part[_columns(part)] for paper, part in rows.groupby("paper", sort=False)}


def _columns(part: pd.DataFrame) -> list[str]:
    """All columns but the published ones of other papers."""
    return [name for name in part if not name.startswith("published ") or part[name].notna().any()]


def by_paper(rows: pd.DataFrame) -> dict[str, str]:
    """``tally`` of each paper's claims that are tested; "none is tested yet" if there are none."""
    return {paper: tally(part) or "none is tested yet" for paper, part in papers(rows).items()}


def selection(rows: pd.DataFrame, only: Sequence[str] = ()) -> pd.DataFrame:
    """Claims of some verdicts (all if none is named), numbered from 1, with a column id."""
    some = rows[rows.verdict.isin(only)] if only else rows
    some = some.reset_index(names="id")
    return some.set_axis(some.index + 1)


def results_table(rows: pd.DataFrame, values: Values) -> pd.DataFrame:
    """Claims with what is published and measured, and their verdicts.   rows: ``selection``."""
    published = {name: rows[name].replace("", "–") for name in rows.filter(like="published ")}
    columns = {
        "verdict": rows.verdict,
        "claim": rows.claim,
        "section": rows.section,
        **published,
        **{f"measured {name}": rows[f"measured {name}"].map(_text) for name in MODELS},
        "measured difference": rows["measured both"].map(_text),
        **{f"measured {name}": rows[f"measured {name}"].map(_text) for name in claims.REAL},
        "unit": rows.unit.replace("", "–"),
        "n": rows.id.map({claim: _counts(claim, values) for claim in rows.id}),
        "n needed": rows.needed.map(_needed),
        **{f"verdict on {name}": _or_dash(rows[f"verdict {name}"]) for name in claims.REAL},
        "note": rows.why.replace("", "–"),
    }
    return pd.DataFrame(columns)


def rules_table(rows: pd.DataFrame) -> pd.DataFrame:
    """What is measured for each claim, and the rule of its verdict.   rows: ``selection``."""
    columns = {
        "chapter": rows.title,
        "quantity": rows.quantity.replace("", "–"),
        "unit": rows.unit.replace("", "–"),
        "rule": rows.id.map(claims.claims_list().rule),
        "name in the list": rows.id,
    }
    return pd.DataFrame(columns)


def leads(rows: pd.DataFrame) -> dict[str, dict]:
    """By chapter, the claim that stands for it, what was measured, and the tally of all its claims
    ("" if it has only the one).
    """
    lines = {}
    told = rows[(rows.chapter != "") & (rows.verdict != claims.WAITING)]
    for chapter, part in told.groupby("chapter"):
        claim = rows.loc[LEADS.get(str(chapter), part.index[0])]
        measured = {name: claim[f"measured {name}"] for name in MODELS}
        lines[str(chapter)] = {
            "claim": claim.claim,
            "verdict": claim.verdict,
            "quantity": claim.quantity,
            "measured": {
                name: f"{_text(value)} {claim.unit}".strip()
                for name, value in measured.items()
                if value is not None
            },
            "claims": len(part),
            "tally": tally(part),
        }
    return lines


def lists(rows: pd.DataFrame) -> list[dict]:
    """Claims by verdict, in the order of ``HEADS``: head, and for each claim its text, its section
    and, where models differ, what holds on which; and how many cases would decide what is open.
    """
    groups = []
    for verdict, head in HEADS.items():
        part = rows[rows.verdict == verdict]
        told = [
            {"claim": row.claim, "notes": "; ".join([row.section, *_apart(row), *_open(row)])}
            for _, row in part.iterrows()
        ]
        if told:
            groups.append({"head": head, "claims": told})
    return groups


def _apart(row: pd.Series) -> list[str]:
    """ "gptj-mini: holds": the verdicts by model of a claim on which they differ."""
    return re.findall(rf"[\w-]+: (?:{'|'.join(claims.VERDICTS)})", row.why)


def _open(row: pd.Series) -> list[str]:
    """ "would need about 680 cases (gptj-mini)": of a claim that is open there."""
    here = {name: n for name, n in row.needed.items() if name not in claims.REAL}
    return [f"would need {_needed(here)}"] if here else []


def _needed(numbers: Mapping[str, float]) -> str:
    """ "about 680 cases (gptj-mini) and about 110 cases (qwen3-mini)", or without a name."""
    told = {model: f"{words(n)} cases" for model, n in numbers.items()}
    return told.get("both") or each(told) or "–"


def _counts(claim: str, values: Values) -> str:
    """The numbers of values behind what is measured for a claim, by model."""
    return "; ".join(f"{value.n}" for (name, _), value in values.items() if name == claim) or "–"


def _or_dash(words: pd.Series) -> pd.Series:
    return words.replace("", "–")


def _text(value: Mean | None) -> str:
    return "–" if value is None else f"{value:z.3g}"
