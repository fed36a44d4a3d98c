"""The audit's page: every kind that was looked for is in one of its two tables."""

import pandas as pd
import pytest

from acelib.paper import audit, audit_tables
from acelib.study.sentences import Text


def results(*rows) -> pd.DataFrame:
    names = ["what", "source", "where", "numbers", "fault", "kind", "check"]
    return pd.DataFrame(rows, columns=names)


ROWS = results(
    ("sums are off", "Table 1", "a", "1 and 2", True, "contradiction", "adds_up"),
    ("sums are off", "Table 1", "b", "2 and 2", False, "", "adds_up"),
    ("sums are off", "Table 2", "c", "3 and 2", True, "repeat", "adds_up"),
    ("a name is missing", "Table 1", "d", "", False, "", "has_entry"),
)


def test_what_was_found_is_counted_by_weight():
    numbers = audit_tables.verdict_numbers(ROWS)
    assert (numbers["kinds"], numbers["found"], numbers["looked"]) == (2, 1, 4)
    assert numbers["places"] == {
        "contradiction": 1,
        "suspect": 0,
        "unit or rounding": 0,
        "omission": 0,
        "repeat": 1,
    }
    said = Text("audit").render("verdict", **numbers)
    assert said.startswith("**") and "Of 2 kinds of inconsistency that were looked for" in said
    assert "1 of 2 kinds" in Text("audit").render("counts_found", **numbers)


def test_faults_and_what_is_clean_stand_apart():
    faults, clean = audit_tables.faults_table(ROWS), audit_tables.clean_table(ROWS)
    assert faults["found in"].tolist() == ["1 of 2", "1 of 1"]
    assert faults.numbers.tolist() == ["a: 1 and 2", "c: 3 and 2"]
    assert clean.what.tolist() == ["a name is missing"]
    assert audit_tables.counts(ROWS)["sum"].tolist() == [1, 1, 0]


@pytest.mark.parametrize("weight", audit_tables.WEIGHTS)
def test_the_page_knows_every_weight(weight):
    assert set(audit.results().kind) - {""} <= set(audit_tables.WEIGHTS)
    assert weight in audit_tables.verdict_numbers(audit.results())["places"]
