"""Agreement of labels: published examples, chance, gaps; files that are no label files are refused
in one sentence.
"""

from math import isnan

import numpy as np
import pandas as pd
import pytest

from acelib.measures.agreement import agreement, cohen_kappa, krippendorff_alpha, read_labels

pytestmark = pytest.mark.filterwarnings("error")
WORKED = [
    "* * * * * 3 4 1 2 1 1 3 3 * 3",
    "1 * 2 1 3 3 4 3 * * * * * * *",
    "* * 2 1 3 4 4 * 2 1 1 3 3 * 4",
]  #: Krippendorff's example with gaps


@pytest.fixture
def write(tmp_path):
    def written(text: str):
        (tmp_path / "labels.csv").write_text(text, "utf-8")
        return tmp_path / "labels.csv"

    return written


def frame(*rows):
    return pd.DataFrame(
        {
            name: [None if label == "*" else label for label in row.split()]
            for name, row in zip("ABCD", rows, strict=False)
        },
        dtype=object,
    )


def test_kappa_is_that_of_the_textbook():
    yes, no = "yes", "no"
    a, b = [yes] * 25 + [no] * 25, [yes] * 20 + [no] * 5 + [yes] * 10 + [no] * 15
    assert cohen_kappa(pd.Series(a), pd.Series(b)) == pytest.approx(0.4)
    assert cohen_kappa(pd.Series(a), pd.Series(a)) == 1 and isnan(
        cohen_kappa(pd.Series([yes]), pd.Series([yes]))
    )


def test_alpha_is_that_of_krippendorff():
    assert krippendorff_alpha(frame(*WORKED)) == pytest.approx(0.691, abs=5e-4)
    assert krippendorff_alpha(frame("a b c", "a b c")) == 1 and isnan(
        krippendorff_alpha(frame("a a", "a a"))
    )


def test_alpha_is_the_plain_sum_over_pairs():
    rng = np.random.default_rng(0)
    labels = pd.DataFrame(rng.choice(["a", "b", "c", None], (40, 4)).tolist(), dtype=object)
    units = [[label for label in row if label] for row in labels.to_numpy().tolist()]
    units = [unit for unit in units if len(unit) > 1]
    values = [label for unit in units for label in unit]
    observed = sum(
        sum(x != y for i, x in enumerate(unit) for j, y in enumerate(unit) if i != j)
        / (len(unit) - 1)
        for unit in units
    ) / len(values)
    expected = sum(x != y for i, x in enumerate(values) for j, y in enumerate(values) if i != j) / (
        len(values) * (len(values) - 1)
    )
    assert (
        krippendorff_alpha(labels) == pytest.approx(1 - observed / expected, rel=1e-12)
        and abs(1 - observed / expected) < 0.3
    )


def test_table_of_pairs_and_of_all(write):
    labels = read_labels(
        write(
            "item,annotator,label,remark\nq1,Ann,NN,\nq1, Bo , NN,x\n"
            "q2,Ann,CT,\nq2,Bo,LG,\nq3,Ann,CT,\nq1,Cy,NN,\n"
        )
    )
    assert labels.shape == (3, 3) and labels.at["q3", "Bo"] is None
    found = agreement(labels)
    assert list(found.index) == ["Ann, Bo", "Ann, Cy", "Bo, Cy", "all"] and list(
        found["items"]
    ) == [2, 1, 1, 2]
    assert (
        found.at["Ann, Bo", "agreement (%)"].mean == 50
        and found.at["all", "agreement (%)"].mean == 50
    )
    assert found.at["Ann, Bo", "kappa"] == pytest.approx(1 / 3) and isnan(found.at["all", "kappa"])


@pytest.mark.parametrize(
    "text, said",
    [
        ("item,annotator\nq1,Ann\n", "has no column 'label'; it has item, annotator"),
        ("", "cannot be read as a .csv file"),
        ("item,annotator,label\n", "0 annotators"),
        ("item,annotator,label\nq1,Ann,NN\nq1,Bo,\n", "line 3: 'label' is empty"),
        ("item,annotator,label\nq1,,NN\n", "line 2: 'annotator' is empty"),
        (
            "item,annotator,label\nq1,Ann,NN\nq1,Ann,CT\n",
            "line 3: a second label by 'Ann' for item 'q1'",
        ),
        ("item,annotator,label\nq1,Ann,NN\n", "1 annotators"),
        ("item,annotator,label\nq1,Ann,NN\nq2,Bo,NN\n", "no item that two of them have labelled"),
        ("item,annotator,label\nq1,Ann,NN,2\n", "more cells than its header"),
        ("item,annotator,label\nq1,Ann,NN\nq1,Bo,NN,2\n", "cannot be read"),
        ('item,annotator,label\n"q1,Ann,NN\n', "cannot be read"),
    ],
)
def test_another_file_is_refused(write, text, said):
    with pytest.raises(ValueError, match=said):
        read_labels(write(text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="none.csv cannot be read"):
        read_labels(tmp_path / "none.csv")
