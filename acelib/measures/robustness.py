"""Appendix L: does attribution stay when answers are sampled or prompts have examples, is an edit passed on by the implicit subject, what
becomes of edits that no relation allows."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Sequence

import pandas as pd
import torch

from ..attribution.scores import first_tokens, layer_scores
from ..model.lm import LM
from ..model.states import trace
from ..model.update import Update, applied
from ..records import Case, Chain, Edit, Fact
from ..world.wording import multi_hop_cloze, single_hop_cloze, statement
from ..world.world import World


def passes(
    lm: LM,
    prompts: Sequence[str],
    answers: Sequence[str],
    k: int = 5,
    temperature: float = 1.0,
    norm: str = "frozen",
    seed: int = 0,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Table 13: importance of the layers (sum of Eq. 9) for k sampled answers to each prompt; w is the sampled first token.

    Returns: one row a prompt, trial (from 1), block and layer: importance (nats), right (whether w begins the answer).
    Raises ValueError for fewer than one sample or a temperature that is not positive.
    """
    if k < 1 or not temperature > 0:
        raise ValueError(
            f"{k} samples at temperature {temperature}: give at least 1, and a temperature above 0"
        )
    generator, rows = torch.Generator().manual_seed(seed), []
    for start in range(0, len(prompts), batch_size):
        ids, mask = lm.encode(prompts[start : start + batch_size])
        found = (
            trace(lm, ids, mask, logits="last")["logits", lm.n_layers].double().cpu() / temperature
        )
        drawn = torch.multinomial(
            found.softmax(-1), k, replacement=True, generator=generator
        ).tolist()
        right = first_tokens(lm, answers[start : start + batch_size]).tolist()
        pairs = sorted(
            {(i, token) for i, tokens in enumerate(drawn) for token in tokens}
        )  # what is drawn again is scored once
        which = [i for i, _ in pairs]
        for block in ("attn", "ffn"):
            chunks = [slice(at, at + batch_size) for at in range(0, len(pairs), batch_size)]
            scores = [
                layer_scores(
                    lm,
                    ids[which[chunk]],
                    mask[which[chunk]],
                    [token for _, token in pairs[chunk]],
                    block,
                    norm=norm,
                )
                for chunk in chunks
            ]
            by = dict(zip(pairs, torch.cat(scores).tolist()))
            rows += [
                dict(
                    prompt=start + i,
                    trial=trial,
                    block=block,
                    layer=layer,
                    importance=value,
                    right=token == right[i],
                )
                for i, tokens in enumerate(drawn)
                for trial, token in enumerate(tokens, 1)
                for layer, value in enumerate(by[i, token])
            ]
    return pd.DataFrame(rows)


def demonstrated(world: World, fact: Fact, n_shots: int, seed: int = 0) -> str:
    """The prompt that asks for a fact, after ``n_shots`` other facts of its relation, told as sentences, that share no name with it.

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


def passed_on(
    lm: LM, world: World, edits: Sequence[Edit], models: dict[str, Sequence[Update]]
) -> pd.DataFrame:
    """Tables 16, 17: what the layers add to the new object at the end of the edited prompt, and to its consequence at the end of a two-hop
    prompt, in models edited in several ways.

    edits: with a relation of the world, and a new object that it has facts of.   models: an update an edit, by name.
    Returns: one row an edit, model, place ("implicit subject", "answer"), block: importance, sum over layers of whole outputs (nats).
    """
    rows = []
    for i, edit in enumerate(edits):
        after = world.about(edit.target_new)[0]
        chain = Chain((Fact(edit.subject, edit.relation, edit.target_new), after))
        ids, mask = lm.encode([edit.text, multi_hop_cloze(world, chain)])
        targets = first_tokens(lm, [edit.target_new, after.object])
        for name, updates in models.items():
            with applied(lm, updates[i]):
                for block in ("attn", "ffn"):
                    both = layer_scores(lm, ids, mask, targets, block, "whole").sum(-1).tolist()
                    rows += [
                        dict(edit=i, model=name, place=place, block=block, importance=value)
                        for place, value in zip(("implicit subject", "answer"), both)
                    ]
    return pd.DataFrame(rows)


def mismatched(world: World, cases: Sequence[Case], seed: int = 0) -> list[Case]:
    """Cases with one edit, of the last hop, whose new object is one that another relation gives the subject: "the sport of X is Italy".

    Source: ACE, Appendix L.4, "we mismatched the relationship labels in the knowledge triplet". Cases that allow none are left out.
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
