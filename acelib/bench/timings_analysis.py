"""Appendix I's page: timings as tables, and the numbers of its sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from ..paper import published
from ..study.stats import SHARE, Mean, interval
from .speed import Timing
from .timings import STORED, WIDTH

MAIN = ("vectors", "bare", "wide", "update", "history", "keys", "moments", "each")
LEAST = {  #: measurement -> the ratio that its first row must exceed
    "vectors": 2,
    "bare": 2,
    "update": 1,
    "history": 5,
    "keys": 1,
    "moments": 1,
    "each": 0.2,
}
AIM = 15  #: ratio that was aimed at for target vectors


class Timings:
    """The rows of ``timings.experiment``, by measurement.

    rows: its table.
    """

    def __init__(self, rows: pd.DataFrame):
        self.rows = rows
        self.model = str(rows.model.iloc[0])

    def of(self, name: str) -> list[Timing]:
        """The timings of one measurement."""
        part = self.rows[self.rows.item == name]
        return [
            Timing(row["name"], row["plain_s"], row["ours_s"], row["off"], row["of"])
            for row in part.to_dict("records")
        ]

    def first(self, name: str) -> Timing:
        return self.of(name)[0]

    def several(self, kind: str) -> list[list[Timing]]:
        """Repeated measurements: "again" of "again 0", "again 1", ..."""
        names = [name for name in self.rows.item.unique() if name.startswith(f"{kind} ")]
        return [self.of(name) for name in names]

    def bounds(self) -> tuple[float, float]:
        """How much faster an exact search can be at most, with texts before prompts and without."""
        part = self.rows[self.rows.item == "bound"].set_index("n_prefixes").bound
        return float(part[5]), float(part[0])

    def stages(self) -> pd.DataFrame:
        """Seconds of an edit's vectors and of its update, one row per run; column model."""
        part = self.rows[self.rows.item.str.startswith("stages ")]
        models = part.item.str.split().str[1]
        return part[["vectors_s", "update_s"]].assign(model=models).reset_index(drop=True)

    def curves(self) -> pd.DataFrame:
        """The growth curves: what, size, procedure, seconds."""
        part = self.rows[self.rows.item.str.startswith("growth ")]
        columns = ["what", "size", "procedure", "seconds"]
        return part[columns].astype({"size": int}).reset_index(drop=True)

    @property
    def machine(self) -> dict[str, bool | int]:
        """What it was measured on: number of threads, and whether of a CPU."""
        return {
            "threads": int(self.rows.threads.max()),
            "cpu": bool(self.rows.cpu.min()),
        }


def main_table(timings: Timings) -> pd.DataFrame:
    """The main measurements, one line each."""
    where = {
        "vectors": f", {timings.model}",
        "bare": f", {timings.model}",
        "wide": f", d = {WIDTH}, 12 layers",
    }
    return pd.concat([lines(timings.of(name), where.get(name, "")) for name in MAIN])


def lines(timings: Sequence[Timing], where: str = "") -> pd.DataFrame:
    """Timings as lines of a table."""
    return pd.DataFrame(
        {
            timing.name + where: {
                "plain (s)": f"{timing.baseline_s:.3g}",
                "acelib (s)": f"{timing.ours_s:.3g}",
                "ratio": f"{timing.ratio:.1f}",
                "results differ by": f"{timing.off:.0e}",
                "of what": timing.note,
            }
            for timing in timings
        }
    ).T


def exponents_table(exponents: pd.DataFrame) -> pd.DataFrame:
    """What grows x procedures.   exponents: ``latency.exponents``."""
    cells: dict[str, dict[str, str]] = {"plain": {}, "acelib": {}}
    for (what, name), row in exponents.iterrows():
        cells[name][what] = f"{row.exponent:.2f} [{row.low:.2f}, {row.high:.2f}]"
    return pd.DataFrame(cells)


def released_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The largest difference over families, comparisons x precisions.   rows: of
    ``timings.agreement``.
    """
    largest = rows.groupby("item", sort=False)[["float64", "float32"]].max()
    return largest.rename_axis(None)


def beside_table(timings: Timings) -> pd.DataFrame:
    """Appendix I as published, and the first run that was measured."""
    spent = _first_run(timings)
    columns = {
        ("published GPT-J", "s"): [published.quote("ace_65"), published.quote("ace_63")],
        ("published Qwen3-8B", "s"): [published.quote("ace_66"), published.quote("ace_64")],
        (f"measured {timings.model}", "s"): [spent.vectors_s, spent.update_s],
    }
    return pd.DataFrame(columns, ["value vectors of all edits", "one update, vectors kept"])


def _first_run(timings: Timings) -> pd.Series:
    stages = timings.stages()
    return stages[stages.model == timings.model].iloc[0]


# --------------------------------------------------------------------------------------- sentences


def verdict_numbers(timings: Timings) -> dict:
    """The gains of the page's first sentence."""
    return {
        **timings.machine,
        "vectors": timings.first("vectors").ratio,
        "wide": timings.first("wide").ratio,
        "update": timings.of("update")[0].ratio,
        "history": timings.first("history").ratio,
        "aim": AIM,
        "width": WIDTH,
        "stored": STORED,
        "most": timings.bounds()[0],
    }


def update_numbers(timings: Timings) -> dict:
    """What an update costs at first and later, and what judging edits in one batch does."""
    cached, first = timings.of("update")
    judged = timings.of("each")[1]
    return {
        "first_s": first.ours_s,
        "next_s": cached.ours_s,
        "full_s": cached.baseline_s,
        "batch_s": judged.ours_s,
        "one_by_one_s": judged.baseline_s,
        "judged": judged.ratio,
    }


def shape_numbers(timings: Timings) -> dict:
    """How many updates take as long as all vectors: published for GPT-J, and measured."""
    spent = _first_run(timings)
    return {
        "published": published.quote("ace_65") / published.quote("ace_63"),
        "measured": spent.vectors_s / spent.update_s,
    }


def bound_numbers(timings: Timings) -> dict:
    """The bounds of an exact search, what was measured, and on how many other samples."""
    most, most_bare = timings.bounds()
    again = [rows[0].ratio for rows in timings.several("again")]
    return {
        "most": most,
        "most_bare": most_bare,
        "vectors": timings.first("vectors").ratio,
        "bare": timings.first("bare").ratio,
        "samples": len(again),
        "least": min(again, default=0.0),
        "greatest": max(again, default=0.0),
    }


# ------------------------------------------------------------------------------ checks and claims


def checks(timings: Timings) -> pd.DataFrame:
    """Whether results are equal, and whether the library is faster, as words."""
    equal = {name: all(row.off < 1e-2 for row in timings.of(name)) for name in LEAST}
    faster = {name: timings.first(name).ratio > ratio for name, ratio in LEAST.items()}
    return pd.DataFrame({"equal": equal, "faster": faster}).map(_yes)


def released_checks(table: pd.DataFrame) -> pd.DataFrame:
    """Whether differences are as small as the tests demand, as words."""
    return (table <= [1e-8, 1e-2]).map(_yes)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def claim_values(timings: Timings, n_small: int, seed: int = 0) -> Mapping[tuple[str, str], Mean]:
    """The values of this chapter's claims, by claim and model: means over runs.

    n_small: edits of each run.
    """
    stages = timings.stages()
    shares = 100 / (1 + n_small * stages.update_s / stages.vectors_s)
    values = {
        ("vectors_dominate", model): interval(part, seed, bounds=SHARE)
        for model, part in shares.groupby(stages.model, sort=False)
    }
    writes = timings.several("inverse")
    inverse = [100 * (1 - after.ours_s / before.ours_s) for after, before in writes]
    return {**values, ("inverse_dominates", "both"): interval(inverse, seed, bounds=SHARE)}
