"""What the chapter on a pretrained model would compute, and what it would take, by a model's shape.

Times are core-seconds, measured on SmolLM2-135M (one thread of a server CPU, float32, both cores
busy) and scaled by the number of parameters, which is what forwards and backwards grow with. They
are good to a factor of two or so. An accelerator takes its own rate: ``Part.petaflop`` says how
much there is to compute. Memory is that of the weights, of the second moments and of a search.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..model.shape import Shape, shape_of
from .real_model import N_NOISE, coarse_step

PARAMETERS = 134_515_008  #: of the model that was timed
RATE = 60e9  #: floating-point operations a core-second there
N_FACTS = 3427  #: of the world
N_CATEGORIES = 9  #: the eight, and two hops
KNOWN = 0.25  #: of the facts, about, that a small model says
#: core-seconds on the model that was timed, and of what
EACH = {
    "fact in three forms": 0.43,
    "fact, kind and noise sample traced": 4.6,
    "question scored": 25.0,
    "question scored in attention": 8.0,
    "question recalled": 0.07,
    "case judged": 4.9,
    "layer searched": 2.5,
    "pair judged": 0.6,
}
#: core-seconds of one case by editor
EDITOR = {
    "FT": 1.6,
    "KN": 4.0,
    "ROME": 7.9,
    "MEMIT": 7.6,
    "PMET": 5.2,
    "AlphaEdit": 7.6,
    "IFMET": 7.1,
    "ACE": 8.1,
    "ReleasedACE": 7.0,
}
TOKENS = 68_000  #: of the prose that second moments are taken over
MOMENT = 2.7e-3  #: core-seconds a token, of all layers
BYTES = 4  #: of a weight in float32


@dataclass(frozen=True)
class Part:
    """One experiment of the chapter."""

    name: str
    items: int
    what: str  #: an item is
    core_s: float  #: all of them

    @property
    def petaflop(self) -> float:
        """How much there is to compute, 1e15 floating-point operations."""
        return self.core_s * RATE / 1e15


def parts(parameters: Mapping[str, Any], shape: Shape) -> list[Part]:
    """The experiments of the chapter at some parameters, on a model of some shape."""
    p, grown = parameters, shape.parameters / PARAMETERS
    n_facts = p["n_facts"] or N_FACTS
    n_known = round(KNOWN * n_facts)
    located = min(N_CATEGORIES - 1, n_known) * p["n_located"]
    judged = EACH["question recalled"] * (2 * p["n_located"] + 60)
    conditions = (N_CATEGORIES - 1) * len(p["shares"]) * (1 + 2 * p["n_random"])
    editors = sum(EDITOR.get(name, 7.0) for name in p["editors"])
    rounds = 1 + len(p["editors"])
    coarse = len(range(0, shape.n_layers, coarse_step(shape.n_layers)))
    per_pair = (coarse + 1) ** 2 * EACH["pair judged"]
    tracing = 3 * N_NOISE * EACH["fact, kind and noise sample traced"]
    in_grid = p["n_grid"] * (2 * coarse * EACH["layer searched"] + per_pair)
    planned = [
        ("known", n_facts, "facts", n_facts * EACH["fact in three forms"]),
        ("traces", p["n_traced"], "facts", p["n_traced"] * tracing),
        ("layers", N_CATEGORIES * p["n_questions"], "questions", 0.0),
        ("importances", located, "questions", located * EACH["question scored in attention"]),
        ("zeroing", conditions, "conditions", conditions * judged),
        ("accumulation", p["n_drawn"], "questions", 0.0),
        ("case", 1, "question", 2 * EACH["question scored in attention"]),
        ("moments", TOKENS, "tokens", TOKENS * MOMENT),
        ("edits", p["n_cases"] * rounds, "cases x editors", 0.0),
        ("grid", p["n_grid"], "cases", in_grid),
    ]
    scored = EACH["question scored"]
    more = {
        "layers": N_CATEGORIES * p["n_questions"] * scored,
        "importances": located * scored,
        "accumulation": p["n_drawn"] * scored,
        "edits": p["n_cases"] * (editors + rounds * EACH["case judged"]),
    }
    return [
        Part(name, items, what, grown * (core_s + more.get(name, 0.0)))
        for name, items, what, core_s in planned
    ]


def memory(shape: Shape) -> dict[str, float]:
    """GB in float32: of the weights, of the second moments of all layers (float64), and of one
    search (activations of a batch of 8 prompts of 32 tokens, kept for the backward).
    """
    search = 8 * 32 * shape.n_layers * (10 * shape.d_model + 4 * shape.d_mlp) * BYTES
    return {
        "weights": shape.parameters * BYTES / 1e9,
        "second moments": shape.n_layers * shape.d_mlp**2 * 8 / 1e9,
        "search": search / 1e9 + 8 * 32 * shape.vocabulary * BYTES / 1e9,
    }


def estimate(parameters: Mapping[str, Any]) -> list[str]:
    """What would be computed, line by line, for every model that the parameters name.

    Raises ValueError for a model whose shape is not known here.
    """
    lines = []
    for model in parameters["models"]:
        shape = shape_of(model)
        found, needed = parts(parameters, shape), memory(shape)
        lines.append(
            f"{model}: {shape.parameters / 1e6:,.0f} million parameters, {shape.n_layers} layers "
            f"of {shape.d_mlp:,} neurons, {shape.vocabulary:,} tokens"
        )
        lines += [
            f"  {part.name}: {part.items:,} {part.what}, about {part.core_s:,.0f} core-seconds"
            for part in found
        ]
        total, work = sum(part.core_s for part in found), sum(part.petaflop for part in found)
        lines.append(
            f"  in all about {total / 3600:,.1f} core-hours ({work:,.2f} PFLOP), less what rows "
            "already hold"
        )
        listed = ", ".join(f"{name} {size:,.1f}" for name, size in needed.items())
        lines.append(f"  memory, GB in float32: {listed}")
    return lines
