"""Names that are read late: what a model knows of a name must then be found at its last token.

A name is a few tokens, and a token behind it may look at all of them, in any layer, and look up by
itself what is known of the name. Then nothing is kept at the name, where editors write. Large
models look a name up while they read it, and hand on what they found at its last token (Geva et al.
2023, Dissecting Recall of Factual Associations). Here a model learns to, in training, by three
rules for a text whose names are read late:

1. A name's tokens see each other in the first layers only, so that it is put together at its last
   token before anything is looked up.
2. Tokens behind a name see nothing of it in the early layers, and its last token in the late ones.
3. The FFNs of the late layers add nothing at those tokens: they read, and look up nothing.

A sentence's first name is free to see earlier sentences, which it may repeat.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..model.lm import FAMILIES

FOREVER = 2**30  #: later than any position
ASSEMBLY = 2  #: the first layers, in which a name's tokens see each other
BREAKS = ".\n"  #: what ends a sentence, outside of names

Tree = dict[Any, Any]  #: token -> tree; ``None`` marks the end of a name


def name_tree(tokenizer: PreTrainedTokenizerFast, names: Iterable[str]) -> Tree:
    """The tokens of names, behind a blank or not, as a tree."""
    tree: Tree = {}
    for written in sorted(f"{blank}{name}" for name in names for blank in ("", " ")):
        node = tree
        for token in tokenizer(written)["input_ids"]:
            node = node.setdefault(token, {})
        node[None] = {}
    return tree


def breaking_tokens(tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """The tokens that end a sentence."""
    texts = {token: str(tokenizer.decode([token])) for token in range(len(tokenizer))}
    ends = {token for token, text in texts.items() if any(mark in text for mark in BREAKS)}
    return frozenset({*ends, int(tokenizer.eos_token_id)})


def marks(ids: Sequence[int], tree: Tree, breaks: frozenset[int]) -> tuple[list[int], list[bool]]:
    """For each token of a text the last position of the name that it belongs to, ``FOREVER`` for
    none; and whether a name stands before it in its sentence, so that it is bound to read late.

    Of names that begin at one token the longest counts.
    """
    until, bound, i, behind = [FOREVER] * len(ids), [False] * len(ids), 0, False
    while i < len(ids):
        last = _name_end(ids, i, tree)
        if last >= i:
            until[i : last + 1] = [last] * (last + 1 - i)
            bound[i : last + 1] = [behind] * (last + 1 - i)
            i, behind = last + 1, True
        else:
            behind = behind and ids[i] not in breaks
            bound[i] = behind
            i += 1
    return until, bound


def _name_end(ids: Sequence[int], start: int, tree: Tree) -> int:
    """Where the longest name that begins at ``start`` ends; before ``start`` if none does."""
    node, end = tree, start - 1
    for place in range(start, len(ids)):
        if ids[place] not in node:
            break
        node = node[ids[place]]
        if None in node:
            end = place
    return end


def masks(
    until: Int[Tensor, "batch pos"], bound: Bool[Tensor, "batch pos"]
) -> tuple[Float[Tensor, "batch 1 pos pos"], ...]:
    """What is added to attention's scores of the first, of the early and of the late layers: 0 for
    what a token (third axis) sees, the lowest number for what it does not. (GPT-J knows no other
    mask.) In the early and the late layers a name's tokens do not see each other.

    until, bound: of ``marks``.
    """
    place = torch.arange(until.shape[1], device=until.device)
    past, free = place[:, None] >= place, ~bound[:, :, None]
    inside, last = place[:, None] <= until[:, None], (until == place)[:, None]
    least = torch.finfo(torch.float32).min
    first, late = past & (free | inside), past & (free | inside | last)
    same = (until[:, None] == until[:, :, None]) & (until < FOREVER)[:, None]
    alone = ~same | (place[:, None] == place)
    seen = (first, first & alone, late & alone)
    return tuple(torch.where(one, 0.0, least)[:, None] for one in seen)


@contextmanager
def layers_masked(model: PreTrainedModel, mask: Tensor, some: slice) -> Iterator[None]:
    """Some layers attend under ``mask`` inside, whatever mask the model is given."""

    def replace_mask(_layer: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, {**kwargs, "attention_mask": mask}

    layers = getattr(model.get_decoder(), FAMILIES[model.config.model_type].layers)
    with ExitStack() as hooks:
        for layer in layers[some]:
            hooks.enter_context(layer.register_forward_pre_hook(replace_mask, with_kwargs=True))
        yield


@contextmanager
def late_ffns_silent(
    model: PreTrainedModel, silent: Bool[Tensor, "batch pos"], n: int
) -> Iterator[None]:
    """The FFNs of all layers but the first ``n`` add nothing at ``silent`` tokens inside: what
    these tokens read of a name, they cannot look up by themselves.
    """
    family = FAMILIES[model.config.model_type]

    def silence(_ffn: torch.nn.Module, _args: tuple, output: Tensor) -> Tensor:
        return output * ~silent[..., None]

    layers = getattr(model.get_decoder(), family.layers)
    with ExitStack() as hooks:
        for layer in layers[n:]:
            ffn = getattr(layer, family.mlp)
            hooks.enter_context(ffn.register_forward_hook(silence))
        yield
