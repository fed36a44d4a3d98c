"""Appendix M's page: rows of a tiny model, read back as the statements' two sides."""

import pandas as pd
import pytest
import torch

from acelib.bench.tiny import make_tiny
from acelib.measures import derivation, derivation_analysis, derivation_figures
from acelib.study import rows
from acelib.study.sentences import Text
from acelib.study.stats import Mean
from acelib.world.world import load_world

WORLD = load_world()
TEXT = Text("appendix_m_derivation")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The rows of three prompts on a tiny model; sets are of two neurons, of eight and of all."""
    hosts = {"tiny": make_tiny("gptj")}
    experiment = derivation.experiment(hosts, WORLD, n_prompts=3, n_top=2, seed=0)
    return rows.table(experiment, folders=rows.Folders(None, tmp_path_factory.mktemp("rows")))


@pytest.fixture(scope="module")
def statements(table):
    return derivation_analysis.Statements(table, 2)


@pytest.fixture
def write():
    return derivation_analysis.write_rows(
        pd.DataFrame(
            [
                dict(model="tiny", item=stage, layer=layer, request=request, formula=1e-9)
                | dict(error=1e-9 if layer == 1 else 0.2, cosine=0.5, reach=1.0, logit=0.3)
                for stage in ("value", "query")
                for layer in (1, 2)
                for request in range(3)
            ]
        )
    )


def test_rows_come_back_as_they_were_computed(statements):
    lm = make_tiny("gptj")
    pairs = derivation.questions(WORLD, 3, 0, single=True)
    prompts, answers = zip(*pairs, strict=True)
    asked = (*lm.encode(prompts), derivation.first_tokens(lm, answers))
    expected = derivation.taylor(lm, *asked, "exact", n=2)
    found = statements.pushes["tiny", derivation_analysis.VALUE["exact"]]
    assert found.whole.to_numpy() == pytest.approx(expected.score.to_numpy())
    assert found["first"].to_numpy() == pytest.approx(expected["first"].to_numpy())
    assert found["size"].tolist() == expected["size"].tolist()
    logits = derivation.logits(lm, *asked)
    assert statements.logits.together.to_numpy() == pytest.approx(logits.together.to_numpy())
    sets = derivation.additivity(lm, *asked, "frozen", sorted({2, 4, 8, 64, 256, lm.d_mlp}))
    frozen = statements.sets[statements.sets.what == "norm frozen"]
    assert frozen.whole.to_numpy() == pytest.approx(sets.whole.to_numpy())


def test_an_identity_holds_to_rounding(statements):
    assert statements.theorem_2["tiny", "frozen"].mean < 1e-6
    assert statements.exponents["tiny", derivation_analysis.VALUE["frozen"]].mean > 1.8
    assert len(statements.first_order_table()) == 4
    assert statements.layer_gaps().shape == (4, 2)


def test_percent_is_of_the_mean_size():
    error, size = pd.Series([1.0, -1.0]), pd.Series([10.0, -30.0])
    assert derivation_analysis.percent(error, size).mean == pytest.approx(5)


def test_later_layers_and_the_query_stage_are_told_apart(write):
    assert derivation_analysis.shifts(write, "tiny", first=True).mean == pytest.approx(1e-7)
    assert derivation_analysis.shifts(write, "tiny").mean == pytest.approx(10)
    assert write.logit[write.stage == "query"].isna().all()
    assert derivation_analysis.write_table(write).loc[("tiny", "query", "first layer")].iloc[4] == (
        "–"
    )


def test_every_statement_has_a_verdict_and_a_sentence(statements, write):
    results = derivation_analysis.results(statements, write)
    table = derivation_analysis.results_table(results)
    assert len(table) == 11 and table["", "rule (%)"].notna().all()
    verdicts = derivation_analysis.verdict_numbers(results)
    assert verdicts["tiny"]["all"].endswith(" of 11")
    numbers = derivation_analysis.statement_numbers(results)
    slopes = derivation_analysis.slope_numbers(statements)
    layers = derivation_analysis.layer_numbers(statements)
    said = [
        TEXT.render("verdict", models=verdicts),
        TEXT.render("linear_found", models=numbers),
        TEXT.render("linear", models=numbers),
        TEXT.render("first", models=numbers, slopes=slopes),
        TEXT.render("added", models=numbers, layers=layers, n_top=2),
        TEXT.render("write", models=numbers, cosines=derivation_analysis.cosine_numbers(write)),
    ]
    assert all("tiny" in sentence for sentence in said)
    handed = derivation_analysis.claim_values(statements, write)
    assert len(handed) == 6 and all(model == "tiny" for _, model in handed)


def test_models_are_in_double_precision():
    hosts = {"tiny": make_tiny("gptj")}
    assert derivation.in_float64(hosts) == hosts
    single = {"gptj-mini": make_tiny("gptj", torch.float32)}
    assert derivation.in_float64(single)["gptj-mini"].dtype == torch.float64


def test_error_curves_have_a_line_per_quantity():
    table = pd.DataFrame(
        [
            dict(model=model, what=what, size=size, error=size**2 * (1 + i))
            for model in ("one", "two")
            for what in ("score", "logit")
            for size in (0.25, 1, 4)
            for i in range(2)
        ]
    )
    exponents = {
        (model, what): Mean(2, 1.9, 2.1, 3) for model in ("one", "two") for what in table.what
    }
    fig = derivation_figures.error_curves(table, exponents)
    labels = [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    assert labels == ["score: slope 2.00 [1.90, 2.10]", "logit: slope 2.00 [1.90, 2.10]"]
    assert [tick.get_text() for tick in fig.axes[0].get_xticklabels()] == ["1/4", "1", "4"]


def test_a_rounding_error_is_called_that():
    assert derivation_analysis.shown(Mean(8.5e-11, 4e-11, 1e-10, 9)) == "a rounding error"
    assert derivation_analysis.shown(Mean(1.5, 1, 2, 9)) == "1.5 [1, 2] %"
