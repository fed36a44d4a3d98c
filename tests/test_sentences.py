"""Sentences: what a template says, and what is said of a template that is wrong."""

import math

import pytest

from acelib.study import sentences
from acelib.study.sentences import Text
from acelib.study.stats import Mean

TEMPLATE = """
{% block verdict %}
On {{ hits | each }}, {{ name }} wins.
{% if lost %}
It loses {{ lost | listed }}.
{% endif %}

{% if more %}
More.
{% endif %}


Last.
{% endblock %}
{% block bold %}**{{ ["holds"] | answer }}.** So.{% endblock %}
{% block bare %}{{ gain }} and {{ gain | num(2, " nats") }}{% endblock %}
"""


@pytest.fixture
def text(tmp_path):
    (tmp_path / "01_one.md.j2").write_text(TEMPLATE)
    return Text("01_one", tmp_path)


def test_each():
    assert sentences.each({"a": "95 %", "b": "83 %"}) == "95 % (a) and 83 % (b)"
    assert sentences.each({"a": "95 %"}) == "95 % (a)"
    assert sentences.each({"a": "1", "b": "2", "c": "3"}) == "1 (a), 2 (b) and 3 (c)"


def test_together():
    assert sentences.together({"a": "holds", "b": "holds"}) == "holds on both"
    assert sentences.together({"a": "holds"}) == "holds"
    mixed = {"a": "holds", "b": "is undecided"}
    assert sentences.together(mixed) == "holds on a, is undecided on b"
    assert sentences.together(dict.fromkeys("abc", "holds")) == "holds on all"
    assert sentences.together({}) == ""


def test_listed():
    assert [sentences.listed(names) for names in ("", "a", "ab", "abc")] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]
    assert sentences.listed(["x", "y"], "or") == "x or y"


def test_num():
    assert sentences.num(2.346, 2) == "2.35"
    assert sentences.num(95.04, 1, " %") == "95.0 %"
    assert sentences.num(Mean(56.2, 48.1, 64.0, 9), 0) == "56 [48, 64]"
    assert sentences.num({"a": 1.0, "b": math.nan}) == {"a": "1.0", "b": "–"}
    assert sentences.num(Mean(math.nan, math.nan, math.nan, 0), 1, " %") == "–"


@pytest.mark.parametrize("places", range(4))
@pytest.mark.parametrize("value", [-0.0, -1e-12, -0.0004, -0.004, -0.04, -0.4, -0.6, 0.04, -4.0])
def test_what_rounds_to_zero_has_no_sign_and_all_its_digits(value, places):
    for said in (
        sentences.num(value, places),
        sentences.num(Mean(value, value, value, 3), places).partition(" ")[0],
    ):
        assert float(said) == round(value, places)
        assert said.startswith("-") == (float(said) < 0)
        assert len(said.partition(".")[2]) == places


def test_a_block_is_rendered_without_what_conditions_leave_behind(text):
    values = dict(hits={"a": "95 %", "b": "83 %"}, name="ACE", more=False)
    assert text.render("verdict", **values, lost=["x", "y"]) == (
        "On 95 % (a) and 83 % (b), ACE wins.\nIt loses x and y.\n\nLast."
    )
    assert text.render("verdict", **values, lost=[]) == (
        "On 95 % (a) and 83 % (b), ACE wins.\n\nLast."
    )


def test_a_mean_prints_itself(text):
    said = text.render("bare", gain=Mean(1.0, 0.5, 1.5, 4))
    assert said == "1.0 [0.5, 1.5] and 1.00 [0.50, 1.50] nats"


def test_a_block_is_shown_as_markdown(text, monkeypatch):
    shown = []
    monkeypatch.setattr(sentences, "display", shown.append)
    text.show("bare", gain=1.0)
    assert shown[0].data == "1.0 and 1.00 nats" and "_repr_markdown_" in dir(shown[0])


def test_what_is_missing_is_named(text, tmp_path):
    with pytest.raises(ValueError, match=r"01_one.md.j2, block 'bare': 'gain' is undefined"):
        text.render("bare")
    with pytest.raises(ValueError, match=r"01_one.md.j2, block 'verdict': .*'lost'"):
        text.render("verdict", hits={}, name="ACE")
    with pytest.raises(ValueError, match=r"has no block 'end'; it has: verdict, bold and bare"):
        text.render("end")
    with pytest.raises(ValueError, match=r"no template '02_two.md.j2' .*: 01_one.md.j2"):
        Text("02_two", tmp_path)
    (tmp_path / "03.md.j2").write_text("{% block a %}")
    with pytest.raises(ValueError, match=r"03.md.j2, line 1: "):
        Text("03", tmp_path)


def test_a_headline_is_shown_and_can_be_quoted(text, monkeypatch):
    shown = []
    monkeypatch.setattr(sentences, "display", lambda data, **more: shown.append((data, more)))
    text.headline("bare", gain=1.5)
    (data, more) = shown.pop()
    assert data == {"text/markdown": "1.5 and 1.50 nats", "text/plain": "'1.5 and 1.50 nats'"}
    assert more["raw"] and more["metadata"]["scrapbook"] == {"name": "bare", "mime_prefix": ""}
    text.headline("bold")
    assert shown.pop()[0] == {"text/markdown": "**Yes.** So.", "text/plain": "'Yes. So.'"}


def test_a_figure_is_shown_with_what_it_shows(text, monkeypatch):
    shown = []
    monkeypatch.setattr(sentences, "display", lambda data, **more: shown.append((data, more)))
    text.figure("drawn", "bare", gain=1.5)
    assert shown == [("drawn", {"metadata": {"image/png": {"alt": "1.5 and 1.50 nats"}}})]


@pytest.mark.parametrize(
    "said, expected",
    [
        (["holds", "holds"], "Yes"),
        (["fails", "fails"], "No"),
        (["fails", "cannot tell"], "No"),
        (["fails in part"], "No"),
        (["holds", "fails"], "Partly"),
        (["holds", "cannot tell"], "Partly"),
        (["disagree"], "Partly"),
        (["holds in part", "fails"], "Partly"),
        ({"a": {"m": "holds"}, "b": ["fails"]}, "Partly"),
        (["cannot tell"], "Cannot tell"),
        ([], "Cannot tell"),
    ],
)
def test_a_question_is_answered_by_the_verdicts(said, expected):
    assert sentences.answer(said) == expected


def test_a_word_that_is_no_verdict_answers_nothing():
    with pytest.raises(ValueError, match="verdict 'perhaps' is none of cannot tell, "):
        sentences.answer(["holds", "perhaps"])


def test_a_mean_without_its_interval_and_its_verdict():
    gap = Mean(3.14, 1.0, 5.0, 9)
    assert sentences.mean({"m": gap}, 1, " %") == {"m": "3.1 %"} and sentences.mean(2.0, 0) == "2"
    assert sentences.mean(-0.2, 0) == "0"
    assert sentences.verdict(gap) == "holds" and sentences.verdict(gap, "< 0") == "fails"
    assert sentences.verdict(Mean(math.nan, math.nan, math.nan, 0)) == "cannot tell"


def test_a_verdict_is_told_of_its_claim():
    assert sentences.told("fails", "it rains") == "the claim that it rains fails"
    assert sentences.told("cannot tell", "it rains") == "one cannot tell whether it rains"
    assert sentences.said({"a": "holds", "b": "cannot tell"}) == {
        "a": "holds",
        "b": "cannot be told",
    }


@pytest.mark.parametrize(
    "verdicts, expected",
    [
        ({"a": "holds"}, "The claim that it rains holds"),
        ({"a": "holds", "b": "holds"}, "The claim that it rains holds on both"),
        ({"a": "holds", "b": "fails"}, "The claim that it rains holds on a, fails on b"),
        (
            {"a": "fails", "b": "cannot tell"},
            "The claim that it rains fails on a; on b one cannot tell",
        ),
        (dict.fromkeys("ab", "cannot tell"), "One cannot tell, on either model, whether it rains"),
    ],
)
def test_verdicts_of_models_make_a_sentence(verdicts, expected):
    assert sentences.judged(verdicts, "it rains") == expected
