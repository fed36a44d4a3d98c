"""What a push at one position of one layer can change: what a target search runs at every step.

Exact, by causality and because most of a block works position by position. Of the layers above the
push, from the lookup token on: the first block's projections change at the lookup token only (where
attention and FFN read the same input, its FFN too), so the rest is computed once; the last block is
needed where it is read, but for its keys and values; padding goes through no matrix; keys and
values of earlier positions are frozen, and so is the mask. The FFN's non-linearity is the fused
kernel of the same formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.cache_utils import DynamicLayer

from ..interrupts import unbroken
from ..model.lm import LM, common_start, copied
from ..model.states import hooked
from .keys import Batch, aligned

#: keys and values of some positions, by layer
Past = Sequence[
    tuple[Float[Tensor, "batch heads before d_head"], Float[Tensor, "batch heads before d_head"]]
]


class Tail:
    """The blocks above ``layer`` for some rows of ``batch``, from the lookup token on.

    hidden: states after ``layer``.   past: (keys, values) of the positions before the lookup token
    by layer, or nothing.   frozen: outputs from ``frozen_outputs``.
    places: indices of the states to return, row * pos + column, or None for all.
    """

    def __init__(
        self,
        lm: LM,
        layer: int,
        batch: Batch,
        rows: Int[Tensor, " rows"],
        hidden: Float[Tensor, "batch pos d_model"],
        past: Past,
        frozen: dict[nn.Module, Float[Tensor, "batch pos d"]],
        places: Int[Tensor, " places"] | None,
    ):
        # 1. What stays as it is: states, outputs, keys and values of other positions.
        self.lm, self.places, last = lm, places, lm.n_layers - 1
        self.rest = hidden[rows, 1:]
        self.frozen = {module: values[rows, 1:] for module, values in frozen.items()}
        self.past = None
        if past:
            slots = (
                _Frozen(k[rows], v[rows]) if i > layer else DynamicLayer()
                for i, (k, v) in enumerate(past)
            )
            self.past = Cache(layers=[*slots])
        # 2. The blocks that run, with their mask and positions.
        self.positions = batch.inputs(slice(batch.at, None), rows)["position_ids"]
        self.mask = _mask(batch.mask[rows], batch.at, hidden.dtype)
        self.part = fused(lm, layer + 1, last, int(self.positions.max()) + 1)
        # 3. The places at which a module runs: all but padding; in the last block, those read.
        self.where: dict[nn.Module, Int[Tensor, " places"]] = {}
        if places is not None and layer < last:
            real = batch.mask[rows, batch.at :].flatten().nonzero()[:, 0]
            self.where = {
                module: real for i in range(layer + 1, last + 1) for module in _by_position(lm, i)
            }
            self.where |= {lm.attn_out(last): places, lm.mlp(last): places}

    def __call__(self, first: Float[Tensor, "rows d_model"]) -> Float[Tensor, "*places d_model"]:
        """States after the final norm at ``places``, or all, with ``first`` at the lookup token."""
        with ExitStack() as stack:
            for module, rest in self.frozen.items():
                stack.enter_context(_only_first(module, rest))
            for module in self.where.keys() - self.frozen.keys():
                stack.enter_context(_only_at(module, self.where[module]))
            states = self.part(
                inputs_embeds=torch.cat([first[:, None], self.rest], 1),
                attention_mask=self.mask,
                position_ids=self.positions,
                past_key_values=self.past,
                use_cache=self.past is not None,
            ).last_hidden_state
        return states if self.places is None else states.flatten(0, 1)[self.places]


@unbroken
def frozen_outputs(lm: LM, layer: int) -> Iterator[dict[nn.Module, Float[Tensor, "batch pos d"]]]:
    """Fill a dict with outputs that a push at the first position leaves alone.

    They are those of the forward inside, at the other positions, of modules of the block above
    ``layer``: attention's projections, and the FFN where it reads what attention reads.
    """
    outputs: dict[nn.Module, Float[Tensor, "batch pos d"]] = {}

    def keep(module: nn.Module) -> Callable[[nn.Module, tuple, Tensor], None]:
        def hook(_copy: nn.Module, _args: tuple, output: Tensor) -> None:
            outputs[module] = output  # the module that runs may be a copy, see ``fused``

        return hook

    with ExitStack() as hooks:
        if layer + 1 < lm.n_layers:
            moved: set[nn.Module] = {lm.attn_out(layer + 1)}
            if not lm.family.parallel:
                moved.add(lm.mlp(layer + 1))
            for module in _by_position(lm, layer + 1):
                if module not in moved:
                    hooks.enter_context(module.register_forward_hook(keep(module)))
        yield outputs


def _by_position(lm: LM, layer: int) -> list[nn.Module]:
    """The matrices of a block's attention, and its FFN."""
    return [
        module
        for module in lm.attn(layer).children()
        if getattr(module, "weight", torch.empty(0)).ndim == 2
    ] + [lm.mlp(layer)]


def _only_first(
    module: nn.Module, rest: Float[Tensor, "batch pos d"]
) -> AbstractContextManager[None]:
    """Run ``module`` on the first position only; what it gives at the others is ``rest``."""

    def before(_: nn.Module, args: tuple) -> tuple:
        return args[0][:, :1], *args[1:]

    def after(_: nn.Module, _args: tuple, out: Tensor) -> Tensor:
        return torch.cat([out, rest], 1)

    return hooked(module, after, before)


def _only_at(module: nn.Module, places: Int[Tensor, " places"]) -> AbstractContextManager[None]:
    """Run ``module`` at ``places`` (indices into b * t) only; it gives zeros elsewhere."""
    shape: list[int] = []

    def before(_: nn.Module, args: tuple) -> tuple:
        shape[:] = args[0].shape[:2]
        return args[0].flatten(0, 1)[places], *args[1:]

    def after(_: nn.Module, _args: tuple, out: Tensor) -> Tensor:
        return (
            out.new_zeros(shape[0] * shape[1], out.shape[-1])
            .index_copy(0, places, out)
            .unflatten(0, shape)
        )

    return hooked(module, after, before)


class _Frozen(DynamicLayer):
    """Keys and values that every forward continues and none adds to."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = self.frozen = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.frozen
        return torch.cat([keys, key_states], -2), torch.cat([values, value_states], -2)


def _mask(
    mask: Int[Tensor, "batch pos"], at: int, dtype: torch.dtype
) -> Float[Tensor, "batch 1 tail pos"]:
    """Additive causal mask of the columns from ``at`` on, from a mask of tokens."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    seen = mask.bool()[:, None, None] & (columns <= columns[at:, None])
    return torch.zeros(seen.shape, dtype=dtype, device=mask.device).masked_fill_(
        ~seen, torch.finfo(dtype).min
    )


def fused(lm: LM, first: int, last: int, positions: int) -> nn.Module:
    """``lm.between(first, last)`` with fused non-linearities.

    positions: how many are needed; GPT-J copies its table of them for every row.
    """
    family, blocks, part = lm.family, [], lm.between(first, last)
    for block in getattr(part, family.layers):
        mlp, attn = getattr(block, family.mlp), copied(getattr(block, family.attn))
        gelus = {
            name: GELUTanh()
            for name, module in mlp._modules.items()
            if isinstance(module, NewGELUActivation)
        }
        attn._buffers = {
            name: table[:positions] if table is not None and name == "embed_positions" else table
            for name, table in attn._buffers.items()
        }
        blocks.append(copied(block, **{family.mlp: copied(mlp, **gelus), family.attn: attn}))
    return copied(part, **{family.layers: nn.ModuleList(blocks)})


def shared_start(
    lm: LM, rows: Sequence[tuple[Sequence[int], int]], beginnings: Sequence[str]
) -> tuple[Batch, int, Int[Tensor, " starts"], Int[Tensor, " rows"]]:
    """One batch whose first columns hold the tokens that rows of one beginning share.

    rows: (token ids, lookup index) pairs.
    Returns the batch; how many columns are shared; a row of each beginning that has some; for every
    row, which of those it is like.
    """
    # 1. The tokens before the lookup token that all rows of a beginning have in common.
    common: dict[str, list[int]] = {}
    for (ids, at), text in zip(rows, beginnings, strict=True):
        start = common.setdefault(text, list(ids[:at]) if text else [])
        del start[common_start(start, ids[:at]) :]
    starts = [text for text, ids in common.items() if ids]
    # 2. The rest of the rows, their lookup tokens in one column.
    rest = aligned(
        lm,
        [
            (ids[len(common[text]) :], at - len(common[text]))
            for (ids, at), text in zip(rows, beginnings, strict=True)
        ],
    )
    like = torch.tensor(
        [starts.index(text) if text in starts else 0 for text in beginnings], device=lm.device
    )
    first = torch.tensor(
        [beginnings.index(text) for text in starts], dtype=torch.long, device=lm.device
    )
    if not starts:
        return rest, 0, first, like
    # 3. Both side by side.
    shared, mask = lm.pad([common[text] for text in beginnings])
    width = shared.shape[1]
    whole = Batch(
        torch.cat([shared, rest.ids], 1), torch.cat([mask, rest.mask], 1), width + rest.at
    )
    return whole, width, first, like


def rows_that_fit(lm: LM, layer: int, t: int, at: int) -> int:
    """Prompts in one batch: what memory there is over a row's bytes.

    64 MiB on a CPU, whose caches are of that order, or half of what an accelerator has free. A row
    keeps about 16 d + 4 m numbers for each block above ``layer`` and position from the lookup token
    on (t), for the gradient; 2 d for each block and earlier position (at), keys and values; and 4 v
    at a label.
    """
    above, d = lm.n_layers - layer - 1, lm.d_model
    row = (
        above * t * (16 * d + 4 * lm.d_mlp) + lm.n_layers * at * 2 * d + 4 * lm.head.weight.shape[0]
    )
    free = (
        2**26 if lm.device.type == "cpu" else torch.accelerator.get_memory_info(lm.device)[0] // 2
    )
    return max(1, free // (row * torch.promote_types(lm.dtype, torch.float32).itemsize))
