"""The released code's query scores, by loops over neurons and outputs."""

import pytest
import torch

from acelib.attribution.query_shares import query_shares
from acelib.attribution.scores import query_scores, top, value_scores
from acelib.model.states import Site, trace

PROMPTS = ["Tim Duncan plays the sport of", "The capital of France is"]
N = 9


@pytest.fixture
def read(any_lm):
    """Ids, mask and value scores of two prompts of different lengths."""
    ids, mask = any_lm.encode(PROMPTS)
    return ids, mask, value_scores(any_lm, ids, mask, [5, 7])


def by_loops(lm, text, values, divided):
    """Each of a prompt's top value neurons deals its score out to what comes before it."""
    ids, mask = lm.encode([text])
    sites = [Site(kind, layer) for layer in range(lm.n_layers) for kind in ("attn", "mlp")]
    states = trace(lm, ids, mask, sites)
    scores = torch.zeros(lm.n_layers, dtype=lm.dtype)
    for layer, k in top(values, N).nonzero().tolist():
        before = [(kind, i) for i in range(layer) for kind in ("attn", "mlp")]
        before += [] if lm.family.parallel else [("attn", layer)]
        products = {site: states[site][0, -1] @ lm.subkeys(layer)[k] for site in before}
        whole = sum(products.values()) if divided else 1.0
        for i in range(layer):
            scores[i] += values[layer, k] * products["mlp", i] / whole
    return scores


@pytest.mark.parametrize("divided", [True, False])
def test_scores_are_the_loops(any_lm, read, divided):
    ids, mask, values = read
    found = query_shares(any_lm, ids, mask, values, N, divided=divided)
    for i, text in enumerate(PROMPTS):
        wanted = by_loops(any_lm, text, values[i], divided)
        assert torch.allclose(found[i], wanted, rtol=1e-6, atol=1e-10)


def test_undivided_they_are_the_layer_sums_of_eq_10_and_the_biases(any_lm, read):
    ids, mask, values = read
    lm, whole = any_lm, query_shares(any_lm, *read, N, divided=False)
    sums = query_scores(lm, ids, mask, values, N).sum(-1)
    chosen = top(values, N)
    for layer in range(lm.n_layers):
        bias, later = lm.fc2(layer).bias, range(layer + 1, lm.n_layers)
        keys = sum((chosen[:, i] @ lm.subkeys(i) for i in later), torch.zeros(2, lm.d_model))
        extra = 0 if bias is None else keys.to(lm.dtype) @ bias
        assert torch.allclose(whole[:, layer], sums[:, layer] + extra, rtol=1e-6, atol=1e-10)


def test_values_of_another_shape_are_refused(any_lm, read):
    ids, mask, values = read
    with pytest.raises(ValueError, match="values are .*; give FFN value scores"):
        query_shares(any_lm, ids, mask, values[:, :2])
