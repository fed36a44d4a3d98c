"""What the rows of ``neurons`` say: ACE on whole layers against ACE on some neurons."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ..study.stats import SHARE, Mean, interval, paired
from ..study.tables import NAMES, paired_table

METRICS = ("efficacy", "paraphrase", "specificity", "specificity_token", "multi_hop")


def metrics_table(rows: pd.DataFrame, sizes: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Metrics in percent, weights that are written, and the norm of the change.

    rows: ``neurons.experiment``.   sizes: ``neurons.norms``. Returns (model, editor) x columns.
    """
    written = dict(list(sizes.groupby(["model", "editor"])))
    table = {}
    for name, part in rows.groupby(["model", "editor"], sort=False):
        cells: dict[str, Mean | str] = {
            NAMES.get(metric, metric): interval(100 * part[metric], seed, bounds=SHARE)
            for metric in METRICS
        }
        cells["weights written (thousands)"] = f"{written[name].weights.iloc[0] / 1000:,.0f}"
        cells["norm of the change"] = f"{interval(written[name].norm, seed):.1f}"
        table[name] = cells
    return pd.DataFrame(table, dtype=object).T


def gaps(rows: pd.DataFrame, others: Sequence[str], seed: int = 0) -> dict[str, pd.DataFrame]:
    """By model, ACE on whole layers minus ACE on some neurons: ``tables.paired_table``."""
    return {
        model: paired_table(part, "ACE", others, seed=seed)
        for model, part in rows.groupby("model", sort=False)
    }


def layers_against_neurons(rows: pd.DataFrame, n: int, seed: int = 0) -> dict[str, dict]:
    """By model and metric, the difference of ACE on whole layers to ACE on ``n`` neurons per layer,
    in percentage points, and who is ahead: {"gap": Mean, "ahead": "layers", "neurons" or ""}.
    """
    return _difference(rows, "ACE", f"{n} neurons", ("layers", "neurons"), seed)


def neurons_against_random(
    rows: pd.DataFrame, sizes: pd.DataFrame, n: int, seed: int = 0
) -> dict[str, dict]:
    """By model: metrics, the difference of ``n`` attributed neurons per layer to as many random
    ones, as ``layers_against_neurons`` gives them; norms, of the changes of both.
    """
    names = {"attributed": f"{n} neurons", "random": f"{n} random"}
    compared = _difference(rows, f"{n} neurons", f"{n} random", ("attributed", "random"), seed)
    norms: dict[str, dict[str, Mean]] = {
        model: {
            kind: interval(part.norm[part.editor == name], seed) for kind, name in names.items()
        }
        for model, part in sizes.groupby("model", sort=False)
    }
    return {model: {"metrics": of, "norms": norms[model]} for model, of in compared.items()}


def _difference(
    rows: pd.DataFrame, a: str, b: str, sides: tuple[str, str], seed: int
) -> dict[str, dict]:
    result: dict[str, dict] = {}
    for model, part in rows.groupby("model", sort=False):
        points = part.assign(**{metric: 100 * part[metric] for metric in METRICS})
        result[model] = {}
        for metric in METRICS:
            gap = paired(points, a, b, metric, seed)
            ahead = sides[0] if gap.low > 0 else sides[1] if gap.high < 0 else ""
            result[model][NAMES.get(metric, metric)] = {"gap": gap, "ahead": ahead}
    return result
