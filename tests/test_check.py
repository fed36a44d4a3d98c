"""A check passes within its tolerance, names the worst cell, and writes only when told to."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from acelib.provenance import ROOT
from acelib.study import check
from acelib.study.check import assert_table
from acelib.study.parameters import chapter_of, defaults, in_place_of
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
        "kept: 2 of 6 values differ; worst in row 'ACE', column ['measured', '1']: "
        "expected [56.2, 48.1, 64.0, 30], found [56.2, 48.1, 94.0, 30], "
        "tolerance 0.01 + 0 |expected|"
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


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with one chapter, which has two parameters."""
    cell = {"metadata": {"tags": ["parameters"]}, "source": ["n: int = 3  # cases\n", "of = ['a']"]}
    path = tmp_path / "notebooks" / "01_one.ipynb"
    path.parent.mkdir()
    (tmp_path / "_toc.yml").write_text("  - file: notebooks/01_one\n")
    path.write_text(json.dumps({"cells": [{"metadata": {}, "source": ["x = 1"]}, cell]}))
    monkeypatch.setattr(check, "ROOT", tmp_path)
    monkeypatch.setattr(check, "chapter_of", lambda name: chapter_of(name, tmp_path))
    monkeypatch.setattr(check, "defaults", lambda chapter: defaults(chapter, tmp_path))
    monkeypatch.delenv(check.UPDATE, raising=False)
    return tmp_path


def test_references_are_written_only_when_told(table, root, monkeypatch, capsys):
    with pytest.raises(
        FileNotFoundError, match=f"no reference 'new' to compare with; run with {check.UPDATE}=1"
    ):
        assert_table(table, "new")
    assert not (root / "results").exists()
    monkeypatch.setenv(check.UPDATE, "1")
    assert_table(table, "new")
    path = root / "results" / "checks" / "new.json"
    before = path.read_text("utf-8")
    table.iloc[0, 0] = 45.26 + 1e-9
    assert_table(table, "new")  # rounding alone: the file stays as it is
    assert path.read_text("utf-8") == before
    table.iloc[0, 0] = 50.0
    assert_table(table, "new", atol=10)  # what is written is what was measured, tolerance or not
    monkeypatch.delenv(check.UPDATE)
    assert_table(table, "new", rtol=0)
    assert capsys.readouterr().out == "OK: new, 6 values\n" * 4


def test_what_a_chapter_hands_over_has_a_folder_of_its_own(table, root, capsys):
    assert_table(table, "01_one_claims", update=True)
    kept = json.loads((root / "results" / "claims" / "01_one.json").read_text("utf-8"))
    assert kept["parameters"] == {"n": 3, "of": ["a"]}
    assert capsys.readouterr().out == "OK: 01_one_claims, 6 values\n"


@pytest.mark.parametrize(
    "variables, said",
    [
        ({"n": 3, "of": ["a"], "x": 2}, "OK: 01_one_table, 6 values"),
        ({"n": 3, "of": ("a",)}, "OK: 01_one_table, 6 values"),
        ({"n": 4, "of": ["a"]}, "skipped: 01_one_table, other n"),
        ({"n": True, "of": []}, "skipped: 01_one_table, other n, of"),
    ],
)
def test_a_notebook_with_other_parameters_compares_nothing(
    table, root, monkeypatch, capsys, variables, said
):
    """Whoever runs it: papermill, JupyterLab, nbconvert; all have a shell with the variables."""
    assert_table(table, "01_one_table", update=True)
    shell = SimpleNamespace(get_ipython=lambda: SimpleNamespace(user_ns=variables))
    monkeypatch.setitem(sys.modules, "IPython", shell)
    capsys.readouterr()
    assert_table(table, "01_one_table")
    assert capsys.readouterr().out == said + "\n"
    # a reference is not written by a run with other parameters either
    table.iloc[0, 0] = 50.0
    before = (root / "results" / "checks" / "01_one_table.json").read_bytes()
    assert_table(table, "01_one_table", update=True)
    after = (root / "results" / "checks" / "01_one_table.json").read_bytes()
    assert (before == after) == said.startswith("skipped")


def test_defaults_may_change_and_the_reference_says_what_it_was_measured_with(
    table, root, monkeypatch, capsys
):
    """Autosaved in an editor, or changed for good: old numbers are not compared with new ones."""
    assert_table(table, "01_one_table", update=True)
    notebook = root / "notebooks" / "01_one.ipynb"
    notebook.write_text(notebook.read_text().replace("n: int = 3", "n: int = 5"))
    variables = {"n": 5, "of": ["a"]}
    shell = SimpleNamespace(get_ipython=lambda: SimpleNamespace(user_ns=variables))
    monkeypatch.setitem(sys.modules, "IPython", shell)
    capsys.readouterr()
    assert_table(table, "01_one_table")
    assert capsys.readouterr().out == "skipped: 01_one_table, other n\n"
    assert_table(table, "01_one_table", update=True)
    assert_table(table, "01_one_table")
    assert capsys.readouterr().out == "OK: 01_one_table, 6 values\n" * 2


def test_parameters_are_plain_values(root):
    assert chapter_of("01_one_two", root) == chapter_of("01_one", root) == "01_one"
    assert chapter_of("01_onetwo", root) == chapter_of("02", root) == ""
    notebook = root / "notebooks" / "01_one.ipynb"
    notebook.write_text(notebook.read_text().replace("n: int = 3", "n: int = len(x)"))
    with pytest.raises(ValueError, match=r"01_one: the default of n is no plain value: len\(x\)"):
        defaults("01_one", root)
    notebook.write_text(notebook.read_text().replace('"tags": ["parameters"]', '"tags": []'))
    with pytest.raises(ValueError, match="01_one: no cell is tagged 'parameters'"):
        defaults("01_one", root)


@pytest.mark.parametrize(
    "default, value, comment, said",
    [
        (3, 5, "", ""),
        (3, 0, "cases", "must be a whole number greater than 0 (default 3), got 0"),
        (3, -1, "", "must be a whole number greater than 0"),
        (3, None, "", "must be a whole number greater than 0 (default 3), got None"),
        (3, [], "", "must be a whole number greater than 0"),
        (3, True, "", "must be a whole number greater than 0"),
        (3, 2.0, "", "must be a whole number greater than 0"),
        (3, "3", "", "must be a whole number greater than 0"),
        (3, 0, "facts; 0 asks all", ""),
        (3, 0, "the usual 0.5, or 1 of 10,000", "must be a whole number greater than 0"),
        (3, -1, "0: all", "must be a whole number, 0 or more"),
        (0, 0, "", ""),
        (0, -1, "", "must be a whole number, 0 or more (default 0), got -1"),
        (0.5, 1, "", ""),
        (0.5, 0, "", "must be a number greater than 0"),
        (0.5, float("nan"), "", "must be a number greater than 0"),
        (0.5, float("inf"), "", "must be a number greater than 0"),
        (-0.5, float("-inf"), "", "must be a number (default"),
        ("frozen", "exact", "", ""),
        ("frozen", " ", "", "must be a text that is not empty (default 'frozen'), got ' '"),
        ("frozen", "\udcff", "", "must be a text that is not empty"),
        ("frozen", None, "", "must be a text that is not empty"),
        ("", "", "", ""),
        ("", 3, "", "must be a text (default ''), got 3"),
        (False, True, "", ""),
        (False, 0, "", "must be true or false (default False), got 0"),
        (["a"], ["b", "c"], "", ""),
        (["a"], [], "", "must be a list of one or more, each a text that is not empty"),
        (["a"], "b", "", "must be a list of one or more"),
        (["a"], ["b", 1], "", "must be a list of one or more"),
        ([0, 3], [0, 1], "", ""),
        ([0, 3], [-1], "", "must be a list of one or more, each a whole number, 0 or more"),
        ([-1, 1], [-5], "", ""),
        ([1, 2], [0], "", "must be a list of one or more, each a whole number greater than 0"),
        ((1, 2), [3], "", ""),
        ([], [], "", ""),
        ([], "MMLU", "", "must be a list (default []), got 'MMLU'"),
        (None, "cuda", "", ""),
        (3, "long " * 4000, "", "must be"),
    ],
)
def test_what_can_stand_in_place_of_a_default(default, value, comment, said):
    if not said:
        found = in_place_of(default, value, comment)
        assert found == value and (type(found) is type(value) or type(found) is type(default))
        return
    with pytest.raises(ValueError) as refused:
        in_place_of(default, value, comment)
    assert str(refused.value).startswith(said) and len(str(refused.value)) < 250


def test_kept_references_were_measured_with_the_defaults():
    for path in (ROOT / "results").glob("c*/*.json"):
        chapter = chapter_of(path.stem)
        assert json.loads(path.read_text("utf-8"))["parameters"] == defaults(chapter), path.name
