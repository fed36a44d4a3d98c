"""Look inside one forward pass, and change what is seen: the states of a transformer block, by name, for any architecture.

    h^l = h^{l-1} + A^l + F^l,   F^l = fc2 m^l (+ bias)        (ACE, Eq. 1 and 3)

Reading and replacing is nnsight's work; this file only says which module's input or output each letter is. The pass stops after the
last state asked for, and only the logits asked for are computed.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Callable, Iterable, Iterator, Mapping, NamedTuple

import torch
from torch import Tensor

from .lm import LM

#: What there is to see in a block, in the order in which a forward pass comes by.
KINDS = ("in", "heads", "attn", "key", "mlp", "out")


class Site(NamedTuple):
    """A state of one layer (p positions).

    kind: "in" h^{l-1} (b, p, d); "heads" the input of attention's output projection (b, p, n_heads d_head); "attn" A^l (b, p, d);
    "key" m^l, the input of fc2 (b, p, m); "mlp" F^l with its bias (b, p, d); "out" h^l (b, p, d).
    """

    kind: str
    layer: int


def positions(mask: Tensor) -> Tensor:
    """Position ids (b, p) of a batch padded on any side: the first real token of each row is at 0.   mask: (b, p), 1 for tokens."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def last(mask: Tensor) -> Tensor:
    """Column of each row's last token, (b,), whatever the padding.   mask: (b, p)."""
    return mask.shape[1] - 1 - mask.flip(1).argmax(1)


def trace(
    lm: LM,
    ids: Tensor,
    mask: Tensor,
    sites: Iterable[Site] = (),
    patches: Mapping[Site, Callable[[Tensor], Tensor]] | None = None,
    logits: str | None = None,
    at: Tensor | None = None,
) -> dict[Site, Tensor]:
    """The states at ``sites`` in one forward pass, some of them replaced on the way.

    ids, mask: (b, p), padded on any side.   patches: for a site, a function from its state (b, p, .) to the state to go on with;
    a site both patched and read gives the new state.   logits: None, "last" (at each row's last token) or "all".
    at: a column of each row (b,): only there are states kept.
    Returns {site: (b, p, .)}, or (b, .) if ``at`` is given; the logits, (b, v) or (b, p, v), are under ``Site("logits", lm.n_layers)``.
    Raises ValueError for an unknown kind, a layer the model does not have, or another ``logits``.
    """
    patches, sites = dict(patches or {}), set(sites)
    if logits not in (None, "last", "all"):
        raise ValueError(f"logits {logits!r} is unknown; allowed: None, 'last', 'all'")
    for site in {*sites, *patches}:
        if site.kind not in KINDS:
            raise ValueError(f"site kind {site.kind!r} is unknown; allowed: {', '.join(KINDS)}")
        lm.layers([site.layer])
    states = {}
    with lm.traced.trace(
        input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False
    ) as tracer:
        for site in sorted({*sites, *patches}, key=lambda s: (s.layer, KINDS.index(s.kind))):
            module, port = _port(lm, site)
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
            states["hidden"] = lm.traced.output.last_hidden_state
    if logits:
        hidden = states.pop("hidden")
        states[Site("logits", lm.n_layers)] = lm.head(
            hidden if logits == "all" else hidden[range(len(ids)), last(mask)]
        )
    return states


def _port(lm: LM, site: Site):
    """The traced module of a site, and which end of it: "input" or "output"."""
    family = lm.family
    block = getattr(lm.traced, family.layers)[site.layer]
    attn, mlp = getattr(block, family.attn), getattr(block, family.mlp)
    return {
        "in": (block, "input"),
        "heads": (getattr(attn, family.attn_out), "input"),
        "attn": (attn, "output"),
        "key": (getattr(mlp, family.fc2), "input"),
        "mlp": (mlp, "output"),
        "out": (block, "output"),
    }[site.kind]


@contextmanager
def reading(lm: LM, sites: Iterable[tuple[str, int]]) -> Iterator[dict[tuple[str, int], Tensor]]:
    """Fill a dict with activations (b, p, .) of the forward inside: "in", "out" of a block, "attn", "mlp" output, "key" (fc2's input)."""
    values, hooks = {}, []
    where = {
        "in": lambda i: lm.blocks[i],
        "out": lambda i: lm.blocks[i],
        "attn": lm.attn,
        "mlp": lm.mlp,
        "key": lm.fc2,
    }
    try:
        for site in sites:
            kind, layer = site
            if kind in ("in", "key"):
                hooks.append(
                    where[kind](layer).register_forward_pre_hook(
                        lambda _, args, site=site: values.__setitem__(site, args[0])
                    )
                )
            else:
                hooks.append(
                    where[kind](layer).register_forward_hook(
                        lambda _, args, out, site=site: values.__setitem__(
                            site, out[0] if isinstance(out, tuple) else out
                        )
                    )
                )
        yield values
    finally:
        for hook in hooks:
            hook.remove()


def chunked(function: Callable[[range], object], n: int, size: int) -> list:
    """``function`` of consecutive index ranges that cover ``range(n)``, at most ``size`` long; out of memory halves it and retries."""
    start, results = 0, []
    while start < n:
        try:
            results.append(function(range(start, min(start + size, n))))
            start += size
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = max(1, min(size, n - start) // 2)
    return results
