"""Facts about subjects whose names end in the same token as an edited one.

An edit is written at its subject's last token. Where a layer sees little else than that token, all
names that end in it share a key, and their facts change with the edited one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from random import Random

from ..editing.keys import tokens
from ..model.lm import LM
from ..records import Edit, Fact
from ..world.wording import single_hop_cloze
from ..world.world import World, untouched


def same_ending_facts(
    lm: LM, world: World, edits: Sequence[Edit], n: int, rng: Random
) -> list[Fact]:
    """Up to ``n`` facts about other subjects whose name ends in the last token of an edited one.

    They are facts that ``edits`` leave as they are: facts about an edited subject, and those that
    an edit changes through an inverse relation, are none of them.
    """
    ends = {last_token(lm, edit.text, edit.subject.strip()) for edit in edits}
    stays, subjects = untouched(world, edits), {edit.subject for edit in edits}
    pool = [
        fact
        for fact, end in endings(lm, world).items()
        if end in ends and fact.subject not in subjects and stays(fact)
    ]
    return rng.sample(pool, min(n, len(pool)))


def endings(lm: LM, world: World) -> dict[Fact, int]:
    """The last token of every fact's subject, where it stands in the canonical prompt."""
    return _endings(lm, lm.fingerprint, world)


@lru_cache(maxsize=8)
def _endings(lm: LM, fingerprint: str, world: World) -> dict[Fact, int]:
    """``endings``; fingerprint: another one, another model."""
    return {
        fact: last_token(lm, single_hop_cloze(world, fact), fact.subject) for fact in world.facts
    }


def last_token(lm: LM, text: str, subject: str) -> int:
    """The last token of a subject in a text about it."""
    ids, at = tokens(lm, text, text.index(subject) + len(subject))
    return ids[at]
