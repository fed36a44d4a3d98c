"""Appendix C: cases made from the world, and of which of them a model knows every fact."""

from __future__ import annotations

from collections.abc import Mapping

from ..model.lm import LM
from ..records import Case
from ..study.experiments import depends, known_cases
from ..study.rows import Experiment, Series
from ..world.cases import make_cases
from ..world.world import World


def experiment(hosts: Mapping[str, LM], world: World, *, n_cases: int, seed: int) -> Experiment:
    """One row per model and case of the evaluation split: ``known``, whether the model recalls
    every single-hop fact of the case, old and new.
    """
    cases = {str(case.case_id): case for case in make_cases(world, "evaluation", n_cases, seed)}
    series = []
    for name, lm in hosts.items():

        def compute(part: list[Case], lm: LM = lm) -> list[list[dict]]:
            known = {case.case_id for case in known_cases(lm, part)}
            return [[{"known": case.case_id in known}] for case in part]

        settings = depends(lm, world, None, None)
        series.append(Series({"model": name}, settings, (__name__,), cases, compute, chunk=60))
    return Experiment("appendix_c_dataset", tuple(series))
