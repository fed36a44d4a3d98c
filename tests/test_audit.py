"""Audit: every check finds an inconsistency that is planted, and nothing where there is none; the
known ones of the paper are found.
"""

import numpy as np
import pandas as pd
import pytest

from acelib.paper import audit as findings
from acelib.paper import checks as audit

pytestmark = pytest.mark.filterwarnings("error")


def faults(results):
    return [result.where for result in results if result.fault]


def ranked(**lists):
    """Ranked lists: NN_attn=[27, 26] ..."""
    return pd.DataFrame(
        [
            dict(category=name[:2], block=name[3:], rank=i + 1, layer=layer)
            for name, layers in lists.items()
            for i, layer in enumerate(layers)
        ]
    )


def test_a_layer_beyond_the_model_is_found_in_either_numbering():
    assert faults(audit.layers_exist({"6.4": [27, 29], "G": [1, 28], "F": [0, 27]}, 28)) == ["6.4"]


def test_a_list_that_repeats_a_layer_or_another_list_is_found():
    lists = ranked(
        NN_attn=[3, 2, 1],
        NN_ffn=[1, 2, 4],
        CT_attn=[3, 2, 3],
        CT_ffn=[1, 2, 4],
        LG_attn=[1, 2, 4],
        LG_ffn=[4, 2, 1],
    )
    assert faults(audit.lists_without_repeat(lists)) == ["CT attn"] and faults(
        audit.lists_of_their_own(lists)
    ) == ["LG"]
    assert not faults(audit.lists_without_repeat(lists[lists.category != "CT"]))


def test_a_layer_said_to_be_at_the_top_is_looked_up():
    lists = ranked(NN_ffn=[3, 2, 1], CT_ffn=[1, 2, 4])
    assert faults(audit.lists_name(lists, "ffn", (3, 2), ("NN", "CT"), 2)) == ["ffn 3, CT"]
    assert faults(audit.lists_name(lists, "ffn", (4,), ("NN", "CT"), 3, wanted=False)) == [
        "ffn 4, CT"
    ]


def test_wrong_underlines_are_found_both_ways():
    before, now = ranked(NN_attn=[3, 2, 1]), ranked(NN_attn=[3, 1, 2])
    assert not faults(audit.marks_follow(now.assign(changed=[False, True, True]), before))
    assert faults(audit.marks_follow(now.assign(changed=[True, False, True]), before)) == [
        "NN attn rank 1",
        "NN attn rank 2",
    ]


def test_changes_in_the_upper_half_are_found():
    before = ranked(NN_attn=range(9))
    assert not faults(
        audit.changes_are_low(ranked(NN_attn=[0, 1, 2, 3, 4, 5, 6, 8, 7]), before)
    ) and not faults(audit.changes_are_low(before, before))
    assert faults(audit.changes_are_low(ranked(NN_attn=[1, 0, 2, 3, 4, 5, 6, 8, 7]), before))


@pytest.fixture
def wide():
    parts = pd.DataFrame(
        np.random.default_rng(0).uniform(0, 100, (6, 4)).round(2),
        list("ABCDEF"),
        ["1", "2", "3", "4"],
    )
    return parts.assign(all=(parts @ [0.4, 0.3, 0.2, 0.1]).round(2))


def test_averages(wide):
    assert not faults(audit.averages_within(wide, "all")) and not faults(
        audit.averages_share_weights(wide, "all")
    )
    wide.loc["C", "all"] += 0.5
    assert not faults(audit.averages_within(wide, "all")) and faults(
        audit.averages_share_weights(wide, "all")
    ) == ["all 6 averages"]
    wide.loc["B", "all"] = wide.loc["B", ["1", "2", "3", "4"]].max() + 0.01
    assert faults(audit.averages_within(wide, "all")) == ["B"]


def test_a_value_out_of_range_is_found():
    assert faults(audit.within({"a": 0, "b": 100, "c": 100.1, "d": -1}, 0, 100)) == ["c", "d"]


def test_two_values_of_one_quantity_are_found():
    a, b = (
        pd.Series({("x", 1): 2.5, ("y", 1): 3.0, ("z", 1): 0.0}),
        pd.Series({("y", 1): 3.1, ("x", 1): 2.5}),
    )
    assert faults(audit.values_agree(a, b)) == ["y, 1"]


@pytest.mark.parametrize(
    "stated, before, after, wrong",
    [
        ("25.5", 37.01, 46.45, False),
        ("9.44", 37.01, 46.45, True),
        ("16.51", 46.45, 38.78, False),
        ("18.71", 58.24, 47.34, True),
        ("9", 100, 91.4, False),
        ("9", 100, 91.6, True),
    ],
)
def test_a_stated_change_follows_from_its_values_or_not(stated, before, after, wrong):
    (result,) = audit.change_follows({"here": (stated, before, after)})
    assert result.fault == wrong and f"stated {stated} %" in result.numbers


def test_sentences_on_values():
    table = pd.DataFrame({"x": [3.0, 2.0], "y": [1.0, 2.0]}, ["ACE", "FT"])
    assert faults(audit.leads(table, "ACE")) == ["y"] and faults(audit.leads(table, "FT")) == ["x"]
    assert faults(audit.falls(table.loc["ACE"], table.loc["FT"])) == ["y"] and faults(
        audit.stays(table.loc["ACE"], table.loc["FT"], 40)
    ) == ["y"]
    assert faults(audit.has_entry({"here": ["Base", "ACE"], "there": ["ACE"]}, "Base")) == ["there"]
    assert faults(audit.places_meet({"4.2": [16, 18], "6.4": [16, 17], "G": [3, 17]})) == ["4.2; G"]


@pytest.fixture(scope="module")
def checked():
    return findings.results()


def test_every_check_is_put_to_the_paper(checked):
    checks = {
        name
        for name, item in vars(audit).items()
        if getattr(item, "__module__", "") == audit.__name__ and name.islower() and name[0] != "_"
    }
    assert (
        set(checked.check) == checks
        and (checked[["what", "source", "where", "numbers"]] != "").all(axis=None)
        and checked.fault.dtype == bool
    )


@pytest.mark.parametrize(
    "source, where, number",
    [
        ("GPT-J", "6.4, value", "30"),
        ("Table 1", "LS attn", "6, 8, 6"),
        ("Table 18", "FT, GPT-J", "1.59"),
        ("6.2, Table 2; J, Table 10", "ACE (PMET) over PMET, GPT-J", "25.5"),
        ("Table 4", "Qwen3-8B, query, 1;2", "18.716"),
        ("6.3, Table 5", "Qwen3-8B, Zero-Shot", "8.67"),
        ("Table 2", "GPT-J, 1", "MEMIT 64.3"),
        ("Tables 4 and 6, ACE without query layers", "GPT-J, 8", "43.26 and 45.28"),
    ],
)
def test_what_a_reader_found_is_found(checked, source, where, number):
    (found,) = checked[
        checked.fault & (checked.source == source) & (checked["where"] == where)
    ].numbers
    assert number in found


def test_what_agrees_is_not_found(checked):
    agreeing = checked[
        checked.source.isin(
            ["Tables 2 and 10", "Tables 3 and 4", "Tables 2 to 6, 10 to 12, 18, 19 and text"]
        )
    ]
    assert len(agreeing) > 400 and not agreeing.fault.any()


def test_doubts_are_read():
    doubts = findings.doubts()
    assert (
        len(doubts) > 60
        and set(doubts.kind) == {"extraction and misprints", "arithmetic and consistency"}
        and (doubts.doubt != "").all()
    )
    assert "`" not in "".join(doubts.file) and len(findings.doubts("Query Localization")) > 10
