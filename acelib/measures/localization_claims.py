"""The claims of Query Localization, measured: a ``Mean`` for every claim and model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import nan
from pathlib import Path

import pandas as pd

from ..study import claims
from ..study.stats import POINTS, SHARE, Mean, difference, interval
from . import localization_analysis as analysis
from .localization_analysis import EXAMPLE, ONE, STATIC, TWO
from .localization_attention import IRRELEVANT, OWN, READINGS
from .modification import CAS, ERASURE, GLOBAL, LOCAL, UPDATE

NOTHING = Mean(nan, nan, nan, 0)
Rows = Mapping[str, pd.DataFrame]
LEADING = ("ql_c10", "ql_c18", "ql_c21")  #: claims whose verdicts the chapter opens with
Values = dict[tuple[str, str], Mean]


def measured(rows: Rows, method: str = "IG", seed: int = 0) -> Values:
    """By (claim, model): the quantity of every claim that is tested.

    rows: of the experiments by name, "consistency", "mapping", "predominance", "synapses",
    "modification".
    """
    of, _ = analysis.classes(rows["consistency"], method)
    found: Values = {}
    for model in dict.fromkeys(rows["consistency"].model):
        parts = {name: some[some.model == model] for name, some in rows.items()}
        name = Path(str(model)).name
        told = [
            *_consistency(parts["consistency"], method, seed),
            *_modification(analysis.with_class(parts["modification"], of), seed),
            *_mapping(analysis.with_class(parts["mapping"], of), seed),
            *_attention(parts["predominance"], seed),
            *_synapses(analysis.with_class(parts["synapses"], of), seed),
        ]
        found |= {(claim, name): value for claim, value in told}
    return dict(sorted(found.items()))


def _consistency(rows: pd.DataFrame, method: str, seed: int) -> Iterator[tuple[str, Mean]]:
    values = analysis.at(rows)[analysis.at(rows).method == method].relaxed
    cut = analysis.cuts(values)["otsu"]
    every = analysis.is_two(rows, "otsu").all(axis=1)
    model = str(rows.model.iloc[0])
    yield "ql_c01", interval(100 * (values < STATIC), seed, bounds=SHARE)
    yield "ql_c02", interval(100 * every, seed, bounds=SHARE)
    yield "ql_c03", interval(values[values < cut], seed)
    yield "ql_c04", interval(100 * (values < EXAMPLE), seed, bounds=SHARE)
    yield "ql_c05", analysis.beyond(rows, seed)[model, method]


def _modification(rows: pd.DataFrame, seed: int) -> Iterator[tuple[str, Mean]]:
    """Of Sections 2.2 and 3.3, in points."""
    erased = _wide(analysis.percent(rows[rows.operation == ERASURE]))
    updated = _wide(analysis.percent(rows[rows.operation == UPDATE]))
    yield "ql_c07", _between(erased["gen", LOCAL], ONE, TWO, seed)
    yield "ql_c08", _between(updated["gen", LOCAL], ONE, TWO, seed)
    yield "ql_c09", _between(erased["avg", LOCAL], ONE, TWO, seed)
    yield "ql_c11", _between(erased["ppl", GLOBAL], TWO, ONE, seed)
    two, one = _of(erased, TWO), _of(erased, ONE)
    pairs = {
        "ql_c10": ("gen", GLOBAL, LOCAL),
        "ql_c21": ("avg", CAS, LOCAL),
        "ql_c22": ("gen", CAS, LOCAL),
        "ql_c23": ("avg", CAS, GLOBAL),
        "ql_c24": ("loc", CAS, GLOBAL),
        "ql_c25": ("ppl", GLOBAL, CAS),
        "ql_c26": ("ppl", CAS, LOCAL),
    }
    for claim, (metric, a, b) in pairs.items():
        bounds = None if metric == "ppl" else POINTS
        yield claim, interval(two[metric, a] - two[metric, b], seed, bounds=bounds)
    best = one["avg"][[LOCAL, GLOBAL]].mean().idxmax() if len(one) else LOCAL
    yield "ql_c27", interval(one["avg", CAS] - one["avg", best], seed, bounds=POINTS)


def _mapping(rows: pd.DataFrame, seed: int) -> Iterator[tuple[str, Mean]]:
    """Of Section 3.1, mean rates of change in points."""
    wide = _wide(analysis.rates(rows), ("d_avg",))["d_avg"]
    one, two = _of(wide, ONE), _of(wide, TWO)
    yield "ql_c12", interval(wide["Self"] - wide["Random"], seed)
    yield "ql_c13", interval(two["Self"] - two["Intersection"], seed)
    of_one, of_two = ((some["Self"].to_numpy(), some["Refine"].to_numpy()) for some in (one, two))
    yield "ql_c14", analysis.gap_of_ratios(of_one, of_two, seed)
    yield "ql_c15", interval(one["Self"] - one["Intersection"], seed)


def _attention(rows: pd.DataFrame, seed: int) -> Iterator[tuple[str, Mean]]:
    first, *_ = READINGS
    some = analysis.excess(rows[rows.reading == first])
    yield "ql_c16", interval(some.beyond, seed, bounds=POINTS)


def _synapses(rows: pd.DataFrame, seed: int) -> Iterator[tuple[str, Mean]]:
    """Of Section 3.2.2, in points."""
    names = ("d_avg", "d_avg_value", "d_sup_value")
    wide = _wide(analysis.synapse_rates(rows), names, "synapses")
    yield "ql_c17", interval(wide["d_avg_value", OWN] - wide["d_avg_value", IRRELEVANT], seed)
    yield "ql_c18", interval(wide["d_avg", OWN] - wide["d_avg", IRRELEVANT], seed)
    yield "ql_c19", interval(wide["d_sup_value", OWN], seed)
    yield "ql_c20", _between(wide["d_avg", OWN], TWO, ONE, seed)


def _wide(
    rows: pd.DataFrame, metrics: Sequence[str] = tuple(analysis.METRICS), by: str = "set"
) -> pd.DataFrame:
    """Facts and their class x (metric, set)."""
    return rows.pivot(index=["item", "knowledge"], columns=by, values=list(metrics))


def _of(wide: pd.DataFrame, knowledge: str) -> pd.DataFrame:
    """The facts of one class, none if there are none."""
    return wide[wide.index.get_level_values(1) == knowledge]


def _between(values: pd.Series, a: str, b: str, seed: int) -> Mean:
    """Mean of class a minus mean of class b; nothing where one has fewer than two facts."""
    x, y = (values[values.index.get_level_values(1) == of].dropna() for of in (a, b))
    if min(len(x), len(y)) < 2:
        return NOTHING
    return difference(x.tolist(), y.tolist(), seed)


def slack(values: Values) -> list[float]:
    """How far each row of a check of ``measured`` may be off on another machine, where a neuron at
    the threshold falls on the other side: 3 points, a t of 3, 0.05 in other units.
    """
    small = {"ql_c03": 0.05}
    return [small.get(claim, 3.0) for claim, _ in values]


# --------------------------------------------------------------------------------------- sentences


def sentence_numbers(rows: Rows, values: Values, used: Mapping[str, str]) -> dict[str, dict]:
    """What the sentences of the chapter say, by model.

    values: of ``measured``.   used: threshold of the classes, of ``analysis.classes``.
    """
    of, _ = analysis.classes(rows["consistency"])
    times = analysis.seconds(rows["consistency"])
    said = claims.verdicts(values)
    told = {}
    for model in dict.fromkeys(rows["consistency"].model):
        parts = {name: some[some.model == model] for name, some in rows.items()}
        name = Path(str(model)).name
        told[str(model)] = {
            "threshold": used[str(model)],
            "is": {claim: word for (claim, on), word in said.items() if on == name},
            "value": {claim: value for (claim, on), value in values.items() if on == name},
            "times": times[str(model)],
            **_consistency_numbers(parts["consistency"]),
            **_effect_numbers(parts, of),
        }
    return told


def leading(
    told: Mapping[str, Mapping], only: Sequence[str] = LEADING
) -> dict[str, dict[str, str]]:
    """Verdicts by claim and model.   told: ``sentence_numbers``."""
    return {claim: {model: of["is"][claim] for model, of in told.items()} for claim in only}


def _consistency_numbers(rows: pd.DataFrame) -> dict[str, object]:
    some = analysis.at(rows)[analysis.at(rows).method == "IG"]
    shares = analysis.choices(rows[rows.method == "IG"])
    layers = analysis.layers_of(rows).iloc[0]
    low, high = (
        shares[shares.threshold == f"{EXAMPLE:g}"].two.agg(kind) for kind in ("min", "max")
    )
    return {
        "n": len(some),
        "k": len(some.by_k.iloc[0]) + 1,
        "relaxed": interval(some.relaxed),
        "strict": interval(some.strict),
        "without_first": interval(some.without_first),
        "chance": interval(some.chance),
        "beyond_chance": interval(some.relaxed - some.chance),
        "lowest": low,
        "highest": high,
        "layer": int(layers.idxmax()),
        "layer_share": float(layers.max()),
    }


def _effect_numbers(parts: Rows, of: pd.DataFrame) -> dict[str, object]:
    """Means over all facts, or of K_II, in percent."""
    mapped = analysis.rates(parts["mapping"]).groupby("set").d_avg
    scaled = analysis.synapse_rates(parts["synapses"])
    own = scaled[scaled.synapses == OWN]
    changed = analysis.with_class(analysis.percent(parts["modification"]), of)
    two = changed[(changed.knowledge == TWO) & (changed.operation == ERASURE)]
    readings = parts["predominance"].groupby("reading", sort=False)
    return {
        "mapping": {str(name): interval(some) for name, some in mapped},
        "sup": interval(own.d_sup),
        "enh": interval(own.d_enh),
        "first": {str(name): interval(100 * some["first"]) for name, some in readings},
        "gen": {str(name): interval(some.gen) for name, some in two.groupby("set")},
        "neurons": {str(name): interval(some["size"]) for name, some in two.groupby("set")},
    }
