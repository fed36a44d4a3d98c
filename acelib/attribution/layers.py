"""Where a model answers: the layers that query and the layers that hold the value.

Attribution sums Eq. 9 and Eq. 10 over prompts and ranks the layers; ``interventions`` checks it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

import torch
from jaxtyping import Float64
from torch import Tensor

from ..model.lm import LM
from ..world.wording import multi_hop_cloze, single_hop
from ..world.world import World, chains, sample_chains, split_of
from .scores import first_tokens, query_scores, top, value_scores

#: Tokens of a prompt by their part in causal tracing.
ROLES = ("first subject", "middle subject", "last subject", "further", "last")


@dataclass(frozen=True, eq=False)
class Located:
    """Scores summed over prompts (float64, on the CPU), and the layers they rank first."""

    #: I of each FFN neuron, nats
    value: Float64[Tensor, "layers d_mlp"]
    #: Q of each FFN neuron
    query: Float64[Tensor, "layers d_mlp"]
    #: how many of the prompts' top value neurons lie in each layer
    value_count_by_layer: tuple[int, ...]
    n_prompts: int
    n_query: int = 3  #: query layers wanted
    n_value: int = 3  #: value layers wanted

    def __add__(self, other: Located) -> Located:
        """Scores of the prompts of both; as many layers are wanted as of the first.

        Raises ValueError for scores of models of different shapes.
        """
        if self.value.shape != other.value.shape:
            raise ValueError(
                f"scores of {tuple(self.value.shape)} and {tuple(other.value.shape)} neurons "
                "do not add up; take one model's"
            )
        counts = zip(self.value_count_by_layer, other.value_count_by_layer, strict=True)
        return replace(
            self,
            value=self.value + other.value,
            query=self.query + other.query,
            value_count_by_layer=tuple(a + b for a, b in counts),
            n_prompts=self.n_prompts + other.n_prompts,
        )

    def __radd__(self, other: int) -> Located:
        """``sum`` of several begins with 0."""
        if other != 0:
            return NotImplemented
        return self

    @property
    def value_by_layer(self) -> tuple[float, ...]:
        """Sum of I over each layer's neurons (Table 1)."""
        return tuple(self.value.sum(1).tolist())

    @property
    def query_by_layer(self) -> tuple[float, ...]:
        """Sum of Q over each layer's neurons."""
        return tuple(self.query.sum(1).tolist())

    @property
    def value_layers(self) -> tuple[int, ...]:
        """The layers that hold the value, best first; equal ones in ascending order."""
        return rank(self.value_by_layer, self.n_value)

    @property
    def query_layers(self) -> tuple[int, ...]:
        """The layers that query, best first; equal ones in ascending order."""
        return rank(self.query_by_layer, self.n_query)


def rank(scores: Sequence[float], n: int) -> tuple[int, ...]:
    """Indices of the n greatest scores, best first; equal ones in ascending order."""
    return tuple(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:n])


def locate(
    lm: LM,
    prompts: Sequence[str],
    answers: Sequence[str],
    n_query: int = 3,
    n_value: int = 3,
    n_top: int = 100,
    batch_size: int = 32,
    progress: Callable[[int, int], object] | None = None,
) -> Located:
    """Query and value layers of a set of prompts.

    Value scores (Eq. 9) and query scores (Eq. 10) of all FFN neurons, summed over prompts.
    prompts, answers: n texts each, an answer follows its prompt after one space.
    n_query, n_value: layers to name of each kind.
    n_top: value neurons per prompt that query scores aim at.
    progress: called with (prompts done, prompts).
    Raises ValueError for no prompts, unequal numbers, an empty answer, or a number below 1.
    Source: ACE, Section 5, Stage 1.
    """
    if not prompts or len(prompts) != len(answers):
        raise ValueError(
            f"{len(prompts)} prompts and {len(answers)} answers: give at least one, "
            "and as many of each"
        )
    for name, n in dict(
        n_query=n_query, n_value=n_value, n_top=n_top, batch_size=batch_size
    ).items():
        if n < 1:
            raise ValueError(f"{name} is {n}; it is at least 1")
    targets = first_tokens(lm, answers)
    value, query = torch.zeros(2, lm.n_layers, lm.d_mlp, dtype=torch.float64)
    count = torch.zeros(lm.n_layers, dtype=torch.long)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        ids, mask = lm.encode([prompts[i] for i in rows])
        scores = value_scores(lm, ids, mask, targets[rows])
        value += scores.double().sum(0).cpu()
        query += query_scores(lm, ids, mask, scores, n_top).double().sum(0).cpu()
        count += (top(scores, n_top) != 0).sum((0, 2)).cpu()
        if progress:
            progress(start + len(rows), len(order))
    return Located(value, query, tuple(count.tolist()), len(prompts), n_query, n_value)


def questions(
    world: World, n: int, seed: int = 0, category: str | None = None, single: bool = False
) -> list[tuple[str, str]]:
    """``n`` prompts with their answers, or as many as there are, to locate layers with.

    Held-out two-hop statements, or single facts.
    category: of the last hop, one of the eight; None for all facts.
    Raises ValueError for an unknown category, or one in which no held-out chain of two hops ends.
    """
    pool, rng = world.facts if category is None else world.facts_of(category), Random(seed)
    if single:
        return [single_hop(world, fact) for fact in rng.sample(pool, min(n, len(pool)))]
    if category is None:
        sample = sample_chains(world, "identification", 2, n, rng)
    else:
        last = set(pool)
        ending = [
            chain
            for chain in chains(world, 2)
            if chain.facts[-1] in last and split_of(chain) == "identification"
        ]
        sample = rng.sample(ending, min(n, len(ending)))
    if not sample:
        raise ValueError(
            f"no held-out chain of two hops ends in a fact of category {category}; ask single facts"
        )
    return [(multi_hop_cloze(world, chain), chain.answer) for chain in sample]
