"""Readings of the query score side by side: does it matter which one finds the query layers?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from ..attribution.layers import rank
from ..attribution.readings import BLOCKS, output_query_scores
from ..attribution.scores import first_tokens, value_scores
from ..model.lm import LM

#: Eq. 10, and what the released notebooks change of it one after the other.
READINGS: Mapping[str, Mapping[str, Any]] = {
    "Eq. 10": dict(n=100, divided=False),
    "top 30": dict(n=30, divided=False),
    "top 30, divided": dict(n=30, divided=True),
    "top 30, divided, value vector as key": dict(n=30, divided=True, key="fc2"),
}


def readings(
    lm: LM, prompts: Sequence[str], answers: Sequence[str], batch_size: int = 32
) -> pd.DataFrame:
    """Query scores summed over prompts: (block, layer) x ``READINGS``.

    prompts, answers: as many of each; an answer follows its prompt after one space.
    Raises ValueError for no prompts, or unequal numbers.
    """
    if not prompts or len(prompts) != len(answers):
        raise ValueError(
            f"{len(prompts)} prompts and {len(answers)} answers: give at least one, "
            "and as many of each"
        )
    targets = first_tokens(lm, answers)
    sums = {name: torch.zeros(len(BLOCKS), lm.n_layers).double() for name in READINGS}
    for start in range(0, len(prompts), batch_size):
        some = slice(start, start + batch_size)
        ids, mask = lm.encode(prompts[some])
        values = value_scores(lm, ids, mask, targets[some])
        for name, settings in READINGS.items():
            scores = output_query_scores(lm, ids, mask, values, **settings)
            sums[name] += scores.double().sum(0).cpu()
    index = pd.MultiIndex.from_product([BLOCKS, range(lm.n_layers)], names=["block", "layer"])
    return pd.DataFrame({name: total.flatten().tolist() for name, total in sums.items()}, index)


def comparison(scores: pd.DataFrame, n: int = 3) -> pd.DataFrame:
    """By block and reading: "layers", the n first, best first; "shared", how many of them are among
    Eq. 10's; "correlation", Spearman's with Eq. 10 over layers.   scores: of ``readings``.
    """
    first = next(iter(READINGS))
    lines = {}
    for block, part in scores.groupby(level="block", sort=False):
        best = {name: rank(list(column), n) for name, column in part.items()}
        for name, column in part.items():
            lines[block, name] = {
                "layers": ", ".join(map(str, best[name])),
                "shared": len({*best[name]} & {*best[first]}),
                "correlation": column.rank().corr(part[first].rank()),
            }
    return pd.DataFrame.from_dict(lines, orient="index")
