"""Names read late: which tokens are marked, who sees what, and that nothing else is seen."""

from dataclasses import replace

import pytest
import torch
from test_train import RECIPE

from acelib.bench.tiny import tiny_tokenizer
from acelib.model.lm import LM
from acelib.model.states import Site, trace
from acelib.training import late
from acelib.training.late import FOREVER
from acelib.training.train import new_model

NAMES = {5: {6: {None: {}, 7: {None: {}}}}, 8: {None: {}}}


def test_names_and_what_stands_behind_them_in_a_sentence():
    """The longest name counts, one of a single token is a name too, 9 ends a sentence."""
    until, bound = late.marks([1, 5, 6, 7, 2, 8, 9, 5, 6, 3, 5], NAMES, frozenset({9}))
    assert until == [FOREVER, 3, 3, 3, FOREVER, 5, FOREVER, 8, 8, FOREVER, FOREVER]
    assert [int(is_bound) for is_bound in bound] == [0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1]


def test_a_point_inside_a_name_ends_no_sentence():
    names = {4: {9: {8: {None: {}}}}}
    until, bound = late.marks([4, 9, 8, 2], names, frozenset({9}))
    assert until == [2, 2, 2, FOREVER] and bound == [False, False, False, True]


def test_names_are_known_behind_a_blank_and_at_the_start():
    tokenizer = tiny_tokenizer()
    tree, breaks = late.name_tree(tokenizer, ["Tim Duncan"]), late.breaking_tokens(tokenizer)
    for text in ("Tim Duncan plays. Tim", "Coach of Tim Duncan"):
        ids = tokenizer(text)["input_ids"]
        until, _ = late.marks(ids, tree, breaks)
        named = tokenizer.decode([t for t, u in zip(ids, until, strict=True) if u < FOREVER])
        assert named.strip() == "Tim Duncan"
    assert all("." in tokenizer.decode([t]) for t in breaks - {tokenizer.eos_token_id, *_lines()})
    assert tokenizer.eos_token_id in breaks


def _lines() -> set[int]:
    tokenizer = tiny_tokenizer()
    return {t for t in range(len(tokenizer)) if "\n" in tokenizer.decode([t])}


def test_who_sees_what():
    """A name of two tokens at 1 and 2, a bound token behind it and a free one."""
    until = torch.tensor([[FOREVER, 2, 2, FOREVER, FOREVER]])
    bound = torch.tensor([[False, False, False, True, False]])
    first, early, later = ((mask[0, 0] == 0).int().tolist() for mask in late.masks(until, bound))
    assert first == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 1, 1, 1, 1],
    ]
    assert early == [*first[:2], [1, 0, 1, 0, 0], *first[3:]]  # the name's tokens are alone
    assert later == [*early[:3], [1, 0, 1, 1, 0], early[4]]


@pytest.mark.parametrize("architecture", ["gptj", "qwen3"])
@pytest.mark.parametrize("n_early", [0, 1])
def test_a_name_is_handed_on_at_its_last_token(architecture, n_early):
    """Where states move if the name's first token is another one: up to its end; and behind it only
    if an early layer has carried it to the last token and a late one from there.
    """
    model = new_model(replace(RECIPE, architecture=architecture, n_layers=n_early + 1), 50)
    ids = torch.arange(1, 9)[None]
    until = torch.tensor([[FOREVER, 3, 3, 3, FOREVER, FOREVER, FOREVER, FOREVER]])
    bound = torch.tensor([[False, False, False, False, True, True, True, True]])

    def moved(changed):
        other = ids.clone()
        other[0, changed] = 40
        first, _, later = late.masks(until, bound)
        with late.layers_masked(model, first, slice(0, n_early)):
            a, b = (
                model.get_decoder()(input_ids=x, attention_mask=later).last_hidden_state
                for x in (ids, other)
            )
        return (a - b).abs().amax(-1)[0] > 0

    assert moved(1)[1] and not moved(1)[0] and moved(1)[2:4].all() == (n_early == 1)
    assert moved(1)[4:].all() == moved(1)[4:].any() == (n_early == 1)
    assert moved(3)[3:].all()


@pytest.mark.parametrize("architecture", ["gptj", "qwen3"])
def test_without_names_the_masks_are_causal(architecture):
    model, ids = new_model(replace(RECIPE, architecture=architecture), 50), torch.arange(8)[None]
    nothing = torch.full((1, 8), FOREVER), torch.zeros(1, 8, dtype=torch.bool)
    first, early, later = late.masks(*nothing)
    assert torch.equal(first, early) and torch.equal(early, later)
    plain = model.get_decoder()(input_ids=ids).last_hidden_state
    with late.layers_masked(model, early, slice(0, 1)):
        masked = model.get_decoder()(input_ids=ids, attention_mask=later).last_hidden_state
    torch.testing.assert_close(masked, plain)
    torch.testing.assert_close(model.get_decoder()(input_ids=ids).last_hidden_state, plain)


@pytest.mark.parametrize("architecture", ["gptj", "qwen3"])
def test_silent_ffns_add_nothing(architecture):
    """Where all FFNs are silent at a token of a model of one layer, its state is without them."""
    lm = LM(new_model(replace(RECIPE, architecture=architecture, n_layers=1), 50), tiny_tokenizer())
    ids, mask = torch.arange(1, 5)[None], torch.ones(1, 4, dtype=torch.long)
    silent = torch.tensor([[False, True, False, False]])
    sites = [Site(kind, 0) for kind in ("in", "attn", "mlp", "out")]
    plain = trace(lm, ids, mask, sites)
    with late.late_ffns_silent(lm.model, silent, 0):
        out = lm.stack(input_ids=ids, attention_mask=mask).last_hidden_state
    bare = lm.stack(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.equal(out[0, [0, 2, 3]], bare[0, [0, 2, 3]])
    without = (plain["in", 0] + plain["attn", 0])[0, 1]
    torch.testing.assert_close(out[0, 1], lm.norm(without))
    with late.late_ffns_silent(lm.model, silent, 1):  # the first layer is left alone
        assert torch.equal(lm.stack(input_ids=ids, attention_mask=mask).last_hidden_state, bare)
