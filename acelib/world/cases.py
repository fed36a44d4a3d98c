"""Counterfactual multi-hop editing cases: made from the world, written and read as MQuAKE-CF-3k.

A case takes a chain, edits k of its n facts, (s, r, o) -> (s, r, o*), and follows the same
relations from the new objects through the world to a new answer. Three questions, worded
differently, ask for the end of the chain.
Source: Zhong et al., 2023, arXiv:2305.14795.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from random import Random

from ..records import Case, Chain, Edit, Fact, Hop
from .wording import multi_hop_cloze, multi_hop_question, single_hop_cloze, single_hop_question
from .world import Relation, World, draw_chains, load_relations

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
    avoid, questions = {*old.entities, *new.entities}, {}
    while len(questions) < 3:
        questions[multi_hop_question(world, old, rng)] = True
    hops = (
        tuple(
            Hop(
                single_hop_question(world, fact),
                single_hop_cloze(world, fact),
                fact.object,
                world.aliases(fact.object),
            )
            for fact in chain.facts
        )
        for chain in (old, new)
    )
    labels = (
        tuple(
            (fact.subject, world.relations[fact.relation].label, fact.object)
            for fact in chain.facts
        )
        for chain in (old, new)
    )
    edited_facts = [new.facts[hop] for hop in sorted(edited)]
    avoid.update(world.lookup(fact.subject, fact.relation) for fact in edited_facts)
    edits = tuple(_edit(world, fact, avoid, rng) for fact in edited_facts)
    return Case(
        case_id,
        edits,
        tuple(questions),
        old.answer,
        world.aliases(old.answer),
        new.answer,
        world.aliases(new.answer),
        *hops,
        *labels,
        old.path,
    )


def _edit(world: World, fact: Fact, avoid: set[str], rng: Random) -> Edit:
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
        world.lookup(fact.subject, fact.relation),
        tuple(others),
        fact.relation,
        tuple(hops),
    )


def single_edits(world: World, n: int, seed: int = 0) -> list[Edit]:
    """``n`` different facts of the world, each to get another object of its relation and type.

    Raises ValueError if fewer can be had.
    """
    rng, edits = Random(f"{seed}/single"), []
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
            for (subject, _, target), key in zip(chain, case.relations)
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
    are accepted; whether edits of different cases contradict each other is for ``conflicts`` to
    say.   relations: they name the Wikidata ids; default: the shipped ones.
    Raises ValueError for an unreadable file, and, naming the case and the field, for a field that
    is missing, empty or of a wrong kind.
    """
    keys = {relation.pid: key for key, relation in (relations or load_relations()).items()}
    try:
        records = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a JSON file: {error}") from None
    if not isinstance(records, list):
        raise ValueError(f"{path} must hold a list of cases, got {type(records).__name__}")
    return [
        _read_case(record, f"{Path(path).name}, record {number}", keys)
        for number, record in enumerate(records)
    ]


def _read_case(record: dict, where: str, keys: Mapping[str, str]) -> Case:
    def take(source, field: str, kind: type = str, prefix: str = ""):
        value = source.get(field) if isinstance(source, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool) or value in ("", []):
            raise ValueError(
                f"{where}: field {prefix + field!r} must be a non-empty {kind.__name__}, "
                f"got {value!r}"
            )
        return value

    def texts(source: dict, field: str, least: int = 0) -> tuple[str, ...]:
        values = source.get(field) or []
        if (
            not isinstance(values, list)
            or not all(isinstance(value, str) for value in values)
            or len(values) < least
        ):
            raise ValueError(f"{where}: field {field!r} must be a list of texts, got {values!r}")
        return tuple(value for value in values if value.strip())

    def hops(field: str) -> tuple[Hop, ...]:
        return tuple(
            Hop(
                *(
                    take(hop, name, str, f"{field}.").rstrip()
                    for name in ("question", "cloze", "answer")
                ),
                texts(hop, "answer_alias"),
            )
            for hop in take(record, field, list)
        )

    def triples(field: str) -> tuple[tuple[str, str, str], ...]:
        rows = take(take(record, "orig", dict), field, list, "orig.")
        if not all(
            isinstance(row, list) and len(row) == 3 and all(isinstance(item, str) for item in row)
            for row in rows
        ):
            raise ValueError(
                f"{where}: field 'orig.{field}' must be a list of triples, got {rows!r}"
            )
        return tuple(map(tuple, rows))

    where = f"case {take(record, 'case_id', int)}"
    edits = []
    for rewrite in take(record, "requested_rewrite", list):
        pid = take(rewrite, "relation_id", str, "requested_rewrite.")
        try:
            edits.append(
                Edit(
                    *(
                        take(rewrite, name, str, "requested_rewrite.")
                        for name in ("subject", "prompt")
                    ),
                    *(
                        take(
                            take(rewrite, name, dict, "requested_rewrite."),
                            "str",
                            str,
                            f"requested_rewrite.{name}.",
                        )
                        for name in ("target_new", "target_true")
                    ),
                    texts(rewrite, "paraphrases"),
                    keys.get(pid, pid),
                    texts(rewrite, "hops"),
                )
            )
        except ValueError as error:
            raise (
                error
                if str(error).startswith(where)
                else ValueError(f"{where}: field 'requested_rewrite': {error}")
            ) from None
    return Case(
        record["case_id"],
        tuple(edits),
        texts(record, "questions", 1),
        take(record, "answer"),
        texts(record, "answer_alias"),
        take(record, "new_answer"),
        texts(record, "new_answer_alias"),
        hops("single_hops"),
        hops("new_single_hops"),
        triples("triples_labeled"),
        triples("new_triples_labeled"),
        tuple(keys.get(pid, pid) for _, pid, _ in triples("triples")),
    )
