"""Multi-hop accuracy by the number and by the depth of the layers that an editor writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from ..editors import ACE, preset
from ..model.lm import LM
from ..paper.published import published
from ..study import claims
from ..study.experiments import cases_by_model, comparisons
from ..study.judge import Protocol
from ..study.rows import Experiment, Series, table
from ..study.stats import SHARE, Mean, interval, paired
from ..study.tables import METRICS, NAMES
from ..world.world import World
from . import harder, located

#: Editors that write a range of layers.
RANGES = ("MEMIT", "PMET")
#: Position of an edit -> its name in a figure.
PLACES = {
    "PMET at subject": "PMET at the subject's last token",
    "PMET at last": "at the prompt's last token",
}
ALONE = "ACE (value edit only)"

Numbered = dict[tuple[str, int], Any]  #: {(editor, number of layers): editor with its layers}


# ---------------------------------------------------------------- settings


def with_layers(
    model: str, n_layers: int, steps: Sequence[int], ranking: Mapping[str, Sequence[int]]
) -> Numbered:
    """ROME, and MEMIT, PMET and ACE on several numbers of layers.

    n_layers: of the model.   steps: numbers of layers, counted from that of ACE's preset.
    ranking: of all layers, by role; the least important query layer goes first. MEMIT and PMET
    write a range that begins where that of the preset begins, or ends at the last layer. ACE is
    left out where it would have fewer layers than value layers, or more than there are below them.
    """
    ace: ACE = preset("ACE", model)
    editors: Numbered = {("ROME", 1): preset("ROME", model)}
    for n in sorted(preset_size(model) + step for step in steps):
        for name in RANGES:
            editor = preset(name, model)
            first = max(0, min(editor.layers[0], n_layers - n))
            editors[name, n] = replace(editor, layers=tuple(range(first, first + n)))
        n_query, order = n - len(ace.value_layers), query_order(ace, ranking["query"])
        if n_query == 0:
            editors["ACE", n] = replace(ace, stages=("value",))
        elif 0 < n_query <= len(order):
            editors["ACE", n] = ace.at(query_layers=tuple(sorted(order[:n_query])))
    return editors


def preset_size(model: str) -> int:
    """How many layers ACE's preset writes, query and value layers."""
    ace: ACE = preset("ACE", model)
    return len(ace.query_layers) + len(ace.value_layers)


def query_order(ace: ACE, ranking: Sequence[int]) -> list[int]:
    """The layers that ACE may query with: its own, then the others below its value layers, each the
    most important first.
    """
    others = [i for i in range(min(ace.value_layers)) if i not in ace.query_layers]
    return [i for layers in (ace.query_layers, others) for i in sorted(layers, key=ranking.index)]


def sizes_without_query(editors: Numbered) -> list[int]:
    """The numbers of layers that leave ACE no query edit."""
    return [n for (name, n), one in editors.items() if name == "ACE" and "query" not in one.stages]


def sizes_with_query(editors: Numbered) -> list[int]:
    """The numbers of layers that leave ACE both edits."""
    return [n for (name, n), one in editors.items() if name == "ACE" and "query" in one.stages]


def by_model(
    hosts: Mapping[str, LM], world: World, *, steps: Sequence[int], n_located: int, seed: int
) -> dict[str, Numbered]:
    """``with_layers`` of each model."""
    scores = table(located.experiment(hosts, world, n_located=n_located, seed=seed))
    return {
        model: with_layers(model, host.n_layers, steps, located.ranking(scores, model))
        for model, host in hosts.items()
    }


# ---------------------------------------------------------------- experiments


def number(  # noqa: PLR0913 - the parameters of the chapter
    hosts: Mapping[str, LM],
    world: World,
    *,
    steps: Sequence[int],
    cases: str,
    n_cases: int,
    n_located: int,
    n_unrelated: int,
    hard: str,
    seed: int,
) -> Experiment:
    """Editors on several numbers of layers (Table 6), asked with the prompt ``hard`` too; the
    column n_layers is text.
    """
    settings = by_model(hosts, world, steps=steps, n_located=n_located, seed=seed)
    editors = {
        model: {f"{name} {n}": editor for (name, n), editor in of.items()}
        for model, of in settings.items()
    }
    known = cases_by_model(hosts, world, n_cases, seed, cases)
    protocols = harder.protocols([hard], n_unrelated=n_unrelated, seed=seed)
    series = comparisons(hosts, world, editors, known, protocols)
    renamed = tuple(_numbered(one, "n_layers") for one in series)
    return Experiment("05_knowledge_bottleneck_number", renamed)


def windows(
    hosts: Mapping[str, LM],
    world: World,
    *,
    starts: Sequence[int],
    window: int,
    cases: str,
    n_cases: int,
    n_unrelated: int,
    seed: int,
) -> Experiment:
    """PMET on a window of layers that moves up, at the subject's and at the prompt's last token;
    the column first, its first layer, is text.
    """
    editors = {
        model: {
            f"{name} {start}": replace(
                preset("PMET", model), layers=tuple(range(start, start + window)), position=position
            )
            for name, position in zip(PLACES, ("subject_last", "last"), strict=True)
            for start in starts
            if start + window <= host.n_layers
        }
        for model, host in hosts.items()
    }
    known = cases_by_model(hosts, world, n_cases, seed, cases)
    protocol = Protocol(n_unrelated=n_unrelated, seed=seed)
    series = comparisons(hosts, world, editors, known, protocol)
    renamed = tuple(_numbered(one, "first") for one in series)
    return Experiment("05_knowledge_bottleneck_depth", renamed)


def _numbered(series: Series, column: str) -> Series:
    """A series whose editor's name ends in a number, with that number in a column of its own."""
    editor, _, n = series.names["editor"].rpartition(" ")
    return replace(series, names={**series.names, "editor": editor, column: n})


# ---------------------------------------------------------------- tables


def layers(editors: Mapping[str, Numbered]) -> pd.DataFrame:
    """(model, "editor, number") x layers as text."""
    lines = {}
    for model, of in editors.items():
        for (name, n), one in of.items():
            note = " (no query edit)" * (name == "ACE" and n in sizes_without_query(of))
            lines[model, f"{name}, {n}{note}"] = {"layers": ", ".join(map(str, one.layers))}
    return pd.DataFrame(lines).T


def curves(rows: pd.DataFrame, editors: Mapping[str, Numbered]) -> pd.DataFrame:
    """Rows whose ACE without a query edit is called ``ALONE``: a line of its own."""
    alone = [
        name == "ACE" and n in sizes_without_query(editors[model])
        for model, name, n in zip(rows.model, rows.editor, rows.n_layers, strict=True)
    ]
    return rows.assign(editor=rows.editor.mask(alone, ALONE))


def table_6(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Editors x (source, number of layers): published and measured multi-hop accuracy, in percent,
    and the hard reading of the measured one ("hard, 4").

    rows: of ``number``, as ``harder.beside`` gives them.
    """
    parts = {
        f"published {large}": part.pivot(index="editor", columns="n_layers", values="value")
        for large, part in published(6).groupby("model", sort=False)
    }
    for model, part in rows.groupby("model", sort=False):
        groups = part.groupby(["editor", "n_layers"])
        usual, hard = (
            groups[metric].apply(lambda hits: _share(hits, seed)).unstack()
            for metric in ("multi_hop", "hard")
        )
        parts[f"measured {model}"] = usual.join(hard.rename(columns="hard, {}".format))
    names = ["ROME", *RANGES, "ACE"]
    reindexed = {source: part.reindex(names) for source, part in parts.items()}
    return pd.concat(reindexed, axis=1, names=["source", "layers"])


def by_depth(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """(editor, first layer) x (model, metric), in percent.   rows: of ``windows``."""
    parts = {}
    for model, part in rows.groupby("model", sort=False):
        groups = part.groupby(["editor", "first"])
        columns = {
            NAMES.get(metric, metric): groups[metric].apply(lambda hits: _share(hits, seed))
            for metric in METRICS
        }
        parts[f"measured {model}"] = pd.DataFrame(columns, dtype=object)
    return pd.concat(parts, axis=1)


def _share(hits: pd.Series, seed: int) -> Mean:
    return interval(100 * hits, seed, bounds=SHARE)


# ---------------------------------------------------------------- what the rows say


def ends(editors: Numbered, preset_n: int) -> tuple[int, int]:
    """Between which two numbers of layers the claims are judged: two fewer than ACE's preset and
    the preset, or as many fewer as leave ACE a query edit; if none, the preset and the most.
    """
    both = sizes_with_query(editors)
    if min(both) < preset_n:
        return max(min(both), preset_n - 2), preset_n
    return preset_n, max(both)


def claim_values(
    rows: pd.DataFrame, editors: Mapping[str, Numbered]
) -> dict[tuple[str, str], Mean]:
    """What the rows say of the paper's claims: {(claim, model): value}.

    rows: of ``number``.   editors: ``by_model``.
    """
    names = rows.editor + " " + rows.n_layers.astype(str)
    percent = rows.assign(multi_hop=100 * rows.multi_hop, editor=names)
    values: dict[tuple[str, str], Mean] = {}
    for model, part in percent.groupby("model", sort=False):
        n = preset_size(model)
        few, most = ends(editors[model], n)
        means = part.groupby("editor", sort=False).multi_hop.mean()
        best = means[[f"{name} {n}" for name in RANGES]].idxmax()
        values |= {
            ("baselines_saturate", model): paired(part, f"PMET {most}", f"PMET {few}"),
            ("ace_gains_from_layers", model): paired(part, f"ACE {most}", f"ACE {few}"),
            ("ace_leads_at_equal_layers", model): paired(part, f"ACE {n}", best),
        }
    return values


def sentence_numbers(
    values: Mapping[tuple[str, str], Mean],
    rows: pd.DataFrame,
    editors: Mapping[str, Numbered],
    seed: int,
) -> dict:
    """What the sentences of the chapter say by model: values and verdicts of claims, between which
    numbers of layers, accuracy of ROME, and numbers of layers that leave ACE no query edit.
    """
    verdicts = claims.verdicts(values)
    rome = rows[rows.editor == "ROME"].groupby("model", sort=False).multi_hop
    return {
        "models": {
            model: {
                "ends": ends(of, preset_size(model)),
                "gaps": {claim: value for (claim, m), value in values.items() if m == model},
                "verdicts": {claim: word for (claim, m), word in verdicts.items() if m == model},
                "lacking": sorted(sizes_without_query(of)),
            }
            for model, of in editors.items()
        },
        "rome": {model: _share(hits, seed) for model, hits in rome},
    }


def hard_numbers(rows: pd.DataFrame, editors: Mapping[str, Numbered]) -> dict:
    """What the sentences of the chapter say of the hard reading: settings that answer every case as
    published ("ceilings"), and the values of the claims read hard, {claim: {model: value}}.

    rows: of ``number``, as ``harder.beside`` gives them.   editors: ``by_model``.
    """
    values = claim_values(harder.only(rows), editors)
    named = rows.assign(editor=rows.editor + " " + rows.n_layers.astype(str))
    return {
        "ceilings": harder.ceilings(named),
        "hard": {
            claim: {model: value for (name, model), value in values.items() if name == claim}
            for claim in dict.fromkeys(name for name, _ in values)
        },
    }


def best_windows(rows: pd.DataFrame) -> dict[str, dict[str, dict]]:
    """By model and editor, the window of highest accuracy: "share" in percent, "first" layer; of
    equal ones the lowest.   rows: of ``windows``.
    """
    means = 100 * rows.groupby(["model", "editor", "first"], sort=False).multi_hop.mean()
    return {
        model: {
            editor: {
                "share": means[model, editor].max(),
                "first": int(means[model, editor].sort_index().idxmax()),
            }
            for editor in means[model].index.unique(0)
        }
        for model in means.index.unique(0)
    }
