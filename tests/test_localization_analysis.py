"""What rows say: classes, tables, choices, claims, sentences and figures, on made-up rows."""

import math

import numpy as np
import pandas as pd
import pytest

from acelib.measures import localization_analysis as analysis
from acelib.measures import localization_claims as told
from acelib.measures import localization_figures as drawings
from acelib.measures.localization import METHODS, SETS, SHARES
from acelib.measures.localization_attention import CONDITIONS, READINGS
from acelib.measures.modification import SETS as EDITED
from acelib.records import Fact
from acelib.study import claims, verdicts
from acelib.study.sentences import Text
from acelib.world.paraphrases import Reworded

MODELS, N = ("gptj-mini", "qwen3-mini"), 12
TEXT = Text("companion_query_localization")


def frame(columns):
    """Rows of N facts on two models; ``columns`` of a fact's number and a generator."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {"model": model, "item": f"s{i} | r", **row}
            for model in MODELS
            for i in range(N)
            for row in columns(i, rng)
        ]
    )


def consistency(i, rng):
    for method in METHODS:
        relaxed = i / N + 0.01 * METHODS.index(method)
        for share in SHARES:
            of = relaxed * (1 - share) / 0.8
            scores = dict(strict=of / 5, relaxed=of, without_first=of, chance=0.1, union=50.0)
            rest = dict(by_k=[of / 2, of], layers=[2.0, 1.0], size=9.0, seconds=0.5)
            yield {"method": method, "share": share, **scores, **rest}


def mapping(i, rng):
    for k, name in enumerate(SETS):
        odds = dict(odds=3.0, sup_odds=1.0, enh_odds=4.0, sup_ratio=0.1, enh_ratio=0.1)
        before, sup = 0.8, 0.8 - 0.1 * (len(SETS) - k) - 0.01 * rng.random()
        yield {"set": name, "size": 9.0, "before": before, "sup": sup, "enh": 0.9, **odds}


def predominance(i, rng):
    about = dict(logprob=-i / 9, prompt_tokens=8 + i % 3, subject_tokens=2 + i % 2)
    for name in READINGS:
        told = dict(predominance=0.6 + 0.01 * i, chance=0.3, first=0.2)
        similar = dict(answer_tokens=1, similarity=rng.random())
        yield {"reading": name, **told, **about, **similar}


def synapses(i, rng):
    for name, sup in (("own", 0.3), ("irrelevant", 0.7)):
        for on in (False, True):
            values = dict(before_value=2.0, sup_value=1.5 + 0.01 * i, enh_value=2.1)
            sizes = dict(columns=9.0, overlap=0.5, before=0.8, enh=0.85)
            yield {"synapses": name, "renormalised": on, "sup": sup, **sizes, **values}


def modification(i, rng):
    for operation in ("Erasure", "Update"):
        for k, name in enumerate(EDITED):
            rel, gen, loc = float(i % 2), 0.1 * k, 1.0
            values = dict(rel=rel, gen=gen, loc=loc, avg=(rel + gen + loc) / 3, ppl=0.01 * k)
            yield {"operation": operation, "set": name, "size": 5.0 * (k + 1), **values}


ROWS = {
    "consistency": frame(consistency),
    "mapping": frame(mapping),
    "predominance": frame(predominance),
    "synapses": frame(synapses),
    "modification": frame(modification),
}
CLASSES, USED = analysis.classes(ROWS["consistency"])


def test_classes_are_static_where_both_have_facts_else_otsus():
    assert dict.fromkeys(MODELS, "static") == USED
    one = CLASSES[CLASSES.model == MODELS[0]].knowledge.tolist()
    assert one == ["K_II"] * 2 + ["K_I"] * 10
    high = ROWS["consistency"].assign(relaxed=0.5 + ROWS["consistency"].relaxed / 2)
    of, used = analysis.classes(high)
    assert set(used.values()) == {"otsu"} and set(of.knowledge) == {"K_I", "K_II"}


def test_tables_stand_beside_the_published_ones():
    table = analysis.consistency_table(ROWS["consistency"])
    assert len(table) == 32 and list(table)[:3] == [f"published {m}" for m in analysis.MODELS]
    assert table.at[("static", "Dai et al.", "R_II"), "published GPT-2"] == 0.44
    assert table.at[("static", "Dai et al.", "R_II"), "measured gptj-mini"].startswith("0.17")
    assert table.loc[("static", "all three", "intersection_II")].notna().all()
    cuts = analysis.thresholds(ROWS["consistency"])
    assert (
        cuts.shape == (6, 5) and cuts.at[("static", "Enguehard"), "measured gptj-mini"] == "0.100"
    )
    edited = analysis.with_class(ROWS["modification"], CLASSES)
    two = analysis.modification_table(edited, ["N_i", "N_g"], 2)
    three = analysis.modification_table(edited, ["N_i", "N_g", "CAS"], 3)
    assert len(two) == 40 and len(three) == 60
    assert three.at[("Erasure", "Ours", "K_II", "Gen"), "measured gptj-mini"].startswith("0.20")
    assert two.at[("Update", "N_g", "K_I", "Avg"), "published LLaMA2-7b"] == 0.68


def test_the_share_of_a_class_is_a_choice():
    found = analysis.choices(ROWS["consistency"])
    one = found[(found.model == MODELS[0]) & (found.method == "IG") & (found.threshold == "0.3")]
    assert one.two.is_monotonic_increasing and one.two.nunique() > 1
    by_k = analysis.by_wordings(ROWS["consistency"])
    assert sorted(by_k.wordings.unique()) == [2, 3]
    fewer = by_k[(by_k.threshold == "0.3") & (by_k.method == "IG")].groupby("wordings").two.mean()
    assert fewer[2] > fewer[3]


def test_one_class_and_confounds():
    table = analysis.one_class(ROWS["consistency"])
    assert len(table) == 6 and (table["n"] == str(N)).all()
    found = analysis.confounds(ROWS["consistency"], ROWS["predominance"])
    assert "tokens of the answer" not in found.index  # it does not vary
    value = found.at["log-probability of the answer", "measured gptj-mini"]
    assert value.mean < -0.9 and float(found.at["variance explained", "measured gptj-mini"]) > 0.9


def test_rates_are_of_means():
    row = analysis.rates(pd.DataFrame([{"before": 0.5, "sup": 0.4, "enh": 0.6}])).iloc[0]
    assert (row.d_sup, row.d_enh, row.d_avg) == pytest.approx((20, 20, 20))
    gap = analysis.gap_of_ratios(
        (np.array([10.0, 10.0]), np.array([8.0, 8.0])), (np.array([10.0] * 3), np.array([5.0] * 3))
    )
    assert gap.mean == pytest.approx(30) and gap.low == pytest.approx(gap.high) and gap.n == 2
    assert math.isnan(analysis.gap_of_ratios((np.ones(1), np.ones(1)), (np.ones(3),) * 2).mean)


def test_every_claim_that_is_tested_has_a_value():
    values = told.measured(ROWS)
    listed = claims.claims_list()
    mine = listed[listed.chapter == "companion_query_localization"]
    assert set(values) == {(claim, model) for claim in mine.index for model in MODELS}
    assert values["ql_c01", MODELS[0]].mean == pytest.approx(100 * 2 / N)
    assert values["ql_c10", MODELS[0]].mean == pytest.approx(10)
    assert values["ql_c23", MODELS[0]].mean == pytest.approx(100 * 0.1 / 3)
    assert values["ql_c25", MODELS[0]].mean == pytest.approx(-1)
    assert values["ql_c12", MODELS[0]].mean > 0 and values["ql_c16", MODELS[0]].mean > 30
    assert values["ql_c19", MODELS[0]].mean == pytest.approx(25 - 0.5 * np.arange(N).mean())
    said = claims.verdicts(values)
    assert said["ql_c12", MODELS[0]] == "holds"
    assert said["ql_c10", MODELS[0]] == "cannot tell"  # two facts that agree show nothing
    assert len(told.slack(values)) == len(claims.measured(values)) == 2 * len(mine)
    assert len(verdicts.claims_table(values, published=True)) == len(mine)


def test_a_class_without_facts_decides_nothing():
    same = {**ROWS, "consistency": ROWS["consistency"].assign(relaxed=0.5)}
    values = told.measured(same)
    assert values["ql_c07", MODELS[0]].n == 0
    assert claims.verdicts(values)["ql_c10", MODELS[0]] == "cannot tell"


FIGURES = ("consistency", "choices", "mapping", "synapses", "erasure")


def test_the_sentences_say_it():
    values = told.measured(ROWS)
    numbers = told.sentence_numbers(ROWS, values, USED)
    said = TEXT.render("verdict", models=numbers, verdicts=told.leading(numbers))
    assert said.startswith("**") and "gptj-mini" in said and "on both" in said
    found = [f"{figure}_found" for figure in FIGURES]
    for block in (*found, "consistency", "chance", "mapping", "attention", "modification", "times"):
        said = TEXT.render(block, models=numbers)
        assert all(model in said for model in MODELS) and "–" not in said, block
    assert "100 for 1,000" in TEXT.render("times", models=numbers) or numbers[MODELS[0]]["times"]


def test_figures_are_drawn():
    groups = {f"s{i} | r": "AT" if i % 2 else "CF" for i in range(N)}
    drawings.violins(ROWS["consistency"], groups)
    rows = ROWS["consistency"]
    drawings.choices(analysis.choices(rows), analysis.by_wordings(rows))
    drawings.one_normal(rows)
    drawings.coefficients(analysis.confounds(rows, ROWS["predominance"]))
    few = rows[rows.item.isin(["s1 | r", "s2 | r"])]  # too few to tell
    drawings.coefficients(analysis.confounds(few, ROWS["predominance"]))
    shown = analysis.wrapped(analysis.with_class(ROWS["predominance"], CLASSES), "reading")
    fig = drawings.split_violins(
        shown, "reading", {"predominance": "P", "chance": "by chance"}, (0, 1)
    )
    assert [ax.get_title("left") for ax in fig.axes] == [*MODELS, "", ""]
    maps = pd.DataFrame(
        [
            dict(
                item=item, condition=name, wording=w, layer=[0, 1], neuron=[3, 4], sizes=[1.0, 2.0]
            )
            for item in ("s1 | r", "s8 | r")
            for name in CONDITIONS
            for w in range(2)
        ]
    )
    scores = analysis.at(rows).query("method == 'IG' and model == 'gptj-mini'")
    fig = drawings.maps(maps, scores)
    titles = [ax.get_title("left") for ax in fig.axes[:4]]
    assert titles[0] == "most consistent, wording 1\ns8" and titles[3].startswith("least")


def test_relations_are_one_line_each():
    facts = [
        Reworded(Fact(f"s{i}", f"r{i % 2}", "x"), (f"s{i} is", f"it is s{i}'s"), "AT")
        for i in range(4)
    ]
    table = analysis.relations_table(facts)
    assert list(table.index) == ["r0", "r1"] and table.at["r0", "example query"] == "s0 is"
