"""Rows of one batch with differently scaled neurons equal models changed one at a time."""

import pytest
import torch

from acelib.attribution.scaling import scaled_neurons
from acelib.model.states import position_ids
from acelib.model.update import Factors, Update, applied

TEXTS = ["Tim Duncan plays the sport of", "The capital of France is", "golf"]


def hidden(lm, ids, mask):
    with torch.no_grad():
        return lm.stack(
            input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False
        ).last_hidden_state


def test_zero_everywhere_is_a_matrix_without_those_columns(any_lm):
    ids, mask = any_lm.encode(TEXTS)
    factors = torch.ones(3, any_lm.n_layers, any_lm.d_mlp, dtype=any_lm.dtype)
    for row in range(2):  # the last row is left as it is
        factors[row, row, row : row + 5] = 0
        factors[row, 3, 7] = 2
    with scaled_neurons(any_lm, factors):
        got = hidden(any_lm, ids, mask)
    for row in range(3):
        changes = {}
        for layer in range(any_lm.n_layers):
            W = any_lm.weight(layer)
            change = W * (factors[row, layer] - 1)
            changes[layer] = Factors(change, torch.eye(any_lm.d_mlp, dtype=W.dtype))
        with applied(any_lm, Update(changes)):
            expected = hidden(any_lm, ids, mask)[row]
        real = mask[row].bool()
        torch.testing.assert_close(got[row][real], expected[real], rtol=1e-9, atol=1e-9)


def test_at_one_column_the_others_stay(any_lm):
    ids, mask = any_lm.encode(TEXTS)
    at = torch.tensor([2, 4, 0])
    factors = torch.zeros(3, any_lm.n_layers, any_lm.d_mlp, dtype=any_lm.dtype)
    before = hidden(any_lm, ids, mask)
    with scaled_neurons(any_lm, factors, at):
        got = hidden(any_lm, ids, mask)
    for row, column in enumerate(at):
        assert got[row, :column].equal(before[row, :column])
        assert not torch.allclose(got[row, column], before[row, column])
    assert hidden(any_lm, ids, mask).equal(before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in any_lm.model.modules())


def test_refusals(tiny):
    lm = tiny("gpt2")
    with (
        pytest.raises(ValueError, match=r"factors are of \(2, 3\).*has \(4, 48\)"),
        scaled_neurons(lm, torch.ones(1, 2, 3)),
    ):
        pass
    ids, mask = lm.encode(TEXTS)
    with (
        pytest.raises(ValueError, match="the batch has 3 rows, the factors 2"),
        scaled_neurons(lm, torch.zeros(2, 4, 48)),
    ):
        hidden(lm, ids, mask)
