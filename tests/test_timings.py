"""Appendix I: every measurement is one item, clocks agree with everything, tables hold all."""

import pandas as pd
import pytest

from acelib.bench import latency, latency_figures, timings, timings_analysis
from acelib.study import rows
from acelib.study.sentences import Text
from acelib.world.world import load_world

WORLD = load_world()
SMALL = dict(n_facts=3, n_plain=1, layer=1, steps=3, n_small=2, repeats=2, d_ff=40)
TEXT = Text("appendix_i_latency")


def experiment(tiny):
    hosts = {"one": tiny("gptj")}
    return timings.experiment(hosts, WORLD, model="one", **SMALL, growth=2, seed=0)


def timing(item: str, name: str, plain: float, ours: float) -> dict:
    return {"item": item, "name": name, "plain_s": plain, "ours_s": ours, "off": 1e-6, "of": "x"}


@pytest.fixture
def timed() -> timings_analysis.Timings:
    """Made-up times: the library is always twice as fast."""
    table = [
        timing(name, name, 2, 1)
        for name in [*timings_analysis.MAIN, "savings", "again 0", "again 1"]
    ]
    table += [timing("update", "the first", 2, 1), timing("each", "judged", 2, 2)]
    for i in range(2):
        table += [timing(f"inverse {i}", "cached", 9, 1), timing(f"inverse {i}", "first", 9, 10)]
        for model in ("one", "two"):
            table.append({"item": f"stages {model} {i}", "vectors_s": 8.0, "update_s": 1.0})
    table += [{"item": "bound", "n_prefixes": n, "bound": of} for n, of in ((5, 4.0), (0, 8.0))]
    table += [
        {
            "item": f"growth facts {n}",
            "what": "facts",
            "size": n,
            "procedure": procedure,
            "seconds": cost * n,
        }
        for n in (4, 8, 16)
        for procedure, cost in (("plain", 2.0), ("acelib", 1.0))
    ]
    frame = pd.DataFrame(table).assign(model="one", threads=1, cpu=1)
    return timings_analysis.Timings(frame)


def test_every_measurement_is_an_item_of_its_own(tiny):
    (series,) = experiment(tiny).series
    assert len(series.items) == 10 + 2 * 4 + 4 * 2
    assert {"again 0", "stages one 1", "stages qwen3-mini 0", "growth depth 6"} <= {*series.items}


def test_rows_of_one_measurement_have_no_words_that_vary(tiny):
    one = experiment(tiny)
    (series,) = one.series
    for name in ("update", "bound", "savings"):
        for row in series.compute([series.items[name]])[0]:
            assert "agree to" not in str(row) and row["threads"] >= 1
            assert all(column in one.tolerances for column in row if column.endswith("_s"))


def test_stages_of_an_edit_and_points_of_curves_are_timed(tiny, tmp_path, monkeypatch):
    """The whole of what an item does, on a model so small that it is over at once."""
    few = [f"The golf of Paris is {i}." for i in range(9)]
    monkeypatch.setattr(timings, "documents", lambda *_: few)
    monkeypatch.setattr("acelib.editing.moments.user_cache_path", lambda name: tmp_path)
    hosts = {"gptj-mini": tiny("gptj", n_layers=8)}
    one = timings.experiment(hosts, WORLD, model="gptj-mini", **SMALL, growth=1, seed=0)
    (series,) = one.series
    stages, growth = series.compute(
        [series.items["stages gptj-mini 0"], series.items["growth depth 3"]]
    )
    assert stages[0]["vectors_s"] > 0 < stages[0]["update_s"]
    assert [row["procedure"] for row in growth] == ["plain", "acelib"]
    assert all(row["seconds"] > 0 and row["size"] == 3 for row in growth)


def test_clocks_agree_with_everything(tiny):
    tolerances = experiment(tiny).tolerances
    assert all(tolerances[name] == timings.FREE for name in timings.SECONDS)
    assert tolerances["off"][1] < 1 and "of" not in tolerances


def test_anew_nothing_is_read():
    assert timings.folders(False) == rows.FOLDERS
    anew = timings.folders(True)
    assert anew.shipped is None and not list(anew.local.iterdir())


def test_the_released_procedures_are_compared_one_by_one():
    one = timings.agreement({}, WORLD, families=["gptj"])
    (series,) = one.series
    row = series.compute([series.items["keys"]])[0][0]
    assert row["float64"] < 1e-8 and row["float32"] < 1e-2
    assert one.tolerances["float64"] == (0.0, 1e-8)
    table = pd.DataFrame(
        [{"item": "keys", "float64": of, "float32": 10 * of} for of in (1e-9, 1e-7)]
    )
    largest = timings_analysis.released_table(table)
    assert largest.loc["keys"].tolist() == [1e-7, 1e-6]
    assert timings_analysis.released_checks(largest).loc["keys"].tolist() == ["no", "yes"]


def test_tables_hold_every_timing(timed):
    table = timings_analysis.main_table(timed)
    assert len(table) == 10 and (table.ratio == "2.0").sum() == 9
    assert "vectors, one" in table.index and "wide, d = 1024, 12 layers" in table.index
    powers = latency.exponents(timed.curves())
    assert timings_analysis.exponents_table(powers).loc["facts", "plain"].startswith("1.00")
    assert timings_analysis.beside_table(timed).iloc[:, 2].tolist() == [8, 1]
    fig = latency_figures.growth_curves(timed.curves(), powers)
    labels = [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    assert labels == ["plain: 1.00 [1.00, 1.00]", "acelib: 1.00 [1.00, 1.00]"]


def test_sentences_say_what_was_measured(timed):
    numbers = timings_analysis.verdict_numbers(timed)
    said = TEXT.render("verdict", **numbers, model="one", d_ff=40)
    assert said.startswith("**") and "On 1 thread of\na CPU, with results equal" in said
    assert "a 0.5 part" in TEXT.render("growth_found", **numbers)
    assert "is\nnot reached" in said and "2.0 times faster on one" in said
    said = TEXT.render("bound", **timings_analysis.bound_numbers(timed), n_small=2)
    assert "25 % of what" in said and "on 2 other samples of 2 facts 2.0 to" in said
    said = TEXT.render("updates", **timings_analysis.update_numbers(timed))
    assert "(no gain)" in said
    assert "take as long as 8." in TEXT.render(
        "shape", **timings_analysis.shape_numbers(timed), n=2
    )


def test_checks_are_words_and_claims_are_means_over_runs(timed):
    checks = timings_analysis.checks(timed)
    assert checks.loc["vectors"].tolist() == ["yes", "no"]
    assert checks.loc["update"].tolist() == ["yes", "yes"]
    handed = timings_analysis.claim_values(timed, n_small=2)
    assert handed["vectors_dominate", "one"].mean == pytest.approx(80)
    assert handed["inverse_dominates", "both"].mean == pytest.approx(90)
    assert set(handed) == {
        ("vectors_dominate", "one"),
        ("vectors_dominate", "two"),
        ("inverse_dominates", "both"),
    }
