"""General abilities, analysed: changes are paired over documents with the unedited model."""

import pandas as pd
import pytest

from acelib.measures import abilities_analysis as analysis
from acelib.measures.abilities import KINDS, SAID
from acelib.study.sentences import Text

#: editor -> the documents of a task (of four) that it gets wrong after ordinary edits
WRONG = {"ROME": (0,), "ACE": (0, 1, 2)}


def rows() -> pd.DataFrame:
    """Four documents of three tasks; unedited, document 0 of facts is wrong and text takes 0.3."""

    def row(kind, editor, task, doc, value):
        metric = "bits_per_byte" if task == "text" else "acc"
        names = {"model": "gptj-mini", "edits": kind, "editor": editor, "item": f"{task} {doc}"}
        return {**names, "task": task, "part": task, "doc": doc, "metric": metric, "value": value}

    table = []
    for kind, editor in [("none", "Base"), *((kind, editor) for kind in KINDS for editor in WRONG)]:
        wrong = WRONG.get(editor, ()) if kind == "ordinary" else ()
        for doc in range(4):
            table.append(row(kind, editor, "facts", doc, float(doc not in (*wrong, 0))))
            table.append(row(kind, editor, "two_hop", doc, float(doc not in wrong)))
            table.append(row(kind, editor, "thoughts", doc, 1.0))
            table.append(row(kind, editor, "text", doc, 0.3 + 0.01 * len(wrong)))
        if kind != "none":
            table += [row(kind, editor, SAID, doc, float(doc)) for doc in range(2)]
    return pd.DataFrame(table)


CHANGED = analysis.changes(rows())


def test_changes_are_paired_with_the_unedited_model():
    assert list(CHANGED.editor.unique()) == ["Base", *WRONG] and SAID not in set(CHANGED.task)
    assert (CHANGED[CHANGED.editor == "Base"].change == 0).all()
    assert CHANGED.groupby(["edits", "editor"]).size().eq(16).all()
    one = CHANGED[(CHANGED.edits == "ordinary") & (CHANGED.editor == "ROME")]
    assert one[one.task == "facts"].change.tolist() == [0, 0, 0, 0]  # it was wrong before
    assert one[one.task == "two_hop"].change.tolist() == [-100, 0, 0, 0]
    assert one[one.task == "text"].change.tolist() == pytest.approx([10] * 4)


def test_order_of_documents_does_not_matter():
    turned = analysis.changes(rows().iloc[::-1])
    means = ["model", "edits", "editor", "task"]
    one, two = (table.groupby(means).change.mean() for table in (CHANGED, turned))
    pd.testing.assert_series_equal(one, two)


def test_tables_of_both_kinds():
    efficacy = analysis.said(rows())
    assert efficacy["gptj-mini", "ordinary", "ACE"].mean == 50
    table = analysis.beside(CHANGED, efficacy, 12, "ordinary")
    assert list(table.index) == ["Base", *WRONG]
    measured = table["measured gptj-mini"]
    assert list(measured) == ["facts", "two_hop", "thoughts", SAID]
    assert measured.loc["ACE", "two_hop"].mean == 25 and measured.loc["Base", SAID] is None
    assert table["published Qwen3-8B"].loc["ACE"].notna().all()
    values = analysis.values_table(CHANGED)
    assert list(values) == ["facts", "two_hop", "thoughts", "text"]
    assert list(values.index)[:2] == [("gptj-mini", "ordinary", name) for name in ("Base", "ROME")]
    assert analysis.efficacy_table(efficacy).shape == (4, 1)


def test_losses_and_claims():
    assert analysis.accuracy_changes(CHANGED)["gptj-mini", "ordinary", "ACE"].mean == pytest.approx(
        -500 / 12
    )
    table = analysis.changes_table(CHANGED)
    assert table.loc[("ordinary", "ACE"), ("gptj-mini", "two_hop")].mean == -75
    assert table.shape == (4, 5)
    values = analysis.claim_values(CHANGED)
    assert list(values) == [
        ("benchmarks_kept", "gptj-mini"),
        ("benchmarks_kept_counterfactual", "gptj-mini"),
    ]
    of = analysis.verdict(CHANGED)["gptj-mini"]
    assert of["worst"] == [("ACE", "ordinary")] and of["least"] == pytest.approx(-500 / 12)
    assert of["ace"]["ordinary"]["is"] == "fails"
    rest = CHANGED[CHANGED.editor != "ACE"]
    assert analysis.verdict(rest)["gptj-mini"]["ace"] == {}


def test_a_figure_has_a_column_for_every_task():
    wide = analysis.by_task(CHANGED)
    assert {"facts", "two_hop", "thoughts", "text"} <= set(wide)
    assert set(wide.edits) == set(analysis.LABELS.values())
    assert analysis.labels(CHANGED)["text"] == "text (bits per 1000 bytes)"


def test_sentences():
    text, sizes = Text("appendix_l_benchmarks"), {"n_edits": 2, "published": []}
    said = text.render("verdict", models=analysis.verdict(CHANGED), **sizes)
    assert (
        "the claim that less than five are lost fails." in said
        and "published benchmarks none was asked." in said
    )
    assert "On gptj-mini, most is lost by ACE (ordinary edits): 41.7 points." in said
    told = analysis.verdict(CHANGED)
    assert "ACE, loses 42." in text.render("changes_found", models=told, **sizes)
    rest = CHANGED[CHANGED.editor == "Base"].assign(editor="ROME")
    said = text.render("verdict", models=analysis.verdict(rest), **sizes | {"published": ["CSQA"]})
    assert said.startswith("**Cannot tell.**\n") and "CSQA was asked." in said
