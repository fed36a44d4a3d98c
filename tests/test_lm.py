"""LM: orientation is looked up and shared, tokens are found by offsets, a model that is not what it
says is refused.
"""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from acelib.bench.tiny import FAMILIES, make_tiny, tiny_tokenizer
from acelib.model import lm as module
from acelib.model.lm import LM
from acelib.model.loading import load

TEXT = "In Paris and Paris: Paris's Tim Duncan"


def with_tokenizer(lm, tokenizer):
    return LM(lm.model, tokenizer, lm.name)


def pieces(bos=True):
    """A tokenizer as Llama 2 has it: a blank in front of every text, and a first token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = (
        pre_tokenizers.Metaspace(prepend_scheme="always"),
        decoders.Metaspace(),
    )
    bpe.train_from_iterator(
        ["The capital of France is Paris. x", TEXT, "In 12"] * 4,
        trainers.BpeTrainer(vocab_size=120, special_tokens=["<s>"], show_progress=False),
    )
    if bos:
        bpe.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="<s>", pad_token="<s>"
    )


# ---------------------------------------------------------------------- parts


@pytest.mark.parametrize("part", ["mlp", "attn"])
def test_the_weight_is_oriented_and_shared(any_lm, part):
    lm, key = any_lm, torch.randn(3, any_lm.width(part), dtype=any_lm.dtype)
    for layer in range(lm.n_layers):
        output = lm.output(layer, part)
        bias = getattr(output, "bias", None)
        torch.testing.assert_close(
            key @ lm.weight(layer, part).T + (0 if bias is None else bias), output(key)
        )
    lm.weight(1, part).zero_()
    assert not lm.output(1, part).weight.any() and lm.output(2, part).weight.any()
    assert lm.width("mlp") == lm.d_mlp and lm.output(1) is lm.fc2(1)


@pytest.mark.parametrize("row", ["gate", "up"])
def test_subkeys_are_what_a_neuron_reads_with(any_lm, row):
    """fc1(N(h)) = subkeys (h - mean) / scale, and what the biases add."""
    lm, h = any_lm, torch.randn(1, 5, any_lm.d_model, dtype=any_lm.dtype)
    norm, names = lm.ffn_norm(2), lm.family.fc1
    fc1 = getattr(lm.mlp(2), names[-1] if row == "up" else names[0])
    centred = h - h.mean(-1, keepdim=True) if isinstance(norm, torch.nn.LayerNorm) else h
    eps = norm.eps if isinstance(norm, torch.nn.LayerNorm) else norm.variance_epsilon
    found = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() @ lm.subkeys(2, row).T
    torch.testing.assert_close(
        found,
        fc1(norm(h))
        - fc1(norm(h) * 0 + (getattr(norm, "bias", None) if hasattr(norm, "bias") else 0)),
    )
    with pytest.raises(ValueError, match="row 'down'.*allowed: 'gate', 'up'"):
        lm.subkeys(2, "down")


def test_layers_are_checked_and_sorted(tiny):
    lm = tiny("gpt2")
    assert lm.layers([3, 1, 1]) == (1, 3)
    for chosen, match in (
        ([], "no layer given"),
        (2, r"a list, such as \(2,\); got 2"),
        ([4], "layer 4 does not exist: model 'tiny-gpt2' has layers 0 to 3"),
        ([-1], "layer -1"),
    ):
        with pytest.raises(ValueError, match=match):
            lm.layers(chosen)


def test_the_fingerprint_is_of_weights_tokenizer_and_configuration(tiny):
    lm, other = tiny("llama"), tiny("llama")
    assert (
        lm.fingerprint
        == other.fingerprint
        == copy.deepcopy(lm).fingerprint
        != tiny("llama", seed=1).fingerprint
    )
    assert with_tokenizer(lm, pieces()).fingerprint != lm.fingerprint
    other = tiny("llama")
    other.model.config.rms_norm_eps = 0.1  # the same weights, other answers
    assert other.fingerprint != lm.fingerprint


# ---------------------------------------------------------------------- tokens


@pytest.mark.parametrize(
    "tokenizer",
    [tiny_tokenizer(), pieces(), pieces(bos=False)],
    ids=["bytes", "pieces, BOS", "pieces"],
)
@pytest.mark.parametrize("end", [2, 8, 18, 25, 34, len(TEXT)])
def test_a_token_is_found_by_the_character_it_holds(tiny, tokenizer, end):
    lm = with_tokenizer(tiny("gpt2"), tokenizer)
    ids, at = tokenizer(TEXT)["input_ids"], lm.token_at(TEXT, end)
    before, after = (
        tokenizer.decode(ids[:n], skip_special_tokens=True).strip() for n in (at, at + 1)
    )
    assert TEXT.startswith(after) and len(before) < end <= len(after)
    for outside in (0, len(TEXT) + 1):
        with pytest.raises(ValueError, match="not inside"):
            lm.token_at(TEXT, outside)


@pytest.mark.parametrize(
    "tokenizer",
    [tiny_tokenizer(), pieces(), pieces(bos=False)],
    ids=["bytes", "pieces, BOS", "pieces"],
)
@pytest.mark.parametrize("answer", ["Paris", " Paris ", "Tim Duncan", "T", "12"])
def test_an_answer_is_tokenised_as_behind_its_prompt(tiny, tokenizer, answer):
    lm, prompt = with_tokenizer(tiny("gpt2"), tokenizer), "The capital of France is"
    assert (
        tokenizer(prompt)["input_ids"] + lm.answer_ids(answer)
        == tokenizer(f"{prompt} {answer.strip()}")["input_ids"]
    )
    with pytest.raises(ValueError, match="answer ' ' is empty"):
        lm.answer_ids(" ")


def test_padding_is_on_the_side_asked_for(tiny):
    lm = tiny("gptj")
    (right, mask), (left, other) = (
        lm.encode(["Paris is", "a"]),
        lm.encode(["Paris is", "a"], "left"),
    )
    assert mask[1].tolist() == other[1].flip(0).tolist() and torch.equal(
        right[mask.bool()], left[other.bool()]
    )
    with pytest.raises(ValueError, match="padding side 'both'"):
        lm.encode(["a"], "both")


# ---------------------------------------------------------------------- what is refused


def test_another_architecture_is_refused():
    model = OPTForCausalLM(
        OPTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            ffn_dim=16,
            num_attention_heads=2,
            vocab_size=360,
            word_embed_proj_dim=16,
        )
    )
    with pytest.raises(
        ValueError,
        match="architecture 'opt' is not supported; supported: gpt2, gptj, llama, mistral",
    ):
        LM(model, tiny_tokenizer())


def test_parts_that_are_elsewhere_are_refused(tiny, monkeypatch):
    lm = tiny("gptj")
    monkeypatch.setitem(module.FAMILIES, "gptj", replace(lm.family, fc2="down_proj"))
    with pytest.raises(ValueError, match="its parts are not where 'gptj' models keep them"):
        LM(lm.model, lm.tokenizer)
    monkeypatch.undo()
    monkeypatch.setattr(module, "oriented", lambda linear: 2 * linear.weight)
    with pytest.raises(ValueError, match="not oriented as family 'gptj' says"):
        LM(lm.model, lm.tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_loads_whole_or_not_at_all(tmp_path, family):
    lm, weights = make_tiny(family, torch.float32), tmp_path / "model.safetensors"
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    assert load(str(tmp_path), "cpu").fingerprint == lm.fingerprint
    tensors = load_file(weights)
    lost = sorted(
        name
        for name in tensors
        if name.endswith("mlp.c_proj.weight") or "fc_out.weight" in name or "down_proj" in name
    )[0]
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != lost},
        weights,
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match=f"1 weights are missing from its files, such as '{lost}'"):
        load(str(tmp_path), "cpu")
    save_file(tensors | {lost: torch.zeros(3, 3)}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match="cannot be loaded"):
        load(str(tmp_path), "cpu")
    weights.write_bytes(b"rubbish")
    with pytest.raises(
        ValueError, match="cannot be loaded: it is neither shipped .* nor a readable local folder"
    ) as refused:
        load(str(tmp_path), "cpu")
    assert "\n" not in str(refused.value)
