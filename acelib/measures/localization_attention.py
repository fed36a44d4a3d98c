"""Does attention select the neurons? Query Localization, Section 3.2: predominance of one token,
and knowledge synapses made weaker or stronger; beside them what else may make a fact consistent.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.integrated import Attribution, knowledge_neurons
from ..attribution.synapses import (
    attention,
    knowledge_synapses,
    most_attended,
    predominance,
    scaled_attention,
)
from ..model.answers import recall
from ..model.lm import LM
from ..model.states import Site, last, position_ids, read
from ..study.rows import Experiment, Series
from ..world.paraphrases import Reworded
from ..world.world import World
from .localization import (
    CHAPTER,
    ENHANCED,
    SHARE,
    SUPPRESSED,
    asked,
    attributions,
    drawn,
    moved,
)

OWN, IRRELEVANT = "own", "irrelevant"
#: reading of the most attended token -> settings of ``most_attended``
READINGS: dict[str, dict[str, bool]] = {
    "mean of rows, without the first": {"first": False, "per_row": True},
    "mean of rows": {"first": True, "per_row": True},
    "sum of rows": {"first": True, "per_row": False},
}
N_CHANCE = 200  #: draws of a token of each wording
CONDITIONS = {"as it is": 1.0, "suppressed": SUPPRESSED, "enhanced": ENHANCED}


# ------------------------------------------------------------------------------------ predominance


def predominance_rows(lm: LM, fact: Reworded, seed: int = 0) -> list[dict[str, Any]]:
    """A row for each of ``READINGS``: predominance; chance (the same with a token of each wording
    drawn at random); first (share of wordings whose most attended token is the first).
    """
    ids, mask = lm.encode(fact.prompts)
    weights, rng, rows = attention(lm, ids, mask), random.Random(f"{seed}/{fact.name}"), []
    for name, how in READINGS.items():
        columns = most_attended(weights, mask, **how)
        tokens = ids[range(len(ids)), columns].tolist()
        start = 0 if how["first"] else 1
        texts = [row[:n].tolist()[start:] for row, n in zip(ids, mask.sum(1), strict=True)]
        chance = [predominance([rng.choice(text) for text in texts]) for _ in range(N_CHANCE)]
        rows.append(
            {
                "reading": name,
                "predominance": predominance(tokens),
                "chance": sum(chance) / len(chance),
                "first": float((columns == 0).float().mean()),
            }
        )
    return rows


def about(lm: LM, fact: Reworded) -> dict[str, Any]:
    """What else may make wordings find the same neurons: logprob (mean over the wordings, nats),
    tokens of prompt (mean), subject and answer, and similarity (mean share of the tokens of two
    wordings that both have).
    """
    rows = [set(lm.tokenizer(prompt)["input_ids"]) for prompt in fact.prompts]
    lengths = [len(lm.tokenizer(prompt)["input_ids"]) for prompt in fact.prompts]
    shared = [len(a & b) / len(a | b) for a, b in combinations(rows, 2)]
    said = recall(lm, fact.prompts, [fact.fact.object] * len(fact.prompts))
    return {
        "logprob": sum(said.logprob) / len(said.logprob),
        "prompt_tokens": sum(lengths) / len(lengths),
        "subject_tokens": len(lm.answer_ids(fact.fact.subject)),
        "answer_tokens": len(lm.answer_ids(fact.fact.object)),
        "similarity": sum(shared) / len(shared),
    }


def predominances(
    hosts: Mapping[str, LM],
    world: World,
    *,
    wordings: str,
    n_facts: int,
    n_wordings: int,
    seed: int,
) -> Experiment:
    """Predominance of one token over the wordings of each fact, and the fact's ``about``."""
    series = []
    for name, of in asked(hosts, world, n_facts, n_wordings, seed, wordings).items():

        def compute(part: Sequence[Reworded], lm: LM = of.lm) -> list[list[dict[str, Any]]]:
            return [
                [{**row, **about(lm, one)} for row in predominance_rows(lm, one, seed)]
                for one in part
            ]

        series.append(Series({"model": name}, of.depends(seed), (__name__,), of.items, compute))
    tolerances = {"logprob": (1e-3, 1e-3), "predominance": (0.0, 0.25), "first": (0.0, 0.25)}
    return Experiment(f"{CHAPTER}_predominance", tuple(series), tolerances=tolerances)


# ---------------------------------------------------------------------------------------- synapses


@torch.no_grad()
def read_with(
    lm: LM,
    ids: Int[Tensor, "rows pos"],
    mask: Int[Tensor, "rows pos"],
    answer: str,
    columns: Bool[Tensor, "rows layers heads pos"],
    factor: float,
    renormalise: bool = False,
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows layers d_mlp"]]:
    """Probability of the answer's first token, and the activations of all neurons at the last
    token, with some columns of attention scaled.
    """
    at, keys = last(mask), [Site("key", layer) for layer in range(lm.n_layers)]
    rows = range(len(ids))
    with read(lm, keys) as states, scaled_attention(lm, columns, factor, renormalise):
        hidden = lm.stack(
            input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False
        ).last_hidden_state
    said = lm.head(hidden[rows, at])
    p = said.to(torch.promote_types(said.dtype, torch.float32)).softmax(-1)
    values = torch.stack([states[site][rows, at] for site in keys], 1)
    return p[:, lm.answer_ids(answer)[0]], values


def own_and_irrelevant(
    lm: LM, fact: Reworded, other: Reworded, alpha: float
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Tokens and mask of a fact's wordings, their knowledge synapses, and those of another fact's
    wordings, by place from the start.
    """
    ids, mask = lm.encode(fact.prompts)
    found = {OWN: knowledge_synapses(attention(lm, ids, mask), mask, alpha)}
    theirs_ids, theirs_mask = lm.encode(other.prompts)
    theirs = knowledge_synapses(attention(lm, theirs_ids, theirs_mask), theirs_mask, alpha)
    columns = torch.zeros_like(found[OWN])
    width = min(columns.shape[-1], theirs.shape[-1])
    columns[..., :width] = theirs[..., :width]
    found[IRRELEVANT] = columns & mask.bool()[:, None, None]
    return ids, mask, found


def synapse_rows(
    lm: LM, fact: Reworded, other: Reworded, how: Attribution, share: float, alpha: float
) -> list[dict[str, Any]]:
    """A row for own and irrelevant synapses, as they are and renormalised: columns (mean number),
    overlap (share of the own ones among them); before_value, sup_value, enh_value (mean size of the
    wording's knowledge neurons at the last token); before, sup, enh (mean probability of the
    answer's first token).
    """
    sets = knowledge_neurons(attributions(lm, fact, how)[0], share)
    ids, mask, found = own_and_irrelevant(lm, fact, other, alpha)
    answer = fact.fact.object

    def told(columns: Tensor, factor: float, renormalise: bool) -> tuple[float, float]:
        p, values = read_with(lm, ids, mask, answer, columns, factor, renormalise)
        size = (values.abs() * sets).sum((-2, -1)) / sets.sum((-2, -1)).clamp(min=1)
        return float(size.mean()), float(p.mean())

    value, before = told(found[OWN], 1.0, False)
    rows = []
    for name, columns in found.items():
        both = (columns & found[OWN]).sum() / columns.sum().clamp(min=1)
        for renormalise in (False, True):
            (sup_value, sup), (enh_value, enh) = (
                told(columns, factor, renormalise) for factor in (SUPPRESSED, ENHANCED)
            )
            rows.append(
                {
                    "synapses": name,
                    "renormalised": renormalise,
                    "columns": float(columns.sum()) / len(columns),
                    "overlap": float(both),
                    "before_value": value,
                    "sup_value": sup_value,
                    "enh_value": enh_value,
                    "before": before,
                    "sup": sup,
                    "enh": enh,
                }
            )
    return rows


def synapses(
    hosts: Mapping[str, LM],
    world: World,
    *,
    wordings: str,
    n_facts: int,
    n_wordings: int,
    steps: int,
    alpha: float,
    seed: int,
) -> Experiment:
    """Knowledge neurons and answers with synapses of the query, and of another one, scaled."""
    series, how = [], Attribution(steps=steps)
    for name, of in asked(hosts, world, n_facts, n_wordings, seed, wordings).items():

        def compute(part: list[dict[str, Any]], lm: LM = of.lm) -> list[list[dict[str, Any]]]:
            return [synapse_rows(lm, one["fact"], one["other"], how, SHARE, alpha) for one in part]

        items = {
            one.name: {"fact": one, "other": drawn(of.facts, one, 1, seed)[0]} for one in of.facts
        }
        settings = of.depends(seed, attribution=asdict(how), share=SHARE, alpha=alpha)
        series.append(Series({"model": name}, settings, (__name__,), items, compute))
    names = ("sup", "enh", "sup_value", "enh_value", "before_value", "overlap")
    tolerances = moved(names) | {"columns": (0.0, 3.0)}
    return Experiment(f"{CHAPTER}_synapses", tuple(series), tolerances=tolerances)


# -------------------------------------------------------------------------------------------- maps


def map_rows(
    lm: LM, fact: Reworded, how: Attribution, share: float, alpha: float
) -> list[dict[str, Any]]:
    """A row for the first two wordings and each of ``CONDITIONS``: the neurons of either wording
    (layer, neuron) and their activations' sizes at the last token, with synapses scaled.
    """
    two = Reworded(fact.fact, fact.prompts[:2], fact.group)
    sets = knowledge_neurons(attributions(lm, fact, how)[0][:2], share)
    layer, neuron = sets.any(0).nonzero(as_tuple=True)
    ids, mask, found = own_and_irrelevant(lm, two, two, alpha)
    rows = []
    for name, factor in CONDITIONS.items():
        _, values = read_with(lm, ids, mask, fact.fact.object, found[OWN], factor)
        for wording in range(2):
            size = values[wording, layer, neuron].abs()
            rows.append(
                {
                    "condition": name,
                    "wording": wording,
                    "layer": layer.tolist(),
                    "neuron": neuron.tolist(),
                    "sizes": size.tolist(),
                }
            )
    return rows


def maps(
    hosts: Mapping[str, LM],
    world: World,
    *,
    wordings: str,
    n_wordings: int,
    n_maps: int,
    steps: int,
    alpha: float,
    seed: int,
) -> Experiment:
    """Activations of the neurons of two wordings of the first facts, for pictures."""
    series, how = [], Attribution(steps=steps)
    for name, of in asked(hosts, world, n_maps, n_wordings, seed, wordings).items():

        def compute(part: Sequence[Reworded], lm: LM = of.lm) -> list[list[dict[str, Any]]]:
            return [map_rows(lm, one, how, SHARE, alpha) for one in part]

        settings = of.depends(seed, attribution=asdict(how), share=SHARE, alpha=alpha)
        series.append(Series({"model": name}, settings, (__name__,), of.items, compute))
    return Experiment(f"{CHAPTER}_maps", tuple(series), rtol=1e-3, atol=1e-4)
