"""The checks of Query Localization find planted faults, and on its tables what DOUBTS.md says."""

import math

import pandas as pd
import pytest

from acelib.paper import audit, audit_ql, audit_tables
from acelib.study.sentences import Text

RESULTS = audit_ql.results()
FOUND = {(row.what, row.where): row.numbers for row in RESULTS[RESULTS.fault].itertuples()}


def faults(results):
    return [result.where for result in results if result.fault]


def test_means_sums_and_orders_by_hand():
    wide = pd.DataFrame({"a": [0.2, 0.2], "b": [0.4, 0.4], "Avg": [0.3, 0.33]}, ["x", "y"])
    assert faults(audit_ql.averages_are_means(wide, "Avg", ("a", "b"))) == ["y"]
    shares = pd.DataFrame({"R_I": [0.4, 0.4], "R_II": [0.6, 0.59]}, ["x", "y"])
    assert faults(audit_ql.shares_add_up(shares)) == ["y"]
    sizes = pd.DataFrame({"small": [0.1, 0.2], "large": [0.2, 0.2]}, ["x", "y"])
    assert faults(audit_ql.orders_follow(sizes, True, "R")) == ["y, large"]
    assert faults(audit_ql.orders_follow(sizes, False, "R")) == ["x, large", "y, large"]
    least, of = pd.Series({"x": 0.5, "y": 0.5}), pd.Series({"x": 0.4, "y": 0.6})
    assert faults(audit_ql.least_bounds(least, of)) == ["y"]
    cut = pd.DataFrame({"static": [0.1, 0.1], "otsu": [0.2, 0.2]}, ["x", "y"])
    share = pd.DataFrame({"static": [0.4, 0.4], "otsu": [0.5, 0.3]}, ["x", "y"])
    assert faults(audit_ql.thresholds_and_shares(cut, share)) == ["y"]
    assert faults(audit_ql.agree({"x": (1, 1), "y": (1, 2)})) == ["y"]
    assert faults(audit_ql.stated({"x": "20", "y": "not stated"})) == ["y"]


def test_a_mean_over_all_facts_does_not_depend_on_their_classes():
    index = pd.MultiIndex.from_product([["m"], ["a", "b"], ["static", "otsu"]])
    columns = ["R_I", "S_I", "R_II", "S_II"]
    rows = [
        [0.5, 0.3, 0.5, 0.1],
        [0.25, 0.4, 0.75, 0.13],
        [0.5, 0.3, 0.5, 0.1],
        [0.4, 0.5, 0.6, 0.2],
    ]
    wide = pd.DataFrame(rows, index, columns)
    assert faults(audit_ql.means_stay(wide)) == ["m, b"]


def test_one_normal_distribution_gives_the_printed_t():
    assert pytest.approx(1.3236, abs=1e-4) == audit_ql.T_OF_ROOT_N
    few = {"t": audit_ql.T_OF_ROOT_N * math.sqrt(900)}
    assert faults(audit_ql.one_normal_suffices(few, 1000)) == ["t"]
    assert faults(audit_ql.one_normal_suffices({"t": 100.0}, 1000)) == []


@pytest.mark.parametrize(
    "what, where, numbers",
    [
        ("a quantity has two values", "Erasure, N_g, K_II, LLaMA2-7b, Avg", "0.42 and 0.47"),
        ("a quantity has two values", "Erasure, N_g, K_II, LLaMA3-8b, Avg", "0.49 and 0.42"),
        ("an average is not the mean", "Update, N_g, K_I, LLaMA2-7b", "Avg 0.68, mean 0.577"),
        ("a value is missing", "Update, N_i, K_I, LLaMA3-8b, delta_PPL", "no value"),
        ("shares of the two classes do not add up", "GPT-2, Enguehard, otsu", "0.44 + 0.55 = 0.99"),
        (
            "a mean over all facts depends on the threshold",
            "LLaMA2-7b, Chen et al.",
            "static 0.098 to 0.110, Otsu 0.111 to 0.124",
        ),
        ("a gain that the table does not give", "over N_g, Table 2", "9.0 and 2"),
        ("two counts of one thing differ", "relations of Table 5; of A.2, less two", "39 and 36"),
    ],
)
def test_what_was_noted_while_reading_is_found(what, where, numbers):
    assert FOUND[what, where] == numbers


def test_what_agrees_is_not_called_a_fault():
    clean = audit_tables.clean_table(RESULTS)
    assert set(clean.what) == {
        "an intersection is larger than a set",
        "the higher threshold has fewer facts in K_II",
    }
    sums = RESULTS[RESULTS.what == "a mean over all facts depends on the threshold"]
    assert len(sums) == 9 and sums.fault.sum() == 2
    larger = RESULTS[RESULTS.what.str.contains("the higher share of K_II")]
    assert set(larger[larger.fault]["where"].str.partition(",")[0]) >= {"Dai et al."}
    assert (RESULTS.what == "the test is as large for one normal distribution").sum() == 18


def test_the_page_says_so():
    told = audit_tables.verdict_numbers(RESULTS)
    text = Text("audit")
    assert f"{told['found']} were" in text.render("localization", **told)
    doubts = audit.doubts("Query Localization")
    assert len(doubts) == 27 and "Eq. 4" in " ".join(doubts.file)
