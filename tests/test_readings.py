"""Query scores of whole outputs: worked by hand, against Eq. 10 of neurons, and the released
division and its fault.
"""

import pandas as pd
import pytest
import torch
from test_states import TEXTS

from acelib.attribution.readings import BLOCKS, output_query_scores
from acelib.attribution.scores import query_scores, top, value_scores
from acelib.measures import query_readings
from acelib.model.states import Site, last, trace


@pytest.fixture
def given(any_lm):
    ids, mask = any_lm.encode(TEXTS)
    values = value_scores(any_lm, ids, mask, [5] * len(ids))
    return any_lm, ids, mask, values


@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("key", ["fc1", "fc2"])
def test_scores_are_the_formula_neuron_by_neuron(given, divided, key):
    """Loops over prompts, value neurons and outputs, as the formula is written."""
    lm, ids, mask, values = given
    sites = [Site(kind, i) for kind in ("attn", "mlp") for i in range(lm.n_layers)]
    states, n = trace(lm, ids, mask, sites, at=last(mask)), 7
    expected = torch.zeros(len(ids), 2, lm.n_layers, dtype=lm.dtype)
    for row in range(len(ids)):
        best = values[row].flatten().topk(n).indices.tolist()
        for layer, k in (divmod(place, lm.d_mlp) for place in best):
            vector = lm.subkeys(layer)[k] if key == "fc1" else lm.weight(layer)[:, k]
            products = {
                (block, i): (states[kind, i][row] @ vector).item()
                for block, kind in enumerate(("attn", "mlp"))
                for i in range(lm.n_layers)
                if i < layer or (i == layer and kind == "attn" and not lm.family.parallel)
            }
            whole = sum(products.values()) if divided else 1.0
            for (block, i), product in products.items():
                expected[row, block, i] += values[row, layer, k].item() * product / whole
    found = output_query_scores(lm, ids, mask, values, n, divided, key)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_undivided_a_layer_is_the_sum_of_its_neurons(given):
    """Eq. 10 of neurons, summed; an FFN's bias belongs to no neuron."""
    lm, ids, mask, values = given
    found = output_query_scores(lm, ids, mask, values, 30, divided=False)
    for block, of in enumerate(BLOCKS):
        sums = query_scores(lm, ids, mask, values, 30, of=of).sum(-1)
        module = lm.fc2(0) if of == "ffn" else lm.attn_out(0)
        if getattr(module, "bias", None) is None:
            torch.testing.assert_close(found[:, block], sums, rtol=1e-6, atol=1e-9)


def test_divided_the_shares_of_a_neuron_add_up_to_its_value_score(given):
    """Of all value neurons that anything comes before: layer 0 has none in a parallel block."""
    lm, ids, mask, values = given
    found = output_query_scores(lm, ids, mask, values, 9)
    kept = top(values, 9)
    if lm.family.parallel:
        kept[:, 0] = 0
    torch.testing.assert_close(found.sum((1, 2)), kept.sum((1, 2)), rtol=1e-6, atol=1e-9)


def test_by_hand(tiny, monkeypatch):
    """One value neuron of score 2 in layer 1; outputs that give 3 (attention 0), -1 (FFN 0) and 6
    (attention 1): undivided 6, -2, 12, and, as they add up to 8, divided 0.75, -0.25, 1.5.
    """
    lm = tiny("llama")
    ids, mask = lm.encode(TEXTS[:1])
    values = torch.zeros(1, lm.n_layers, lm.d_mlp, dtype=lm.dtype)
    values[0, 1, 4] = 2.0
    key = lm.subkeys(1)[4]
    amounts = {("attn", 0): 3.0, ("mlp", 0): -1.0, ("attn", 1): 6.0, ("mlp", 1): 50.0}

    def states(*_args, **_kwargs):
        return {
            (kind, i): amounts.get((kind, i), 70.0) * key[None] / key.square().sum()
            for kind in ("attn", "mlp")
            for i in range(lm.n_layers)
        }

    monkeypatch.setattr("acelib.attribution.readings.trace", states)
    plain, shares = (output_query_scores(lm, ids, mask, values, 1, d)[0] for d in (False, True))
    assert plain.flatten().tolist() == pytest.approx([6, 12, 0, 0, -2, 0, 0, 0])
    assert shares.flatten().tolist() == pytest.approx([0.75, 1.5, 0, 0, -0.25, 0, 0, 0])


def test_refusals(given):
    lm, ids, mask, values = given
    with pytest.raises(ValueError, match="key 'fc3' is unknown"):
        output_query_scores(lm, ids, mask, values, key="fc3")
    with pytest.raises(ValueError, match="give FFN value scores of these prompts"):
        output_query_scores(lm, ids, mask, values[:, :1])
    with pytest.raises(ValueError, match="1 prompts and 0 answers"):
        query_readings.readings(lm, ["a"], [])


def test_readings_are_summed_over_prompts_and_compared_with_eq_10(any_lm):
    prompts, answers = ["The capital of France is", "Tim Duncan plays"], ["Paris", "chess"]
    found = query_readings.readings(any_lm, prompts, answers)
    one = query_readings.readings(any_lm, prompts, answers, batch_size=1)
    pd.testing.assert_frame_equal(found, one, rtol=1e-6, atol=1e-9)
    assert list(found) == list(query_readings.READINGS)
    assert list(found.index.unique("block")) == list(BLOCKS)
    table = query_readings.comparison(found, 2)
    assert (table.loc[[(b, "Eq. 10") for b in BLOCKS], "shared"] == 2).all()
    assert table.loc[("ffn", "Eq. 10"), "correlation"] == pytest.approx(1)
    assert table.shared.between(0, 2).all() and table.correlation.between(-1, 1).all()
    assert not found["top 30, divided"].equals(found["top 30"])
