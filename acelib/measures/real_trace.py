"""Where a pretrained model keeps a fact: causal tracing of facts that it knows, with three kinds of
states put back.

The subject is corrupted with noise, and one clean state, or the outputs of ten neighbouring FFNs or
attentions, is put back at one token. The share of the effect that comes back is

    (p(answer | put back) - p(answer | noise)) / (p(answer | clean) - p(answer | noise))

over facts that the noise takes something from. Source: ROME, Section 2.1 and Figure 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from random import Random

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..attribution.interventions import causal_trace
from ..attribution.layers import ROLES
from ..model.answers import known_items
from ..model.lm import LM
from ..records import Fact
from ..study.drawing import figure, legend
from ..study.experiments import depends
from ..study.rows import Experiment, Series
from ..study.stats import Mean, interval
from ..world.wording import single_hop
from ..world.world import World

KINDS = {"out": "whole state", "mlp": "FFN outputs", "attn": "attention outputs"}
SUBJECT, LAST = "last subject", "last"  #: the two sites
LEAST = 0.05  #: probability that the noise must take, for a fact to count
PLACES = 5  #: decimals that are kept
LOOKS = {
    "first subject": "#9A9A9A",
    "middle subject": "#BBBBBB",
    SUBJECT: "#D55E00",
    "further": "#56B4E9",
    LAST: "#0072B2",
}


def experiment(
    hosts: Mapping[str, LM],
    known: Mapping[str, World],
    *,
    n_traced: int,
    n_noise: int,
    seed: int,
) -> Experiment:
    """Traces of up to ``n_traced`` known facts, as many of each relation as there are.

    known: by model, the world with the facts that it knows. Rows, one per kind and role: clean,
    corrupted, restored (a list by layer).
    """
    series = []
    for name, lm in hosts.items():
        some = facts(lm, known[name], n_traced, seed)
        items = {single_hop(known[name], fact)[0]: fact for fact in some}
        settings = {"n_noise": str(n_noise), "seed": str(seed)}
        series.append(
            Series(
                names={"model": name},
                depends={**depends(lm, known[name], None, None), "world": "", **settings},
                code=(__name__,),
                items=items,
                compute=partial(traces, lm, known[name], n_noise, seed),
                chunk=1,
            )
        )
    return Experiment("09_real_model_traces", tuple(series), rtol=1e-3, atol=1e-4)


def facts(lm: LM, known: World, n: int, seed: int) -> list[Fact]:
    """Up to ``n`` known facts, in turn of every relation, whose first said token is their object's:
    that token's probability is what is traced.
    """
    drawn = Random(f"{seed}/traced").sample(known.facts, len(known.facts))
    by_relation: dict[str, list[Fact]] = {}
    for fact in drawn:
        by_relation.setdefault(fact.relation, []).append(fact)
    turns = max(map(len, by_relation.values()))
    order = [some[i] for i in range(turns) for some in by_relation.values() if i < len(some)]
    found: list[Fact] = []
    for start in range(0, len(order), 2 * n):
        found += known_items(lm, order[start : start + 2 * n], partial(single_hop, known))
        if len(found) >= n:
            break
    return found[:n]


def traces(lm: LM, known: World, n_noise: int, seed: int, some: Sequence[Fact]) -> list[list[dict]]:
    """The rows of each fact."""
    rows: list[list[dict]] = []
    for fact in some:
        prompt, answer = single_hop(known, fact)
        of_fact = []
        for kind in KINDS:
            trace = causal_trace(lm, prompt, fact.subject, answer, kind, n_noise=n_noise, seed=seed)
            base = dict(kind=kind, clean=trace.clean, corrupted=trace.corrupted)
            for role, values in zip(ROLES, trace.restored.tolist(), strict=True):
                if values[0] == values[0]:  # some token has the role
                    restored = [round(value, PLACES) for value in values]
                    of_fact.append({**base, "role": role, "restored": restored})
        rows.append(of_fact)
    return rows


# ---------------------------------------------------------------- what the rows say


def restored(rows: pd.DataFrame) -> pd.DataFrame:
    """Share of the effect that comes back (%), one row per fact, kind, role and layer; of facts
    that lose at least ``LEAST`` to the noise.
    """
    effect = rows.clean - rows.corrupted
    some = rows[effect >= LEAST].reset_index(drop=True)
    lost = (some.clean - some.corrupted).to_numpy()
    long = some.assign(layer=[list(range(len(values))) for values in some.restored])
    long = long.assign(lost=lost).explode(["restored", "layer"]).astype({"restored": float})
    share = 100 * (long.restored - long.corrupted) / long.lost
    return long.assign(share=share)[["model", "item", "kind", "role", "layer", "share"]]


def means(shares: pd.DataFrame, seed: int = 0) -> dict[tuple[str, str, str, int], Mean]:
    """Mean over facts by (model, kind, role, layer), with 95 % intervals."""
    keys = ["model", "kind", "role", "layer"]
    found: dict[tuple[str, str, str, int], Mean] = {}
    for (model, kind, role, layer), part in shares.groupby(keys, sort=False):
        found[model, kind, role, int(layer)] = interval(list(part["share"]), seed)
    return found


def hand_over(shares: pd.DataFrame) -> dict[str, int | None]:
    """By model the first layer after which the last token's whole state brings back more than the
    last subject token's; None if there is none.
    """
    whole = shares[shares.kind == "out"]
    found: dict[str, int | None] = {}
    for model, part in whole.groupby("model", sort=False):
        curves = part.groupby(["role", "layer"])["share"].mean().unstack(0)
        ahead = [int(i) for i, row in curves.iterrows() if row[LAST] > row[SUBJECT]]
        found[str(model)] = ahead[0] if ahead else None
    return found


def sentence_numbers(rows: pd.DataFrame, seed: int) -> dict[str, dict]:
    """What the sentences say, by model: "traced" facts, "counted" of them, the layer of "hand_over"
    and, by kind, the layer and the share of the "peak" at the last subject token and at the last.
    """
    shares, said = restored(rows), {}
    average, over = means(shares, seed), hand_over(shares)
    for model in rows.model.unique():
        peaks = {}
        for kind in KINDS:
            for role in (SUBJECT, LAST):
                of = {k[3]: v for k, v in average.items() if k[:3] == (model, kind, role)}
                if of:
                    layer = max(of, key=lambda i: of[i].mean)
                    peaks[kind, role] = {"layer": layer, "share": of[layer]}
        said[model] = {
            "traced": rows[rows.model == model].item.nunique(),
            "counted": shares[shares.model == model].item.nunique(),
            "hand_over": over.get(model),
            "peaks": peaks,
        }
    return said


def curves(shares: pd.DataFrame) -> pd.DataFrame:
    """Mean share by (model, kind, layer) x role, for a check."""
    groups = shares.groupby(["model", "kind", "layer", "role"], sort=False)["share"]
    return groups.mean().unstack()


@figure
def lines(shares: pd.DataFrame, seed: int = 0) -> Figure:
    """What each kind of state brings back, by layer and token, with 95 % bands over facts; one row
    of panels per model.
    """
    models, average = list(shares.model.unique()), means(shares, seed)
    size = (9.6, 0.6 + 2.6 * len(models))
    fig, axes = plt.subplots(len(models), len(KINDS), figsize=size, sharey=True, squeeze=False)
    for row, model in zip(axes, models, strict=True):
        for ax, (kind, title) in zip(row, KINDS.items(), strict=True):
            for role in ROLES:
                of = {k[3]: v for k, v in average.items() if k[:3] == (model, kind, role)}
                layers = sorted(of)
                ax.plot(layers, [of[i].mean for i in layers], color=LOOKS[role], label=role)
                low, high = ([getattr(of[i], end) for i in layers] for end in ("low", "high"))
                ax.fill_between(layers, low, high, color=LOOKS[role], alpha=0.15, lw=0)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.set(title=f"{model}: {title}", xlabel="layer", ylim=(-8, 108))
        row[0].set_ylabel("brought back (%)")
    return legend(fig, axes[0, 0])
