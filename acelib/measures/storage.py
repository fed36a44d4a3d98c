"""Section 4.1: where kinds of knowledge are stored, and what zeroing the neurons of one kind does
to the others. The rows of Table 1 and Figure 2; ``storage_analysis`` says what follows from them.

Facts that a model recalls are parted in two: the *located* ones have their layers and neurons
scored (Eq. 9, at the last token of the prompt), the *judged* ones are asked with neurons zeroed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from ..attribution.interventions import ablate
from ..attribution.scores import first_tokens, layer_mass, top_neurons, value_scores
from ..model.answers import known_items, recall
from ..model.lm import LM
from ..records import Fact
from ..study.rows import Experiment, Series
from ..world.wording import single_hop
from ..world.world import World
from .once import Once

BLOCKS = ("attn", "ffn")
BATCH = 16  #: questions that are scored at once
UNRELATED = 60  #: questions of other categories that are asked with neurons zeroed
CODE = (__name__,)


@dataclass(frozen=True)
class Question:
    """A fact as a statement to complete."""

    category: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Condition:
    """Neurons to zero, and the questions that are asked then."""

    category: str
    zeroed: str  #: "top 1 %" or "random 1 %"
    n: int  #: neurons
    random: tuple[tuple[int, int], ...]  #: the random ones as (layer, index)
    located: tuple[Question, ...]  #: where there are none: whose top neurons to take
    related: tuple[Question, ...]
    unrelated: tuple[Question, ...]


class Parts(NamedTuple):
    """What a model recalls, by category."""

    located: dict[str, list[Question]]
    judged: dict[str, list[Question]]


# ---------------------------------------------------------------- questions


def known_facts(lm: LM, world: World, n: int, seed: int = 0) -> dict[str, list[Fact]]:
    """Up to ``n`` facts of each of the eight categories that the model recalls in canonical
    wording, drawn with ``seed``.

    The paper keeps the single-hop questions that the model answers (App. C.1).
    """
    known = {}
    for category in world.categories():
        facts = list(world.facts_of(category))
        Random(f"{seed}/{category}").shuffle(facts)
        known[category] = known_items(lm, facts, partial(single_hop, world))[:n]
    return known


def parts(lm: LM, world: World, n_located: int, n_judged: int, seed: int) -> Parts:
    """Up to ``n_located`` and ``n_judged`` questions of each category; no question is in both.

    A category that has fewer is parted in the same proportion; one with none to locate is left out.
    """
    return _parts(lm, lm.fingerprint, world, n_located, n_judged, seed)


def all_parts(
    hosts: Mapping[str, LM], world: World, n_located: int, n_judged: int, seed: int
) -> dict[str, Parts]:
    """``parts`` by model."""
    return {name: parts(lm, world, n_located, n_judged, seed) for name, lm in hosts.items()}


@lru_cache(maxsize=8)
def _parts(lm: LM, fingerprint: str, world: World, n_located: int, n_judged: int, seed: int):
    located, judged, n = {}, {}, n_located + n_judged
    for category, facts in known_facts(lm, world, n, seed).items():
        questions = [Question(category, *single_hop(world, fact)) for fact in facts]
        if cut := round(len(questions) * n_located / n):
            located[category], judged[category] = questions[:cut], questions[cut:]
    return Parts(located, judged)


# ---------------------------------------------------------------- experiments


def importances(
    hosts: Mapping[str, LM], world: World, *, n_located: int, n_judged: int, norm: str, seed: int
) -> Experiment:
    """Importance of every layer for every located question (Table 1).

    Rows: category, block ("attn", "ffn"), layer, importance (nats, sum over the layer's neurons).
    """
    series = []
    for model, lm in hosts.items():
        located = parts(lm, world, n_located, n_judged, seed).located
        items = {_id(question): question for some in located.values() for question in some}
        compute = partial(_importances, lm, norm)
        depends = {"model": lm.fingerprint, "norm": norm}
        series.append(Series({"model": model}, depends, CODE, items, compute, chunk=BATCH))
    tolerances = {"importance": (1e-3, 1e-3)}
    return Experiment("01_storage_importances", tuple(series), tolerances=tolerances)


def neurons(
    hosts: Mapping[str, LM],
    world: World,
    *,
    n_located: int,
    n_judged: int,
    share: float,
    norm: str,
    seed: int,
) -> Experiment:
    """The FFN neurons of greatest score of every category, as many as ``share`` of them all.

    Rows: category, layer, neurons (their indices in ascending order); one row per layer.
    Raises ValueError for a share outside (0, 1].
    """
    series = []
    for model, lm in hosts.items():
        located = parts(lm, world, n_located, n_judged, seed).located
        n = count(share, lm.n_layers * lm.d_mlp)
        items = {
            category: {"category": category, "n": n, "located": tuple(some)}
            for category, some in located.items()
        }
        compute = partial(_top_neurons, lm, norm)
        depends = {"model": lm.fingerprint, "norm": norm}
        series.append(Series({"model": model}, depends, CODE, items, compute, chunk=1))
    return Experiment("01_storage_neurons", tuple(series))


def zeroing(
    hosts: Mapping[str, LM],
    world: World,
    *,
    n_located: int,
    n_judged: int,
    share: float,
    n_random: int,
    norm: str,
    seed: int,
) -> Experiment:
    """What is forgotten when a ``share`` of all FFN neurons is zeroed: the category's highest
    scoring ones, or ``n_random`` times random ones of all layers.

    Rows: category, zeroed, questions ("related", "unrelated"), prompt, drop (1 if the answer is
    lost); one row per question and condition. Raises ValueError for a share outside (0, 1].
    Source: ACE, Figure 2.
    """
    series = []
    for model, lm in hosts.items():
        known = parts(lm, world, n_located, n_judged, seed)
        items = {
            f"{condition.category}, {condition.zeroed}, draw {i}": condition
            for category in known.located
            for i, condition in enumerate(conditions(lm, known, category, share, n_random, seed))
        }
        compute = partial(_zeroing, lm, norm)
        depends = {"model": lm.fingerprint, "norm": norm}
        series.append(Series({"model": model}, depends, CODE, items, compute, chunk=1 + n_random))
    return Experiment("01_storage_zeroing", tuple(series))


def conditions(
    lm: LM,
    known: Parts,
    category: str,
    share: float,
    n_random: int,
    seed: int,
    n_unrelated: int = UNRELATED,
) -> list[Condition]:
    """The category's top neurons zeroed, then ``n_random`` draws of random ones; all are put to
    the same questions, the category's own and ``n_unrelated`` of the others.
    """
    n, percent = count(share, lm.n_layers * lm.d_mlp), f"{100 * share:g} %"
    rng = Random(f"{seed}/{category}")
    pool = [q for other, some in known.judged.items() if other != category for q in some]
    unrelated = tuple(rng.sample(pool, min(n_unrelated, len(pool))))
    asked = {"related": tuple(known.judged[category]), "unrelated": unrelated}
    every = [(layer, index) for layer in range(lm.n_layers) for index in range(lm.d_mlp)]
    located = tuple(known.located[category])
    return [
        Condition(category, f"top {percent}", n, (), located, **asked),
        *(
            Condition(category, f"random {percent}", n, tuple(rng.sample(every, n)), (), **asked)
            for _ in range(n_random)
        ),
    ]


def count(share: float, n: int) -> int:
    """A share of n neurons, at least one. Raises ValueError for a share outside (0, 1]."""
    if not 0 < share <= 1:
        raise ValueError(f"share {share} of the neurons is outside (0, 1]")
    return max(1, round(share * n))


# ---------------------------------------------------------------- what is computed


def _scores(lm: LM, questions: Sequence[Question], block: str, norm: str) -> Tensor:
    """Eq. 9 of every neuron of a block, (n, l, m)."""
    ids, mask = lm.encode([question.prompt for question in questions])
    targets = first_tokens(lm, [question.answer for question in questions])
    return value_scores(lm, ids, mask, targets, of=block, norm=norm)


def _by_layer(questions: Sequence[Question], scores: Mapping[str, Tensor]) -> list[list[dict]]:
    """The rows of each question: importance by block and layer."""
    mass = {block: layer_mass(of).tolist() for block, of in scores.items()}
    return [
        [
            dict(category=question.category, block=block, layer=layer, importance=value)
            for block in BLOCKS
            for layer, value in enumerate(mass[block][i])
        ]
        for i, question in enumerate(questions)
    ]


@lru_cache(maxsize=4)
def _ffn_scores(lm: LM, fingerprint: str, norm: str) -> Once[Question, Tensor]:
    """The FFN neurons' scores of a question, (l, m): layers, neurons and zeroing share them."""

    def work(questions: list[Question]) -> list[Tensor]:
        batches = (questions[start : start + BATCH] for start in range(0, len(questions), BATCH))
        return [row for batch in batches for row in _scores(lm, batch, "ffn", norm).float().cpu()]

    return Once(work)


def _importances(lm: LM, norm: str, questions: list[Question]) -> list[list[dict]]:
    ffn = torch.stack(_ffn_scores(lm, lm.fingerprint, norm)(questions))
    return _by_layer(questions, {"attn": _scores(lm, questions, "attn", norm), "ffn": ffn})


def best_neurons(lm: LM, norm: str, located: Sequence[Question], n: int) -> list[tuple[int, int]]:
    """The n neurons of greatest score, summed over questions."""
    scores = torch.stack(_ffn_scores(lm, lm.fingerprint, norm)(located)).sum(0)
    return [neuron[:2] for neuron in top_neurons(scores, n)]


def _top_neurons(lm: LM, norm: str, items: list[dict]) -> list[list[dict]]:
    lists = []
    for item in items:
        best = sorted(best_neurons(lm, norm, item["located"], item["n"]))
        by_layer = {layer: [i for at, i in best if at == layer] for layer in range(lm.n_layers)}
        lists.append(
            [
                dict(category=item["category"], layer=layer, neurons=indices)
                for layer, indices in by_layer.items()
            ]
        )
    return lists


def _zeroing(lm: LM, norm: str, some: list[Condition]) -> list[list[dict]]:
    lists = []
    for condition in some:
        silent = condition.random or best_neurons(lm, norm, condition.located, condition.n)
        lists.append(drops(lm, condition, silent))
    return lists


def drops(lm: LM, condition: Condition, silent: Sequence[tuple[int, int]]) -> list[dict]:
    """One row per question of a condition: whether it is lost with some neurons at zero."""
    groups = {"related": condition.related, "unrelated": condition.unrelated}
    asked = [(group, question) for group, of in groups.items() for question in of]
    with ablate(lm, silent):
        kept = recall(lm, [q.prompt for _, q in asked], [q.answer for _, q in asked]).correct
    labels = dict(category=condition.category, zeroed=condition.zeroed)
    return [
        labels | dict(questions=group, prompt=question.prompt, drop=int(not ok))
        for (group, question), ok in zip(asked, kept, strict=True)
    ]


def _id(question: Question) -> str:
    return f"{question.category}: {question.prompt}"
