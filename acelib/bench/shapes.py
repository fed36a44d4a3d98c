"""Random models of the shapes that the papers edit: what a procedure costs at true size needs no
true weights.

Memory is estimated from the shape before anything is made, and what does not fit is refused.
"""

from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from ..model.lm import LM
from ..model.shape import PUBLISHED, sizes
from ..records import quoted

GIB = 2**30
ROWS, TOKENS = 24, 40  #: of the largest batch that is searched: rows, and tokens of each
STATES = 24  #: states as wide as the residual stream that a block keeps for the way back
COPIES = 3  #: float64 matrices of d_mlp^2 at once: a second moment, its factor, one on the way
LEAST, MOST = 2**22, 2**28  #: numbers held at a time for the vocabulary


def config_of(shape: str) -> PretrainedConfig:
    """A copy of the configuration of a shape, one of ``model.shape.PUBLISHED``.

    Raises ValueError for an unknown one.
    """
    if shape not in PUBLISHED:
        raise ValueError(f"unknown shape {quoted(shape)}; known: {', '.join(PUBLISHED)}")
    return deepcopy(PUBLISHED[shape])


def memory(config: PretrainedConfig, dtype: torch.dtype) -> dict[str, int]:
    """Bytes that the benchmarks of a shape need, by what they are for.

    Exact for the weights; of the plain search, whose states are kept for the way back, a count.
    """
    of = sizes("", config)
    block = STATES * of.d_model + 4 * of.d_mlp
    states = ROWS * TOKENS * (of.n_layers * block + 6 * of.vocabulary)
    return {
        "weights": of.parameters * dtype.itemsize,
        "second moments": COPIES * 8 * of.d_mlp**2,
        "search": states * max(dtype.itemsize, 4),
        "scores": 4 * 4 * LEAST,
    }


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def check_fits(shape: str, dtype: torch.dtype, device: torch.device) -> None:
    """Raises ValueError if a shape's benchmarks need more memory than the device has free."""
    need, free = memory(config_of(shape), dtype), free_memory(device)
    if sum(need.values()) > free:
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in need.items())
        raise ValueError(
            f"shape {quoted(shape)} in {name_of(dtype)} needs about "
            f"{sum(need.values()) / GIB:.1f} GiB ({parts}); {free / GIB:.1f} GiB are free on "
            f"{device}. Take float16, a smaller shape or a larger device"
        )


def budget(device: torch.device) -> int:
    """Numbers to hold at a time for the vocabulary: a sixteenth of what is free, in float32."""
    return int(min(max(LEAST, free_memory(device) // 64), MOST))


def random_model(
    shape: str,
    tokenizer: PreTrainedTokenizerFast,
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
) -> LM:
    """A model of a shape with random weights, made on the device.

    Raises ValueError for an unknown shape, or one whose vocabulary is smaller than the tokenizer's.
    """
    lm = _made(f"random {shape}", config_of(shape), tokenizer, dtype, device, seed)
    # Nobody keeps anything of this model, and a hash of so many weights takes minutes.
    vars(lm)["fingerprint"] = f"random {shape}"
    return lm


def _made(
    name: str,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
) -> LM:
    if config.vocab_size < len(tokenizer):
        raise ValueError(
            f"a vocabulary of {config.vocab_size} tokens is smaller than the tokenizer's, "
            f"{len(tokenizer)}"
        )
    config.bos_token_id = config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    with torch.random.fork_rng(), device:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return LM(model, tokenizer, f"{name}, {name_of(dtype)}")


def layers_of(
    shape: str, tokenizer: PreTrainedTokenizerFast, layers: int, vocabulary: int, seed: int = 0
) -> LM:
    """A few layers of a shape with another vocabulary, float32, whose logits have a spread of 3.

    Raises ValueError for a vocabulary smaller than the tokenizer's.
    """
    config = config_of(shape)
    config.update({"num_hidden_layers": layers, "vocab_size": vocabulary})
    name, cpu = f"{layers} random layers of {shape}", torch.device("cpu")
    lm = _made(name, config, tokenizer, torch.float32, cpu, seed)
    lm.norm.get_parameter("weight").mul_(3 / float(lm.head.weight.norm(dim=1).mean()))
    return lm


def name_of(dtype: torch.dtype) -> str:
    """Its name without the library's."""
    return str(dtype).removeprefix("torch.")
