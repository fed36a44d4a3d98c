"""The bars a reference model must pass before experiments on it mean anything: does it know the
world, can it reason over it, and does it store facts where editors look for them?
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import torch

from ..attribution.interventions import causal_trace
from ..attribution.layers import ROLES
from ..editing.moments import second_moments
from ..editing.search import Objective
from ..editors.memit import MEMIT
from ..editors.rome import ROME
from ..model.answers import generate, known_items, recall
from ..model.lm import LM
from ..model.update import Update
from ..world.cases import single_edits
from ..world.text import documents
from ..world.wording import (
    few_shot,
    first_answer,
    held_out,
    matches,
    multi_hop_cloze,
    multi_hop_question,
    parse_answer,
    single_hop,
    single_hop_cloze,
)
from ..world.world import World, sample_chains, unrelated_facts

#: What a reference model must reach: name of the measurement -> least share of right answers.
BARS = {
    "cloze": 0.99,
    "qa": 0.99,
    "cloze_unseen": 0.99,
    "qa_unseen": 0.99,
    "cot_2": 0.97,
    "cot_3": 0.97,
    "cot_4": 0.97,
    "implicit_2": 0.60,
    "robust": 0.97,
}
BARS |= {
    f"{editor}_{name}": least
    for editor in ("rome", "memit")
    for name, least in dict(efficacy=0.90, paraphrase=0.75, specificity=0.95).items()
}


def knowledge(lm: LM, world: World, n_facts: int | None = None, seed: int = 0) -> dict[str, float]:
    """Share of single-hop prompts answered exactly, ``cloze`` in every wording, ``qa`` in every
    question form, of all facts or a sample; ``cloze_unseen`` and ``qa_unseen``: the same over the
    one wording of each fact that training text never used for it.
    """
    facts = (
        list(world.facts) if n_facts is None else random.Random(seed).sample(world.facts, n_facts)
    )
    result: dict[str, float] = {}
    for name, at, prompt in (("cloze", 0, "{}"), ("qa", 1, "Q: {} A:")):
        asked = [
            (fact, template)
            for fact in facts
            for template in (
                world.relations[fact.relation].cloze,
                world.relations[fact.relation].questions,
            )[at]
        ]
        right = recall(
            lm,
            [prompt.format(template.format(fact.subject)) for fact, template in asked],
            [fact.object for fact, _ in asked],
        ).correct
        unseen = [
            ok
            for ok, (fact, template) in zip(right, asked, strict=True)
            if template == held_out(world, fact)[at]
        ]
        result |= {name: _share(right), f"{name}_unseen": _share(unseen)}
    return result


def reasoning(
    lm: LM,
    world: World,
    n_chains: int = 100,
    split: str = "evaluation",
    seed: int = 0,
    n_shots: int = 3,
) -> dict[str, float]:
    """Share of multi-hop chains of ``split`` answered: ``cot_n`` few-shot with a chain of thought,
    ``implicit_n`` as one cloze statement and ``direct_n`` as one question, both answered at once.
    """
    rng, result = random.Random(f"{seed}/{split}"), {}
    for n_hops in (2, 3, 4):
        chains = sample_chains(world, split, n_hops, n_chains, rng)
        prompts = [
            few_shot(world, multi_hop_question(world, chain), n_shots=n_shots) for chain in chains
        ]
        answers = multi_hop(lm, prompts)
        result[f"cot_{n_hops}"] = _share(
            [
                matches(a, (chain.answer, *world.aliases(chain.answer)))
                for a, chain in zip(answers, chains, strict=True)
            ]
        )
        if n_hops < 4:
            goal = [chain.answer for chain in chains]
            result[f"implicit_{n_hops}"] = _share(
                recall(lm, [multi_hop_cloze(world, chain) for chain in chains], goal).correct
            )
            result[f"direct_{n_hops}"] = _share(
                recall(
                    lm, [f"Q: {multi_hop_question(world, chain)} A:" for chain in chains], goal
                ).correct
            )
    return result


def robustness(lm: LM, world: World, n_facts: int = 300, seed: int = 0) -> dict[str, float]:
    """``robust``: share of cloze prompts answered the same when a true, unrelated sentence precedes
    them.
    """
    rng = random.Random(seed)
    facts, others = rng.sample(world.facts, n_facts), rng.sample(world.facts, n_facts)
    prompts = [single_hop_cloze(world, fact) for fact in facts]
    before = [f"{single_hop_cloze(world, other)} {other.object}." for other in others]
    goal = [fact.object for fact in facts]
    bare = recall(lm, prompts, goal).correct
    longer = [f"{true} {prompt}" for true, prompt in zip(before, prompts, strict=True)]
    after = recall(lm, longer, goal).correct
    return {"robust": _share([a == b for a, b in zip(bare, after, strict=True)])}


def early_site(
    lm: LM, world: World, n_facts: int = 16, n_noise: int = 4, seed: int = 0
) -> tuple[int, ...]:
    """Layers whose state at the subject's last token carries the fact: put back clean into a run
    with a noisy subject, it restores, in the mean over known facts, at least half of what the noise
    took from the answer's probability. Source: ROME, Section 2.1.
    """
    drawn = random.Random(f"{seed}/site").sample(world.facts, 2 * n_facts)
    facts = known_items(lm, drawn, partial(single_hop, world))[:n_facts]
    if not facts:
        return ()
    traces = [
        causal_trace(
            lm, single_hop_cloze(world, f), f.subject, f.object, n_noise=n_noise, seed=seed
        )
        for f in facts
    ]
    restored = torch.stack([t.restored[ROLES.index("last subject")] for t in traces]).mean(0)
    clean, corrupted = (
        _share([getattr(t, name) for t in traces]) for name in ("clean", "corrupted")
    )
    return tuple((restored >= (clean + corrupted) / 2).nonzero()[:, 0].tolist())


def editing(
    lm: LM, world: World, n_edits: int = 100, n_unrelated: int = 10, seed: int = 0
) -> dict[str, float]:
    """``rome_...`` and ``memit_...``: efficacy, paraphrase and specificity of ``n_edits`` known
    facts, edited one by one at the subject's last token, MEMIT in the first three layers of the
    early site (as its authors write 3-8 of GPT-J's 28), ROME in the last of them, with the same
    settings for every model.

    efficacy, paraphrase: share of edited facts (of their other wordings) whose new object is said;
    specificity: share of ``n_unrelated`` other facts an edit, half of its relation, that keep their
    answer. Zero where no early site is found.
    """
    site, rng = early_site(lm, world, seed=seed)[:3], random.Random(f"{seed}/editing")
    pool = single_edits(world, 2 * n_edits, seed)
    edits = known_items(lm, pool, attrgetter("text", "target_true"))[:n_edits]
    names = [
        (editor, name)
        for editor in ("rome", "memit")
        for name in ("efficacy", "paraphrase", "specificity")
    ]
    if not site or not edits:
        return {f"{editor}_{name}": 0.0 for editor, name in names}
    others = [
        [single_hop(world, fact) for fact in unrelated_facts(world, [edit], n_unrelated, rng)]
        for edit in edits
    ]
    search: dict[str, Any] = dict(steps=100, lr=2.0, decay=0.0, clamp=None)
    editors = dict(
        rome=ROME(
            layer=site[-1],
            objective=Objective(kind="mlp", **search),
            n_prefixes=5,
            prefix_lengths=(10,),
        ),
        memit=MEMIT(layers=site, weight=10.0, objective=Objective(**search), n_prefixes=2),
    )
    moments, result = second_moments(lm, documents(world, 2000), site), {}
    for editor in editors:
        updates = editors[editor].each(lm, [[edit] for edit in edits], moments)
        asked = dict(
            efficacy=[[(edit.text, edit.target_new)] for edit in edits],
            paraphrase=[
                [(text.replace("{}", edit.subject), edit.target_new) for text in edit.paraphrases]
                for edit in edits
            ],
            specificity=others,
        )
        for name, groups in asked.items():
            flat = [
                (*pair, update)
                for group, update in zip(groups, updates, strict=True)
                for pair in group
            ]
            prompts, goals, owners = zip(*flat, strict=True)
            result[f"{editor}_{name}"] = _share(recall(lm, prompts, goals, owners).correct)
    return result


def measure(
    lm: LM,
    world: World,
    n_facts: int | None = None,
    n_chains: int = 100,
    n_edits: int = 100,
    seed: int = 0,
) -> dict[str, float]:
    """All bars of a model: shares between 0 and 1, by name;

    ``BARS`` holds what is to be reached. Without edits, no bars of editors.
    """
    found = (
        knowledge(lm, world, n_facts, seed)
        | reasoning(lm, world, n_chains, seed=seed)
        | robustness(lm, world, seed=seed)
    )
    return found | (editing(lm, world, n_edits, seed=seed) if n_edits else {})


def _share(values) -> float:
    return sum(values) / len(values)


def multi_hop(
    lm: LM,
    prompts: Sequence[str],
    updates: Sequence[Update | None] | None = None,
    max_new_tokens: int = 80,
) -> list[str]:
    """The answers a model gives to few-shot chain-of-thought prompts, greedily: (n,) texts after
    "Answer:", empty where it gave none.
    """
    texts = generate(lm, prompts, updates, max_new_tokens, first_answer)
    return [parse_answer(text) for text in texts]
