"""Where a model keeps single facts: which FFN outputs, averaged away, take the answer with them.

Every layer is averaged away alone, all layers but the first together, and those of the lower middle
together at the subject's last token, where ROME, MEMIT and PMET write; beside it at some other
token of the same prompt. A model on which none of it costs an answer has nothing to edit there.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ..attribution.averages import Lengths, mean_outputs, said_without
from ..attribution.interventions import causal_trace
from ..attribution.layers import ROLES
from ..model.lm import LM
from ..records import Fact
from ..study.experiments import depends
from ..study.rows import Experiment, Series
from ..world.text import documents
from ..world.wording import single_hop
from ..world.world import World
from .known import known_of

N_TEXTS = 200  #: that outputs are averaged over
#: What a model must reach for facts to sit where editors write: name of ``shares`` -> least share.
BARS = {
    "ffns_needed": 0.80,
    "lower_middle_needed": 0.40,
    "another_token_spared": 0.90,
    "embedding_share": 0.10,
}
EVERYWHERE, SUBJECT, OTHER = "every token", "subject's last token", "another token"


@dataclass(frozen=True)
class Condition:
    """Which FFN outputs are averaged away: of some layers, at some tokens of the prompt."""

    name: str
    layers: tuple[int, ...]
    tokens: str = EVERYWHERE


def conditions(n_layers: int) -> tuple[Condition, ...]:
    """Those that are measured: none, groups of layers, every layer alone."""
    middle = tuple(range(1, n_layers // 2 + 1))
    return (
        Condition("none", ()),
        Condition("all but 0", tuple(range(1, n_layers))),
        Condition("lower middle", middle, SUBJECT),
        Condition("lower middle", middle, OTHER),
        *(
            Condition(str(layer), (layer,), tokens)
            for tokens in (EVERYWHERE, SUBJECT)
            for layer in range(n_layers)
        ),
    )


def places(
    lm: LM, prompt: str, subject: str, chosen: Sequence[Condition], rng: random.Random
) -> Bool[Tensor, "conditions pos layers"]:
    """At which tokens and layers each condition averages.

    "another token": one of the prompt's others, drawn by ``rng``.
    Raises ValueError if the subject is not in the prompt, or is all of it.
    """
    if subject not in prompt:
        raise ValueError(f"subject {subject!r} is not in the prompt {prompt!r}")
    n = len(lm.tokenizer(prompt)["input_ids"])
    last = lm.token_at(prompt, prompt.index(subject) + len(subject))
    others = [token for token in range(n) if token != last]
    if not others:
        raise ValueError(f"prompt {prompt!r} has no token beside the subject's last one")
    tokens = {EVERYWHERE: range(n), SUBJECT: [last], OTHER: [rng.choice(others)]}
    where = torch.zeros(len(chosen), n, lm.n_layers, dtype=torch.bool)
    for i, condition in enumerate(chosen):
        for layer in condition.layers:
            where[i, list(tokens[condition.tokens]), layer] = True
    return where


def fact_rows(
    lm: LM, world: World, fact: Fact, means: Tensor, seed: int = 0
) -> list[dict[str, Any]]:
    """A row for each condition: layers, tokens, right (0 or 1), logprob (nats)."""
    prompt, answer = single_hop(world, fact)
    chosen = conditions(lm.n_layers)
    rng = random.Random(f"{seed}/{prompt}")
    said = said_without(lm, prompt, answer, means, places(lm, prompt, fact.subject, chosen, rng))
    return [
        {"layers": c.name, "tokens": c.tokens, "right": int(right), "logprob": float(logprob)}
        for c, right, logprob in zip(chosen, said.correct, said.logprob, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class _Host:
    """A model whose mean outputs are found when a fact first needs them."""

    lm: LM
    world: World
    seed: int

    @cached_property
    def averages(self) -> tuple[Tensor, Lengths]:
        return mean_outputs(self.lm, documents(self.world, N_TEXTS))

    def rows(self, facts: Sequence[Fact]) -> list[list[dict[str, Any]]]:
        means, _ = self.averages
        return [fact_rows(self.lm, self.world, fact, means, self.seed) for fact in facts]

    def lengths(self, layers: Sequence[int]) -> list[list[dict[str, Any]]]:
        _, found = self.averages
        return [
            [{"added": float(found.added[layer]), "onto": float(found.onto[layer])}]
            for layer in layers
        ]


def shares(lm: LM, world: World, n_facts: int = 150, seed: int = 0) -> dict[str, float]:
    """Of the facts that a model knows, shares by bar; zeros if it knows none.

    ``ffns_needed``: lost without the FFN outputs of all layers but the first;
    ``lower_middle_needed``: lost without those of layers 1 to L / 2 at the subject's last token;
    ``another_token_spared``: kept without them at some other token; ``embedding_share``: length of
    what FFN 0 adds to, over the length of what it adds.
    """
    host, facts = _Host(lm, world, seed), drawn_facts(world, n_facts, seed)
    answers = [one for one in host.rows(facts) if one[0]["right"]]

    def kept(layers: str, tokens: str) -> float:
        right = [
            row["right"]
            for one in answers
            for row in one
            if (row["layers"], row["tokens"]) == (layers, tokens)
        ]
        return sum(right) / len(right)

    found = dict.fromkeys(BARS, 0.0)
    if answers:
        _, lengths = host.averages
        found["ffns_needed"] = 1 - kept("all but 0", EVERYWHERE)
        found["lower_middle_needed"] = 1 - kept("lower middle", SUBJECT)
        found["another_token_spared"] = kept("lower middle", OTHER)
        found["embedding_share"] = float(lengths.onto[0] / lengths.added[0])
    return found


def drawn_facts(world: World, n: int, seed: int = 0) -> list[Fact]:
    """``n`` facts, known or not."""
    return random.Random(f"{seed}/averages").sample(world.facts, n)


def averages(hosts: Mapping[str, LM], world: World, *, n_averaged: int, seed: int) -> Experiment:
    """Answers to facts, known or not, with FFN outputs averaged away."""
    facts = drawn_facts(world, n_averaged, seed)
    items = {f"{fact.subject} | {fact.relation}": fact for fact in facts}
    series = []
    for name, lm in hosts.items():
        settings = {**depends(lm, world, None, None), "seed": str(seed)}
        names = {"model": name, "part": "facts"}
        host = _Host(lm, world, seed)
        series.append(Series(names, settings, (__name__,), items, host.rows, 50))
    tolerances = {"right": (0.0, 1.0), "logprob": (1e-3, 1e-3)}
    return Experiment("00_world_averages", tuple(series), tolerances=tolerances)


def lengths(hosts: Mapping[str, LM], world: World) -> Experiment:
    """Mean lengths of FFN outputs, and of what they are added to, by layer."""
    series = []
    for name, lm in hosts.items():
        settings = depends(lm, world, None, None)
        names = {"model": name, "part": "lengths"}
        items = {str(layer): layer for layer in range(lm.n_layers)}
        series.append(
            Series(names, settings, (__name__,), items, _Host(lm, world, 0).lengths, lm.n_layers)
        )
    return Experiment("00_world_lengths", tuple(series), rtol=1e-3)


SEVERED: dict[str, str | None] = {"nothing": None, "FFN": "mlp", "attention": "attn"}


def severed_rows(lm: LM, fact: Fact, prompt: str, seed: int = 0) -> list[dict[str, Any]]:
    """A row for each of ``SEVERED``: probabilities of the answer, ``clean``, ``corrupted``, and
    with the state at the subject's last token put back after each layer (columns "0", "1", ...).

    Source: Meng et al. (2022), Figure 3.
    """
    rows, role = [], ROLES.index("last subject")
    for name, kind in SEVERED.items():
        trace = causal_trace(lm, prompt, fact.subject, fact.object, seed=seed, sever=kind)
        by_layer = {str(layer): p for layer, p in enumerate(trace.restored[role].tolist())}
        ends = {"clean": trace.clean, "corrupted": trace.corrupted}
        rows.append({"severed": name, **ends, **by_layer})
    return rows


def severed(hosts: Mapping[str, LM], world: World, *, n_traced: int, seed: int) -> Experiment:
    """Causal traces of known facts of every category, with the layers above cut off."""
    names = list(world.categories())
    items = {name: {"category": name, "facts": n_traced // len(names)} for name in names}
    series = []
    for name, lm in hosts.items():

        def compute(part: list[dict[str, Any]], lm: LM = lm) -> list[list[dict[str, Any]]]:
            return [
                [
                    row
                    for fact in known_of(lm, world, of["category"], of["facts"], seed)
                    for row in severed_rows(lm, fact, single_hop(world, fact)[0], seed)
                ]
                for of in part
            ]

        settings = {**depends(lm, world, None, None), "seed": str(seed)}
        series.append(
            Series({"model": name, "part": "severed"}, settings, (__name__,), items, compute, 1)
        )
    return Experiment("00_world_severed", tuple(series), rtol=1e-3, atol=1e-5)
