"""Counterfactual multi-hop editing cases: made from the world, written and read as MQuAKE-CF-3k.

A case takes a chain, edits k of its n facts, (s, r, o) -> (s, r, o*), and follows the same
relations from the new objects through the world to a new answer. Three questions, worded
differently, ask for the end of the chain.
Source: Zhong et al., 2023, arXiv:2305.14795.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path
from random import Random

from ..records import Case, Chain, Edit, Fact, Hop, is_text, quoted
from .wording import multi_hop_cloze, multi_hop_question, single_hop_cloze, single_hop_question
from .world import Relation, World, chains, draw_chains, load_relations, split_of

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


def cases_to_json(cases: Sequence[Case], world: World) -> str:
    """Cases in the schema of MQuAKE-CF-3k; each rewrite also holds ``paraphrases`` and ``hops``.

    Ids fall back to names and keys.
    """

    def qid(name: str) -> str:
        return world.entities[name].qid or name if name in world.entities else name

    def pid(key: str) -> str:
        return world.relations[key].pid if key in world.relations else key

    def rewrite(edit: Edit, case: Case) -> dict:
        asked = next((hop.question for hop in case.new_hops if hop.cloze == edit.text), "")
        targets = {
            field: {"str": getattr(edit, field), "id": qid(getattr(edit, field))}
            for field in ("target_new", "target_true")
        }
        return {
            "prompt": edit.prompt,
            "relation_id": pid(edit.relation),
            **targets,
            "subject": edit.subject,
            "question": asked,
            "paraphrases": edit.paraphrases,
            "hops": edit.hops,
        }

    def triples(case: Case, chain: Sequence[tuple[str, str, str]]) -> list[list[str]]:
        return [
            [qid(subject), pid(key), qid(target)]
            for (subject, _, target), key in zip(chain, case.relations, strict=True)
        ]

    return json.dumps(
        [
            {
                "case_id": case.case_id,
                "requested_rewrite": [rewrite(edit, case) for edit in case.edits],
                "questions": case.questions,
                "answer": case.answer,
                "answer_alias": case.answer_alias,
                "new_answer": case.new_answer,
                "new_answer_alias": case.new_answer_alias,
                "single_hops": [vars(hop) for hop in case.hops],
                "new_single_hops": [vars(hop) for hop in case.new_hops],
                "orig": {
                    "triples": triples(case, case.chain),
                    "triples_labeled": case.chain,
                    "new_triples": triples(case, case.new_chain),
                    "new_triples_labeled": case.new_chain,
                    "edit_triples": [
                        [qid(edit.subject), pid(edit.relation), qid(edit.target_new)]
                        for edit in case.edits
                    ],
                },
            }
            for case in cases
        ],
        indent=1,
        ensure_ascii=False,
    )


def read_cases(path: str | Path, relations: Mapping[str, Relation] | None = None) -> list[Case]:
    """Read cases from our file or a published MQuAKE file.

    Extra keys, missing paraphrases, hops and aliases, and typing errors of the published templates
    are accepted; ``answer_extended`` of MQuAKE-T joins the aliases of the old answer. Whether edits
    of different cases contradict each other is for ``conflicts`` to say.
    relations: they name the Wikidata ids; default: the shipped ones.
    Raises ValueError for an unreadable file, for a field or a case that is there twice, and, naming
    the case and the field, for a field that is missing, empty, of a wrong kind, or of another
    number of hops than the chain.
    """
    keys = {relation.pid: key for key, relation in (relations or load_relations()).items()}
    try:
        records = json.loads(Path(path).read_text("utf-8"), object_pairs_hook=_fields)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a JSON file: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} cannot be read as a JSON file: it is nested too deep") from None
    if not isinstance(records, list):
        raise ValueError(f"{path} must hold a list of cases, got {type(records).__name__}")
    name = Path(path).name
    cases = [
        _read_case(record, f"{name}, record {number}", keys)
        for number, record in enumerate(records)
    ]
    case_id, n = next(iter(Counter(case.case_id for case in cases).most_common(1)), (None, 0))
    if n > 1:
        raise ValueError(f"{name}: {n} cases have the case_id {case_id}; each must have its own")
    return cases


def _fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The fields of a JSON object. Raises ValueError for one that is there twice."""
    name, n = next(iter(Counter(name for name, _ in pairs).most_common(1)), ("", 0))
    if n > 1:
        raise ValueError(f"one object has {n} fields {quoted(name)}")
    return dict(pairs)


@dataclass(frozen=True)
class _Record:
    """A JSON object that is read field by field; ValueErrors name its case and the field."""

    values: object
    where: str
    prefix: str = ""  #: of its fields' names

    def get(self, field: str) -> object:
        """What a field holds; None if it is missing."""
        if not isinstance(self.values, dict):
            place = f"field {self.prefix[:-1]!r}" if self.prefix else "it"
            raise ValueError(
                f"{self.where}: {place} must hold JSON objects, got {quoted(self.values)}"
            )
        return self.values.get(field)

    def wrong(self, field: str, allowed: str) -> ValueError:
        return ValueError(
            f"{self.where}: field {self.prefix + field!r} must be {allowed}, "
            f"got {quoted(self.get(field))}"
        )

    def number(self, field: str) -> int:
        value = self.get(field)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(field, "a whole number")
        return value

    def text(self, field: str) -> str:
        value = self.get(field)
        if not is_text(value) or not value.strip():
            raise self.wrong(field, "a non-empty text")
        return value

    def texts(self, field: str, least: int = 0) -> tuple[str, ...]:
        """The texts of a list that are not blank; a list that is missing has none."""
        values = self.get(field)
        if values is None and not least:
            return ()
        if not isinstance(values, list) or not all(map(is_text, values)):
            raise self.wrong(field, "a list of texts")
        texts = tuple(value for value in values if value.strip())
        if len(texts) < least:
            raise self.wrong(field, "a non-empty list of texts")
        return texts

    def part(self, field: str) -> _Record:
        """The object in a field."""
        value = self.get(field)
        if not isinstance(value, dict):
            raise self.wrong(field, "a JSON object")
        return _Record(value, self.where, f"{self.prefix}{field}.")

    def parts(self, field: str, n: int | None = None) -> list[_Record]:
        """The objects of a list: ``n``, or one or more."""
        values = self.get(field)
        if not isinstance(values, list) or not values or len(values) != (n or len(values)):
            hops = f"{n}, one for each fact of the chain" if n else "one or more"
            raise self.wrong(field, f"a list of JSON objects, {hops}")
        return [_Record(value, self.where, f"{self.prefix}{field}.") for value in values]

    def triples(self, field: str, n: int | None = None) -> tuple[tuple[str, str, str], ...]:
        """The (subject, relation, object) of a list: ``n``, or one or more."""
        rows = self.get(field)
        if (
            not isinstance(rows, list)
            or not rows
            or not all(isinstance(row, list) and len(row) == 3 for row in rows)
            or not all(is_text(item) for row in rows for item in row)
        ):
            raise self.wrong(field, "a list of triples of texts")
        if len(rows) != (n or len(rows)):
            raise self.wrong(field, f"a list of {n} triples, as many as 'orig.triples'")
        return tuple((subject, relation, target) for subject, relation, target in rows)


def _read_case(values: object, where: str, keys: Mapping[str, str]) -> Case:
    case_id = _Record(values, where).number("case_id")
    record = _Record(values, f"case {case_id}")
    chains = record.part("orig")
    relations = tuple(keys.get(pid, pid) for _, pid, _ in chains.triples("triples"))
    n = len(relations)
    answer, aliases = record.text("answer"), record.texts("answer_alias")
    more = [name for name in record.texts("answer_extended") if name not in (answer, *aliases)]
    return Case(
        case_id=case_id,
        edits=tuple(_read_edit(part, keys) for part in record.parts("requested_rewrite")),
        questions=record.texts("questions", 1),
        answer=answer,
        answer_alias=(*aliases, *more),
        new_answer=record.text("new_answer"),
        new_answer_alias=record.texts("new_answer_alias"),
        hops=tuple(map(_read_hop, record.parts("single_hops", n))),
        new_hops=tuple(map(_read_hop, record.parts("new_single_hops", n))),
        chain=chains.triples("triples_labeled", n),
        new_chain=chains.triples("new_triples_labeled", n),
        relations=relations,
    )


def _read_hop(record: _Record) -> Hop:
    return Hop(
        question=record.text("question").rstrip(),
        cloze=record.text("cloze").rstrip(),
        answer=record.text("answer").rstrip(),
        answer_alias=record.texts("answer_alias"),
    )


def _read_edit(record: _Record, keys: Mapping[str, str]) -> Edit:
    pid = record.text("relation_id")
    fields = dict(
        subject=record.text("subject"),
        prompt=record.text("prompt"),
        target_new=record.part("target_new").text("str"),
        target_true=record.part("target_true").text("str"),
        relation=keys.get(pid, pid),
    )
    paraphrases, hops = record.texts("paraphrases"), record.texts("hops")
    try:
        return Edit(**fields, paraphrases=paraphrases, hops=hops)
    except ValueError as error:
        raise ValueError(f"{record.where}: field 'requested_rewrite': {error}") from None
