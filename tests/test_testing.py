"""A check cell passes within its tolerance, names the worst cell outside it, and writes references only when told to."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from acelib.study import check
from acelib.study.check import assert_table
from acelib.study.stats import Mean

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def table() -> pd.DataFrame:
    columns = pd.MultiIndex.from_tuples(
        [("published", "1"), ("measured", "1"), ("measured", "name")]
    )
    return pd.DataFrame(
        [[45.26, Mean(56.2, 48.1, 64.0, 30), "ACE"], [np.nan, None, "Größe"]],
        ["ACE", "FT"],
        columns,
        dtype=object,
    )


@pytest.fixture
def reference(tmp_path, table, monkeypatch) -> Path:
    monkeypatch.delenv(check.UPDATE, raising=False)
    assert_table(table, tmp_path / "kept.json", update=True)
    return tmp_path / "kept.json"


def test_equal_tables_pass_and_say_so(table, reference, capsys):
    capsys.readouterr()
    assert_table(table, reference)
    assert capsys.readouterr().out == "OK: kept, 6 values\n"
    assert_table(table, str(reference))


def test_a_reference_is_a_line_a_row(reference):
    lines = reference.read_text("utf-8").splitlines()
    assert lines[2] == '  ["ACE", [45.26, [56.2, 48.1, 64.0, 30], "ACE"]],' and "Größe" in lines[3]
    assert json.loads("\n".join(lines))["columns"] == [
        ["published", "1"],
        ["measured", "1"],
        ["measured", "name"],
    ]
    assert [path.name for path in reference.parent.iterdir()] == ["kept.json"]


@pytest.mark.parametrize("tolerance", [dict(atol=0.05), dict(rtol=0.002)])
def test_tolerances(table, reference, tolerance):
    table.iloc[0, 0] = 45.30
    assert_table(table, reference, **tolerance)
    with pytest.raises(AssertionError, match="kept: 1 of 6 values differ"):
        assert_table(table, reference)


def test_a_tolerance_a_row(table, reference):
    table.iloc[0, 0] = 46.0
    assert_table(table, reference, atol=[1, 0])
    with pytest.raises(AssertionError, match="1 of 6 values differ.*tolerance 0.5"):
        assert_table(table, reference, atol=[0.5, 1])


def test_the_worst_cell_is_named(table, reference):
    table.iloc[0, 0], table.iloc[0, 1] = 45.3, Mean(56.2, 48.1, 94.0, 30)
    with pytest.raises(AssertionError) as err:
        assert_table(table, reference, atol=0.01, rtol=0)
    assert str(err.value) == (
        "kept: 2 of 6 values differ; worst in row 'ACE', column ['measured', '1']: expected [56.2, 48.1, 64.0, 30], "
        "found [56.2, 48.1, 94.0, 30], tolerance 0.01 + 0 |expected|"
    )


@pytest.mark.parametrize(
    "row, column, value",
    [
        (0, 2, "Ace"),
        (1, 0, 0.0),
        (0, 0, np.nan),
        (0, 0, "45.26"),
        (0, 1, 56.2),
        (0, 0, True),
        (0, 0, np.inf),
    ],
)
def test_kinds_are_not_confused(table, reference, row, column, value):
    table.iloc[row, column] = value
    with pytest.raises(AssertionError, match="1 of 6 values differ"):
        assert_table(table, reference, atol=1.0)


def test_labels_and_their_order_count(table, reference):
    for other, kind in (
        (table.iloc[::-1], "rows"),
        (table.iloc[:1], "rows"),
        (table.rename({"FT": "ft"}), "rows"),
        (table[table.columns[::-1]], "columns"),
    ):
        with pytest.raises(AssertionError, match=f"the {kind} are"):
            assert_table(other, reference)


def test_numpy_and_pandas_numbers(tmp_path):
    frame = pd.DataFrame(
        {
            "a": np.float32([0.1, 2]),
            "b": pd.array([1, None], "Int64"),
            "c": [True, False],
            "d": [[1, 0.5], []],
        },
        index=[3, 7],
    )
    assert_table(frame, tmp_path / "x.json", update=True)
    assert_table(frame, tmp_path / "x.json", rtol=0)
    with pytest.raises(ValueError, match="a reference cannot hold"):
        assert_table(pd.DataFrame({"a": [object()]}), tmp_path / "y.json", update=True)
    assert not (tmp_path / "y.json").exists()


def test_references_are_written_only_when_told(table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check, "ROOT", tmp_path)
    monkeypatch.delenv(check.UPDATE, raising=False)
    with pytest.raises(
        FileNotFoundError, match=f"no reference 'new' to compare with; run with {check.UPDATE}=1"
    ):
        assert_table(table, "new")
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv(check.UPDATE, "1")
    assert_table(table, "new")
    path = tmp_path / "tests" / "reference" / "new.json"
    before = path.read_text("utf-8")
    table.iloc[0, 0] = 45.26 + 1e-9
    assert_table(table, "new")  # rounding alone: the file stays as it is
    assert path.read_text("utf-8") == before
    table.iloc[0, 0] = 50.0
    assert_table(table, "new", atol=10)  # what is written is what was measured, tolerance or not
    monkeypatch.delenv(check.UPDATE)
    assert_table(table, "new", rtol=0)
    assert capsys.readouterr().out == "OK: new, 6 values\n" * 4
