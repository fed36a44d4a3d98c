"""The chapter on the released code: its forms, and what their rows say."""

import pandas as pd
import pytest

from acelib.editors import preset
from acelib.measures import released_code as released
from acelib.study.sentences import Text

MODELS = ("gptj-mini", "qwen3-mini")
NAMES = [*released.editors("gptj-mini"), *released.RUNS]


def rows(**hits) -> pd.DataFrame:
    """Eight cases on one model, two for each number of edits; hits: {form: eight answers}."""
    return pd.DataFrame(
        {
            "model": "gptj-mini",
            "editor": name,
            "case_id": case,
            "n_edits": case // 2 + 1,
            "multi_hop": float(hits.get(name, [0] * 8)[case]),
        }
        for name in NAMES
        for case in range(8)
    )


@pytest.mark.parametrize("model", MODELS)
def test_layers_at_the_published_depth(model):
    large, n_layers = released.LARGE[model]
    published, mine = preset("ReleasedACE", large), preset("ReleasedACE", model)
    moved = released.editors(model)[released.AT_DEPTH]
    for kind in ("query_layers", "value_layers"):
        assert getattr(moved, kind) == released.at_depth(getattr(published, kind), n_layers, 8)
    assert moved.query.weight == mine.query.weight and moved.query.writes == "both"
    assert released.at_published_depth(mine, "another", 8) == mine


def test_layers_keep_their_share_of_the_depth():
    assert released.at_depth((0, 27), 28, 8) == (0, 7)
    assert released.at_depth((23, 24, 25), 28, 55) == (46, 48, 50)
    assert released.at_depth(range(28), 28, 8) == tuple(range(8))


def test_forms_are_the_presets_but_for_what_they_are_about():
    of = released.editors("gptj-mini")
    code, ace = preset("ReleasedACE", "gptj-mini"), preset("ACE", "gptj-mini")
    assert of["Base"] is None and of[released.DESCRIBED] == ace
    assert of[released.RELEASED] == code
    for name, writes in (
        (released.BOTH, "both"),
        (released.HALF, "ffn"),
        (released.WHOLE, "whole"),
    ):
        one = of[name]
        assert one.layers == code.layers and one.writes == writes
        assert one.objective == code.query.objective and one.position == "subject_last"
    for name, writes in ((released.HALF_ACE, "ffn"), (released.WHOLE_ACE, "whole")):
        one = of[name]
        assert {one.value.writes, one.query.writes} == {writes} and one.layers == ace.layers


def test_the_runs_add_one_fault_after_the_other():
    made = [sum(vars(faults).values()) for faults in released.RUNS.values()]
    assert made == [0, 1, 2, 3]
    table = released.settings_table(["gptj-mini"]).loc["gptj-mini"]
    assert list(table.faults[-4:]) == ["–", "F1", "F1, F2", "F1, F2, F3"]
    assert set(table.index) == set(NAMES) - {"Base"}
    row = table.loc[released.RELEASED]
    assert (row.searches, row.writes, row.position) == ("one", "both", "subject_last")
    assert table.loc[released.DESCRIBED, "searches"] == "one per stage"


def test_questions_are_differences_on_the_same_cases():
    hits = {released.F2: [0, 0, 1, 1, 0, 0, 0, 0], released.RELEASED: [1] * 8}
    told = released.answers(rows(**hits))
    assert set(told.index) == set(released.QUESTIONS)
    assert {name for pair in released.QUESTIONS.values() for name in pair} <= set(NAMES)
    second = told.loc["F2: vectors of another edit"]
    assert [second["gptj-mini", n].mean for n in ("1", "2", "3", "4", "all")] == [0, 100, 0, 0, 25]
    assert told.loc["released, not described"]["gptj-mini", "all"].mean == 100
    assert told.loc["F3: edits that stay"]["gptj-mini", "2"].mean == -100


def test_two_edits_above_one_beside_the_papers_numbers():
    """The paper's ACE on GPT-J: 50.24 at two edits, 45.26 at one."""
    hits = {released.F3: [0, 1, 1, 1, 0, 0, 0, 0]}
    table = released.two_over_one(rows(**hits))
    assert table.at[released.DESCRIBED, "published GPT-J"] == pytest.approx(4.98)
    assert table.at[released.DESCRIBED, "published Qwen3-8B"] == pytest.approx(-0.74)
    assert table.at[released.F3, "measured gptj-mini"].mean == 50
    assert list(table.index) == list(released.FORMS)


def test_claims_that_a_form_supports():
    hits = {released.RELEASED: [1] * 8, released.F3: [0, 0, 1, 1, 0, 0, 0, 0]}
    table = released.supported(rows(**hits))
    claims = table.loc["gptj-mini"]
    assert claims.at["ahead of PMET, all cases", released.RELEASED].startswith("holds: ")
    assert claims.at["ahead of PMET, one edit", released.F3].startswith("cannot tell: 0.0")
    assert set(claims.index) == {
        *(f"ahead of PMET, {some}" for some in ("all cases", "one edit", "four edits")),
        "two edits above one",
    }


def test_the_papers_numbers_stand_beside():
    table = released.by_edits(rows())
    assert table.at[released.DESCRIBED, ("published GPT-J", "2")] == 50.24
    assert table.at["PMET", ("published Qwen3-8B", "1")] == 28.64
    assert table.at[released.F3, ("measured gptj-mini", "average")].mean == 0


def test_the_figures_show_each_form_by_number_of_edits_and_over_all():
    data = released.points(rows(**{released.F3: [1] * 8}), (*released.WRITES, released.F3))
    assert list(data.form.unique()) == [*released.WRITES, released.F3]
    assert list(data.edits.unique()) == ["1", "2", "3", "4", "all"]
    last = data[(data.form == released.F3) & (data.edits == "all")]
    assert len(last) == 8 and set(last.accuracy) == {100.0}


def test_sentences():
    text, data = Text("08_released_code"), rows(**{released.RELEASED: [1] * 8})
    told = released.sentence_numbers(data)
    said = text.render("verdict", models=told)
    assert said.startswith("**") and "gptj-mini" in said and "100 %" in said
    assert "as it ran." in text.render("forms_found", models=told)
    for block in ("faults", "writes", "order"):
        assert "gptj-mini" in text.render(block, models=told)
    assert told["gptj-mini"]["above"] == []
    assert "No form has two edits above one" in text.render("order", models=told)
    assert "higher" in {*told["gptj-mini"]["is"].values()}
