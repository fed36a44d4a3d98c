"""The shape of a model, known before its weights are read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPTJConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
)

from ..records import quoted
from .loading import source_of

#: Published shapes, for machines that reach no hub. GPT-J's are the defaults of its class.
PUBLISHED: dict[str, PretrainedConfig] = {
    "gpt-j-6b": GPTJConfig(tie_word_embeddings=False),
    "qwen3-8b": Qwen3Config(
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151_936,
        max_position_embeddings=40_960,
        tie_word_embeddings=False,
    ),
    "smollm2-135m": LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49_152,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
}


@dataclass(frozen=True)
class Shape:
    """Sizes that costs depend on."""

    name: str
    n_layers: int
    d_model: int
    d_mlp: int
    vocabulary: int
    parameters: int  #: in all, tied ones once


def shape_of(name: str) -> Shape:
    """The shape of a model by name: shipped, fetched, a folder, a hub id, or one of ``PUBLISHED``.

    Nothing but its configuration is read.
    Raises ValueError if its configuration cannot be had.
    """
    return sizes(name, _config(name))


def sizes(name: str, config: PretrainedConfig) -> Shape:
    """The shape that a configuration describes; a name for it."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    n_layers, d_model = config.num_hidden_layers, config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Shape(name, n_layers, d_model, inner or 4 * d_model, config.vocab_size, parameters)


def _config(name: str) -> PretrainedConfig:
    short = name.rpartition("/")[2].lower()
    try:
        return AutoConfig.from_pretrained(source_of(name), trust_remote_code=False)
    except Exception as error:
        if short in PUBLISHED:
            return PUBLISHED[short]
        raise ValueError(
            f"the shape of {quoted(name)} is not known: its configuration cannot be read here, and "
            f"published are those of {', '.join(PUBLISHED)}"
        ) from error
