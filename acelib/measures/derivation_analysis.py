"""What the rows of ``derivation`` say: how far each statement of Appendix M is off, in percent of
the mean size of what it is off from, and the verdicts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import pandas as pd

from ..study import claims
from ..study.stats import Mean, interval
from .derivation import slopes

READINGS = {"none": "no norm (Lemma 1)", "frozen": "norm frozen", "exact": "true norm"}
VALUE = {norm: f"value score, {READINGS[norm]}" for norm in ("frozen", "exact")}
QUERY = "query score, pre-activation"
RANK = "query score and the neuron's coefficient: rank correlation"
COLUMNS = {  #: of ``derivation.writes``, as the table calls them
    "formula": "formula: distance (%)",
    "error": "shift: error (%)",
    "cosine": "direction: cosine with R",
    "reach": "length over that of R",
    "logit": "uphill: cosine",
}

ROUNDING = 1e-9  #: percent; what double precision leaves of an exact identity


def percent(error: pd.Series, size: pd.Series) -> Mean:
    """Mean absolute error, in percent of the mean absolute size."""
    return interval(100 * error.abs() / size.abs().mean())


class Statements:
    """The rows of ``derivation.experiment``, by statement, with prompts as numbers.

    rows: the table of the experiment.   n_top: neurons in the sets of Theorem 3.
    """

    def __init__(self, rows: pd.DataFrame, n_top: int):
        number = rows.groupby(["model", "statement"])["item"]
        self.rows = rows.assign(prompt=number.transform(lambda items: pd.factorize(items)[0]))
        self.models: list[str] = list(rows.model.unique())
        self.n_top = n_top

    def _of(self, statement: str) -> pd.DataFrame:
        part = self.rows[self.rows.statement == statement].dropna(axis=1, how="all")
        return part.drop(columns=["item", "statement"]).reset_index(drop=True)

    # ---------------------------------------------------------------------------- Theorem 2

    @cached_property
    def logits(self) -> pd.DataFrame:
        """Columns model, norm, prompt, together, summed; norm by norm, then prompt by prompt."""
        order = {norm: i for i, norm in enumerate(READINGS)}
        place = ["model", "norm", "prompt"]
        table = self._of("logits").assign(place=lambda rows: rows.norm.map(order))
        by_model = table.model.map({model: i for i, model in enumerate(self.models)})
        table = table.assign(by_model=by_model).sort_values(["by_model", "place", "prompt"])
        return table[[*place, "together", "summed"]].reset_index(drop=True)

    @cached_property
    def theorem_2(self) -> dict[tuple[str, str], Mean]:
        """Error by model and norm."""
        groups = self.logits.groupby(["model", "norm"], sort=False)
        return {key: percent(of.together - of.summed, of.together) for key, of in groups}

    def logit_gaps(self) -> pd.DataFrame:
        """For the figure: the gap of each prompt, in percent of the mean logit added."""
        table = self.logits
        size = table.groupby(["model", "norm"]).together.transform(lambda of: of.abs().mean())
        return table.assign(
            what="all FFN neurons",
            error=100 * (table.together - table.summed).abs() / size,
            **{"reading of the final norm": table.norm.map(READINGS)},
        )

    def theorem_2_table(self) -> pd.DataFrame:
        """Readings of the norm x models."""
        return pd.DataFrame(
            {
                model: {
                    title: f"{self.theorem_2[model, norm]:.3g}" for norm, title in READINGS.items()
                }
                for model in self.models
            }
        )

    # --------------------------------------------------------------------------- M.3, Eq. 10

    @cached_property
    def pushes(self) -> dict[tuple[str, str], pd.DataFrame]:
        """By model and kind of score: rows of prompt, neuron, size, first, whole; for queries also
        coefficient.
        """
        value, query = self._of("value"), self._of("query")
        pushes = {}
        for model in self.models:
            for norm in ("frozen", "exact"):
                part = value[(value.model == model) & (value.norm == norm)]
                pushes[model, VALUE[norm]] = _by_size(part, {"score": "whole"})
        for model in self.models:
            names = {"preactivation": "whole", "coefficient": "coefficient"}
            pushes[model, QUERY] = _by_size(query[query.model == model], names)
        return pushes

    @cached_property
    def first_order(self) -> dict[tuple[str, str], Mean]:
        """Error of the first order at size 1, by model and kind of score."""
        one = {key: of[of["size"] == 1] for key, of in self.pushes.items()}
        return {key: percent(of.whole - of["first"], of.whole) for key, of in one.items()}

    @cached_property
    def exponents(self) -> dict[tuple[str, str], Mean]:
        """Slope of the error in the size of the push, by model and kind of score."""
        return {key: interval(slopes(of, "whole")) for key, of in self.pushes.items()}

    def errors(self) -> pd.DataFrame:
        """For the figures: mean error of each prompt by size."""
        parts = []
        for (model, what), of in self.pushes.items():
            error = (of.whole - of["first"]).abs()
            means = of.assign(error=error).groupby(["prompt", "size"])["error"].mean()
            parts.append(means.reset_index().assign(model=model, what=what))
        return pd.concat(parts)

    def first_order_table(self) -> pd.DataFrame:
        """Kinds of score x models, and how well the query score ranks coefficients."""
        kinds = list(dict.fromkeys(what for _, what in self.pushes))
        cells = {
            model: {what: f"{self.first_order[model, what]:.3g}" for what in kinds}
            for model in self.models
        }
        for model in self.models:
            of = self.pushes[model, QUERY]
            prompts = of[of["size"] == 1].groupby("prompt")
            ranks = [p["first"].corr(p.coefficient, method="spearman") for _, p in prompts]
            cells[model][RANK] = f"{interval(ranks):z.2f}"
        return pd.DataFrame(cells)

    # ---------------------------------------------------------------------------- Theorem 3

    @cached_property
    def sets(self) -> pd.DataFrame:
        """Columns model, what (the norm), layer, prompt, n, whole, summed; in this order."""
        table = self._of("sets")
        table = table.assign(what=table.norm.map(READINGS)).astype({"layer": int, "n": int})
        parts = [
            table[(table.model == model) & (table.what == READINGS[norm])].sort_values(
                ["layer", "prompt", "n"]
            )
            for model in self.models
            for norm in ("frozen", "exact")
        ]
        columns = ["layer", "prompt", "n", "whole", "summed", "model", "what"]
        return pd.concat(parts, ignore_index=True)[columns]

    @cached_property
    def best(self) -> pd.DataFrame:
        """``sets`` of the layer in which the sum is greatest, for each prompt and number."""
        groups = self.sets.groupby(["model", "what", "prompt", "n"])["summed"]
        return self.sets.loc[groups.idxmax()]

    def set_gaps(self) -> pd.DataFrame:
        """For the figure: gap between a set's score and the sum, in percent of the former."""
        best = self.best
        mean = best.groupby(["model", "what", "n"])["whole"].transform(lambda of: of.abs().mean())
        gaps = best.assign(error=100 * (best.whole - best.summed).abs() / mean)
        return gaps.rename(columns={"n": "size"})

    def theorem_3(self, model: str, norm: str) -> Mean:
        """Error of the sum over the top neurons."""
        top = self.best[self.best.n == self.n_top]
        part = top[(top.what == READINGS[norm]) & (top.model == model)]
        return percent(part.summed - part.whole, part.whole)

    def whole_layers(self) -> pd.DataFrame:
        """``sets`` of all neurons of a layer."""
        return self.sets[self.sets.n == self.sets.groupby("model").n.transform("max")]

    def layer_gaps(self) -> pd.DataFrame:
        """Sum of the scores of a layer's neurons minus the score of their sum, nats: layers x
        (model, norm).
        """
        whole = self.whole_layers()
        groups = whole.assign(gap=whole.summed - whole.whole).groupby(
            ["model", "what", "layer"], sort=False
        )["gap"]
        gaps = groups.apply(interval).unstack("layer").loc[self.models]
        return gaps.T.map(lambda gap: f"{gap:z.2f}")

    def widest_layer(self, model: str, norm: str) -> int:
        """The layer in which that gap is greatest in the mean."""
        whole = self.whole_layers()
        part = whole[(whole.what == READINGS[norm]) & (whole.model == model)]
        gap = (part.summed - part.whole).abs().groupby(part.layer).mean()
        return int(gap.idxmax())


def _by_size(rows: pd.DataFrame, sides: Mapping[str, str]) -> pd.DataFrame:
    """One row per prompt, neuron and size, of rows that have sizes as columns.

    sides: name in the columns -> name of the column returned.
    """
    sizes = [float(name.split()[1]) for name in rows if name.startswith(f"{next(iter(sides))} ")]
    table = pd.concat(
        [
            rows[["prompt", "neuron"]].assign(
                size=size,
                first=rows["first"] * size,
                **{to: rows[f"{side} {size:g}"] for side, to in sides.items()},
            )
            for size in sizes
        ]
    )
    return table.sort_values(["prompt", "neuron", "size"], kind="stable", ignore_index=True)


# --------------------------------------------------------------------------------------- Theorem 4


def write_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``derivation.written`` by model and stage, with a column place: the first written
    layer or a later one. The query stage has no direction uphill: its requests do not end the
    prompt.
    """
    table = rows.rename(columns={"item": "stage"})
    first = table.groupby(["model", "stage"])["layer"].transform("min")
    table["place"] = np.where(table.layer == first, "first layer", "later layers")
    table.loc[table.stage == "query", "logit"] = np.nan
    return table


def write_points(write: pd.DataFrame) -> pd.DataFrame:
    """For the figure: errors in percent, stages in words."""
    return write.assign(stage=write.stage + " stage", error=100 * write.error)


def write_table(write: pd.DataFrame) -> pd.DataFrame:
    """Means over requests by model, stage and place."""
    table = write.assign(formula=100 * write.formula, error=100 * write.error)
    groups = table.groupby(["model", "stage", "place"], sort=False)[list(COLUMNS)]
    return groups.agg(lambda of: f"{interval(of):z.3g}").rename(columns=COLUMNS)


def shifts(write: pd.DataFrame, model: str, first: bool = False) -> Mean:
    """Error of the shift in percent, of the first written layers or of all."""
    part = write[write.model == model]
    return interval(100 * (part[part.place == "first layer"] if first else part).error)


# ---------------------------------------------------------------------------------------- verdicts


def claim_values(of: Statements, write: pd.DataFrame) -> dict[tuple[str, str], Mean]:
    """The values of this chapter's claims, by claim and model."""
    values: dict[tuple[str, str], Mean] = {}
    for model in of.models:
        values |= {
            ("logits_are_linear_stated", model): of.theorem_2[model, "frozen"],
            ("logits_are_linear", model): of.theorem_2[model, "exact"],
            ("taylor_holds", model): of.first_order[model, VALUE["frozen"]],
            ("importance_is_additive", model): of.theorem_3(model, "frozen"),
            ("pmet_is_linear_stated", model): shifts(write, model, first=True),
            ("pmet_is_linear", model): shifts(write, model),
        }
    return values


def results(of: Statements, write: pd.DataFrame) -> dict[str, dict[str, tuple[str, Mean]]]:
    """By model and statement, the rule of its verdict and its error: the claims' rules where there
    is one, else below 1 % for what is exact on paper and below 10 % for what is approximate.
    """
    rules, values = claims.claims_list().rule, claim_values(of, write)
    found = {}
    for model in of.models:

        def claim(name: str, model: str = model) -> tuple[str, Mean]:
            return rules[name], values[name, model]

        formula = interval(100 * write[write.model == model].formula)
        top = f"Theorem 3, top {of.n_top} neurons"
        found[model] = {
            "Theorem 2, no norm": ("< 1", of.theorem_2[model, "none"]),
            "Theorem 2, norm frozen": claim("logits_are_linear_stated"),
            "Theorem 2, true norm": claim("logits_are_linear"),
            "M.3, norm frozen": claim("taylor_holds"),
            "M.3, true norm": ("< 10", of.first_order[model, VALUE["exact"]]),
            "Eq. 10 as a first order": ("< 10", of.first_order[model, QUERY]),
            f"{top}, norm frozen": claim("importance_is_additive"),
            f"{top}, true norm": ("< 10", of.theorem_3(model, "exact")),
            "Theorem 4, formula": ("< 1", formula),
            "Theorem 4, shift of the first written layer": claim("pmet_is_linear_stated"),
            "Theorem 4, shift of all written layers": claim("pmet_is_linear"),
        }
    return found


def results_table(results: Mapping[str, Mapping[str, tuple[str, Mean]]]) -> pd.DataFrame:
    """Statements x (model, error and verdict), with the rule before them."""
    columns: dict[tuple[str, str], dict[str, str]] = {}
    for model, of in results.items():
        errors = {statement: shown(error, "") for statement, (_, error) in of.items()}
        verdicts = {statement: claims.verdict(*pair) for statement, pair in of.items()}
        columns |= {(model, "verdict"): verdicts, (model, "error (%)"): errors}
    table = pd.DataFrame(columns)
    rules = [rule for rule, _ in next(iter(results.values())).values()]
    table.insert(0, ("", "rule (%)"), rules)
    return table


def verdict_numbers(results: Mapping[str, Mapping[str, tuple[str, Mean]]]) -> dict:
    """By model, how many readings of the statements hold: all, with each norm, about the write; and
    which fail, and of which one cannot tell.
    """
    numbers = {}
    for model, of in results.items():
        verdicts = {statement: claims.verdict(*pair) for statement, pair in of.items()}
        numbers[model] = {
            "all": _holding(verdicts, ""),
            "frozen": _holding(verdicts, "norm frozen"),
            "exact": _holding(verdicts, "true norm"),
            "write": _holding(verdicts, "Theorem 4"),
            "words": list(verdicts.values()),
            "failing": _with(verdicts, "fails"),
            "open": _with(verdicts, "cannot tell"),
        }
    return numbers


def shown(error: Mean, unit: str = " %") -> str:
    """ "12.3 [10, 15] %"; what is below a billionth of a percent is "a rounding error"."""
    return "a rounding error" if abs(error.mean) < ROUNDING else f"{error:.3g}{unit}"


def _holding(verdicts: Mapping[str, str], part: str) -> str:
    some = [verdict for statement, verdict in verdicts.items() if part in statement]
    return f"{some.count('holds')} of {len(some)}"


def _with(verdicts: Mapping[str, str], word: str) -> Sequence[str]:
    return [statement for statement, verdict in verdicts.items() if verdict == word]


def statement_numbers(
    results: Mapping[str, Mapping[str, tuple[str, Mean]]],
) -> dict[str, dict[str, str]]:
    """By model and statement, "12.3 [10, 15] % (cannot tell)"."""
    return {
        model: {
            statement: f"{shown(error)} ({claims.verdict(rule, error)})"
            for statement, (rule, error) in of.items()
        }
        for model, of in results.items()
    }


def slope_numbers(of: Statements) -> dict[str, dict[str, Mean]]:
    """By model, the slopes of the errors."""
    kinds = {"frozen": VALUE["frozen"], "exact": VALUE["exact"], "query": QUERY}
    return {
        model: {name: of.exponents[model, what] for name, what in kinds.items()}
        for model in of.models
    }


def layer_numbers(of: Statements) -> dict[str, dict[str, int]]:
    """By model and norm, the layer whose neurons' scores add up worst."""
    return {
        model: {norm: of.widest_layer(model, norm) for norm in ("frozen", "exact")}
        for model in of.models
    }


def cosine_numbers(write: pd.DataFrame) -> dict[str, dict[str, Mean]]:
    """By model and stage, the cosine of what is written with the residual."""
    groups = write.groupby(["model", "stage"], sort=False).cosine
    cosines: dict[str, dict[str, Mean]] = {}
    for (model, stage), values in groups:
        cosines.setdefault(model, {})[stage] = interval(values)
    return cosines
