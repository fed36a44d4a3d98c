"""What a push at one position of one layer can change, and nothing else: the part of a model that a target search runs at every step.

Exact, by causality and because most of a block works position by position. Of the layers above the push, from the lookup token on:
the first block's projections change at the lookup token only (where attention and FFN read the same input, its FFN too), so the rest is
computed once; the last block is needed where it is read, but for its keys and values; padding goes through no matrix; keys and values of
earlier positions are frozen, and so is the mask. The FFN's non-linearity is the fused kernel of the same formula.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.cache_utils import DynamicLayer

from ..model.lm import LM, copied
from .keys import Batch, aligned


class Tail:
    """The blocks above ``layer`` for some rows of ``batch``, from the lookup token on.

    hidden: states after ``layer``, (b, t, d).   past: (keys, values) of the positions before the lookup token by layer, or nothing.
    fixed: what ``fixed`` gave.   places: indices of the rows' states to return, row * t + column, or None for all.
    """

    def __init__(
        self,
        lm: LM,
        layer: int,
        batch: Batch,
        rows: Tensor,
        hidden: Tensor,
        past: Sequence[tuple[Tensor, Tensor]],
        fixed: dict[nn.Module, Tensor],
        places: Tensor | None,
    ):
        self.lm, self.places, last = lm, places, lm.n_layers - 1
        self.rest = hidden[rows, 1:]
        self.fixed = {module: values[rows, 1:] for module, values in fixed.items()}
        frozen = [
            _Frozen(k[rows], v[rows]) if i > layer else DynamicLayer()
            for i, (k, v) in enumerate(past)
        ]
        self.past = Cache(layers=frozen) if past else None
        self.positions = batch.inputs(slice(batch.at, None), rows)["position_ids"]
        self.mask = _mask(batch.mask[rows], batch.at, hidden.dtype)
        self.part = lean(lm, layer + 1, last, int(self.positions.max()) + 1)
        self.where = {}  # module -> the places it runs at
        if places is not None and layer < last:
            real = batch.mask[rows, batch.at :].flatten().nonzero()[:, 0]
            self.where = {
                module: real for i in range(layer + 1, last + 1) for module in _by_position(lm, i)
            }
            self.where |= {lm.attn_out(last): places, lm.mlp(last): places}

    def __call__(self, first: Tensor) -> Tensor:
        """States after the final norm at ``places`` (n_places, d), or all (b, t, d), with ``first`` (b, d) at the lookup token."""
        with ExitStack() as stack:
            for module, rest in self.fixed.items():
                stack.enter_context(_only_first(module, rest))
            for module in self.where.keys() - self.fixed.keys():
                stack.enter_context(_only_at(module, self.where[module]))
            states = self.part(
                inputs_embeds=torch.cat([first[:, None], self.rest], 1),
                attention_mask=self.mask,
                position_ids=self.positions,
                past_key_values=self.past,
                use_cache=self.past is not None,
            ).last_hidden_state
        return states if self.places is None else states.flatten(0, 1)[self.places]


@contextmanager
def fixed(lm: LM, layer: int) -> Iterator[dict[nn.Module, Tensor]]:
    """Fill a dict with the outputs (b, t, .), in the forward inside, of those modules of the block above ``layer`` that a push at the first
    position leaves alone after it: attention's projections, and the FFN where it reads what attention reads."""
    modules, found = [], {}
    if layer + 1 < lm.n_layers:
        moved = {lm.attn_out(layer + 1)} | (set() if lm.family.parallel else {lm.mlp(layer + 1)})
        modules = [module for module in _by_position(lm, layer + 1) if module not in moved]
    hooks = [
        module.register_forward_hook(
            lambda *call, module=module: found.__setitem__(module, call[-1])
        )
        for module in modules
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _by_position(lm: LM, layer: int) -> list[nn.Module]:
    """The matrices of a block's attention, and its FFN."""
    return [
        module
        for module in lm.attn(layer).children()
        if getattr(module, "weight", torch.empty(0)).ndim == 2
    ] + [lm.mlp(layer)]


@contextmanager
def _hooked(module: nn.Module, before, after) -> Iterator[None]:
    hooks = [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _only_first(module: nn.Module, rest: Tensor):
    """Run ``module`` on the first position only; what it gives at the others is ``rest``."""
    return _hooked(
        module,
        lambda _, args: (args[0][:, :1], *args[1:]),
        lambda _, args, out: torch.cat([out, rest], 1),
    )


def _only_at(module: nn.Module, places: Tensor):
    """Run ``module`` at ``places`` (indices into b * t) only; it gives zeros elsewhere."""
    shape = []

    def before(_, args):
        shape[:] = args[0].shape[:2]
        return args[0].flatten(0, 1)[places], *args[1:]

    def after(_, args, out):
        return (
            out.new_zeros(shape[0] * shape[1], out.shape[-1])
            .index_copy(0, places, out)
            .unflatten(0, shape)
        )

    return _hooked(module, before, after)


class _Frozen(DynamicLayer):
    """Keys and values that every forward continues and none adds to."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)


def _mask(mask: Tensor, at: int, dtype: torch.dtype) -> Tensor:
    """Additive causal mask (b, 1, t, p) of the columns from ``at`` on, from a mask of tokens (b, p)."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    seen = mask.bool()[:, None, None] & (columns <= columns[at:, None])
    return torch.zeros(seen.shape, dtype=dtype, device=mask.device).masked_fill_(
        ~seen, torch.finfo(dtype).min
    )


def lean(lm: LM, first: int, last: int, positions: int) -> nn.Module:
    """``lm.between(first, last)`` with fused non-linearities, and tables of positions no longer than needed (GPT-J copies them a row)."""
    family, blocks, part = lm.family, [], lm.between(first, last)
    for block in getattr(part, family.layers):
        mlp, attn = getattr(block, family.mlp), copied(getattr(block, family.attn))
        fused = {
            name: GELUTanh()
            for name, module in mlp._modules.items()
            if isinstance(module, NewGELUActivation)
        }
        attn._buffers = {
            name: table[:positions] if name == "embed_positions" else table
            for name, table in attn._buffers.items()
        }
        blocks.append(copied(block, **{family.mlp: copied(mlp, **fused), family.attn: attn}))
    return copied(part, **{family.layers: nn.ModuleList(blocks)})


def sharing(
    lm: LM, rows: Sequence[tuple[Sequence[int], int]], beginnings: Sequence[str]
) -> tuple[Batch, int, Tensor, Tensor]:
    """One batch from (token ids, lookup index) pairs in which the tokens that rows of one beginning share stand in the first columns.

    Returns the batch; how many columns are shared; a row of each beginning that has some; for every row, which of those it is like.
    """
    common: dict[str, list[int]] = {}
    for (ids, at), text in zip(rows, beginnings):
        known = common.setdefault(text, list(ids[:at]) if text else [])
        same = next(
            (i for i, (a, b) in enumerate(zip(known, ids[:at])) if a != b), min(len(known), at)
        )
        del known[same:]
    kept = [text for text, ids in common.items() if ids]
    rest = aligned(
        lm,
        [
            (ids[len(common[text]) :], at - len(common[text]))
            for (ids, at), text in zip(rows, beginnings)
        ],
    )
    like = torch.tensor(
        [kept.index(text) if text in kept else 0 for text in beginnings], device=lm.device
    )
    first = torch.tensor(
        [beginnings.index(text) for text in kept], dtype=torch.long, device=lm.device
    )
    if not kept:
        return rest, 0, first, like
    ids, mask = lm.pad([common[text] for text in beginnings])
    return (
        Batch(
            torch.cat([ids, rest.ids], 1), torch.cat([mask, rest.mask], 1), ids.shape[1] + rest.at
        ),
        ids.shape[1],
        first,
        like,
    )


def rows_that_fit(lm: LM, layer: int, t: int, at: int) -> int:
    """Prompts in one batch: 64 MiB on a CPU, whose caches are of that order, or half of what an accelerator has free, over a row's bytes.

    A row keeps about 16 d + 4 m numbers for each block above ``layer`` and position from the lookup token on (t), for the gradient; 2 d
    for each block and earlier position (at), keys and values; and 4 v at a label.
    """
    above, d = lm.n_layers - layer - 1, lm.d_model
    row = (
        above * t * (16 * d + 4 * lm.d_mlp) + lm.n_layers * at * 2 * d + 4 * lm.head.weight.shape[0]
    )
    free = (
        2**26 if lm.device.type == "cpu" else torch.accelerator.get_memory_info(lm.device)[0] // 2
    )
    return max(1, free // (row * torch.promote_types(lm.dtype, torch.float32).itemsize))
