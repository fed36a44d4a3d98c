"""Tables 4-6 read twice: as published, and harder, where the published reading is at its ceiling.

A case is edited once, and the edited model is asked with two prompts. The hard reading is of the
other prompt, of long chains only, and of the share of a case's three questions that is answered;
the published one is of few-shot prompts, of all chains, and asks for any of the three answers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from ..records import quoted
from ..study import tables
from ..study.judge import Protocol
from ..study.stats import SHARE, Mean, interval

PUBLISHED = "Few-Shots"
#: Prompt of Table 5 -> what it changes of the protocol.
PROMPTS: dict[str, dict[str, Any]] = {
    PUBLISHED: {},
    "Zero-Shot": {"n_shots": 0},
    "One-Shot": {"n_shots": 1},
    "OOD Few-Shots": {"out_of_domain": True},
}
#: What edits are judged by, the hard reading beside the published one.
METRICS = ("multi_hop", "hard", *(name for name in tables.METRICS if name != "multi_hop"))


def protocols(prompts: Sequence[str], *, n_unrelated: int, seed: int) -> dict[str, Protocol]:
    """The protocol of the published prompt and those of other ``prompts``, by name.

    What an edit should leave alone is asked without any of these prompts, so only the first
    protocol asks for it; of the others, specificity is nan.
    Raises ValueError for an unknown prompt.
    """
    if unknown := [name for name in prompts if name not in PROMPTS]:
        raise ValueError(f"unknown prompt {quoted(unknown[0])}; known: {', '.join(PROMPTS)}")
    first = Protocol(n_unrelated=n_unrelated, seed=seed)
    others = {
        name: replace(first, n_unrelated=0, **PROMPTS[name])
        for name in prompts
        if name != PUBLISHED
    }
    return {PUBLISHED: first, **others}


def share(rows: pd.DataFrame, n_hops: Collection[int]) -> pd.Series:
    """The share of its questions that a case has answered; nan for a chain of another length.

    rows: of ``judge``.   n_hops: of the long chains.
    Raises ValueError if no chain is as long.
    """
    long = rows.n_hops.isin(list(n_hops))
    if not long.any():
        there = ", ".join(map(str, sorted(rows.n_hops.unique())))
        raise ValueError(f"no case has {list(n_hops)} hops; there are cases of {there}")
    return rows.multi_hop_each.where(long)


def beside(rows: pd.DataFrame, prompt: str, n_hops: Collection[int]) -> pd.DataFrame:
    """The rows of the published prompt, with ``share`` of the other prompt as the column "hard".

    rows: of a comparison under ``protocols``.
    """
    keys = [name for name in ("model", "editor", "n_layers", "case_id") if name in rows]
    asked = rows[rows.prompt == prompt].set_index(keys)
    hard = share(asked, n_hops).rename("hard")
    return rows[rows.prompt == PUBLISHED].join(hard, on=keys).reset_index(drop=True)


def only(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of long chains, the hard reading in place of the published one.

    rows: of ``beside``.
    """
    return rows[rows.hard.notna()].assign(multi_hop=rows.hard)


def ceilings(rows: pd.DataFrame) -> dict[str, dict[str, Mean]]:
    """By model, the settings that answer every case as published, and how they do when read hard,
    in percent.   rows: of ``beside``; a setting is named by its column "editor".
    """
    full: dict[str, dict[str, Mean]] = {}
    for model, part in rows.groupby("model", sort=False):
        of = dict(list(part.groupby("editor", sort=False)))
        full[str(model)] = {
            str(name): interval(100 * some.hard, bounds=SHARE)
            for name, some in of.items()
            if some.multi_hop.eq(1).all()
        }
    return full
