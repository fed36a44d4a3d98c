"""The experiments whose rows ship: which module builds each, at the parameters of its chapter."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path

from ..model.lm import LM
from ..model.loading import load
from ..records import quoted
from ..world.world import World, load_world
from .parameters import chapter_of, defaults
from .rows import Experiment

#: Name -> "module:function". The name is the chapter's, or begins with it; the function takes the
#: models by name, the world, and parameters that are called as in the chapter's notebook.
EXPERIMENTS: dict[str, str] = {
    "00_world_averages": "acelib.measures.fact_sites:averages",
    "00_world_edits": "acelib.measures.known:edits",
    "00_world_known": "acelib.measures.known:experiment",
    "00_world_lengths": "acelib.measures.fact_sites:lengths",
    "00_world_severed": "acelib.measures.fact_sites:severed",
    "00_world_sites": "acelib.measures.known:sites",
    "00_world_traces": "acelib.measures.known:traces",
    "01_storage_importances": "acelib.measures.storage:importances",
    "01_storage_neurons": "acelib.measures.storage:neurons",
    "01_storage_zeroing": "acelib.measures.storage:zeroing",
    "02_accumulation_layers": "acelib.measures.accumulation:layers",
    "02_accumulation_silencing": "acelib.measures.accumulation:silencing",
    "02_accumulation_readability": "acelib.measures.accumulation:readability",
    "02_accumulation_spoiling": "acelib.measures.accumulation:spoiling",
    "03_ace": "acelib.measures.ace:experiment",
    "03_ace_answers": "acelib.measures.ace:answers",
    "03_ace_implicit": "acelib.measures.ace:implicit",
    "03_ace_layers": "acelib.measures.located:experiment",
    "03_ace_writes": "acelib.measures.ace:writes",
    "04_ablations_layers": "acelib.measures.ablations:layers",
    "04_ablations_prompts": "acelib.measures.ablations:prompts",
    "04_ablations_readings": "acelib.measures.ablations:readings",
    "05_knowledge_bottleneck_depth": "acelib.measures.depth:windows",
    "05_knowledge_bottleneck_number": "acelib.measures.depth:number",
    "06_ripple": "acelib.measures.ripple:experiment",
    "06_ripple_neurons": "acelib.measures.neurons:experiment",
    "06_ripple_norms": "acelib.measures.neurons:norms",
    "07_where_to_edit": "acelib.measures.grid:experiment",
    "07_where_to_edit_predictors": "acelib.measures.grid_predictors:experiment",
    "08_released_code": "acelib.measures.released_code:experiment",
    "08_released_code_runs": "acelib.measures.released_code:runs",
    "appendix_c_dataset": "acelib.measures.dataset:experiment",
    "appendix_i_latency": "acelib.bench.timings:experiment",
    "appendix_i_latency_released": "acelib.bench.timings:agreement",
    "appendix_j_alphaedit": "acelib.measures.alphaedit:experiment",
    "appendix_l_benchmarks": "acelib.measures.abilities:experiment",
    "appendix_l_robustness_masked": "acelib.measures.robustness:masked",
    "appendix_l_robustness_mismatched": "acelib.measures.robustness:on_mismatched",
    "appendix_l_robustness_ordinary": "acelib.measures.robustness:on_ordinary",
    "appendix_l_robustness_passes": "acelib.measures.robustness:sampled",
    "appendix_l_robustness_prompts": "acelib.measures.robustness:with_examples",
    "appendix_l_robustness_tokens": "acelib.measures.robustness:tokens",
    "appendix_m_derivation": "acelib.measures.derivation:experiment",
    "appendix_m_derivation_written": "acelib.measures.derivation:written",
    "companion_query_localization": "acelib.measures.localization:experiment",
    "companion_query_localization_mapping": "acelib.measures.localization:mapping",
    "companion_query_localization_maps": "acelib.measures.localization_attention:maps",
    "companion_query_localization_modification": "acelib.measures.modification:experiment",
    "companion_query_localization_predominance": (
        "acelib.measures.localization_attention:predominances"
    ),
    "companion_query_localization_synapses": "acelib.measures.localization_attention:synapses",
}


#: Chapter -> "module:function" that tells what its experiments would take: parameters -> lines.
ESTIMATES: dict[str, str] = {}


def estimate(chapter: str, parameters: Mapping[str, object]) -> list[str]:
    """What a chapter would compute with some parameters, in lines.

    Raises ValueError for a chapter that has no estimate.
    """
    if chapter not in ESTIMATES:
        raise ValueError(
            f"no estimate is made of {quoted(chapter)}; of: {', '.join(ESTIMATES) or 'none yet'}"
        )
    module, _, function = ESTIMATES[chapter].partition(":")
    return getattr(import_module(module), function)(parameters)


def names() -> tuple[str, ...]:
    """The experiments, in the order of their names."""
    return tuple(sorted(EXPERIMENTS))


def experiment(name: str, **changes: object) -> Experiment:
    """An experiment at the default parameters of its chapter, but for ``changes``.

    Raises ValueError for an unknown experiment, or a parameter that it does not have.
    """
    function, values = builder(name), defaults(chapter_of(name))
    known = [*_parameters(function), "models"]
    if unknown := [key for key in changes if key not in known]:
        raise ValueError(f"{name} has no parameter {quoted(unknown[0])}; known: {', '.join(known)}")
    values |= changes
    wanted = {key: values[key] for key in _parameters(function)}
    models = values.get("models", values.get("model", []))
    named = models if isinstance(models, (list, tuple)) else [models]
    hosts = {str(model): _host(str(model)) for model in named}
    built = function(hosts, _world(), **wanted)
    if built.name != name:
        raise ValueError(f"the experiment {name!r} calls itself {built.name!r}")
    return built


def builder(name: str) -> Callable[..., Experiment]:
    """The function that builds an experiment. Raises ValueError for an unknown experiment."""
    if name not in EXPERIMENTS:
        raise ValueError(
            f"unknown experiment {quoted(name)}; known: {', '.join(names()) or 'none'}"
        )
    module, _, function = EXPERIMENTS[name].partition(":")
    return getattr(import_module(module), function)


def unread(results: Path, experiments: Mapping[str, Experiment]) -> list[Path]:
    """Files of rows in ``results`` that no series of the experiments reads."""
    stems = {(name, series.stem) for name, one in experiments.items() for series in one.series}
    return [
        path
        for path in sorted(results.glob("*/*.jsonl"))
        if (path.parent.name, path.stem) not in stems
    ]


def _parameters(function: Callable) -> list[str]:
    """The parameters of a function that stand in a notebook: all but the models and the world."""
    return list(inspect.signature(function).parameters)[2:]


@cache
def _host(model: str) -> LM:
    return load(model)


@cache
def _world() -> World:
    return load_world()
