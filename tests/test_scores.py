"""attribution: the chunked scores are the naive one-neuron-at-a-time ones."""

import pytest
import torch

from acelib.attribution.scores import (
    Neuron,
    first_tokens,
    layer_mass,
    layer_scores,
    query_scores,
    top,
    top_neurons,
    value_scores,
)
from acelib.model.states import KINDS, Site, last, trace

TEXTS = ("Tim Duncan plays the sport of", "The capital of France is")
ANSWERS = ("basketball", "Paris")


@pytest.fixture
def batch(any_lm):
    ids, mask = any_lm.encode(TEXTS)
    return any_lm, ids, mask, first_tokens(any_lm, ANSWERS)


def states(lm, ids, mask):
    return trace(
        lm,
        ids,
        mask,
        [Site(kind, layer) for layer in range(lm.n_layers) for kind in KINDS],
        at=last(mask),
    )


def read(lm, h, final=None):
    """log p(. | h) of one hidden state; the norm's mean and scale from ``final`` if given.

    Written out in full precision.
    """
    of = h if final is None else final
    mean = of.mean() if isinstance(lm.norm, torch.nn.LayerNorm) else 0.0
    eps = lm.norm.eps if isinstance(lm.norm, torch.nn.LayerNorm) else lm.norm.variance_epsilon
    normed = (h - mean) / ((of - mean) ** 2).mean().add(eps).sqrt() * lm.norm.weight
    if getattr(lm.norm, "bias", None) is not None:
        normed = normed + lm.norm.bias
    return lm.head(normed)


def gain(lm, h, v, target, final):
    return float(
        read(lm, h + v, final).log_softmax(-1)[target] - read(lm, h, final).log_softmax(-1)[target]
    )


def out_columns(lm, layer):
    """Columns of attention's output projection by probing it: (k, d)."""
    width = lm.attn_out(layer).weight.numel() // lm.d_model
    zero = torch.zeros(1, width, dtype=lm.dtype)
    return lm.attn_out(layer)(torch.eye(width, dtype=lm.dtype)) - lm.attn_out(layer)(zero)


def addends(lm, s, layer, of, row):
    """(h, list of vectors) of one prompt, one vector a neuron or head."""
    h = s["in", layer][row]
    if of == "ffn":
        return h + s["attn", layer][row], [
            m * lm.weight(layer)[:, k] for k, m in enumerate(s["key", layer][row])
        ]
    neurons = s["heads", layer][row][:, None] * out_columns(lm, layer)
    return h, list(neurons if of == "attn" else neurons.view(lm.n_heads, -1, lm.d_model).sum(1))


def test_the_oracle_reads_as_the_model_does(batch):
    lm, ids, mask, _ = batch
    s = states(lm, ids, mask)
    logits = trace(lm, ids, mask, logits="last")["logits", lm.n_layers]
    torch.testing.assert_close(
        read(lm, s["out", 3][0]), logits[0], rtol=1e-5, atol=1e-5
    )  # Llama's own norm computes in float32
    torch.testing.assert_close(read(lm, s["out", 3][0], s["out", 3][0]), read(lm, s["out", 3][0]))


@pytest.mark.parametrize("of", ("ffn", "attn", "heads"))
@pytest.mark.parametrize("norm", ("frozen", "exact"))
def test_all_neurons_at_once_equal_one_at_a_time(batch, of, norm):
    lm, ids, mask, targets = batch
    s, found = (
        states(lm, ids, mask),
        value_scores(lm, ids, mask, targets, of=of, norm=norm, budget=5 * 2 * 360),
    )
    for layer in (0, 3):
        for row in range(2):
            final = s["out", 3][row] if norm == "frozen" else None
            h, vectors = addends(lm, s, layer, of, row)
            naive = torch.tensor(
                [gain(lm, h, v, targets[row], final) for v in vectors], dtype=lm.dtype
            )
            torch.testing.assert_close(found[row, layer], naive, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("of", ("ffn", "attn"))
@pytest.mark.parametrize("norm", ("frozen", "exact"))
def test_both_readings_of_a_layer(batch, of, norm):
    lm, ids, mask, targets = batch
    s = states(lm, ids, mask)
    whole = layer_scores(lm, ids, mask, targets, of, "whole", norm)
    for layer in range(4):
        for row in range(2):
            h = s["in", layer][row] + (s["attn", layer][row] if of == "ffn" else 0)
            v = s["mlp" if of == "ffn" else "attn", layer][row]
            direct = gain(lm, h, v, targets[row], s["out", 3][row] if norm == "frozen" else None)
            assert float(whole[row, layer]) == pytest.approx(direct, rel=1e-9, abs=1e-11)
    summed = layer_scores(lm, ids, mask, targets, of, "sum", norm)
    torch.testing.assert_close(summed, value_scores(lm, ids, mask, targets, of, norm).sum(-1))


def test_logits_are_additive_under_the_frozen_norm_only(batch):
    lm, ids, mask, _ = batch
    s = states(lm, ids, mask)
    final, h, (u, v, *_) = s["out", 3][0], *addends(lm, s, 1, "heads", 0)

    def both(final):
        return (
            read(lm, h + u + v, final)
            - read(lm, h + u, final)
            - read(lm, h + v, final)
            + read(lm, h, final)
        )

    assert float(both(final).abs().max()) < 1e-12 < float(both(None).abs().max())


def test_the_last_ffn_completes_the_prediction(batch):
    """h^{L-1} + A^L + F^L is the true hidden state, so base + whole score is the model's
    log-probability.
    """
    lm, ids, mask, targets = batch
    s = states(lm, ids, mask)
    logits = trace(lm, ids, mask, logits="last")["logits", lm.n_layers].log_softmax(-1)
    whole = layer_scores(lm, ids, mask, targets, "ffn", "whole", "exact")
    for row in range(2):
        base = read(lm, s["in", 3][row] + s["attn", 3][row]).log_softmax(-1)[targets[row]]
        assert float(base + whole[row, 3]) == pytest.approx(
            float(logits[row, targets[row]]), abs=1e-5
        )


def test_heads_and_neurons_sum_to_the_attention_output(batch):
    lm, ids, mask, _ = batch
    s, bias = states(lm, ids, mask), getattr(lm.attn_out(1), "bias", None)
    for of in ("attn", "heads"):
        total = sum(addends(lm, s, 1, of, 0)[1]) + (0 if bias is None else bias)
        torch.testing.assert_close(total, s["attn", 1][0])


@pytest.mark.parametrize("of", ("ffn", "attn", "heads"))
@pytest.mark.parametrize("row_kind", ("gate", "up"))
def test_query_scores_are_the_double_loop(batch, of, row_kind):
    lm, ids, mask, targets = batch
    s, values = states(lm, ids, mask), value_scores(lm, ids, mask, targets)
    found = query_scores(lm, ids, mask, values, n=7, row=row_kind, of=of)
    same = 1 if of != "ffn" and not lm.family.parallel else 0
    for row in range(2):
        best = top_neurons(values[row], 7)
        for layer in range(4):
            for j, v in enumerate(addends(lm, s, layer, of, row)[1]):
                naive = sum(
                    i * float(v @ lm.subkeys(lower, row_kind)[k])
                    for lower, k, i in best
                    if lower + same > layer
                )
                assert float(found[row, layer, j]) == pytest.approx(naive, rel=1e-9, abs=1e-12)


def test_batch_padding_side_budget_and_repetition_do_not_matter(any_lm):
    targets = first_tokens(any_lm, ANSWERS)

    def both(texts, targets, side, **kw):
        ids, mask = any_lm.encode(texts, side)
        scores = value_scores(any_lm, ids, mask, targets, norm="exact", **kw)
        return torch.cat([scores, query_scores(any_lm, ids, mask, scores, 5)], -1)

    right = both(TEXTS, targets, "right")
    assert torch.equal(right, both(TEXTS, targets, "right"))
    alone = torch.cat([both([t], targets[i : i + 1], "right") for i, t in enumerate(TEXTS)])
    for other in (both(TEXTS, targets, "left"), alone, both(TEXTS, targets, "right", budget=1)):
        torch.testing.assert_close(other, right, rtol=1e-5, atol=1e-6)


def test_float32_keeps_tiny_scores(tiny):
    """Scores far below the rounding of a log-probability still have their leading digits."""
    lm, small = tiny("gptj"), tiny("gptj", dtype=torch.float32)
    for model in (lm, small):
        model.fc2(1).weight.data.mul_(1e-6)
    ids, mask = lm.encode(TEXTS)
    for norm in ("frozen", "exact"):
        want, got = (
            value_scores(m, ids, mask, first_tokens(m, ANSWERS), norm=norm)[:, 1]
            for m in (lm, small)
        )
        assert float(want.abs().max()) < 1e-6
        assert float((got - want).abs().max() / want.abs().max()) < 1e-3


def test_large_changes_are_exact_too(any_lm):
    """A change that moves nearly all the mass takes the other road to the same number."""
    lm, (ids, mask) = any_lm, any_lm.encode(TEXTS)
    lm.norm.weight.data.mul_(1e5)  # e^change overflows
    targets, s = first_tokens(lm, ANSWERS), states(lm, ids, mask)
    for norm in ("frozen", "exact"):
        found = value_scores(lm, ids, mask, targets, norm=norm)[0, 2]
        h, vectors = addends(lm, s, 2, "ffn", 0)
        naive = torch.tensor(
            [
                gain(lm, h, v, targets[0], s["out", 3][0] if norm == "frozen" else None)
                for v in vectors
            ],
            dtype=lm.dtype,
        )
        torch.testing.assert_close(found, naive, rtol=1e-8, atol=1e-6)
        assert float(naive.abs().max()) > 1000


def test_top_neurons_and_mass_break_ties_by_place():
    scores = torch.tensor([[1.0, 3.0, 0.0], [3.0, -2.0, 2.0]])
    assert top_neurons(scores, 3) == [Neuron(0, 1, 3.0), Neuron(1, 0, 3.0), Neuron(1, 2, 2.0)]
    assert top(scores, 1).tolist() == [[0, 3, 0], [0, 0, 0]]
    assert layer_mass(scores).tolist() == [4, 3] and layer_mass(scores, 3).tolist() == [3, 5]
    assert layer_mass(torch.stack([scores, -scores]), 2).tolist() == [[3, 3], [0, 2]]


@pytest.mark.parametrize(
    "bad, words",
    (
        (dict(of="mlp"), "'mlp'.*'ffn'"),
        (dict(norm="none"), "'none'.*'frozen'"),
        (dict(targets=[1]), "2 prompts"),
        (dict(targets=[1, 360]), "360.*0 to 359"),
    ),
)
def test_bad_choices_are_named(tiny, bad, words):
    lm = tiny("gpt2")
    ids, mask = lm.encode(TEXTS)
    with pytest.raises(ValueError, match=words):
        value_scores(lm, ids, mask, **{"targets": [1, 2], **bad})


def test_bad_numbers_are_named(tiny):
    lm = tiny("llama")
    ids, mask = lm.encode(TEXTS)
    with pytest.raises(ValueError, match="'most'.*'sum'"):
        layer_scores(lm, ids, mask, [1, 2], reading="most")
    with pytest.raises(ValueError, match="0 neurons"):
        top_neurons(torch.ones(2, 3), 0)
    with pytest.raises(ValueError, match=r"\(2, 4, 3\).*\(2, 4, 48\)"):
        query_scores(lm, ids, mask, torch.ones(2, 4, 3))
    with pytest.raises(ValueError, match="'down'.*'gate'"):
        query_scores(lm, ids, mask, torch.ones(2, 4, 48), row="down")
    with pytest.raises(ValueError, match="empty"):
        first_tokens(lm, [" "])
