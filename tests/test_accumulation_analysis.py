"""accumulation_analysis: times, effects and sentences, on rows that are made up."""

import numpy as np
import pandas as pd
import pytest

from acelib.measures import accumulation_analysis as analysis
from acelib.measures import accumulation_sentences as said
from acelib.measures.accumulation import Parts, Question
from acelib.study import sentences
from acelib.study.stats import Mean

CASE = Question("the case", "x", "y")
COLUMNS = ("increase", "attn", "implicit_ffn", "implicit_attn", "value", "query")
COLUMNS += ("top_value", "top_query", "n_value", "n_query", "shared")


def layer_rows(model="one", item="a", category="NN", **columns) -> pd.DataFrame:
    """Rows of one question's four layers; what is not given is zero."""
    values = dict.fromkeys(COLUMNS, (0, 0, 0, 0)) | columns
    labels = dict(model=model, item=item, category=category)
    return pd.DataFrame(labels | {"layer": range(4)} | values)


@pytest.fixture(scope="module")
def made() -> pd.DataFrame:
    """Rows of ``layers`` of two models with eight questions each, in two categories."""
    rng = np.random.default_rng(0)
    return pd.concat(
        [
            layer_rows(model, f"{9 - i} of {model}", "NN" if i < 5 else "CP")
            .assign(**{name: rng.random(4) for name in COLUMNS[:8]})
            .assign(n_value=[2, 3, 4, 1], n_query=[4, 3, 2, 1], shared=[1, 0, 1, 0])
            for model in ("one", "two")
            for i in range(8)
        ],
        ignore_index=True,
    )


def silencing_rows() -> pd.DataFrame:
    """Zeroing layer 1 (first peak) or 0: top neurons halve the active ones in the next layers."""
    return pd.DataFrame(
        [
            dict(model=model, item=item, peak=peak, ablated=ablated, draw=draw, zeroed=zeroed)
            | dict(layer=layer, lost=int(zeroed == "layer"), nats=0.5 * (zeroed == "top"))
            | dict(before=8, after=4 if zeroed == "top" and layer > ablated else 8 + draw)
            for model in ("one", "two")
            for item in ("z", "a", "m")
            for peak, ablated in (("first", 1), ("second", 0))
            for draw, zeroed in enumerate(("top", "layer", "random", "random"))
            for layer in range(6)
            if layer != ablated
        ]
    )


def spoiling_rows() -> pd.DataFrame:
    probability = {"nothing": 0.9, "interpretable": 0.3, "uninterpretable": 0.6, "random": 0.9}
    kinds = [*probability, "random"]
    return pd.DataFrame(
        [
            dict(
                model=model, item=item, zeroed=kind, n=3 * (kind != "nothing"), importance=float(i)
            )
            | dict(logprob=np.log(probability[kind]), probability=probability[kind])
            for model in ("one", "two")
            for item in ("z", "a", CASE.prompt)
            for i, kind in enumerate(kinds)
        ]
    )


def test_a_question_by_hand():
    rows = layer_rows(
        attn=(0, 2, 0, 0),
        increase=(0, 0, 1, 3),
        implicit_ffn=(0, 1, -5, 0),
        query=(1.5, 0, 0.5, 0),
        value=(-2, 0, 1, 3),
        top_value=(0, 0, 1, 3),
        top_query=(1.5, 0, 0.5, 0),
        n_value=(0, 0, 1, 1),
        n_query=(1, 0, 1, 0),
        shared=(0, 0, 1, 0),
    )
    times = analysis.by_question(rows, d_mlp=5).iloc[0]
    assert times["value"] == pytest.approx((3 * 3 + 2) / 4) and times["query"] == 0.5
    assert times.lag == pytest.approx(2.25) and times.peak == 3
    assert times.even == pytest.approx(2.75 - (3 * 1 + 1 * 0.5) / 4)
    assert (times.answer, times.implicit) == (2, 1)  # gains 0, 2, 3, 6 and 0, 1, -4, -4
    assert times.ffn_after_attn == 2 and times.last_share == 50 and times.last_increase == 100
    chances = (times.shared, times.chance, times.chance_by_layer)
    assert chances == pytest.approx((1, 2 * 2 / 20, 1 / 5))
    assert times.tracks == pytest.approx(np.corrcoef([4, 1.5, 3, 1.5], [2.5, 4, 1, 2.5])[0, 1])


def test_what_never_rises_has_no_half_way():
    rows = layer_rows(implicit_ffn=(-1, 0, 0, 0), n_value=(0, 0, 0, 1), increase=(0, 0, 0, 1))
    assert np.isnan(analysis.by_question(rows, 5).implicit[0])
    assert np.isnan(analysis.centre(np.zeros((1, 4)))).all()


def test_questions_keep_their_order_whatever_they_are_called(made):
    when = analysis.timing(made, {"one": 9, "two": 9})
    alone = [analysis.by_question(some, 9).lag[0] for _, some in made.groupby("item", sort=False)]
    assert [*when["one"].lag, *when["two"].lag] == pytest.approx(alone)
    assert analysis.numbered(made).question.tolist() == [
        i for _ in "ab" for i in range(8) for _ in "abcd"
    ]


def test_profile_adds_up_what_attention_and_ffn_have_gained(made):
    table = analysis.profile(made)
    first = made[:4]
    gained = (first.attn + first.increase).cumsum().tolist()
    assert table.answer[:4].tolist() == pytest.approx(gained)
    assert table.neurons[:4].tolist() == [2, 3, 4, 1]
    bars = analysis.panels(table, analysis.PROFILE)
    assert list(bars.role.unique()) == list(analysis.PROFILE) and len(bars) == 3 * len(made)
    assert list(analysis.gain_bars(table).block.unique()) == ["implicit subject", "answer"]


def test_effects_are_percent_of_the_neurons_before():
    effect = analysis.zeroing_effect(silencing_rows())
    assert effect.loc["one", 1, "top"].next.tolist() == [-50, -50, -50]  # layers 2, 3, 4
    assert effect.loc["one", 1, "top"].other.tolist() == [-25, -25, -25]  # layers 0 and 5
    assert effect.loc["two", 0, "random"].next.tolist() == [31.25] * 3  # means of 8 + 2 and 8 + 3
    assert effect.loc["two", 0, "layer"].lost.tolist() == [100] * 3
    beside = analysis.beside_random(effect)
    assert beside.loc["one", 1].nats.tolist() == [0.5] * 3
    assert analysis.peaks_of(silencing_rows()) == {"one": [1, 0], "two": [1, 0]}
    assert [analysis.next_layers(layer, 6) for layer in (0, 3, 5)] == [[1, 2, 3], [4, 5], []]


def test_the_zeroing_table_names_the_next_layers():
    effect, peaks = analysis.zeroing_effect(silencing_rows()), {"one": [1, 0], "two": [1, 0]}
    table = analysis.zeroing_table(effect, peaks, {"one": 6, "two": 6}, seed=0)
    assert list(table.index)[:2] == [("one", "1 (next: 2, 3, 4)"), ("one", "0 (next: 1, 2, 3)")]
    change = table["change in active value neurons (%)"]
    assert change["next layers, top"].iloc[0] == Mean(-50, -50, -50, 3)
    bars = analysis.active_neurons(silencing_rows())
    assert list(bars.block.unique()) == ["intact", "random", "top"]
    top = bars[(bars.block == "top") & (bars.role == "first") & (bars.layer == 2)]
    assert top.importance.tolist() == [4.0] * 6


def test_what_is_spoiled_is_told_apart_from_the_case():
    outcome = analysis.spoiled(spoiling_rows(), CASE)
    is_case = outcome.index.get_level_values("case").to_numpy(dtype=bool)
    assert is_case.sum() == 2 * 4
    fell = outcome.loc["one", False].fell.xs("interpretable", level="zeroed")
    assert fell.tolist() == pytest.approx([np.log(3)] * 2)
    table = analysis.spoiled_table(outcome, seed=0)
    assert table["one", "accuracy (%)"]["interpretable"] == "30.0 [30.0, 30.0]"
    assert table["two", "accuracy, the case (%)"]["random"] == "90.0 (3 neurons)"
    without = outcome[~is_case]
    assert set(analysis.spoiled_table(without, 0)["one", "accuracy, the case (%)"]) == {"–"}


def test_layers_are_ranked_by_domain(made):
    layers = analysis.domain_layers(made)
    assert [*layers] == [(model, name) for model in ("one", "two") for name in ("NN", "CP")]
    some = made[(made.model == "two") & (made.category == "CP")]
    sums = some.groupby("layer")["value"].sum().sort_values(ascending=False)
    assert layers["two", "CP"][1] == tuple(sums.index[:3])
    (common,) = analysis.layers_in_common(made)["one"]
    shared = [
        len({*x} & {*y}) for x, y in zip(layers["one", "NN"], layers["one", "CP"], strict=True)
    ]
    assert common == pytest.approx(100 * sum(shared) / 6)
    assert analysis.domain_table(made).loc[("one", "nationality"), "questions"] == 5
    few = made[made.category == "CP"].iloc[:8]  # two questions are too few
    assert analysis.domain_layers(few) == {}


def test_every_sentence_has_its_numbers(made):
    d_mlp, n_layers = {"one": 50, "two": 60}, {"one": 4, "two": 4}
    when, outcome = analysis.timing(made, d_mlp), analysis.spoiled(spoiling_rows(), CASE)
    effect, peaks = analysis.zeroing_effect(silencing_rows()), analysis.peaks_of(silencing_rows())
    ffn = pd.DataFrame({"ffn": [1.0, 3.0, 0.5], "attn": 0.0}, index=["plays", "of", "the"])
    shares = pd.DataFrame(
        [
            dict(model=model, role=role, what="answer", share=10.0 * (role[0] == "v") + i)
            for model in when
            for role in ("value neurons", "query neurons")
            for i in range(3)
        ]
    )
    tokens = dict.fromkeys(when, ffn)
    values = analysis.claim_values(when, effect, peaks, tokens, outcome, shares, n_layers, 0)
    assert values["convergent_tokens", "one"].mean == 0.5 and len(values) == 26
    assert values["value_is_interpretable", "two"].mean == 10
    assert values["interpretable_neurons_matter", "one"].mean == pytest.approx(30)
    common = {"one": [50.0, 60.0], "two": [10.0, 20.0]}
    compared = analysis.comparison_values(when, common, n_layers, seed=0)
    assert compared["fixed_in_gptj", "both"].mean == 40
    assert analysis.comparison_values({"one": when["one"]}, common, n_layers, 0) == {}

    text, numbers = sentences.Text("02_accumulation"), said.verdict_numbers(values | compared)
    said_first = text.render("verdict", **numbers)
    assert said_first.startswith(
        "**Cannot tell.** One cannot tell, on either model, whether the imp"
    )
    assert "of its gain is there" in said_first
    assert "before the answer has." in text.render("gains_found", **numbers)
    assert "- Claim 1: " in text.render("notes", **numbers)
    assert "uninterpretable ones leave 30.0" in text.render("readable", **numbers)
    assert "The peaks are" in text.render("lag", **said.lag_numbers(when, 0))
    scale = text.render("scale", **said.scale_numbers(d_mlp, {"one": 5, "two": 6}))
    assert "5 of 50 on one (10.0 %, 16.4 times that share)" in scale
    lost = said.ablation_numbers(effect, peaks, n_layers | {"one": 6}, seed=0)
    assert "Layer 0 is one of the two peaks of one and of two." in text.render("ablation", **lost)
    assert text.render("ablation", **lost).count("all neurons of the layer") == 4
    spoiled = said.spoiled_numbers(outcome, seed=0)
    assert "neurons of each kind per question (3 in the case)" in text.render("zeroed", **spoiled)
    assert "score less than as many" in text.render("importances", **spoiled)
    counts = dict(questions={"one": 8, "two": 8}, gains=said.half_way_counts(when))
    caption = text.render("timing_caption", n_top=10, seed=0, **counts)
    assert "8 questions (one) and 8 questions (two)" in caption


def test_orders_and_words_follow_the_intervals():
    more, less, open_ = Mean(1, 0.5, 2, 9), Mean(-1, -2, -0.5, 9), Mean(0, -1, 1, 9)
    assert [said.comparison(of) for of in (more, less)] == ["more", "less"]
    assert said.comparison(open_) == "not provably more or less"
    assert said.order(more, more) == "agree" == said.order(less, less)
    assert said.order(more, less) == "contradict" and said.order(more, open_) == "open"


def test_questions_are_counted(made):
    known = {"one": Parts([CASE] * 3, [CASE], 7)}
    assert analysis.question_counts(known, 9).loc["one"].tolist() == [9, 7, 4, 1]
