"""Section 4.2: the numbers that the sentences of its chapter hold, as each sentence takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from ..paper import published
from ..study import claims, stats
from ..study.stats import Mean
from .accumulation_analysis import BOTH, beside_random, case_of, next_layers

#: The claims that are parts of takeaway 2.
CORE = (
    "implicit_before_answer",
    "query_leads_value",
    "query_ablation",
    "query_ablation_value_neurons",
)


def verdict_numbers(values: Mapping[tuple[str, str], Mean]) -> dict:
    """Numbers of the sentences "verdict", "gains_found", "readable" and "notes".

    values: ``claim_values`` and ``comparison_values``.
    """
    known, values = claims.claims_list(), claims.with_exact_intervals(values)
    verdicts = claims.verdicts(values)
    models = list(dict.fromkeys(model for _, model in values if model != BOTH))
    return {
        "models": {
            model: {
                "values": _of_model(values, model),
                "verdicts": _of_model(verdicts, model),
            }
            for model in models
        },
        "core_verdicts": [verdicts[claim, model] for claim in CORE for model in models],
        "verdicts_of": {
            claim: {model: verdicts[claim, model] for model in models} for claim in CORE
        },
        "notes": {
            number: known.why[claim]
            for number, claim in enumerate(dict.fromkeys(claim for claim, _ in values), 1)
            if known.why[claim]
        },
    }


def lag_numbers(when: Mapping[str, pd.DataFrame], seed: int) -> dict:
    """Numbers of the sentence "lag": the lag, how it differs from evenly spread queries, and the
    distance of the peaks (layers)."""
    return {
        "models": {
            model: {
                "lag": stats.interval(of.lag, seed),
                "excess": stats.interval(of.lag - of.even, seed),
                "peaks": stats.interval(of.peak, seed),
            }
            for model, of in when.items()
        }
    }


def half_way_counts(when: Mapping[str, pd.DataFrame]) -> dict:
    """How many questions gain at all, by model: of the implicit subject, of the answer, of both."""
    return {
        model: {
            "implicit": of.implicit.count(),
            "answer": of.answer.count(),
            "both": (of.answer - of.implicit).count(),
        }
        for model, of in when.items()
    }


def scale_numbers(d_mlp: Mapping[str, int], n_zeroed: Mapping[str, int]) -> dict:
    """Numbers of the sentence "scale": neurons zeroed, as a share of a layer, beside the paper's
    100 of the 16,384 of GPT-J."""
    n, share = published.quote("ace_17"), 100 * published.quote("ace_17") / 16384
    return {
        "n": f"{n:g}",
        "share": share,
        "models": {
            model: {
                "zeroed": n_zeroed[model],
                "width": width,
                "share": 100 * n_zeroed[model] / width,
                "times": 100 * n_zeroed[model] / width / share,
                "alike": round(share / 100 * width),
            }
            for model, width in d_mlp.items()
        },
    }


def ablation_numbers(
    effect: pd.DataFrame, peaks: Mapping[str, Sequence[int]], n_layers: Mapping[str, int], seed: int
) -> dict:
    """Numbers of the sentences "ablation" and "floor", by model and zeroed layer."""
    before, after = (
        sum(published.quote(f"ace_{i}") for i in some) for some in ((22, 23, 24), (25, 26, 27))
    )
    paired = beside_random(effect)
    by_model: dict[str, dict[int, dict]] = {}
    for model, some in peaks.items():
        by_model[model] = {}
        for layer in some:
            mine, beside = effect.loc[model, layer], paired.loc[model, layer]
            by_model[model][layer] = {
                "lost": stats.interval(beside.lost, seed, bounds=stats.POINTS),
                "nats": stats.interval(beside.nats, seed),
                "next": stats.interval(beside.next, seed),
                "n_next": len(next_layers(layer, n_layers[model])),
                "layer_lost": stats.interval(mine.lost["layer"], seed, bounds=stats.SHARE),
                "nats_word": comparison(stats.interval(beside.nats, seed)),
            }
    return {
        "models": by_model,
        "bottom": [model for model, some in peaks.items() if 0 in some],
        "capability": [f"{published.quote(name):g}" for name in ("ace_20", "ace_21")],
        "before": f"{before:g}",
        "after": f"{after:g}",
        "dropped": 100 * (1 - after / before),
    }


def spoiled_numbers(outcome: pd.DataFrame, seed: int) -> dict:
    """Numbers of the sentences "zeroed" and "importances": neurons of either kind per question, and
    how interpretable ones differ in score and in what zeroing them costs (nats)."""
    by_model = {}
    for model in outcome.index.unique("model"):
        mine, one = outcome.loc[model, False], case_of(outcome, model)
        kinds = mine[["n", "importance", "fell"]].unstack("zeroed")
        score, fell = (
            stats.interval(kinds[what, "interpretable"] - kinds[what, "uninterpretable"], seed)
            for what in ("importance", "fell")
        )
        by_model[model] = {
            "questions": len(kinds),
            "n": stats.interval(kinds["n", "interpretable"], seed),
            "case": int(one.n["interpretable"]) if len(one) else None,
            "score": score,
            "fell": fell,
            "score_word": comparison(score),
            "fell_word": comparison(fell),
            "order": order(score, fell),
        }
    return {"models": by_model}


def comparison(value: Mean) -> str:
    """What an interval says of a difference: "more", "less", or that it cannot be told."""
    return "more" if value.low > 0 else "less" if value.high < 0 else "not provably more or less"


def order(score: Mean, fell: Mean) -> str:
    """Whether two differences have the same sign: "agree", "contradict", or "open"."""
    if score.low <= 0 <= score.high or fell.low <= 0 <= fell.high:
        return "open"
    return "agree" if score.low * fell.low > 0 else "contradict"


def _of_model(values: Mapping[tuple[str, str], object], model: str) -> dict[str, object]:
    """Values by claim, of one model."""
    return {claim: value for (claim, name), value in values.items() if name == model}
