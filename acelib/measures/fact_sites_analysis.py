"""What the rows of ``fact_sites`` say: which FFN outputs facts depend on, how long they are, and
what of the early site goes through FFNs.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from ..study.stats import SHARE, Mean, interval
from .fact_sites import BARS, EVERYWHERE, OTHER, SUBJECT

TITLES = {  #: bar -> what the table calls it
    "ffns_needed": "facts lost without FFN outputs of all layers but 0",
    "lower_middle_needed": "facts lost without those of layers 1–L/2 at the subject's last token",
    "another_token_spared": "facts kept without those of layers 1–L/2 at another token",
    "embedding_share": "length of what FFN 0 adds to, over that of what it adds",
}


def known_only(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of facts that are answered with nothing averaged away."""
    bare = rows[(rows["layers"] == "none") & (rows.right == 1)]
    known = pd.MultiIndex.from_frame(bare[["model", "item"]])
    return rows[pd.MultiIndex.from_frame(rows[["model", "item"]]).isin(known)]


def kept(rows: pd.DataFrame, seed: int = 0) -> dict[tuple[str, str, str], Mean]:
    """Known facts still answered, in percent, by model, layers and tokens averaged away."""
    by = known_only(rows).groupby(["model", "layers", "tokens"], sort=False)
    return {
        (str(model), str(layers), str(tokens)): interval(100 * part.right, seed, bounds=SHARE)
        for (model, layers, tokens), part in by
    }


def measured(rows: pd.DataFrame, lengths: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The bars in percent, bars x models.

    rows, lengths: of ``fact_sites.averages`` and ``fact_sites.lengths``.
    """
    shares = kept(rows, seed)
    first = lengths[lengths.item.astype(str) == "0"].set_index("model")
    columns = {}
    for model in rows.model.unique():
        columns[model] = {
            "ffns_needed": _lost(shares[model, "all but 0", EVERYWHERE]),
            "lower_middle_needed": _lost(shares[model, "lower middle", SUBJECT]),
            "another_token_spared": shares[model, "lower middle", OTHER],
            "embedding_share": _one(100 * first.onto[model] / first.added[model]),
        }
    return pd.DataFrame(columns, dtype=object)


def _lost(share: Mean) -> Mean:
    return Mean(100 - share.mean, 100 - share.high, 100 - share.low, share.n)


def _one(value: float) -> Mean:
    return Mean(float(value), float("nan"), float("nan"), 1)


def needed_numbers(rows: pd.DataFrame, lengths: pd.DataFrame, seed: int = 0) -> dict:
    """By model: the bars as means, and how many times as long as what it is added to FFN 0's output
    is.
    """
    found = measured(rows, lengths, seed)
    times = lengths_table(lengths)[0]
    models = {
        str(model): {**found[model].to_dict(), "times": float(times[model])} for model in found
    }
    missed = sum(
        of[bar].mean < 100 * least for of in models.values() for bar, least in BARS.items()
    )
    return {"models": models, "missed": missed, "of": len(BARS) * len(models)}


def bars_table(rows: pd.DataFrame, lengths: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """One line per bar: shares of the models in percent, what is to be reached, by which model it
    is not.
    """
    found, lines = measured(rows, lengths, seed), {}
    for bar, least in BARS.items():
        below = [f"not by {m}" for m in found if found.at[bar, m].mean < 100 * least]
        lines[TITLES[bar]] = {
            **{f"{model} (%)": found.at[bar, model] for model in found},
            "to be reached (%)": f"{100 * least:.0f}",
            "reached": ", ".join(below) or "yes",
        }
    return pd.DataFrame(lines).T


def lengths_table(lengths: pd.DataFrame) -> pd.DataFrame:
    """Length of FFN outputs over that of what they are added to, models x layers."""
    ratio = lengths.assign(ratio=lengths.added / lengths.onto, layer=lengths.item.astype(int))
    wide = ratio.pivot_table(index="model", columns="layer", values="ratio", sort=False)
    return wide.sort_index(axis=1).rename_axis(None).rename_axis(None, axis=1)


def restored(rows: pd.DataFrame) -> pd.DataFrame:
    """What the state at the subject's last token brings back, in percent of what the noise takes:
    columns model, severed, layer, share; one row per fact.

    rows: of ``fact_sites.severed``. Shares are of the mean over facts of what the noise takes, so
    that facts from which it takes next to nothing weigh as little.
    """
    layers = sorted(int(name) for name in rows if name.isdigit())
    taken = (rows.clean - rows.corrupted).groupby(rows.model).transform("mean")
    parts = [
        rows[["model", "severed"]].assign(
            layer=layer, share=100 * (rows[str(layer)] - rows.corrupted) / taken
        )
        for layer in layers
    ]
    return pd.concat(parts, ignore_index=True)


def early_site(shares: pd.DataFrame, seed: int = 0) -> Mapping[str, dict[str, object]]:
    """By model: the first layer from 1 on whose state brings back half or more (none: that which
    brings back the most), that share, and what is left of it with FFNs and with attention severed.

    The first, because severing takes only what layers above still had to add (ROME, Figure 3).
    shares: of ``restored``.
    """
    numbers = {}
    for model, part in shares.groupby("model", sort=False):
        bare = part[(part.severed == "nothing") & (part["layer"] > 0)]
        means = bare.groupby("layer")["share"].mean()
        layer = int((means >= 50).idxmax() if (means >= 50).any() else means.idxmax())
        at = part[part["layer"] == layer].groupby("severed")["share"]
        numbers[str(model)] = {
            "layer": layer,
            **{str(name): interval(values.to_numpy(), seed) for name, values in at},
        }
    return numbers
