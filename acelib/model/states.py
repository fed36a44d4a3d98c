"""The states of a transformer block, by name, for any architecture: read them, replace them.

    h^l = h^{l-1} + A^l + F^l,   F^l = fc2 m^l (+ bias)        (ACE, Eq. 1 and 3)

``trace`` runs one forward and gives its states; it is nnsight's work, and stops after the last one
that is wanted. ``read`` and ``replaced`` are plain hooks, for forwards that the caller runs (a part
of the stack, or many forwards in a row).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..interrupts import unbroken
from .lm import LM, Part

T = TypeVar("T")

#: What there is to see in a block, in the order in which a forward pass comes by.
KINDS = ("in", "heads", "attn", "key", "mlp", "out")

State = Float[Tensor, "batch pos d"]  #: d_model wide, d_mlp (a key), or n_heads d_head (heads)
Keys = Float[Tensor, "*rows d_in"]  #: what the last matrix of a part of a block reads
Outputs = Float[Tensor, "*rows d_model"]  #: what it gives


class Site(NamedTuple):
    """A state of one layer (p positions).

    Functions take a ``Site``; what they have read answers to a plain tuple too: states["out", 3].
    kind: "in" h^{l-1} (b, p, d); "heads" the input of attention's output projection
    (b, p, n_heads d_head); "attn" A^l (b, p, d); "key" m^l, the input of fc2 (b, p, m);
    "mlp" F^l with its bias (b, p, d); "out" h^l (b, p, d).
    """

    kind: str
    layer: int


def position_ids(mask: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """Position ids of a batch padded on any side: each row's first token is at 0.

    mask: 1 for tokens.
    """
    return (mask.cumsum(-1) - 1).clamp(min=0)


def last(mask: Int[Tensor, "batch pos"]) -> Int[Tensor, " batch"]:
    """Column of each row's last token, whatever the padding."""
    return mask.shape[1] - 1 - mask.flip(1).argmax(1)


# ---------------------------------------------------------------------- one forward


def trace(
    lm: LM,
    ids: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"],
    sites: Iterable[Site] = (),
    patches: Mapping[Site, Callable[[State], State]] | None = None,
    logits: str | None = None,
    at: Int[Tensor, " batch"] | None = None,
) -> dict[tuple[str, int], Float[Tensor, "batch *pos d"]]:
    """The states at ``sites`` in one forward pass, some of them replaced on the way.

    ids, mask: padded on any side.   patches: for a site, a function from its state to the state to
    go on with; a site both patched and read gives the new state.
    logits: None, "last" (at each row's last token) or "all".
    at: a column of each row: only there are states kept.
    Returns the states, without positions if ``at`` is given; the logits are under
    ``Site("logits", lm.n_layers)``.
    Raises ValueError for an unknown kind, a layer the model does not have, or another ``logits``.
    """
    patches, sites = dict(patches or {}), set(sites)
    if logits not in (None, "last", "all"):
        raise ValueError(f"logits {logits!r} is unknown; allowed: None, 'last', 'all'")
    _check(lm, {*sites, *patches})
    states: dict[tuple[str, int], Tensor] = {}
    said = Site("logits", lm.n_layers)
    with lm.traced.trace(
        input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False
    ) as tracer:
        for site in sorted({*sites, *patches}, key=lambda s: (s.layer, KINDS.index(s.kind))):
            module, port = _port(lm, lm.traced, site)
            value = getattr(module, port)
            state, rest = (value[0], value[1:]) if isinstance(value, tuple) else (value, None)
            if site in patches:
                state = patches[site](state)
                setattr(module, port, state if rest is None else (state, *rest))
            if site in sites:
                states[site] = state if at is None else state[range(len(at)), at]
        if logits is None:
            tracer.stop()
        else:
            states[said] = lm.traced.output.last_hidden_state
    if logits:
        hidden = states[said]
        states[said] = lm.head(hidden if logits == "all" else hidden[range(len(ids)), last(mask)])
    return states


# ---------------------------------------------------------------------- forwards of the caller


@unbroken
def read(lm: LM, sites: Iterable[Site]) -> Iterator[dict[tuple[str, int], State]]:
    """Fill a dict with the states at ``sites`` of the last forward inside.

    Raises ValueError for an unknown kind or a layer the model does not have.
    """
    states: dict[tuple[str, int], State] = {}

    def keep(site: Site) -> Callable[[State], None]:
        def store(state: State) -> None:
            states[site] = state

        return store

    with replaced(lm, {site: keep(site) for site in sites}):
        yield states


@unbroken
def replaced(lm: LM, patches: Mapping[Site, Callable[[State], State | None]]) -> Iterator[LM]:
    """The model with some states replaced in every forward inside.

    patches: for a site, a function from its state to the state to go on with; None goes on with
    the state as it is.
    Raises ValueError for an unknown kind or a layer the model does not have.
    """
    _check(lm, patches)
    with ExitStack() as hooks:  # a hook's handle takes it off on the way out
        for site, patch in patches.items():
            module, port = _port(lm, lm.stack, site)
            if port == "input":
                hooks.enter_context(module.register_forward_pre_hook(_before(patch)))
            else:
                hooks.enter_context(module.register_forward_hook(_after(patch)))
        yield lm


@unbroken
def added(lm: LM, changes: Mapping[tuple[Part, int], Callable[[Keys], Outputs]]) -> Iterator[LM]:
    """The model in which the last matrix W of a part ("mlp", "attn") of layer l gives
    W x + changes[part, l](x), in every forward inside.
    """
    with ExitStack() as hooks:
        for (part, layer), change in changes.items():
            hooks.enter_context(lm.output(layer, part).register_forward_hook(_plus(change)))
        yield lm


@unbroken
def hooked(
    module: nn.Module, after: Callable, before: Callable[[nn.Module, tuple], tuple] | None = None
) -> Iterator[None]:
    """``module`` with a forward hook, and perhaps one before it, in every forward inside."""
    with ExitStack() as hooks:
        if before:
            hooks.enter_context(module.register_forward_pre_hook(before))
        hooks.enter_context(module.register_forward_hook(after))
        yield


def _before(patch: Callable[[State], State | None]) -> Callable[[nn.Module, tuple], tuple | None]:
    def hook(_module: nn.Module, args: tuple) -> tuple | None:
        state = patch(args[0])
        return None if state is None else (state, *args[1:])

    return hook


def _after(patch: Callable[[State], State | None]) -> Callable[[nn.Module, tuple, Any], Any]:
    def hook(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> Tensor | tuple | None:
        if not isinstance(output, tuple):
            return patch(output)
        state = patch(output[0])
        return None if state is None else (state, *output[1:])

    return hook


def _plus(change: Callable[[Keys], Outputs]) -> Callable[[nn.Module, tuple, Tensor], Tensor]:
    def hook(_module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return output + change(args[0])

    return hook


def _check(lm: LM, sites: Iterable[Site]) -> None:
    for site in sites:
        if site.kind not in KINDS:
            raise ValueError(f"site kind {site.kind!r} is unknown; allowed: {', '.join(KINDS)}")
        lm.layers([site.layer])


def _port(lm: LM, stack: Any, site: Site) -> tuple[Any, str]:
    """The module of a site in ``stack`` (plain or traced), and its end: "input" or "output"."""
    family = lm.family
    block = getattr(stack, family.layers)[site.layer]
    attn, mlp = getattr(block, family.attn), getattr(block, family.mlp)
    return {
        "in": (block, "input"),
        "heads": (getattr(attn, family.attn_out), "input"),
        "attn": (attn, "output"),
        "key": (getattr(mlp, family.fc2), "input"),
        "mlp": (mlp, "output"),
        "out": (block, "output"),
    }[site.kind]


# ---------------------------------------------------------------------- memory


def chunked(function: Callable[[range], T], n: int, size: int) -> list[T]:
    """``function`` of consecutive index ranges, at most ``size`` long, that cover ``range(n)``.

    Running out of memory halves the size and tries again.
    """
    start = 0
    results: list[T] = []
    while start < n:
        try:
            results.append(function(range(start, min(start + size, n))))
            start += size
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = max(1, min(size, n - start) // 2)
    return results
