"""ACE beside other editors on held-out multi-hop questions: the experiments and what they show.

The editors have the settings that one search chose for each model. "ACE (located)" was searched
as ACE was, but for its layers: it has those that attribution ranks first, behind layer 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from ..editors import preset
from ..model.answers import recall
from ..model.lm import LM
from ..records import Case, Edit
from ..study.experiments import (
    Corpus,
    cases_by_model,
    comparisons,
    corpus,
    depends,
    known_cases,
    modules,
)
from ..study.judge import Protocol
from ..study.rows import Experiment, Series, table
from ..study.stats import SHARE, Mean, difference, interval, paired
from ..study.tables import BASELINE, METRICS
from ..world.cases import make_cases
from ..world.world import CATEGORIES, World
from . import located
from .probe import before_and_after, probes, written

LOCATED = "ACE (located)"
#: Editors that write one block of neighbouring layers.
ONE_BLOCK = ("ROME", "MEMIT", "PMET", "AlphaEdit")
#: Editors that the paper's claims compare ACE with.
RIVALS = ("FT", "ROME", "MEMIT", "PMET")

#: Editors that are compared on cases with one edit, by whether the question names its subject.
ON_ONE_EDIT = ("PMET", "ACE")

Settings = dict[str, dict[str, object]]  #: {model: {name: editor}}


# ---------------------------------------------------------------- experiments


def settings(
    hosts: Mapping[str, LM], world: World, *, editors: Sequence[str], n_located: int, seed: int
) -> Settings:
    """The named editors of each model, and, if ACE is among them, "ACE (located)".

    Raises ValueError for an unknown editor, or a model that it has no settings for.
    """
    by_model = {model: {name: preset(name, hosts[model]) for name in editors} for model in hosts}
    if "ACE" in editors:
        scores = table(located.experiment(hosts, world, n_located=n_located, seed=seed))
        for model, named in by_model.items():
            ace = preset("LocatedACE", model)
            named[LOCATED] = on_ranked_layers(ace, located.ranking(scores, model))
    return by_model


def on_ranked_layers(ace, ranking: Mapping[str, Sequence[int]]):
    """ACE on as many query and value layers as it has, those that are ranked first.

    Layer 0, which extends the embedding, is left out.
    """
    query, value = ([i for i in ranking[role] if i > 0] for role in ("query", "value"))
    return ace.at(
        query_layers=tuple(sorted(query[: len(ace.query_layers)])),
        value_layers=tuple(sorted(value[: len(ace.value_layers)])),
    )


def experiment(
    hosts: Mapping[str, LM],
    world: World,
    *,
    editors: Sequence[str],
    cases: str,
    n_cases: int,
    n_located: int,
    n_unrelated: int,
    seed: int,
) -> Experiment:
    """Every editor and the unedited model on the same evaluation cases, by model."""
    by_model = settings(hosts, world, editors=editors, n_located=n_located, seed=seed)
    compared = {model: {BASELINE: None, **named} for model, named in by_model.items()}
    known = cases_by_model(hosts, world, n_cases, seed, cases)
    protocol = Protocol(n_unrelated=n_unrelated, seed=seed)
    return Experiment("03_ace", comparisons(hosts, world, compared, known, protocol))


def implicit(
    hosts: Mapping[str, LM],
    world: World,
    *,
    n_single: int,
    n_unrelated: int,
    seed: int,
) -> Experiment:
    """``ON_ONE_EDIT`` on cases with one edit, by model: up to ``n_single`` whose edited fact is the
    first of its chain, so that the question names its subject, and as many whose fact is a later
    one.
    """
    by_model = {model: {name: preset(name, model) for name in ON_ONE_EDIT} for model in hosts}
    known = {model: single_edit_cases(lm, world, n_single, seed) for model, lm in hosts.items()}
    protocol = Protocol(n_unrelated=n_unrelated, seed=seed)
    return Experiment("03_ace_implicit", comparisons(hosts, world, by_model, known, protocol))


def single_edit_cases(lm: LM, world: World, n_each: int, seed: int) -> list[Case]:
    """Up to ``n_each`` evaluation cases with one edit of the chain's first fact, and as many of a
    later fact; of each the model recalls every fact.
    """
    pool = make_cases(world, "evaluation", 6 * n_each, seed, n_edits=(1,))
    kinds = [[case for case in pool if is_named(case) == named] for named in (True, False)]
    return [case for some in kinds for case in known_cases(lm, some)[:n_each]]


def is_named(case: Case) -> bool:
    """Whether the question names the subject of the first edit."""
    return case.edits[0].subject == case.chain[0][0]


def example(world: World) -> Edit:
    """The edit that is shown step by step: *Tim Duncan plays the sport of cricket*."""
    fact = next(fact for fact in world.about("Tim Duncan") if fact.relation == "sport")
    first, *others = world.relations["sport"].cloze
    return Edit(fact.subject, first, "cricket", fact.object, tuple(others), "sport")


def writes(
    hosts: Mapping[str, LM], world: World, *, editors: Sequence[str], n_located: int, seed: int
) -> Experiment:
    """What every editor writes for the example, by layer, and the log-probability that results."""
    by_model = settings(hosts, world, editors=editors, n_located=n_located, seed=seed)
    edit, series = example(world), []
    for model, host in hosts.items():
        texts = corpus(host, world, by_model[model].values(), seed)
        for name, editor in {BASELINE: None, **by_model[model]}.items():
            series.append(
                Series(
                    names={"model": model, "editor": name},
                    depends=depends(host, world, editor, texts),
                    code=("acelib.measures.probe", *modules(editor)),
                    items={edit.text: edit},
                    compute=partial(_writes, host, editor, texts),
                )
            )
    # Other threads and instruction sets move a write by 3e-6, 5 % of a learning rate by far more.
    tolerances = {"log_p": (1e-3, 1e-3)}
    return Experiment("03_ace_writes", tuple(series), rtol=3e-4, tolerances=tolerances)


def _writes(lm: LM, editor, texts: Corpus, edits: list[Edit]) -> list[list[dict]]:
    return [written(lm, editor, edit, editor and texts.moments) for edit in edits]


def answers(hosts: Mapping[str, LM], world: World, *, seed: int) -> Experiment:
    """What the first model answers before and after ACE's edit of the example."""
    model, host = next(iter(hosts.items()))
    editor, edit = preset("ACE", host), example(world)
    texts = corpus(host, world, [editor], seed)

    def compute(edits: list[Edit]) -> list[list[dict]]:
        prompts = (probes(world, one, seed=seed) for one in edits)
        updates = editor.each(host, [[one] for one in edits], texts.moments)
        tables = (before_and_after(host, *pair) for pair in zip(prompts, updates, strict=True))
        return [frame.to_dict("records") for frame in tables]

    series = Series(
        names={"model": model, "editor": "ACE"},
        depends={**depends(host, world, editor, texts), "seed": str(seed)},
        code=("acelib.measures.probe", *modules(editor)),
        items={edit.text: edit},
        compute=compute,
    )
    return Experiment("03_ace_answers", (series,))


# ---------------------------------------------------------------- what the rows say


@dataclass(frozen=True)
class Standing:
    """The editors on one model, in percent and percentage points with 95 % intervals over cases."""

    multi_hop: dict[str, Mean]
    near: dict[str, Mean]  #: specificity, other facts of the edited relations
    far: dict[str, Mean]  #: specificity, facts of other relations
    token: dict[str, Mean]  #: specificity, facts of subjects that end in the same token
    lead: dict[str, Mean]  #: multi-hop accuracy of ACE minus that of each other editor

    @property
    def ahead(self) -> list[str]:
        """The editors that ACE is ahead of with the whole interval."""
        return [name for name, gap in self.lead.items() if gap.low > 0]

    @property
    def behind(self) -> list[str]:
        """The editors that ACE is behind with the whole interval."""
        return [name for name, gap in self.lead.items() if gap.high < 0]

    @property
    def level(self) -> list[str]:
        """The editors whose difference to ACE includes zero."""
        return [name for name, gap in self.lead.items() if gap.low <= 0 <= gap.high]

    @property
    def best(self) -> str | None:
        """The best editor with one block of layers; of equal ones the first."""
        names = [name for name in self.multi_hop if name in ONE_BLOCK]
        return max(names, key=lambda name: self.multi_hop[name].mean, default=None)

    @property
    def keeper(self) -> str:
        """The editor that keeps most of the other facts of the edited relations."""
        names = [name for name in self.near if name not in (BASELINE, LOCATED)]
        return max(names, key=lambda name: self.near[name].mean)


def sentence_numbers(rows: pd.DataFrame, seed: int) -> dict:
    """What the sentences of the chapter say of the rows of ``experiment``: "ace", whether ACE is
    among the editors; "models", ``standings``; "accuracy" and "near", {editor: {model: Mean}}.
    """
    models = standings(rows, seed)
    names = rows.editor.unique()
    return {
        "ace": "ACE" in names,
        "models": models,
        "accuracy": {
            name: {model: of.multi_hop[name] for model, of in models.items()} for name in names
        },
        "near": {name: {model: of.near[name] for model, of in models.items()} for name in names},
    }


def standings(rows: pd.DataFrame, seed: int) -> dict[str, Standing]:
    """By model.   rows: of ``experiment``."""
    return {model: _standing(part, seed) for model, part in rows.groupby("model", sort=False)}


def _standing(part: pd.DataFrame, seed: int) -> Standing:
    names = list(part.editor.unique())

    def share(metric: str) -> dict[str, Mean]:
        values = {name: 100 * part[part.editor == name][metric] for name in names}
        return {name: interval(value, seed, bounds=SHARE) for name, value in values.items()}

    points = part.assign(multi_hop=100 * part.multi_hop)
    others = [name for name in names if name not in ("ACE", BASELINE)] * ("ACE" in names)
    lead = {name: paired(points, "ACE", name) for name in others}
    near, far, token = (share(f"specificity_{kind}") for kind in ("near", "far", "token"))
    return Standing(share("multi_hop"), near, far, token, lead)


def base_knows(
    hosts: Mapping[str, LM], cases: Mapping[str, Sequence[Case]]
) -> dict[str, dict[str, int]]:
    """How many edited facts the unedited model recalls, of those on an old chain and of the others.

    Returns by model: "known" of "chain" facts that a hop of the old chain asks for, "known_others"
    of "others".
    """
    counts = {}
    for model, some in cases.items():
        edits = [edit for case in some for edit in case.edits]
        on_chain = [
            edit.target_true in {hop.answer for hop in case.hops if hop.cloze == edit.text}
            for case in some
            for edit in case.edits
        ]
        prompts, targets = [edit.text for edit in edits], [edit.target_true for edit in edits]
        correct = recall(hosts[model], prompts, targets).correct
        known = [ok for ok, on in zip(correct, on_chain, strict=True) if on]
        others = [ok for ok, on in zip(correct, on_chain, strict=True) if not on]
        counts[model] = {
            "known": sum(known),
            "chain": len(known),
            "known_others": sum(others),
            "others": len(others),
        }
    return counts


def categories(cases: Mapping[str, Sequence[Case]], world: World) -> pd.DataFrame:
    """One row per model, case and category of an edited relation ("other": none of the eight)."""
    return pd.DataFrame(
        [
            {"model": model, "case_id": case.case_id, "category": _category(world, edit)}
            for model, some in cases.items()
            for case in some
            for edit in case.edits
        ]
    ).drop_duplicates()


def _category(world: World, edit: Edit) -> str:
    relation = world.relations.get(edit.relation)
    return CATEGORIES.get(relation.category or "", "other") if relation else "other"


def search(trials: pd.DataFrame, editors: Sequence[str]) -> dict:
    """How much settings matter in the search that chose them.

    trials: as ``tune.trials``, with a column model.
    Returns "n_trials" per editor, as text, and by model two standard deviations of multi-hop
    accuracy on identification cases, in percentage points: "settings", of an editor's trials, the
    median over editors, and "editors", of the editors' best trials.
    """
    trials = trials[trials.editor.isin(editors)]
    groups = trials.groupby(["model", "editor"], sort=False).multi_hop
    counts = sorted({*groups.size()})
    best, spread = groups.max(), groups.std(ddof=0)
    models = {
        model: {"settings": spread[model].median(), "editors": best[model].std(ddof=0)}
        for model in best.index.unique(0)
    }
    ends = dict.fromkeys([*counts[:1], *counts[-1:]])
    return {"n_trials": " to ".join(map(str, ends)) or "no", "models": models}


def heavier(rows: pd.DataFrame) -> dict[str, dict[str, dict]]:
    """Changes that are greater than the weight that they are added to, the greatest of an editor:
    {model: {editor: {"layer", "share" of the weight's norm, "used", "idle"}}}.

    used: the share without neurons that texts do not use, and idle: how many those are.
    rows: of ``writes``.
    """
    found: dict[str, dict[str, dict]] = {}
    for (model, editor), part in rows[rows.share > 1].groupby(["model", "editor"], sort=False):
        greatest = part.loc[part.share.idxmax()]
        found.setdefault(model, {})[editor] = {
            "layer": int(greatest.layer),
            "share": float(greatest.share),
            "used": None if pd.isna(greatest.used) else float(greatest.used),
            "idle": 0 if pd.isna(greatest.idle) else int(greatest.idle),
        }
    return found


def claim_values(rows: pd.DataFrame) -> dict[tuple[str, str], Mean]:
    """What the rows say of the paper's claims about ACE and other editors: {(claim, model): value}.

    rows: of ``experiment``.
    Claims are left out that need an editor, or a number of edits, that is not there.
    """
    if not {"ACE", "IFMET", *RIVALS} <= {*rows.editor}:
        return {}
    percent = rows.assign(**{metric: 100 * rows[metric] for metric in METRICS})
    values: dict[tuple[str, str], Mean] = {}
    for model, part in percent.groupby("model", sort=False):
        values |= {(claim, model): value for claim, value in _claims(part).items()}
    models = list(percent.model.unique())
    if len(models) > 1:
        values["worse_on_qwen3", "both"] = _second_minus_first(percent, *models)
    return values


def named_minus_implicit(
    rows: pd.DataFrame, cases: Mapping[str, Sequence[Case]], seed: int
) -> dict[str, dict[str, tuple[Mean, Mean, Mean]]]:
    """Multi-hop accuracy on cases with one edit, {editor: {model: (named, implicit, difference)}}:
    of those whose question names the edited subject, of the others, and the first minus the second;
    percent and points.

    rows: of ``implicit``.   Editors with fewer than two cases of a kind are left out.
    """
    found: dict[str, dict[str, tuple[Mean, Mean, Mean]]] = {}
    for (editor, model), part in rows.groupby(["editor", "model"], sort=False):
        first = {case.case_id for case in cases[model] if is_named(case)}
        percent, named = 100 * part.multi_hop, part.case_id.isin(first)
        kinds = percent[named], percent[~named]
        if min(map(len, kinds)) > 1:
            first_share, later_share = (interval(kind, seed, bounds=SHARE) for kind in kinds)
            gap = difference(*kinds, seed)
            found.setdefault(editor, {})[model] = first_share, later_share, gap
    return found


def implicit_claim(
    found: Mapping[str, Mapping[str, tuple[Mean, Mean, Mean]]],
) -> dict[tuple[str, str], Mean]:
    """What ``named_minus_implicit`` says of the paper's claim about PMET."""
    claim = "implicit_edits_are_harder"
    return {(claim, model): of[2] for model, of in found.get("PMET", {}).items()}


def _claims(part: pd.DataFrame) -> dict[str, Mean]:
    """The claims on one model."""
    pmet = part[part.editor == "PMET"]
    values = {
        "ace_leads_pmet": paired(part, "ACE", "PMET"),
        "single_hop_is_not_enough": interval(pmet.efficacy - pmet.multi_hop),
    }
    values["deep_edits_help"] = paired(part, "IFMET", "MEMIT")
    values["ace_leads_best"] = _lead(part, "multi_hop")
    for claim, n_edits in (("ace_leads_one_edit", 1), ("ace_leads_four_edits", 4)):
        if n_edits in set(part.n_edits):
            values[claim] = _lead(part[part.n_edits == n_edits], "multi_hop")
    metrics = ("efficacy", "paraphrase", "specificity")
    # Cases of a file may have no other wordings.
    asked = [metric for metric in metrics if part[metric].notna().any()]
    return values | {f"{metric}_leads": _lead(part, metric) for metric in asked}


def _lead(part: pd.DataFrame, metric: str) -> Mean:
    """ACE minus the rival that is best on the same cases."""
    rivals = part[part.editor.isin(RIVALS)].groupby("editor", sort=False)
    return paired(part, "ACE", rivals[metric].mean().idxmax(), metric)


def _second_minus_first(percent: pd.DataFrame, *models: str) -> Mean:
    """The last model minus the first: mean multi-hop accuracy of ROME, MEMIT and PMET on the cases
    that both know.
    """
    rows = percent[percent.editor.isin(["ROME", "MEMIT", "PMET"])]
    by_case = rows.pivot_table(index="case_id", columns="model", values="multi_hop").dropna()
    return interval(by_case[models[-1]] - by_case[models[0]])
