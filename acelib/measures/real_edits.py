"""Editing a pretrained model: all editors on cases of facts that it knows, and a coarse grid of
where to edit.

Cases are made of known facts only, old chain and new, so that none has to be filtered; chains of
the identification split are left to demonstrations and to the search for settings. Answers are read
by ``study.free``. Multi-hop questions are asked with a chain of thought and for a direct answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from ..editing.search import target_vectors
from ..editing.write import write
from ..editors import ACE, preset
from ..model.answers import recall
from ..model.lm import LM
from ..model.update import Update
from ..records import Case
from ..study.drawing import figure
from ..study.experiments import Corpus, corpus, depends, modules
from ..study.free import KINDS, METRICS, FreeProtocol, edit_and_judge, kept_facts
from ..study.rows import Experiment, Series
from ..study.stats import SHARE, Mean, interval, paired
from ..study.tables import BASELINE
from ..world import shots
from ..world.cases import all_cases
from ..world.wording import single_hop
from ..world.world import World
from . import ace as ace_claims
from .real_storage import Worlds

JUDGED = ("training", "evaluation")  #: splits of chains that cases are made of
SEARCHED = ("identification",)  #: splits that settings are searched on
RELEASED = "ACE (released)"
LABELS = {"ReleasedACE": RELEASED}  #: editor -> as tables call it
NONE = -1  #: the layer of a role that is not written
GRID = {
    "direct": "new multi-hop answer (%)",
    "efficacy": "efficacy (%)",
    "kept": "known facts kept (%)",
}


def cases_of(known: World, n: int, seed: int, hops: Sequence[int] = (2, 3)) -> list[Case]:
    """Up to ``n`` cases of known facts with one edit or two. Raises ValueError if there is none."""
    cases = all_cases(known, JUDGED, n, seed, hops, (1, 2))
    if not cases:
        raise ValueError(f"{len(known.facts)} known facts make no case of {list(hops)} hops")
    return cases


def editors_of(lm: LM, names: Sequence[str]) -> dict[str, Any]:
    """The unedited model and the named editors with their settings for a model, by label."""
    return {BASELINE: None} | {LABELS.get(name, name): preset(name, lm) for name in names}


def experiment(
    hosts: Mapping[str, LM],
    known: Worlds,
    *,
    editors: Sequence[str],
    n_cases: int,
    n_kept: int,
    hops: Sequence[int],
    seed: int,
) -> Experiment:
    """Every editor and the unedited model on the same cases, by model: rows of ``free.judge``."""
    protocol, series = FreeProtocol(n_kept=n_kept, seed=seed), []
    for model, lm in hosts.items():
        cases = cases_of(known[model], n_cases, seed, hops)
        compared = editors_of(lm, editors)
        texts = corpus(lm, known[model], compared.values(), seed)
        for label, editor in compared.items():
            compute = partial(_judged, lm, known[model], editor, texts, protocol)
            what = (editor, texts, cases, compute, protocol)
            series.append(_series(model, label, lm, known[model], *what))
    tolerances = dict.fromkeys(METRICS, (0.0, 1.0)) | {"written": (0.05, 0.0)}
    return Experiment("09_real_model_edits", tuple(series), tolerances=tolerances)


def _series(  # noqa: PLR0913 - all that rows of one editor depend on
    model: str,
    label: str,
    lm: LM,
    known: World,
    editor: Any,
    texts: Corpus,
    cases: Sequence[Case],
    compute: Any,
    protocol: FreeProtocol,
) -> Series:
    return Series(
        names={"model": model, "editor": label},
        depends={
            **depends(lm, known, editor, texts),
            "protocol": json.dumps(asdict(protocol)),
        },
        code=(__name__, *modules(editor)),
        items={str(case.case_id): case for case in cases},
        compute=compute,
        chunk=8,
    )


def _judged(
    lm: LM, known: World, editor: Any, texts: Corpus, protocol: FreeProtocol, cases: list[Case]
) -> list[list[dict]]:
    moments = None if editor is None else texts.moments
    return [[row] for row in edit_and_judge(lm, known, editor, cases, moments, protocol)]


# ---------------------------------------------------------------- the grid


def grid(
    hosts: Mapping[str, LM],
    known: Worlds,
    *,
    n_grid: int,
    steps: Mapping[str, int],
    n_kept: int,
    seed: int,
) -> Experiment:
    """Every pair of a query and a value layer of a coarse set, by model so many layers apart, on
    cases of two known facts with one edit; as in ``grid``, but judged by forced answers.

    Rows, one per pair, ``NONE`` for a role that is not written: query, value, efficacy, direct (the
    new answer to a direct question behind demonstrations), log_p (its log-probability, nats), kept.
    Raises ValueError for a step below 1.
    """
    if wrong := [step for step in steps.values() if step < 1]:
        raise ValueError(f"layers {wrong[0]} apart: it must be at least 1")
    series = []
    for model, lm in hosts.items():
        pmet = replace(preset("PMET", lm), layers=tuple(range(0, lm.n_layers, steps[model])))
        both = ACE(
            value=replace(pmet, position="last"),
            query=replace(pmet, position="subject_last"),
            value_prompts=("single",),
        )
        texts = corpus(lm, known[model], [both], seed)
        cases = all_cases(known[model], JUDGED, n_grid, seed, (2,), (1,))
        protocol = FreeProtocol(n_kept=n_kept, seed=seed)
        compute = partial(_pairs, lm, known[model], both, texts, protocol)
        what = (both, texts, cases, compute, protocol)
        series.append(_series(model, "pairs", lm, known[model], *what))
    tolerances = dict.fromkeys(("efficacy", "direct", "kept"), (0.0, 1.0)) | {"log_p": (0.05, 0.25)}
    return Experiment("09_real_model_grid", tuple(series), tolerances=tolerances)


def _pairs(
    lm: LM, known: World, both: ACE, texts: Corpus, protocol: FreeProtocol, cases: list[Case]
) -> list[list[dict]]:
    return [pair_rows(lm, known, both, texts, protocol, case) for case in cases]


def pair_rows(
    lm: LM, known: World, both: ACE, texts: Corpus, protocol: FreeProtocol, case: Case
) -> list[dict]:
    """The rows of one case."""
    # 1. One update for each layer of each role, on the unedited model.
    by_role = {role: single_updates(lm, both, texts, case, role) for role in ("query", "value")}
    pairs = [
        (query, value, one + other)
        for query, one in by_role["query"].items()
        for value, other in by_role["value"].items()
    ]
    # 2. The same prompts for every pair.
    facts = [fact for some in kept_facts(lm, known, case, protocol).values() for fact in some]
    shown = shots.shown_chains(known, case.entities, protocol.n_shots)
    asked = [(shots.direct(known, shown, case.questions[0]), case.new_answer)]
    asked += [(edit.text, edit.target_new) for edit in case.edits]
    asked += [single_hop(known, fact) for fact in facts]
    prompts, answers = (list(column) * len(pairs) for column in zip(*asked, strict=True))
    owners = [update for _, _, update in pairs for _ in asked]
    told = recall(lm, prompts, answers, owners)
    # 3. What they count for.
    rows, n, e = [], len(asked), len(case.edits)
    for i, (query, value, _) in enumerate(pairs):
        right, log_p = told.correct[i * n : (i + 1) * n], told.logprob[i * n]
        rows.append(
            {
                "query": query,
                "value": value,
                "direct": float(right[0]),
                "log_p": round(log_p, 4),
                "efficacy": sum(right[1 : 1 + e]) / e,
                "kept": sum(right[1 + e :]) / len(facts) if facts else float("nan"),
            }
        )
    return rows


def single_updates(lm: LM, both: ACE, texts: Corpus, case: Case, role: str) -> dict[int, Update]:
    """By layer the edit of one stage at that layer alone; ``NONE``: no edit."""
    requests, writer = both.requests(case.edits, role), both.writer(role)
    prefixes, updates = both.prefixes(lm), {NONE: Update()}
    for layer in writer.layers:
        stage = replace(writer.stage, layers=(layer,))
        values = target_vectors(lm, requests, layer, writer.objective, prefixes).value
        updates[layer] = write(lm, requests, stage, texts.moments, values, prefixes)[0]
    return updates


# ---------------------------------------------------------------- what the rows say


def metrics_table(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Editors x measures, in percent with 95 % intervals over cases; one model's rows."""
    table = {}
    for name, part in rows.groupby("editor", sort=False):
        table[name] = {
            label: interval(list(100 * part[column]), seed, bounds=SHARE)
            for column, label in METRICS.items()
        }
    return pd.DataFrame(table).T


def multi_hop_points(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per case, editor and way of asking: way, right (%), and by ``before`` those that the
    unedited model answers with the old answer.
    """
    long = []
    for way in ("thoughts", "direct"):
        base = rows[rows.editor == BASELINE].set_index(["model", "case_id"])[way]
        keys = pd.MultiIndex.from_frame(rows[["model", "case_id"]])
        before = base.reindex(keys).to_numpy()
        part = rows[["model", "editor", "case_id"]].assign(
            way=METRICS[way], right=100 * rows[way].to_numpy(), before=before
        )
        long.append(part)
    return pd.concat(long, ignore_index=True)


def answered_before(rows: pd.DataFrame) -> pd.DataFrame:
    """``multi_hop_points`` of questions that the unedited model answers, and the editors only: the
    cases that the paper's filter would keep.
    """
    points = multi_hop_points(rows)
    return points[(points.before == 1) & (points.editor != BASELINE)]


def multi_hop_table(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Editors x (way, which cases): all, and those answered before; percent with intervals."""
    every, before = multi_hop_points(rows), answered_before(rows)
    cells: dict[tuple[str, str], dict[str, Mean]] = {}
    for which, points in (("all", every), ("answered before", before)):
        for (editor, way), part in points.groupby(["editor", "way"], sort=False):
            mean = interval(list(part.right), seed, bounds=SHARE)
            cells.setdefault((str(way), which), {})[str(editor)] = mean
    return pd.DataFrame(cells).reindex(rows.editor.unique())


def leads(rows: pd.DataFrame, way: str, seed: int = 0) -> dict[str, Mean]:
    """ACE's lead over every other editor in points, paired over the cases of one model."""
    names, percent = list(rows.editor.unique()), rows.assign(**{way: 100 * rows[way]})
    others = [name for name in names if name not in ("ACE", BASELINE)] * ("ACE" in names)
    return {name: paired(percent, "ACE", name, way, seed) for name in others}


def sentence_numbers(rows: pd.DataFrame, seed: int) -> dict[str, dict]:
    """What the sentences say, by model: "cases"; by way ("thoughts", "direct"): "base", "ace", the
    "best" editor and its accuracy, whom ACE is "ahead" of and "behind" with the whole interval.
    """
    said: dict[str, dict] = {}
    for model, part in rows.groupby("model", sort=False):
        of: dict[str, Any] = {"cases": part.case_id.nunique()}
        for way in ("thoughts", "direct"):
            share = {
                name: interval(list(100 * some[way]), seed, bounds=SHARE)
                for name, some in part.groupby("editor", sort=False)
            }
            edited = {name: mean for name, mean in share.items() if name != BASELINE}
            best = max(edited, key=lambda name: edited[name].mean)
            lead = leads(part, way, seed)
            of[way] = {
                "base": share[BASELINE],
                "ace": share.get("ACE"),
                "best": best,
                "best_share": edited[best],
                "ahead": [name for name, gap in lead.items() if gap.low > 0],
                "behind": [name for name, gap in lead.items() if gap.high < 0],
            }
        said[str(model)] = of
    return said


def claim_values(rows: pd.DataFrame, known: Worlds, n: int, hops: Sequence[int], seed: int) -> dict:
    """The values of the paper's claims about editors, by (claim, model); multi-hop accuracy is that
    of the chain of thought, specificity the mean of near and far facts, as published.

    rows: of ``experiment``, whose known facts, cases and seed the others are.
    """
    values: dict[tuple[str, str], Mean] = {}
    for name, part in rows.groupby("model", sort=False):
        model = str(name)
        same = part.assign(multi_hop=part.thoughts, specificity=part[["near", "far"]].mean(axis=1))
        cases = {model: cases_of(known[model], n, seed, hops)}
        same = same.assign(**{f"specificity_{kind}": part[kind] for kind in KINDS})
        one = ace_claims.named_minus_implicit(same[same.n_edits == 1], cases, seed)
        values |= ace_claims.claim_values(same) | ace_claims.implicit_claim(one)
    return values


def grid_means(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Mean of a measure over cases in percent, query layers x value layers of one model."""
    means = 100 * rows.groupby(["query", "value"])[measure].mean().unstack()
    names = {NONE: "none"}
    return means.rename(index=lambda i: names.get(i, i), columns=lambda i: names.get(i, i))


@figure
def grid_maps(rows: pd.DataFrame) -> Figure:
    """Maps of the grid: one row of panels per model, one column per measure of ``GRID``."""
    models = list(rows.model.unique())
    size = (10.5, 0.5 + 3.4 * len(models))
    fig, axes = plt.subplots(len(models), len(GRID), figsize=size, squeeze=False)
    for row, model in zip(axes, models, strict=True):
        for ax, (measure, title) in zip(row, GRID.items(), strict=True):
            values = grid_means(rows[rows.model == model], measure)
            scale: dict[str, Any] = dict(vmin=0, vmax=100, cmap="Blues", cbar=False)
            look: dict[str, Any] = dict(annot=True, fmt=".0f", annot_kws={"size": 7})
            sns.heatmap(values, ax=ax, linewidths=0.6, linecolor="white", **scale, **look)
            ax.set(title=f"{model}: {title}", xlabel="value layer", ylabel="query layer")
            ax.tick_params(length=0, rotation=0)
    return fig
