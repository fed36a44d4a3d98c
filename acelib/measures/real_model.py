"""The experiments of the chapter on a pretrained model, as the registry builds them.

All but the first are about what the model knows: they read the rows of ``real_known``, or compute
them, before anything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from ..model.lm import LM
from ..study.rows import Experiment
from ..study.stats import Mean
from ..world.world import World
from . import real_edits, real_storage, real_trace
from .real_known import experiment as known
from .real_known import known_worlds

__all__ = [
    "accumulated",
    "case",
    "claim_values",
    "coarse_step",
    "edits",
    "grid",
    "importances",
    "known",
    "known_worlds",
    "layers",
    "traces",
    "zeroing",
]
Hosts = Mapping[str, LM]
N_NOISE = 3  #: noise samples of a trace
N_TOP = 100  #: value neurons, and query neurons, of a question
NORM = "frozen"  #: how the final norm is read
HOPS = (2, 3)  #: facts of a case
N_KEPT = 8  #: facts of each of three kinds that must stay
N_COARSE = 8  #: layers of the grid, about


def traces(hosts: Hosts, world: World, *, n_facts: int, n_traced: int, seed: int) -> Experiment:
    """``real_trace.experiment``."""
    some = known_worlds(hosts, world, n_facts=n_facts, seed=seed)
    return real_trace.experiment(hosts, some, n_traced=n_traced, n_noise=N_NOISE, seed=seed)


def layers(hosts: Hosts, world: World, *, n_facts: int, n_questions: int, seed: int) -> Experiment:
    """``real_storage.layers``."""
    some = known_worlds(hosts, world, n_facts=n_facts, seed=seed)
    return real_storage.layers(hosts, some, n_questions=n_questions, seed=seed)


def importances(
    hosts: Hosts, world: World, *, n_facts: int, n_located: int, seed: int
) -> Experiment:
    """``real_storage.importances``; twice as many questions are judged as located."""
    some = known_worlds(hosts, world, n_facts=n_facts, seed=seed)
    sizes = dict(n_located=n_located, n_judged=2 * n_located)
    return real_storage.importances(hosts, some, norm=NORM, seed=seed, **sizes)


def accumulated(hosts: Hosts, world: World, *, n_facts: int, n_drawn: int, seed: int) -> Experiment:
    """``real_storage.accumulated``; all statements that are completed are scored, none is held."""
    some = known_worlds(hosts, world, n_facts=n_facts, seed=seed)
    sizes = dict(n_drawn=n_drawn, n_located=n_drawn, n_judged=0, n_top=N_TOP)
    return real_storage.accumulated(hosts, some, norm=NORM, seed=seed, **sizes)


def case(hosts: Hosts, world: World, *, n_facts: int, seed: int) -> Experiment:
    """``real_storage.case``."""
    some = known_worlds(hosts, world, n_facts=n_facts, seed=seed)
    return real_storage.case(hosts, some, norm=NORM, seed=seed)


def zeroing(
    hosts: Hosts,
    world: World,
    *,
    n_facts: int,
    n_located: int,
    shares: Sequence[float],
    n_random: int,
    seed: int,
) -> Experiment:
    """``real_storage.zeroing``; twice as many questions are judged as located."""
    some = known_worlds(hosts, world, n_facts=n_facts, seed=seed)
    sizes = dict(n_located=n_located, n_judged=2 * n_located, n_random=n_random)
    return real_storage.zeroing(hosts, some, shares=shares, norm=NORM, seed=seed, **sizes)


def edits(
    hosts: Hosts, world: World, *, n_facts: int, editors: Sequence[str], n_cases: int, seed: int
) -> Experiment:
    """``real_edits.experiment``."""
    some = known_worlds(hosts, world, n_facts=n_facts, seed=seed)
    sizes = dict(n_cases=n_cases, n_kept=N_KEPT, seed=seed)
    return real_edits.experiment(hosts, some, editors=editors, hops=HOPS, **sizes)


def claim_values(
    rows: pd.DataFrame, points: pd.DataFrame, known: Mapping[str, World], n_cases: int, seed: int
) -> dict[tuple[str, str], Mean]:
    """The values of the paper's claims that the chapter hands over, by (claim, model).

    rows: of ``edits``.   points: ``real_storage.lost``.
    """
    values = real_storage.claim_values(points, seed)
    return values | real_edits.claim_values(rows, known, n_cases, HOPS, seed)


def grid(hosts: Hosts, world: World, *, n_facts: int, n_grid: int, seed: int) -> Experiment:
    """``real_edits.grid``, on about ``N_COARSE`` layers of every model."""
    some = known_worlds(hosts, world, n_facts=n_facts, seed=seed)
    steps = {name: coarse_step(lm.n_layers) for name, lm in hosts.items()}
    return real_edits.grid(hosts, some, n_grid=n_grid, steps=steps, n_kept=N_KEPT, seed=seed)


def coarse_step(n_layers: int) -> int:
    """Layers between two of the grid."""
    return max(1, round(n_layers / N_COARSE))
