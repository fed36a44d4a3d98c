"""Where a model answers: the layers that query and the layers that hold the value, by attribution and by intervention.

Attribution sums Eq. 9 and Eq. 10 over prompts and ranks the layers. Interventions check it: ``causal_trace`` puts clean states back
into a run whose subject is drowned in noise (Meng et al., 2022), ``ablate`` silences neurons.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Callable, Iterable, Iterator, NamedTuple, Sequence

import torch
from torch import Tensor

from .attribution import first_tokens, query_scores, top, value_scores
from .facts import World, chains, sample_chains, split_of
from .lm import LM
from .prompts import multi_hop_cloze, single_hop_cloze
from .trace import Site, trace

#: Tokens of a prompt by their part in causal tracing.
ROLES = ("first subject", "middle subject", "last subject", "further", "last")


@dataclass(frozen=True, eq=False)
class Located:
    """Scores summed over prompts (float64, on the CPU), and the layers they rank first."""

    value: Tensor  #: I of each FFN neuron, (l, m), nats
    query: Tensor  #: Q of each FFN neuron, (l, m)
    value_count_by_layer: tuple[
        int, ...
    ]  #: how many of the prompts' top value neurons lie in each layer
    n_prompts: int
    n_query: int = 3  #: query layers wanted
    n_value: int = 3  #: value layers wanted

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
    norm: str = "frozen",
    row: str = "gate",
    batch_size: int = 32,
    progress: Callable[[int, int], object] | None = None,
    budget: int = 2**22,
) -> Located:
    """Query and value layers of a set of prompts: value scores (Eq. 9) and query scores (Eq. 10) of all FFN neurons, summed over prompts.

    prompts, answers: n texts each, an answer follows its prompt after one space.   n_query, n_value: layers to name of each kind.
    n_top: value neurons a prompt that query scores aim at.   norm, budget, row: as in ``value_scores``, ``query_scores``.
    progress: called with (prompts done, prompts).
    Raises ValueError for no prompts, unequal numbers, an empty answer, or a number below 1. Source: ACE, Section 5, Stage 1.
    """
    if not prompts or len(prompts) != len(answers):
        raise ValueError(
            f"{len(prompts)} prompts and {len(answers)} answers: give at least one, and as many of each"
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
        scores = value_scores(lm, ids, mask, targets[rows], norm=norm, budget=budget)
        value += scores.double().sum(0).cpu()
        query += query_scores(lm, ids, mask, scores, n_top, row).double().sum(0).cpu()
        count += (top(scores, n_top) != 0).sum((0, 2)).cpu()
        if progress:
            progress(start + len(rows), len(order))
    return Located(value, query, tuple(count.tolist()), len(prompts), n_query, n_value)


def questions(
    world: World, n: int, seed: int = 0, category: str | None = None, single: bool = False
) -> list[tuple[str, str]]:
    """``n`` prompts with their answers, or as many as there are, to locate layers with: held-out two-hop statements, or single facts.

    category: of the last hop, one of the eight; None for all facts.
    Raises ValueError for an unknown category, or one in which no held-out chain of two hops ends.
    """
    pool, rng = world.facts if category is None else world.facts_of(category), Random(seed)
    if single:
        return [
            (single_hop_cloze(world, fact), fact.object)
            for fact in rng.sample(pool, min(n, len(pool)))
        ]
    if category is None:
        chosen = sample_chains(world, "identification", 2, n, rng)
    else:
        last = set(pool)
        chosen = [
            chain
            for chain in chains(world, 2)
            if chain.facts[-1] in last and split_of(chain) == "identification"
        ]
        chosen = rng.sample(chosen, min(n, len(chosen)))
    if not chosen:
        raise ValueError(
            f"no held-out chain of two hops ends in a fact of category {category}; ask single facts"
        )
    return [(multi_hop_cloze(world, chain), chain.answer) for chain in chosen]


class CausalTrace(NamedTuple):
    """Probabilities of the answer's first token."""

    clean: float  #: the prompt as it is
    corrupted: float  #: noise on the subject, mean over noise samples
    restored: Tensor  #: (5, l) by ``ROLES`` and layer: noise on the subject, the clean state put back; nan where no token has the role


@torch.no_grad()
def causal_trace(
    lm: LM,
    prompt: str,
    subject: str,
    answer: str,
    kind: str = "out",
    noise: float = 3.0,
    n_noise: int = 10,
    seed: int = 0,
    window: int = 10,
) -> CausalTrace:
    """Which states carry the answer: corrupt the subject with Gaussian noise, put back one clean state, and read the answer's probability.

    kind: the state put back at one token, the block output "out" of one layer, or "mlp" or "attn" outputs of ``window`` layers around it.
    noise: standard deviation of the noise in those of the embedding matrix.   n_noise: samples, the same ones for every state.
    One forward pass a layer, whose rows are tokens x samples. Tokens before the subject cannot see it and are left out.
    Raises ValueError if the subject is not in the prompt, the answer is empty, or a number is out of range.
    Source: Meng et al. (2022), Section 2.1.
    """
    if kind not in ("out", "mlp", "attn"):
        raise ValueError(f"kind {kind!r} cannot be restored; allowed: 'out', 'mlp', 'attn'")
    if not subject or subject not in prompt:
        raise ValueError(f"subject {subject!r} is not in the prompt {prompt!r}")
    if n_noise < 1 or window < 1 or not noise >= 0:
        raise ValueError(
            f"noise {noise}, n_noise {n_noise}, window {window}: noise is at least 0, the others at least 1"
        )
    start = prompt.index(subject)
    first, final = lm.token_at(prompt, start + 1), lm.token_at(prompt, start + len(subject))
    target = int(first_tokens(lm, [answer]))
    ids, mask = lm.encode([prompt])
    end, n_layers, logits = ids.shape[1] - 1, lm.n_layers, Site("logits", lm.n_layers)
    clean = trace(lm, ids, mask, [Site(kind, layer) for layer in range(n_layers)], logits="last")
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(
        n_noise, final - first + 1, lm.d_model, generator=generator, dtype=torch.float64
    )
    samples = (samples * noise * float(lm.embed.weight.double().std())).to(lm.device, lm.dtype)

    def probabilities(layers: Iterable[int], tokens: Sequence[int]) -> Tensor:
        """Mean probability of the answer for each token, its clean states put back at these layers."""
        row = torch.arange(len(tokens) * n_noise, device=lm.device)
        column = torch.tensor(tokens, device=lm.device).repeat_interleave(n_noise)

        def corrupt(h: Tensor) -> Tensor:
            h = h.clone()
            h[:, first : final + 1] += samples.repeat(len(tokens), 1, 1)
            return h

        patches = {Site("in", 0): corrupt}
        for site in (Site(kind, layer) for layer in layers):
            patches[site] = lambda h, state=clean[site][0, column]: h.index_put(
                (row, column), state
            )
        found = trace(
            lm, ids.expand(len(row), -1), mask.expand(len(row), -1), patches=patches, logits="last"
        )[logits]
        return found.softmax(-1)[:, target].view(len(tokens), n_noise).mean(1).cpu()

    tokens = list(range(first, end + 1))
    around = lambda layer: (
        [layer]
        if kind == "out"
        else range(max(0, layer - window // 2), min(n_layers, layer - (-window // 2)))
    )
    by_token = torch.stack([probabilities(around(layer), tokens) for layer in range(n_layers)], 1)
    roles = (
        [first] if first < final else [],
        range(first + 1, final),
        [final],
        range(final + 1, end),
        [end] if end > final else [],
    )
    restored = torch.stack([by_token[[t - first for t in role]].mean(0) for role in roles])
    return CausalTrace(
        float(clean[logits].softmax(-1)[0, target]), float(probabilities([], [end])), restored
    )


@contextmanager
def ablate(lm: LM, neurons: Iterable[tuple[int, int] | tuple[int, int, float]]) -> Iterator[LM]:
    """The model with the coefficients m_k of some FFN neurons at zero, at all positions, for the length of a ``with``.

    neurons: (layer, index), or the ``Neuron`` of ``top_neurons``. Raises ValueError for a neuron that the model does not have.
    """
    silent: dict[int, list[int]] = {}
    for layer, index, *_ in neurons:
        lm.layers([layer])
        if not 0 <= index < lm.d_mlp:
            raise ValueError(
                f"neuron {index} of layer {layer} does not exist: the FFN has neurons 0 to {lm.d_mlp - 1}"
            )
        silent.setdefault(layer, []).append(index)
    hooks = []
    try:
        for layer, indices in silent.items():
            index = torch.tensor(indices, device=lm.device)
            hooks.append(
                lm.fc2(layer).register_forward_pre_hook(
                    lambda _, args, index=index: (args[0].index_fill(-1, index, 0.0),)
                )
            )
        yield lm
    finally:
        for hook in hooks:
            hook.remove()
