"""Models by name: loaded whole and finite, without running a line of what lies in their folders.

A folder of a model is data from somewhere. Python files in it are never imported, whatever its
configuration asks for and whatever stands on standard input, and what cannot be edited as it is
(a missing layer, a weight that is not finite, a tokenizer without tokens) is refused here, in one
sentence, and not found out by an editor.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ..provenance import ROOT, default_device
from ..records import quoted
from . import fetch
from .lm import FAMILIES, LM
from .origin import ancestors_of, is_natural
from .start import with_start

SHIPPED = ROOT / "data" / "models"
FLOATS = {"F16", "BF16", "F32", "F64"}  #: types of weights that can be edited, as files name them
DTYPES = ("float32", "bfloat16", "float16", "float64")
SIZES = ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size")
LONGEST = "max_position_embeddings"


def shipped() -> list[str]:
    """Names of the reference models in ``data/models``."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def load(
    name: str,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    start: str = "",
) -> LM:
    """A model by name: one shipped in ``data/models``, one that ``acelib fetch`` has fetched, a
    local folder, or a Hugging Face hub id.

    device: where to put it; None takes ``provenance.default_device``.   dtype: float32 by default.
    start: a token or a text that every prompt is read after (``start.with_start``); "": what the
    tokenizer says.
    No code of the model's folder is run. Raises ValueError if nothing of that name can be loaded,
    naming the shipped models; for another architecture than ``FAMILIES``; for weights that are
    missing, too many, not finite or no floating-point numbers; for a tokenizer that gives no tokens
    or more than the model embeds.
    """
    source = source_of(name)
    try:
        # 1. What it says it is, before anything large is read.
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        _check_config(config, name)
        _check_files(Path(source), name)
        # 2. The tokenizer and the weights. Whatever a library says of a broken file is one error.
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        tokenizer("a b")
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
    except Refused:
        raise
    except Exception as err:
        why = f"{type(err).__name__}: {str(err).strip().partition(chr(10))[0]}"
        raise ValueError(
            f"model {quoted(name)} cannot be loaded: it is neither shipped "
            f"({', '.join(shipped()) or 'none'}), nor a readable local folder, nor a hub id that "
            f"can be reached ({why[:200]})"
        ) from err
    # 3. What was loaded is all of it, and can be computed with.
    model, report = loaded
    _check_weights(model, report, name)
    _check_tokenizer(tokenizer, model, name)
    model = model.to(device or default_device())
    _check_output(model, name)
    if start:
        tokenizer = with_start(tokenizer, start)
    folder = Path(source)
    natural = is_natural(folder)
    return LM(model, cast(PreTrainedTokenizerFast, tokenizer), name, ancestors_of(folder), natural)


def source_of(name: str) -> str:
    """The folder of a model that is shipped or fetched, or its name as it is."""
    if name in shipped():
        return str(SHIPPED / name)
    if fetch.is_name(name) and not Path(name).is_dir():
        return str(fetch.located(name))
    return name


def dtype_named(name: str) -> torch.dtype:
    """The type of weights of a name. Raises ValueError for another one."""
    if name not in DTYPES:
        raise ValueError(f"dtype {quoted(name)} is unknown; allowed: {', '.join(DTYPES)}")
    return getattr(torch, name)


class Refused(ValueError):
    """A model that could be read but must not be edited."""


def _check_config(config: PretrainedConfig, name: str) -> None:
    if config.model_type not in FAMILIES:
        raise Refused(
            f"model {quoted(name)}: architecture {quoted(config.model_type)} is not supported; "
            f"supported: {', '.join(FAMILIES)}"
        )
    for field in (*SIZES, LONGEST):
        size = getattr(config, field, None)
        if not isinstance(size, int) or size < 1:
            raise Refused(
                f"model {quoted(name)}: {field} in config.json is {quoted(size)}; "
                "it must be a positive whole number"
            )


def _check_files(folder: Path, name: str) -> None:
    """Weights that are no floating-point numbers would be cast, and mean something else."""
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        for key, kind in _kinds(path):
            if kind not in FLOATS and key.endswith((".weight", ".bias")):
                raise Refused(
                    f"model {quoted(name)}: {key} in {path.name} is of type {kind}; "
                    f"allowed: {', '.join(sorted(FLOATS))}"
                )


def _kinds(path: Path) -> Iterator[tuple[str, str]]:
    """Name and type of every tensor in a file."""
    with safe_open(str(path), "pt") as file:
        for key in file.keys():  # noqa: SIM118 - it is no mapping
            yield key, file.get_slice(key).get_dtype()


def _check_weights(model: PreTrainedModel, report: dict, name: str) -> None:
    if missing := sorted(report["missing_keys"]):  # they would be random
        raise Refused(
            f"model {quoted(name)}: {len(missing)} weights are missing from its files, "
            f"such as {missing[0]!r}"
        )
    n_layers, blocks = model.config.num_hidden_layers, FAMILIES[model.config.model_type].layers
    for key in sorted(report["unexpected_keys"]):  # a layer that the configuration leaves out
        _, found, after = key.partition(f"{blocks}.")
        number = after.partition(".")[0]
        if found and number.isdigit() and int(number) >= n_layers:
            raise Refused(
                f"model {quoted(name)}: its files hold a layer {number}, "
                f"config.json says that it has {n_layers}"
            )
    for key, value in (*model.state_dict().items(), *model.named_buffers()):
        if not value.isfinite().all():
            raise Refused(f"model {quoted(name)}: {key} holds a number that is not finite")


def _check_output(model: PreTrainedModel, name: str) -> None:
    """A configuration may have every size right and still be one that nothing can be read with."""
    try:
        ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
        with torch.no_grad():
            logits = model(input_ids=ids).logits
    except (RuntimeError, TypeError, ValueError, IndexError) as err:
        why = f"it cannot read two tokens ({str(err).strip().partition(chr(10))[0][:200]})"
    else:
        if logits.isfinite().all():
            return
        why = "its output for two tokens is not finite"
    raise Refused(f"model {quoted(name)}: {why}; its config.json does not fit its weights")


def _check_tokenizer(tokenizer: Any, model: PreTrainedModel, name: str) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise Refused(
            f"model {quoted(name)}: its tokenizer, {type(tokenizer).__name__}, does not say which "
            "characters a token holds; a tokenizer.json is needed"
        )
    embeddings = cast(torch.nn.Embedding, model.get_input_embeddings())
    rows, size = embeddings.num_embeddings, len(tokenizer)
    if not tokenizer("a b", add_special_tokens=False)["input_ids"]:
        raise Refused(
            f"model {quoted(name)}: its tokenizer gives no tokens for 'a b'; "
            "its folder needs a tokenizer.json with a vocabulary"
        )
    if size > rows:
        raise Refused(
            f"model {quoted(name)}: its tokenizer has {size} tokens, the model embeds {rows}"
        )
