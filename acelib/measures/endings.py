"""Facts about subjects whose names end in the same token as an edited one.

An edit is written at its subject's last token. Where a layer sees little else than that token, all
names that end in it share a key, and their facts change with the edited one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from random import Random

from ..editing.keys import tokens
from ..model.answers import known_items
from ..model.lm import LM
from ..records import Edit, Fact
from ..world.wording import single_hop
from ..world.world import World, untouched


@dataclass(frozen=True, eq=False)
class Endings:
    """The facts of a world by the token that a model's subjects end in."""

    lm: LM
    world: World

    @cached_property
    def by_fact(self) -> dict[Fact, int]:
        """The last token of every fact's subject, where it stands in the canonical prompt."""
        return {
            fact: last_token(self.lm, single_hop(self.world, fact)[0], fact.subject)
            for fact in self.world.facts
        }

    def facts(self, edits: Sequence[Edit], n: int, rng: Random) -> list[Fact]:
        """Up to ``n`` facts about other subjects whose name ends in the last token of an edited
        one.

        They are facts that the model says and that ``edits`` leave as they are: facts about an
        edited subject, and those that an edit changes through an inverse relation, are none of
        them.
        """
        ends = {last_token(self.lm, edit.text, edit.subject.strip()) for edit in edits}
        stays, subjects = untouched(self.world, edits), {edit.subject for edit in edits}
        pool = [
            fact
            for fact, end in self.by_fact.items()
            if end in ends and fact.subject not in subjects and stays(fact)
        ]
        rng.shuffle(pool)
        known: list[Fact] = []
        for start in range(0, len(pool), 2 * n):  # most are known: few need to be asked
            some = pool[start : start + 2 * n]
            known += known_items(self.lm, some, partial(single_hop, self.world))
            if len(known) >= n:
                break
        return known[:n]


def last_token(lm: LM, text: str, subject: str) -> int:
    """The last token of a subject in a text about it."""
    ids, at = tokens(lm, text, text.index(subject) + len(subject))
    return ids[at]
