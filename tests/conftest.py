"""Tiny random models of the four families with a byte-level BPE tokenizer trained on a few sentences: algebra, not behaviour."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from functools import lru_cache

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.utils import logging

from acelib.model.lm import LM

logging.set_verbosity_error()

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


@lru_cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    bpe.train_from_iterator(
        SENTENCES * 4,
        trainers.BpeTrainer(
            vocab_size=360,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def make_tiny(
    family: str,
    dtype=torch.float64,
    seed: int = 0,
    n_layers: int = 4,
    d_model: int = 32,
    d_mlp: int = 48,
) -> LM:
    tokenizer, heads = tiny_tokenizer(), dict(num_attention_heads=4, num_key_value_heads=2)
    config = {
        "gpt2": lambda: GPT2Config(
            n_embd=d_model,
            n_layer=n_layers,
            n_head=4,
            n_inner=d_mlp,
            vocab_size=360,
            n_positions=256,
        ),
        "gptj": lambda: GPTJConfig(
            n_embd=d_model,
            n_layer=n_layers,
            n_head=4,
            rotary_dim=4,
            n_inner=d_mlp,
            vocab_size=360,
            n_positions=256,
            tie_word_embeddings=False,
        ),
        "llama": lambda: LlamaConfig(
            hidden_size=d_model,
            num_hidden_layers=n_layers,
            intermediate_size=d_mlp,
            vocab_size=360,
            **heads,
        ),
        "qwen3": lambda: Qwen3Config(
            hidden_size=d_model,
            num_hidden_layers=n_layers,
            intermediate_size=d_mlp,
            vocab_size=360,
            head_dim=8,
            tie_word_embeddings=False,
            **heads,
        ),
    }[family]()
    config.bos_token_id = config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in (
        model.parameters()
    ):  # random gains and biases too, or a forgotten norm gain would go unseen
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    torch.random.set_rng_state(generator_state)
    return LM(model.to(dtype), tokenizer, f"tiny-{family}")


@pytest.fixture
def tiny():
    """Factory of tiny random models: ``tiny("gptj", dtype=torch.float64)``."""
    return make_tiny


@pytest.fixture(params=FAMILIES)
def any_lm(request) -> LM:
    """A tiny random float64 model of each family in turn."""
    return make_tiny(request.param)
