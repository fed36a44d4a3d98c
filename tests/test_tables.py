"""Published tables parse, intervals are scipy's, measured stands beside published, HTML is the same
every time.
"""

import ast
import re
from dataclasses import replace
from math import isnan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, bootstrap

from acelib.editors import ACE, EDITORS, MEMIT, PMET, preset
from acelib.paper.published import published, quote
from acelib.study import stats, tables
from acelib.study.stats import Mean, interval, paired
from acelib.study.tables import layers_table, metrics_table, multi_hop_table, paired_table, style

pytestmark = pytest.mark.filterwarnings("error")
ROWS_OF_ACE = {
    1: 144,
    2: 60,
    3: 30,
    4: 50,
    5: 6,
    6: 24,
    7: 6,
    8: 3,
    9: 4,
    10: 80,
    11: 4,
    12: 16,
    13: 24,
    14: 144,
    15: 144,
    16: 8,
    17: 8,
    18: 40,
    19: 16,
}


@pytest.fixture
def rows() -> pd.DataFrame:
    """What experiments.run gives: 12 cases, 3 for each number of edits;

    ACE answers two of the three, MEMIT fewer but with one edit.
    """
    answered = {"Base": range(12), "ACE": (0, 1, 2, 3, 8, 9, 10, 11), "MEMIT": (0, 1, 8)}
    frame = [
        dict(
            case_id=case,
            n_edits=1 + case % 4,
            multi_hop=float(case in answered[editor]),
            efficacy=1.0 if editor == "ACE" else 0.5,
            paraphrase=np.nan if case == 3 else 0.25,
            specificity=case / 11,
            specificity_token=np.nan if case == 3 else 0.5,
            editor=editor,
        )
        for editor in ("Base", "MEMIT", "ACE")
        for case in range(12)
    ]
    return pd.DataFrame(frame)


@pytest.fixture
def scores() -> pd.DataFrame:
    return pd.DataFrame(
        [
            dict(
                category=category,
                block=block,
                layer=layer,
                importance=float(-abs(layer - (3 if block == "ffn" else 5))),
            )
            for category in ("CP", "NN")
            for block in ("ffn", "attn")
            for layer in range(6)
            for _ in range(2)
        ]
    )


# ---------------------------------------------------------------------- published numbers


@pytest.mark.parametrize("table", ROWS_OF_ACE)
def test_every_table_of_the_paper_parses(table):
    frame = published(table)
    assert len(frame) == ROWS_OF_ACE[table] and not frame.isna().any(axis=None)
    numeric = [
        name for name in ("value", "layer", "rank", "importance", "ffn", "attn") if name in frame
    ]
    assert numeric and all(pd.api.types.is_numeric_dtype(frame[name]) for name in numeric)


def test_published_values_and_averages():
    table = published(2).set_index(["editor", "model", "n_edits"])["value"]
    assert (
        table["ACE", "GPT-J", "1"] == 45.26
        and table["ACE", "Qwen3-8B", "all"] == 58.24
        and table["Base", "GPT-J", "1"] == 99.7
    )
    assert published(14).changed.dtype == bool and "1;2" in set(published(4).skipped_ranks)
    assert quote("ace_13") == 9.47 and len(published("ace_inline")) == 71


@pytest.mark.parametrize("wrong", [0, 20, "ace_table", "nonsense", ""])
def test_unknown_tables_are_refused(wrong):
    with pytest.raises(ValueError, match="known: ace_claims, ace_differences, ace_inline_numbers"):
        published(wrong)


@pytest.mark.parametrize("wrong", ["ace_19", "ace_999"])
def test_unknown_quotes_are_refused(wrong):
    with pytest.raises(ValueError, match=wrong):
        quote(wrong)


# ---------------------------------------------------------------------- intervals


def test_interval_is_the_bootstrap_of_scipy():
    x = np.random.default_rng(1).random(40)
    found = interval(x, seed=3, level=0.9)
    plain = bootstrap(
        (x,), np.mean, confidence_level=0.9, method="percentile", rng=np.random.default_rng(3)
    )
    assert (
        (found.low, found.high) == tuple(plain.confidence_interval)
        and found.mean == x.mean()
        and found.n == 40
    )
    assert found == interval(x, seed=3, level=0.9) != interval(x, seed=4, level=0.9)


def test_batches_of_resamples_change_nothing():
    x = np.random.default_rng(1).random(500)  # more than fit into one batch
    assert tuple(
        bootstrap(
            (x,), np.mean, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
    ) == pytest.approx((interval(x).low, interval(x).high), rel=1e-12)


@pytest.mark.parametrize("n", [2, 8, 24])
def test_cases_that_all_agree_have_the_exact_binomial_interval(n):
    def exact(k):
        return binomtest(k, n).proportion_ci(0.95, "exact")

    for k in (0, n):
        found = interval([100 * k / n] * n, bounds=stats.SHARE)
        assert (found.low, found.high) == pytest.approx((100 * exact(k).low, 100 * exact(k).high))
    gap = interval([0.0] * n, bounds=stats.POINTS)
    assert gap.mean == 0 and -gap.low == gap.high == pytest.approx(100 * exact(0).high)
    half = interval([0.0, 100.0] * n, bounds=stats.SHARE)
    assert half == interval([0.0, 100.0] * n)  # where they do not agree, bounds change nothing


def test_intervals_of_degenerate_data():
    assert interval([0.7] * 5) == Mean(0.7, 0.7, 0.7, 5)
    assert interval([1.0, np.nan, 0.0]).n == 2
    one, none = interval([0.5]), interval([np.nan])
    assert one.mean == 0.5 and isnan(one.low) and one.n == 1 and f"{one}" == "0.5"
    assert isnan(none.mean) and none.n == 0 and f"{none}" == "–"


def test_means_print_as_in_the_tables():
    assert (
        str(Mean(56.21, 48.06, 64.04, 30)) == "56.2 [48.1, 64.0]"
        and f"{Mean(5.6, -1, 6, 3):+.0f}" == "+6 [-1, +6]"
    )


@pytest.mark.parametrize("value", [-0.0, -1e-12, -0.004, -0.04])
def test_what_rounds_to_zero_has_no_sign_in_a_table(value):
    assert str(Mean(value, value, 0.0, 3)) == "0.0 [0.0, 0.0]"
    cells = pd.DataFrame({"a": [value, 1.5], "b": [Mean(value, -1.0, 1.0, 9), value]}, dtype=object)
    html = style(cells.map(lambda x: round(x, 1) if isinstance(x, float) else x), "").to_html()
    assert "-0" not in html and "-1.0, 1.0" in html


def test_paired_differences_are_taken_within_cases(rows):
    found = paired(rows.sample(frac=1, random_state=0), "ACE", "MEMIT")
    wide = rows.pivot(index="case_id", columns="editor", values="multi_hop")
    assert found == interval(wide.ACE - wide.MEMIT)
    assert paired(rows, "ACE", "ACE") == stats.unanimous_interval(Mean(0, 0, 0, 12), stats.POINTS)
    assert paired(rows, "ACE", "MEMIT", "paraphrase").n == 11  # a case without paraphrases
    table = paired_table(rows)
    assert list(table.index) == ["ACE − MEMIT"] and table.efficacy.iloc[
        0
    ] == stats.unanimous_interval(Mean(50, 50, 50, 12), stats.POINTS)


def test_paired_refuses_other_cases_and_editors(rows):
    with pytest.raises(ValueError, match="1 belong to only one of them, such as case 11"):
        paired(rows.drop(rows.index[-1]), "ACE", "MEMIT")
    with pytest.raises(ValueError, match="no rows of editor 'ROME'; there are Base, MEMIT, ACE"):
        paired(rows, "ACE", "ROME")


# ---------------------------------------------------------------------- tables


def test_table_2_sets_measured_beside_published(rows):
    table = multi_hop_table(rows)
    assert list(table.index) == ["Base", "FT", "ROME", "MEMIT", "PMET", "ACE"]
    groups = ["published GPT-J", "published Qwen3-8B", "measured gptj-mini"]
    counts = ["1", "2", "3", "4", "average"]
    assert list(table.columns) == [(group, count) for group in groups for count in counts] + [
        (groups[2], "cases")
    ]
    assert table.loc["ACE", ("published GPT-J", "average")] == 46.45
    assert table.loc["ACE", ("measured gptj-mini", "2")] == interval([100, 0, 100])
    assert (
        table.loc["ACE", ("measured gptj-mini", "average")].n
        == 12
        == table.loc["ACE", ("measured gptj-mini", "cases")]
    )
    assert table["measured gptj-mini"].loc["ROME"].isna().all()
    assert {"AlphaEdit", "ACE (AlphaEdit)"} <= set(multi_hop_table(rows, published(10)).index)


def test_several_measured_models_stand_side_by_side(rows):
    both = pd.concat(
        [rows.assign(model="gptj-mini"), rows.assign(model="qwen3-mini")]
    )  # with repeated index labels
    table = multi_hop_table(both)
    pd.testing.assert_frame_equal(table["measured gptj-mini"], table["measured qwen3-mini"])
    pd.testing.assert_frame_equal(
        table["measured gptj-mini"], multi_hop_table(rows)["measured gptj-mini"]
    )


def test_table_3(rows):
    table = metrics_table(rows)
    assert list(table["published GPT-J"]) == ["efficacy", "paraphrase", "specificity"]
    same = "specificity, same last token"  # a kind of facts that the paper has not
    assert list(table["measured gptj-mini"]) == [*table["published GPT-J"], same, "cases"]
    assert table.loc["ACE", ("measured gptj-mini", same)].n == 11
    assert (
        table.loc["FT", ("published GPT-J", "efficacy")] == 98.4
        and table.loc["ACE", ("measured gptj-mini", "efficacy")].mean == 100
    )
    assert table.loc["ACE", ("measured gptj-mini", "paraphrase")].n == 11


def test_table_1_ranks_layers_by_their_sum(scores):
    table = layers_table(scores, top=4)
    assert table.index[0] == ("nationality", "attention") and len(table) == 16
    assert table.loc[("capital", "FFN"), "measured gptj-mini"].tolist() == [3, 2, 4, 1]
    assert table.loc[("nationality", "attention"), "published GPT-J"].tolist() == [27, 26, 7, 10]
    assert table.loc[("author", "FFN"), "measured gptj-mini"].isna().all()
    assert layers_table(scores)["measured gptj-mini"].columns.tolist() == list(
        range(1, 7)
    )  # no more layers than there are


# ---------------------------------------------------------------------- HTML


def test_html_is_the_same_every_time(rows):
    one, two = (style(multi_hop_table(rows), "Accuracy, in % & by edits") for _ in range(2))
    assert (
        one.to_html() == two.to_html()
        and repr(one) == "Accuracy, in % & by edits (6 rows x 16 columns)"
    )
    assert not set(re.findall(r'id="([^"]*)"', one.to_html())) - {f"T_{one.uuid}"}
    assert style(metrics_table(rows), "Accuracy, in % & by edits").uuid != one.uuid


def test_html_marks_published_measured_and_best(rows):
    page = style(multi_hop_table(rows), "Table 2").to_html()
    assert "<caption>Table 2</caption>" in page and 'class="dataframe"' in page
    cells = re.findall(r'<td class="([^"]*)" >(.*?)</td>', page)
    best = [(names, text) for names, text in cells if "best" in names]
    assert (
        sum("published" in names for names, _ in cells) == 6 * 10
        and sum("measured" in names for names, _ in cells) == 6 * 6
    )
    measured = [names for names, _ in best if "measured" in names]
    assert all("row5" in names for names in measured if "col10" not in names)  # ACE, never Base
    assert [text for names, text in best if "published" in names][:2] == [
        "64.30",
        "50.24",
    ]  # MEMIT, then ACE
    assert {names.split()[1] for names in measured if "col10" in names} == {
        "row3",
        "row5",
    }  # equal ones are all the best
    assert '<span title="n = 3">66.7</span><span class="interval">[0.0, 100.0]</span>' in page
    assert (
        any(text == "45.26" for _, text in cells)
        and any(text == "–" for _, text in cells)
        and "nan" not in page
    )


def test_other_tables_have_a_style_too(rows, scores):
    assert "best" not in re.sub(
        "<style.*</style>", "", style(layers_table(scores), "Table 1").to_html(), flags=re.S
    )
    assert "ACE − MEMIT" in style(paired_table(rows), "Differences").to_html()
    kinds = style(
        pd.DataFrame(
            {
                "gptj-mini": ["1"],
                "of qwen3-mini": ["1"],
                "published": ["2"],
                "x": ["3"],
                "y": [Mean(1, 0, 2, 9)],
            }
        ),
        "Kinds",
    ).to_html()
    assert (
        re.findall(r"row0 col\d +(\w+)", kinds)
        == ["measured", "measured", "published", "text", "measured"]
        and "best" not in kinds.split("<tbody>")[1]
    )
    assert "&lt;b&gt;" in style(pd.DataFrame({"x": ["<b>"]}), "Text").to_html()


def test_html_in_labels_is_escaped_like_that_in_cells():
    mark = "<script>&"
    columns = pd.MultiIndex.from_tuples([(mark, f"{mark}1"), (mark, f"{mark}2")], names=[mark, "n"])
    index = pd.MultiIndex.from_tuples([(mark, mark), (mark, "b")], names=["a", mark])
    for table in (
        pd.DataFrame([[mark, 1.0], [mark, 2.0]], index, columns),
        pd.DataFrame([[mark, 1.0], [mark, 2.0]], [mark, "b"], [mark, "c"]).rename_axis(mark),
    ):
        page = style(table, mark).to_html()
        assert "<script>" not in page and page.count("&lt;script&gt;&amp;") >= 6, page


@pytest.mark.parametrize("module", ["tables", "figures", "check"])
def test_no_torch(module):
    tree = ast.parse((Path(tables.__file__).parent / f"{module}.py").read_text("utf-8"))
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    names |= {
        "." * node.level + node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    }
    assert "torch" not in {name.split(".")[0] for name in names}
    assert {name for name in names if name.startswith(".")} <= {
        ".drawing",
        ".parameters",
        ".stats",
        ".tables",
        "..files",
        "..paper.published",
        "..provenance",
        "..world.world",
    }


def test_a_wide_table_splits_by_model():
    wide = pd.DataFrame(
        [[1.0, 2.0, 3.0, 4.0]],
        columns=pd.MultiIndex.from_tuples(
            [
                ("published GPT-J", "1"),
                ("published Qwen3-8B", "1"),
                ("measured gptj-mini", "1"),
                ("measured qwen3-mini", "1"),
            ]
        ),
    )
    one, other = tables.by_model(
        wide, {"gptj-mini": "GPT-J", "qwen3-mini": None}, lambda large, model: f"{large}, {model}"
    )
    assert one.data.to_numpy().tolist() == [[1.0, 3.0]] and one.caption == "GPT-J, gptj-mini"
    assert other.data.to_numpy().tolist() == [[4.0]], (
        "a model that stands for none has its own columns alone"
    )
    assert other.caption == "no published model, qwen3-mini"


def test_settings_of_every_editor():
    found = {name: tables.settings(preset(name, "gptj-mini")) for name in EDITORS}
    assert len({tuple(of) for of in found.values()}) == 1, "all have the same columns"
    assert [name for name, of in found.items() if of["layers"] == "located for each fact"] == ["KN"]
    searched = replace(PMET.objective, steps=17)
    ace = ACE(
        value=PMET(layers=(4,), objective=searched),
        query=PMET(layers=(1, 2), weight=15000.0, objective=searched),
    )
    assert (
        tables.settings(ace)["layers"] == "query 1, 2; value 4"
        and tables.settings(ace)["λ"] == "15000"
    )
    assert (
        tables.settings(ace)["steps"] == "17"
        and tables.settings(MEMIT(layers=(3, 4)))["layers"] == "3, 4"
    )


def test_a_difference_is_known_by_the_smaller_sample():
    few = stats.difference([0.0] * 4, [0.0] * 20)
    assert few.n == 4 and stats.unanimous_interval(few, stats.POINTS) == interval(
        [0.0] * 4, bounds=stats.POINTS
    )
