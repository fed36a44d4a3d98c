"""Cases of appendix C: who knows which, of what kind they are, and what Table 11 allows."""

import pandas as pd
import pytest

from acelib.bench.tiny import make_tiny
from acelib.measures import dataset, dataset_analysis
from acelib.study import rows
from acelib.study.sentences import Text
from acelib.world.world import CATEGORIES, load_world

WORLD = load_world()
EXPERIMENT = dataset.experiment({"tiny": make_tiny("gptj")}, WORLD, n_cases=12, seed=0)
MADE = dataset_analysis.cases_of(EXPERIMENT)
ROWS = pd.DataFrame(
    [
        {"model": model, "item": str(case.case_id), "known": i % part == 0}
        for model, part in (("one", 2), ("two", 3))
        for i, case in enumerate(MADE)
    ]
)
CASES = dataset_analysis.cases_table(WORLD, MADE, ROWS)


def test_a_random_model_knows_no_case(tmp_path):
    folders = rows.Folders(None, tmp_path)
    table = rows.table(EXPERIMENT, folders=folders)
    assert table.item.tolist() == [str(case.case_id) for case in MADE]
    assert not table.known.any()


def test_cases_have_their_shape_and_who_knows_them():
    assert len(CASES) == 12 and CASES.one.sum() == 6 and CASES.two.sum() == 4
    case = MADE[0]
    assert CASES["shape"][0].startswith(f"{case.n_hops} hops, {case.n_edits} edit")
    assert all(len(kinds) == case.n_edits for kinds, case in zip(CASES.edited, MADE, strict=True))
    assert {*CASES["last"]} <= {*CATEGORIES.values(), "other"}


def test_the_verdict_counts_what_each_model_knows():
    said = Text("appendix_c_dataset").render(
        "verdict", **dataset_analysis.known_numbers(CASES, ["one", "two"])
    )
    assert said.startswith("**Cannot tell.**\nOf 12 cases made, one knows all facts of 6 (50.0 [")
    assert "two knows all facts of 4 (" in said and said.endswith("eight kinds.")


def test_counts_add_up_to_the_cases():
    stages = dataset_analysis.stages(CASES, ["one", "two"])
    table = dataset_analysis.counts_table(stages)
    assert list(table) == ["made", "known to one", "known to two"]
    assert table.loc["hops and edits"].sum().tolist() == [12, 6, 4]
    assert table.loc["kind of an edited fact"].made.sum() == sum(case.n_edits for case in MADE)


def test_an_example_has_the_shape_that_is_asked_for():
    case = dataset_analysis.example(MADE, MADE[0].n_hops, MADE[0].n_edits)
    assert case == MADE[0]
    assert dataset_analysis.case_table(case).loc["answer", ""] == case.answer
    with pytest.raises(ValueError, match="none of 12 cases has 9 hops and 1 edits"):
        dataset_analysis.example(MADE, 9, 1)


def test_categories_hold_every_fact_once():
    table = dataset_analysis.categories_table(WORLD)
    assert table.facts.sum() == len(WORLD.facts) and table.index[-1] == "other"
    assert table.relations.sum() == len(WORLD.relations)


def test_published_overlaps_lie_within_their_intervals():
    (bounds,) = dataset_analysis.overlap_intervals({"a": 80.0}, 80).values()
    assert bounds[0] < 80 < bounds[1]
    numbers = dataset_analysis.overlap_numbers()
    assert numbers["low"] < float(numbers["least"]) <= float(numbers["most"]) < numbers["high"]
    assert len(dataset_analysis.overlap_table()) == 4


def test_rules_label_every_case():
    labels = dataset_analysis.rule_labels(CASES)
    assert labels.shape == (12, 2) and labels.notna().all(axis=None)
