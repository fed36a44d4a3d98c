"""Attribution on a pretrained model: layers by category (Table 1), a question's way through the
layers (Figures 3, 5, 6), and what zeroing small shares of neurons costs (Figure 2).

The measures are those of the chapters on storage and accumulation, on the facts that the model
knows. Two things are added: query and value layers of single facts and of two-hop statements, by
category; and shares of 0.05 to 1 % of the neurons, each beside two controls, random neurons of all
layers and random ones of the same layers as the best.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from random import Random
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from ..attribution.layers import locate
from ..attribution.scores import first_tokens, layer_scores
from ..model.answers import known_items
from ..model.lm import LM
from ..study.drawing import figure, legend, means
from ..study.rows import Experiment, Series
from ..study.stats import POINTS, Mean, interval
from ..world.wording import multi_hop_cloze, single_hop
from ..world.world import World, chains, split_of
from . import accumulation, storage
from .located import by_layer

Worlds = Mapping[str, World]  #: by model, with the facts that it knows
TWO_HOPS = "two hops"
HELD = "identification"  #: the split that ``accumulation`` draws its questions from
CONTROLS = {"top": "highest scores", "random": "random", "same layers": "random, same layers"}
LOOKS = {"top": "#D55E00", "random": "#9A9A9A", "same layers": "#56B4E9"}


def _each(name: str, hosts: Mapping[str, LM], build: Callable[[str, LM], Experiment]) -> Experiment:
    """One experiment of those that ``build`` makes of each model."""
    built = [build(model, lm) for model, lm in hosts.items()]
    series = tuple(series for one in built for series in one.series)
    return Experiment(name, series, rtol=1e-3, atol=1e-3, tolerances=built[0].tolerances)


# ---------------------------------------------------------------- layers (Table 1, Figure 3)


def importances(
    hosts: Mapping[str, LM], known: Worlds, *, n_located: int, n_judged: int, norm: str, seed: int
) -> Experiment:
    """``storage.importances`` of facts that the model knows by their bare names."""
    sizes = dict(n_located=n_located, n_judged=n_judged, seed=seed)

    def build(model: str, lm: LM) -> Experiment:
        return storage.importances({model: lm}, known[model], norm=norm, **sizes)

    return _each("09_real_model_importances", hosts, build)


def layers(hosts: Mapping[str, LM], known: Worlds, *, n_questions: int, seed: int) -> Experiment:
    """Query and value scores by layer, of single facts of every category and of two-hop statements,
    up to ``n_questions`` each that the model completes.

    Rows: questions (a category, or ``TWO_HOPS``), role, layer, importance, n_prompts.
    """
    series = []
    for model, lm in hosts.items():
        items = questions(lm, known[model], n_questions, seed)
        series.append(
            Series(
                names={"model": model},
                depends={"model": f"{lm.fingerprint} {lm.dtype}"},
                code=(__name__,),
                items=items,
                compute=partial(_located, lm),
                chunk=1,
            )
        )
    return Experiment("09_real_model_layers", tuple(series), rtol=2e-3, atol=1e-2)


def questions(lm: LM, known: World, n: int, seed: int) -> dict[str, dict[str, Any]]:
    """Up to ``n`` prompts with their answers that a model says, by category and for two hops."""
    pools: dict[str, list[tuple[str, str]]] = {
        category: [single_hop(known, fact) for fact in known.facts_of(category)]
        for category in known.categories()
    }
    pools[TWO_HOPS] = [(multi_hop_cloze(known, chain), chain.answer) for chain in chains(known, 2)]
    items = {}
    for name, pool in pools.items():
        drawn = Random(f"{seed}/{name}").sample(pool, min(len(pool), 6 * n))
        if some := known_items(lm, drawn, itemgetter(0, 1))[:n]:
            items[name] = {"questions": name, "asked": tuple(some)}
    return items


def _located(lm: LM, items: Sequence[dict]) -> list[list[dict]]:
    lists = []
    for item in items:
        prompts, answers = zip(*item["asked"], strict=True)
        rows = by_layer(locate(lm, prompts, answers))
        lists.append([{"questions": item["questions"], **row} for row in rows])
    return lists


def accumulated(
    hosts: Mapping[str, LM],
    known: Worlds,
    *,
    n_drawn: int,
    n_located: int,
    n_judged: int,
    n_top: int,
    norm: str,
    seed: int,
) -> Experiment:
    """``accumulation.layers`` of two-hop statements whose facts the model knows (Figure 3)."""

    def build(model: str, lm: LM) -> Experiment:
        there = sum(split_of(chain) == HELD for chain in chains(known[model], 2))
        if not there:
            raise ValueError(f"{model} knows no two facts in a row that are held out")
        sizes = dict(n_drawn=min(n_drawn, there), n_located=n_located, n_judged=n_judged)
        return accumulation.layers(
            {model: lm}, known[model], n_top=n_top, norm=norm, seed=seed, **sizes
        )

    return _each("09_real_model_accumulation", hosts, build)


def case(hosts: Mapping[str, LM], known: Worlds, *, norm: str, seed: int) -> Experiment:
    """What every layer and every attention head adds to the answer of one known fact (Figures 5 and
    6). Rows: block ("attn", "ffn", "head"), layer, head, importance (nats).
    """
    series = []
    for model, lm in hosts.items():
        drawn = Random(f"{seed}/case").sample(known[model].facts, len(known[model].facts))
        prompt, answer = next(
            single_hop(known[model], fact)
            for fact in drawn
            if known_items(lm, [fact], partial(single_hop, known[model]))
        )
        question = accumulation.Question(prompt, answer, answer)
        series.append(
            Series(
                names={"model": model},
                depends={"model": f"{lm.fingerprint} {lm.dtype}", "norm": norm},
                code=(__name__,),
                items={prompt: question},
                compute=partial(_case, lm, norm),
            )
        )
    return Experiment("09_real_model_case", tuple(series), rtol=1e-3, atol=1e-3)


def _case(lm: LM, norm: str, some: Sequence[accumulation.Question]) -> list[list[dict]]:
    lists = []
    for question in some:
        ids, mask = lm.encode([question.prompt])
        targets = first_tokens(lm, [question.answer])
        rows = [
            dict(block=block, layer=layer, head=-1, importance=value)
            for block in ("attn", "ffn")
            for layer, value in enumerate(
                layer_scores(lm, ids, mask, targets, block, "whole", norm)[0].tolist()
            )
        ]
        heads = accumulation.head_scores(lm, question, norm)
        rows += [
            dict(block="head", layer=layer, head=head, importance=float(value))
            for layer, of in enumerate(heads)
            for head, value in enumerate(of)
        ]
        lists.append(rows)
    return lists


# ---------------------------------------------------------------- zeroing (Figure 2)


def zeroing(
    hosts: Mapping[str, LM],
    known: Worlds,
    *,
    n_located: int,
    n_judged: int,
    shares: Sequence[float],
    n_random: int,
    norm: str,
    seed: int,
) -> Experiment:
    """What is forgotten when a share of all FFN neurons is at zero: a category's highest scoring,
    or ``n_random`` draws each of random ones and of random ones of the same layers.

    Rows as of ``storage.zeroing``, and percent (the share), draw; zeroed is one of ``CONTROLS``.
    Raises ValueError for a share outside (0, 1].
    """
    series = []
    for model, lm in hosts.items():
        asked = storage.parts(lm, known[model], n_located, n_judged, seed)
        items = {
            f"{category}, {100 * share:g} %, {control}, draw {draw}": {
                "condition": _condition(lm, asked, category, share, control, seed),
                "draw": draw,
                "percent": 100 * share,
            }
            for category in asked.located
            for share in shares
            for control in CONTROLS
            for draw in range(1 if control == "top" else n_random)
        }
        series.append(
            Series(
                names={"model": model},
                depends={"model": lm.fingerprint, "norm": norm, "seed": str(seed)},
                code=(__name__,),
                items=items,
                compute=partial(_zeroed, lm, norm, seed),
                chunk=4,
            )
        )
    return Experiment("09_real_model_zeroing", tuple(series), tolerances={"drop": (0.0, 1.0)})


def _condition(
    lm: LM, asked: storage.Parts, category: str, share: float, control: str, seed: int
) -> storage.Condition:
    """A condition of ``storage``, without the neurons, which are drawn where they are zeroed."""
    best, *_ = storage.conditions(lm, asked, category, share, 0, seed)
    return replace(best, zeroed=control)


def _zeroed(lm: LM, norm: str, seed: int, some: Sequence[dict]) -> list[list[dict]]:
    lists = []
    for item in some:
        condition: storage.Condition = item["condition"]
        best = storage.best_neurons(lm, norm, condition.located, condition.n)
        rng = Random(f"{seed}/{condition.category}/{item['percent']}/{item['draw']}")
        silent = drawn_neurons(lm, best, condition.zeroed, rng)
        rows = storage.drops(lm, condition, silent)
        lists.append([{**row, "percent": item["percent"], "draw": item["draw"]} for row in rows])
    return lists


def drawn_neurons(
    lm: LM, best: Sequence[tuple[int, int]], control: str, rng: Random
) -> list[tuple[int, int]]:
    """The best neurons, or as many random ones of all layers, or as many of each of their layers.

    Raises ValueError for another control.
    """
    if control not in CONTROLS:
        raise ValueError(f"control {control!r} is unknown; allowed: {', '.join(CONTROLS)}")
    if control == "top":
        return list(best)
    if control == "random":
        every = [(layer, index) for layer in range(lm.n_layers) for index in range(lm.d_mlp)]
        return rng.sample(every, len(best))
    counts = Counter(layer for layer, _ in best)
    return [(layer, i) for layer, n in counts.items() for i in rng.sample(range(lm.d_mlp), n)]


# ---------------------------------------------------------------- what the rows say


def layers_table(rows: pd.DataFrame, top: int = 3) -> pd.DataFrame:
    """The ``top`` layers by questions x (model, role), best first.   rows: of ``layers``."""
    sums = rows.groupby(["model", "role", "questions", "layer"], sort=False)["importance"].sum()

    def best(part: pd.Series) -> str:
        order = part.droplevel([0, 1, 2]).sort_values(ascending=False, kind="stable")
        return ", ".join(map(str, order.index[:top]))

    found = sums.groupby(["model", "role", "questions"], sort=False).apply(best)
    return found.unstack(["model", "role"])


def depths(rows: pd.DataFrame) -> dict[str, dict[str, float]]:
    """By model, the mean over questions of the layer at which each role's score is centred, layers
    weighted by what is above 0.   rows: of ``layers``.
    """
    found: dict[str, dict[str, float]] = {}
    for (model, role), part in rows.groupby(["model", "role"], sort=False):
        by = part.groupby(["questions", "layer"])["importance"].sum().clip(lower=0).unstack(0)
        centres = by.mul(by.index.to_numpy(), axis=0).sum() / by.sum()
        found.setdefault(str(model), {})[str(role)] = float(centres.mean())
    return found


def lost(rows: pd.DataFrame) -> pd.DataFrame:
    """Points of accuracy lost on each question, mean over draws: model, percent, zeroed, category,
    questions, prompt, drop.   rows: of ``zeroing``.
    """
    keys = ["model", "percent", "zeroed", "category", "questions", "prompt"]
    points = rows.assign(drop=100.0 * rows["drop"])
    return points.groupby(keys, sort=False)["drop"].mean().reset_index()


def lost_means(points: pd.DataFrame, seed: int = 0) -> dict[tuple, Mean]:
    """Mean points lost by (model, percent, zeroed, questions), 95 % intervals over questions."""
    groups = points.groupby(["model", "percent", "zeroed", "questions"], sort=False)["drop"]
    return {key: interval(list(some), seed, bounds=POINTS) for key, some in groups}


def lost_table(points: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """``lost_means``, (percent, zeroed) x (model, questions)."""
    found = lost_means(points, seed)
    cells: dict[tuple[str, str], dict[tuple[str, str], Mean]] = {}
    for (model, percent, zeroed, asked), mean in found.items():
        row = (f"{percent:g} %", CONTROLS[zeroed])
        cells.setdefault((model, asked), {})[row] = mean
    return pd.DataFrame(cells)


def selectivity(points: pd.DataFrame, seed: int = 0) -> dict[tuple[str, float], Mean]:
    """By (model, percent): points that a category loses of its own questions beyond those of the
    others, its best neurons at zero; interval over categories.
    """
    top = points[points.zeroed == "top"]
    found = {}
    for key, part in top.groupby(["model", "percent"], sort=False):
        by = part.groupby(["category", "questions"])["drop"].mean().unstack()
        found[key] = interval(list(by.related - by.unrelated), seed, bounds=POINTS)
    return found


def claim_values(points: pd.DataFrame, seed: int, percent: float = 1.0) -> dict:
    """The values of the paper's claims about zeroing 1 %, by (claim, model)."""
    means_, specific = lost_means(points, seed), selectivity(points, seed)
    values: dict[tuple[str, str], Mean] = {}
    for (model, share, zeroed, asked), mean in means_.items():
        if share == percent and asked == "related" and zeroed in ("top", "random"):
            claim = "zeroing_related" if zeroed == "top" else "zeroing_random"
            values[claim, model] = mean
    values |= {
        ("zeroing_specific", model): mean
        for (model, share), mean in specific.items()
        if share == percent
    }
    return values


def case_bars(rows: pd.DataFrame) -> pd.DataFrame:
    """Figure 5: layers of ``case``, as ``figures.layer_bars`` draws them."""
    return rows[rows.block != "head"].assign(role="increase")


def case_heads(rows: pd.DataFrame) -> dict[str, Any]:
    """Figure 6: scores of heads by model, (l, n_heads), as ``head_map`` draws them."""
    heads = rows[rows.block == "head"]
    return {
        str(model): part.pivot(index="layer", columns="head", values="importance").to_numpy()
        for model, part in heads.groupby("model", sort=False)
    }


@figure
def lost_by_share(points: pd.DataFrame, seed: int = 0) -> Figure:
    """Accuracy lost by the share of neurons at zero, of related and of unrelated questions, beside
    both controls; 95 % intervals over questions. One row of panels per model.
    """
    found, models = lost_means(points, seed), list(points.model.unique())
    shares, asked = sorted(points.percent.unique()), ("related", "unrelated")
    size = (8.0, 0.8 + 2.6 * len(models))
    fig, axes = plt.subplots(len(models), 2, figsize=size, sharey=True, squeeze=False)
    for row, model in zip(axes, models, strict=True):
        for ax, which in zip(row, asked, strict=True):
            for i, (control, label) in enumerate(CONTROLS.items()):
                at = [s for s in shares if (model, s, control, which) in found]
                values = [found[model, s, control, which] for s in at]
                places = [shares.index(s) + 0.08 * (i - 1) for s in at]
                means(ax, places, values, color=LOOKS[control], marker="o", ms=4.5, label=label)
            ax.set_xticks(range(len(shares)), [f"{share:g}" for share in shares])
            ax.set(title=f"{model}: {which} questions", xlabel="neurons at zero (%)")
        row[0].set_ylabel("accuracy lost (points)")
    return legend(fig, axes[0, 0], ncols=3)
