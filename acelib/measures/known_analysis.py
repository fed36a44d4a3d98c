"""What the rows of ``known`` say: shares beside the bars that are to be reached, what one state
brings back in a causal trace, and what the ablation of the training text changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from scipy.stats import binomtest

from ..attribution.layers import ROLES
from ..study.stats import Mean

TITLES = {  #: bar -> what the table calls it
    "cloze": "statement",
    "qa": "question",
    "cloze_unseen": "statement, unseen wording",
    "qa_unseen": "question, unseen wording",
    "robust": "statement behind another one",
}
TITLES |= {
    f"{kind}_{n}": f"{n}-hop {title}"
    for kind, title in (
        ("cot", "chain of thought"),
        ("implicit", "statement at once"),
        ("direct", "question at once"),
    )
    for n in (2, 3, 4)
}
TITLES |= {
    f"{editor}_{name}": f"{editor.upper()} {title}"
    for editor in ("rome", "memit")
    for name, title in (
        ("efficacy", "efficacy"),
        ("paraphrase", "paraphrase"),
        ("specificity", "specificity"),
        ("endings", "specificity, same last token"),
    )
}
SITES = {  #: column of ``known.sites`` -> what the table calls it
    "early": "early site (causal trace)",
    "query": "query layers (attribution)",
    "value": "value layers (attribution)",
}


def held_out(bar: str) -> str:
    """What training text does not have of the prompts of a bar."""
    if "unseen" in bar:
        return "wording"
    if bar in ("cloze", "qa"):
        return "nothing"
    if bar == "robust":
        return "context"
    return "chain" if bar[-1].isdigit() else "edit"


# -------------------------------------------------------------------------------------------- bars


def measured(rows: pd.DataFrame) -> pd.DataFrame:
    """Shares of right answers between 0 and 1, bars x models.

    rows: of ``known.experiment`` and ``known.edits``.
    """
    sums = rows.groupby(["bar", "model"], sort=False)[["right", "asked"]].sum()
    wide = (sums.right / sums.asked).unstack()
    order = [*rows.bar.unique()]
    return wide.loc[order, [*rows.model.unique()]].rename_axis(None).rename_axis(None, axis=1)


def bar_means(rows: pd.DataFrame) -> dict[tuple[str, str], Mean]:
    """Share of right answers in percent by (bar, model), with Wilson's 95 % interval.

    Facts, chains and edits are independent draws, each asked in all its wordings; of them there are
    ``n``.
    """
    table = measured(rows)
    items = rows.groupby(["bar", "model"], sort=False)["item"].nunique()
    means = {}
    for bar in table.index:
        for model in table.columns:
            n, share = int(items[bar, model]), float(table.at[bar, model])
            ends = binomtest(round(share * n), n).proportion_ci(method="wilson")
            means[bar, model] = Mean(100 * share, 100 * ends.low, 100 * ends.high, n)
    return means


def bars_missed(rows: pd.DataFrame, bars: Mapping[str, float]) -> list[tuple[str, str]]:
    """(bar, model) whose share lies below what is to be reached."""
    table = measured(rows)
    return [
        (bar, model)
        for model in table.columns
        for bar in bars
        if bar in table.index and table.at[bar, model] < bars[bar]
    ]


def verdict_numbers(rows: pd.DataFrame, bars: Mapping[str, float]) -> dict:
    """How many bars are passed, and which are missed."""
    table, means, lost = measured(rows), bar_means(rows), bars_missed(rows, bars)
    total = sum(bar in table.index for bar in bars) * len(table.columns)
    return {
        "passed": total - len(lost),
        "bars": total,
        "missed": [
            {
                "bar": TITLES[bar],
                "model": model,
                "share": means[bar, model],
                "least": 100 * bars[bar],
            }
            for bar, model in lost
        ],
    }


def bars_table(rows: pd.DataFrame, bars: Mapping[str, float]) -> pd.DataFrame:
    """One line per bar: what is held out, n, shares of the models, what is to be reached, and by
    which model it is not.
    """
    table, means, lost = measured(rows), bar_means(rows), bars_missed(rows, bars)
    lines = {}
    for bar in table.index:
        below = [f"not by {model}" for name, model in lost if name == bar]
        lines[TITLES[bar]] = {
            "held out": held_out(bar),
            "n": means[bar, table.columns[0]].n,
            **{f"{model} (%)": means[bar, model] for model in table.columns},
            "to be reached (%)": f"{100 * bars[bar]:.0f}" if bar in bars else "–",
            "reached": (", ".join(below) or "yes") if bar in bars else "–",
        }
    return pd.DataFrame(lines).T


# ---------------------------------------------------------------------------------- causal traces


def traced_states(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per prompt, token role and layer: kind (the model), role, layer, probability of the
    answer with the state put back, how much that is above the corrupted run (``back``), and how
    much the noise took (``taken``). nan where a prompt has no such token.

    rows: of ``known.traces``.
    """
    layers = sorted(int(name) for name in rows if name.isdigit())
    return pd.DataFrame(
        [
            dict(
                kind=row["model"],
                role=row["role"],
                layer=layer,
                probability=row[str(layer)],
                back=row[str(layer)] - row["corrupted"],
                taken=row["clean"] - row["corrupted"],
            )
            for row in rows.to_dict("records")
            for layer in layers
        ]
    )


def prompts(rows: pd.DataFrame) -> pd.DataFrame:
    """By model: prompts traced, and mean probability of the answer, clean and corrupted."""
    each = rows[rows.role == ROLES[-1]].groupby("model", sort=False)
    return pd.DataFrame(
        {"n": each.size(), "clean": each.clean.mean(), "corrupted": each.corrupted.mean()}
    )


def brought_back(states: pd.DataFrame) -> pd.DataFrame:
    """What a state brings back as a share (percent) of what the noise takes, by kind, role and
    layer; n: prompts that have such a token.   states: ``traced_states``.
    """
    by = states.dropna().groupby(["kind", "role", "layer"], sort=False)
    back = by.agg(back=("back", "mean"), taken=("taken", "mean"), n=("back", "size")).reset_index()
    return back.assign(share=100 * back.back / back.taken)


def best_states(back: pd.DataFrame) -> pd.DataFrame:
    """The layer whose state brings back the most, by (role, kind)."""
    best = back.groupby(["kind", "role"])["share"].idxmax().dropna()
    return back.loc[best].set_index(["role", "kind"])


def best_table(back: pd.DataFrame) -> pd.DataFrame:
    """Token roles x models: prompts, the most that comes back, after which layer, and after which
    layers at least half does.
    """
    best = best_states(back)
    half = back[back.share >= 50].groupby(["role", "kind"])["layer"]
    layers = half.agg(lambda some: ", ".join(map(str, some)))
    columns: dict[tuple[str, str], dict[str, str]] = {}
    for model in back.kind.unique():
        for role in ROLES:
            known = (role, model) in best.index
            cells = {
                "prompts": str(best.n[role, model]) if known else "–",
                "most (%)": f"{best.share[role, model]:.0f}" if known else "–",
                "after layer": str(best.layer[role, model]) if known else "–",
                "at least half after layers": layers.get((role, model), "none") if known else "–",
            }
            for name, cell in cells.items():
                columns.setdefault((model, name), {})[f"{role} token"] = cell
    return pd.DataFrame(columns)


def trace_numbers(back: pd.DataFrame) -> dict:
    """By model and role: the most that comes back, and the layer; None without a token."""
    best = best_states(back)
    return {
        model: {
            role.replace(" ", "_"): {
                "share": best.share[role, model],
                "layer": best.layer[role, model],
            }
            if (role, model) in best.index
            else None
            for role in ROLES
        }
        for model in back.kind.unique()
    }


def probabilities(states: pd.DataFrame) -> pd.DataFrame:
    """Mean probability of the answer, (model, role) x layers, for the check."""
    return states.pivot_table(
        index=["kind", "role"], columns="layer", values="probability", sort=False
    )


def sites_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Located layers by model.   rows: of ``known.sites``."""
    return rows.set_index("model")[list(SITES)].rename(columns=SITES).rename_axis(None)


# ------------------------------------------------------------------- ablation of the training

SITED = {  #: bar -> what the table of ideas calls it: does it know, reason, keep facts where?
    "cloze": "statement",
    "cot_2": "2-hop chain of thought",
    "ffns_needed": "FFNs needed",
    "lower_middle_needed": "lower middle needed",
    "another_token_spared": "another token spared",
    "embedding_share": "FFN 0",
    "memit_paraphrase": "MEMIT paraphrase",
    "memit_endings": "MEMIT same last token",
}


def ideas_table(kept: pd.DataFrame, ideas: Iterable[str]) -> pd.DataFrame:
    """Recipes x bars of where facts sit, percent: the whole recipe, its second seed, and each idea
    done otherwise.

    kept: ``ablation`` rows by variant. A variant that has not been trained is left out.
    """
    named = [name for name in kept.index if name.startswith("all") or name in {*ideas}]
    shown = 100 * kept.loc[named, list(SITED)].astype(float)
    return shown.round(1).rename(columns=SITED).rename_axis(None)


def effects(kept: pd.DataFrame, bars: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Shares of the whole mixture (percent), and changes against them in percentage points,
    variants x bars.

    kept: ``ablation`` rows by variant, of which those without a kind of text are read.
    """
    kept = kept[kept.index.str.startswith(("all", "without"))]
    names = [name for name in bars if name in kept]
    whole = kept.loc["all", names].astype(float)
    change = 100 * (kept.loc[:, names].astype(float) - whole)
    return 100 * whole, change


def effects_table(kept: pd.DataFrame, bars: Sequence[str]) -> pd.DataFrame:
    """Bars x variants: the whole mixture in percent, and the changes without a kind of text."""
    whole, change = effects(kept, bars)
    table = pd.concat([pd.DataFrame({"all (%)": whole}), change.drop(index="all").T], axis=1)
    return table.round(1).rename(index=TITLES)


def dense_numbers(kept: pd.DataFrame, bars: Sequence[str]) -> dict:
    """What the editors lose without dense text, beside what another seed changes.

    known: whether both variants are there; if not, there is nothing else.
    """
    if not {"without dense", "all, seed 1"} <= {*kept.index}:
        return {"known": False}
    _, change = effects(kept, bars)
    edits = [name for name in change if name.startswith(("rome", "memit"))]
    without, seed = change.loc["without dense"], change.loc["all, seed 1"]
    more = [name for name in edits if abs(without[name]) > abs(seed[name])]
    sites = kept.early_site.str.replace(" ", ", ")
    return {
        "known": True,
        "changes": [
            {"bar": TITLES[name], "change": without[name], "seed": seed[name]} for name in edits
        ],
        "more": len(more),
        "losses": sum(without[name] < 0 for name in more),
        "site": sites["all"],
        "site_seed": sites["all, seed 1"],
        "site_without": sites["without dense"] or "none",
    }


def noise_numbers(kept: pd.DataFrame, bars: Sequence[str], n_chains: int, n_edits: int) -> dict:
    """How many changes exceed that of another seed, and the half width of the interval of a share.

    known: whether there is another seed; if not, there is nothing else.
    """
    if "all, seed 1" not in kept.index:
        return {"known": False}
    _, change = effects(kept, bars)
    others = change.drop(index=[name for name in change.index if name.startswith("all")])
    return {
        "known": True,
        "steps": int(kept.steps.iloc[0]),
        "n_chains": n_chains,
        "n_edits": n_edits,
        "chains": 2 * 98 * (0.25 / n_chains) ** 0.5,
        "edits": 2 * 98 * (0.25 / n_edits) ** 0.5,
        "changes": others.size,
        "exceed": int((others.abs() > change.loc["all, seed 1"].abs()).sum().sum()),
    }


def small_numbers(kept: pd.DataFrame, measured: pd.DataFrame) -> dict:
    """What the small models say of the statements (percent), and whether that is less than what
    the reference models do.
    """
    least, most = float(kept.cloze.min()), float(kept.cloze.max())
    return {
        "least": 100 * least,
        "most": 100 * most,
        "fewer": most < float(measured.loc["cloze"].min()),
    }
