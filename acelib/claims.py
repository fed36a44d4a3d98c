"""Claims of the ACE paper (``data/paper/ace_claims.csv``) beside what the chapters measured, and the verdict that the interval gives.

A chapter hands over in its check cell, ``assert_table(measured({(claim, model): Mean, ...}), "03_ace_claims")``; the kept references are read
here. A claim names the chapter that tests it and a rule, "> 0", "< 10" or "1..2"; one that no chapter tests has a reason in place of the rule.
"""

from __future__ import annotations

import json
import re
from math import inf, isnan
from pathlib import Path
from typing import Mapping

import pandas as pd

from .provenance import ROOT
from .tables import Mean, published, quote

SUFFIX, BOTH = "_claims", "both"  #: of a chapter's reference; the model of a claim that compares the two in one number
MODELS = {"gptj": "GPT-J", "qwen3": "Qwen3-8B"}  #: column of the list of claims -> the paper's model


def listed() -> pd.DataFrame:
    """The claims by id: section, claim, quantity, unit, rule, chapter, models, references to the published values, remark."""
    return published("ace_claims").set_index("id")


def measured(values: Mapping[tuple[str, str], Mean]) -> pd.DataFrame:
    """Rows (claim, model) of mean, low, high, n in the claim's unit, for a chapter's check cell.

    model: the name, folder or hub id of a model (its last part is kept), or "both".
    Raises ValueError for an unknown claim, or a mean outside its interval.
    """
    known, rows = listed().index, {}
    for (claim, model), value in values.items():
        if claim not in known:
            raise ValueError(f"unknown claim {claim!r}; known: {', '.join(known)}")
        if not (isnan(value.low) or value.low <= value.mean <= value.high):
            raise ValueError(f"claim {claim!r}: mean {value.mean:g} lies outside its interval [{value.low:g}, {value.high:g}]")
        rows[claim, Path(model).name] = [value.mean, value.low, value.high, value.n]
    index = pd.MultiIndex.from_tuples(list(rows), names=["claim", "model"])
    return pd.DataFrame(list(rows.values()), index, ["mean", "low", "high", "n"])


def handed_over(folder: Path = ROOT / "tests" / "reference") -> pd.DataFrame:
    """All rows that chapters keep in ``folder``: (claim, model) -> chapter, value (a ``Mean``).

    Raises ValueError naming the file for a row of an unknown claim, of another chapter's claim, or of a model that the claim does not have.
    """
    known, found = listed(), {}
    for path in sorted(Path(folder).glob(f"*{SUFFIX}.json")):
        chapter = path.stem.removesuffix(SUFFIX)
        for (claim, model), value in json.loads(path.read_text("utf-8"))["rows"]:
            if claim not in known.index or known.chapter[claim] != chapter or model not in known.models[claim].split("; "):
                raise ValueError(f"{path.name}: no claim {claim!r} of {chapter} for {model!r} in the list of claims")
            found[claim, model] = dict(chapter=chapter, value=Mean(*(float("nan") if part is None else part for part in value)))
    index = pd.MultiIndex.from_tuples(list(found), names=["claim", "model"])
    return pd.DataFrame(list(found.values()), index, ["chapter", "value"])


def verdict(rule: str, value: Mean) -> str:
    """"holds" if the whole interval obeys the rule, "does not hold" if none of it does, else "undecided"; the mean alone where n = 1.

    rule: "> x", "< x", or "a..b" (bounds included). Raises ValueError for another rule.
    """
    low, high = _bounds(rule)
    least, most = (value.mean, value.mean) if isnan(value.low) else (value.low, value.high)
    strict = rule[0] in "<>"
    if isnan(value.mean):
        return "undecided"
    if (low < least and most < high) if strict else (low <= least and most <= high):
        return "holds"
    return "does not hold" if (most <= low or least >= high if strict else most < low or least > high) else "undecided"


def overall(verdicts: Mapping[str, str]) -> str:
    """Of the models together: theirs if they agree, "holds in part" if it holds for some, else "undecided"."""
    found = set(verdicts.values())
    return found.pop() if len(found) == 1 else "holds in part" if "holds" in found else "undecided"


def published_value(reference: str, model: str) -> str:
    """A published value as printed, "9.44", or several, "28; 16; 33"; "" for no reference.

    reference: "ace_13", a number of the text; "2 editor=ACE n_edits=all", the one value of Table 2 in these rows and of ``model`` ("column=ffn"
    names another column than "value"); "a - b", a difference; "a; b", several. Raises ValueError unless a reference means one value.
    """
    terms = [[_published(term, model) for term in part.split(" - ")] for part in reference.split("; ")] if reference else []
    return "; ".join(str(term[0]) if len(term) == 1 else f"{float(term[0]) - float(term[1]):.4g}" for term in terms)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Every claim, in the paper's order: section, claim, published and measured by model, verdict, why. Argument: ``handed_over``.

    Raises ValueError naming the first claim that has neither a row for each of its models nor a reason for having none.
    """
    lines = {}
    for claim, of in listed().iterrows():
        values = {model: rows.value[claim, model] for model in of.models.split("; ") if (claim, model) in rows.index}
        if of.chapter and (missing := [model for model in of.models.split("; ") if model not in values]):
            raise ValueError(f"claim {claim!r} has no row for {missing[0]!r}; chapter {of.chapter} hands it over")
        each = {model: verdict(of.rule, value) for model, value in values.items()}
        quoted = {f"published {name}": published_value(of[column], name) or "–" for column, name in MODELS.items()}
        said = [f"{model}: {result}" for model, result in each.items()] if len(set(each.values())) > 1 else []
        lines[claim] = {"section": of.section, "claim": of.claim, "tested in": of.chapter or "–", "quantity": of.quantity or "–", "unit": of.unit, **quoted,
                        "measured": "; ".join(f"{model} {value}" for model, value in values.items()) or "–",
                        "verdict": overall(each) if each else of.rule, "why": ". ".join([*said, *filter(None, [of.why])]) or f"rule: {of.rule}"}
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("id")


def _bounds(rule: str) -> tuple[float, float]:
    number = r"(-?\d+(?:\.\d+)?)"
    if found := re.fullmatch(rf"([<>]) {number}|{number}\.\.{number}", rule):
        sign, bound, low, high = found.groups()
        return (float(low), float(high)) if sign is None else (float(bound), inf) if sign == ">" else (-inf, float(bound))
    raise ValueError(f"rule {rule!r} is none of '> x', '< x', 'a..b'")


def _published(term: str, model: str) -> float | str:
    if term.startswith("ace_"):
        text = published("ace_inline").set_index("id")["value"]
        return text[term] if term in text.index else quote(term)
    number, *conditions = re.split(r" (?=\w+=)", term)
    quoted, column = published(int(number)), "value"
    for name, value in (condition.split("=", 1) for condition in conditions):
        if name == "column":
            column = value
        else:
            quoted = quoted[quoted[name].astype(str) == value]
    quoted = quoted[quoted.model == model] if "model" in quoted and not any(c.startswith("model=") for c in conditions) else quoted
    if len(quoted) != 1:
        raise ValueError(f"{term!r} means {len(quoted)} published values of {model}, not one")
    return quoted[column].item()
