"""verdicts: one row per claim, with what the list of claims says and what was measured."""

import pytest

from acelib.study import verdicts
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
    assert [name for _, name in table.columns[:4]] == ["verdict", "claim", "quantity", "rule"]
    assert table["", "verdict"].tolist() == ["disagree", "holds", "cannot tell"]
    assert table.loc[4, ("", "rule")] == "> 90 points"
    assert table["a"]["verdict"].tolist() == ["fails", "holds", "cannot tell"]
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
    said = {("x", "a"): "holds", ("y", "a"): "cannot tell", ("z", "a"): "holds"} | {
        ("x", "b"): "cannot tell"
    }
    assert with_verdict(said, "a", "holds") == ["x", "z"]
    assert with_verdict(said, "a", "holds", ("z", "y")) == ["z"]


def test_a_table_of_claims_has_marks_and_colours():
    html = verdicts.styled(claims_table(VALUES), "Claims").to_html()
    for word, mark in {"disagree": "≠", "holds": "✓", "cannot tell": "?", "fails": "✗"}.items():
        assert f">{mark} {word}<" in html and f"{verdicts.VERDICTS[word]}44" in html
    assert verdicts.marked("–") == "–"
