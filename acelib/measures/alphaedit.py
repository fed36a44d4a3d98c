"""Appendix J: ACE with AlphaEdit as its backbone, against AlphaEdit and against ACE on PMET.

ACE on AlphaEdit has the layers, prompts and positions of ACE's settings, and the write and the
search of AlphaEdit's; it was not tuned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..editors import preset
from ..editors.base import Editor
from ..model.lm import LM
from ..study import claims, experiments, tables
from ..study.judge import Protocol
from ..study.rows import Experiment
from ..study.stats import SHARE, Mean, interval, paired
from ..study.tables import METRICS as METRICS  # that the editors are compared by
from ..world.world import World

ACE, PLAIN, ON_PMET = "ACE (AlphaEdit)", "AlphaEdit", "ACE (PMET)"
#: Metric -> the facts that it is a share of.
KEPT = {
    "specificity": "facts of the edited and of other relations",
    "specificity_token": "facts about subjects that end in the same token as an edited one",
}
RIVALS = {"alphaedit_backbone": PLAIN, "newer_backbone_helps": ON_PMET}  #: claim -> whom ACE leads


def editors(model: str) -> dict[str, Editor]:
    """The three editors that are compared, with their settings for a model."""
    plain, ace = preset("AlphaEdit", model), preset("ACE", model)
    return {PLAIN: plain, ON_PMET: ace, ACE: ace.on(plain)}


def experiment(
    hosts: Mapping[str, LM],
    world: World,
    *,
    cases: str,
    n_cases: int,
    n_unrelated: int,
    seed: int,
) -> Experiment:
    """The three editors on evaluation cases, balanced over 1 to 4 edits. Rows: ``judge``.

    cases: a file in the shape of MQuAKE, or "" for cases that are made from the world.
    """
    known = experiments.cases_by_model(hosts, world, n_cases, seed, cases)
    protocol = Protocol(n_unrelated=n_unrelated, seed=seed)
    compared = {model: editors(model) for model in hosts}
    series = experiments.comparisons(hosts, world, compared, known, protocol)
    return Experiment("appendix_j_alphaedit", series)


def settings_table(models: Sequence[str]) -> pd.DataFrame:
    """Settings of the three editors, (model, editor) x hyper-parameters."""
    rows = {}
    for model in models:
        for name, editor in editors(model).items():
            stage: Any = editor.writer("query") if hasattr(editor, "writer") else editor
            share = getattr(stage, "null_share", None)
            rows[model, name] = {
                **tables.settings(editor),
                "write": type(stage).__name__,
                "null space, share": "–" if share is None else f"{share:g}",
                "target": stage.objective.kind,
            }
    return pd.DataFrame(rows).T


def leads(rows: pd.DataFrame) -> dict[tuple[str, str], Mean]:
    """ACE on AlphaEdit minus its rivals, points of multi-hop accuracy, by (claim, model)."""
    percent = rows.assign(multi_hop=100 * rows.multi_hop)
    return {
        (claim, model): paired(part, ACE, rival)
        for model, part in percent.groupby("model", sort=False)
        for claim, rival in RIVALS.items()
    }


def gaps(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """ACE on AlphaEdit minus the others in all metrics, by model: ``tables.paired_table``."""
    return {
        model: tables.paired_table(part, ACE) for model, part in rows.groupby("model", sort=False)
    }


def verdict(rows: pd.DataFrame) -> dict[str, dict[str, dict]]:
    """By model and claim, the difference and whether the claim holds: {"gap": ..., "is": ...}."""
    values = leads(rows)
    said = claims.verdicts(values)
    return {
        model: {claim: {"gap": values[claim, model], "is": said[claim, model]} for claim in RIVALS}
        for model in rows.model.unique()
    }


def kept(rows: pd.DataFrame, seed: int = 0) -> dict[str, dict[str, dict[str, Mean]]]:
    """Facts that keep their answer, %, by model, kind of facts (``KEPT``) and editor."""
    return {
        model: {
            facts: {
                name: interval(100 * of[metric], seed, bounds=SHARE)
                for name, of in part.groupby("editor", sort=False)
            }
            for metric, facts in KEPT.items()
        }
        for model, part in rows.groupby("model", sort=False)
    }
