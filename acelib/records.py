"""What all speak of: facts, edits, chains of facts, and the cases that ask for them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from reprlib import Repr
from typing import TypeGuard


def quoted(value: object, most: int = 120) -> str:
    """A value as messages show it: its ``repr``, its middle left out if that is long."""
    short = Repr()
    short.maxstring = short.maxother = short.maxlong = most
    text = short.repr(value)  # of a list of long texts it is long all the same
    return text if len(text) <= 2 * most else f"{text[:most]}...{text[-most:]}"


def is_text(value: object) -> TypeGuard[str]:
    """Whether a value is a text that files can hold: UTF-8 has no lone surrogates."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def check_template(template: object, owner: str) -> None:
    """Raises ValueError, naming ``owner``, unless ``template`` has one place for a subject."""
    if not is_text(template) or template.count("{}") != 1:
        raise ValueError(
            f"{owner}: a template must hold exactly one '{{}}', got {quoted(template)}"
        )


@dataclass(frozen=True)
class Fact:
    """(s, r, o), by names and relation key."""

    subject: str
    relation: str
    object: str


@dataclass(frozen=True)
class Edit:
    """What every editor consumes: (s, r, o) -> (s, r, o*).

    Raises ValueError if the subject, a template or a target is unusable.
    """

    subject: str
    #: template whose filled text ends right before the object
    prompt: str
    target_new: str
    target_true: str = ""
    #: other templates of the same fact
    paraphrases: tuple[str, ...] = ()
    relation: str = ""
    #: complete multi-hop prompts that end in this fact: "The sport of the spouse of X is"
    hops: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("subject", "target_new"):
            text = getattr(self, name)
            if not is_text(text) or not text.strip():
                raise ValueError(f"{name} of an edit must be a non-empty text, got {quoted(text)}")
        owner = f"the edit of {quoted(self.subject)}"
        for name in ("target_true", "relation"):
            text = getattr(self, name)
            if not is_text(text):
                raise ValueError(
                    f"{name} of {owner} must be a text, '' if it is not known, got {quoted(text)}"
                )
        for name in ("paraphrases", "hops"):
            texts = getattr(self, name)
            if not isinstance(texts, (list, tuple)) or not all(map(is_text, texts)):
                raise ValueError(f"{name} of {owner} must be a list of texts, got {quoted(texts)}")
            object.__setattr__(self, name, tuple(texts))
        for template in (self.prompt, *self.paraphrases):
            check_template(template, owner)
        if self.target_new.strip() == self.target_true.strip():
            raise ValueError(
                f"target_new of {owner} is already the answer: {quoted(self.target_new)}"
            )

    @property
    def text(self) -> str:
        """The prompt with its subject, without blanks at its end: an answer brings its own."""
        return self.prompt.replace("{}", self.subject).rstrip()


@dataclass(frozen=True)
class Chain:
    """Facts in a row; raises ValueError if the object of one is not the subject of the next."""

    facts: tuple[Fact, ...]

    def __post_init__(self):
        for one, next_one in pairwise(self.facts):
            if one.object != next_one.subject:
                raise ValueError(f"a chain is broken: {one} is followed by {next_one}")

    @property
    def subject(self) -> str:
        """Where the chain starts."""
        return self.facts[0].subject

    @property
    def answer(self) -> str:
        """Where it ends."""
        return self.facts[-1].object

    @property
    def path(self) -> tuple[str, ...]:
        """Relation keys, first hop first."""
        return tuple(fact.relation for fact in self.facts)

    @property
    def entities(self) -> tuple[str, ...]:
        """Start, bridges, answer."""
        return (self.subject, *(fact.object for fact in self.facts))


@dataclass(frozen=True)
class Hop:
    """One single-hop question of a case, with its filled cloze prompt."""

    question: str
    cloze: str
    answer: str
    answer_alias: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """A chain, its edits, and questions whose answer they change."""

    case_id: int
    edits: tuple[Edit, ...]
    questions: tuple[str, ...]
    answer: str
    answer_alias: tuple[str, ...]
    new_answer: str
    new_answer_alias: tuple[str, ...]
    hops: tuple[Hop, ...]
    new_hops: tuple[Hop, ...]
    chain: tuple[tuple[str, str, str], ...]  #: (subject, relation label, object)
    new_chain: tuple[tuple[str, str, str], ...]
    #: keys (or Wikidata ids where the world has no such relation), one per hop
    relations: tuple[str, ...]

    @property
    def n_hops(self) -> int:
        """How many facts the chain has."""
        return len(self.hops)

    @property
    def n_edits(self) -> int:
        """How many of them are edited."""
        return len(self.edits)

    @property
    def entities(self) -> frozenset[str]:
        """Every name on the old and the new chain."""
        return frozenset(name for s, _, o in (*self.chain, *self.new_chain) for name in (s, o))
