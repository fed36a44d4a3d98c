"""What the rows of the companion on Query Localization say: two classes of facts and their tables,
how far the classes are a choice, and what else makes a fact consistent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan

import numpy as np
import pandas as pd

from ..paper.published import published
from ..study.classes import beyond_one_normal, of_one_normal, otsu, two_beyond_one, welch
from ..study.stats import Mean, interval
from ..world.paraphrases import Reworded
from .localization import METHODS, SHARE

ONE, TWO = "K_I", "K_II"
STATIC, EXAMPLE = 0.1, 0.3  #: thresholds on CS_2: of the tables, of Figure 3
NAMES = {"IG": "Dai et al.", "SIG": "Enguehard", "AMIG": "Chen et al."}  #: methods in the tables
MODELS = ("GPT-2", "LLaMA2-7b", "LLaMA3-8b")  #: of the paper
RATES = {  #: of synapses, by column
    f"d_{change}{what}": f"{change.title()}, Δ{name} (%)"
    for what, name in (("", "Prob"), ("_value", "Value"))
    for change in ("sup", "enh", "avg")
}
COVARIATES = {
    "logprob": "log-probability of the answer",
    "prompt_tokens": "tokens of a prompt",
    "subject_tokens": "tokens of the subject",
    "answer_tokens": "tokens of the answer",
    "similarity": "tokens that two wordings share",
}


def at(rows: pd.DataFrame, share: float = SHARE) -> pd.DataFrame:
    """The rows of one threshold of attribution."""
    return rows[np.isclose(rows["share"], share)]


def cuts(values: Sequence[float]) -> dict[str, float]:
    """Both thresholds on CS_2; Otsu's is the static one where all values are the same."""
    x = np.asarray(values, dtype=float)
    x = x[~np.isnan(x)]
    return {"static": STATIC, "otsu": otsu(x) if len(np.unique(x)) > 1 else STATIC}


def thresholds(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 4: (threshold, localization) x (published, measured models)."""
    quoted = published("ql_table_04").set_index(["threshold", "localization", "model"])["value"]
    columns = {f"published {model}": quoted.xs(model, level=2).astype(float) for model in MODELS}
    for model, part in at(rows).groupby("model", sort=False):
        found = {}
        for method, of in part.groupby("method", sort=False):
            for name, cut in cuts(of.relaxed).items():
                found[name, NAMES[str(method)]] = cut
        columns[f"measured {model}"] = pd.Series(found)
    return _ordered(pd.DataFrame(columns)).map(lambda x: f"{x:z.3f}")


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    order = [(name, method) for name in ("static", "otsu") for method in NAMES.values()]
    return table.reindex(pd.MultiIndex.from_tuples(order))


def is_two(rows: pd.DataFrame, threshold: str) -> pd.DataFrame:
    """Whether each fact is in K_II at a threshold ("static", "otsu"), facts x methods, by model in
    the first level of the index.
    """
    parts = {}
    for (model, method), of in at(rows).groupby(["model", "method"], sort=False):
        values = of.set_index("item").relaxed
        parts[model, method] = values < cuts(values)[threshold]
    found = pd.concat(parts, names=["model", "method"]).unstack("method")
    return found.reindex(columns=[m for m in METHODS if m in found]).astype(bool)


def consistency_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Table 1: (threshold, localization, quantity) x (published, measured models). Shares and mean
    CS_2 of both classes, Welch's t, share of facts that all methods put into K_II.
    """
    quoted = published("ql_table_01")
    keys = ["threshold", "localization", "metric"]
    columns = {
        f"published {model}": part.set_index(keys)["value"]
        for model, part in quoted.groupby("model", sort=False)
    }
    for model, part in at(rows).groupby("model", sort=False):
        columns[f"measured {model}"] = pd.Series(_consistency(part), dtype=object)
    order = list(dict.fromkeys(quoted[keys].itertuples(index=False, name=None)))
    return pd.DataFrame(columns).reindex(pd.MultiIndex.from_tuples(order))


def _consistency(part: pd.DataFrame) -> dict[tuple[str, str, str], object]:
    found: dict[tuple[str, str, str], object] = {}
    model = part.model.iloc[0]
    for threshold in ("static", "otsu"):
        for method, of in part.groupby("method", sort=False):
            upper = of.relaxed >= cuts(of.relaxed)[threshold]
            of_all = {
                "R_I": _share(upper),
                "S_I": _mean(of.relaxed[upper]),
                "R_II": _share(~upper),
                "S_II": _mean(of.relaxed[~upper]),
                "t": _t(welch(of.relaxed, upper)[0]),
            }
            for name, value in of_all.items():
                found[threshold, NAMES[str(method)], name] = value
        both = is_two(part, threshold).loc[model].all(axis=1)
        found[threshold, "all three", "intersection_II"] = _share(both)
    return found


def _t(value: float) -> str:
    """A test's t as text, "–" where a class is too small to have one."""
    return "–" if np.isnan(value) else f"{value:z.1f}"


def _share(chosen: Sequence[bool]) -> str:
    return f"{interval([float(one) for one in chosen], bounds=(0.0, 1.0)):z.2f}"


def _mean(values: pd.Series) -> str:
    return f"{interval(values):z.2f}"


def classes(rows: pd.DataFrame, method: str = "IG") -> tuple[pd.DataFrame, dict[str, str]]:
    """The class of every fact, columns model, item, knowledge; and by which threshold, by model.

    It is the static one where both classes have two facts at least, else Otsu's.
    """
    parts, used = [], {}
    for model, part in at(rows)[at(rows).method == method].groupby("model", sort=False):
        found = cuts(part.relaxed)
        sizes = min((part.relaxed >= STATIC).sum(), (part.relaxed < STATIC).sum())
        used[str(model)] = "static" if sizes > 1 else "otsu"
        upper = part.relaxed >= found[used[str(model)]]
        knowledge = upper.map({True: ONE, False: TWO})
        parts.append(part[["model", "item"]].assign(knowledge=knowledge))
    return pd.concat(parts, ignore_index=True), used


def with_class(rows: pd.DataFrame, of: pd.DataFrame) -> pd.DataFrame:
    """Rows with the class of their fact, K_I before K_II.   of: ``classes``."""
    merged = rows.merge(of, on=["model", "item"], how="inner")
    order = merged.model.map(list(dict.fromkeys(rows.model)).index)
    merged = merged.assign(order=order)
    return merged.sort_values(["order", "knowledge"], kind="stable").drop(columns="order")


def wrapped(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Rows whose names in a column are broken at commas, so that an axis has room for them."""
    names = rows[column].str.replace(", ", ",\n").replace("Intersection", "Inter-\nsection")
    return rows.assign(**{column: names})


# ------------------------------------------------------------------------ are there two classes?


def choices(rows: pd.DataFrame) -> pd.DataFrame:
    """Share of facts in K_II, percent, as a function of the threshold of attribution: columns
    model, method, share, threshold (on CS_2), two.
    """
    found = []
    for (model, method, share), of in rows.groupby(["model", "method", "share"], sort=False):
        for name, cut in {**_named(), "Otsu": cuts(of.relaxed)["otsu"]}.items():
            two = 100 * float((of.relaxed < cut).mean())
            found.append((model, method, share, name, two))
    return pd.DataFrame(found, columns=["model", "method", "share", "threshold", "two"])


def by_wordings(rows: pd.DataFrame) -> pd.DataFrame:
    """The same, and mean CS_2, as a function of the number of wordings: columns model, method,
    wordings, threshold, two, relaxed.
    """
    found = []
    for (model, method), of in at(rows).groupby(["model", "method"], sort=False):
        values = np.array(of.by_k.tolist(), dtype=float)
        for i, column in enumerate(values.T):
            for name, cut in {**_named(), "Otsu": cuts(column)["otsu"]}.items():
                two = 100 * float((column < cut).mean())
                found.append((model, method, i + 2, name, two, float(np.nanmean(column))))
    columns = ["model", "method", "wordings", "threshold", "two", "relaxed"]
    return pd.DataFrame(found, columns=columns)


def _named() -> dict[str, float]:
    return {f"{STATIC:g}": STATIC, f"{EXAMPLE:g}": EXAMPLE}


def one_class(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Is it one class after all? (model, method) x columns: n; t and p of the Otsu split; t of the
    same split of one normal distribution, mean and what 95 % of samples give; by how much BIC
    prefers two normal distributions.
    """
    lines = {}
    for (model, method), of in at(rows).groupby(["model", "method"], sort=False):
        values = of.relaxed.dropna().to_numpy()
        if len(np.unique(values)) < 4:
            continue
        t, p = welch(values, values >= otsu(values))
        control = of_one_normal(len(values), seed=seed)
        low, high = np.percentile(control, [2.5, 97.5])
        lines[model, NAMES[str(method)]] = {
            "n": str(len(values)),
            "t": f"{t:z.1f}",
            "p": f"{p:.0e}",
            "t of one normal": f"{Mean(control.mean(), low, high, len(values)):z.1f}",
            "BIC, one minus two": f"{two_beyond_one(values, seed):z.1f}",
        }
    return pd.DataFrame.from_dict(lines, orient="index")


def beyond(rows: pd.DataFrame, seed: int = 0) -> dict[tuple[str, str], Mean]:
    """t minus that of one normal distribution, by model and method."""
    found = {}
    for (model, method), of in at(rows).groupby(["model", "method"], sort=False):
        values = of.relaxed.dropna()
        different = values.nunique() > 3
        found[str(model), str(method)] = (
            beyond_one_normal(values, seed=seed) if different else Mean(nan, nan, nan, len(values))
        )
    return found


def confounds(
    rows: pd.DataFrame, about: pd.DataFrame, method: str = "IG", seed: int = 0
) -> pd.DataFrame:
    """What CS_2 goes with: coefficients of a linear model of standardised ``COVARIATES``, in
    standard deviations of CS_2, with 95 % bootstrap intervals over facts; models in columns.

    about: rows of ``predominances``. A covariate that does not vary is left out.
    """
    table: dict[str, dict[str, object]] = {}
    one = about.drop_duplicates(["model", "item"])[["model", "item", *COVARIATES]]
    scores = at(rows)[at(rows).method == method][["model", "item", "relaxed"]]
    for model, part in scores.merge(one, on=["model", "item"]).groupby("model", sort=False):
        names = [name for name in COVARIATES if part[name].nunique() > 1]
        x, y = part[names].to_numpy(float), part.relaxed.to_numpy(float)
        if len(y) < len(names) + 2 or not y.std():
            continue
        values = _regression(x, y, seed)
        column = dict(zip(names, values, strict=True))
        table[f"measured {model}"] = {
            **{COVARIATES[name]: value for name, value in column.items()},
            "variance explained": f"{_explained(x, y):z.2f}",
        }
    return pd.DataFrame(table, dtype=object).fillna("–")


def _regression(x: np.ndarray, y: np.ndarray, seed: int) -> list[Mean]:
    """Standardised coefficients with percentile intervals over rows."""

    def fit(index: np.ndarray) -> np.ndarray:
        a, b = x[index], y[index]
        spread = np.where(a.std(0) > 0, a.std(0), 1.0)
        a = np.column_stack([(a - a.mean(0)) / spread, np.ones(len(a))])
        found, *_ = np.linalg.lstsq(a, (b - b.mean()) / (b.std() or 1.0), rcond=None)
        return found[:-1]

    rng, n = np.random.default_rng(seed), len(y)
    drawn = np.array([fit(rng.integers(0, n, n)) for _ in range(2000)])
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return [Mean(*values, n) for values in zip(fit(np.arange(n)), low, high, strict=True)]


def _explained(x: np.ndarray, y: np.ndarray) -> float:
    a = np.column_stack([x, np.ones(len(x))])
    fitted = a @ np.linalg.lstsq(a, y, rcond=None)[0]
    return float(1 - ((y - fitted) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def relations_table(facts: Sequence[Reworded]) -> pd.DataFrame:
    """Table 5: relations, one line each: group, an example in its first wording, the answer, how
    the others begin or go.
    """
    lines: dict[str, dict[str, str]] = {}
    for one in sorted(facts, key=lambda one: (one.group, one.fact.relation)):
        lines.setdefault(
            one.fact.relation,
            {
                "group": one.group,
                "example query": one.prompts[0],
                "answer": one.fact.object,
                "other wordings": "; ".join(one.prompts[1:]),
            },
        )
    return pd.DataFrame.from_dict(lines, orient="index")


# ------------------------------------------------------------------------------ mapping, attention


def rates(rows: pd.DataFrame, before: str = "before", prefix: str = "") -> pd.DataFrame:
    """Rows with the rates of change in percent: ``sup`` = (b - a)/b, ``enh`` = (a - b)/b, and their
    mean ``avg``, of means over the wordings of a fact (as released by Dai et al.).
    """
    b = rows[before]
    sup, enh = (100 * (b - rows[f"sup{prefix}"]) / b, 100 * (rows[f"enh{prefix}"] - b) / b)
    return rows.assign(**{f"d_sup{prefix}": sup, f"d_enh{prefix}": enh}).assign(
        **{f"d_avg{prefix}": (sup + enh) / 2}
    )


def synapse_rates(rows: pd.DataFrame, renormalised: bool = False) -> pd.DataFrame:
    """Rows of ``synapses`` in one reading, with rates of change of probability and of value."""
    some = rows[rows.renormalised == renormalised]
    return rates(rates(some), "before_value", "_value")


def excess(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``predominances`` with what is beyond chance, in points."""
    return rows.assign(P=100 * rows.predominance, beyond=100 * (rows.predominance - rows.chance))


def gap_of_ratios(
    one: tuple[np.ndarray, np.ndarray], two: tuple[np.ndarray, np.ndarray], seed: int = 0
) -> Mean:
    """(mean a - mean b) / mean a of class two minus the same of class one, percent, with a 95 %
    bootstrap interval over facts.   one, two: a and b of the same facts.
    """
    if min(len(one[0]), len(two[0])) < 2:
        return Mean(nan, nan, nan, 0)

    def lost(pairs: np.ndarray) -> float:
        a, b = pairs.mean(0)
        return 100 * (a - b) / a

    rng = np.random.default_rng(seed)
    tables = [np.column_stack(pair) for pair in (one, two)]
    drawn = [
        [lost(table[rng.integers(0, len(table), len(table))]) for _ in range(2000)]
        for table in tables
    ]
    gaps = np.array(drawn[1]) - np.array(drawn[0])
    low, high = np.percentile(gaps, [2.5, 97.5])
    value = lost(tables[1]) - lost(tables[0])
    return Mean(float(value), float(low), float(high), min(len(table) for table in tables))


# ------------------------------------------------------------------------------------ modification

#: sets of rows -> of the tables
PRINTED = {"N_i": "N_i", "N_g": "N_g", "CAS": "Ours"}
METRICS = {"rel": "Rel", "gen": "Gen", "loc": "Loc", "avg": "Avg", "ppl": "delta_PPL"}


def modification_table(rows: pd.DataFrame, sets: Sequence[str], table: int) -> pd.DataFrame:
    """Tables 2 and 3: (operation, set, class, metric) x (published, measured models).

    rows: of ``modification``, with ``classes``.   sets: of ``PRINTED``.
    """
    quoted = published(f"ql_table_{table:02d}")
    quoted = quoted[quoted.kn_set.isin([PRINTED[name] for name in sets])]
    keys = ["operation", "kn_set", "knowledge", "metric"]
    columns = {
        f"published {model}": part.set_index(keys)["value"]
        for model, part in quoted.groupby("model", sort=False)
    }
    for model, part in rows.groupby("model", sort=False):
        found = {}
        by = part[part["set"].isin(sets)].groupby(["operation", "set", "knowledge"])
        for (operation, name, knowledge), of in by:
            for metric, printed in METRICS.items():
                bounds = None if metric == "ppl" else (0.0, 1.0)
                value = f"{interval(of[metric], bounds=bounds):z.2f}"
                found[operation, PRINTED[str(name)], knowledge, printed] = value
        columns[f"measured {model}"] = pd.Series(found, dtype=object)
    order = list(dict.fromkeys(quoted[keys].itertuples(index=False, name=None)))
    cells = pd.DataFrame(columns, dtype=object).reindex(pd.MultiIndex.from_tuples(order))
    return cells.fillna("–")


def percent(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``modification`` in percent."""
    return rows.assign(**{name: 100 * rows[name] for name in METRICS})


def seconds(rows: pd.DataFrame) -> dict[str, dict[str, Mapping[str, float]]]:
    """By model and method: queries, processor seconds of their attribution, and of 1,000."""
    found: dict[str, dict[str, Mapping[str, float]]] = {}
    for (model, method), of in at(rows).groupby(["model", "method"], sort=False):
        k = len(of.by_k.iloc[0]) + 1
        total, queries = float(of.seconds.sum()), k * len(of)
        told = {"queries": queries, "seconds": total, "thousand": 1000 * total / queries}
        found.setdefault(str(model), {})[str(method)] = told
    return found


def layers_of(rows: pd.DataFrame, method: str = "IG") -> pd.DataFrame:
    """Percent of the knowledge neurons in each layer, models x layers."""
    found = {}
    for model, of in at(rows)[at(rows).method == method].groupby("model", sort=False):
        counts = np.array(of.layers.tolist()).sum(0)
        found[model] = dict(enumerate(100 * counts / counts.sum()))
    return pd.DataFrame.from_dict(found, orient="index")
