"""Robustness, analysed: averages over samples, ranks against few-shot, what masking takes."""

import pandas as pd
import pytest

from acelib.measures import robustness_analysis as analysis
from acelib.measures.robustness import SHOTS, STATES
from acelib.study.claims import VERDICTS
from acelib.study.sentences import Text
from acelib.study.stats import Mean
from acelib.world.world import CATEGORIES


def sampled() -> pd.DataFrame:
    """Two samples for each of four prompts; layer 1 has 2 nats, then 4 in the second sample."""
    return pd.DataFrame(
        {
            "model": "m",
            "item": f"prompt {i}",
            "trial": trial,
            "block": block,
            "importance": [1.0, 2.0 * trial, 0.5],
            "right": (i, trial) == (0, 2),
        }
        for i in range(4)
        for block in ("attn", "ffn")
        for trial in (1, 2)
    )


def scores(shuffled=("zero-shot",)) -> pd.DataFrame:
    """Three questions per category; in ``shuffled`` settings the best layer is another one."""
    return analysis.by_layer(
        pd.DataFrame(
            {
                "model": "m",
                "setting": setting,
                "item": f"fact {i} of {category}",
                "category": category,
                "block": block,
                "importance": [4.0, 3.0, 2.0, 1.0, 0.0][:: -1 if setting in shuffled else 1],
            }
            for setting in SHOTS
            for category in CATEGORIES
            for i in range(3)
            for block in ("attn", "ffn")
        )
    )


def masked(answer: float = 1.0) -> pd.DataFrame:
    """The edit adds 2 nats; without its value stage 1.9 are left, at the answer ``answer``."""
    left = {"unedited": (0.0, 0.0), "edited": (2.0, 2.0), "value edit masked": (1.9, answer)}
    return pd.DataFrame(
        {
            "model": "m",
            "state": state,
            "item": name,
            "place": place,
            "block": block,
            "importance": left[state][place == "answer"],
        }
        for state in STATES
        for name in ("z", "a", "k")
        for place in ("implicit subject", "answer")
        for block in ("attn", "ffn")
    )


def judged(hit: float) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": "m",
            "editor": editor,
            "case_id": case,
            **dict.fromkeys(analysis.METRICS, hit * (editor == "ACE")),
        }
        for editor in ("ROME", "PMET", "ACE")
        for case in range(4)
    )


def test_layers_come_out_of_lists():
    rows = analysis.by_layer(sampled())
    assert len(rows) == 4 * 2 * 2 * 3 and rows.layer.tolist()[:4] == [0, 1, 2, 0]
    wide = analysis.by_block(rows)
    assert (wide.attn.notna() ^ wide.ffn.notna()).all()


def test_samples_are_averaged_in_their_order():
    rows = analysis.by_layer(sampled())
    means = analysis.best_by_pass(rows, [1, 2], n=2)
    assert means.loc[("m", "ffn", 1)].tolist() == [2, 3] and len(means) == 4
    assert analysis.spread(means)["m", "ffn", 1] == pytest.approx(100 * 1 / 2.5)
    averaged = analysis.averaged(rows, [1, 2])
    assert list(averaged.samples.unique()) == ["Pass@1", "Pass@2"]
    one = averaged[(averaged.layer == 1) & (averaged.block == "attn")]
    assert one[one.samples == "Pass@2"].importance.tolist() == [3.0] * 4
    table = analysis.passes_table(means)
    assert list(table.index.unique(0)) == ["published", "measured"] and "spread (%)" in table


def test_a_right_sample_among_k_is_a_hit():
    found = analysis.hits(sampled(), [1, 2])
    assert (found["m"][1].mean, found["m"][2].mean) == (0, 25)
    assert list(analysis.hits_table(found).index) == ["Pass@1", "Pass@2"]


def test_layers_that_stay_are_counted_against_few_shot():
    alike = analysis.stability(scores())
    assert list(alike.setting.unique()) == ["zero-shot", "one-shot"] and len(alike) == 32
    of = analysis.stable(alike)["m"]
    assert of["zero-shot"]["correlation"].mean == pytest.approx(-1)
    assert of["one-shot"]["correlation"].mean == pytest.approx(1)
    assert of["zero-shot"]["kept"].mean == pytest.approx(100 / 3)
    best = analysis.ranks(scores(), top=5)
    assert list(best) == list(SHOTS)
    table = analysis.ranks_table(best)
    cells = table[("zero-shot, measured m", 1)].tolist()
    assert set(cells) == {"4*"} and set(table[("one-shot, measured m", 1)]) == {"0"}
    ranks = analysis.stability_table(alike, best)["ranks with the same layer (%)", "m"]
    assert ranks.to_dict() == {"zero-shot": 20.0, "one-shot": 100.0}
    assert all(0 < share < 100 for share in analysis.published_same().values())


def test_what_masking_takes_is_a_share_of_the_edit():
    wide = analysis.states(masked())
    assert wide.index.get_level_values("edit").unique().tolist() == [0, 1, 2]
    lost = analysis.masking_losses(wide)
    assert lost["m", "answer", "ffn"].mean == 50
    assert lost["m", "implicit subject", "attn"].mean == pytest.approx(5)
    table = analysis.states_table(wide)
    assert list(table) == [*STATES, "lost by masking (%)"]
    assert analysis.dissociation(wide)["m"]["there"]
    assert not analysis.dissociation(analysis.states(masked(1.5)))["m"]["there"]


def test_tokens_of_both_states_stand_side_by_side():
    rows = pd.DataFrame(
        {"state": state, "token": token, "ffn": 1.0, "attn": 2.0, "next": "a, b"}
        for state in STATES[1:]
        for token in ("The", "capital", "The")
    )
    table = analysis.tokens_table(rows)
    assert table.shape == (3, 7) and table["token"].tolist() == ["The", "capital", "The"]


def test_claims_of_all_parts():
    means = analysis.best_by_pass(analysis.by_layer(sampled()), [1, 2])
    alike, wide = analysis.stability(scores()), analysis.states(masked())
    values = analysis.claim_values(means, alike, wide, judged(1.0))
    assert values["counterfactual_edits", "m"].mean == 100
    assert values["masking_lowers_the_answer", "m"].mean == 50
    assert next(iter(values)) == ("stable_over_passes", "m") and len(values) == 5
    one = judged(1.0).query("editor == 'ROME'")
    assert len(analysis.claim_values(means, alike, wide, one)) == 4
    said = analysis.verdicts(values)
    assert said["counterfactual_edits"]["m"] in VERDICTS


def test_mismatched_cases_are_paired_with_ordinary_ones():
    gaps = analysis.mismatch_gaps(judged(0.5), judged(1.0))
    assert list(gaps["m"].index) == ["PMET", "ACE"]
    assert gaps["m"].at["ACE", "multi_hop"].mean == -50
    assert gaps["m"].at["PMET", "multi_hop"].mean == 0


def test_sentences():
    text, wide = Text("appendix_l_robustness"), analysis.states(masked())
    means = analysis.best_by_pass(analysis.by_layer(sampled()), [1, 2])
    alike, leads = analysis.stability(scores()), analysis.lead(judged(1.0))
    values = analysis.claim_values(means, alike, wide, judged(1.0))
    said = text.render("verdict", verdicts=analysis.verdicts(values))
    assert said.startswith("**") and "layers are stable over sampled answers" in said
    hits = analysis.hits(sampled(), [1, 2])
    said = text.render("passes", spreads={"m": Mean(0, 0, 0, 6)}, hits=hits, published=2.5)
    assert "0.0 [0.0, 0.0] % over Pass@k (published: 2.5 %), because all sampled" in said
    assert "among 1 sampled answer for 0 % of" in said
    stable = analysis.stable(alike)
    said = text.render("prompts", stable=stable, kept={"m": Mean(50, 40, 60, 9)})
    assert "few-shot ones by -1.00 [" in said and "50 [40, 60] % stay." in said
    said = text.render("masked", masked=analysis.dissociation(wide), bound=40)
    assert "over 40 % lost" in said and "it is there. The FFNs lose 50 [" in said
    gaps = analysis.mismatch_gaps(judged(0.5), judged(1.0))
    assert "ACE changes by -50 points" in text.render("mismatched", leads=leads, gaps=gaps)
    assert "cost ACE 50 points" in text.render("mismatched_found", leads=leads, gaps=gaps)
