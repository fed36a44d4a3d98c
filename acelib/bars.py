"""The bars a reference model must pass before experiments on it mean anything: does it know the world, and can it reason over it?"""

from __future__ import annotations

import random

from .evaluate import multi_hop, recall
from .facts import World, sample_chains
from .lm import LM
from .prompts import few_shot, held_out, matches, multi_hop_cloze, multi_hop_question

#: What a reference model must reach: name of the measurement -> least share of right answers.
BARS = {"cloze": 0.99, "qa": 0.99, "cloze_unseen": 0.99, "qa_unseen": 0.99, "cot_2": 0.97, "cot_3": 0.97, "cot_4": 0.97, "implicit_2": 0.60, "robust": 0.97}


def knowledge(lm: LM, world: World, n_facts: int | None = None, seed: int = 0) -> dict[str, float]:
    """Share of single-hop prompts answered exactly, ``cloze`` in every wording, ``qa`` in every question form, of all facts or a sample;
    ``cloze_unseen`` and ``qa_unseen``: the same over the one wording of each fact that training text never used for it."""
    facts = list(world.facts) if n_facts is None else random.Random(seed).sample(world.facts, n_facts)
    result = {}
    for name, at, prompt in (("cloze", 0, "{}"), ("qa", 1, "Q: {} A:")):
        asked = [(fact, template) for fact in facts
                 for template in (world.relations[fact.relation].cloze, world.relations[fact.relation].questions)[at]]
        right = recall(lm, [prompt.format(template.format(fact.subject)) for fact, template in asked],
                       [fact.object for fact, _ in asked]).correct
        result[name] = _share(right)
        result[f"{name}_unseen"] = _share([ok for ok, (fact, template) in zip(right, asked) if template == held_out(world, fact)[at]])
    return result


def reasoning(lm: LM, world: World, n_chains: int = 100, split: str = "evaluation", seed: int = 0, n_shots: int = 3) -> dict[str, float]:
    """Share of multi-hop chains of ``split`` answered: ``cot_n`` few-shot with a chain of thought, ``implicit_n`` as one cloze statement
    and ``direct_n`` as one question, both answered at once."""
    rng, result = random.Random(f"{seed}/{split}"), {}
    for n_hops in (2, 3, 4):
        chains = sample_chains(world, split, n_hops, n_chains, rng)
        prompts = [few_shot(world, multi_hop_question(world, chain), n_shots=n_shots) for chain in chains]
        answers = multi_hop(lm, prompts)
        result[f"cot_{n_hops}"] = _share([matches(a, (chain.answer, *world.aliases(chain.answer))) for a, chain in zip(answers, chains)])
        if n_hops < 4:
            goal = [chain.answer for chain in chains]
            result[f"implicit_{n_hops}"] = _share(recall(lm, [multi_hop_cloze(world, chain) for chain in chains], goal).correct)
            result[f"direct_{n_hops}"] = _share(recall(lm, [f"Q: {multi_hop_question(world, chain)} A:" for chain in chains], goal).correct)
    return result


def robustness(lm: LM, world: World, n_facts: int = 300, seed: int = 0) -> dict[str, float]:
    """``robust``: share of cloze prompts answered the same when a true, unrelated sentence precedes them."""
    rng = random.Random(seed)
    facts, others = rng.sample(world.facts, n_facts), rng.sample(world.facts, n_facts)
    cloze = lambda fact: world.relations[fact.relation].cloze[0].format(fact.subject)
    goal = [fact.object for fact in facts]
    bare = recall(lm, [cloze(fact) for fact in facts], goal).correct
    after = recall(lm, [f"{cloze(other)} {other.object}. {cloze(fact)}" for fact, other in zip(facts, others)], goal).correct
    return {"robust": _share([a == b for a, b in zip(bare, after)])}


def measure(lm: LM, world: World, n_facts: int | None = None, n_chains: int = 100, seed: int = 0) -> dict[str, float]:
    """All bars of a model: shares between 0 and 1, by name; ``BARS`` holds what a reference model must reach."""
    return knowledge(lm, world, n_facts, seed) | reasoning(lm, world, n_chains, seed=seed) | robustness(lm, world, seed=seed)


def _share(values) -> float:
    return sum(values) / len(values)
