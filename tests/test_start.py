"""A start text is read before every prompt; an edit at a first token that is a sink is said."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from acelib.bench.tiny import make_tiny
from acelib.editing.request import check_lengths, requests
from acelib.model.start import has_start, with_start
from acelib.records import Edit

EDIT = Edit("Paris", "{} is located in the country of", "Italy")


@pytest.mark.parametrize("start", ["<|endoftext|>", "\n", "Facts:"])
def test_prompts_are_read_after_the_start(start):
    lm = make_tiny("llama", torch.float32)
    tokenizer = with_start(lm.tokenizer, start)
    bare = lm.tokenizer("Paris is")["input_ids"]
    first = lm.tokenizer(start, add_special_tokens=False)["input_ids"]
    assert tokenizer("Paris is")["input_ids"] == first + bare
    assert tokenizer("Paris is", add_special_tokens=False)["input_ids"] == bare
    assert has_start(tokenizer) and not has_start(lm.tokenizer)
    host = replace(lm, tokenizer=tokenizer)
    assert host.token_at("Paris is", 5) == lm.token_at("Paris is", 5) + len(first)
    assert host.answer_ids("Paris") == lm.answer_ids("Paris")
    assert host.fingerprint != lm.fingerprint


def test_a_start_without_tokens_is_refused():
    with pytest.raises(ValueError, match="the start '' has no tokens"):
        with_start(make_tiny("gpt2").tokenizer, "")


def sunk():
    """A tiny model whose first token's state is long: GPT-2's first position is."""
    lm = make_tiny("gpt2", torch.float32)
    positions = lm.stack.get_submodule("wpe")
    assert isinstance(positions, nn.Embedding)
    with torch.no_grad():
        positions.weight[0] *= 1000
    return lm


def test_an_edit_in_the_sink_is_said_and_a_start_takes_it_out():
    lm = sunk()
    first = lm.tokenizer.decode(lm.tokenizer("Paris is")["input_ids"][:1])
    edit = replace(EDIT, subject=first)
    assert lm.sink > 10 > make_tiny("gpt2", torch.float32).sink
    with pytest.warns(UserWarning, match=r"attention sink \(its state is \d+ times longer"):
        check_lengths(lm, requests([edit]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_lengths(lm, requests([edit], "last"))
        check_lengths(make_tiny("gpt2", torch.float32), requests([edit]))
        there = replace(lm, tokenizer=with_start(lm.tokenizer, "<|endoftext|>"))
        check_lengths(there, requests([edit]))
