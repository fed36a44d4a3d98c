"""Costs at true size: the same code on a tiny shape, memory counted before anything is made."""

import math

import pytest
import torch
from transformers import GPTJConfig, LlamaConfig

from acelib.bench import full_size, plain, shapes, speed
from acelib.bench.full_size import NAMES, editor_of, made_up
from acelib.bench.tiny import tiny_tokenizer
from acelib.model.states import trace
from acelib.world.world import load_world

SIZES = dict(n=2, steps=3, stored=5)
TINY = {
    "tiny-gptj": GPTJConfig(
        n_embd=32, n_layer=6, n_head=4, rotary_dim=4, vocab_size=400, n_positions=256
    ),
    "tiny-llama": LlamaConfig(
        hidden_size=32,
        num_hidden_layers=6,
        intermediate_size=48,
        vocab_size=400,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
}
WORLD = load_world()


@pytest.fixture(autouse=True)
def tiny_shapes(monkeypatch):
    monkeypatch.setattr(shapes, "PUBLISHED", shapes.PUBLISHED | TINY)
    monkeypatch.setattr(full_size, "make_tokenizer", lambda *_: tiny_tokenizer())
    for module in (speed, full_size):
        monkeypatch.setattr(module, "load_world", lambda: WORLD)


@pytest.mark.parametrize("shape", TINY)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
def test_the_table_of_a_shape(shape, dtype):
    told = []
    rows = full_size.full_size(
        shape, dtype, "cpu", **SIZES, progress=lambda *state: told.append(state)
    )
    names = [row.name for row in rows]
    assert names[:3] == ["attribution", "query scores", "target vectors, 5 prefixes"]
    assert names[-3:] == [f"one edit by {name}" for name in NAMES]
    assert all(row.baseline_s > 0 and row.ours_s > 0 and math.isfinite(row.ratio) for row in rows)
    assert told[-1] == (len(told), len(told), "ACE")
    assert sum(shape in row.note for row in rows) == len(rows) - 3  # closed forms have no model
    if dtype == torch.float32:
        assert max(row.off for row in rows) < 0.01


def test_memory_is_counted_from_the_shape():
    for shape, billions in (("gpt-j-6b", 6.05), ("qwen3-8b", 8.19), ("smollm2-135m", 0.1345)):
        need = shapes.memory(shapes.config_of(shape), torch.float16)
        assert need["weights"] == pytest.approx(2e9 * billions, rel=2e-3)
    need = shapes.memory(shapes.config_of("gpt-j-6b"), torch.float32)
    assert need["second moments"] == 3 * 8 * 16384**2
    assert need["weights"] == pytest.approx(4 * 6.05e9, rel=2e-3) and need["search"] > 2**30


def test_what_does_not_fit_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(shapes, "free_memory", lambda device: 5 * shapes.GIB)
    monkeypatch.setattr(shapes, "random_model", lambda *_: pytest.fail("made"))
    with pytest.raises(
        ValueError,
        match="'gpt-j-6b' in float32 needs about .* GiB .weights 22.5,.*5.0 GiB are free",
    ):
        full_size.full_size("gpt-j-6b", device="cpu")


def test_bad_choices_are_named():
    with pytest.raises(ValueError, match="unknown shape 'gpt-5'; known: gpt-j-6b, qwen3-8b"):
        full_size.full_size("gpt-5", device="cpu")
    with pytest.raises(ValueError, match="10 tokens is smaller than the tokenizer"):
        shapes.layers_of("tiny-llama", tiny_tokenizer(), 1, 10)


def test_chunks_follow_free_memory(monkeypatch):
    cpu = torch.device("cpu")
    assert shapes.free_memory(cpu) > 2**20
    for free, numbers in ((2**20, 2**22), (2**30, 2**24), (2**40, 2**28)):
        monkeypatch.setattr(shapes, "free_memory", lambda device, free=free: free)
        assert shapes.budget(cpu) == numbers


def test_a_shape_with_settings_has_the_published_layers():
    lm = shapes.random_model("tiny-gptj", tiny_tokenizer(), torch.float32, torch.device("cpu"))
    assert editor_of("MEMIT", "gpt-j-6b", lm).layers == (3, 4, 5, 6, 7, 8)
    assert editor_of("ROME", "gpt-j-6b", lm).layer == 5
    assert editor_of("ACE", "tiny-gptj", lm).layers == (1, 2, 3, 4, 5)
    assert editor_of("MEMIT", "tiny-gptj", lm).layers == (1, 2)


def test_the_made_up_moment_is_solved_as_any_other(tiny):
    lm = tiny("llama", dtype=torch.float32)
    moments, x = made_up(lm, (0, 2)), torch.ones(lm.d_mlp, 1, dtype=torch.float64)
    for layer in (0, 2):
        torch.testing.assert_close(moments[layer] @ moments.solver(layer, 2.0)(x), x / 2)


def test_random_layers_say_as_sharply_as_trained_ones():
    """Logits of a head that says everything alike would make the bound look too good."""
    lm = shapes.layers_of("tiny-llama", tiny_tokenizer(), 2, 400)
    assert lm.n_layers == 2 and len(lm.head.weight) == 400
    ids, mask = lm.encode(["The capital of France is"])
    logits = trace(lm, ids, mask, logits="last")["logits", lm.n_layers]
    assert 1.5 < float(logits.std()) < 6


def test_plain_queries_are_a_double_loop(tiny):
    lm = tiny("gpt2")
    ids, mask = lm.encode(["The capital of France is"])
    values = torch.zeros(1, lm.n_layers, lm.d_mlp, dtype=lm.dtype)
    values[0, 2, 5], values[0, 1, 7] = 2.0, 1.0
    found = plain.queries(lm, ids, mask, values, [(0, 0, 3), (0, 1, 3), (0, 2, 3)], n=2)
    assert float(found[2]) == 0 and float(found[0]) != 0
    key = trace(lm, ids, mask, [plain.Site("key", 1)])["key", 1][0, -1, 3]
    v = key * lm.weight(1)[:, 3]
    assert float(found[1]) == pytest.approx(2 * float(v @ lm.subkeys(2)[5]))
