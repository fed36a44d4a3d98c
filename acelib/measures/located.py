"""Which layers query and which hold the value, by attribution: rows of groups of questions.

Stage 1 of ACE for a model: Eq. 9 and Eq. 10 summed over the neurons of a layer and over held-out
two-hop questions. The questions are cut into groups, one row per group, role and layer, so that the
chapters that need only the ranks and the one that shows intervals read the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from ..attribution.layers import Located, locate, questions, rank
from ..model.lm import LM
from ..study.rows import Experiment, Series
from ..world.world import World

N_GROUPS = 8  #: of questions, over which intervals are taken


def experiment(hosts: Mapping[str, LM], world: World, *, n_located: int, seed: int) -> Experiment:
    """Importance by group of questions, role ("query", "value") and layer: rows of ``by_layer``."""
    prompts = questions(world, n_located, seed)
    n_groups = min(N_GROUPS, len(prompts))
    groups = {str(i): prompts[i::n_groups] for i in range(n_groups)}
    series = tuple(_series(*host, groups) for host in hosts.items())
    # Other threads and instruction sets sum in another order.
    return Experiment("03_ace_layers", series, rtol=2e-3, atol=1e-2)


def _series(name: str, lm: LM, groups: Mapping[str, Sequence[tuple[str, str]]]) -> Series:
    """The rows of one model; an item is a group of (prompt, answer)."""

    def compute(items: list) -> list[list[dict]]:
        columns = (zip(*group, strict=True) for group in items)
        return [by_layer(locate(lm, prompts, answers)) for prompts, answers in columns]

    return Series(
        names={"model": name},
        depends={"model": f"{lm.fingerprint} {lm.dtype}"},
        code=("acelib.measures.located",),
        items=groups,
        compute=compute,
        chunk=1,
    )


def by_layer(located: Located) -> list[dict]:
    """One row per role and layer: importance summed over neurons and prompts, number of prompts."""
    sums = {"query": located.query_by_layer, "value": located.value_by_layer}
    return [
        {"role": role, "layer": layer, "importance": value, "n_prompts": located.n_prompts}
        for role, values in sums.items()
        for layer, value in enumerate(values)
    ]


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean importance per question, layers x (model, role).   rows: of ``experiment``."""
    sums = rows.groupby(["model", "role", "layer"], sort=False)[["importance", "n_prompts"]].sum()
    mean = (sums.importance / sums.n_prompts).unstack(["model", "role"])
    return mean.rename_axis(index="layer")


def per_group(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the mean importance per question of each group, as ``figures.layer_bars`` draws
    them.
    """
    return rows.assign(block="ffn", importance=rows.importance / rows.n_prompts)


def ranking(rows: pd.DataFrame, model: str) -> dict[str, tuple[int, ...]]:
    """All layers of a model by role, the most important first; equal ones in ascending order."""
    sums = rows[rows.model == model].groupby(["role", "layer"]).importance.sum()
    return {role: rank(list(sums[role]), len(sums[role])) for role in ("query", "value")}
