"""ACE without some of its layers, judged with other prompts, and with its steps read otherwise.

Every setting is ACE's preset with one thing changed, on the same cases, so differences are paired.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import pandas as pd

from ..editors import ACE, preset
from ..model.lm import LM
from ..paper.published import published
from ..study import claims
from ..study.experiments import cases_by_model, comparisons
from ..study.rows import Experiment, table
from ..study.stats import Mean, difference, paired
from ..study.tables import BASELINE, METRICS, NAMES
from ..world.world import World
from . import harder, located

#: Kind of layers -> how many of the most important ones are skipped, at most.
MOST = {"query": 3, "value": 2}
#: Claim -> the prompt that it compares with few shots.
ROBUST = {
    "zero_shot_robust": "Zero-Shot",
    "one_shot_robust": "One-Shot",
    "ood_shots_robust": "OOD Few-Shots",
}


# ---------------------------------------------------------------- settings


def layer_order(ace: ACE, ranking: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """The layers that ACE writes by kind, the most important first.   ranking: of all layers."""
    layers = {"query": ace.query_layers, "value": ace.value_layers}
    return {kind: sorted(some, key=ranking[kind].index) for kind, some in layers.items()}


def layer_ablations(ace: ACE, ranking: Mapping[str, Sequence[int]]) -> dict[str, ACE]:
    """ACE, and ACE without the most important of its query layers, of its value layers.

    Without any layer of a kind, its stage does not take place. Names are as in Table 4.
    """
    editors = {"ACE": ace}
    for kind, layers in layer_order(ace, ranking).items():
        for k in range(1, min(MOST[kind], len(layers)) + 1):
            ranks = ", ".join(map(str, range(1, k + 1)))
            editors[f"no {kind} #{ranks}"] = _without(ace, kind, layers[k:])
    return editors


def _without(ace: ACE, kind: str, rest: Sequence[int]) -> ACE:
    """ACE with only the layers ``rest`` of a kind, or without their stage."""
    if not rest:
        return replace(ace, stages=tuple(stage for stage in ace.stages if stage != kind))
    return ace.at(**{f"{kind}_layers": tuple(sorted(rest))})


def other_readings(ace: ACE) -> dict[str, ACE]:
    """ACE, and ACE with one step read otherwise."""
    return {
        "ACE": ace,
        "value: single-hop": replace(ace, value_prompts=("single",)),
        "value: multi-hop": replace(ace, value_prompts=("hops",)),
        "value at subject": replace(ace, value=replace(ace.value, position="subject_last")),
        "query: multi-hop too": replace(ace, query_prompts=("single", "hops")),
        "query at last": replace(ace, query=replace(ace.query, position="last")),
        "query first": replace(ace, stages=("query", "value")),
        "chained": replace(ace, chained=True),
    }


def by_model(
    hosts: Mapping[str, LM], world: World, *, n_located: int, seed: int
) -> dict[str, dict[str, ACE]]:
    """``layer_ablations`` of each model's preset."""
    scores = table(located.experiment(hosts, world, n_located=n_located, seed=seed))
    return {
        model: layer_ablations(preset("ACE", hosts[model]), located.ranking(scores, model))
        for model in hosts
    }


def ranks(hosts: Mapping[str, LM], world: World, *, n_located: int, seed: int) -> pd.DataFrame:
    """Model x kind: the layers that ACE's preset writes, the most important first, as text."""
    scores = table(located.experiment(hosts, world, n_located=n_located, seed=seed))
    lines = {}
    for model in hosts:
        of = layer_order(preset("ACE", hosts[model]), located.ranking(scores, model))
        lines[model] = {f"{kind} layers": ", ".join(map(str, some)) for kind, some in of.items()}
    return pd.DataFrame(lines).T


# ---------------------------------------------------------------- experiments


def layers(
    hosts: Mapping[str, LM],
    world: World,
    *,
    cases: str,
    n_cases: int,
    n_located: int,
    n_unrelated: int,
    hard: str,
    seed: int,
) -> Experiment:
    """ACE without its most important layers (Table 4), asked with the prompt ``hard`` too."""
    editors = by_model(hosts, world, n_located=n_located, seed=seed)
    known = cases_by_model(hosts, world, n_cases, seed, cases)
    protocols = harder.protocols([hard], n_unrelated=n_unrelated, seed=seed)
    series = comparisons(hosts, world, editors, known, protocols)
    return Experiment("04_ablations_layers", series)


def prompts(
    hosts: Mapping[str, LM],
    world: World,
    *,
    cases: str,
    n_cases: int,
    n_unrelated: int,
    seed: int,
) -> Experiment:
    """ACE, and the unedited model, asked with other prompts (Table 5)."""
    editors = {model: {BASELINE: None, "ACE": preset("ACE", hosts[model])} for model in hosts}
    known = cases_by_model(hosts, world, n_cases, seed, cases)
    protocols = harder.protocols([*harder.PROMPTS], n_unrelated=n_unrelated, seed=seed)
    series = comparisons(hosts, world, editors, known, protocols)
    return Experiment("04_ablations_prompts", series)


def readings(
    hosts: Mapping[str, LM],
    world: World,
    *,
    cases: str,
    n_cases: int,
    n_unrelated: int,
    hard: str,
    seed: int,
) -> Experiment:
    """ACE with one step read otherwise than by default, asked with the prompt ``hard`` too."""
    editors = {model: other_readings(preset("ACE", hosts[model])) for model in hosts}
    known = cases_by_model(hosts, world, n_cases, seed, cases)
    protocols = harder.protocols([hard], n_unrelated=n_unrelated, seed=seed)
    series = comparisons(hosts, world, editors, known, protocols)
    return Experiment("04_ablations_readings", series)


# ---------------------------------------------------------------- tables


def published_layers() -> pd.DataFrame:
    """Table 4 as the tables of measured rows are named, ACE with all layers (Tables 2, 3) first."""
    whole = pd.concat([published(2).query("n_edits == 'all'"), published(3)])
    some = published(4)
    ranks = some.skipped_ranks.astype(str).str.replace(";", ", ")
    some = some.assign(editor="no " + some.layer_family + " #" + ranks)
    some = some[some.metric != "avg_decrease_percent"]
    both = pd.concat([whole[whole.editor == "ACE"], some])
    return both.replace({"metric": {"avg": "multi_hop"}})


def published_prompts() -> pd.DataFrame:
    """Table 5, with few-shot prompts as in Table 2."""
    few = published(2).query("n_edits == 'all' and editor == 'ACE' and metric == 'avg'")
    other = published(5).rename(columns={"prompting": "editor"})
    return pd.concat([few.assign(editor="Few-Shots"), other]).assign(metric="ACE")


def by_prompt(rows: pd.DataFrame, n_hops: Collection[int]) -> pd.DataFrame:
    """Multi-hop accuracy of the edited model ("ACE") and of the "unedited" one, and their hard
    readings ("ACE, hard", ...), one row per model, prompt (in the column "editor") and case.

    rows: of ``prompts``.   n_hops: of the chains that are read hard.
    """
    rows = rows.assign(hard=harder.share(rows, n_hops))
    rows = rows.replace({"editor": {BASELINE: "unedited"}})
    wide = rows.pivot(
        index=["model", "prompt", "case_id"], columns="editor", values=["multi_hop", "hard"]
    )
    wide.columns = [name + ", hard" * (metric == "hard") for metric, name in wide.columns]
    wide = wide.reset_index().rename(columns={"prompt": "editor"})
    return wide.sort_values(
        "editor", key=lambda names: names.map([*harder.PROMPTS].index), kind="stable"
    )


# ---------------------------------------------------------------- what the rows say


def claim_values(rows: pd.DataFrame, prompts: pd.DataFrame) -> dict[tuple[str, str], Mean]:
    """What the rows say of the paper's claims: {(claim, model): value}.

    rows: of ``layers``.   prompts: ``by_prompt``.
    """
    percent, asked = (
        rows.assign(multi_hop=100 * rows.multi_hop),
        prompts.assign(ACE=100 * prompts.ACE),
    )
    values: dict[tuple[str, str], Mean] = {}
    costs = []
    for model, part in percent.groupby("model", sort=False):
        last, second = _last(part, "query"), _second(part)
        shots = asked[asked.model == model]
        values |= {
            ("query_layers_needed", model): paired(part, "ACE", last),
            ("value_layers_needed", model): paired(part, "ACE", _last(part, "value")),
            ("value_costs_more", model): paired(part, _last(part, "value"), second),
            **{
                (claim, model): paired(shots, "Few-Shots", prompt, "ACE")
                for claim, prompt in ROBUST.items()
            },
        }
        wide = part.pivot(index="case_id", columns="editor", values="multi_hop")
        costs.append(wide["ACE"] - wide[last])
    if len(costs) > 1:
        values["qwen3_is_more_sensitive", "both"] = difference(costs[-1], costs[0])
    return values


def _last(part: pd.DataFrame, kind: str) -> str:
    """The setting without most of its layers of a kind."""
    return [name for name in part.editor.unique() if name.startswith(f"no {kind}")][-1]


def _second(part: pd.DataFrame) -> str:
    """The setting without its two most important query layers, or without the one that there is."""
    return [name for name in part.editor.unique() if name.startswith("no query")][:2][-1]


def without_stage(editors: Mapping[str, Mapping[str, ACE]]) -> dict[str, list[str]]:
    """By model, the settings that have lost a whole stage.   editors: ``by_model``."""
    return {
        model: [name for name, one in of.items() if len(one.stages) == 1]
        for model, of in editors.items()
    }


def sentence_numbers(
    values: Mapping[tuple[str, str], Mean],
    prompts: pd.DataFrame,
    gone: Mapping[str, Sequence[str]],
) -> dict:
    """What the sentences of the chapter say of claims.

    values: ``claim_values``.   prompts: ``by_prompt``.   gone: ``without_stage``.
    """
    verdicts = claims.verdicts(values)
    models = list(prompts.model.unique())
    return {
        "values": {claim: {m: values[claim, m] for m in models} for claim in _claims(values)},
        "verdicts": {claim: {m: verdicts[claim, m] for m in models} for claim in _claims(values)},
        "sensitive": values.get(("qwen3_is_more_sensitive", "both")),
        "sensitive_verdict": verdicts.get(("qwen3_is_more_sensitive", "both")),
        "models": models,
        "all": {
            model: {kind: any(f"no {kind}" in name for name in names) for kind in MOST}
            for model, names in gone.items()
        },
        "ceiling": [m for m in models if (prompts[prompts.model == m].ACE == 1).all()],
    }


def hard_numbers(rows: pd.DataFrame, prompts: pd.DataFrame) -> dict:
    """What the sentences of the chapter say of the hard reading: settings that answer every case as
    published ("ceilings"), and the values of the claims read hard, {claim: {model: value}}.

    rows: of ``layers``, as ``harder.beside`` gives them.   prompts: ``by_prompt``.
    """
    hard = harder.only(rows)
    asked = prompts.assign(ACE=prompts["ACE, hard"]).dropna(subset="ACE")
    values: dict[tuple[str, str], Mean] = {}
    for model in hard.model.unique():
        values |= claim_values(hard[hard.model == model], asked[asked.model == model])
    return {
        "ceilings": harder.ceilings(rows),
        "hard": {
            claim: {model: value for (name, model), value in values.items() if name == claim}
            for claim in _claims(values)
        },
    }


def _claims(values: Mapping[tuple[str, str], Mean]) -> list[str]:
    """The claims about one model."""
    return list(dict.fromkeys(claim for claim, model in values if model != "both"))


def gaps(apart: Mapping[str, pd.DataFrame]) -> dict[str, dict]:
    """By model, how the default reading differs from the others.

    apart: ``tables.paired_table`` of the readings, by model.
    Returns lists of (reading, difference in multi-hop accuracy): "better" (the default is better
    with the whole interval), "worse", "level"; "dear": of readings that lose in other metrics,
    (reading, {metric: difference}).
    """
    result = {}
    for model, frame in apart.items():
        frame = frame.rename(index=lambda name: name.partition(" − ")[2])
        pairs = list(frame["multi_hop"].items())
        losses = {
            name: {NAMES.get(metric, metric): gap for metric, gap in line.items() if gap.low > 0}
            for name, line in frame.drop(columns="multi_hop").iterrows()
        }
        result[model] = {
            "better": [(name, gap) for name, gap in pairs if gap.low > 0],
            "worse": [(name, gap) for name, gap in pairs if gap.high < 0],
            "level": [(name, gap) for name, gap in pairs if gap.low <= 0 <= gap.high],
            "dear": [(name, some) for name, some in losses.items() if some],
            "single": dict(pairs)["value: single-hop"],
        }
    return result


def equal(rows: pd.DataFrame) -> list[dict]:
    """Pairs of readings that agree on every case in all metrics: model and names.

    rows: of ``readings``.
    """
    pairs = []
    for model, part in rows.groupby("model", sort=False):
        by_name = {
            name: some.set_index("case_id")[list(METRICS)]
            for name, some in part.groupby("editor", sort=False)
        }
        pairs += [
            {
                "model": model,
                "names": ["the default" if name == "ACE" else name for name in (a, b)],
            }
            for a, b in combinations(by_name, 2)
            if by_name[a].equals(by_name[b])
        ]
    return pairs


def unreached(hosts: Mapping[str, LM]) -> list[str]:
    """The models on which "value at subject" finds nothing to write for single-hop prompts.

    Its value layers end in the last layer, where a push at the subject no longer reaches the token
    that is read.
    """
    return [
        model
        for model, lm in hosts.items()
        if max(preset("ACE", lm).value_layers) == lm.n_layers - 1
    ]
