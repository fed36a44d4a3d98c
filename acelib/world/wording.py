"""Wording: single- and multi-hop prompts, few-shot prompts, reading and comparing answers.

Multi-hop wordings compose: the noun phrases of r1 ... r(n-1) are put around the start, and the last
relation asks or states. Names and templates are never re-capitalised, except the "The" that opens a
statement.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from random import Random

from ..records import Case, Chain, Fact
from .world import World, sample_chains

#: Hops of the demonstrations of a few-shot prompt, in order.
DEMO_HOPS = (2, 3, 4, 2)


def _pick(wordings: Sequence[str], rng: Random | None) -> str:
    return rng.choice(wordings) if rng else wordings[0]


def held_out(world: World, fact: Fact) -> tuple[str, str]:
    """The statement and the question template that training text never uses for this fact.

    Judging by them is judging by unseen wording. They are drawn with the fact as seed and never the
    canonical ones ("" if there is no other); other facts of the relation are told in them.
    """
    relation, draw = (
        world.relations[fact.relation],
        Random("/".join((fact.subject, fact.relation, fact.object))),
    )
    return draw.choice(relation.cloze[1:] or [""]), draw.choice(relation.questions[1:] or [""])


def _seen(world: World, fact: Fact, wordings: Sequence[str], rng: Random | None) -> str:
    """The canonical wording, or a random one that is not held out for the fact."""
    return (
        rng.choice([wording for wording in wordings if wording not in held_out(world, fact)])
        if rng
        else wordings[0]
    )


def statement(world: World, fact: Fact, rng: Random | None = None) -> str:
    """A fact as a sentence, "Tim Duncan plays the sport of basketball.".

    In the canonical or a random wording, not the held-out one.
    """
    return f"{single_hop_cloze(world, fact, rng)} {fact.object}."


def single_hop_cloze(world: World, fact: Fact, rng: Random | None = None) -> str:
    """The prompt that ends right before the object: "Tim Duncan plays the sport of"."""
    return _seen(world, fact, world.relations[fact.relation].cloze, rng).replace("{}", fact.subject)


def single_hop(world: World, fact: Fact) -> tuple[str, str]:
    """The canonical prompt of a fact and its answer."""
    return single_hop_cloze(world, fact), fact.object


def single_hop_question(world: World, fact: Fact, rng: Random | None = None) -> str:
    """The question for the object: "Which sport does Tim Duncan play?"."""
    return _seen(world, fact, world.relations[fact.relation].questions, rng).replace(
        "{}", fact.subject
    )


def noun_phrase(
    world: World, facts: Iterable[Fact], subject: str, rng: Random | None = None
) -> str:
    """The object of ``facts``, followed from ``subject``, as a phrase.

    "the country of origin of the sport of Tim Duncan"
    """
    for fact in facts:
        subject = _pick(world.relations[fact.relation].nouns, rng).replace("{}", subject)
    return subject


def multi_hop_question(world: World, chain: Chain, rng: Random | None = None) -> str:
    """The question for the end of a chain.

    "In which country did the sport of Tim Duncan originate?"
    """
    return _pick(world.relations[chain.path[-1]].questions, rng).replace(
        "{}", noun_phrase(world, chain.facts[:-1], chain.subject, rng)
    )


def multi_hop_cloze(world: World, chain: Chain, rng: Random | None = None) -> str:
    """The prompt that ends right before the end of a chain.

    "The country of origin of the sport of Tim Duncan is"
    """
    phrase = noun_phrase(world, chain.facts, chain.subject, rng)
    return f"{phrase[0].upper()}{phrase[1:]} is"


def few_shot_demo(world: World, chain: Chain, rng: Random | None = None) -> str:
    """A solved example: question, thoughts (one canonical sentence for each hop), answer.

    rng: varies the question only.
    """
    thoughts = " ".join(statement(world, fact) for fact in chain.facts)
    question = multi_hop_question(world, chain, rng)
    return f"Question: {question}\nThoughts: {thoughts}\nAnswer: {chain.answer}"


@lru_cache(maxsize=8)
def _pool(world: World, n_hops: int, size: int = 200) -> tuple[Chain, ...]:
    return tuple(sample_chains(world, "identification", n_hops, size, Random(n_hops)))


def demonstrations(
    world: World, avoid: Collection[str] = (), n_shots: int = 4, relations: Collection[str] = ()
) -> tuple[Chain, ...]:
    """``n_shots`` chains of the identification split with 2, 3, 4, 2, ... hops.

    The same for all cases as far as possible: a chain that has one of ``relations``, or shares a
    name with ``avoid`` (the asked case) or with an earlier demonstration, is passed over; if all
    do, the one with the fewest relations, then names, is taken. A function of its arguments.
    Raises ValueError if ``n_shots`` is negative or the world has too few chains.
    """
    if n_shots < 0:
        raise ValueError(f"n_shots must not be negative, got {n_shots}")
    return _chosen(world, frozenset(avoid), n_shots, frozenset(relations))


@lru_cache(maxsize=1024)
def _chosen(
    world: World, avoid: frozenset[str], n_shots: int, relations: frozenset[str]
) -> tuple[Chain, ...]:
    """``demonstrations``, kept: all questions of a case ask for the same, and so do all editors."""
    used, chosen = set(avoid), []
    for shot in range(n_shots):
        pool = _pool(world, DEMO_HOPS[shot % len(DEMO_HOPS)])
        best = min(
            (chain for chain in pool if chain not in chosen),
            key=lambda chain: (
                len(relations.intersection(chain.path)),
                len(used.intersection(chain.entities)),
            ),
        )
        chosen.append(best)
        used.update(best.entities)
    return tuple(chosen)


def few_shot(
    world: World,
    question: str,
    case: Case | None = None,
    n_shots: int = 4,
    out_of_domain: bool = False,
) -> str:
    """The chain-of-thought prompt: demonstrations and the question, blank lines between.

    The model goes on with its thoughts and a line "Answer: ...".
    question: asked as it is.   case: its names are kept out of the demonstrations, and its
    relations too if ``out_of_domain``.   n_shots: 0 gives the zero-shot prompt.
    Source: ACE, Appendix H.1 (there the prompt ends with the question; here with "Thoughts:", so
    that every model starts to think).
    """
    avoid = (
        case.entities
        | {
            name
            for edit in case.edits
            for name in (edit.subject, edit.target_new, edit.target_true)
        }
        if case
        else ()
    )
    relations = case.relations if case and out_of_domain else ()
    demos = [
        few_shot_demo(world, chain) for chain in demonstrations(world, avoid, n_shots, relations)
    ]
    return "\n\n".join([*demos, f"Question: {question}\nThoughts:"])


def parse_answer(text: str, marker: str = "Answer:") -> str:
    """The answer in a continuation: the rest of the line after ``marker``; "" if there is none.

    marker: "" for direct prompts. What follows a new question does not count.
    """
    found = text.split("Question:")[0].partition(marker)[2] if marker else text
    return found.strip().split("\n")[0].strip() if found.strip() else ""


def normalise(text: str) -> str:
    """Text for comparison: no case, accents, punctuation, leading article or double blanks.

    "The Beyoncé!" -> "beyonce"
    """
    plain = "".join(
        c
        for c in unicodedata.normalize("NFKD", text.casefold())
        if not unicodedata.combining(c) and c not in ".'’"
    )
    words = "".join(c if c.isalnum() else " " for c in plain).split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("the", "a", "an") else words)


def matches(text: str, accepted: Iterable[str], substring: bool = False) -> bool:
    """Whether ``text`` is one of the accepted answers after normalisation.

    substring: holding one as whole words is enough.
    """
    said, wanted = normalise(text), [name for name in map(normalise, accepted) if name]
    return any(f" {name} " in f" {said} " for name in wanted) if substring else said in wanted


def first_answer(text: str) -> bool:
    """True once a chain of thought has given its answer: the stopping rule of such prompts."""
    _, found, tail = text.partition("Answer:")
    return bool(found) and "\n" in tail.lstrip()
