"""Ripples, analysed: shares and damage are means over edits, whatever the number of questions."""

import pandas as pd
import pytest

from acelib.measures import ripple_analysis as analysis
from acelib.measures.ripple import CATEGORIES
from acelib.measures.ripple_figures import ripple_map
from acelib.study import claims
from acelib.study.sentences import Text
from acelib.study.stats import Mean

#: editor -> wrong answers of ten in each category
WRONG = {"ACE": 1, "PMET": 4}


def rows(models=("m", "n"), editors=WRONG, n_edits=3) -> pd.DataFrame:
    """Ten questions per category of each edit; in the last edit all are right."""
    return analysis.numbered(
        pd.DataFrame(
            {
                "model": model,
                "editor": editor,
                "item": f"{name} of {model}",
                "category": category,
                "relation": "head_of_state" if must else "sport",
                "asked": 10,
                "right": 10 - editors[editor] * (name != "last"),
            }
            for model in models
            for editor in editors
            for name in [*"zyxw"[: n_edits - 1], "last"]
            for category, must in CATEGORIES.items()
        )
    )


def test_edits_are_numbered_in_their_order_not_by_name():
    table = rows()
    assert table[table.item == "z of n"].edit.unique().tolist() == [0]
    assert table[table.item == "last of m"].edit.unique().tolist() == [2]
    assert (table.change == table.category.astype(str).map(CATEGORIES)).all()


def test_shares_and_damage_by_category():
    table = analysis.ripple_table(rows())
    assert list(table.index) == [("m", "ACE"), ("m", "PMET"), ("n", "ACE"), ("n", "PMET")]
    assert list(table)[: len(CATEGORIES)] == list(CATEGORIES)
    cell = table.loc[("m", "ACE"), "far"]
    assert isinstance(cell, Mean) and cell.n == 3 and cell.mean == pytest.approx(100 - 20 / 3)
    stay = sum(not must for must in CATEGORIES.values())
    assert table.loc[("n", "PMET"), "damaged facts"].mean == pytest.approx(stay * 8 / 3)


def test_a_category_that_was_not_asked_counts_for_nothing():
    part = rows()
    part = part[(part.category != "logic") | (part.edit == 2)]
    cell = analysis.ripple_table(part).loc[("m", "ACE"), "logic"]
    assert (cell.n, cell.mean) == (1, 100)


def test_outcomes_add_up_to_the_questions():
    table = analysis.outcomes(rows())
    assert list(table) == list(analysis.OUTCOMES.values())
    assert table.sum(axis=1).round(9).eq(10 * len(CATEGORIES)).all()
    assert analysis.questions_per_edit(rows()) == {
        "m": 10 * len(CATEGORIES),
        "n": 10 * len(CATEGORIES),
    }
    assert table.loc[("m", "PMET"), "must stay: changed"] == pytest.approx(5 * 8 / 3)


def test_relations_that_are_damaged_most_come_question_by_question():
    one = rows()
    author = one[~one.change].assign(relation="author", right=0, wrong=10)
    two = pd.concat([one, author], ignore_index=True)
    worst = analysis.most_damaged(two, n=1)
    assert set(worst.relation) == {"author"} and worst.damaged.all()
    both = analysis.most_damaged(two, n=2)
    assert len(both) == two[~two.change].asked.sum()
    assert both.damaged.sum() == two[~two.change].wrong.sum()
    assert list(both.editor.unique()) == list(WRONG)


def test_who_reaches_most_and_who_damages_least():
    of = analysis.reached(rows())["m"]
    assert of["best"] == of["gentlest"] == "ACE" and of["roughest"] == "PMET"
    part = rows(editors={"ACE": 10, "PMET": 4}, n_edits=4)  # ACE writes a quarter of its edits
    of = analysis.reached(part)["m"]
    assert of["best"] == of["gentlest"] == of["roughest"] == "PMET"
    assert of["reach"]["ACE"].mean == 25 and of["damage"]["ACE"].mean == 5 * 30 / 4


def test_nearness_is_a_difference_of_shares():
    part = rows()
    assert analysis.nearness(part)["m"].mean == 0
    part.loc[part.category == "far", "wrong"] = 0
    assert analysis.nearness(part)["m"].mean == pytest.approx(100 * (2 * (0.1 + 0.4) / 2) / 3)


def test_the_lead_is_paired_over_edits():
    values = analysis.lead(rows())
    assert set(values) == {
        (claim, model)
        for claim in ("specificity_all_facts", "edits_propagate")
        for model in ("m", "n")
    }
    assert values["edits_propagate", "m"].mean == pytest.approx(2 * 30 / 3)
    assert analysis.lead(rows(editors={"ACE": 1})) == {}


def test_the_map_shows_every_editor_and_category():
    fig = ripple_map(rows())
    assert len(fig.axes) == 4
    shown = fig.axes[0].collections[0].get_array().ravel()
    assert len(shown) == len(WRONG) * len(CATEGORIES)
    assert shown[0] == pytest.approx(100 - 20 / 3)
    assert fig.axes[0].get_xticklabels()[0].get_text() == "the edit (3; 30)"


def test_sentences():
    text, part = Text("06_ripple"), rows(models=("m",))
    of = analysis.reached(part)
    metrics = {
        name: {"gap": Mean(1, 0.5, 2, 3), "ahead": ahead}
        for name, ahead in {"efficacy": "layers", "paraphrase": "", "multi-hop": "neurons"}.items()
    }
    values = {key: gap for key, gap in analysis.lead(rows()).items() if key[1] == "m"}
    norms = {"attributed": Mean(1, 1, 1, 2), "random": Mean(2, 2, 2, 2)}
    control = {"m": {"metrics": metrics, "norms": norms}}
    told = dict(models=of, values=values, verdicts=claims.verdicts(values), control=control, n=8)
    said = text.render("verdict", layers={"m": metrics}, **told)
    assert said.startswith("**Cannot tell.**") and "ACE reaches most consequences" in said
    assert "reaches 20 [" in said and "whole layers is ahead in efficacy and behind in mul" in said
    assert "as many random ones in no metric." in said
    assert "ACE reaches most consequences, 93 %, and" in text.render("map_found", models=of)
    metrics["efficacy"]["ahead"] = metrics["multi-hop"]["ahead"] = ""
    said = text.render("verdict", layers={"m": metrics}, **told)
    assert "neither ahead nor behind in any metric" in said
    said = text.render("reached", models=of, n_edits=3)
    assert "On m (3 edits, 100 questions each), the edits of ACE reach most" in said
    assert "the interval includes zero" in text.render("nearness", gaps=analysis.nearness(part))
    said = text.render("neurons", layers={"m": metrics}, control=control, parts={"m": 8.0}, n=8)
    assert "(1 in 8)" in said and "is 1.0 with attributed ones and 2.0 [2.0, 2.0] with" in said
    counts = {"n_edits": 3, "seed": 0}
    assert "100 questions per edit (m)," in text.render("shares", counts={"m": 100.0}, **counts)
    assert "4 cases (m)," in text.render("metrics", cases={"m": 4}, **counts)
    assert "means over 3 edits" in text.render("outcomes", **counts)
