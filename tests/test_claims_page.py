"""The page of claims: every claim once, in the book's order, with what was measured."""

import pandas as pd

from acelib.study import claims, claims_page, drawing, verdicts
from acelib.study.parameters import chapters
from acelib.study.sentences import Text

VALUES = claims.kept_values()
ROWS = claims_page.judged(VALUES)
TEXT = Text("claims")


def claim(verdict: str, **more) -> dict:
    return {
        "verdict": verdict,
        "chapter": "03_ace",
        "section": "1",
        "claim": "x",
        "why": "",
        "unit": "points",
        "needed": {},
        "measured gptj-mini": None,
        "measured qwen3-mini": None,
        "measured both": None,
        **more,
    }


def test_every_claim_is_there_once_and_those_without_chapter_come_last():
    known = claims.claims_list()
    there = known.chapter.isin(chapters())
    there |= (known.chapter == "") & known.paper.isin(known.paper[there])
    assert sorted(ROWS.index) == sorted(known.index[there])
    tested = (ROWS.chapter != "").tolist()
    assert tested == sorted(tested, reverse=True)
    assert ROWS.title[ROWS.chapter == "claims"].empty and "no chapter" in set(ROWS.title)


def test_a_tally_has_the_number_of_its_words():
    rows = pd.DataFrame([claim("holds"), claim("holds"), claim("cannot tell")])
    assert claims_page.tally(rows) == "2 hold, 1 cannot be told"
    rows = pd.DataFrame([claim("fails"), claim("fails in part"), claim("fails")])
    assert claims_page.tally(rows) == "1 fails in part, 2 fail"
    assert claims_page.tally(rows[:0]) == ""


def test_the_verdict_adds_up():
    numbers = claims_page.verdict_numbers(ROWS)
    assert numbers["claims"] == numbers["tested"] + numbers["untestable"] + numbers["untested"]
    said = TEXT.render("verdict", papers=claims_page.by_paper(ROWS), **numbers)
    assert said.startswith(f"**Partly.** Of {numbers['claims']} claims, ")
    assert numbers["tally"] in TEXT.render("counts_found", **numbers)
    several = ROWS.paper.nunique() > 1
    assert all((paper in said) is several for paper in ROWS.paper)


def test_a_selection_is_numbered_from_one():
    some = claims_page.selection(ROWS, ["cannot tell"])
    assert set(some.verdict) == {"cannot tell"} and some.index.tolist() == [
        *range(1, len(some) + 1)
    ]
    assert len(claims_page.selection(ROWS)) == len(ROWS)
    table = claims_page.results_table(some, VALUES)
    assert len(table) == len(some) and table.columns[0] == "verdict"
    assert claims_page.rules_table(some)["name in the list"].tolist() == some.id.tolist()


def test_papers_have_tables_of_their_own():
    papers = claims_page.papers(ROWS)
    assert sum(map(len, papers.values())) == len(ROWS) and set(papers) == {*ROWS.paper}
    for paper, part in papers.items():
        shown = claims_page.results_table(claims_page.selection(part), VALUES)
        assert shown.notna().all(axis=None)
        names = {f"published {model}" for model in claims.PAPERS[paper].values()}
        assert names == set(shown.filter(like="published "))
    assert set(claims_page.by_paper(ROWS)) == set(papers)
    waiting = pd.DataFrame([claim("not tested yet", paper="x")])
    assert claims_page.by_paper(waiting) == {"x": "none is tested yet"}


def test_every_chapter_has_one_claim_that_stands_for_it():
    leads = claims_page.leads(ROWS)
    run = ROWS[ROWS.verdict != "not tested yet"]
    assert set(leads) == set(run.chapter) - {""}
    for chapter, lead in leads.items():
        said = TEXT.render("lead", of=lead)
        assert lead["claim"] in said and lead["quantity"] in said
        assert (f"Of {lead['claims']} claims" in said) == (lead["claims"] > 1), chapter


def test_lists_hold_every_claim_and_say_where_models_differ():
    groups = claims_page.lists(ROWS)
    assert sum(len(group["claims"]) for group in groups) == len(ROWS)
    rows = pd.DataFrame([claim("disagree", why="a-b: holds. c: fails. Else")])
    assert claims_page.lists(rows)[0]["claims"][0]["notes"] == "1; a-b: holds; c: fails"
    rows = pd.DataFrame([claim("holds in part", why="a-b: holds. c: cannot tell. Else")])
    assert claims_page.lists(rows)[0]["claims"][0]["notes"] == "1; a-b: holds; c: cannot tell"
    said = TEXT.render("lists", groups=claims_page.lists(rows))
    assert said == "**Holds in part** (1)\n\n- x (1; a-b: holds; c: cannot tell)"


def test_every_verdict_has_its_words_its_head_and_its_colour():
    words = {*claims.VERDICTS, "holds in part", "fails in part", "disagree"}
    assert set(claims_page.WORDS) == words and words < set(claims_page.HEADS)
    assert set(drawing.VERDICTS) == set(claims_page.HEADS) == set(verdicts.MARKS)
    assert len(set(drawing.VERDICTS.values())) == len(drawing.VERDICTS)


def test_an_open_claim_is_told_with_what_it_would_need():
    why, needed = "gptj-mini: cannot tell. qwen3-mini: fails", {"gptj-mini": 400_000.0}
    rows = pd.DataFrame([claim("fails in part", why=why, needed=needed)])
    assert claims_page.lists(rows)[0]["claims"][0]["notes"] == (
        "1; gptj-mini: cannot tell; qwen3-mini: fails; "
        "would need more than 100,000 cases (gptj-mini)"
    )
    rows = pd.DataFrame([claim("cannot tell", needed={"both": 157.0})])
    assert claims_page.lists(rows)[0]["claims"][0]["notes"] == "1; would need about 160 cases"
    real = {"smollm2-135m": 157.0}
    rows = pd.DataFrame([claim("cannot tell", needed=real)])
    assert claims_page.lists(rows)[0]["claims"][0]["notes"] == "1"


def test_the_table_says_what_an_open_claim_would_need():
    table = claims_page.results_table(claims_page.selection(ROWS), VALUES)
    is_open = ROWS.needed.map(bool).tolist()
    assert [cell != "–" for cell in table["n needed"]] == is_open and any(is_open)
