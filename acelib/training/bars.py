"""The bars a reference model must pass before experiments on it mean anything: does it know the
world, can it reason over it, and does it store facts where editors look for them?
"""

from __future__ import annotations

from collections.abc import Mapping

from ..editing.moments import second_moments
from ..measures import fact_sites, known
from ..model.lm import LM
from ..world.text import documents
from ..world.world import World

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
#: The same of ROME and MEMIT, once they have edited a fact.
EDITED = dict(efficacy=0.90, paraphrase=0.75, specificity=0.95, endings=0.95)
BARS |= {f"{editor}_{name}": least for editor in known.EDITORS for name, least in EDITED.items()}
BARS |= fact_sites.BARS


def knowledge(lm: LM, world: World, n_facts: int | None = None, seed: int = 0) -> dict[str, float]:
    """Shares of ``known.fact_answers``, of all facts or of a sample."""
    facts = known.facts(world, n_facts, seed)
    return known.shares(known.fact_answers(lm, world, facts))


def reasoning(
    lm: LM, world: World, n_chains: int = 100, split: str = "evaluation", seed: int = 0
) -> dict[str, float]:
    """Shares of ``known.chain_answers``, of ``n_chains`` chains of each length."""
    chains = known.drawn_chains(world, n_chains, seed, split)
    return known.shares(known.chain_answers(lm, world, chains))


def robustness(
    lm: LM, world: World, n_facts: int = known.N_CONTEXTS, seed: int = 0
) -> dict[str, float]:
    """Share of ``known.context_answers``."""
    pairs = known.context_pairs(world, n_facts, seed)
    return known.shares(known.context_answers(lm, world, pairs))


def editing(
    lm: LM, world: World, n_edits: int = 100, n_unrelated: int = known.N_UNRELATED, seed: int = 0
) -> dict[str, float]:
    """Shares of ``known.edit_answers``: edits in the first three layers of the early site behind
    layer 0, as those of MEMIT's authors in layers 3-8 of GPT-J's 28. Zero without an early site, or
    without a known fact.
    """
    site = known.written_site(lm, world, seed)
    trials = known.trials(lm, world, n_edits, n_unrelated, seed) if site else []
    if not trials:
        return {name: 0.0 for name in BARS if name.startswith(known.EDITORS)}
    moments = second_moments(lm, documents(world, 2000), site)
    return known.shares(known.edit_answers(lm, world, trials, site, moments))


def measure(
    lm: LM,
    world: World,
    n_facts: int | None = None,
    n_chains: int = 100,
    n_edits: int = 100,
    n_averaged: int = 150,
    seed: int = 0,
) -> dict[str, float]:
    """All bars of a model: shares between 0 and 1, by name; ``BARS`` holds what is to be reached.

    Without edits, no bars of editors.
    """
    shares = knowledge(lm, world, n_facts, seed)
    shares |= reasoning(lm, world, n_chains, seed=seed)
    shares |= robustness(lm, world, seed=seed)
    shares |= fact_sites.shares(lm, world, n_averaged, seed)
    return shares | (editing(lm, world, n_edits, seed=seed) if n_edits else {})


def brief(lm: LM, world: World) -> dict[str, float]:
    """``measure`` while a model is trained: of few facts and chains, and without edits."""
    return measure(lm, world, n_facts=120, n_chains=40, n_edits=0, n_averaged=40)


def unreached(shares: Mapping[str, float]) -> list[str]:
    """The bars that a model does not reach.   shares: as ``measure`` gives them."""
    return [name for name, least in BARS.items() if not shares[name] >= least]
