"""Counterfactual multi-hop editing cases, as those of MQuAKE-CF-3k, made from the world.

A case takes a chain, edits k of its n facts, (s, r, o) -> (s, r, o*), and follows the same
relations from the new objects through the world to a new answer. Three questions, worded
differently, ask for the end of the chain.
Source: Zhong et al., 2023, arXiv:2305.14795.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import cycle, product
from random import Random

from ..records import Case, Chain, Edit, Fact, Hop
from .wording import multi_hop_cloze, multi_hop_question, single_hop_cloze, single_hop_question
from .world import World, chains, draw_chains, split_of

#: Multi-hop prompts an edit is given at most, each from another predecessor of its subject.
N_PREDECESSORS = 4


def make_cases(
    world: World,
    split: str,
    n: int,
    seed: int,
    n_hops: Sequence[int] = (2, 3, 4),
    n_edits: Sequence[int] = (1, 2, 3, 4),
) -> list[Case]:
    """``n`` cases on different chains of a split, balanced over the possible pairs (hops, edits).

    A function of its arguments. A new object comes from the same relation and type, the new chain
    goes on in the world and repeats no entity, the answer changes.
    Raises ValueError if no pair is possible or the world runs out of chains.
    """
    shapes = [
        (hops, edits) for hops, edits in product(n_hops, n_edits) if 1 <= edits <= hops and hops > 1
    ]
    if not shapes:
        raise ValueError(
            f"no case has {tuple(n_hops)} hops and {tuple(n_edits)} edits: "
            "give 2 hops or more, and at most as many edits"
        )
    rng, cases = Random(seed), []
    supply = {hops: draw_chains(world, split, hops, rng) for hops, _ in shapes}
    for case_id, (hops, edits) in zip(range(n), cycle(shapes)):
        for old in supply[hops]:
            edited = frozenset(rng.sample(range(hops), edits))
            if new := _rewrite(world, old, edited, (), rng):
                cases.append(_case(world, case_id, old, Chain(new), edited, rng))
                break
    return cases


def all_cases(
    world: World,
    splits: Collection[str],
    n: int,
    seed: int,
    n_hops: Sequence[int] = (2, 3),
    n_edits: Sequence[int] = (1, 2),
) -> list[Case]:
    """Up to ``n`` cases on different chains of ``splits``, balanced as in ``make_cases`` as long as
    the chains last.

    For a world that holds only what a model knows: its chains are few, old and new facts are all
    known, and no case has to be filtered. Raises ValueError if no pair (hops, edits) is possible.
    """
    shapes = [(hops, edits) for hops, edits in product(n_hops, n_edits) if 1 <= edits <= hops]
    if not shapes:
        raise ValueError(f"no case has {tuple(n_hops)} hops and {tuple(n_edits)} edits")
    rng, cases = Random(seed), list[Case]()
    pools = {hops: [c for c in chains(world, hops) if split_of(c) in splits] for hops in n_hops}
    for pool in pools.values():
        rng.shuffle(pool)
    # A shape that finds no chain any more is left out; the others go on.
    while shapes and len(cases) < n:
        for hops, edits in list(shapes):
            made = _next_case(world, len(cases), pools[hops], edits, rng)
            if made is None:
                shapes.remove((hops, edits))
            elif len(cases) < n:
                cases.append(made)
    return cases


def _next_case(
    world: World, case_id: int, pool: list[Chain], edits: int, rng: Random
) -> Case | None:
    """The case of the first chain of a pool that can be edited; what was tried is taken out."""
    while pool:
        old = pool.pop()
        edited = frozenset(rng.sample(range(len(old.facts)), edits))
        if new := _rewrite(world, old, edited, (), rng):
            return _case(world, case_id, old, Chain(new), edited, rng)
    return None


def _rewrite(
    world: World,
    old: Chain,
    edited: frozenset[int],
    walk: tuple[Fact, ...],
    rng: Random,
    width: int = 12,
) -> tuple[Fact, ...]:
    """The new chain that begins with ``walk``, by depth-first search; empty if there is none.

    width: new objects that are tried for each hop.
    """
    hop, path = len(walk), old.path
    if hop == len(path):
        return (
            walk
            if {walk[-1].object, *world.aliases(walk[-1].object)}.isdisjoint(
                {old.answer, *world.aliases(old.answer)}
            )
            else ()
        )
    subject = walk[-1].object if walk else old.subject
    true, taken = world.lookup(subject, path[hop]), {old.subject, *(fact.object for fact in walk)}
    if true is None:
        return ()
    options = (
        [true]
        if hop not in edited
        else [
            name
            for name in world.objects(path[hop])
            if name != true
            and world.kind(name) == world.kind(true)
            and (hop + 1 == len(path) or world.lookup(name, path[hop + 1]))
        ]
    )
    for name in rng.sample(options, min(width, len(options))):
        if name not in taken and (
            found := _rewrite(world, old, edited, (*walk, Fact(subject, path[hop], name)), rng)
        ):
            return found
    return ()


def _case(
    world: World, case_id: int, old: Chain, new: Chain, edited: frozenset[int], rng: Random
) -> Case:
    """The case of a chain that edits of its hops ``edited`` turn into ``new``."""
    questions: dict[str, None] = {}
    while len(questions) < 3:
        questions[multi_hop_question(world, old, rng)] = None
    edited_facts = [new.facts[hop] for hop in sorted(edited)]
    old_objects = {_object(world, fact) for fact in edited_facts}
    avoid = {*old.entities, *new.entities, *old_objects}
    return Case(
        case_id=case_id,
        edits=tuple(_edit(world, fact, avoid, rng) for fact in edited_facts),
        questions=tuple(questions),
        answer=old.answer,
        answer_alias=world.aliases(old.answer),
        new_answer=new.answer,
        new_answer_alias=world.aliases(new.answer),
        hops=_hops(world, old),
        new_hops=_hops(world, new),
        chain=_labelled(world, old),
        new_chain=_labelled(world, new),
        relations=old.path,
    )


def _object(world: World, fact: Fact) -> str:
    """What the world says of the subject and the relation of ``fact``; "" if it says nothing."""
    return world.lookup(fact.subject, fact.relation) or ""


def _hops(world: World, chain: Chain) -> tuple[Hop, ...]:
    return tuple(
        Hop(
            single_hop_question(world, fact),
            single_hop_cloze(world, fact),
            fact.object,
            world.aliases(fact.object),
        )
        for fact in chain.facts
    )


def _labelled(world: World, chain: Chain) -> tuple[tuple[str, str, str], ...]:
    """The facts of a chain with the names of their relations."""
    return tuple(
        (fact.subject, world.relations[fact.relation].label, fact.object) for fact in chain.facts
    )


def _edit(world: World, fact: Fact, avoid: set[str], rng: Random) -> Edit:
    """The edit that makes ``fact`` true. No multi-hop prompt of it begins in ``avoid``."""
    known = [before for before in world.into(fact.subject) if before.subject not in avoid]
    hops = [
        multi_hop_cloze(world, Chain((before, fact)))
        for before in rng.sample(known, min(N_PREDECESSORS, len(known)))
    ]
    first, *others = world.relations[fact.relation].cloze
    return Edit(
        fact.subject,
        first,
        fact.object,
        _object(world, fact),
        tuple(others),
        fact.relation,
        tuple(hops),
    )


def single_edits(world: World, n: int, seed: int = 0) -> list[Edit]:
    """``n`` different facts of the world, each to get another object of its relation and type.

    Raises ValueError if fewer can be had.
    """
    rng = Random(f"{seed}/single")
    edits: list[Edit] = []
    for fact in rng.sample(world.facts, len(world.facts)):
        others = [
            name
            for name in world.objects(fact.relation)
            if name != fact.object and world.kind(name) == world.kind(fact.object)
        ]
        if len(edits) == n:
            break
        if others:
            edits.append(
                _edit(
                    world, Fact(fact.subject, fact.relation, rng.choice(others)), {fact.object}, rng
                )
            )
    if len(edits) < n:
        raise ValueError(f"{n} single edits asked for; this world has {len(edits)}")
    return edits


def conflicts(edits: Iterable[Edit]) -> list[tuple[Edit, ...]]:
    """Groups of edits that want different objects for one (subject, relation).

    Identical repeats are no conflict.
    """
    groups: dict[tuple[str, str], dict[str, Edit]] = {}
    for edit in edits:
        groups.setdefault((edit.subject, edit.relation or edit.prompt), {}).setdefault(
            edit.target_new, edit
        )
    return [tuple(group.values()) for group in groups.values() if len(group) > 1]
