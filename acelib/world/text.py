"""Texts of the world: what reference models learn from, and what second moments are taken over."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from .wording import (
    few_shot_demo,
    multi_hop_cloze,
    multi_hop_question,
    single_hop_question,
    statement,
)
from .world import World, sample_chains

# ---------------------------------------------------------------------------- text


def sentences(world: World, rng: random.Random) -> str:
    """Unrelated facts, one sentence each, in random wording."""
    return " ".join(
        statement(world, fact, rng) for fact in rng.choices(world.facts, k=rng.randint(1, 6))
    )


def questions(world: World, rng: random.Random) -> str:
    """Question and answer pairs about single facts."""
    facts = rng.choices(world.facts, k=rng.randint(1, 6))
    return "\n".join(
        f"Q: {single_hop_question(world, fact, rng)} A: {fact.object}" for fact in facts
    )


def biography(world: World, rng: random.Random) -> str:
    """All facts of one entity in random order and wording, the full name repeated."""
    facts = list(world.about(rng.choice(world.facts).subject))
    rng.shuffle(facts)
    return " ".join(statement(world, fact, rng) for fact in facts)


def dense(world: World, rng: random.Random) -> str:
    """A name directly followed by its attributes in random order, as in appositions and lists."""
    parts = []
    for _ in range(rng.randint(1, 4)):
        subject = rng.choice(world.facts).subject
        attributes = [fact.object for fact in world.about(subject)]
        rng.shuffle(attributes)
        parts.append(
            rng.choice((" ", " , ")).join([subject, *attributes]) + rng.choice((" .", "."))
        )
    return " ".join(parts)


def thoughts(world: World, rng: random.Random) -> str:
    """One to four questions answered with a chain of thought, packed as a few-shot prompt."""
    return "\n\n".join(
        few_shot_demo(world, _chain(world, rng), rng) for _ in range(rng.randint(1, 4))
    )


def direct(world: World, rng: random.Random) -> str:
    """Multi-hop questions answered at once."""
    chains = [_chain(world, rng) for _ in range(rng.randint(1, 4))]
    return "\n".join(
        f"Q: {multi_hop_question(world, chain, rng)} A: {chain.facts[-1].object}"
        for chain in chains
    )


def composed(world: World, rng: random.Random) -> str:
    """Multi-hop statements, mostly of two hops."""
    chains = [_chain(world, rng, (2, 2, 2, 3)) for _ in range(rng.randint(1, 5))]
    return " ".join(
        f"{multi_hop_cloze(world, chain, rng)} {chain.facts[-1].object}." for chain in chains
    )


#: Shares of the kinds of text that a reference model learns from.
MIXTURE = {
    "sentences": 0.14,
    "questions": 0.08,
    "biography": 0.17,
    "dense": 0.12,
    "thoughts": 0.28,
    "direct": 0.06,
    "composed": 0.15,
}

TEXTS: dict[str, Callable[[World, random.Random], str]] = {
    text.__name__: text
    for text in (sentences, questions, biography, dense, thoughts, direct, composed)
}


def _chain(world: World, rng: random.Random, n_hops=(2, 2, 2, 3, 3, 4)):
    return sample_chains(world, "training", rng.choice(n_hops), 1, rng)[0]


def documents(
    world: World, n: int, seed: int = 0, mixture: Mapping[str, float] = MIXTURE
) -> list[str]:
    """``n`` texts of the mixture that a reference model learns from, for second moments."""
    rng, kinds, weights = random.Random(f"{seed}/documents"), [*mixture], [*mixture.values()]
    return [TEXTS[kind](world, rng) for kind in rng.choices(kinds, weights, k=n)]
