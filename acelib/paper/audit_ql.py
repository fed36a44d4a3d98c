"""Does the paper on Query Localization agree with itself? Its tables and sentences, put to checks;
and what its formulas and its test say whatever is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from .checks import Result
from .published import published

PAPER = "Query Localization"
STATIC, OTSU = "static", "otsu"
T_OF_ROOT_N = 2 / math.sqrt(2 * math.pi) / math.sqrt(1 - 2 / math.pi)  #: 1.3236
PARAREL_FACTS = 27_000  #: facts of ParaRel, of the order of
WEIGHT = {
    "one printed parameter has two names": "suspect",
    "a share of facts or a threshold that the text names is another one in the tables": "suspect",
    "the test is as large for one normal distribution": "suspect",
    "Eq. 4 as printed takes the largest of equal sums": "suspect",
    "the threshold of Eq. 5 does not depend on the weights": "suspect",
    "a score depends on the number of wordings": "suspect",
    "the queries of an update name another subject": "suspect",
    "a sum of embeddings says only the first token of an answer": "suspect",
    "a parameter that results depend on is not stated": "omission",
    "code is announced and not found": "omission",
    "a value is missing": "omission",
}


def results() -> pd.DataFrame:
    """Everything that was checked, one row each; columns as ``audit.results``."""
    plan = [*repeated(), *classes(), *sizes(), *counts(), *formulas()]
    found = pd.DataFrame(
        [
            dict(what=what, source=source, **result._asdict(), check=check.__name__)
            for what, source, check, *arguments in plan
            for result in check(*arguments)
        ]
    )
    kind = found.what.map(WEIGHT).fillna(found.kind)
    return found.assign(kind=kind.where(found.fault, ""))


# -------------------------------------------------------------------------------- the checks


def averages_are_means(wide: pd.DataFrame, total: str, parts: tuple[str, ...]) -> list[Result]:
    """Printed averages that are not the mean of their parts, two decimals each."""
    found = []
    for row, of in wide.iterrows():
        mean = of[list(parts)].astype(float).mean()
        gap = abs(float(of[total]) - mean)
        said = f"{total} {float(of[total]):g}, mean {mean:.3f}"
        found.append(Result(_name(row), said, gap > 0.01 + 1e-9))
    return found


def shares_add_up(wide: pd.DataFrame) -> list[Result]:
    """Shares of two classes that do not add up to one, two decimals each."""
    return [
        Result(
            _name(row),
            f"{of['R_I']:g} + {of['R_II']:g} = {of['R_I'] + of['R_II']:g}",
            abs(of["R_I"] + of["R_II"] - 1) > 0.005,
            "unit or rounding",
        )
        for row, of in wide.iterrows()
    ]


def means_stay(wide: pd.DataFrame) -> list[Result]:
    """Mean scores of all facts, R_I S_I + R_II S_II, that depend on the threshold of the classes,
    rounding allowed for.   wide: (model, localization, threshold) x R and S.
    """
    found = []
    for (model, method), part in wide.groupby(level=[0, 1], sort=False):
        ranges = {}
        for (_, _, threshold), of in part.iterrows():
            ends = [
                sum((of[r] + d) * (of[s] + d) for r, s in (("R_I", "S_I"), ("R_II", "S_II")))
                for d in (-0.005, 0.005)
            ]
            ranges[threshold] = ends
        (a, b), (c, d) = ranges[STATIC], ranges[OTSU]
        said = f"static {a:.3f} to {b:.3f}, Otsu {c:.3f} to {d:.3f}"
        found.append(Result(f"{model}, {method}", said, b < c or d < a))
    return found


def orders_follow(values: pd.DataFrame, rising: bool, what: str) -> list[Result]:
    """Quantities that a sentence says to rise (or fall) with the size of the model and that do not,
    between two neighbouring models.   values: places x models, the smallest first.
    """
    found = []
    for row, of in values.iterrows():
        for small, large in zip(of.index, of.index[1:], strict=False):
            wrong = of[large] <= of[small] if rising else of[large] >= of[small]
            said = f"{what} {of[small]:g} ({small}), {of[large]:g} ({large})"
            found.append(Result(f"{_name(row)}, {large}", said, bool(wrong)))
    return found


def least_bounds(least: pd.Series, of: pd.Series) -> list[Result]:
    """Shares of an intersection that exceed the least of the sets."""
    return [
        Result(_name(key), f"{of[key]:g} of sets of {least[key]:g} and more", of[key] > least[key])
        for key in of.index
    ]


def thresholds_and_shares(cut: pd.DataFrame, share: pd.DataFrame) -> list[Result]:
    """Two thresholds whose order the shares of K_II do not follow: the higher has more.

    cut, share: (model, localization) x threshold.
    """
    found = []
    for row in cut.index:
        higher = cut.at[row, OTSU] > cut.at[row, STATIC]
        more = share.at[row, OTSU] > share.at[row, STATIC]
        said = (
            f"thresholds {cut.at[row, STATIC]:g} and {cut.at[row, OTSU]:g}, K_II "
            f"{share.at[row, STATIC]:g} and {share.at[row, OTSU]:g}"
        )
        found.append(Result(_name(row), said, bool(higher != more)))
    return found


def agree(pairs: Mapping[str, tuple[object, object]]) -> list[Result]:
    """Two statements of one thing that differ."""
    return [Result(where, f"{a} and {b}", a != b) for where, (a, b) in pairs.items()]


def stated(values: Mapping[str, str]) -> list[Result]:
    """Parameters without a value."""
    return [Result(where, value, value in ("", "not stated")) for where, value in values.items()]


def same_rows(a: pd.Series, b: pd.Series) -> list[Result]:
    """The same quantity in two tables, by the labels that they share; empty cells are missing."""
    return [
        Result(_name(key), f"{a[key]} and {b[key]}", a[key] != b[key], "contradiction")
        for key in a.index.intersection(b.index)
        if "" not in (str(a[key]), str(b[key])) and not (_nan(a[key]) or _nan(b[key]))
    ]


def cells_there(values: pd.Series) -> list[Result]:
    """Cells without a value."""
    return [
        Result(_name(key), "no value", True) if _nan(value) else Result(_name(key), "", False)
        for key, value in values.items()
    ]


def one_normal_suffices(values: Mapping[str, float], facts: int) -> list[Result]:
    """Statistics that ``facts`` values of one normal distribution, cut at their mean, reach:
    t = 2 phi(0) sqrt(n) / sqrt(1 - 2/pi).
    """
    reached = T_OF_ROOT_N * math.sqrt(facts)
    return [
        Result(
            where,
            f"t {t:g}: one normal distribution of {(t / T_OF_ROOT_N) ** 2:,.0f} facts gives it; "
            f"{facts:,} facts give {reached:.0f}",
            t <= 1.1 * reached,
        )
        for where, t in values.items()
    ]


def follows(statements: Mapping[str, str]) -> list[Result]:
    """Statements that a formula has as a consequence, whatever is measured."""
    return [Result(where, said, True) for where, said in statements.items()]


# --------------------------------------------------------------------------- what they are put to


def repeated() -> list[tuple]:
    """Tables 2 and 3, and their averages."""
    keys = ["operation", "kn_set", "knowledge", "model", "metric"]
    two, three = (published(f"ql_table_{n:02d}").set_index(keys)["value"] for n in (2, 3))
    plan: list[tuple] = [
        ("a quantity has two values", "Tables 2 and 3", same_rows, two, three),
        ("a value is missing", "Table 3", cells_there, three),
    ]
    for n, values in ((2, two), (3, three)):
        wide = values.unstack("metric").drop(columns="delta_PPL")
        averages = (wide, "Avg", ("Rel", "Gen", "Loc"))
        plan.append(("an average is not the mean", f"Table {n}", averages_are_means, *averages))
    return plan


def _scores() -> pd.DataFrame:
    """Table 1 without its last column: (model, localization, threshold) x metric."""
    table = published("ql_table_01").query("metric != 'intersection_II'")
    keys = ["model", "localization", "threshold", "metric"]
    wide = table.set_index(keys)["value"].astype(float).unstack("metric")
    order = list(dict.fromkeys(table[keys[:3]].itertuples(index=False, name=None)))
    return wide.loc[order]


def classes() -> list[tuple]:
    """Table 1 with itself and with Table 4."""
    scores = _scores()
    cut = published("ql_table_04").set_index(["model", "localization", "threshold"])["value"]
    together = published("ql_table_01").query("metric == 'intersection_II'")
    together = together.set_index(["model", "threshold"])["value"].astype(float)
    least = scores["R_II"].groupby(level=[0, 2]).min()
    return [
        ("shares of the two classes do not add up", "Table 1", shares_add_up, scores),
        ("a mean over all facts depends on the threshold", "Table 1", means_stay, scores),
        ("an intersection is larger than a set", "Table 1", least_bounds, least, together),
        (
            "the higher threshold has fewer facts in K_II",
            "Tables 1 and 4",
            thresholds_and_shares,
            cut.astype(float).unstack("threshold"),
            scores["R_II"].unstack("threshold"),
        ),
        (
            "the test is as large for one normal distribution",
            "Table 1, t",
            one_normal_suffices,
            {_name(row): t for row, t in scores["t"].items()},
            PARAREL_FACTS,
        ),
    ]


def sizes() -> list[tuple]:
    """What is said of larger models (Section 2.1)."""
    scores, models = _scores(), ["GPT-2", "LLaMA2-7b", "LLaMA3-8b"]
    plan: list[tuple] = []
    for metric, rising, word in (("R_II", True, "share"), ("S_II", False, "score")):
        wide = scores[metric].unstack("model")[models]
        what = f"the larger model is said to have the {'higher' if rising else 'lower'} {word}"
        plan.append((f"{what} of K_II", "2.1, Table 1", orders_follow, wide, rising, metric))
    return plan


def counts() -> list[tuple]:
    """Numbers of the text beside the tables, and parameters."""
    text = published("ql_inline").set_index("id")["value"]
    three = published("ql_table_03").query("operation == 'Erasure' and knowledge == 'K_II'")
    average = three[(three.metric == "Avg") & (three.model == "LLaMA3-8b")]
    average = average.set_index("kn_set")["value"].astype(float)
    two = published("ql_table_02").query("operation == 'Erasure' and knowledge == 'K_II'")
    two = two[(two.metric == "Avg") & (two.model == "LLaMA3-8b")].set_index("kn_set")["value"]
    gains = {
        "over N_i": (float(text["ql_06"]), round(100 * (average["Ours"] - average["N_i"]))),
        "over N_g, Table 3": (
            float(text["ql_07"]),
            round(100 * (average["Ours"] - average["N_g"])),
        ),
        "over N_g, Table 2": (
            float(text["ql_07"]),
            round(100 * (average["Ours"] - float(two["N_g"]))),
        ),
    }
    relations = published("ql_table_05").relation.nunique()
    left = int(text["ql_37"]) - int(text["ql_38"])
    numbers = {
        "relations of Table 5; of A.2, less two": (relations, left),
        "relations of A.2, less two; test points of A.1": (left, int(text["ql_35"])),
        "sets of experiments; settings times models": (
            int(text["ql_01"]),
            int(text["ql_02"]) * int(text["ql_03"]),
        ),
    }
    shares = {
        "K_II of LLaMA3-8b by all methods: Section 1; Table 1, Otsu": (
            float(text["ql_05"]),
            100 * _together("LLaMA3-8b", OTSU),
        ),
        "K_II of LLaMA3-8b by all methods: Section 1; Table 1, static": (
            float(text["ql_05"]),
            100 * _together("LLaMA3-8b", STATIC),
        ),
        "threshold of Figure 3; of the static classes": (
            float(text["ql_10"]),
            float(text["ql_18"]),
        ),
    }
    missing = {
        "attribution threshold of IG": text["ql_41"],
        "steps of SIG": text["ql_45"],
        "steps of AMIG": text["ql_48"],
        "attribution threshold of AMIG": text["ql_49"],
        "number of facts": "not stated",
        "steps of IG": text["ql_39"],
        "lambda_1": text["ql_12"],
    }
    names = {"0.3 of A.1; Eq. 5 and 6": ("tau", "alpha"), "sigma of CAS": ("variance", "std")}
    return [
        ("a gain that the table does not give", "1, Tables 2 and 3", agree, gains),
        ("two counts of one thing differ", "A.1, A.2, Table 5", agree, numbers),
        (
            "a share of facts or a threshold that the text names is another one in the tables",
            "1, 2.1, Table 1",
            agree,
            shares,
        ),
        ("a parameter that results depend on is not stated", "A.1, A.4", stated, missing),
        ("one printed parameter has two names", "A.1, Eq. 5-7", agree, names),
    ]


def _together(model: str, threshold: str) -> float:
    table = published("ql_table_01").query("metric == 'intersection_II'")
    rows = table[(table.model == model) & (table.threshold == threshold)]
    return float(rows["value"].item())


def formulas() -> list[tuple]:
    """What formulas say whatever is measured."""
    statements: dict[str, tuple[str, str]] = {
        "Eq. 4 as printed takes the largest of equal sums": (
            "Eq. 4",
            "rows of attention sum to one, so that the sum over columns is one for every row",
        ),
        "the threshold of Eq. 5 does not depend on the weights": (
            "Eq. 5",
            "the fourfold sum is L H R, so that tau is alpha times the number of tokens; a head "
            "has at most three synapses",
        ),
        "a score depends on the number of wordings": (
            "Eq. 1, Figure 3",
            "CS_1 cannot rise and CS_2's count cannot fall with a further wording; relations of "
            "ParaRel have different numbers of them",
        ),
        "a sum of embeddings says only the first token of an answer": (
            "Eq. 2",
            "E(o) of an answer of several tokens is not defined",
        ),
        "the queries of an update name another subject": (
            "2.2",
            "an update is judged by queries of (s', r, o'); its subject is s",
        ),
        "code is announced and not found": (
            "abstract of an earlier version",
            "no repository of it was found",
        ),
    }
    return [(what, source, follows, {source: said}) for what, (source, said) in statements.items()]


def _name(key: object) -> str:
    return ", ".join(map(str, key)) if isinstance(key, tuple) else str(key)


def _nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
