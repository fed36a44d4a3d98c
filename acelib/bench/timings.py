"""The measurements of Appendix I as rows: timings, which nothing compares, and how far the library
is from the released procedures, which is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from math import inf
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from ..editing.keys import contexts
from ..editing.moments import Moments, second_moments
from ..editing.request import requests
from ..editors import preset
from ..model.lm import LM
from ..model.loading import load
from ..study.rows import FOLDERS, Experiment, Folders, Series
from ..world.cases import single_edits
from ..world.text import documents
from ..world.world import World
from . import latency, released_check, speed
from .speed import Timing

OTHER = "qwen3-mini"  #: a second model on which a claim is timed
STORED = 1000  #: edits that AlphaEdit holds
WIDTH = 1024  #: of a random model of 12 layers
SECONDS = ("plain_s", "ours_s", "vectors_s", "update_s", "seconds")
FREE = (0.0, inf)  #: a tolerance that allows every value
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Sizes:
    """The sizes of all measurements, as the chapter's parameters name them."""

    n_facts: int
    n_plain: int
    layer: int
    steps: int
    n_small: int
    repeats: int
    d_ff: int
    growth: int
    seed: int


@dataclass(frozen=True, eq=False)
class Bench:
    """What is timed on one model, at given sizes."""

    name: str
    lm: LM
    world: World
    sizes: Sizes

    def items(self) -> dict[str, dict[str, Any]]:
        """All measurements by name; each depends on the sizes that it holds."""
        at = self.sizes
        searched = {"sample": at.n_plain, "layer": at.layer, "steps": at.steps}
        items: dict[str, dict[str, Any]] = {
            "vectors": {"n": at.n_facts, "seed": at.seed, **searched},
            "bare": {"n": at.n_facts, "seed": at.seed, **searched, "n_prefixes": 0},
            "wide": {"width": WIDTH, "seed": at.seed},
            "update": {"m": at.d_ff, "seed": at.seed},
            "history": {"m": at.d_ff // 2, "stored": STORED, "seed": at.seed},
            "keys": {"n": at.n_facts, "seed": at.seed},
            "moments": {"seed": at.seed},
            "each": {"n": at.n_small, "seed": at.seed},
            "savings": {"n": at.n_small, "layer": at.layer, "seed": at.seed},
            "bound": {"n": at.n_facts, "layer": at.layer, "seed": at.seed},
        }
        for i in range(at.repeats):
            seed = at.seed + 1 + i
            items[f"again {i}"] = {"n": at.n_small, "seed": seed, **searched}
            items[f"inverse {i}"] = {"m": at.d_ff // 2, "seed": at.seed + i}
            for model in self.models:
                stage = {"model": model, "n": at.n_small, "run": i, "seed": at.seed}
                items[f"stages {model} {i}"] = stage
        for what, sizes in latency.SIZES.items():
            for size in sizes[: at.growth]:
                items[f"growth {what} {size}"] = {"what": what, "size": size, "seed": at.seed}
        return items

    @cached_property
    def models(self) -> tuple[str, ...]:
        """The models on which the stages of an edit are timed."""
        return tuple(dict.fromkeys([self.name, OTHER]))

    def measure(self, item: tuple[str, Mapping[str, Any]]) -> Rows:
        """The rows of one measurement."""
        kind, of = item[0].split()[0], dict(item[1])
        rows = self._works[kind](**of)
        here = {"threads": torch.get_num_threads(), "cpu": int(self.lm.device.type == "cpu")}
        return [{**row, **here} for row in rows]

    @cached_property
    def _works(self) -> dict[str, Callable[..., Rows]]:
        timed: dict[str, Callable[..., list[Timing]]] = {
            "vectors": partial(speed.targets, self.lm),
            "bare": partial(speed.targets, self.lm),
            "again": partial(speed.targets, self.lm),
            "wide": partial(latency.wide, self.lm.tokenizer),
            "update": speed.update,
            "inverse": speed.update,
            "history": speed.history,
            "keys": partial(speed.keys, self.lm),
            "moments": partial(speed.covariance, self.lm),
            "each": partial(speed.each, self.lm),
            "savings": partial(speed.savings, self.lm),
        }
        works: dict[str, Callable[..., Rows]] = {
            name: partial(_timing_rows, work) for name, work in timed.items()
        }
        return works | {"bound": self._bound, "stages": self._stages, "growth": self._growth}

    def _bound(self, n: int, layer: int, seed: int) -> Rows:
        """How much faster an exact search can be at most, with and without texts before prompts."""
        facts = requests(single_edits(self.world, n, seed))
        return [
            {
                "n_prefixes": prefixes,
                "bound": speed.bound(self.lm, facts, layer, contexts(self.lm, prefixes, seed=seed)),
            }
            for prefixes in (5, 0)
        ]

    def _stages(self, model: str, n: int, run: int, seed: int) -> Rows:
        """One run of an edit by ACE, its parts timed."""
        lm = self.lm if model == self.name else load(model)
        edits, ace = single_edits(self.world, n, seed), preset("ACE", model)
        spent = latency.stages(lm, ace, edits, self._moments(model, lm, seed))
        return [{"vectors_s": spent["vectors"], "update_s": spent["update"]}]

    def _moments(self, model: str, lm: LM, seed: int) -> Moments:
        return _gathered(lm, self.world, preset("ACE", model).layers, seed)

    def _growth(self, what: str, size: int, seed: int) -> Rows:
        """Both procedures at one point of a growth curve."""
        tokenizer = self.lm.tokenizer
        table = latency.curves(tokenizer, {what: [size]}, repeats=2, seed=seed)
        return table[["what", "size", "procedure", "seconds"]].to_dict("records")


@cache
def _gathered(lm: LM, world: World, layers: tuple[int, ...], seed: int) -> Moments:
    return second_moments(lm, documents(world, 300, seed), layers)


def _timing_rows(work: Callable[..., list[Timing]], **sizes) -> Rows:
    """Timings without what differs from run to run in words."""
    return [
        {
            "name": timing.name,
            "plain_s": timing.baseline_s,
            "ours_s": timing.ours_s,
            "off": timing.off,
            "of": timing.note.rpartition(";")[0],
        }
        for timing in work(**sizes)
    ]


def experiment(  # noqa: PLR0913 - the sizes of a chapter's measurements
    hosts: Mapping[str, LM],
    world: World,
    *,
    model: str,
    n_facts: int,
    n_plain: int,
    layer: int,
    steps: int,
    n_small: int,
    repeats: int,
    d_ff: int,
    growth: int,
    seed: int,
) -> Experiment:
    """All timings on one model. Whatever a clock has measured agrees with everything."""
    sizes = Sizes(n_facts, n_plain, layer, steps, n_small, repeats, d_ff, growth, seed)
    lm = hosts[model] if model in hosts else load(model)
    bench = Bench(model, lm, world, sizes)

    def compute(items: list) -> list[Rows]:
        return [bench.measure(item) for item in items]

    items = {name: (name, of) for name, of in bench.items().items()}
    depends = {"model": f"{lm.fingerprint} {lm.dtype}", "world": world.digest}
    series = Series({"model": model}, depends, (__name__,), items, compute, chunk=1)
    tolerances = {
        **dict.fromkeys((*SECONDS, "threads", "cpu"), FREE),
        "off": (0.0, 1e-2),
        "bound": (1e-9, 0.0),
    }
    return Experiment("appendix_i_latency", (series,), tolerances=tolerances)


def agreement(hosts: Mapping[str, LM], world: World, *, families: list) -> Experiment:
    """The largest relative difference from each released procedure, in float64 and in float32, on a
    tiny random model of each family.
    """
    items = {name: {"comparison": name} for name in released_check.COMPARISONS}
    series = []
    for family in families:

        def compute(part: list[dict], family: str = family) -> list[Rows]:
            return [[released_check.agreement(of["comparison"], family)] for of in part]

        series.append(Series({"family": family}, {}, (__name__,), items, compute, chunk=5))
    tolerances = {"float64": (0.0, 1e-8), "float32": (0.0, 1e-2)}
    return Experiment("appendix_i_latency_released", tuple(series), tolerances=tolerances)


def folders(remeasure: bool) -> Folders:
    """Where timings are read; to measure anew, an empty place."""
    return Folders(None, Path(mkdtemp(prefix="acelib-timings-"))) if remeasure else FOLDERS
