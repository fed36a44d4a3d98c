"""What the rows of ``abilities`` say: Tables 12 and 19, changes by editing, sentences."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..paper.published import published
from ..study import claims
from ..study.rows import Experiment
from ..study.stats import POINTS, SHARE, Mean, interval
from ..study.tables import BASELINE
from .abilities import KINDS, PUBLISHED, RELATIVES, SAID

SCORED = [task for task, benchmark in RELATIVES.items() if benchmark]  #: by right and wrong
CLAIMS = {"ordinary": "benchmarks_kept", "mismatched": "benchmarks_kept_counterfactual"}
LABELS = {"ordinary": "ordinary (Table 12)", "mismatched": "mismatched (Table 19)"}


def first_documents(experiment: Experiment) -> pd.DataFrame:
    """The first document of each local task, of the first model."""
    items: Any = experiment.series[0].items
    table = {}
    for name, benchmark in RELATIVES.items():
        doc = json.loads(items[f"{name} 0"].document)
        choices, label = doc.get("choices", []), doc.get("label", 0)
        others = [choice for i, choice in enumerate(choices) if i != label]
        table[name] = {
            "stands for": benchmark or "–",
            "asked": doc.get("question") or doc["text"],
            "right": choices[label] if choices else doc.get("target", "–"),
            "alternatives": ", ".join(others) or "–",
        }
    return pd.DataFrame(table).T


def changes(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of all tasks, in percent or bits per 1000 bytes, with the change by editing.

    The unedited model stands before the editors of each kind of edits; its change is zero. Returns
    columns model, edits, editor, task, part, doc, metric, value, change.
    """
    rows, keys = rows[rows.task != SAID], ["part", "doc"]
    parts = []
    for _, of_model in rows.groupby("model", sort=False):
        groups = dict(list(of_model.groupby(["edits", "editor"], sort=False)))
        base = groups.pop(("none", BASELINE))
        before = base.set_index(keys).value
        for kind in KINDS:
            parts.append(base.assign(edits=kind, change=0.0))
            for (of, _), part in groups.items():
                if of == kind:
                    old = before.reindex(pd.MultiIndex.from_frame(part[keys])).to_numpy()
                    parts.append(part.assign(change=part.value.to_numpy() - old))
    table = pd.concat(parts, ignore_index=True).drop(columns="item")
    factor = (table.metric == "bits_per_byte").map({True: 1000, False: 100})
    table[["value", "change"]] = table[["value", "change"]].mul(factor, axis=0)
    return table


def said(rows: pd.DataFrame, seed: int = 0) -> dict[tuple[str, str, str], Mean]:
    """Share of the edits themselves that the edited model says, %, by (model, edits, editor)."""
    part = rows[rows.task == SAID]
    return {
        key: interval(100 * of.value, seed, bounds=SHARE)
        for key, of in part.groupby(["model", "edits", "editor"], sort=False)
    }


def by_task(changed: pd.DataFrame) -> pd.DataFrame:
    """Changes with one column per task, one row per document of an editor, for a figure."""
    edited = changed[changed.editor != BASELINE]
    keys = ["model", "edits", "editor", "part", "doc", "task"]
    wide = edited.set_index(keys)["change"].unstack(sort=False).reset_index()
    return wide.replace({"edits": LABELS})


def labels(changed: pd.DataFrame) -> dict[str, str]:
    """The unit of each task's change, for a figure."""
    units = dict.fromkeys(changed.task.unique(), "points") | {"text": "bits per 1000 bytes"}
    return {task: f"{task} ({units[task]})" for task in changed.task.unique()}


def beside(
    changed: pd.DataFrame,
    efficacy: Mapping[tuple[str, str, str], Mean],
    number: int,
    kind: str,
    seed: int = 0,
) -> pd.DataFrame:
    """Table 12 or 19: accuracies, published and measured, and the share of edits that are said.

    efficacy: ``said``. Returns the unedited model and the editors x (source, task).
    """
    part = changed[changed.edits == kind]
    tasks = [task for task in dict.fromkeys([*SCORED, *part.task]) if task != "text"]
    columns = {"published Qwen3-8B": _published(number)}
    for model, of in part.groupby("model", sort=False):
        cells: dict[str, dict[str, Mean | None]] = {}
        for name, one in of.groupby("editor", sort=False):
            cells[name] = {
                task: interval(one.value[one.task == task], seed, bounds=SHARE) for task in tasks
            }
            cells[name][SAID] = efficacy.get((model, kind, name))
        columns[f"measured {model}"] = pd.DataFrame(cells, dtype=object).T
    return pd.concat(columns, axis=1).reindex(list(changed.editor.unique()))


def _published(number: int) -> pd.DataFrame:
    table = published(number).pivot(index="editor", columns="metric", values="value")
    return table.reindex(columns=list(PUBLISHED))


def accuracy_changes(changed: pd.DataFrame, seed: int = 0) -> dict[tuple[str, str, str], Mean]:
    """Change of accuracy over the three local tasks that have one, by (model, edits, editor)."""
    part = changed[(changed.editor != BASELINE) & changed.task.isin(SCORED)]
    return {
        key: interval(of.change, seed, bounds=POINTS)
        for key, of in part.groupby(["model", "edits", "editor"], sort=False)
    }


def changes_table(changed: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Change by editing, (edits, editor) x (model, task), and the mean of the local accuracies."""
    edited, means, table = changed[changed.editor != BASELINE], accuracy_changes(changed, seed), {}
    mean = "mean of " + ", ".join(SCORED)
    for model, of in edited.groupby("model", sort=False):
        groups = dict(list(of.groupby(["edits", "editor"], sort=False)))
        for task in edited.task.unique():
            bounds = POINTS if task != "text" else None
            table[model, task] = {
                key: interval(part.change[part.task == task], seed, bounds=bounds)
                for key, part in groups.items()
            }
        table[model, mean] = {key: means[model, *key] for key in groups}
    return pd.DataFrame(table, dtype=object)


def claim_values(changed: pd.DataFrame, seed: int = 0) -> dict[tuple[str, str], Mean]:
    """Values of the claims, by (claim, model): change of accuracy by ACE. Empty without ACE."""
    means = accuracy_changes(changed, seed)
    return {
        (claim, model): means[model, kind, "ACE"]
        for kind, claim in CLAIMS.items()
        for model in changed.model.unique()
        if (model, kind, "ACE") in means
    }


def verdict(changed: pd.DataFrame, seed: int = 0) -> dict[str, dict]:
    """The page's sentences, by model.

    ace: by kind of edits, the change by ACE and whether the claim holds, {"change", "is"}; empty
    without ACE.   least: the smallest mean change; worst: (editor, kind) of it, if one is lost.
    """
    means, values = accuracy_changes(changed, seed), claim_values(changed, seed)
    held, result = claims.verdicts(values), {}
    for model in changed.model.unique():
        of_model = {(name, kind): mean for (of, kind, name), mean in means.items() if of == model}
        least = min(mean.mean for mean in of_model.values())
        result[model] = {
            "ace": {
                kind: {"change": values[claim, model], "is": held[claim, model]}
                for kind, claim in CLAIMS.items()
                if (claim, model) in values
            },
            "least": least,
            "worst": [key for key, mean in of_model.items() if mean.mean == least < 0],
        }
    return result


def values_table(changed: pd.DataFrame) -> pd.DataFrame:
    """Means of all tasks, (model, edits, editor) x tasks."""
    keys = ["model", "edits", "editor", "task"]
    return changed.groupby(keys, sort=False)["value"].mean().unstack(sort=False)


def efficacy_table(efficacy: Mapping[tuple[str, str, str], Mean]) -> pd.DataFrame:
    """Means of ``said``."""
    return pd.DataFrame({SAID: {key: mean.mean for key, mean in efficacy.items()}})
