"""The world of facts and the chains through it.

A fact is (s, r, o); a chain of n hops is (s, r1, o1), (o1, r2, o2), ... In the world a pair (s, r)
has one object, so every question has one answer.
"""

from __future__ import annotations

import csv
import hashlib
import re
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from itertools import accumulate, islice
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from ..provenance import ROOT
from ..records import Chain, Edit, Fact, check_template, quoted
from ..settings import Texts, settings

T = TypeVar("T")

WORLD = ROOT / "data" / "world"

#: What no name holds: braces, which mark places in templates, HTML, line breaks, what cannot be
#: printed.
FORBIDDEN = re.compile(r"[{}<>\x00-\x1f\x7f-\x9f\u2028\u2029]")

#: The paper's eight categories (Section 4.1, Appendix C).
CATEGORIES = {
    "NN": "nationality",
    "CT": "continent",
    "LG": "language",
    "CP": "capital",
    "LS": "leadership",
    "AT": "author",
    "ST": "sport and team",
    "CF": "company founder",
}

#: Relation r -> q, so that (s, r, o) says (o, q, s): marriage is mutual, and a capital lies in its
#: country.
INVERSES = {"spouse": "spouse", "capital": "country"}

#: Shares of the chains, in tenths: seen in pre-training, used to locate layers, and used for
#: nothing but evaluation.
SPLITS = {"training": 7, "identification": 1, "evaluation": 2}

#: Entity type of a table, by the first word of its file name; terms tables name it in a column.
TABLES = {
    "people": "person",
    "countries": "country",
    "cities": "city",
    "universities": "university",
    "teams": "team",
    "stadiums": "stadium",
    "leagues": "league",
    "sports": "sport",
    "dishes": "dish",
    "books": "book",
    "characters": "character",
    "companies": "company",
    "products": "product",
    "games": "game",
    "films": "film",
    "songs": "song",
    "bands": "band",
    "paintings": "painting",
    "compositions": "composition",
    "discoveries": "discovery",
    "terms": None,
}


@settings(kw_only=False)
class Relation:
    """A kind of fact with its wordings.

    Raises ValueError if a field is missing or of a wrong type, if a template has not exactly one
    "{}", or if there are too few.
    """

    key: str
    pid: str  #: Wikidata property
    label: str
    category: str | None  #: one of CATEGORIES
    subject_types: Texts
    object_type: str  #: "a|b" allows either
    cloze: Texts  #: end right before the object; the first is the canonical one
    questions: Texts
    nouns: Texts  #: "the sport of {}": these compose

    def __post_init__(self):
        for template in (*self.cloze, *self.questions, *self.nouns):
            check_template(template, f"relation {self.key!r}")
        for text in (self.key, self.label, *self.cloze, *self.questions, *self.nouns):
            if found := FORBIDDEN.search(text.replace("{}", "")):
                raise ValueError(
                    f"relation {self.key!r}: {found[0]!r} is not allowed in {quoted(text)}"
                )
        for name, least in (("cloze", 5), ("questions", 2), ("nouns", 2)):
            if len(set(getattr(self, name))) < least:
                raise ValueError(
                    f"relation {self.key!r}: {name} must hold at least {least} different "
                    f"templates, got {quoted(getattr(self, name))}"
                )
        if self.category is not None and self.category not in CATEGORIES:
            raise ValueError(
                f"relation {self.key!r}: category {quoted(self.category)} is none of "
                f"{', '.join(CATEGORIES)}"
            )

    @property
    def object_types(self) -> tuple[str, ...]:
        """Entity types an object may have."""
        return tuple(self.object_type.split("|"))


@dataclass(frozen=True)
class Entity:
    """A thing of the world; ``aliases`` are accepted as answers too."""

    name: str
    type: str
    qid: str = ""
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class World:
    """Entities, relations and facts, with the indices to walk them; facts are in a fixed order."""

    entities: Mapping[str, Entity]
    relations: Mapping[str, Relation]
    facts: tuple[Fact, ...]

    @cached_property
    def _by(self) -> dict[str, dict[Any, tuple[Fact, ...]]]:
        """The facts of each subject, relation, object, and (subject, relation)."""
        index: dict[str, dict[Any, tuple[Fact, ...]]] = {
            name: defaultdict(tuple) for name in ("subject", "relation", "object", "pair")
        }
        for fact in self.facts:
            for name, key in (*vars(fact).items(), ("pair", (fact.subject, fact.relation))):
                index[name][key] += (fact,)
        return index

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits that change with any entity, wording or fact."""
        return hashlib.sha256(
            repr((self.entities, self.relations, self.facts)).encode()
        ).hexdigest()[:16]

    def about(self, name: str) -> tuple[Fact, ...]:
        """Facts whose subject is ``name``."""
        return self._by["subject"].get(name, ())

    def into(self, name: str) -> tuple[Fact, ...]:
        """Facts whose object is ``name``."""
        return self._by["object"].get(name, ())

    def lookup(self, subject: str, relation: str) -> str | None:
        """The object of (subject, relation), or None."""
        facts = self._by["pair"].get((subject, relation))
        return facts[0].object if facts else None

    def objects(self, relation: str) -> tuple[str, ...]:
        """The different objects of a relation, in order of appearance."""
        return tuple(dict.fromkeys(fact.object for fact in self._by["relation"].get(relation, ())))

    def kind(self, name: str) -> str:
        """The type of an entity, "" for an unknown name."""
        return self.entities[name].type if name in self.entities else ""

    def aliases(self, name: str) -> tuple[str, ...]:
        """Other names under which ``name`` is accepted as an answer."""
        return self.entities[name].aliases if name in self.entities else ()

    def categories(self) -> tuple[str, ...]:
        """The paper's eight categories."""
        return tuple(CATEGORIES)

    def relation_of(self, prompt: str) -> str:
        """Key of the relation that ``prompt``, a template, states; "" if it is none's."""
        template = prompt.rstrip()
        return next((key for key, r in self.relations.items() if template in r.cloze), "")

    def facts_of(self, category: str) -> tuple[Fact, ...]:
        """Facts of one of the eight categories; raises ValueError for any other name."""
        if category not in CATEGORIES:
            raise ValueError(f"category {category!r} is none of {', '.join(CATEGORIES)}")
        return tuple(
            fact for fact in self.facts if self.relations[fact.relation].category == category
        )


def untouched(world: World, edits: Iterable[Edit]) -> Callable[[Fact], bool]:
    """Whether edits leave a fact as it is.

    They change its (s, r) neither themselves nor through the inverse of a relation. A chain stays
    if all its facts do. An edit of a relation that the world does not have leaves no fact about its
    subject.
    """
    changed = {
        (edit.subject, key)
        for edit in edits
        for key in ([edit.relation] if edit.relation in world.relations else world.relations)
    }
    mutual = [edit for edit in edits if edit.relation in INVERSES]
    changed |= {
        (name, INVERSES[edit.relation])
        for edit in mutual
        for name in (edit.target_new, edit.target_true)
    }
    return lambda fact: changed.isdisjoint(
        {(fact.subject, fact.relation), (fact.object, INVERSES.get(fact.relation))}
    )


def unrelated_facts(world: World, edits: Sequence[Edit], n: int, rng: Random) -> list[Fact]:
    """``n`` facts that ``edits`` must leave alone: half of the edited relations, half of others."""
    stays, relations = untouched(world, edits), {edit.relation for edit in edits}
    same = [fact for fact in world.facts if fact.relation in relations and stays(fact)]
    other = [fact for fact in world.facts if fact.relation not in relations and stays(fact)]
    near = rng.sample(same, min(n // 2, len(same)))
    return near + rng.sample(other, min(n - len(near), len(other)))


def load_relations(folder: str | Path | None = None) -> dict[str, Relation]:
    """Read ``relations.toml`` of a world (default: the shipped one).

    Raises ValueError for a file that cannot be read, and for a relation that is no table, lacks a
    field or a wording, or has one that is unknown or of a wrong type.
    """
    path = Path(folder or WORLD) / "relations.toml"
    relations = {}
    for key, row in _read(path, tomllib.loads).items():
        where = f"{path.name}: relation {key!r}"
        if not isinstance(row, dict):
            raise ValueError(f"{where} must be a table, got {quoted(row)}")
        try:
            relations[key] = Relation(**{"category": None, **row, "key": key})
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return relations


def _read(path: Path, parse: Callable[[str], T]) -> T:
    """What a text file holds. Raises ValueError if it cannot be read, is no UTF-8, or is torn."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} cannot be read: it is nested too deep") from None


def load_world(folder: str | Path | None = None) -> World:
    """Read a world: ``relations.toml``, and one row per entity in ``*.csv``.

    Columns are name, qid, aliases, then relations. An entity may have rows in several tables as
    long as they agree. Facts are ordered by first mention of their subject, then by relation.
    Raises ValueError naming file, row and column for a file that cannot be read, an unknown table
    or column, a torn row, a cell that holds what is ``FORBIDDEN``, or cells that contradict each
    other.
    """
    folder = Path(folder or WORLD)
    relations = load_relations(folder)
    aliases: dict[str, tuple[str, ...]] = {}  # by entity, in the order of first mention
    cells: dict[tuple[str, str], tuple[str, str]] = {}  # (entity, column) -> value, file
    # 1. The cells of all tables.
    for path in sorted(folder.glob("*.csv")):
        table = path.stem.removeprefix("extra_").split("_")[0]
        if table not in TABLES:
            raise ValueError(
                f"{path.name}: unknown table {table!r}; allowed are {', '.join(TABLES)}"
            )
        for row in _read_table(path):
            name, also = row.pop("name"), row.pop("aliases", "").split(";")
            kind = TABLES[table] or row.pop("type", "")
            for column, value in {"type": kind, "qid": row.pop("qid", ""), **row}.items():
                if column not in relations and column not in ("type", "qid"):
                    raise ValueError(
                        f"{path.name}: unknown column {quoted(column)}; allowed are "
                        f"{', '.join(relations)}"
                    )
                if not value:
                    continue
                known, source = cells.setdefault((name, column), (value, path.name))
                if known != value:
                    raise ValueError(
                        f"{path.name}: row {quoted(name)}, column {column!r}: {quoted(value)} "
                        f"contradicts {quoted(known)} of {source}"
                    )
            new = filter(None, map(str.strip, also))
            aliases[name] = tuple(dict.fromkeys((*aliases.get(name, ()), *new)))
    # 2. Entities and facts, in a fixed order.
    found = {place: value for place, (value, _) in cells.items()}
    return World(
        {
            name: Entity(name, found.get((name, "type"), ""), found.get((name, "qid"), ""), also)
            for name, also in aliases.items()
        },
        relations,
        tuple(
            Fact(name, key, found[name, key])
            for name in aliases
            for key in relations
            if (name, key) in found
        ),
    )


def _read_table(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a table, cells without blanks around them.

    Raises ValueError for a file without a column of names, a column that is there twice, a torn
    row, or a cell that holds what is ``FORBIDDEN``.
    """
    columns, *rows = _read(path, _cells) or [[]]
    if "name" not in columns:
        raise ValueError(f"{path.name}: no column 'name'; its columns are {quoted(columns)}")
    if len({*columns}) < len(columns):
        raise ValueError(f"{path.name}: a column stands twice in {quoted(columns)}")
    for cells in rows:
        row = dict(zip(columns, cells, strict=False))
        if len(cells) != len(columns) or not row["name"]:
            raise ValueError(
                f"{path.name}: torn row {quoted(cells)}; the header has {len(columns)} columns"
            )
        for column, cell in row.items():
            if found := FORBIDDEN.search(cell):
                raise ValueError(
                    f"{path.name}: row {quoted(row['name'])}, column {column!r}: "
                    f"{found[0]!r} is not allowed in {quoted(cell)}"
                )
        yield row


def _cells(text: str) -> list[list[str]]:
    """The cells of a table in CSV, without blanks around them; empty lines are no rows."""
    rows = csv.reader(StringIO(text, newline=""), strict=True)
    return [[cell.strip() for cell in row] for row in rows if row]


def chains(world: World, n_hops: int) -> Iterator[Chain]:
    """All chains of ``n_hops`` facts without repeated entities, depth first, as facts come."""

    def extend(walk: tuple[Fact, ...]) -> Iterator[Chain]:
        if len(walk) == n_hops:
            yield Chain(walk)
            return
        for fact in world.about(walk[-1].object):
            if fact.object not in {walk[0].subject, *(step.object for step in walk)}:
                yield from extend((*walk, fact))

    for fact in world.facts:
        if fact.object != fact.subject:
            yield from extend((fact,))


def split_of(chain: Chain) -> str:
    """The split of a chain, from a hash of its composition (start, r1, ..., rn).

    An edited chain stays where its original is.
    """
    place = int(
        hashlib.sha256("|".join((chain.subject, *chain.path)).encode()).hexdigest(), 16
    ) % sum(SPLITS.values())
    return next(
        split for split, end in zip(SPLITS, accumulate(SPLITS.values()), strict=True) if place < end
    )


def sample_chains(world: World, split: str, n_hops: int, n: int, rng: Random) -> list[Chain]:
    """The first ``n`` of ``draw_chains``."""
    return list(islice(draw_chains(world, split, n_hops, rng), n))


def draw_chains(
    world: World, split: str, n_hops: int, rng: Random, patience: int = 50_000
) -> Iterator[Chain]:
    """Different chains of a split, by random walks.

    Every onward fact is equally likely, so that no hub dominates.
    Raises ValueError for an unknown split, or when ``patience`` walks in a row were nothing new:
    the world has run out of chains.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    seen, idle = set(), 0
    while idle < patience:
        walk = [rng.choice(world.facts)]
        while len(walk) < n_hops and (onward := world.about(walk[-1].object)):
            walk.append(rng.choice(onward))
        chain, idle = Chain(tuple(walk)), idle + 1
        if (
            len(walk) == n_hops == len(set(chain.entities)) - 1
            and chain not in seen
            and split_of(chain) == split
        ):
            seen.add(chain)
            idle = 0
            yield chain
    raise ValueError(
        f"this world has no more than {len(seen)} chains of {n_hops} hops in the split {split!r}"
    )
