"""The shipped world is sound; tables are read, merged and refused; chains are complete and their
splits stable.
"""

import json
import tomllib
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import islice
from random import Random
from shutil import copy

import pytest

from acelib.records import Chain, Edit, Fact
from acelib.world.world import (
    CATEGORIES,
    SPLITS,
    WORLD,
    Entity,
    World,
    chains,
    load_relations,
    load_world,
    sample_chains,
    split_of,
)


@pytest.fixture(scope="module")
def world() -> World:
    return load_world()


@pytest.fixture
def tables(tmp_path):
    """Write tables beside the shipped relations and load them:

    ``tables(people_a="name,qid,aliases,sport\\n...")``.
    """

    def write(**texts: str | bytes) -> World:
        copy(WORLD / "relations.toml", tmp_path)
        for name, text in texts.items():
            file = f"{name}.toml" if name == "relations" else f"{name}.csv"
            (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_world(tmp_path)

    return write


# -------------------------------------------------------------------------------------------------
# the shipped world


def faults(world: World) -> list[str]:
    """What is wrong with a world, one sentence each.

    Unknown objects, wrong types, doubled facts, ambiguous names, too few chains.
    """
    problems, owners, pairs = [], defaultdict(set), defaultdict(list)
    for fact in world.facts:
        relation = world.relations[fact.relation]
        pairs[fact.subject, fact.relation].append(fact)
        if fact.object not in world.entities:
            problems.append(f"{fact}: the object is in no table")
        elif world.kind(fact.object) not in relation.object_types:
            problems.append(
                f"{fact}: the object is a {world.kind(fact.object)}, not a {relation.object_type}"
            )
        if world.kind(fact.subject) not in relation.subject_types:
            allowed = "|".join(relation.subject_types)
            problems.append(f"{fact}: the subject is a {world.kind(fact.subject)}, not a {allowed}")
    for entity in world.entities.values():
        for name in (entity.name, *entity.aliases):
            owners[entity.type, name.casefold()].add(entity.name)
    problems += [
        f"{pair} has several objects: {[fact.object for fact in facts]}"
        for pair, facts in pairs.items()
        if facts[1:]
    ]
    problems += [
        f"{name!r} names more than one {kind}: {sorted(who)}"
        for (kind, name), who in owners.items()
        if len(who) > 1
    ]
    problems += [
        f"category {category} is empty" for category in CATEGORIES if not world.facts_of(category)
    ]
    problems += [
        f"only {n} chains of {hops} hops, 2000 are needed"
        for hops in (2, 3, 4)
        if (n := sum(1 for _ in islice(chains(world, hops), 2000))) < 2000
    ]
    return problems


def test_shipped_world_is_sound(world):
    assert faults(world) == []


def test_shipped_world_is_what_the_book_promises(world):
    used = Counter(fact.relation for fact in world.facts)
    assert len(world.facts) >= 2500 and len(world.entities) >= 1000 and len(used) >= 25
    assert world.categories() == tuple(CATEGORIES) and all(
        world.facts_of(category) for category in CATEGORIES
    )
    assert world.lookup("Tim Duncan", "sport") == "basketball"
    assert world.relations["sport"].cloze[0] == "{} plays the sport of"
    assert all(sum(1 for _ in islice(chains(world, hops), 5_000)) == 5_000 for hops in (2, 3, 4))


def test_every_wording_belongs_to_one_relation(world):
    owners = Counter(
        template
        for known in world.relations.values()
        for template in {*known.cloze, *known.questions, *known.nouns}
    )
    assert [template for template, n in owners.items() if n > 1] == []
    for relation in world.relations.values():
        assert all(question.endswith("?") for question in relation.questions)
        assert all(noun.startswith("the ") and noun.endswith("{}") for noun in relation.nouns), (
            "nouns compose only with {} at the end"
        )
        assert all(not cloze.endswith((" ", ".")) for cloze in relation.cloze)


def test_a_template_tells_its_relation(world):
    for key, relation in world.relations.items():
        assert all(world.relation_of(template + " ") == key for template in relation.cloze)
    assert world.relation_of("{} likes the taste of") == ""


def test_loading_is_deterministic(world):
    again = load_world()
    assert again.facts == world.facts and list(again.entities.items()) == list(
        world.entities.items()
    )


def test_world_indices_agree_with_the_facts(world):
    fact = world.facts[0]
    assert world.about(fact.subject) == tuple(f for f in world.facts if f.subject == fact.subject)
    assert world.into(fact.object) == tuple(f for f in world.facts if f.object == fact.object)
    assert set(world.objects(fact.relation)) == {
        f.object for f in world.facts if f.relation == fact.relation
    }
    assert (
        world.about("nobody") == world.into("nobody") == world.aliases("nobody") == ()
        and world.kind("nobody") == ""
    )
    assert world.lookup("nobody", "sport") is None
    with pytest.raises(ValueError, match="'XX'.*NN"):
        world.facts_of("XX")


# -------------------------------------------------------------------------------------------------
# reading tables


def test_rows_become_facts_in_the_order_of_the_relations(tables):
    world = tables(
        people_a=(
            "name,qid,aliases,sport,citizenship\n"
            "Pele,Q12897,Edson;Edson Arantes,association football,Brazil\n"
        ),
        terms_a="name,type,aliases\nassociation football,sport,soccer;football\n",
    )
    assert world.facts == (
        Fact("Pele", "citizenship", "Brazil"),
        Fact("Pele", "sport", "association football"),
    )
    assert world.entities["Pele"] == Entity("Pele", "person", "Q12897", ("Edson", "Edson Arantes"))
    assert (
        world.aliases("association football") == ("soccer", "football")
        and world.kind("association football") == "sport"
    )


def test_agreeing_rows_merge_and_fill_each_other(tables):
    world = tables(
        cities="name,qid,aliases,country\nUlm,,,\n",
        extra_cities_b="name,qid,aliases,country\nUlm,Q3012,Ulm an der Donau,Germany\n",
        extra_cities_c="name,qid,aliases,country\nUlm,,Ulm an der Donau,Germany\n",
    )
    assert world.facts == (Fact("Ulm", "country", "Germany"),)
    assert world.entities["Ulm"] == Entity("Ulm", "city", "Q3012", ("Ulm an der Donau",))


@pytest.mark.parametrize(
    "texts, message",
    [
        (
            dict(
                cities="name,qid,aliases,country\nUlm,,,Germany\n",
                extra_cities_a="name,qid,aliases,country\nUlm,,,Austria\n",
            ),
            "extra_cities_a.csv: row 'Ulm', column 'country': "
            "'Austria' contradicts 'Germany' of cities.csv",
        ),
        (
            dict(books="name,qid,aliases\nDune,,\n", films="name,qid,aliases\nDune,,\n"),
            "films.csv: row 'Dune', column 'type': 'film' contradicts 'book' of books.csv",
        ),
        (dict(books="name,qid,aliases,colour\nDune,,,red\n"), "books.csv: unknown column 'colour'"),
        (dict(planets="name,qid,aliases\nMars,,\n"), "planets.csv: unknown table 'planets'"),
        (dict(books="name,qid,aliases,author\nDune,,,Frank Herbert,1965\n"), "books.csv: torn row"),
        (dict(books="name,qid,aliases,author\nDune,\n"), "books.csv: torn row"),
        (dict(books="name,qid,aliases,author\n ,,,Frank Herbert\n"), "books.csv: torn row"),
        (dict(books="title,author\nDune,\n"), r"books.csv: no column 'name'; its columns are \['t"),
        (dict(books=""), "books.csv: no column 'name'"),
        (dict(books='name,author\nDune,"Frank\n'), "books.csv cannot be read: unexpected end of"),
        (dict(books=b"name,author\nD\xfcne,\n"), "books.csv cannot be read: 'utf-8' codec"),
        (
            dict(books="name,author\nDune,<script>alert(1)</script>\n"),
            "books.csv: row 'Dune', column 'author': '<' is not allowed in '<script>",
        ),
        (dict(books="name,author\nDune {},\n"), "row 'Dune {}', column 'name': '{' is not allowed"),
        (dict(books='name,author\n"Du\nne",\n'), r"books.csv: row 'Du\\nne', column 'name': '\\n'"),
        (dict(books='name,aliases\nDune,"a;b\rc"\n'), "books.csv: row 'Dune', column 'aliases'"),
        (dict(books=f"name,author\n{'long ' * 4000},<\n"), "^books.csv: row .{100,200}$"),
        (dict(relations="sport = 3"), "relations.toml: relation 'sport' must be a table, got 3"),
        (dict(relations="[sport"), "relations.toml cannot be read: "),
        (dict(relations=b"# \xff"), "relations.toml cannot be read: 'utf-8' codec"),
        (dict(relations="a = " + "[" * 5000), "relations.toml cannot be read: it is nested"),
    ],
)
def test_bad_tables_are_refused_by_file_and_cell(tables, texts, message):
    with pytest.raises(ValueError, match=message):
        tables(**texts)


def test_a_relation_without_a_field_is_refused(tmp_path):
    (tmp_path / "relations.toml").write_text('[sport]\npid = "P641"\n')
    with pytest.raises(ValueError, match="relation 'sport'.*label"):
        load_relations(tmp_path)


@pytest.mark.parametrize(
    "line, message",
    [
        (
            "cloze = 3",
            "relations.toml: relation 'sport': Relation: cloze 3: it should be a valid tu",
        ),
        ('cloze = "{} plays"', "relation 'sport': Relation: cloze '{} plays'"),
        ("nouns = [1, 2]", "relation 'sport': Relation: nouns 1: it should be a valid string"),
        ("label = 3", "relation 'sport': Relation: label 3"),
        ("colour = 3", "relation 'sport': Relation has no 'colour'; it has: key, pid"),
        ('label = "<b>"', "relation 'sport': '<' is not allowed in '<b>'"),
        ('nouns = ["a {}", "b\\n{}"]', r"relation 'sport': '\\n' is not allowed"),
    ],
)
def test_a_relation_with_a_wrong_field_is_refused(tmp_path, line, message):
    field = line.split(" ")[0]
    shipped = (WORLD / "relations.toml").read_text("utf-8").split("[sport]\n")[1].split("\n\n")[0]
    table = tomllib.loads(shipped)
    lines = [f"{name} = {json.dumps(value)}" for name, value in table.items() if name != field]
    (tmp_path / "relations.toml").write_text("\n".join(["[sport]", *lines, line]))
    with pytest.raises(ValueError, match=message):
        load_relations(tmp_path)


def test_a_world_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere/relations.toml cannot be read: No such file"):
        load_world(tmp_path / "nowhere")


def test_every_kind_of_fault_is_found(world):
    broken = World(
        {**world.entities, "Twin": Entity("Twin", "country", "", ("FRANCE",))},
        world.relations,
        (
            Fact("France", "capital", "Atlantis"),
            Fact("France", "continent", "Paris"),
            Fact("Paris", "capital", "Paris"),
            Fact("Paris", "country", "France"),
            Fact("Paris", "country", "Germany"),
        ),
    )
    problems = "\n".join(faults(broken))
    for fault in (
        "'Atlantis'): the object is in no table",
        "the object is a city, not a continent",
        "the subject is a city, not a country",
        "('Paris', 'country') has several objects: ['France', 'Germany']",
        "'france' names more than one country",
        "category AT is empty",
        "chains of 4 hops",
    ):
        assert fault in problems


# -------------------------------------------------------------------------------------------------
# records


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(subject=" "), "subject"),
        (dict(target_new=""), "target_new"),
        (dict(target_new=None), "target_new"),
        (dict(prompt="plays"), "exactly one"),
        (dict(prompt="{} and {}"), "exactly one"),
        (dict(paraphrases=("no slot",)), "no slot"),
        (dict(target_new="basketball"), "already the answer"),
        (dict(target_true=None), "target_true .* must be a text"),
        (dict(hops="The sport of Tim Duncan is"), "hops .* must be a list of texts"),
        (dict(hops=("a", None)), "hops .* must be a list"),
        (dict(hops=None), "hops .* must be a list of texts, got None"),
        (dict(paraphrases={"{} plays": 1}), "paraphrases .* must be a list of texts"),
        (dict(relation=None), "relation .* must be a text"),
        (dict(prompt=b"{} plays"), "exactly one"),
        (dict(subject="Tim \ud800"), r"subject of an edit .* got 'Tim \\ud800'"),
        (dict(target_new="\udfff"), "target_new of an edit"),
        (dict(target_true="\udfff"), "target_true of the edit"),
        (dict(prompt="\ud800 {}"), "exactly one"),
        (dict(hops=["\ud800"]), "hops .* must be a list of texts"),
        (dict(prompt="long " * 5000), "^.{80,250}$"),
        (dict(hops=["a", 1] * 5000), "^.{80,250}$"),
        (dict(subject="x" * 20_000, hops=None), "^.{80,250}$"),
    ],
)
def test_unusable_edits_are_refused(fields, message):
    good = dict(
        subject="Tim Duncan",
        prompt="{} plays the sport of",
        target_new="tennis",
        target_true="basketball",
    )
    assert Edit(**good).text == "Tim Duncan plays the sport of"
    with pytest.raises(ValueError, match=message):
        Edit(**{**good, **fields})


def test_an_edit_takes_lists_and_ends_without_blanks():
    edit = Edit(
        "Tim Duncan",
        "{} plays the sport of ",
        "tennis",
        paraphrases=["{} plays"],
        hops=["The sport of the friend of Ann is"],
    )
    assert (
        edit.text == "Tim Duncan plays the sport of"
        and edit.paraphrases == ("{} plays",)
        and len({edit, edit}) == 1
    )


def test_relations_refuse_bad_wordings(world):
    sport = world.relations["sport"]
    for fields in (
        dict(cloze=("{} plays",)),
        dict(nouns=("the sport", "the game of {}")),
        dict(questions=sport.questions[:1]),
        dict(category="XX"),
    ):
        with pytest.raises(ValueError, match="'sport'"):
            replace(sport, **fields)
    assert world.relations["performer"].object_types == ("person", "band")


def test_broken_chains_are_refused():
    with pytest.raises(ValueError, match="broken"):
        Chain((Fact("a", "country", "b"), Fact("c", "capital", "d")))


# -------------------------------------------------------------------------------------------------
# chains and splits


def test_chains_are_all_simple_paths(world):
    facts = tuple(Fact(s, "spouse", o) for s, o in ("ab", "ba", "bc", "cd", "ca", "da", "dd", "ac"))
    small = World({}, world.relations, facts)
    for n_hops in (1, 2, 3, 4):
        walks = [(fact,) for fact in facts]
        for _ in range(n_hops - 1):
            walks = [
                (*walk, fact) for walk in walks for fact in facts if fact.subject == walk[-1].object
            ]
        simple = {
            Chain(walk)
            for walk in walks
            if len({walk[0].subject, *(fact.object for fact in walk)}) == n_hops + 1
        }
        found = list(chains(small, n_hops))
        assert (
            set(found) == simple
            and len(found) == len(simple)
            and found == list(chains(small, n_hops))
        )


def test_splits_divide_the_chains_seven_one_two(world):
    shares = Counter(split_of(chain) for n_hops in (2, 3) for chain in chains(world, n_hops))
    for split, tenths in SPLITS.items():
        assert shares[split] / shares.total() == pytest.approx(tenths / 10, abs=0.02)


def test_splits_are_disjoint_and_stay_where_they_are(world):
    assert (
        split_of(
            Chain(
                (
                    Fact("Tim Duncan", "sport", "basketball"),
                    Fact("basketball", "origin", "United States"),
                )
            )
        )
        == "training"
    )
    drawn = {split: sample_chains(world, split, 3, 300, Random(0)) for split in SPLITS}
    compositions = {
        split: {(chain.subject, chain.path) for chain in found} for split, found in drawn.items()
    }
    assert all(split_of(chain) == split for split, found in drawn.items() for chain in found)
    assert (
        not compositions["training"] & compositions["evaluation"]
        and not compositions["identification"] & compositions["evaluation"]
    )


def test_sampled_chains_are_different_simple_and_a_function_of_the_seed(world):
    drawn = sample_chains(world, "evaluation", 4, 200, Random(3))
    assert (
        drawn
        == sample_chains(world, "evaluation", 4, 200, Random(3))
        != sample_chains(world, "evaluation", 4, 200, Random(4))
    )
    assert len(set(drawn)) == 200 and all(
        len(chain.facts) == 4 and len(set(chain.entities)) == 5 for chain in drawn
    )
    assert all(
        world.lookup(fact.subject, fact.relation) == fact.object
        for chain in drawn
        for fact in chain.facts
    )


def test_running_out_of_chains_is_said(world):
    small = World({}, world.relations, (Fact("a", "spouse", "b"), Fact("b", "spouse", "c")))
    split = split_of(next(chains(small, 2)))
    assert len(sample_chains(small, split, 2, 1, Random(0))) == 1
    with pytest.raises(ValueError, match="no more than 1 chains of 2 hops"):
        sample_chains(small, split, 2, 2, Random(0))
    with pytest.raises(ValueError, match="'test'.*training"):
        sample_chains(small, "test", 2, 1, Random(0))
