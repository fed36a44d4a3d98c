"""Attention's weights: seen, summed as the paper's formulas say, and scaled."""

import pytest
import torch

from acelib.attribution.synapses import (
    attention,
    knowledge_synapses,
    most_attended,
    predominance,
    scaled_attention,
)
from acelib.bench.tiny import make_tiny
from acelib.model.states import position_ids

TEXTS = ["Tim Duncan plays the sport of", "The capital of France is", "golf chess"]


def hidden(lm, ids, mask):
    with torch.no_grad():
        return lm.stack(
            input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False
        ).last_hidden_state


def test_weights_are_those_of_the_model(any_lm):
    """transformers' own, where they are given out; rows of tokens sum to one."""
    ids, mask = any_lm.encode(TEXTS)
    got = attention(any_lm, ids, mask)
    before = any_lm.model.config._attn_implementation
    any_lm.model.config._attn_implementation = "eager"
    with torch.no_grad():
        theirs = any_lm.model(ids, attention_mask=mask, output_attentions=True).attentions
    any_lm.model.config._attn_implementation = before
    for layer, weights in enumerate(theirs):
        for row, n in enumerate(mask.sum(1)):
            torch.testing.assert_close(
                got[row, layer, :, :n, :n], weights[row, :, :n, :n], rtol=1e-6, atol=1e-6
            )
    sums = got.sum(-1)
    torch.testing.assert_close(sums, mask[:, None, None].to(sums).expand_as(sums))


def test_padding_on_either_side_changes_nothing(any_lm):
    for text in TEXTS:
        (ids, mask), found = any_lm.encode([text]), {}
        alone = attention(any_lm, ids, mask)[0]
        for side in ("left", "right"):
            ids, mask = any_lm.encode([text, TEXTS[0] + TEXTS[1]], side)
            weights = attention(any_lm, ids, mask)
            place = mask[0].nonzero()[:, 0]
            found[side] = weights[0][..., place, :][..., place]
            torch.testing.assert_close(found[side], alone, rtol=1e-5, atol=1e-6)
            assert most_attended(weights, mask)[0] - place[0] == most_attended(
                alone[None], torch.ones(1, len(place), dtype=torch.long)
            )
            synapses = knowledge_synapses(weights, mask)[0]
            assert not synapses[..., mask[0] == 0].any()


def test_the_threshold_is_the_papers_fourfold_sum(tiny):
    lm = tiny("gpt2")
    ids, mask = lm.encode(TEXTS)
    A, alpha = attention(lm, ids, mask), 0.3
    found = knowledge_synapses(A, mask, alpha)
    for row in range(len(ids)):
        tau = alpha / (lm.n_layers * lm.n_heads) * A[row].sum()
        assert found[row].equal(A[row].sum(-2) > tau)
        assert found[row].sum(-1).max() <= 3  # a head has no more than 1 / alpha


def test_the_most_attended_token_by_hand():
    # One layer, one head, three tokens: columns receive 1.6, 0.9, 0.5 in all,
    # and 1.6 / 3, 0.9 / 2, 0.5 / 1 of each row that sees them.
    A = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.1, 0.4, 0.5]])[None, None, None]
    mask = torch.ones(1, 3, dtype=torch.long)
    assert most_attended(A, mask, first=True, per_row=False).item() == 0
    assert most_attended(A, mask, first=False, per_row=False).item() == 1
    assert most_attended(A, mask, first=True).item() == 0
    assert most_attended(A, mask).item() == 2
    assert predominance(["a", "b", "a", "c"]) == 0.5 and predominance(["a", "b"]) == 0.5


@pytest.mark.parametrize("family", ["gpt2", "gptj"])
@pytest.mark.parametrize("factor", [0.0, 2.0])
def test_scaling_columns_is_scaling_the_values_there(family, factor):
    """Without grouped heads a hook on the value vectors does the same."""
    lm = make_tiny(family)
    ids, mask = lm.encode(TEXTS[:1])
    columns = torch.zeros(1, lm.n_layers, lm.n_heads, ids.shape[1], dtype=torch.bool)
    columns[0, 1, 2, 3] = columns[0, 2, 0, 0] = columns[0, 2, 3, 0] = True
    with scaled_attention(lm, columns, factor):
        got = hidden(lm, ids, mask)
    handles, size = [], lm.d_model // lm.n_heads
    for layer in (1, 2):
        module = lm.attn(layer).c_attn if family == "gpt2" else lm.attn(layer).v_proj

        def scale(_m, _a, out, layer=layer):
            out = out.clone()
            values = out[..., -lm.d_model :].unflatten(-1, (lm.n_heads, size))
            for _, of, head, column in columns.nonzero().tolist():
                if of == layer:
                    values[:, column, head] *= factor
            return out

        handles.append(module.register_forward_hook(scale))
    expected = hidden(lm, ids, mask)
    for handle in handles:
        handle.remove()
    tol = 1e-5 if family == "gptj" else 1e-9
    torch.testing.assert_close(got, expected, rtol=tol, atol=tol)
    assert not torch.allclose(got, hidden(lm, ids, mask))


def test_rows_of_a_batch_are_changed_alone_and_put_back(any_lm):
    ids, mask = any_lm.encode(TEXTS)
    before, A = hidden(any_lm, ids, mask), attention(any_lm, ids, mask)
    columns = knowledge_synapses(A, mask)
    columns[1] = False
    for renormalise in (False, True):
        with scaled_attention(any_lm, columns, 0.5, renormalise):
            got = hidden(any_lm, ids, mask)
        n = int(mask[0].sum())
        with scaled_attention(any_lm, columns[:1, :, :, :n], 0.5, renormalise):
            alone = hidden(any_lm, ids[:1, :n], mask[:1, :n])
        torch.testing.assert_close(got[0, :n], alone[0], rtol=1e-5, atol=1e-5)
        own = mask[1].bool()
        torch.testing.assert_close(got[1][own], before[1][own], rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="stop"), scaled_attention(any_lm, columns, 0.0):
        raise RuntimeError("stop")
    assert hidden(any_lm, ids, mask).equal(before)


def test_renormalised_columns_that_are_all_there_is_change_nothing(tiny):
    lm = tiny("llama")
    ids, mask = lm.encode(TEXTS[:1])
    columns = torch.ones(1, lm.n_layers, lm.n_heads, ids.shape[1], dtype=torch.bool)
    with scaled_attention(lm, columns, 2.0, renormalise=True):
        torch.testing.assert_close(hidden(lm, ids, mask), hidden(lm, ids, mask))


def test_refusals(tiny):
    lm = tiny("gpt2")
    ids, mask = lm.encode(TEXTS)
    columns = torch.zeros(3, lm.n_layers, lm.n_heads, 2, dtype=torch.bool)
    with (
        pytest.raises(ValueError, match="the columns are of 3 rows of 2"),
        scaled_attention(lm, columns, 0.0),
    ):
        hidden(lm, ids, mask)
    with (
        pytest.raises(ValueError, match=r"columns are of \(1, 4\)"),
        scaled_attention(lm, columns[:, :1], 0.0),
    ):
        pass
    with (
        pytest.raises(ValueError, match="factor -1.0 of attention"),
        scaled_attention(lm, columns, -1.0),
    ):
        pass
    with pytest.raises(ValueError, match="share 1.0"):
        knowledge_synapses(torch.zeros(1, 1, 1, 1, 1), torch.ones(1, 1, dtype=torch.long), 1.0)
    with pytest.raises(ValueError, match="1 wording is given; predominance"):
        predominance(["a"])
    with pytest.raises(ValueError, match="one token has no token but the first"):
        most_attended(torch.ones(1, 1, 1, 1, 1), torch.ones(1, 1, dtype=torch.long))


def test_a_model_that_does_not_show_its_weights_is_refused(tiny):
    lm = tiny("gpt2")
    lm.attn(1).forward = lambda hidden_states, *_, **__: (hidden_states, None)
    ids, mask = lm.encode(TEXTS)
    with pytest.raises(ValueError, match="shows the attention weights of 3 of its 4 layers"):
        attention(lm, ids, mask)
