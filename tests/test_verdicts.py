"""verdicts: one row per claim, with what the list of claims says and what was measured."""

import pytest

from acelib.study.stats import Mean
from acelib.study.verdicts import claims_table, with_verdict

VALUES = {
    ("zeroing_related", "a"): Mean(21.0, 15.0, 27.0, 9),
    ("zeroing_random", "a"): Mean(0.5, 0.0, 1.0, 9),
    ("similar_is_near", "a"): Mean(0.125, -0.5, 0.75, 8),
    ("zeroing_related", "b"): Mean(95.0, 92.0, 99.0, 9),
}


def test_a_claim_is_a_row_with_a_value_and_a_verdict_for_each_model():
    table = claims_table(VALUES, first=4)
    assert list(table.index) == [4, 5, 6]
    assert list(table.columns[:3]) == [("", "claim"), ("", "quantity"), ("", "rule")]
    assert table.loc[4, ("", "rule")] == "> 90 points"
    assert table["a"]["verdict"].tolist() == ["does not hold", "holds", "undecided"]
    assert table.loc[4, ("b", "verdict")] == "holds"
    assert table.loc[4, ("a", "measured")] == VALUES["zeroing_related", "a"]
    assert table.loc[6, ("a", "measured")] == "0.12 [-0.50, 0.75]"  # no points: two decimals


def test_published_values_stand_beside_where_there_are_any():
    table = claims_table(VALUES, published=True)
    assert table["published"].loc[1].tolist() == ["90", "90"]
    assert table["published"].loc[3].tolist() == ["–", "–"]


def test_an_unknown_claim_is_named():
    with pytest.raises((ValueError, KeyError), match="no_claim"):
        claims_table({("no_claim", "a"): Mean(0, 0, 0, 2)})


def test_claims_are_picked_by_verdict():
    verdicts = {("x", "a"): "holds", ("y", "a"): "undecided", ("z", "a"): "holds"} | {
        ("x", "b"): "undecided"
    }
    assert with_verdict(verdicts, "a", "holds") == ["x", "z"]
    assert with_verdict(verdicts, "a", "holds", ("z", "y")) == ["z"]
