"""The experiments of the chapter on a pretrained model, as the registry builds them.

All but the first are about what the model knows: they read the rows of ``real_known``, or compute
them, before anything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..model.lm import LM
from ..study.rows import Experiment
from ..world.world import World
from . import real_edits, real_storage, real_trace
from .real_known import experiment as known
from .real_known import known_worlds

__all__ = [
    "accumulated",
    "case",
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


def traces(
    hosts: Hosts, world: World, *, n_facts: int, n_traced: int, n_noise: int, seed: int
) -> Experiment:
    """``real_trace.experiment``."""
    some = known_worlds(hosts, world, n_facts=n_facts, seed=seed)
    return real_trace.experiment(hosts, some, n_traced=n_traced, n_noise=n_noise, seed=seed)


def layers(hosts: Hosts, world: World, *, n_facts: int, n_questions: int, seed: int) -> Experiment:
    """``real_storage.layers``."""
    some = known_worlds(hosts, world, n_facts=n_facts, seed=seed)
    return real_storage.layers(hosts, some, n_questions=n_questions, seed=seed)


def importances(
    hosts: Hosts,
    world: World,
    *,
    n_facts: int,
    n_located: int,
    n_judged: int,
    norm: str,
    seed: int,
) -> Experiment:
    """``real_storage.importances``."""
    some = known_worlds(hosts, world, n_facts=n_facts, seed=seed)
    sizes = dict(n_located=n_located, n_judged=n_judged)
    return real_storage.importances(hosts, some, norm=norm, seed=seed, **sizes)


def accumulated(
    hosts: Hosts,
    world: World,
    *,
    n_facts: int,
    n_drawn: int,
    n_top: int,
    norm: str,
    seed: int,
) -> Experiment:
    """``real_storage.accumulated``; all questions that are answered are scored, none is held."""
    some = known_worlds(hosts, world, n_facts=n_facts, seed=seed)
    sizes = dict(n_drawn=n_drawn, n_located=n_drawn, n_judged=0, n_top=n_top)
    return real_storage.accumulated(hosts, some, norm=norm, seed=seed, **sizes)


def case(hosts: Hosts, world: World, *, n_facts: int, norm: str, seed: int) -> Experiment:
    """``real_storage.case``."""
    some = known_worlds(hosts, world, n_facts=n_facts, seed=seed)
    return real_storage.case(hosts, some, norm=norm, seed=seed)


def zeroing(  # noqa: PLR0913 - parameters of the notebook
    hosts: Hosts,
    world: World,
    *,
    n_facts: int,
    n_located: int,
    n_judged: int,
    shares: Sequence[float],
    n_random: int,
    norm: str,
    seed: int,
) -> Experiment:
    """``real_storage.zeroing``."""
    some = known_worlds(hosts, world, n_facts=n_facts, seed=seed)
    sizes = dict(n_located=n_located, n_judged=n_judged, shares=shares, n_random=n_random)
    return real_storage.zeroing(hosts, some, norm=norm, seed=seed, **sizes)


def edits(
    hosts: Hosts,
    world: World,
    *,
    n_facts: int,
    editors: Sequence[str],
    n_cases: int,
    n_kept: int,
    hops: Sequence[int],
    seed: int,
) -> Experiment:
    """``real_edits.experiment``."""
    some = known_worlds(hosts, world, n_facts=n_facts, seed=seed)
    sizes = dict(n_cases=n_cases, n_kept=n_kept, hops=hops)
    return real_edits.experiment(hosts, some, editors=editors, seed=seed, **sizes)


def grid(
    hosts: Hosts,
    world: World,
    *,
    n_facts: int,
    n_grid: int,
    step: int,
    n_kept: int,
    seed: int,
) -> Experiment:
    """``real_edits.grid``."""
    some = known_worlds(hosts, world, n_facts=n_facts, seed=seed)
    return real_edits.grid(hosts, some, n_grid=n_grid, step=step, n_kept=n_kept, seed=seed)
