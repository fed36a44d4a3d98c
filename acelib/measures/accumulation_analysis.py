"""Section 4.2: what follows from the rows of ``accumulation``: when the implicit subject and the
answer are accumulated, what zeroing query neurons does, which neurons can be read, and the values
of the claims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from ..attribution.layers import rank
from ..attribution.scores import Neuron, top_neurons
from ..model.lm import LM
from ..paper import published
from ..study import stats
from ..study.stats import Mean
from ..world.world import CATEGORIES
from .accumulation import PEAKS, ROLES, Parts, Question, Scores, meanings, words

#: Rows of the table of times: what they are called, and the column of ``by_question``.
TIMING = {
    "query neurons, mean layer": "query",
    "value neurons, mean layer": "value",
    "lag: value minus query (layers)": "lag",
    "the same if all earlier neurons queried alike": "even",
    "peaks: value minus query (layers)": "peak",
    "half-way of the implicit subject, layer": "implicit",
    "half-way of the answer, layer": "answer",
    "FFN peak minus attention peak (layers)": "ffn_after_attn",
    "query scores and FFN increase of the implicit subject, rank correlation": "tracks",
    "value neurons in the last layer (%)": "last_share",
    "last FFN, share of the best (%)": "last_increase",
}
#: Panels of Figure 3: column of ``profile``, and its unit.
PROFILE = {
    "increase": "FFN log increase (nats)",
    "query": "query score (arb. units)",
    "neurons": "number of value neurons",
}
PEAK_PANELS = {peak: f"value neurons,\n{peak} peak zeroed" for peak in PEAKS}
SHARED = {"shared": "shared", "by chance": "chance", "by chance, layer by layer": "chance_by_layer"}
#: The next layers behind one whose query neurons are zeroed.
N_NEXT = 3
#: The fewest questions of a category whose layers are ranked.
LEAST = 3
#: Neurons of one kind that Tables 8 and 9 list.
N_LISTED = 4
BOTH = "both"  #: what a claim is tested on that compares two models


def question_counts(parts: Mapping[str, Parts], n_drawn: int) -> pd.DataFrame:
    """How many questions are drawn, answered, scored and held back, by model."""
    return pd.DataFrame(
        {
            model: {
                "asked": n_drawn,
                "answered at once": some.n_answered,
                "scored": len(some.all),
                "of them, judged with neurons zeroed": len(some.held),
            }
            for model, some in parts.items()
        }
    ).T


def numbered(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with a column ``question``, the number of the item among its model's, in order: what is
    grouped by it keeps the order that intervals are drawn in."""
    numbers = rows.groupby("model")["item"].transform(lambda items: pd.factorize(items)[0])
    return rows.assign(question=numbers.astype(int))


# ---------------------------------------------------------------- when things happen (Figure 3)


def profile(rows: pd.DataFrame) -> pd.DataFrame:
    """Figure 3, one row per model, question and layer: increase (nats, of the answer, by the whole
    FFN), query (sum of Q), neurons (value neurons); answer, implicit: what their log-probabilities
    have gained up to here from attention and FFNs (nats).

    rows: of ``accumulation.layers``.
    """
    keys = ["model", "item"]
    gains = pd.DataFrame(
        {
            "answer": rows.attn + rows.increase,
            "implicit": rows.implicit_attn + rows.implicit_ffn,
        }
    )
    gains = gains.groupby([rows[key] for key in keys], sort=False).cumsum()
    columns = numbered(rows)[["model", "question", "layer", "increase", "query"]]
    return columns.assign(neurons=rows.n_value, **gains)


def panels(table: pd.DataFrame, columns: Sequence[str], **labels: str) -> pd.DataFrame:
    """Columns of ``profile`` as ``figures.layer_bars`` wants them: one panel per column."""
    long = table.melt(["model", "layer"], list(columns), "role", "importance")
    return long.assign(block="ffn", **labels)


def gain_bars(table: pd.DataFrame) -> pd.DataFrame:
    """What answer and implicit subject have gained, as ``figures.layer_bars`` wants it."""
    long = table.melt(["model", "layer"], ["implicit", "answer"], "block", "importance")
    return long.replace({"block": {"implicit": "implicit subject"}}).assign(role="gain")


def centre(mass: np.ndarray) -> np.ndarray:
    """Mean layer, (n,), weighted by a layer's mass, below zero as zero.   mass: (n, l)."""
    weights = mass.clip(min=0)
    with np.errstate(invalid="ignore"):
        return (weights * np.arange(mass.shape[1])).sum(1) / weights.sum(1)


def by_question(rows: pd.DataFrame, d_mlp: int) -> pd.DataFrame:
    """When things happen, one row per question in the order of ``rows``, in layers.

    rows: of ``accumulation.layers``, one model.   d_mlp: neurons of a layer.
    query, value: mean layer of the query and value neurons, weighted by score; lag = value - query;
    even: the lag if all neurons before a value neuron queried it alike; peak: the distance between
    the layers of greatest mass.
    answer, implicit: first layer by which half of the greatest gain is reached (nan without gain).
    ffn_after_attn: layer of the greatest FFN increase minus that of the greatest of attention.
    tracks: rank correlation over layers of Q and the FFNs' increase of the implicit subject.
    last_share: of the value neurons, in the last layer (%); last_increase: of its FFN, as a share
    of the greatest (%).
    shared: neurons that are query and value neurons; chance: in random sets; chance_by_layer: with
    as many neurons in each layer.
    """
    wide = {name: _wide(rows, name) for name in rows.columns if rows[name].dtype.kind in "if"}
    value, query = wide["top_value"], wide["top_query"]
    n_value, n_query, n_layers = wide["n_value"], wide["n_query"], value.shape[1]
    # Of each layer that has layers before it: their mean, and its weight.
    before, weights = (np.arange(n_layers) - 1).clip(min=0) / 2, value.clip(min=0)
    weights[:, 0] = 0
    with np.errstate(invalid="ignore"):
        mean_before = (weights * before).sum(1) / weights.sum(1)
    table = pd.DataFrame(
        dict(
            query=centre(query),
            value=centre(value),
            even=centre(value) - mean_before,
            peak=value.argmax(1) - query.argmax(1),
            answer=_half(wide["attn"] + wide["increase"]),
            implicit=_half(wide["implicit_attn"] + wide["implicit_ffn"]),
            ffn_after_attn=wide["increase"].argmax(1) - wide["attn"].argmax(1),
            last_share=100 * n_value[:, -1] / n_value.sum(1),
            last_increase=100 * wide["increase"][:, -1] / wide["increase"].max(1),
            shared=wide["shared"].sum(1),
            chance=n_query.sum(1) * n_value.sum(1) / (n_layers * d_mlp),
            chance_by_layer=(n_query * n_value).sum(1) / d_mlp,
        ),
        dtype=float,
    )
    q, tracked = pd.DataFrame(wide["query"]).T, pd.DataFrame(wide["implicit_ffn"]).T
    return table.assign(
        lag=table["value"] - table["query"], tracks=q.corrwith(tracked, method="spearman")
    )


def timing(rows: pd.DataFrame, d_mlp: Mapping[str, int]) -> dict[str, pd.DataFrame]:
    """``by_question`` by model.   d_mlp: neurons of a layer, by model."""
    return {
        model: by_question(mine, d_mlp[model]) for model, mine in rows.groupby("model", sort=False)
    }


def timing_table(when: Mapping[str, pd.DataFrame], n_layers: Mapping[str, int], seed: int):
    """Means of ``by_question`` over questions with intervals, what x (model, depth); published
    values first."""
    peaks = f"{published.quote('ace_15'):g} to {published.quote('ace_16'):g}"
    table = pd.DataFrame({("published GPT-J", ""): {"peaks: value minus query (layers)": peaks}})
    table = table.reindex(list(TIMING)).fillna("–")
    for model, of in when.items():
        table[model, f"{n_layers[model]} layers"] = [
            f"{stats.interval(of[column], seed):z.2f}" for column in TIMING.values()
        ]
    return table


def mean_times(when: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Means of all columns of ``by_question``, by model."""
    return pd.DataFrame({model: of.mean() for model, of in when.items()})


def shared_table(when: Mapping[str, pd.DataFrame], seed: int) -> pd.DataFrame:
    """Neurons that are query and value neurons at once, and what chance would give, by model."""
    return pd.DataFrame(
        {
            model: {title: stats.interval(of[column], seed) for title, column in SHARED.items()}
            for model, of in when.items()
        }
    ).T


# ---------------------------------------------------------------- query neurons zeroed


def active_neurons(rows: pd.DataFrame) -> pd.DataFrame:
    """Active value neurons by layer, as ``figures.layer_bars`` wants them: the intact model's and
    those that are left, one panel per peak.   rows: of ``accumulation.silencing``."""
    means = _over_draws(rows)
    whole = ["model", "peak", "ablated", "question", "layer"]
    counts = means.after.unstack("zeroed")
    counts = counts.assign(intact=means.before.groupby(level=whole).first())
    long = counts[["intact", "random", "top"]].stack().rename("importance")
    long = long.rename_axis(index={None: "zeroed"}).unstack("layer")
    long = long.melt(ignore_index=False, value_name="importance").reset_index()
    long = long.rename(columns={"peak": "role", "zeroed": "block"})
    models = pd.Categorical(long.model, rows.model.unique())
    return long.assign(model=models).sort_values(["role", "model", "layer"])


def zeroing_effect(rows: pd.DataFrame) -> pd.DataFrame:
    """What zeroing does, by (model, ablated, zeroed, question), means over draws.

    rows: of ``accumulation.silencing``.   next, other: change in the number of active value neurons
    of the next layers, at most three, and of all other layers, in percent of their mean number
    before; lost: accuracy lost (points); nats: log-probability lost.
    """
    means, keys = _over_draws(rows), ["model", "ablated", "zeroed", "question"]
    ahead = means.index.get_level_values("layer") - means.index.get_level_values("ablated")
    near = (ahead >= 1) & (ahead <= N_NEXT)
    effect = {}
    for name, some in (("next", means[near]), ("other", means[~near])):
        sums = some.groupby(keys)[["before", "after"]].sum()
        base = sums.before.groupby(keys[:3]).transform("mean")
        effect[name] = 100 * (sums.after - sums.before) / base
    table = pd.DataFrame(effect)
    return table.assign(
        lost=100 * means.lost.groupby(keys).first(), nats=means.nats.groupby(keys).first()
    )


def beside_random(effect: pd.DataFrame) -> pd.DataFrame:
    """``zeroing_effect`` of the top query neurons minus that of random ones, on equal questions."""
    return effect.xs("top", level="zeroed") - effect.xs("random", level="zeroed")


def peaks_of(rows: pd.DataFrame) -> dict[str, list[int]]:
    """The layers whose query neurons are zeroed, that of the greatest Q first, by model."""
    return {
        model: list(dict.fromkeys(mine.ablated))
        for model, mine in rows.groupby("model", sort=False)
    }


def next_layers(layer: int, n_layers: int) -> list[int]:
    """The layers right behind one, at most three."""
    return list(range(layer + 1, n_layers))[:N_NEXT]


def zeroing_table(
    effect: pd.DataFrame, peaks: Mapping[str, Sequence[int]], n_layers: Mapping[str, int], seed: int
) -> pd.DataFrame:
    """What zeroing a layer's top query neurons, random ones or all of them does, (model, layer) x
    (quantity, neurons)."""
    rows, paired = {}, beside_random(effect)
    for model, layer in ((model, layer) for model, some in peaks.items() for layer in some):
        mine, beside = effect.loc[model, layer], paired.loc[model, layer]
        behind = ", ".join(map(str, next_layers(layer, n_layers[model]))) or "none"
        accuracy, nats, change = (
            "accuracy lost (points)",
            "log-probability lost (nats)",
            "change in active value neurons (%)",
        )
        rows[model, f"{layer} (next: {behind})"] = {
            (accuracy, "top"): _share(mine.lost["top"], seed),
            (accuracy, "random"): _share(mine.lost["random"], seed),
            (accuracy, "top minus random"): _points(beside.lost, seed),
            (accuracy, "whole layer"): _share(mine.lost["layer"], seed),
            (nats, "top minus random"): f"{stats.interval(beside.nats, seed):z.3f}",
            (nats, "whole layer"): f"{stats.interval(mine.nats['layer'], seed):z.3f}",
            (change, "next layers, top"): stats.interval(mine.next["top"], seed),
            (change, "next layers, random"): stats.interval(mine.next["random"], seed),
            (change, "other layers, top"): stats.interval(mine.other["top"], seed),
        }
    return pd.DataFrame(rows).T


# ---------------------------------------------------------------- one case (Appendices E and F)


def tokens_table(tokens: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Table 7: token x (source, column), published values first.

    tokens: ``accumulation.by_token`` by model, indexed by token.
    """
    quoted = published.published(7).set_index("token").rename(columns={"top_tokens": "next"})
    quoted = quoted[["ffn", "attn", "next"]].replace({"next": {" \\|": ","}}, regex=True)
    quoted[["ffn", "attn"]] = quoted[["ffn", "attn"]].map("{:z.4f}".format)
    own = list(dict.fromkeys(token for of in tokens.values() for token in of.index))
    table = pd.concat({"published Qwen3-8B": quoted, **tokens}, axis=1)
    return table.reindex([*quoted.index.difference(own, sort=False), *own])


def token_increases(tokens: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The numbers of ``tokens_table`` that are measured, by (model, token)."""
    return pd.concat(tokens)[["ffn", "attn"]]


def layer_increases(scores: Mapping[str, Scores]) -> pd.DataFrame:
    """Figure 5: log increase of the answer by layer and block, as ``figures.layer_bars`` wants it.

    scores: of one question, by model.
    """
    return pd.DataFrame(
        [
            dict(model=model, role="increase", block=block, layer=layer, importance=value)
            for model, of in scores.items()
            for block, row in zip(("attn", "ffn"), of.answer[0].tolist(), strict=True)
            for layer, value in enumerate(row)
        ]
    )


def neuron_kinds(scores: Scores, n_top: int) -> dict[str, list[Neuron]]:
    """The neurons of one question that Tables 8 and 9 list, up to four of each kind, best first:
    value neurons, query neurons, and those that are both and in neither list."""
    value, query = (top_neurons(of[0], n_top) for of in (scores.value, scores.query))
    listed = {neuron[:2] for some in (value, query) for neuron in some[:N_LISTED]}
    both = {neuron[:2] for neuron in query} - listed
    further = [neuron for neuron in value if neuron[:2] in both]
    return {
        "value neuron": value[:N_LISTED],
        "query neuron": query[:N_LISTED],
        "further shared neuron": further[:N_LISTED],
    }


def neurons_table(
    hosts: Mapping[str, LM], question: Question, scores: Mapping[str, Scores], n_top: int
) -> pd.DataFrame:
    """Tables 8 and 9: the top neurons of one question and the tokens that they raise most.

    scores: of the question, by model.
    """
    lines = [
        (
            "published, Table 8",
            row.role.removesuffix(" in Qwen3"),
            row.neuron,
            "–",
            "–",
            row.top_tokens,
        )
        for row in published.published(8).itertuples()
    ] + [
        (
            "published Qwen3-8B, Table 9",
            "value neuron",
            row.neuron,
            f"{row.importance:z.4f}",
            "–",
            row.top_tokens,
        )
        for row in published.published(9).itertuples()
    ]
    lines = [(*line[:-1], line[-1].replace(" |", ",")) for line in lines]
    for model, lm in hosts.items():
        lines += _measured_neurons(lm, model, question, scores[model], n_top)
    columns = ["source", "role", "neuron", "I (nats)", "Q (arb. units)", "tokens raised most"]
    return pd.DataFrame(lines, columns=columns).set_index(columns[:3])


def _measured_neurons(lm: LM, model: str, question: Question, scores: Scores, n_top: int):
    kinds = neuron_kinds(scores, n_top)
    value, query = (
        {neuron[:2] for neuron in top_neurons(of[0], n_top)} for of in (scores.value, scores.query)
    )
    for kind, neurons in kinds.items():
        if not neurons:
            continue
        raised = meanings(lm, question.prompt, neurons, 6)
        for (layer, index, _), tokens in zip(neurons, raised, strict=True):
            shared = (layer, index) in value & query and "shared" not in kind
            yield (
                f"measured {model}",
                kind + ", shared" * shared,
                f"f{layer}-{index}",
                f"{scores.value[0, layer, index]:z.4f}",
                f"{scores.query[0, layer, index]:z.4f}",
                words(lm, tokens),
            )


# ---------------------------------------------------------------- neurons that can be read


def readability_table(
    rows: pd.DataFrame, n_words: int, vocabulary: Mapping[str, int], seed: int
) -> pd.DataFrame:
    """Interpretable neurons (%), role x (model, what), and what chance would give.

    rows: of ``accumulation.readability``; vocabulary: number of tokens by model.
    """
    means = rows.groupby(["role", "what", "model"], sort=False)["share"].apply(_mean, seed=seed)
    table = means.unstack(["model", "what"])
    chance = [100 * n_words / vocabulary[model] for model, _ in table.columns]
    table.loc["any neuron, by chance"] = chance
    return table.rename(columns={"answer": "the answer", "implicit": "the implicit subject"})


def spoiled(rows: pd.DataFrame, case: Question) -> pd.DataFrame:
    """What zeroing does to a question, by (model, case, question, zeroed), means over draws: n,
    importance, fell (log-probability lost, nats), probability.

    rows: of ``accumulation.spoiling``.   case: whether it is the paper's.
    """
    intact = rows.groupby(["model", "item"]).logprob.transform("first")
    table = numbered(rows).assign(case=rows["item"] == case.prompt, fell=intact - rows.logprob)
    keys = ["model", "case", "question", "zeroed"]
    columns = ["n", "importance", "fell", "probability"]
    return table.groupby(keys, sort=False)[columns].mean()


def spoiled_table(outcome: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Accuracy of sampling with neurons zeroed, published and measured, zeroed x (model, quantity).

    outcome: ``spoiled``.
    """
    index = ["nothing", "interpretable", "uninterpretable", "random"]
    quoted = {
        "interpretable": published.quote("ace_43"),
        "uninterpretable": published.quote("ace_44"),
    }
    table = pd.DataFrame(
        {("published Qwen3-8B", "accuracy (%)"): quoted}, index=index, dtype=object
    )
    columns = {
        "neurons": ("n", 1, 2),
        "sum of their I (nats)": ("importance", 1, 2),
        "log-probability lost (nats)": ("fell", 1, 2),
        "accuracy (%)": ("probability", 100, 1),
    }
    for model in outcome.index.unique("model"):
        mine, one = outcome.loc[model, False], case_of(outcome, model)
        for title, (column, unit, places) in columns.items():
            table[model, title] = [
                f"{stats.interval(unit * mine[column].xs(name, level='zeroed'), seed):z.{places}f}"
                for name in index
            ]
        table[model, "accuracy, the case (%)"] = [
            f"{100 * one.probability[name]:.1f} ({one.n[name]:.0f} neurons)"
            if name in one.index
            else "–"
            for name in index
        ]
    return table


def case_of(outcome: pd.DataFrame, model: str) -> pd.DataFrame:
    """The outcome of the paper's case by what is zeroed; empty if its neurons are of one kind."""
    if (model, True) not in outcome.index.droplevel(["question", "zeroed"]):
        return outcome.iloc[:0].droplevel(["model", "case", "question"])
    return outcome.loc[model, True].groupby("zeroed").first()


# ---------------------------------------------------------------- layers by domain (Section 6.4)


def domain_layers(rows: pd.DataFrame) -> dict[tuple[str, str], list[tuple[int, ...]]]:
    """The top three query and value layers by (model, category of the last hop), best first, of
    categories with at least three questions.   rows: of ``accumulation.layers``."""
    layers = {}
    for model, mine in rows.groupby("model", sort=False):
        for category in CATEGORIES:
            some = mine[mine.category == category]
            if some.item.nunique() >= LEAST:
                sums = some.groupby("layer")[["query", "value"]].sum()
                layers[model, category] = [rank(sums[of].tolist(), 3) for of in ("query", "value")]
    return layers


def domain_table(rows: pd.DataFrame) -> pd.DataFrame:
    """``domain_layers`` and the number of questions, (model, category) x column."""
    n = rows.groupby(["model", "category"]).item.nunique()
    return pd.DataFrame(
        {
            (model, CATEGORIES[category]): {
                "questions": n[model, category],
                "query layers": ", ".join(map(str, query)),
                "value layers": ", ".join(map(str, value)),
            }
            for (model, category), (query, value) in domain_layers(rows).items()
        }
    ).T


def layers_in_common(rows: pd.DataFrame) -> dict[str, list[float]]:
    """Share of the top three query and value layers that two categories have in common (%), for
    every pair, by model."""
    layers = domain_layers(rows)
    common = {}
    for model in rows.model.unique():
        mine = [of for (name, _), of in layers.items() if name == model]
        common[model] = [
            100 * sum(len(set(x) & set(y)) for x, y in zip(a, b, strict=True)) / 6
            for a, b in combinations(mine, 2)
        ]
    return common


# ---------------------------------------------------------------- claims


def claim_values(
    when: Mapping[str, pd.DataFrame],
    effect: pd.DataFrame,
    peaks: Mapping[str, Sequence[int]],
    tokens: Mapping[str, pd.DataFrame],
    outcome: pd.DataFrame,
    shares: pd.DataFrame,
    n_layers: Mapping[str, int],
    seed: int,
) -> dict[tuple[str, str], Mean]:
    """Values of the claims that are tested on each model, by (claim, model).

    when: ``timing``; effect: ``zeroing_effect``; outcome: ``spoiled``; shares: rows of
    ``accumulation.readability``.
    """
    paired = beside_random(effect)
    values: dict[tuple[str, str], Mean] = {}
    for model, of in when.items():
        first, ffn = peaks[model][0], tokens[model].ffn
        top, spoilt = effect.loc[model, first, "top"], outcome.loc[model, False].probability
        left = spoilt.mul(100).unstack("zeroed")
        left = left.reindex(columns=["interpretable", "uninterpretable"])
        mine = shares[(shares.model == model) & (shares.what == "answer")]
        value, query = (mine[mine.role == role]["share"].to_numpy() for role in ROLES)
        case = ffn[["plays", "of"]].min() - ffn.drop(["plays", "of"]).max()
        of_model = {
            "query_leads_value": of.peak,
            "deepest_layers_depleted": of.last_share - 100 / n_layers[model],
            "query_tracks_implicit": of.tracks,
            "implicit_before_answer": of.answer - of.implicit,
            "query_ablation": paired.lost[model, first],
            "query_ablation_value_neurons": top.next - top.other,
            "convergent_tokens": [case],
            "interpretable_neurons_destroy": left.interpretable,
            "interpretable_neurons_matter": left.uninterpretable - left.interpretable,
            "shared_neurons": of.shared,
            "value_is_interpretable": value - query,
            "attention_before_ffn": of.ffn_after_attn,
            "last_layer_is_low": of.last_increase,
        }
        values |= {(claim, model): _mean(some, seed) for claim, some in of_model.items()}
    return values


def comparison_values(
    when: Mapping[str, pd.DataFrame],
    common: Mapping[str, Sequence[float]],
    n_layers: Mapping[str, int],
    seed: int,
) -> dict[tuple[str, str], Mean]:
    """Values of the claims that compare two models, the first minus the second; none unless there
    are two.   common: ``layers_in_common``."""
    if len(when) != 2:
        return {}
    a, b = ((100 * of.lag / n_layers[model], common[model]) for model, of in when.items())
    values = {("separated_in_gptj", BOTH): stats.difference(a[0], b[0], seed)}
    if min(len(a[1]), len(b[1])) > 1:
        values["fixed_in_gptj", BOTH] = stats.difference(a[1], b[1], seed)
    return values


def _over_draws(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over draws by (model, peak, ablated, zeroed, question, layer)."""
    keys = ["model", "peak", "ablated", "zeroed", "question", "layer"]
    return numbered(rows).groupby(keys)[["before", "after", "lost", "nats"]].mean()


def _wide(rows: pd.DataFrame, column: str) -> np.ndarray:
    """A column of one model's rows as questions x layers, (n, l)."""
    wide = rows.pivot(index="item", columns="layer", values=column)
    return wide.loc[list(dict.fromkeys(rows["item"]))].to_numpy(dtype=float)


def _half(added: np.ndarray) -> np.ndarray:
    """First layer, (n,), by which half of the greatest gain is reached; nan without gain.

    added: (n, l).
    """
    gain = added.cumsum(1)
    most = gain.max(1)
    first = (gain >= most[:, None] / 2).argmax(1)
    return np.where(most > 0, first, np.nan)


def _mean(values: Sequence[float], seed: int) -> Mean:
    return stats.interval(values, seed)


def _points(values: Sequence[float], seed: int) -> Mean:
    return stats.interval(values, seed, bounds=stats.POINTS)


def _share(values: Sequence[float], seed: int) -> Mean:
    return stats.interval(values, seed, bounds=stats.SHARE)
