"""Wording: every model is named where models differ, and only there."""

from acelib import wording


def test_each():
    assert (
        wording.each({"a": "95 %", "b": "83 %"}) == "95 % (a) and 83 % (b)"
        and wording.each({"a": "95 %"}) == "95 % (a)"
    )


def test_together():
    assert (
        wording.together({"a": "holds", "b": "holds"}) == "holds on both"
        and wording.together({"a": "holds"}) == "holds"
    )
    assert wording.together({"a": "holds", "b": "is undecided"}) == "holds on a, is undecided on b"
    assert (
        wording.together(dict.fromkeys("abc", "holds")) == "holds on all"
        and wording.together({}) == ""
    )
