"""What the rows of ``robustness`` say: Tables 13 to 18, and the numbers of the page's sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from ..paper.published import published
from ..study import claims
from ..study.stats import SHARE, Mean, interval, paired
from ..study.tables import layers_table, paired_table
from .robustness import COMPARED, STATES

METRICS = ("efficacy", "paraphrase", "specificity", "specificity_token", "multi_hop")
PUBLISHED = {"few-shot": 1, "one-shot": 15, "zero-shot": 14}  #: setting -> table of the paper
OTHERS = ("zero-shot", "one-shot")  #: settings that are compared with few-shot
LOST = 40  #: percent that the paper's masking takes from the answer, and not from the subject
BLOCKS = {"attn": "attention (nats)", "ffn": "FFN (nats)"}  #: columns of ``by_block``


def by_layer(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per layer, of rows whose importance is a list by layer."""
    layers = rows.importance.map(lambda values: list(range(len(values))))
    rows = rows.assign(layer=layers).explode(["layer", "importance"], ignore_index=True)
    return rows.astype({"layer": int, "importance": float})


def by_block(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with a column for each block, nan for the rows of the other."""
    return rows.join(rows.pivot(columns="block", values="importance"))


# ---------------------------------------------------------------- sampled answers (Table 13)


def averaged(rows: pd.DataFrame, passes: Sequence[int]) -> pd.DataFrame:
    """Importance by prompt and layer, averaged over the first k samples; column samples: "Pass@k".

    rows: ``by_layer`` of ``robustness.sampled``.
    """
    keys = ["model", "block", "layer", "item"]
    parts = [
        rows[rows.trial <= k]
        .groupby(keys, sort=False)["importance"]
        .mean()
        .reset_index()
        .assign(samples=f"Pass@{k}")
        for k in passes
    ]
    return pd.concat(parts, ignore_index=True)


def best_by_pass(rows: pd.DataFrame, passes: Sequence[int], n: int = 3) -> pd.DataFrame:
    """Importance averaged over k samples, the ``n`` best layers of each block, (model, block,
    layer) x k.
    """
    means = pd.concat(
        [
            rows[rows.trial <= k]
            .groupby(["model", "block", "layer"])["importance"]
            .mean()
            .rename(k)
            for k in passes
        ],
        axis=1,
    )
    best = means.groupby(["model", "block"])[max(passes)].nlargest(n).index.droplevel([0, 1])
    return means.loc[best]


def published_by_pass() -> pd.DataFrame:
    """Table 13 as printed, as ``best_by_pass``."""
    keys = ["model", "block", "layer"]
    return published(13).pivot(index=keys, columns="pass_k", values="value")


def spread(means: pd.DataFrame) -> pd.Series:
    """Largest minus smallest average, in percent of their mean."""
    return 100 * (means.max(axis=1) - means.min(axis=1)) / means.mean(axis=1)


def passes_table(means: pd.DataFrame) -> pd.DataFrame:
    """Table 13, published and measured, with the spread."""
    parts = {"published": published_by_pass(), "measured": means}
    return pd.concat(
        {name: part.assign(**{"spread (%)": spread(part)}) for name, part in parts.items()}
    ).round(2)


def hits(rows: pd.DataFrame, passes: Sequence[int]) -> dict[str, dict[int, Mean]]:
    """Prompts with the right first token in any of k samples, %, by model and k.

    rows: ``robustness.sampled``.
    """
    one = rows[rows.block == "ffn"].sort_values("trial", kind="stable")
    result: dict[str, dict[int, Mean]] = {}
    for model in rows.model.unique():
        right = one[one.model == model].groupby("item", sort=False)["right"].apply(list)
        shares = {k: [100.0 * any(row[:k]) for row in right] for k in passes}
        result[model] = {k: interval(values, bounds=SHARE) for k, values in shares.items()}
    return result


def hits_table(found: Mapping[str, Mapping[int, Mean]]) -> pd.DataFrame:
    """``hits`` as a table, Pass@k x models."""
    return pd.DataFrame(
        {
            f"measured {model}": {f"Pass@{k}": mean for k, mean in of.items()}
            for model, of in found.items()
        },
        dtype=object,
    )


# ---------------------------------------------------------------- examples (Tables 14 and 15)


def ranks(scores: pd.DataFrame, top: int = 5) -> dict[str, pd.DataFrame]:
    """The best layers by category, published and measured, by setting: ``tables.layers_table``.

    scores: ``by_layer`` of ``robustness.with_examples``.
    """
    return {
        setting: layers_table(scores[scores.setting == setting], published(number), top=top)
        for setting, number in PUBLISHED.items()
    }


def ranks_table(best: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables 14, 15, measured: "*" marks another layer than few-shot has at this rank."""
    measured = {setting: of.filter(regex="measured") for setting, of in best.items()}
    marked = {}
    for setting in OTHERS:
        changed = (measured[setting] != measured["few-shot"]).fillna(False).astype(bool)
        marked[setting] = measured[setting].astype(str) + changed.map(lambda other: "*" * other)
    table = pd.concat(marked, axis=1)
    names = [(f"{setting}, {source}", rank) for setting, source, rank in table.columns]
    return table.set_axis(pd.MultiIndex.from_tuples(names), axis=1)


def stability(scores: pd.DataFrame, top: int = 3) -> pd.DataFrame:
    """Layers against few-shot prompts, one row per model, setting, category and block.

    correlation: rank correlation of the layers' importances; kept: share of the ``top`` best
    few-shot layers that stay, %.
    """
    keys = ["model", "setting", "category", "block", "layer"]
    sums = scores.groupby(keys)["importance"].sum().unstack()
    rows = []
    for model, part in scores.groupby("model", sort=False):
        for setting in OTHERS:
            for category in part.category.unique():
                for block in BLOCKS:
                    new = sums.loc[model, setting, category, block]
                    old = sums.loc[model, "few-shot", category, block]
                    kept = {*new.nlargest(top).index} & {*old.nlargest(top).index}
                    row = {"model": model, "setting": setting}
                    row["correlation"] = new.corr(old, method="spearman")
                    rows.append({**row, "kept": 100 * len(kept) / top})
    return pd.DataFrame(rows)


def stable(alike: pd.DataFrame) -> dict[str, dict[str, dict[str, Mean]]]:
    """Means of ``stability`` over categories and blocks, by model and setting."""
    return {
        model: {
            setting: {
                "correlation": interval(of.correlation),
                "kept": interval(of.kept, bounds=SHARE),
            }
            for setting, of in part.groupby("setting", sort=False)
        }
        for model, part in alike.groupby("model", sort=False)
    }


def stability_table(alike: pd.DataFrame, best: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """``stable``, and the share of ranks that hold the same layer as with few-shot prompts."""
    names = {"rank correlation": ("correlation", 2), "of the top three (%)": ("kept", 1)}
    columns = {
        (model, name): {setting: f"{of[setting][key]:z.{places}f}" for setting in OTHERS}
        for model, of in stable(alike).items()
        for name, (key, places) in names.items()
    }
    same = {"published GPT-J": published_same()} | {
        model: {setting: _same(best[setting], best["few-shot"], model) for setting in OTHERS}
        for model in alike.model.unique()
    }
    for name, of in same.items():
        columns["ranks with the same layer (%)", name] = of
    return pd.DataFrame(columns).round(1)


def published_same() -> dict[str, float]:
    """Share of published ranks that hold the same layer as in Table 1, %, by setting."""
    key = ["category", "block", "rank"]
    layers = {name: published(n).set_index(key)["layer"] for name, n in PUBLISHED.items()}
    return {name: 100 * (layers[name] == layers["few-shot"]).mean() for name in OTHERS}


def _same(new: pd.DataFrame, old: pd.DataFrame, model: str) -> float:
    of = f"measured {model}"
    return 100 * (new[of] == old[of]).to_numpy(dtype=float).mean()


# ---------------------------------------------------------------- masking (Tables 16 and 17)


def states(rows: pd.DataFrame) -> pd.DataFrame:
    """Importance by state, (model, place, block, edit) x states.   rows: ``robustness.masked``."""
    edit = rows.groupby(["model", "state"])["item"].transform(lambda items: pd.factorize(items)[0])
    rows, keys = rows.assign(edit=edit), ["model", "place", "block", "edit"]
    return rows.pivot(index=keys, columns="state", values="importance")


def masking_losses(wide: pd.DataFrame) -> dict[tuple[str, str, str], Mean]:
    """What masking takes, % of the mean importance after the edit, by (model, place, block)."""
    result = {}
    for key, part in wide.groupby(level=["model", "place", "block"], sort=False):
        gap = part["edited"] - part["value edit masked"]
        result[key] = interval(100 * gap / part["edited"].abs().mean())
    return result


def states_table(wide: pd.DataFrame) -> pd.DataFrame:
    """Tables 16, 17: means over edits by state, and what masking takes."""
    groups = dict(list(wide.groupby(level=["model", "place", "block"], sort=False)))
    columns = {
        state: {key: f"{interval(part[state]):z.2f}" for key, part in groups.items()}
        for state in STATES
    }
    columns["lost by masking (%)"] = {
        key: f"{mean:z.0f}" for key, mean in masking_losses(wide).items()
    }
    return pd.DataFrame(columns)


def tokens_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One edit, token by token: state x what FFNs and attention add, and what would come next."""
    names = {"ffn": "FFN (nats)", "attn": "attention (nats)", "next": "most probable next tokens"}
    parts = {
        state: part.reset_index(drop=True)[list(names)].rename(columns=names)
        for state, part in rows.groupby("state", sort=False)
    }
    first = rows[rows.state == rows.state.iloc[0]]
    table = pd.concat(parts, axis=1)
    table.insert(0, ("token", ""), list(first.token))
    return table


# ---------------------------------------------------------------- mismatched edits (Table 18)


def mismatch_gaps(
    wrong: pd.DataFrame, ordinary: pd.DataFrame, seed: int = 0
) -> dict[str, pd.DataFrame]:
    """By model, mismatched minus ordinary edits of the same cases, editors x metrics, points."""
    both = pd.concat(
        [wrong.assign(kind="mismatched"), ordinary.assign(kind="ordinary")], ignore_index=True
    )
    both = both[both.editor.isin(COMPARED)]
    return {
        model: pd.concat(
            paired_table(
                of.assign(editor=of.kind), "mismatched", ["ordinary"], METRICS, seed
            ).set_axis([editor])
            for editor, of in part.groupby("editor", sort=False)
        )
        for model, part in both.groupby("model", sort=False)
    }


def lead(wrong: pd.DataFrame) -> dict[str, Mean]:
    """ACE minus PMET on mismatched edits, points of multi-hop accuracy, by model; empty unless both
    were judged.
    """
    if not set(COMPARED) <= set(wrong.editor):
        return {}
    points = wrong.assign(multi_hop=100 * wrong.multi_hop)
    return {
        model: paired(part, "ACE", "PMET") for model, part in points.groupby("model", sort=False)
    }


# ---------------------------------------------------------------- claims and sentences


def claim_values(
    means: pd.DataFrame, alike: pd.DataFrame, wide: pd.DataFrame, wrong: pd.DataFrame
) -> dict[tuple[str, str], Mean]:
    """Values of the claims, by (claim, model).

    means: ``best_by_pass``.   alike: ``stability``.   wide: ``states``.
    """
    masking, ahead, values = masking_losses(wide), lead(wrong), {}
    for model in alike.model.unique():
        kept = alike.kept[alike.model == model]
        values["stable_over_passes", model] = interval(spread(means)[model])
        values["stable_over_prompts", model] = interval(kept, bounds=SHARE)
        values["masking_lowers_the_answer", model] = masking[model, "answer", "ffn"]
        values["masking_spares_the_subject", model] = masking[model, "implicit subject", "ffn"]
        if ahead:
            values["counterfactual_edits", model] = ahead[model]
    return values


def verdicts(values: Mapping[tuple[str, str], Mean]) -> dict[str, dict[str, str]]:
    """What the page of claims will say, by claim and model.   values: ``claim_values``."""
    result: dict[str, dict[str, str]] = {}
    for (claim, model), said in claims.verdicts(values).items():
        result.setdefault(claim, {})[model] = said
    return result


def dissociation(wide: pd.DataFrame) -> dict[str, dict]:
    """By model, what masking takes of the answer and of the implicit subject by FFNs (%), and
    whether the whole intervals lie on the two sides of ``LOST``.
    """
    masking = masking_losses(wide)
    pairs = {
        model: (masking[model, "answer", "ffn"], masking[model, "implicit subject", "ffn"])
        for model in wide.index.unique("model")
    }
    return {
        model: {
            "answer": answer,
            "subject": subject,
            "there": answer.low > LOST and subject.high < LOST,
        }
        for model, (answer, subject) in pairs.items()
    }
