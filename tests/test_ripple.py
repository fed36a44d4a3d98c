"""Ripples: the questions are all that there are, asked of the model as it was and edited."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from acelib.measures import ripple
from acelib.measures.ripple import (
    CATEGORIES,
    INVERSES,
    Exam,
    counts,
    known_edits,
    probes,
)
from acelib.model.answers import recall
from acelib.model.update import Factors, Update
from acelib.records import Edit
from acelib.world.world import World, load_world

WORLD = load_world()


def edit_of(subject, relation, target):
    key = WORLD.relations[relation]
    return Edit(
        subject, key.cloze[0], target, WORLD.lookup(subject, relation), key.cloze[1:], relation
    )


def change(lm, scale=3.0):
    g = torch.Generator().manual_seed(1)

    def pair():
        return Factors(
            *(
                scale * torch.randn(size, 2, dtype=lm.dtype, generator=g)
                for size in (lm.d_model, lm.d_mlp)
            )
        )

    return Update({1: pair(), 3: pair()})


def test_inverses_hold_of_every_fact():
    assert all(
        WORLD.lookup(fact.object, INVERSES[fact.relation]) == fact.subject
        for fact in WORLD.facts
        if fact.relation in INVERSES
    )


def test_every_fact_is_asked_once_or_left_open():
    edit = edit_of("France", "capital", "London")
    table = probes(WORLD, edit)
    facts = table[~table.category.isin(["aliasing", "composition I", "composition II"])]
    assert (
        len(facts) == len(WORLD.facts) - 1
    )  # open: that London is the capital of the United Kingdom
    assert not (
        (table.prompt == "The capital of United Kingdom is").any()
        or table.prompt.duplicated().any()
    )

    def row(category):
        return table[table.category == category][["old", "new"]].values.tolist()

    assert row("the edit") == [["Paris", "London"]] and row("logic") == [
        ["United Kingdom", "France"]
    ]
    assert (
        table[table.prompt == "Paris is located in the country of"].new.item() == "France"
    )  # not capital, but still there
    assert set(table[table.category == "same subject"].relation) == {
        f.relation for f in WORLD.about("France")
    } - {"capital"}
    near = table[table.category.isin(["same answer", "same relation"])]
    assert (
        set(near.relation) == {"capital"}
        and len(near) == sum(f.relation == "capital" for f in WORLD.facts) - 2
    )
    stay = table[~table.category.astype(str).map(CATEGORIES)]
    assert (stay.old == stay.new).all() and list(table.category.cat.categories) == list(CATEGORIES)


def test_a_marriage_leaves_the_former_spouses_open():
    a, b, c, d = "Joe Biden", "Jill Biden", "Charles III", "Queen Camilla"
    table = probes(WORLD, edit_of(a, "spouse", c))
    asked = table[table.relation == "spouse"].set_index("prompt")
    assert asked.loc[f"{a} is married to", "new"] == c and asked.loc[
        f"{c} is married to", ["old", "new"]
    ].tolist() == [d, a]
    assert not {f"{b} is married to", f"{d} is married to"} & set(asked.index)
    first = table[table.category == "composition I"]
    assert (first.old != first.new).all() and first.prompt.str.contains(
        f"person married to {a}"
    ).all()
    assert set(first.new) <= {fact.object for fact in WORLD.about(c)}


def test_compositions_follow_the_new_fact():
    edit = edit_of("Paris", "country", "Italy")
    table = probes(WORLD, edit)

    def rows(category):
        return {
            tuple(row)
            for row in table[table.category == category][["prompt", "old", "new"]].itertuples(
                index=False
            )
        }

    currency, team = WORLD.relations["currency"].nouns[-1], WORLD.relations["location"].nouns[-1]
    country = WORLD.relations["country"].nouns[-1]
    text = currency.replace("{}", country.replace("{}", "Paris"))
    one = (
        f"{text[0].upper()}{text[1:]} is",
        WORLD.lookup("France", "currency"),
        WORLD.lookup("Italy", "currency"),
    )
    assert one in rows("composition I") or one[1] == one[2]
    before = next(fact for fact in WORLD.into("Paris") if fact.relation == "location")
    text = country.replace("{}", team.replace("{}", before.subject))
    assert (f"{text[0].upper()}{text[1:]} is", "France", "Italy") in rows("composition II")
    with pytest.raises(ValueError, match="no fact"):
        probes(WORLD, replace(edit, subject="Nowhere"))


def test_an_exam_asks_what_the_model_answers(tiny):
    """A model that knows nothing is asked only what had no answer."""
    lm, edit = tiny("gptj"), edit_of("Joe Biden", "spouse", "Charles III")
    few = {"Joe Biden", "Jill Biden", "Charles III", "Paris", "France", "Italy"}
    facts = tuple(fact for fact in WORLD.facts if fact.subject in few)
    small = World(WORLD.entities, WORLD.relations, facts)
    exam = Exam(lm, small)
    answers = exam(edit, Update())
    assert set(answers.columns) == {"category", "relation", "change", "right"}
    assert answers.change.all() and set(answers.category) == {"composition I"}
    assert not answers.right.any()
    with pytest.raises(ValueError, match="nothing to judge"):
        exam(edit_of("Paris", "country", "Italy"), Update())
    with pytest.raises(ValueError, match="the sample has 0"):
        known_edits(lm, WORLD, 2)


def test_an_exam_is_judged_by_the_edited_model(tiny, monkeypatch):
    """All old answers are called known; then right is what ``recall`` says of the edited model."""
    lm, edit, update = tiny("gptj"), edit_of("Paris", "country", "Italy"), change(tiny("gptj"))
    exam = Exam(lm, WORLD)
    monkeypatch.setattr(exam, "_answerable", lambda table: table.iloc[:60])
    table, answers = probes(WORLD, edit).iloc[:60], exam(edit, update)
    said = recall(lm, list(table.prompt), list(table.new), [update] * 60).correct
    assert answers.right.tolist() == said and answers.change.tolist() == [True] + [False] * 59


def test_answers_are_counted_by_category_and_relation():
    answers = pd.DataFrame(
        [
            ("far", "sport", True),
            ("far", "sport", False),
            ("far", "author", True),
            ("logic", "", 1),
        ],
        columns=["category", "relation", "right"],
    )
    answers = answers.assign(category=pd.Categorical(answers.category, list(CATEGORIES)))
    assert counts(answers) == [
        {"category": "logic", "relation": "", "asked": 1, "right": 1},
        {"category": "far", "relation": "author", "asked": 1, "right": 1},
        {"category": "far", "relation": "sport", "asked": 2, "right": 1},
    ]


def test_an_experiment_has_a_series_for_every_model_and_editor(tiny, monkeypatch):
    lm, edits = tiny("gptj"), [edit_of("Paris", "country", "Italy")]
    monkeypatch.setattr(ripple, "known_edits", lambda *_: edits)
    names = ["ROME", "ACE"]
    of = ripple.experiment({"gptj-mini": lm}, WORLD, editors=names, n_edits=1, seed=0)
    assert [series.names["editor"] for series in of.series] == names
    assert list(of.series[0].items) == ["Paris, country, Italy"]
    assert "acelib.editors.rome" in of.series[0].code and ripple.__name__ in of.series[0].code
