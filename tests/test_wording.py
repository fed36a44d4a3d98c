"""Wording: every model is named where models differ, and only there."""

from acelib.study import sentences


def test_each():
    assert (
        sentences.each({"a": "95 %", "b": "83 %"}) == "95 % (a) and 83 % (b)"
        and sentences.each({"a": "95 %"}) == "95 % (a)"
    )


def test_together():
    assert (
        sentences.together({"a": "holds", "b": "holds"}) == "holds on both"
        and sentences.together({"a": "holds"}) == "holds"
    )
    assert (
        sentences.together({"a": "holds", "b": "is undecided"}) == "holds on a, is undecided on b"
    )
    assert (
        sentences.together(dict.fromkeys("abc", "holds")) == "holds on all"
        and sentences.together({}) == ""
    )
