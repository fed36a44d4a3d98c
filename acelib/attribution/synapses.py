"""Attention seen and changed: its weights, the tokens that it prefers, knowledge synapses.

    t_i = argmax_c sum_r A_i[r, c]                        P = share of the commonest t_i of a fact
    S = {(l, h, c): sum_r A[l, h, r, c] > tau},           tau = alpha / (L H) sum of all A = alpha R

A[r, c]: what row (query) r gives to column (key) c; R: tokens of the prompt. Rows sum to one, so
that the argmax over rows that Eq. 4 prints is decided by rounding, and tau is alpha R. Sums are
over rows, as in Eq. 6. In a causal model an early column is seen by more rows, and on the first one
heads rest: predominance counts what the rows that can see a column give it on average, and leaves
out the first; both readings can be turned off.
Source: Query Localization, Eq. 4-6.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from ..interrupts import unbroken
from ..model.lm import LM
from ..model.states import position_ids

Weights = Float[Tensor, "rows layers heads queries keys"]
Columns = Bool[Tensor, "rows layers heads keys"]
NAME = "acelib"  #: of our attention among those of transformers


@dataclass
class _Hold:
    """What is done to attention's weights in the forwards inside, and what they were."""

    columns: Columns | None = None
    factor: float = 1.0
    renormalise: bool = False
    seen: dict[int, Tensor] = field(default_factory=dict)


_HOLD: ContextVar[_Hold] = ContextVar("hold")


@torch.no_grad()
def attention(
    lm: LM, ids: Int[Tensor, "rows pos"], mask: Int[Tensor, "rows pos"]
) -> Float[Tensor, "rows layers heads pos pos"]:
    """Attention's weights of every layer and head; zero where a query or a key is padding.

    Raises ValueError for a model whose attention cannot be reached.
    """
    with _held(lm, _Hold()) as hold:
        lm.stack(
            input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False
        )
    if len(hold.seen) < lm.n_layers:
        raise ValueError(
            f"model {lm.name!r} shows the attention weights of {len(hold.seen)} of its "
            f"{lm.n_layers} layers"
        )
    weights = torch.stack([hold.seen[layer] for layer in range(lm.n_layers)], 1)
    real = mask.bool()
    return weights * (real[:, None, None, :, None] & real[:, None, None, None, :])


def most_attended(
    weights: Weights,
    mask: Int[Tensor, "rows keys"],
    first: bool = False,
    per_row: bool = True,
) -> Int[Tensor, " rows"]:
    """The column that receives the most attention, mean over layers and heads, in each row.

    weights: of ``attention``.   first: whether the first token counts.
    per_row: the mean over the rows that can see a column, instead of their sum.
    Raises ValueError for a prompt of one token whose first is left out.
    Source: Query Localization, Eq. 4.
    """
    real = mask.bool()
    received = weights.mean((1, 2)).sum(1)
    if per_row:
        # From a column on, a row sees it.
        received = received / real.flip(1).cumsum(1).flip(1).clamp(min=1)
    allowed = real if first else real & (position_ids(mask) > 0)
    if not allowed.any(1).all():
        raise ValueError("a prompt of one token has no token but the first")
    return received.masked_fill(~allowed, -1).argmax(1)


def predominance(tokens: Sequence[object]) -> float:
    """Share of the commonest of the most attended tokens of a fact's wordings.

    Raises ValueError for fewer than two. Source: Query Localization, Eq. 4.
    """
    if len(tokens) < 2:
        raise ValueError(f"{len(tokens)} wording is given; predominance needs at least two")
    return Counter(tokens).most_common(1)[0][1] / len(tokens)


def knowledge_synapses(
    weights: Weights, mask: Int[Tensor, "rows keys"], alpha: float = 0.3
) -> Columns:
    """Columns of heads that receive more than the share ``alpha`` of all that the head gives.

    weights: of ``attention``.   Raises ValueError for a share that is not between 0 and 1.
    Source: Query Localization, Eq. 5 and 6.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"share {alpha!r} of a head's attention must be between 0 and 1")
    return weights.sum(3) > alpha * mask.sum(1)[:, None, None, None]


@unbroken
def scaled_attention(
    lm: LM, columns: Columns, factor: float, renormalise: bool = False
) -> Iterator[LM]:
    """The model in which row b's heads give ``factor`` times as much to ``columns[b]``, inside a
    ``with``: after the softmax.

    renormalise: whether what a query gives sums to one again.
    Raises ValueError for columns of other sizes than the model's and the batch's, or a factor below
    0.
    """
    if columns.shape[1:3] != (lm.n_layers, lm.n_heads):
        raise ValueError(
            f"columns are of {tuple(columns.shape[1:3])} (layers, heads); model {lm.name!r} has "
            f"{(lm.n_layers, lm.n_heads)}"
        )
    if factor < 0:
        raise ValueError(f"factor {factor!r} of attention must be at least 0")
    with _held(lm, _Hold(columns, factor, renormalise)):
        yield lm


@unbroken
def _held(lm: LM, hold: _Hold) -> Iterator[_Hold]:
    """All attention of the model goes through ``_attend`` under ``hold``."""
    config, before = lm.model.config, lm.model.config._attn_implementation
    modules = [lm.attn(layer) for layer in range(lm.n_layers)]
    token = _HOLD.set(hold)
    try:
        if lm.family.attend == "interface":
            config._attn_implementation = NAME
        else:
            for layer, module in enumerate(modules):
                module.__dict__[lm.family.attend] = MethodType(_method(layer), module)
        yield hold
    finally:
        config._attn_implementation = before
        for module in modules:
            module.__dict__.pop(lm.family.attend, None)
        _HOLD.reset(token)


def _attend(
    layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """Softmax attention with the weights of ``_HOLD``: (rows, heads, queries, d) and weights."""
    hold, groups = _HOLD.get(), query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    scores = query @ key.mT * scaling
    if mask is not None:
        scores = scores + mask[..., : key.shape[2]]
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    weights = weights.to(value.dtype)
    if hold.columns is not None:
        columns = hold.columns[:, layer, :, None].to(weights.device)
        if len(columns) != len(weights) or columns.shape[-1] != weights.shape[-1]:
            raise ValueError(
                f"the batch has {len(weights)} rows of {weights.shape[-1]} tokens, the columns are "
                f"of {len(columns)} rows of {columns.shape[-1]}"
            )
        weights = torch.where(columns, weights * hold.factor, weights)
        if hold.renormalise:
            tiny = torch.finfo(weights.dtype).tiny
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=tiny)
    hold.seen[layer] = weights
    return weights @ value, weights


def _through_interface(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: object,
) -> tuple[Tensor, Tensor]:
    """``_attend`` as transformers calls an attention; it wants (rows, queries, heads, d)."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = int(module.layer_idx)  # every attention that is called so has it
    output, weights = _attend(layer, query, key, value, attention_mask, scaling)
    return output.transpose(1, 2).contiguous(), weights


def _method(layer: int) -> Callable:
    """``_attend`` as the method of an attention module that has its own."""

    def attend(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        query, key = query.to(torch.float32), key.to(torch.float32)  # as the method does
        return _attend(layer, query, key, value, attention_mask, 1 / float(module.scale_attn))

    return attend


AttentionInterface.register(NAME, _through_interface)
AttentionMaskInterface.register(NAME, eager_mask)
