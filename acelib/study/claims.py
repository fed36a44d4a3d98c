"""Claims of the papers beside what the chapters measured, and the verdicts of the intervals.

The claims of each paper are in a file of ``data/paper``. A chapter hands over in its check cell,
``assert_table(measured({(claim, model): Mean, ...}), "03_ace_claims")``; that is read here. A claim
names the chapter that tests it and a rule, "> 0", "< 10" or "1..2"; one that no chapter tests says
so in place of the rule. A chapter that has not been executed yet has handed over nothing: its
claims are not tested yet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import inf, isnan, nan
from pathlib import Path

import pandas as pd

from ..model.lm import LM
from ..paper.published import published
from ..provenance import ROOT
from .power import cases_needed
from .stats import POINTS, SHARE, Mean, unanimous_interval

#: A model whose verdicts stand beside those of the reference models -> the chapter that hands them
#: over, whatever chapter the list of claims names.
REAL = {"smollm2-135m": "09_real_model"}
BOUNDS = {"points": POINTS, "%": SHARE}  #: of values in a unit
SUFFIX = "_claims"  #: of the name of a check in which a chapter hands over
#: paper -> column of references in its list of claims -> model of the paper
PAPERS = {
    "ACE": {"gptj": "GPT-J", "qwen3": "Qwen3-8B"},
    "Query Localization": {"gpt2": "GPT-2", "llama2": "LLaMA2-7b", "llama3": "LLaMA3-8b"},
}
FILES = {"ACE": "ace_claims", "Query Localization": "ql_claims"}  #: in ``data/paper``
PAPER = PAPERS["ACE"]  #: whose models the reference models stand for
WAITING = "not tested yet"  #: in place of a verdict
VERDICTS = ("holds", "fails", "cannot tell")  #: on one model
WORDS = {  #: verdict -> of one claim, of several
    "holds": ("holds", "hold"),
    "holds in part": ("holds in part", "hold in part"),
    "disagree": ("divides the models", "divide the models"),
    "cannot tell": ("cannot be told", "cannot be told"),
    "fails in part": ("fails in part", "fail in part"),
    "fails": ("fails", "fail"),
}


def claims_list() -> pd.DataFrame:
    """The claims of all papers by id, each paper's in its order.

    Columns: paper, section, claim, quantity, unit, rule, chapter, models, published values, why.
    """
    lists = [published(file).assign(paper=paper) for paper, file in FILES.items()]
    return pd.concat(lists).fillna("").set_index("id")


def counterparts(hosts: Mapping[str, LM]) -> dict[str, str | None]:
    """The model of the paper whose published values stand beside a measured one, by name.

    It is the one of the same architecture, or None.
    """
    return {name: PAPER.get(host.model.config.model_type) for name, host in hosts.items()}


def with_exact_intervals(values: Mapping[tuple[str, str], Mean]) -> dict[tuple[str, str], Mean]:
    """Values by (claim, model); points and percentages that all cases agree on get an interval.

    It is the one that n allows, ``stats.unanimous_interval``.
    Raises ValueError for an unknown claim.
    """
    units = claims_list().unit
    if unknown := [claim for claim, _ in values if claim not in units]:
        raise ValueError(f"unknown claim {unknown[0]!r}; known: {', '.join(units.index)}")
    return {
        (claim, model): unanimous_interval(value, BOUNDS[units[claim]])
        if units[claim] in BOUNDS
        else value
        for (claim, model), value in values.items()
    }


def verdicts(values: Mapping[tuple[str, str], Mean]) -> dict[tuple[str, str], str]:
    """What the page of all claims will say of the values of a chapter, by (claim, model).

    That is the ``verdict`` of each of ``with_exact_intervals``.
    """
    rules = claims_list().rule
    return {
        (claim, model): verdict(rules[claim], value)
        for (claim, model), value in with_exact_intervals(values).items()
    }


def measured(values: Mapping[tuple[str, str], Mean]) -> pd.DataFrame:
    """Rows (claim, model) of ``with_exact_intervals``, for a chapter's check cell.

    Columns: mean, low, high, and n as text, which a check compares exactly.
    model: name, folder or hub id of a model (its last part is kept), or "both" where one number
    compares the two.
    Raises ValueError for an unknown claim, or a mean outside its interval.
    """
    rows = {}
    for (claim, model), value in with_exact_intervals(values).items():
        if not (isnan(value.low) or value.low <= value.mean <= value.high):
            raise ValueError(
                f"claim {claim!r}: mean {value.mean:g} lies outside its interval "
                f"[{value.low:g}, {value.high:g}]"
            )
        rows[claim, Path(model).name] = [value.mean, value.low, value.high, str(value.n)]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high", "n"])


def slack(values: Mapping[tuple[str, str], Mean], k: int = 2) -> list[float]:
    """By how much k cases that come out otherwise move each row of ``measured``.

    That is 100 k / n points; 0.05 in other units. The tolerance of a check cell on
    another machine, where rounding may flip an answer.
    """
    units = claims_list().unit
    return [
        100 * k / max(value.n, 1) if units.get(claim) in BOUNDS else 0.05
        for (claim, _), value in values.items()
    ]


def kept_values(folder: Path = ROOT / "results" / "claims") -> dict[tuple[str, str], Mean]:
    """What the chapters keep in ``folder``, by claim and model.

    Raises ValueError naming file and row for a claim that is unknown or another chapter's, or a
    model that the claim is not tested on.
    """
    known, found = claims_list(), {}
    for path in sorted(Path(folder).glob("*.json")):
        for (claim, model), value in json.loads(path.read_text("utf-8"))["rows"]:
            real = claim in known.index and REAL.get(model) == path.stem
            if not real and (
                claim not in known.index
                or known.chapter[claim] != path.stem
                or model not in known.models[claim].split("; ")
            ):
                raise ValueError(
                    f"{path.name}: claim {claim!r} on {model!r} is not in the list of what "
                    "this chapter tests"
                )
            *numbers, n = value
            mean, low, high = (nan if part is None else part for part in numbers)
            found[claim, model] = Mean(mean, low, high, int(n))
    return found


def verdict(rule: str, value: Mean) -> str:
    """ "holds", "fails" or "cannot tell".

    It holds if the whole interval obeys the rule, and fails if all of it lies beyond the rule's
    bound. An interval that ends at the bound, as a few cases that all but agree easily give it,
    decides nothing: one cannot tell. ``needed`` says how many cases would decide.
    rule: "> x", "< x", or "a..b", bounds included.   value: without an interval its mean counts
    alone. Raises ValueError for another rule.
    """
    low, high, included = _bounds(rule)
    least, most = (value.mean, value.mean) if isnan(value.low) else (value.low, value.high)
    obeys = [low <= end <= high if included else low < end < high for end in (least, most)]
    outside = most < low or least > high or (least == most and not any(obeys))
    if all(obeys) or outside:
        return "holds" if all(obeys) else "fails"
    return "cannot tell"


def needed(rule: str, value: Mean) -> float:
    """How many cases would decide a claim: ``power.cases_needed`` to the rule's nearer bound.

    nan where it is decided, and where no number is known.
    """
    return _cases(rule, value) if verdict(rule, value) == "cannot tell" else nan


def _cases(rule: str, value: Mean) -> float:
    """``needed``, also where the interval has decided."""
    low, high, _ = _bounds(rule)
    nearer = low if abs(value.mean - low) <= abs(value.mean - high) else high
    return cases_needed(value, nearer)


def _bounds(rule: str) -> tuple[float, float, bool]:
    """Between which numbers a value obeys a rule, and whether it does at them."""
    number = r"(-?\d+(?:\.\d+)?)"
    if found := re.fullmatch(rf"([<>]) {number}", rule):
        bound = float(found[2])
        return (bound, inf, False) if found[1] == ">" else (-inf, bound, False)
    if found := re.fullmatch(rf"{number}\.\.{number}", rule):
        return float(found[1]), float(found[2]), True
    raise ValueError(f"rule {rule!r} is none of '> x', '< x', 'a..b'")


def overall(verdicts: Mapping[str, str]) -> str:
    """What all models agree on; else "disagree" if it holds on one and fails on another.

    Where one cannot tell on some: "holds in part" or "fails in part", by what the others say.
    """
    found = set(verdicts.values())
    if len(found) == 1:
        return found.pop()
    if {"holds", "fails"} <= found:
        return "disagree"
    return "holds in part" if "holds" in found else "fails in part"


def quoted(reference: str, model: str) -> str:
    """A published value as printed, a difference of two, or several; "" for no reference.

    reference: "ace_13", a number of the running text; "2 editor=ACE n_edits=all", the one value of
    Table 2 of ACE in that row of ``model`` ("column=ffn" names a column other than "value");
    "ql_table_02 metric=Gen ...", of another paper's table; "a - b"; "a; b"; "a; b -> c; d".
    Returns "9.44", "28; 16; 33" or "28, 16 → 6, 4".
    Raises ValueError unless a reference means one value.
    """
    if " -> " in reference:
        return " → ".join(
            quoted(part, model).replace("; ", ";").replace(";", ", ")
            for part in reference.split(" -> ")
        )
    terms = (
        [[_quoted(term, model) for term in part.split(" - ")] for part in reference.split("; ")]
        if reference
        else []
    )
    return "; ".join(
        term[0] if len(term) == 1 else f"{float(term[0]) - float(term[1]):.4g}" for term in terms
    )


def _quoted(term: str, model: str) -> str:
    """One value: ``quoted`` without differences and lists."""
    number, *conditions = re.split(r" (?=\w+=)", term)
    column = "value"
    if text := re.fullmatch(r"([a-z]+)_\d+", number):
        rows, want = published(f"{text[1]}_inline"), {"id": number}
    else:
        table = int(number) if number.isdigit() else number
        rows, want = published(table), dict(words.split("=", 1) for words in conditions)
        column = want.pop("column", column)
        if "model" in rows:
            want["model"] = model
    for name, value in want.items():
        rows = rows[rows[name].astype(str) == value]
    if len(rows) != 1:
        raise ValueError(f"{term!r} means {len(rows)} published values of {model}, not one")
    return str(rows[column].item())


def _of_real(claim: str, rule: str, model: str, values: Mapping[tuple[str, str], Mean]) -> str:
    """The verdict of a claim on a real model alone; "" where it was not measured there."""
    return verdict(rule, values[claim, model]) if (claim, model) in values else ""


def _cases_needed(
    claim: str, rule: str, values: Mapping[tuple[str, str], Mean]
) -> dict[str, float]:
    """``needed`` by model, of the models on which the claim is open and a number is known."""
    numbers = {
        model: needed(rule, value) for (name, model), value in values.items() if name == claim
    }
    return {model: n for model, n in numbers.items() if not isnan(n)}


def table(values: Mapping[tuple[str, str], Mean]) -> pd.DataFrame:
    """Every claim: paper, where, what, published and measured by model, verdict, how many cases
    would decide it by model, why; and the verdict of each real model beside that of the reference
    models.

    values: ``kept_values``. Published columns are those of the claim's paper, nan in the others.
    Raises ValueError naming the first claim that a chapter should have measured on a model and did
    not; a chapter that has handed over nothing has not run yet.
    """
    known, lines = claims_list(), {}
    run = {known.chapter[claim] for claim, _ in values}
    for claim, of in known.iterrows():
        models = of.models.split("; ") if of.chapter in run else []
        if missing := [model for model in models if (claim, model) not in values]:
            raise ValueError(
                f"claim {claim!r} has no value for {missing[0]!r}; chapter {of.chapter} hands it "
                f"over as {of.chapter}{SUFFIX}"
            )
        each = {model: verdict(of.rule, values[claim, model]) for model in models}
        differ = len(set(each.values())) > 1
        apart = [f"{model}: {result}" for model, result in each.items()] if differ else []
        lines[claim] = {
            "paper": of.paper,
            "section": of.section,
            "claim": of.claim,
            "chapter": of.chapter,
            "quantity": of.quantity,
            "unit": of.unit,
            **{
                f"published {name}": quoted(of[column], name)
                for column, name in PAPERS[of.paper].items()
            },
            **{
                f"measured {model}": values.get((claim, model))
                for model in ("gptj-mini", "qwen3-mini", "both", *REAL)
            },
            **{f"verdict {model}": _of_real(claim, of.rule, model, values) for model in REAL},
            "verdict": overall(each) if each else WAITING if of.chapter else of.rule,
            "needed": _cases_needed(claim, of.rule, values),
            "why": ". ".join([*apart, *filter(None, [of.why])]),
        }
    return pd.DataFrame.from_dict(lines, orient="index")
