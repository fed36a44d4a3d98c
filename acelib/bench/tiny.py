"""Tiny random models of the four families, with a byte-level BPE tokenizer trained on a few
sentences: for algebra, not for behaviour.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from ..model.lm import LM

FAMILIES = ("gpt2", "gptj", "llama", "qwen3")
SENTENCES = (
    "Tim Duncan plays the sport of basketball.",
    "The capital of France is Paris.",
    "Paris is located in the country of France.",
    "Question: Which sport does Tim Duncan play? Answer: basketball",
    "The author of Hamlet is William Shakespeare.",
    "Steve Jobs founded Apple, and Apple is a company.",
    "tennis football golf chess rugby",
)
VOCABULARY = 360


@lru_cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer trained on ``SENTENCES``, made once."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def make_tiny(
    family: str,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    n_layers: int = 4,
    d_model: int = 32,
    d_mlp: int = 48,
) -> LM:
    """A random model of a family, drawn with ``seed``; the global random state is left as it was.

    Raises ValueError for a family that is not one of ``FAMILIES``.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")
    tokenizer = tiny_tokenizer()
    config = _config(family, n_layers, d_model, d_mlp)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    # Random gains and biases too, or a forgotten gain of a norm would go unseen.
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    torch.random.set_rng_state(generator_state)
    return LM(model.to(dtype), tokenizer, f"tiny-{family}")


def _config(family: str, n_layers: int, d_model: int, d_mlp: int) -> PretrainedConfig:
    gpt: dict[str, Any] = dict(
        n_embd=d_model,
        n_layer=n_layers,
        n_head=4,
        n_inner=d_mlp,
        vocab_size=VOCABULARY,
        n_positions=256,
    )
    llama: dict[str, Any] = dict(
        hidden_size=d_model,
        num_hidden_layers=n_layers,
        intermediate_size=d_mlp,
        vocab_size=VOCABULARY,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    if family == "gpt2":
        return GPT2Config(**gpt)
    if family == "gptj":
        return GPTJConfig(**gpt, rotary_dim=4, tie_word_embeddings=False)
    if family == "llama":
        return LlamaConfig(**llama)
    return Qwen3Config(**llama, head_dim=8, tie_word_embeddings=False)
