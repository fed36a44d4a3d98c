"""Section 4.1: where kinds of knowledge are stored, and what zeroing the neurons of one kind does to the others (Table 1, Figure 2)."""

from __future__ import annotations

from random import Random
from typing import Callable, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from .attribution import first_tokens, layer_mass, top_neurons, value_scores
from .evaluate import recall
from .facts import Fact, World
from .lm import LM
from .locate import ablate
from .prompts import single_hop_cloze

Progress = Callable[[int, int], object]


def known_facts(lm: LM, world: World, n: int, seed: int = 0) -> dict[str, list[Fact]]:
    """Up to ``n`` facts of each of the eight categories that the model recalls in canonical wording, drawn with ``seed``.

    The paper keeps the single-hop questions that the model answers (App. C.1).
    """
    chosen = {}
    for category in world.categories():
        facts = list(world.facts_of(category))
        Random(f"{seed}/{category}").shuffle(facts)
        right = recall(lm, [single_hop_cloze(world, fact) for fact in facts], [fact.object for fact in facts]).correct
        chosen[category] = [fact for fact, ok in zip(facts, right) if ok][:n]
    return chosen


def category_scores(lm: LM, world: World, facts: Mapping[str, Sequence[Fact]], norm: str = "frozen", batch_size: int = 16,
                    progress: Progress | None = None) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """Importance of every layer and every FFN neuron for each category: Eq. 9 at the last token of the single-hop prompts.

    Returns: one row a question and layer with columns category, block ("attn", "ffn"), layer, importance (nats, sum over the layer's
    neurons); and by category the FFN neurons' scores summed over its questions, (l, m).   Source: ACE, Table 1.
    """
    rows, neurons, done, total = [], {}, 0, sum(map(len, facts.values()))
    for category, asked in facts.items():
        neurons[category] = torch.zeros(lm.n_layers, lm.d_mlp)
        for start in range(0, len(asked), batch_size):
            part = asked[start:start + batch_size]
            ids, mask = lm.encode([single_hop_cloze(world, fact) for fact in part])
            targets = first_tokens(lm, [fact.object for fact in part])
            for block in ("attn", "ffn"):
                scores = value_scores(lm, ids, mask, targets, of=block, norm=norm)
                rows += [dict(category=category, block=block, layer=layer, importance=value)
                         for by_layer in layer_mass(scores).tolist() for layer, value in enumerate(by_layer)]
            neurons[category] += scores.sum(0).float().cpu()
            done += len(part)
            if progress:
                progress(done, total)
    return pd.DataFrame(rows), neurons


def zeroing(lm: LM, world: World, neurons: Mapping[str, Tensor], facts: Mapping[str, Sequence[Fact]], share: float = 0.01,
            n_random: int = 3, n_unrelated: int = 60, seed: int = 0) -> pd.DataFrame:
    """What is forgotten when a ``share`` of all FFN neurons is zeroed: the category's highest scoring ones, or random ones.

    neurons: scores (l, m) by category.   facts: questions by category that the model answers and that gave no score.
    n_random: random draws.   n_unrelated: questions of the other categories, the same for both.
    Returns: one row a question and intervention: category, zeroed, questions ("related", "unrelated"), drop (1 if the answer is lost).
    Raises ValueError for a share outside (0, 1].   Source: ACE, Figure 2.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share {share} of the neurons is outside (0, 1]")
    n, rows, percent = max(1, round(share * lm.n_layers * lm.d_mlp)), [], f"{100 * share:g} %"
    for category, scores in neurons.items():
        rng = Random(f"{seed}/{category}")
        pool = [fact for other, some in facts.items() if other != category for fact in some]
        asked = {"related": list(facts[category]), "unrelated": rng.sample(pool, min(n_unrelated, len(pool)))}
        flat = [(group, fact) for group, some in asked.items() for fact in some]
        every = [(layer, k) for layer in range(lm.n_layers) for k in range(lm.d_mlp)]
        draws = [(f"random {percent}", rng.sample(every, n)) for _ in range(n_random)]
        for zeroed, chosen in [(f"top {percent}", top_neurons(scores, n)), *draws]:
            with ablate(lm, chosen):
                kept = recall(lm, [single_hop_cloze(world, fact) for _, fact in flat], [fact.object for _, fact in flat]).correct
            rows += [dict(category=category, zeroed=zeroed, questions=group, drop=float(not ok)) for (group, _), ok in zip(flat, kept)]
    return pd.DataFrame(rows)
