"""The hard reading beside the published one, on rows that are made up."""

from dataclasses import replace

import pandas as pd
import pytest

from acelib.measures import harder
from acelib.study.judge import Protocol


@pytest.fixture
def rows() -> pd.DataFrame:
    """Two settings, three cases of two to four hops: asked with few shots, all are right; without,
    a third of a's questions, and all of b's.
    """
    return pd.DataFrame(
        [
            dict(
                model="m",
                editor=editor,
                case_id=case,
                n_hops=2 + case,
                prompt=prompt,
                multi_hop=1.0,
                multi_hop_each=1 / 3 if (prompt, editor) == ("Zero-Shot", "a") else 1.0,
            )
            for editor in "ab"
            for case in range(3)
            for prompt in ("Few-Shots", "Zero-Shot")
        ]
    )


def test_protocols_differ_in_the_prompt_and_the_first_asks_for_the_rest():
    asked = harder.protocols(["Zero-Shot", "OOD Few-Shots"], n_unrelated=8, seed=3)
    first = Protocol(n_unrelated=8, seed=3)
    assert asked == {
        "Few-Shots": first,
        "Zero-Shot": replace(first, n_unrelated=0, n_shots=0),
        "OOD Few-Shots": replace(first, n_unrelated=0, out_of_domain=True),
    }
    assert harder.protocols(["Few-Shots"], n_unrelated=8, seed=3) == {"Few-Shots": first}
    with pytest.raises(ValueError, match="unknown prompt 'Two-Shot'; known: Few-Shots, Zero-Shot"):
        harder.protocols(["Two-Shot"], n_unrelated=8, seed=3)


def test_the_hard_reading_stands_beside_the_published_one(rows):
    both = harder.beside(rows, "Zero-Shot", [3, 4])
    assert both.prompt.eq("Few-Shots").all() and len(both) == 6
    a, b = (both[both.editor == name].hard for name in "ab")
    assert a.isna().tolist() == [True, False, False]
    assert a.dropna().tolist() == pytest.approx([1 / 3, 1 / 3]) and b.dropna().tolist() == [1, 1]
    only = harder.only(both)
    assert only.n_hops.tolist() == [3, 4, 3, 4] and only.multi_hop.tolist() == only.hard.tolist()


def test_the_hard_reading_may_be_of_the_published_prompt(rows):
    few = rows[rows.prompt == "Few-Shots"].assign(multi_hop_each=0.5)
    assert harder.beside(few, "Few-Shots", [4]).hard.dropna().tolist() == [0.5, 0.5]


def test_lengths_that_no_chain_has_are_refused(rows):
    with pytest.raises(ValueError, match=r"no case has \[5, 6\] hops; there are cases of 2, 3, 4"):
        harder.beside(rows, "Zero-Shot", [5, 6])


def test_settings_at_the_ceiling_are_those_that_answer_every_case(rows):
    rows.loc[(rows.editor == "b") & (rows.case_id == 0), "multi_hop"] = 0.0
    full = harder.ceilings(harder.beside(rows, "Zero-Shot", [3, 4]))
    assert list(full["m"]) == ["a"] and full["m"]["a"].mean == pytest.approx(100 / 3)
