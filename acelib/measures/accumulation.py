"""Section 4.2: how the answer of a multi-hop question is accumulated, from query neurons to the
value neurons that they switch on. The rows of Figure 3, of the zeroing of query neurons and of
Appendix F; ``accumulation_analysis`` says what follows from them.

All is read at the last token of the prompt. A question's *value neurons* are its ``n_top`` FFN
neurons of greatest I (Eq. 9), its *query neurons* the ``n_top`` of greatest Q (Eq. 10).

Questions that a model answers are parted in two: the *located* ones choose the neurons to zero, the
*held* ones are asked with those neurons zeroed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from math import exp
from operator import itemgetter
from random import Random
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..attribution.interventions import ablate
from ..attribution.layers import rank
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
from ..paper import published
from ..study.rows import Experiment, Series
from ..study.store import item_key
from ..world.wording import multi_hop_cloze, single_hop_cloze
from ..world.world import World, sample_chains
from .once import Once

BATCH = 16  #: questions that are scored at once
CODE = (__name__,)
PEAKS = ("first", "second")  #: the two layers of greatest Q
ROLES = ("value neurons", "query neurons")
WHAT = ("answer", "implicit")  #: tokens that a neuron may raise
#: What rows are compared within: scores are sums of many neurons, counts flip at a threshold.
SCORES = [
    *("increase", "attn", "implicit_ffn", "implicit_attn", "value", "query", "top_value"),
    *("top_query", "nats", "importance", "logprob", "probability"),
]
COUNTS = ["n_value", "n_query", "shared", "before", "after"]
TOLERANCES = dict.fromkeys(SCORES, (1e-3, 1e-3)) | dict.fromkeys(COUNTS, (0.0, 1.0))


class Question(NamedTuple):
    """A statement to complete, its answer, the entity between its hops, which it does not name, and
    the category of the last hop."""

    prompt: str
    answer: str
    implicit: str
    category: str = ""


class Scores(NamedTuple):
    """Importance for n questions, on the CPU; of whole outputs, the attention's first, then the
    FFN's."""

    value: Tensor  #: I of each FFN neuron, (n, l, m), nats
    query: Tensor  #: Q of each FFN neuron, (n, l, m)
    answer: Tensor  #: increase of the answer's log-probability by whole outputs, (n, 2, l), nats
    implicit: Tensor  #: the same for the implicit subject, (n, 2, l)


@dataclass(frozen=True)
class Silencing:
    """How query neurons are zeroed, and which value neurons are watched."""

    n_zeroed: int  #: neurons of a layer
    n_top: int = 100  #: value neurons of a question
    n_random: int = 2  #: draws of as many random neurons
    norm: str = "frozen"
    seed: int = 0


class Parts(NamedTuple):
    """The questions that a model is scored on: those that locate neurons, and those held back."""

    located: list[Question]
    held: list[Question]
    n_answered: int  #: of all questions that were drawn

    @property
    def all(self) -> list[Question]:
        return [*self.located, *self.held]


# ---------------------------------------------------------------- questions


def answered_questions(lm: LM, world: World, n: int, seed: int = 0) -> list[Question]:
    """Those of ``n`` two-hop questions of the identification split that the model answers, in the
    order drawn with ``seed``."""
    questions = [
        Question(
            multi_hop_cloze(world, chain),
            chain.answer,
            chain.facts[0].object,
            world.relations[chain.path[-1]].category or "",
        )
        for chain in sample_chains(world, "identification", 2, n, Random(seed))
    ]
    return known_items(lm, questions, itemgetter(0, 1))


def parts(lm: LM, world: World, n_drawn: int, n_located: int, n_judged: int, seed: int) -> Parts:
    """The first questions that the model answers, parted in the proportion of ``n_located`` and
    ``n_judged``."""
    right = answered_questions(lm, world, n_drawn, seed)
    some = right[: n_located + n_judged]
    cut = round(len(some) * n_located / (n_located + n_judged))
    return Parts(some[:cut], some[cut:], len(right))


def all_parts(
    hosts: Mapping[str, LM], world: World, n_drawn: int, n_located: int, n_judged: int, seed: int
) -> dict[str, Parts]:
    """``parts`` by model."""
    return {
        name: parts(lm, world, n_drawn, n_located, n_judged, seed) for name, lm in hosts.items()
    }


def paper_case(world: World) -> Question:
    """The one prompt of Appendices E and F, "Tim Duncan plays the sport of"; it has one hop, so its
    subject stands for the implicit one."""
    fact = next(fact for fact in world.about("Tim Duncan") if fact.relation == "sport")
    return Question(single_hop_cloze(world, fact), fact.object, fact.subject)


# ---------------------------------------------------------------- experiments


def layers(
    hosts: Mapping[str, LM],
    world: World,
    *,
    n_drawn: int,
    n_located: int,
    n_judged: int,
    n_top: int,
    norm: str,
    seed: int,
) -> Experiment:
    """What each layer does for each question (Figure 3); one row per question and layer.

    Rows: category of the last hop; increase, attn: of the answer's log-probability, by the whole
    FFN and the whole attention; implicit_ffn, implicit_attn: of the implicit subject's (nats);
    value, query: sums of I and Q over the layer's neurons; top_value, top_query: over the value and
    the query neurons in it; n_value, n_query, shared: how many there are, and how many are both.
    """
    series = []
    for model, lm in hosts.items():
        known = parts(lm, world, n_drawn, n_located, n_judged, seed)
        depends = {"model": lm.fingerprint, "norm": norm, "n_top": str(n_top)}
        compute = partial(_layers, lm, n_top, norm)
        series.append(Series({"model": model}, depends, CODE, _items(known.all), compute, BATCH))
    return Experiment("02_accumulation_layers", tuple(series), tolerances=TOLERANCES)


def silencing(  # noqa: PLR0913 - parameters of the notebook
    hosts: Mapping[str, LM],
    world: World,
    *,
    n_drawn: int,
    n_located: int,
    n_judged: int,
    n_top: int,
    share: float,
    least_zeroed: int,
    n_random: int,
    norm: str,
    seed: int,
) -> Experiment:
    """What becomes of the held questions' value neurons when query neurons are zeroed in one of the
    two layers where Q, summed over the located questions, is greatest; see ``silence``."""
    series = []
    for model, lm in hosts.items():
        known = parts(lm, world, n_drawn, n_located, n_judged, seed)
        n_zeroed = zeroed_neurons(lm, share, least_zeroed)
        settings = Silencing(n_zeroed, n_top, n_random, norm, seed)
        depends = {"model": lm.fingerprint, "located": item_key(known.located)}
        depends |= {name: str(value) for name, value in asdict(settings).items()}
        compute = partial(_silencing, lm, known.located, settings)
        series.append(Series({"model": model}, depends, CODE, _items(known.held), compute))
    return Experiment("02_accumulation_silencing", tuple(series), tolerances=TOLERANCES)


def readability(  # noqa: PLR0913 - parameters of the notebook
    hosts: Mapping[str, LM],
    world: World,
    *,
    n_drawn: int,
    n_located: int,
    n_judged: int,
    n_top: int,
    n_words: int,
    norm: str,
    seed: int,
) -> Experiment:
    """How many of a held question's value and query neurons raise its answer, or its implicit
    subject; rows: role, what, share (%)."""
    series = []
    for model, lm in hosts.items():
        known = parts(lm, world, n_drawn, n_located, n_judged, seed)
        depends = {"model": lm.fingerprint, "norm": norm}
        depends |= {"n_top": str(n_top), "k": str(n_words)}
        compute = partial(_readability, lm, n_top, n_words, norm)
        series.append(Series({"model": model}, depends, CODE, _items(known.held), compute))
    tolerances = {"share": (0.0, 1.0)}
    return Experiment("02_accumulation_readability", tuple(series), tolerances=tolerances)


def spoiling(  # noqa: PLR0913 - parameters of the notebook
    hosts: Mapping[str, LM],
    world: World,
    *,
    n_drawn: int,
    n_located: int,
    n_judged: int,
    n_top: int,
    n_words: int,
    n_random: int,
    norm: str,
    seed: int,
) -> Experiment:
    """What is left of the answers of all questions and of the paper's case without interpretable
    value neurons, or as many others; see ``without_readable``."""
    series = []
    for model, lm in hosts.items():
        known = parts(lm, world, n_drawn, n_located, n_judged, seed)
        n_most = int(published.quote("ace_41"))
        settings = dict(n_most=n_most, n_top=n_top, k=n_words, n_random=n_random, seed=seed)
        depends = {"model": lm.fingerprint, "norm": norm} | {
            name: str(value) for name, value in settings.items()
        }
        items = _items([*known.all, paper_case(world)])
        compute = partial(_spoiling, lm, norm, settings)
        series.append(Series({"model": model}, depends, CODE, items, compute))
    return Experiment("02_accumulation_spoiling", tuple(series), tolerances=TOLERANCES)


def zeroed_neurons(lm: LM, share: float, least: int) -> int:
    """How many query neurons of a layer are zeroed: a share of them, at least so many."""
    return max(least, round(share * lm.d_mlp))


def all_zeroed_neurons(hosts: Mapping[str, LM], share: float, least: int) -> dict[str, int]:
    """``zeroed_neurons`` by model."""
    return {name: zeroed_neurons(lm, share, least) for name, lm in hosts.items()}


def _items(questions: Sequence[Question]) -> dict[str, Question]:
    return {question.prompt: question for question in questions}


# ---------------------------------------------------------------- scores


def score(
    lm: LM,
    questions: Sequence[Question],
    n_top: int = 100,
    norm: str = "frozen",
    batch_size: int = BATCH,
) -> Scores:
    """Eq. 9 and Eq. 10 for every FFN neuron and question; queries aim at ``n_top`` value neurons.

    Raises ValueError for no questions.
    """
    if not questions:
        raise ValueError("no questions to score; give at least one")
    batches = []
    for batch in _batches(questions, batch_size):
        ids, mask = lm.encode([q.prompt for q in batch])
        answers, implicit = (first_tokens(lm, [getattr(q, name) for q in batch]) for name in WHAT)
        value = value_scores(lm, ids, mask, answers, norm=norm)
        query = query_scores(lm, ids, mask, value, n_top)
        whole = [
            torch.stack(
                [layer_scores(lm, ids, mask, tokens, of, "whole", norm) for of in ("attn", "ffn")],
                1,
            )
            for tokens in (answers, implicit)
        ]
        batches.append([scores.float().cpu() for scores in (value, query, *whole)])
    return Scores(*map(torch.cat, zip(*batches, strict=True)))


@lru_cache(maxsize=4)
def _scorer(lm: LM, fingerprint: str, n_top: int, norm: str) -> Once[Question, Scores]:
    """Scores of each question, computed once for all experiments; one question each."""

    def work(questions: list[Question]) -> list[Scores]:
        scores = score(lm, questions, n_top, norm)
        return [Scores(*(part[i : i + 1] for part in scores)) for i in range(len(questions))]

    return Once(work)


def cached_scores(lm: LM, questions: Sequence[Question], n_top: int, norm: str) -> Scores:
    """``score``, without computing again what has been computed of this model."""
    single = _scorer(lm, lm.fingerprint, n_top, norm)(questions)
    return Scores(*map(torch.cat, zip(*single, strict=True)))


def _layers(lm: LM, n_top: int, norm: str, questions: list[Question]) -> list[list[dict]]:
    return by_layer(cached_scores(lm, questions, n_top, norm), questions, n_top)


def by_layer(scores: Scores, questions: Sequence[Question], n_top: int) -> list[list[dict]]:
    """The rows of ``layers``, by question."""
    is_value, is_query = top(scores.value, n_top) > 0, top(scores.query, n_top) > 0
    (attn, ffn), (implicit_attn, implicit_ffn) = scores.answer.unbind(1), scores.implicit.unbind(1)
    columns = dict(
        increase=ffn,
        attn=attn,
        implicit_ffn=implicit_ffn,
        implicit_attn=implicit_attn,
        value=layer_mass(scores.value),
        query=layer_mass(scores.query),
        top_value=layer_mass(scores.value, n_top),
        top_query=layer_mass(scores.query, n_top),
        n_value=is_value.sum(-1),
        n_query=is_query.sum(-1),
        shared=(is_value & is_query).sum(-1),
    )
    lists = {name: column.tolist() for name, column in columns.items()}
    return [
        [
            dict(category=question.category, layer=layer)
            | {name: of[i][layer] for name, of in lists.items()}
            for layer in range(ffn.shape[1])
        ]
        for i, question in enumerate(questions)
    ]


# ---------------------------------------------------------------- query neurons zeroed


def _silencing(
    lm: LM, located: Sequence[Question], settings: Silencing, questions: list[Question]
) -> list[list[dict]]:
    query = cached_scores(lm, located, settings.n_top, settings.norm).query.sum(0)
    peaks = rank(query.sum(1).tolist(), len(PEAKS))
    scores = cached_scores(lm, questions, settings.n_top, settings.norm)
    table = silence(lm, questions, scores, query, peaks, settings)
    table["peak"] = [PEAKS[peaks.index(layer)] for layer in table.ablated]
    return [
        table[table.question == i].drop(columns="question").to_dict("records")
        for i in range(len(questions))
    ]


def silence(
    lm: LM,
    questions: Sequence[Question],
    scores: Scores,
    query: Tensor,
    layers: Sequence[int],
    settings: Silencing,
) -> pd.DataFrame:
    """What becomes of the value neurons of other layers when a layer's neurons of greatest Q,
    random ones, or all are zeroed.

    A neuron is active while its I is above that of all but the ``n_top`` greatest of the intact
    model (half-way to the next). With the norm "frozen", a last state of another size also moves I
    in earlier layers.
    scores: of ``questions``.   query: Q (l, m) to choose by, of other questions.
    Returns: one row per question, ablated layer, draw and other layer: zeroed ("top", "layer",
    "random"), before, after (neurons), lost (1 if the answer is lost), nats (of its log-probability
    lost). Raises ValueError for a layer or a number of neurons that does not exist.
    Source: ACE, Section 4.2.
    """
    lm.layers(layers)
    n_zeroed, n_top = settings.n_zeroed, settings.n_top
    if not 0 < n_zeroed <= lm.d_mlp:
        raise ValueError(f"n_zeroed is {n_zeroed}; a layer has 1 to {lm.d_mlp} neurons")
    # 1. The intact model: the threshold above which a neuron is active, and the answers.
    greatest = scores.value.flatten(1).topk(n_top + 1).values
    threshold = greatest[:, -2:].mean(-1)[:, None, None]
    before = (scores.value > threshold).sum(-1)
    prompts, answers = [q.prompt for q in questions], [q.answer for q in questions]
    intact = np.array(recall(lm, prompts, answers).logprob)
    rng, frames = Random(settings.seed), []
    for layer in layers:
        # 2. The neurons to zero in this layer. Draws do not depend on the questions.
        best = query[layer].sort(descending=True, stable=True).indices[:n_zeroed].tolist()
        draws = [
            ("random", rng.sample(range(lm.d_mlp), n_zeroed)) for _ in range(settings.n_random)
        ]
        for draw, (zeroed, indices) in enumerate(
            [("top", best), ("layer", range(lm.d_mlp)), *draws]
        ):
            # 3. Without them: the answers, and the value neurons that are still active.
            with ablate(lm, [(layer, index) for index in indices]):
                right, logprob = recall(lm, prompts, answers)
                values = [
                    value_scores(
                        lm,
                        *lm.encode([q.prompt for q in batch]),
                        first_tokens(lm, [q.answer for q in batch]),
                        norm=settings.norm,
                    )
                    for batch in _batches(questions, BATCH)
                ]
            after = (torch.cat(values).float().cpu() > threshold).sum(-1)
            outcome = dict(
                ablated=layer,
                draw=draw,
                zeroed=zeroed,
                question=range(len(questions)),
                lost=1 - np.array(right, dtype=int),
                nats=intact - np.array(logprob),
            )
            frames += [
                pd.DataFrame(
                    outcome
                    | dict(
                        layer=other, before=before[:, other].numpy(), after=after[:, other].numpy()
                    )
                )
                for other in range(lm.n_layers)
                if other != layer
            ]
    return pd.concat(frames, ignore_index=True)


# ---------------------------------------------------------------- neurons that can be read


def meanings(
    lm: LM, prompt: str, neurons: Sequence[Neuron | tuple[int, int]], k: int = 10
) -> Tensor:
    """The ``k`` tokens, (n, k), that each neuron's output m_k fc2_k at the end of ``prompt`` raises
    most, through the final norm's gain."""
    ids, mask = lm.encode([prompt])
    sites = [Site("key", layer) for layer in {layer for layer, *_ in neurons}]
    keys = trace(lm, ids, mask, sites, at=last(mask))
    outputs = torch.stack(
        [
            keys[Site("key", layer)][0, index] * lm.weight(layer)[:, index]
            for layer, index, *_ in neurons
        ]
    )
    return ((outputs * lm.norm.get_parameter("weight")) @ lm.head.weight.T).topk(k).indices.cpu()


def readable(
    lm: LM, question: Question, neurons: Sequence[Neuron], k: int = 10, what: str = "answer"
) -> list[bool]:
    """Whether each neuron is interpretable: the first token of the answer (or "implicit") is among
    its k ``meanings``."""
    token = int(first_tokens(lm, [getattr(question, what)]))
    return (meanings(lm, question.prompt, neurons, k) == token).any(1).tolist()


def _readability(
    lm: LM, n_top: int, k: int, norm: str, questions: list[Question]
) -> list[list[dict]]:
    scores, lists = cached_scores(lm, questions, n_top, norm), []
    for question, *of_roles in zip(questions, scores.value, scores.query, strict=True):
        lists.append(
            [
                dict(role=role, what=what, share=100 * float(np.mean(read)))
                for role, of in zip(ROLES, of_roles, strict=True)
                for what in WHAT
                for read in [readable(lm, question, top_neurons(of, n_top), k, what)]
            ]
        )
    return lists


def _spoiling(lm: LM, norm: str, settings: dict, questions: list[Question]) -> list[list[dict]]:
    values = cached_scores(lm, questions, settings["n_top"], norm).value
    return [
        list(without_readable(lm, question, scores, **settings))
        for question, scores in zip(questions, values, strict=True)
    ]


def without_readable(
    lm: LM,
    question: Question,
    scores: Tensor,
    n_most: int = 27,
    n_top: int = 100,
    k: int = 10,
    n_random: int = 3,
    seed: int = 0,
) -> Iterator[dict]:
    """What is left of the answer without a question's interpretable value neurons, or as many
    important ones that are not, or random ones.

    Of the ``n_top`` value neurons the most important of either kind are zeroed, as many of each, at
    most ``n_most``; ``n_random`` draws from all neurons.   scores: I (l, m) of the question.
    Yields one row for each zeroed ("nothing", "interpretable", "uninterpretable", "random"): n,
    importance (their sum of I), logprob and probability of the whole answer, the accuracy of
    sampling without sampling error; none if the value neurons are all of one kind.
    Source: ACE, Section 6.4, Appendix F.
    """
    # 1. As many neurons of either kind, the most important first.
    pool = top_neurons(scores, n_top)
    read = readable(lm, question, pool, k)
    kinds = [
        [neuron for neuron, ok in zip(pool, read, strict=True) if ok == kind]
        for kind in (True, False)
    ]
    n = min(n_most, *map(len, kinds))
    if not n:
        return
    # 2. Random draws of this question's own, whatever other questions are asked.
    rng = Random(f"{seed}/{question.prompt}")
    every = [(layer, index) for layer in range(lm.n_layers) for index in range(lm.d_mlp)]
    draws = [("random", rng.sample(every, n)) for _ in range(n_random)]
    zeroings: list[tuple[str, Sequence[tuple]]] = [("nothing", [])]
    zeroings += [("interpretable", kinds[0][:n]), ("uninterpretable", kinds[1][:n]), *draws]
    # 3. The whole answer's probability without them.
    for zeroed, neurons in zeroings:
        with ablate(lm, neurons):
            logprob = recall(lm, [question.prompt], [question.answer]).logprob[0]
        yield dict(
            zeroed=zeroed,
            n=len(neurons),
            importance=sum(float(scores[layer, index]) for layer, index, *_ in neurons),
            logprob=logprob,
            probability=exp(logprob),
        )


# ---------------------------------------------------------------- one prompt, token by token


def by_token(lm: LM, prompt: str, answer: str, k: int = 6) -> pd.DataFrame:
    """Table 7: at each token of ``prompt``, what all FFNs and all attentions add to the answer's
    log-probability, and what would come next.

    Returns: columns token, ffn, attn (nats, sums over layers of the whole outputs), next (the ``k``
    most probable tokens).
    """
    row = lm.encode([prompt])[0][0].tolist()
    ids, mask = lm.pad([row[:end] for end in range(1, len(row) + 1)])
    targets = first_tokens(lm, [answer] * len(row))
    added = {
        of: layer_scores(lm, ids, mask, targets, of, "whole").sum(-1).tolist()
        for of in ("ffn", "attn")
    }
    likely = trace(lm, ids, mask, logits="last")[Site("logits", lm.n_layers)].topk(k).indices
    return pd.DataFrame(
        dict(
            token=[words(lm, [token]) for token in row],
            **added,
            next=[words(lm, tokens) for tokens in likely],
        )
    )


def all_tokens(hosts: Mapping[str, LM], question: Question) -> dict[str, pd.DataFrame]:
    """``by_token`` of a question, indexed by token, by model."""
    return {
        name: by_token(lm, question.prompt, question.answer).set_index("token")
        for name, lm in hosts.items()
    }


def head_scores(lm: LM, question: Question, norm: str) -> np.ndarray:
    """Eq. 9 of every attention head, (l, n_heads), nats (Figure 6)."""
    ids, mask = lm.encode([question.prompt])
    targets = first_tokens(lm, [question.answer])
    return value_scores(lm, ids, mask, targets, of="heads", norm=norm)[0].cpu().numpy()


def words(lm: LM, tokens: Sequence[int] | Tensor) -> str:
    """Tokens as a list to read, without their blanks."""
    return ", ".join(str(lm.tokenizer.decode([int(token)])).strip() or "␣" for token in tokens)


def _batches(questions: Sequence[Question], size: int) -> list[Sequence[Question]]:
    return [questions[start : start + size] for start in range(0, len(questions), size)]
