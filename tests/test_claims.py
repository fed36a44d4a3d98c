"""Claims: the list is complete and its references mean something, verdicts follow their rules, rows
are handed over or refused.
"""

import json
import re
from dataclasses import replace
from math import inf, isnan, nan
from types import SimpleNamespace

import pytest

from acelib.book.contents import known
from acelib.provenance import ROOT
from acelib.study import check, claims, claims_page
from acelib.study.stats import Mean

pytestmark = pytest.mark.filterwarnings("error")
LIST = claims.claims_list()
TESTED = LIST[LIST.chapter != ""]
KEYS = [(claim, model) for claim, of in TESTED.iterrows() for model in of.models.split("; ")]


@pytest.fixture
def folder(tmp_path):
    """References as chapters write them, every value one above its rule's first bound."""
    for chapter, some in TESTED.groupby("chapter"):
        bound = {
            claim: float(of.rule.split("..")[0].strip("<> ")) + 1 for claim, of in some.iterrows()
        }
        rows = {
            key: Mean(bound[key[0]], bound[key[0]] - 0.5, bound[key[0]] + 0.5, 30)
            for key in KEYS
            if key[0] in bound
        }
        check.assert_table(claims.measured(rows), tmp_path / f"{chapter}.json", update=True)
    return tmp_path


def test_at_least_25_claims_each_with_a_section_and_a_rule_or_a_reason():
    assert (
        len(LIST) >= 25
        and LIST.index.is_unique
        and (LIST[["section", "claim"]] != "").all(axis=None)
    )
    for claim, of in LIST.iterrows():
        if of.chapter:
            assert of.quantity and set(of.models.split("; ")) <= {
                "gptj-mini",
                "qwen3-mini",
                "both",
            }, claim
            assert claims.verdict(of.rule, Mean(nan, nan, nan, 0)) == "cannot tell"
        else:
            assert (
                of.rule in ("cannot be tested here", "not tested yet")
                and of.why
                and not of.models + of.quantity
            ), claim


@pytest.mark.parametrize("claim", LIST.index)
def test_a_published_value_is_one_of_the_tables(claim):
    for column, model in claims.PAPERS[LIST.paper[claim]].items():
        value = claims.quoted(LIST[column][claim], model)
        assert (
            all(part.strip() for part in value.split(";")) if LIST[column][claim] else value == ""
        )


def test_references():
    local = "ql_table_02 operation=Erasure kn_set=N_i knowledge=K_II metric=Gen"
    assert claims.quoted(local, "GPT-2") == "0.09" and claims.quoted("ql_06", "LLaMA3-8b") == "8"
    whole = local.replace("N_i", "N_g")
    assert claims.quoted(f"{whole} - {local}", "LLaMA3-8b") == "0.36"
    assert (
        claims.quoted("ace_01", "GPT-J")
        == "9.44"
        == claims.quoted("2 editor=ACE n_edits=all - 2 editor=PMET n_edits=all", "GPT-J")
    )
    assert (
        claims.quoted("10 editor=ACE (AlphaEdit) n_edits=all", "Qwen3-8B") == "61.54"
        and claims.quoted("7 token=of column=ffn", "GPT-J") == "0.8469"
    )
    assert (
        claims.quoted("ace_20; ace_35", "GPT-J") == "46.2; 16;17;18"
        and claims.quoted("", "GPT-J") == ""
    )
    assert (
        claims.quoted("ace_22; ace_23 -> ace_25; ace_26", "GPT-J") == "28, 16 → 6, 4"
        and claims.quoted("ace_35 -> ace_36", "GPT-J") == "16, 17, 18 → 28, 29, 30"
    )
    for wrong, number in {"2 editor=ACE": 5, "ace_0": 0, "3 editor=ACE metric=avg": 0}.items():
        with pytest.raises(ValueError, match=f"{wrong}.* means {number} published values of GPT-J"):
            claims.quoted(wrong, "GPT-J")


@pytest.mark.parametrize(
    "rule, low, high, expected",
    [
        ("> 0", 0.1, 2, "holds"),
        ("> 0", 0, 2, "cannot tell"),
        ("> 0", -1, 0, "cannot tell"),
        ("> 0", 0, 0, "fails"),
        ("> 0", -2, -1, "fails"),
        ("> 90", 80, 95, "cannot tell"),
        ("> 0", -12, 13, "cannot tell"),
        ("< 10", -5, 9.9, "holds"),
        ("< 10", 9, 10.5, "cannot tell"),
        ("< 10", 9, 11, "cannot tell"),
        ("< 10", 10, 12, "cannot tell"),
        ("< -1", -3, -2, "holds"),
        ("< 0", 0, 0, "fails"),
        ("1..2", 1, 2, "holds"),
        ("1..2", 0.5, 1.9, "cannot tell"),
        ("1..2", 0.5, 1.5, "cannot tell"),
        ("1..2", 2.1, 3, "fails"),
        ("1..2", -2, 0.9, "fails"),
        ("1..2", 0, 3, "cannot tell"),
    ],
)
def test_verdict(rule, low, high, expected):
    assert claims.verdict(rule, Mean((low + high) / 2, low, high, 9)) == expected


def test_without_an_interval_the_mean_counts():
    assert (
        claims.verdict("> 0", Mean(1, nan, nan, 1)) == "holds"
        and claims.verdict("> 1", Mean(1, nan, nan, 1)) == "fails"
    )


@pytest.mark.parametrize("rule", ["", ">= 1", "0", "> x", "1..", "cannot be tested here"])
def test_another_rule_is_refused(rule):
    with pytest.raises(ValueError, match="is none of"):
        claims.verdict(rule, Mean(1, 0, 2, 9))


@pytest.mark.parametrize(
    "each, expected",
    [
        ("hh", "holds"),
        ("ff", "fails"),
        ("cc", "cannot tell"),
        ("hf", "disagree"),
        ("fh", "disagree"),
        ("hfc", "disagree"),
        ("hc", "holds in part"),
        ("cf", "fails in part"),
        ("fcf", "fails in part"),
    ],
)
def test_overall(each, expected):
    names = dict(zip("hfc", claims.VERDICTS, strict=True))
    assert claims.overall(dict(enumerate(map(names.get, each)))) == expected


def test_cases_that_all_agree_at_the_bound_leave_a_claim_open():
    none = claims.with_exact_intervals({("ace_leads_pmet", "m"): Mean(0, 0, 0, 100)})
    value = none["ace_leads_pmet", "m"]
    assert claims.verdict("> 0", value) == "cannot tell" and isnan(claims.needed("> 0", value))
    assert claims.needed("> 0", replace(value, low=-4)) == inf


def test_the_number_of_cases_is_to_the_nearer_bound():
    value = Mean(5, -9, 19, 10)  # 10 (2.8 s / 5)^2, s = 28 / 3.92
    assert claims.needed("> 0", value) == pytest.approx(160, abs=1)
    assert claims.needed("0..15", value) == claims.needed("> 0", value)
    assert claims.needed("-15..0", value) == claims.needed("> 0", value)
    assert claims.needed("-20..15", value) == pytest.approx(40, abs=1)
    assert claims.needed("> 0", Mean(0, -1, 1, 10)) == inf
    assert isnan(claims.needed("> 20", value)) and isnan(claims.needed("> 0", Mean(1, nan, nan, 1)))


def test_an_open_claim_says_how_many_cases_it_would_need(folder):
    found = claims.kept_values(folder)
    found["ace_leads_pmet", "gptj-mini"] = Mean(5, -9, 19, 10)
    found["ace_leads_pmet", "qwen3-mini"] = Mean(0.1, -9, 19, 10)
    line = claims.table(found).loc["ace_leads_pmet"]
    assert line.verdict == "cannot tell" and not line.why.startswith("gptj-mini")
    assert line.needed == pytest.approx({"gptj-mini": 160, "qwen3-mini": 400_000}, abs=1)
    assert claims.table(found).needed["ace_leads_best"] == {}


def test_what_chapters_hand_over_is_read_back(folder):
    found = claims.kept_values(folder)
    assert sorted(found) == sorted(KEYS) and found["ace_leads_pmet", "qwen3-mini"] == Mean(
        1, 0.5, 1.5, 30
    )
    table = claims.table(found)
    assert (
        list(table.index) == list(LIST.index)
        and table.at["ace_leads_pmet", "verdict"] == "holds"
        and table.at["ood_shots_robust", "verdict"] == "fails"
    )
    assert (
        table.at["labels_agree", "verdict"] == "cannot be tested here"
        and table.at["labels_agree", "why"]
    )
    assert (
        table.at["ace_leads_pmet", "published Qwen3-8B"] == "37.46"
        and table.at["worse_on_qwen3", "measured both"].n == 30
    )


def test_a_chapter_that_has_handed_over_nothing_has_not_run_yet(folder):
    found = claims.kept_values(folder)
    chapter = LIST.chapter["ql_c10"]
    left = {key: value for key, value in found.items() if LIST.chapter[key[0]] != chapter}
    table = claims.table(left)
    assert set(table.verdict[table.chapter == chapter]) == {"not tested yet"}
    assert table.at["ql_c10", "verdict"] != claims.table(found).at["ql_c10", "verdict"]


def test_every_paper_has_its_claims_and_models(folder):
    table = claims.table(claims.kept_values(folder))
    assert list(dict.fromkeys(LIST.paper)) == list(claims.PAPERS)
    assert (LIST.paper == "Query Localization").sum() == 28
    assert table.at["ql_c01", "published LLaMA3-8b"] == "0.84"
    assert table.loc["ql_c01"].isna()["published GPT-J"]


def test_models_that_disagree_are_named(folder):
    found = claims.kept_values(folder) | {("ace_leads_pmet", "qwen3-mini"): Mean(-3, -4, -2, 30)}
    line = claims.table(found).loc["ace_leads_pmet"]
    assert line.verdict == "disagree" and line.why == "gptj-mini: holds. qwen3-mini: fails"


def test_a_claim_without_a_row_is_named(folder):
    found = claims.kept_values(folder)
    del found["zeroing_random", "qwen3-mini"]
    with pytest.raises(
        ValueError, match="claim 'zeroing_random' has no value for 'qwen3-mini'; chapter 01_storage"
    ):
        claims.table(found)


@pytest.mark.parametrize(
    "row", [["ace_leads_best", "gptj-mini"], ["zeroing_random", "both"], ["new", "both"]]
)
def test_a_row_that_no_claim_expects_is_named(folder, row):
    path = folder / "01_storage.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"rows": [[row, [1, 0, 2, "9"]]]}))
    with pytest.raises(ValueError, match=f"01_storage.json: claim '{row[0]}' on '{row[1]}'"):
        claims.kept_values(folder)


def test_measured():
    frame = claims.measured(
        {
            ("ace_leads_pmet", "models/gptj-mini"): Mean(5, 1, 9, 24),
            ("convergent_tokens", "qwen3-mini"): Mean(5, nan, nan, 1),
        }
    )
    assert list(frame.index) == [
        ("ace_leads_pmet", "gptj-mini"),
        ("convergent_tokens", "qwen3-mini"),
    ] and list(frame.iloc[0]) == [5, 1, 9, "24"]
    assert claims.slack(
        {
            ("ace_leads_pmet", "gptj-mini"): Mean(5, 1, 9, 24),
            ("shared_neurons", "both"): Mean(5, 1, 9, 24),
        }
    ) == pytest.approx([200 / 24, 0.05])
    agreed = claims.measured(
        {("ace_leads_pmet", "gptj-mini"): Mean(0, 0, 0, 8)}
    )  # 8 cases that agree do not show that all do
    assert claims.verdict("> 0", Mean(*agreed.iloc[0, :3], 8)) == "cannot tell" and agreed.iloc[
        0, 2
    ] == pytest.approx(100 * (1 - 0.025 ** (1 / 8)))
    with pytest.raises(ValueError, match="unknown claim 'ace'; known: ace_leads_pmet"):
        claims.measured({("ace", "both"): Mean(5, 1, 9, 24)})
    with pytest.raises(ValueError, match=r"mean 5 lies outside its interval \[6, 9\]"):
        claims.measured({("ace_leads_pmet", "both"): Mean(5, 6, 9, 24)})


def test_every_claim_of_the_book_is_measured_and_its_verdict_follows():
    """The committed references: all rows are there, and the chapter's verdicts are those of today's
    numbers.
    """
    table = claims.table(claims.kept_values())
    table = table.loc[claims_page.judged(claims.kept_values()).index]
    kept = json.loads((ROOT / "results" / "checks" / "claims.json").read_text("utf-8"))
    assert sorted(row[0] for row in kept["rows"]) == sorted(table.index)
    assert {row[0]: row[1][kept["columns"].index("verdict")] for row in kept["rows"]} == dict(
        table.verdict
    )


def test_every_chapter_that_tests_a_claim_exists_and_hands_over():
    chapters = known()
    for name in TESTED.chapter.unique():
        assert name in chapters, name
        cells = chapters[name].read_text("utf-8").replace("\\", "")
        assert f'"{name}_claims"' in cells or 'f"{name}_claims"' in cells, name


def test_a_chapter_says_what_the_page_of_claims_says(folder):
    given = {
        ("ace_leads_pmet", "gptj-mini"): Mean(0, 0, 0, 8),
        ("ace_leads_pmet", "qwen3-mini"): Mean(5, 1, 9, 24),
        ("shared_neurons", "gptj-mini"): Mean(5, 5, 5, 3),
    }
    assert (
        claims.with_exact_intervals(given)["ace_leads_pmet", "gptj-mini"].high > 0
        and claims.with_exact_intervals(given)["shared_neurons", "gptj-mini"].high == 5
    )
    said = claims.verdicts(given)
    frame = claims.measured(given)
    assert said == {
        key: claims.verdict(LIST.rule[key[0]], Mean(*frame.loc[[key]].iloc[0, :3], 8))
        for key in given
    }
    assert (
        said["ace_leads_pmet", "gptj-mini"] == "cannot tell"
        and said["ace_leads_pmet", "qwen3-mini"] == "holds"
    )
    with pytest.raises(ValueError, match="unknown claim 'ace'"):
        claims.verdicts({("ace", "both"): Mean(5, 1, 9, 24)})


def test_chapters_judge_the_claims_of_the_list_by_one_function():
    rules = re.compile(
        r"claims\.verdict\("
    )  # Appendix M judges statements of its own by rules of its own
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        source = "\n".join(
            "".join(cell["source"])
            for cell in json.loads(path.read_text("utf-8"))["cells"]
            if cell["cell_type"] == "code"
        )
        assert path.stem == "appendix_m_derivation" or not rules.search(source), path.stem


def test_the_published_model_beside_a_measured_one():
    def host(kind):
        return SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(model_type=kind)))

    assert claims.counterparts({"a": host("qwen3"), "b": host("gptj"), "c": host("llama")}) == {
        "a": "Qwen3-8B",
        "b": "GPT-J",
        "c": None,
    }
