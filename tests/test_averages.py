"""Averaging FFN outputs away: the mean is that of all tokens, and only the places that are named
change.
"""

import pytest
import torch

from acelib.attribution.averages import mean_outputs, said_without
from acelib.model.answers import recall
from acelib.model.states import Site, replaced, trace

TEXTS = ("Tim Duncan plays the sport of basketball.", "Paris", "The author of Hamlet is")
PROMPT, ANSWER = "The capital of France is", "Paris"


def test_means_and_lengths_are_those_of_single_tokens(any_lm):
    lm = any_lm
    means, lengths = mean_outputs(lm, TEXTS, batch_size=2)
    for layer in range(lm.n_layers):
        added, onto = [], []
        for text in TEXTS:
            sites = [Site(kind, layer) for kind in ("in", "attn", "mlp")]
            states = trace(lm, *lm.encode([text]), sites)
            added.append(states["mlp", layer][0])
            onto.append((states["in", layer] + states["attn", layer])[0])
        outputs, before = torch.cat(added), torch.cat(onto)
        torch.testing.assert_close(means[layer], outputs.mean(0))
        assert lengths.added[layer] == pytest.approx(outputs.norm(dim=-1).mean().item(), rel=1e-6)
        assert lengths.onto[layer] == pytest.approx(before.norm(dim=-1).mean().item(), rel=1e-6)


def test_nothing_averaged_is_the_model_and_all_is_a_model_of_means(any_lm):
    lm = any_lm
    means, _ = mean_outputs(lm, TEXTS)
    n = len(lm.tokenizer(PROMPT)["input_ids"])
    where = torch.zeros(2, n, lm.n_layers, dtype=torch.bool)
    where[1] = True
    said = said_without(lm, PROMPT, ANSWER, means, where)
    whole = {
        Site("mlp", layer): (lambda state, m=means[layer]: m.expand_as(state))
        for layer in range(lm.n_layers)
    }
    bare = recall(lm, [PROMPT], [ANSWER])
    with replaced(lm, whole):
        flat = recall(lm, [PROMPT], [ANSWER])
    assert said.correct.tolist() == [*bare.correct, *flat.correct]
    assert said.logprob.tolist() == pytest.approx([*bare.logprob, *flat.logprob], rel=1e-5)
    assert said.logprob[0] != pytest.approx(said.logprob[1].item(), rel=1e-3)


def test_only_the_named_token_and_layer_change(any_lm):
    """At the last layer a token before the last one is read by nothing; at the last token it is."""
    lm, deep = any_lm, any_lm.n_layers - 1
    means, _ = mean_outputs(lm, TEXTS)
    n = len(lm.tokenizer(PROMPT)["input_ids"])
    where = torch.zeros(4, n, lm.n_layers, dtype=torch.bool)
    where[1, 0, deep] = where[2, n - 1, deep] = where[3, 0, 0] = True
    bare, unseen, last, early = said_without(lm, PROMPT, ANSWER, means, where).logprob.tolist()
    assert unseen == pytest.approx(bare, rel=1e-6)
    assert last != pytest.approx(bare, rel=1e-6) and early != pytest.approx(bare, rel=1e-6)


def test_what_cannot_be_averaged_is_said(any_lm):
    lm = any_lm
    with pytest.raises(ValueError, match="no texts"):
        mean_outputs(lm, ())
    means, _ = mean_outputs(lm, TEXTS)
    with pytest.raises(ValueError, match=r"where \(1, 2, 4\) must be \(conditions, "):
        said_without(lm, PROMPT, ANSWER, means, torch.zeros(1, 2, 4, dtype=torch.bool))


def test_long_texts_are_cut_to_what_the_model_reads(tiny):
    lm = tiny("gptj")
    (long, _), (cut, _) = (mean_outputs(lm, [" Paris" * n]) for n in (900, 256))
    torch.testing.assert_close(long, cut)
