"""Appendix L, what its rows are computed from: does attribution stay when answers are sampled or
prompts have examples, is an edit passed on by the implicit subject, what becomes of edits that no
relation allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

import torch

from ..attribution.layers import questions
from ..attribution.scores import first_tokens, layer_scores
from ..editors import preset
from ..model.lm import LM
from ..model.states import Site, trace
from ..model.update import Update, applied
from ..records import Case, Chain, Edit, Fact
from ..study import experiments
from ..study.judge import Protocol
from ..study.rows import Experiment, Series
from ..world.cases import make_cases, single_edits
from ..world.wording import multi_hop_cloze, single_hop_cloze, statement
from ..world.world import World
from .accumulation import by_token
from .storage import known_facts

BLOCKS = ("attn", "ffn")
BATCH = 16  #: prompts that are scored at once
SHOTS = {"few-shot": 4, "one-shot": 1, "zero-shot": 0}  #: examples before a prompt
STATES = ("unedited", "edited", "value edit masked")
PLACES = ("implicit subject", "answer")
COMPARED = ("PMET", "ACE")  #: who also does the ordinary edits


# ---------------------------------------------------------------- sampled answers (Table 13)


@dataclass(frozen=True)
class Draw:
    """A prompt, its answer, and first tokens of answers that were sampled from the model."""

    prompt: str
    answer: str
    tokens: tuple[int, ...]


def draws(
    lm: LM, pairs: Sequence[tuple[str, str]], k: int, temperature: float, seed: int
) -> list[Draw]:
    """``k`` samples for each (prompt, answer), of one stream of random numbers.

    Raises ValueError for fewer than one sample or a temperature that is not positive.
    """
    if k < 1 or not temperature > 0:
        raise ValueError(
            f"{k} samples at temperature {temperature}: give at least 1, and a temperature above 0"
        )
    generator, tokens = torch.Generator().manual_seed(seed), []
    for start in range(0, len(pairs), BATCH):
        ids, mask = lm.encode([prompt for prompt, _ in pairs[start : start + BATCH]])
        logits = trace(lm, ids, mask, logits="last")[Site("logits", lm.n_layers)].double().cpu()
        shares = (logits / temperature).softmax(-1)
        tokens += torch.multinomial(shares, k, replacement=True, generator=generator).tolist()
    return [Draw(*pair, tuple(row)) for pair, row in zip(pairs, tokens, strict=True)]


def sampled(
    hosts: Mapping[str, LM],
    world: World,
    *,
    n_prompts: int,
    passes: Sequence[int],
    temperature: float,
    seed: int,
) -> Experiment:
    """Table 13: importance of the layers for sampled answers; w is the sampled first token.

    Asked are two-hop statements: what a model is sure of, as single facts, cannot vary.

    Rows: trial (from 1), block, importance (nats, by layer: sum of Eq. 9), right (whether the token
    begins the answer).
    """
    pairs, series = questions(world, n_prompts, seed), []
    for model, lm in hosts.items():
        drawn = draws(lm, pairs, max(passes), temperature, seed)
        items = {draw.prompt: draw for draw in drawn}
        compute = partial(draw_rows, lm)
        series.append(Series({"model": model}, _model(lm), (__name__,), items, compute, BATCH))
    return Experiment("appendix_l_robustness_passes", tuple(series), rtol=1e-3, atol=1e-4)


def draw_rows(lm: LM, drawn: Sequence[Draw]) -> list[list[dict]]:
    """The rows of ``sampled``. What is drawn again for a prompt is scored once."""
    pairs = [(i, token) for i, draw in enumerate(drawn) for token in sorted(set(draw.tokens))]
    prompts, targets = [drawn[i].prompt for i, _ in pairs], [token for _, token in pairs]
    scores = {block: importances(lm, prompts, targets, block) for block in BLOCKS}
    at = {pair: place for place, pair in enumerate(pairs)}
    right = first_tokens(lm, [draw.answer for draw in drawn]).tolist()
    return [
        [
            {
                "trial": trial,
                "block": block,
                "importance": scores[block][at[i, token]],
                "right": token == right[i],
            }
            for block in BLOCKS
            for trial, token in enumerate(draw.tokens, 1)
        ]
        for i, draw in enumerate(drawn)
    ]


def importances(
    lm: LM, prompts: Sequence[str], targets: Sequence[int], block: str
) -> list[list[float]]:
    """Importance of every layer for every prompt, nats: sum of Eq. 9 over the layer's neurons."""
    scores = []
    for start in range(0, len(prompts), BATCH):
        part = slice(start, start + BATCH)
        ids, mask = lm.encode(prompts[part])
        scores += layer_scores(lm, ids, mask, targets[part], block).tolist()
    return scores


# ---------------------------------------------------------------- examples (Tables 14 and 15)


@dataclass(frozen=True)
class Shown:
    """A question with the examples before it."""

    category: str
    prompt: str
    answer: str


def prompt_with_examples(world: World, fact: Fact, n_shots: int, seed: int = 0) -> str:
    """The prompt that asks for a fact, after ``n_shots`` other facts of its relation, told as
    sentences, that share no name with it.

    Raises ValueError if there are not as many.
    """
    names = {fact.subject, fact.object}
    others = [
        other
        for other in world.facts
        if other.relation == fact.relation and not {other.subject, other.object} & names
    ]
    if not 0 <= n_shots <= len(others):
        raise ValueError(
            f"{n_shots} examples of {fact.relation!r} asked for; there are {len(others)}"
        )
    told = Random(f"{seed}/{fact.subject}/{fact.relation}").sample(others, n_shots)
    return " ".join([*(statement(world, other) for other in told), single_hop_cloze(world, fact)])


def with_examples(
    hosts: Mapping[str, LM], world: World, *, n_located: int, seed: int
) -> Experiment:
    """Tables 14, 15: importance of the layers for known facts of each category, after examples.

    Rows: category, block, importance (nats, by layer: sum of Eq. 9).
    """
    series = []
    for model, lm in hosts.items():
        facts = known_facts(lm, world, n_located, seed)
        for setting, n in SHOTS.items():
            items = {
                f"{fact.subject}, {fact.relation}": Shown(
                    category, prompt_with_examples(world, fact, n, seed), fact.object
                )
                for category, some in facts.items()
                for fact in some
            }
            names, compute = {"model": model, "setting": setting}, partial(_of_shown, lm)
            series.append(Series(names, _model(lm), (__name__,), items, compute, BATCH))
    return Experiment("appendix_l_robustness_prompts", tuple(series), rtol=1e-3, atol=1e-4)


def _of_shown(lm: LM, shown: Sequence[Shown]) -> list[list[dict]]:
    prompts = [one.prompt for one in shown]
    targets = first_tokens(lm, [one.answer for one in shown]).tolist()
    by_block = [importances(lm, prompts, targets, block) for block in BLOCKS]
    return [
        [
            {"category": one.category, "block": block, "importance": values}
            for block, values in zip(BLOCKS, of_one, strict=True)
        ]
        for one, of_one in zip(shown, zip(*by_block, strict=True), strict=True)
    ]


# ---------------------------------------------------------------- masking (Tables 16 and 17)


def state_editors(model: str) -> dict[str, Any]:
    """ACE whole, without its value stage, and no editor, by ``STATES``."""
    ace = preset("ACE", model)
    return dict(zip(STATES, (None, ace, replace(ace, stages=("query",))), strict=True))


def edits_passed_on(world: World, n: int, seed: int) -> list[Edit]:
    """``n`` single edits whose new objects have facts of their own."""
    edits = single_edits(world, 40 * n, seed)
    return [edit for edit in edits if world.about(edit.target_new)][:n]


def masked(hosts: Mapping[str, LM], world: World, *, n_edits: int, seed: int) -> Experiment:
    """Tables 16, 17: what the layers add at the two places of an edit, in three states.

    Rows: ``importance_by_place``.
    """
    items = {_name(edit): edit for edit in edits_passed_on(world, n_edits, seed)}
    series = [
        one
        for model, lm in hosts.items()
        for one in _in_states(model, lm, world, items, STATES, importance_by_place, seed)
    ]
    return Experiment("appendix_l_robustness_masked", tuple(series), rtol=0.01, atol=0.01)


def tokens(hosts: Mapping[str, LM], world: World, *, n_edits: int, seed: int) -> Experiment:
    """The first of these edits on the last model, token by token, with and without the value edit.

    Rows: ``accumulation.by_token``.
    """
    items = {_name(edit): edit for edit in edits_passed_on(world, n_edits, seed)[:1]}
    *_, (model, lm) = hosts.items()
    series = _in_states(model, lm, world, items, STATES[1:], _by_token, seed)
    return Experiment("appendix_l_robustness_tokens", tuple(series), rtol=0.01, atol=0.01)


def importance_by_place(lm: LM, world: World, edit: Edit) -> list[dict]:
    """What the layers add to the new object at the end of the edited prompt, and to its consequence
    at the end of a two-hop prompt, in the model as it is now.

    edit: of a relation of the world, with a new object that it has facts of.
    Rows: place, block, importance (nats, sum over layers of whole outputs).
    """
    after = world.about(edit.target_new)[0]
    chain = Chain((Fact(edit.subject, edit.relation, edit.target_new), after))
    ids, mask = lm.encode([edit.text, multi_hop_cloze(world, chain)])
    targets, rows = first_tokens(lm, [edit.target_new, after.object]), []
    for block in BLOCKS:
        both = layer_scores(lm, ids, mask, targets, block, "whole").sum(-1).tolist()
        for place, value in zip(PLACES, both, strict=True):
            rows.append({"place": place, "block": block, "importance": value})
    return rows


def _by_token(lm: LM, world: World, edit: Edit) -> list[dict]:
    return by_token(lm, edit.text, edit.target_new).to_dict("records")


def _in_states(
    model: str, lm: LM, world: World, items: Mapping[str, Edit], states: Sequence[str], read, seed
) -> Iterator[Series]:
    """The series of ``read(lm, world, edit)`` in edited models, by state."""
    editors = state_editors(model)
    corpus = experiments.corpus(lm, world, editors.values(), seed)

    def compute(editor, edits: list[Edit]) -> list[list[dict]]:
        groups, rows = [[edit] for edit in edits], []
        updates = editor.each(lm, groups, corpus.moments) if editor else [Update()] * len(edits)
        for edit, update in zip(edits, updates, strict=True):
            with applied(lm, update):
                rows.append(read(lm, world, edit))
        return rows

    for state in states:
        editor = editors[state]
        yield Series(
            names={"model": model, "state": state},
            depends=experiments.depends(lm, world, editor, corpus),
            code=(__name__, *experiments.modules(editor)),
            items=items,
            compute=partial(compute, editor),
        )


# ---------------------------------------------------------------- mismatched edits (Table 18)


def mismatched_cases(world: World, cases: Sequence[Case], seed: int = 0) -> list[Case]:
    """Cases with one edit, of the last hop, whose new object is one that another relation gives the
    subject: "the sport of X is Italy". Cases that allow none are left out.

    Source: ACE, Appendix L.4, "we mismatched the relationship labels in the knowledge triplet".
    """
    rng, made = Random(f"{seed}/mismatched"), []
    for case in cases:
        (edit, *more), (subject, label, _) = case.edits, case.new_chain[-1]
        others = {
            fact.object
            for fact in world.about(subject)
            if world.kind(fact.object) != world.kind(case.answer)
        } - case.entities
        if more or edit.subject != subject or not others:
            continue
        new = rng.choice(sorted(others))
        last = replace(case.new_hops[-1], answer=new, answer_alias=world.aliases(new))
        made.append(
            replace(
                case,
                edits=(replace(edit, target_new=new),),
                new_answer=new,
                new_answer_alias=world.aliases(new),
                new_hops=(*case.new_hops[:-1], last),
                new_chain=(*case.new_chain[:-1], (subject, label, new)),
            )
        )
    return made


def on_mismatched(
    hosts: Mapping[str, LM], world: World, *, editors: Sequence[str], n_cases: int, seed: int
) -> Experiment:
    """Table 18: the editors on mismatched cases. Rows: ``judge``."""
    series = _comparisons(hosts, world, editors, "mismatched", n_cases, seed)
    return Experiment("appendix_l_robustness_mismatched", series)


def on_ordinary(
    hosts: Mapping[str, LM], world: World, *, editors: Sequence[str], n_cases: int, seed: int
) -> Experiment:
    """The same cases with the objects that they had before, by PMET and ACE. Rows: ``judge``."""
    some = [name for name in editors if name in COMPARED]
    series = _comparisons(hosts, world, some, "ordinary", n_cases, seed) if some else ()
    return Experiment("appendix_l_robustness_ordinary", series)


def _comparisons(
    hosts: Mapping[str, LM], world: World, names: Sequence[str], kind: str, n_cases: int, seed: int
) -> tuple[Series, ...]:
    """The named editors on the cases of a kind."""
    editors = {model: {name: preset(name, hosts[model]) for name in names} for model in hosts}
    cases = {model: case_pairs(lm, world, n_cases, seed)[kind] for model, lm in hosts.items()}
    return experiments.comparisons(hosts, world, editors, cases, Protocol(seed=seed))


def case_pairs(lm: LM, world: World, n: int, seed: int) -> dict[str, list[Case]]:
    """Up to ``n`` mismatched cases, and the ordinary ones that they were, by kind."""
    pool = make_cases(world, "evaluation", 12 * n, seed, n_hops=(2,), n_edits=(1,))
    pool = experiments.known_cases(lm, pool)
    wrong = mismatched_cases(world, pool, seed)[:n]
    ids = {case.case_id for case in wrong}
    return {"mismatched": wrong, "ordinary": [case for case in pool if case.case_id in ids]}


# ---------------------------------------------------------------- what series share


def _model(lm: LM) -> dict[str, str]:
    return {"model": f"{lm.fingerprint} {lm.dtype}"}


def _name(edit: Edit) -> str:
    return f"{edit.subject}, {edit.relation}, {edit.target_new}"
