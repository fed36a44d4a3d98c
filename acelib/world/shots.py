"""Few-shot prompts for models that were not trained on this world: what they know shows them how.

Demonstrations are facts, and chains of two facts, that the asked model knows: a small model that is
shown four hops, or names it has never read, imitates the form and loses the answer. The world that
is given to these functions holds the known facts only.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from random import Random

from ..records import Chain, Fact
from .wording import few_shot_demo, multi_hop_question, single_hop_cloze, single_hop_question
from .wording import statement as stated
from .world import World, chains, split_of

SPLIT = "identification"  #: whose chains are shown; no case that is judged is made of them


def statements_before(world: World, fact: Fact, n: int = 4) -> str:
    """The cloze of a fact behind ``n`` statements of its relation, about other subjects."""
    shown = [stated(world, other) for other in relatives(world, fact, n)]
    return " ".join([*shown, single_hop_cloze(world, fact)])


def question_after(world: World, fact: Fact, n: int = 4) -> str:
    """The question of a fact behind ``n`` questions of its relation and their answers."""
    shown = [
        f"Question: {single_hop_question(world, other)}\nAnswer: {other.object}"
        for other in relatives(world, fact, n)
    ]
    return "\n\n".join([*shown, f"Question: {single_hop_question(world, fact)}\nAnswer:"])


def relatives(world: World, fact: Fact, n: int) -> list[Fact]:
    """``n`` facts of the same relation with different objects, of which none is the fact's own; the
    same ones for all facts as far as possible.
    """
    shown: list[Fact] = []
    for other in _shuffled(world, fact.relation):
        taken = {fact.object, *(one.object for one in shown)}
        if len(shown) < n and other.subject != fact.subject and other.object not in taken:
            shown.append(other)
    return shown


@lru_cache(maxsize=256)
def _shuffled(world: World, relation: str) -> tuple[Fact, ...]:
    some = [fact for fact in world.facts if fact.relation == relation]
    return tuple(Random(relation).sample(some, len(some)))


def shown_chains(world: World, avoid: Collection[str], n: int = 4, n_hops: int = 2) -> list[Chain]:
    """``n`` chains of known facts that share no name with ``avoid`` or each other, of different
    last relations as far as there are; fewer if there are not so many.
    """
    used, chosen = set(avoid), list[Chain]()
    pool = list(_pool(world, n_hops))
    while pool and len(chosen) < n:
        ends = [chain.path[-1] for chain in chosen]
        free = [chain for chain in pool if used.isdisjoint(chain.entities)]
        if not free:
            break
        best = min(free, key=lambda chain: ends.count(chain.path[-1]))
        chosen.append(best)
        used.update(best.entities)
        pool = free
    return chosen


@lru_cache(maxsize=8)
def _pool(world: World, n_hops: int) -> tuple[Chain, ...]:
    """Chains of the split, in a random order that is always the same."""
    found = [chain for chain in chains(world, n_hops) if split_of(chain) == SPLIT]
    return tuple(Random(n_hops).sample(found, len(found)))


def with_thoughts(world: World, shown: Sequence[Chain], question: str) -> str:
    """A chain-of-thought prompt; the model goes on with its thoughts and a line "Answer: ...".

    Source: ACE, Appendix H.1; demonstrations of two hops instead of two to four.
    """
    demos = [few_shot_demo(world, chain) for chain in shown]
    return "\n\n".join([*demos, f"Question: {question}\nThoughts:"])


def direct(world: World, shown: Sequence[Chain], question: str) -> str:
    """A prompt whose demonstrations give the answers at once, and so should the model."""
    demos = [
        f"Question: {multi_hop_question(world, chain)}\nAnswer: {chain.answer}" for chain in shown
    ]
    return "\n\n".join([*demos, f"Question: {question}\nAnswer:"])
