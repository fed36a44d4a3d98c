"""Section 4.2: how the answer of a multi-hop question is accumulated, from query neurons to the value neurons that they switch on.

All is read at the last token of the prompt. A question's *value neurons* are its ``n_top`` FFN neurons of greatest I (Eq. 9), its *query
neurons* the ``n_top`` of greatest Q (Eq. 10). Eq. 10 looks only at later layers, so query neurons lie before value neurons by definition:
their distance says something only beside that of queries spread evenly over all earlier layers ("even").
"""

from __future__ import annotations

from operator import itemgetter
from random import Random
from typing import NamedTuple, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..attribution.interventions import ablate
from ..attribution.scores import (
    Neuron,
    first_tokens,
    layer_mass,
    layer_scores,
    query_scores,
    top,
    top_neurons,
    value_scores,
)
from ..model.answers import known_items, recall
from ..model.lm import LM
from ..model.states import Site, last, trace
from ..world.wording import multi_hop_cloze
from ..world.world import World, sample_chains


class Question(NamedTuple):
    """A statement to complete, its answer, the entity between its hops, which it does not name, and the category of the last hop."""

    prompt: str
    answer: str
    implicit: str
    category: str = ""


class Scores(NamedTuple):
    """Importance for n questions, on the CPU; of whole outputs, the attention's first, then the FFN's."""

    value: Tensor  #: I of each FFN neuron, (n, l, m), nats
    query: Tensor  #: Q of each FFN neuron, (n, l, m)
    answer: Tensor  #: log-probability increase of the answer by each layer's whole outputs, (n, 2, l), nats
    implicit: Tensor  #: the same for the implicit subject, (n, 2, l)


def answered(lm: LM, world: World, n: int, seed: int = 0) -> list[Question]:
    """Those of ``n`` two-hop questions of the identification split that the model answers, in the order drawn with ``seed``."""
    asked = [
        Question(
            multi_hop_cloze(world, chain),
            chain.answer,
            chain.facts[0].object,
            world.relations[chain.path[-1]].category,
        )
        for chain in sample_chains(world, "identification", 2, n, Random(seed))
    ]
    return known_items(lm, asked, itemgetter(0, 1))


def score(
    lm: LM, asked: Sequence[Question], n_top: int = 100, norm: str = "frozen", batch_size: int = 16
) -> Scores:
    """Eq. 9 and Eq. 10 for every FFN neuron and question; queries aim at ``n_top`` value neurons. Raises ValueError for no questions."""
    if not asked:
        raise ValueError("no questions to score; give at least one")
    parts = []
    for part in _batches(asked, batch_size):
        ids, mask = lm.encode([q.prompt for q in part])
        targets, between = (
            first_tokens(lm, [getattr(q, name) for q in part]) for name in ("answer", "implicit")
        )
        value = value_scores(lm, ids, mask, targets, norm=norm)
        whole = [
            torch.stack(
                [layer_scores(lm, ids, mask, tokens, of, "whole", norm) for of in ("attn", "ffn")],
                1,
            )
            for tokens in (targets, between)
        ]
        parts.append(
            [
                found.float().cpu()
                for found in (value, query_scores(lm, ids, mask, value, n_top), *whole)
            ]
        )
    return Scores(*map(torch.cat, zip(*parts)))


def by_layer(found: Scores, n_top: int = 100) -> pd.DataFrame:
    """Figure 3, one row a question and layer: increase (nats, of the answer, by the whole FFN), query (sum of Q), neurons (value neurons);
    answer, implicit: what their log-probabilities have gained up to here from attention and FFNs (nats)."""
    n, _, n_layers = found.answer.shape
    columns = dict(
        increase=found.answer[:, 1],
        query=layer_mass(found.query),
        neurons=(top(found.value, n_top) > 0).sum(-1),
        answer=found.answer.sum(1).cumsum(-1),
        implicit=found.implicit.sum(1).cumsum(-1),
    )
    places = dict(question=np.repeat(range(n), n_layers), layer=np.tile(range(n_layers), n))
    return pd.DataFrame(
        places | {name: column.flatten().numpy() for name, column in columns.items()}
    )


def centre(mass: Tensor) -> Tensor:
    """Mean layer, (...), weighted by a layer's mass, below zero as zero.   mass: (..., l)."""
    weights = mass.clamp(min=0).double()
    return (weights * torch.arange(mass.shape[-1])).sum(-1) / weights.sum(-1)


def by_question(found: Scores, n_top: int = 100) -> pd.DataFrame:
    """When things happen, one row a question, in layers.

    query, value: mean layer of the query and value neurons, weighted by score; lag = value - query; even: the lag if all neurons before
    a value neuron queried it alike; peak: the distance between the layers of greatest mass.
    answer, implicit: first layer by which half of the greatest gain is reached (nan without gain).
    ffn_after_attn: layer of the greatest FFN increase minus that of the greatest attention increase.
    tracks: rank correlation over layers of Q and the FFNs' increase of the implicit subject.
    last_share: of the value neurons, in the last layer (%); last_increase: of its FFN, as a share of the greatest (%).
    shared: neurons that are query and value neurons; chance: in random sets; chance_by_layer: with as many neurons in each layer.
    """
    value, query = layer_mass(found.value, n_top), layer_mass(found.query, n_top)
    layers, (n, n_layers, d_mlp) = torch.arange(value.shape[-1]), found.value.shape
    weights, before = (
        value.clamp(min=0) * (layers > 0),
        (layers - 1).clamp(min=0) / 2,
    )  # of each layer, the mean of those before it
    q, v = top(found.query, n_top) > 0, top(found.value, n_top) > 0
    ranks, (attn, ffn) = (
        [pd.DataFrame(x.numpy()).T for x in (layer_mass(found.query), found.implicit[:, 1])],
        found.answer.unbind(1),
    )
    columns = dict(
        query=centre(query),
        value=centre(value),
        even=centre(value) - (weights * before).sum(-1) / weights.sum(-1),
        peak=value.argmax(-1) - query.argmax(-1),
        answer=_half(found.answer),
        implicit=_half(found.implicit),
        ffn_after_attn=ffn.argmax(-1) - attn.argmax(-1),
        last_share=100 * v[:, -1].sum(-1) / v.sum((1, 2)),
        last_increase=100 * ffn[:, -1] / ffn.amax(-1),
        shared=(q & v).sum((1, 2)),
        chance=q.sum((1, 2)) * v.sum((1, 2)) / (n_layers * d_mlp),
        chance_by_layer=(q.sum(-1) * v.sum(-1)).sum(-1) / d_mlp,
    )
    table = pd.DataFrame({name: column.double().numpy() for name, column in columns.items()})
    return table.assign(
        lag=table.value - table["query"], tracks=ranks[0].corrwith(ranks[1], method="spearman")
    )


def silence(
    lm: LM,
    asked: Sequence[Question],
    found: Scores,
    query: Tensor,
    layers: Sequence[int],
    n_zeroed: int,
    n_top: int = 100,
    n_random: int = 2,
    norm: str = "frozen",
    seed: int = 0,
    batch_size: int = 16,
) -> pd.DataFrame:
    """What becomes of the value neurons of other layers when a layer's ``n_zeroed`` neurons of greatest Q, random ones, or all are zeroed.

    A neuron is active while its I is above that of all but the ``n_top`` greatest of the intact model (half-way to the next). With the
    norm "frozen", a last state of another size also moves I in earlier layers.
    found: scores of ``asked``.   query: Q (l, m) to choose by, of other questions.
    Returns: one row a question, ablated layer, draw and other layer: zeroed ("top", "layer", "random"), before, after (neurons), lost
    (1 if the answer is lost), nats (of its log-probability lost). Raises ValueError for a layer or a number of neurons that does not
    exist. Source: ACE, Section 4.2.
    """
    lm.layers(layers)
    if not 0 < n_zeroed <= lm.d_mlp:
        raise ValueError(f"n_zeroed is {n_zeroed}; a layer has 1 to {lm.d_mlp} neurons")
    threshold = found.value.flatten(1).topk(n_top + 1).values[:, -2:].mean(-1)[:, None, None]
    before, rng, frames = (found.value > threshold).sum(-1), Random(seed), []
    prompts, answers = [q.prompt for q in asked], [q.answer for q in asked]
    intact = np.array(recall(lm, prompts, answers).logprob)
    for place in layers:
        best = query[place].sort(descending=True, stable=True).indices[:n_zeroed].tolist()
        draws = [("random", rng.sample(range(lm.d_mlp), n_zeroed)) for _ in range(n_random)]
        for draw, (zeroed, chosen) in enumerate(
            [("top", best), ("layer", range(lm.d_mlp)), *draws]
        ):
            with ablate(lm, [(place, k) for k in chosen]):
                right, logprob = recall(lm, prompts, answers)
                values = [
                    value_scores(
                        lm,
                        *lm.encode([q.prompt for q in part]),
                        first_tokens(lm, [q.answer for q in part]),
                        norm=norm,
                    )
                    for part in _batches(asked, batch_size)
                ]
            after = (torch.cat(values).float().cpu() > threshold).sum(-1)
            of = dict(
                ablated=place,
                draw=draw,
                zeroed=zeroed,
                question=range(len(asked)),
                lost=1.0 - np.array(right),
                nats=intact - np.array(logprob),
            )
            frames += [
                pd.DataFrame(
                    of
                    | dict(
                        layer=layer, before=before[:, layer].numpy(), after=after[:, layer].numpy()
                    )
                )
                for layer in range(lm.n_layers)
                if layer != place
            ]
    return pd.concat(frames, ignore_index=True)


def meanings(
    lm: LM, prompt: str, neurons: Sequence[Neuron | tuple[int, int]], k: int = 10
) -> Tensor:
    """The ``k`` tokens, (n, k), that each neuron's output m_k fc2_k at the end of ``prompt`` raises most, through the final norm's gain."""
    ids, mask = lm.encode([prompt])
    keys = trace(
        lm,
        ids,
        mask,
        [Site("key", layer) for layer in {layer for layer, *_ in neurons}],
        at=last(mask),
    )
    outputs = torch.stack(
        [keys["key", layer][0, index] * lm.weight(layer)[:, index] for layer, index, *_ in neurons]
    )
    return ((outputs * lm.norm.weight) @ lm.head.weight.T).topk(k).indices.cpu()


def readable(
    lm: LM, question: Question, neurons: Sequence[Neuron], k: int = 10, what: str = "answer"
) -> list[bool]:
    """Whether each neuron is interpretable: the first token of the answer (or "implicit") is among its k ``meanings``."""
    return (
        (
            meanings(lm, question.prompt, neurons, k)
            == int(first_tokens(lm, [getattr(question, what)]))
        )
        .any(1)
        .tolist()
    )


def without_readable(
    lm: LM,
    asked: Sequence[Question],
    values: Tensor,
    n_most: int = 27,
    n_top: int = 100,
    k: int = 10,
    n_random: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """What is left of the answer without a question's interpretable value neurons, or as many important ones that are not, or random ones.

    Of the ``n_top`` value neurons the most important of either kind are zeroed, as many of each, at most ``n_most``; ``n_random`` draws
    from all neurons.   values: I (n, l, m) of ``asked``. A question whose value neurons are all of one kind is left out.
    Returns: one row a question and zeroed ("nothing", "interpretable", "uninterpretable", "random"): n, importance (their sum of I),
    logprob and probability of the whole answer, the accuracy of sampling without sampling error. Source: ACE, Section 6.4, Appendix F.
    """
    rows, rng, every = (
        [],
        Random(seed),
        [(layer, index) for layer in range(lm.n_layers) for index in range(lm.d_mlp)],
    )
    for number, (question, scores) in enumerate(zip(asked, values)):
        pool = top_neurons(scores, n_top)
        read = readable(lm, question, pool, k)
        kinds = [[neuron for neuron, ok in zip(pool, read) if ok == kind] for kind in (True, False)]
        if n := min(n_most, *map(len, kinds)):
            draws = [("random", rng.sample(every, n)) for _ in range(n_random)]
            for zeroed, chosen in [
                ("nothing", []),
                ("interpretable", kinds[0][:n]),
                ("uninterpretable", kinds[1][:n]),
                *draws,
            ]:
                with ablate(lm, chosen):
                    logprob = recall(lm, [question.prompt], [question.answer]).logprob[0]
                importance = sum(float(scores[layer, index]) for layer, index, *_ in chosen)
                rows.append((number, zeroed, len(chosen), importance, logprob, np.exp(logprob)))
    return pd.DataFrame(
        rows, columns=["question", "zeroed", "n", "importance", "logprob", "probability"]
    )


def by_token(lm: LM, prompt: str, answer: str, k: int = 6) -> pd.DataFrame:
    """Table 7: at each token of ``prompt``, what all FFNs and all attentions add to the answer's log-probability, and what would come next.

    Returns: columns token, ffn, attn (nats, sums over layers of the whole outputs), next (the ``k`` most probable tokens).
    """
    row = lm.encode([prompt])[0][0].tolist()
    ids, mask = lm.pad([row[:end] for end in range(1, len(row) + 1)])
    added = {
        of: layer_scores(lm, ids, mask, first_tokens(lm, [answer] * len(row)), of, "whole")
        .sum(-1)
        .tolist()
        for of in ("ffn", "attn")
    }
    likely = trace(lm, ids, mask, logits="last")["logits", lm.n_layers].topk(k).indices
    return pd.DataFrame(
        dict(
            token=[words(lm, [token]) for token in row],
            **added,
            next=[words(lm, tokens) for tokens in likely],
        )
    )


def words(lm: LM, tokens: Sequence[int] | Tensor) -> str:
    """Tokens as a list to read, without their blanks."""
    return ", ".join(lm.tokenizer.decode([int(token)]).strip() or "␣" for token in tokens)


def _batches(asked: Sequence[Question], size: int) -> list[Sequence[Question]]:
    return [asked[start : start + size] for start in range(0, len(asked), size)]


def _half(whole: Tensor) -> Tensor:
    """First layer, (n,), by which half of the greatest gain is reached; nan where nothing is gained.   whole: (n, 2, l)."""
    gain = whole.sum(1).cumsum(-1)
    most = gain.amax(-1, keepdim=True)
    return (
        (gain >= most / 2).double().argmax(-1).double().masked_fill(most[:, 0] <= 0, float("nan"))
    )
