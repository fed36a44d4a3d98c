"""Requests at the level of tokens: the prefixes they are read with, their keys, current values.

The lookup token (the subject's last, or the prompt's last) is brought to one column for a whole
batch, so that everything before it is shared work and everything after it can be cut off: a causal
model's key cannot depend on it. Nothing here touches a weight.
Source of keys, prefixes and their weights: MEMIT (Section 4.3, and its released code).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..model.lm import LM
from ..model.states import Site, State, chunked, position_ids, read
from ..model.update import Update, overlaid
from .request import Request

#: MEMIT's; the released ROME begins with the token that ends a text instead.
OPENERS = ("The", "Therefore", "Because", "I", "You")


# ---------------------------------------------------------------------- prefixes


def contexts(lm: LM, n: int, length: int = 10, seed: int = 0) -> tuple[str, ...]:
    """Texts to put before a prompt: "" and ``n`` sampled from the model.

    With several beginnings a key is not tied to one.
    length: tokens each, opener included.   seed: of the sampling (top 5 tokens, temperature 1).
    Returns: n + 1 strings, the first empty.
    Source: MEMIT's released code.
    """
    generator, texts = torch.Generator().manual_seed(seed), [""]
    for i in range(n):
        ids = lm.tokenizer(OPENERS[i % len(OPENERS)])["input_ids"]
        with torch.no_grad():
            while len(ids) < length:
                batch = torch.tensor([ids], device=lm.device)
                hidden = lm.stack(batch, use_cache=False).last_hidden_state[0, -1:]
                top = lm.head(hidden)[0].double().cpu().topk(5)
                place = torch.multinomial(top.values.softmax(0), 1, generator=generator)
                ids = [*ids, int(top.indices[place])]
        text = cast(str, lm.tokenizer.decode(ids, skip_special_tokens=True))
        texts.append(" ".join(text.replace("{", " ").replace("}", " ").split()) + ". ")
    return tuple(texts)


def prefix_weights(lm: LM, prefixes: Sequence[str]) -> Float[Tensor, " prefixes"]:
    """Weights of the prefixes in a mean key: 1/2 for the bare prompt, the rest shares 1/2.

    Raises ValueError if "" is not first.
    """
    if not len(prefixes) or prefixes[0] != "":
        raise ValueError(f"prefixes {tuple(prefixes)!r} must begin with the empty one")
    others = len(prefixes) - 1
    share = [0.5] + [0.5 / others] * others if others else [1.0]
    return torch.tensor(share, dtype=torch.promote_types(lm.dtype, torch.float32), device=lm.device)


# ---------------------------------------------------------------------- one lookup column


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of tokens whose lookup tokens all stand in column ``at``.

    Padded on the left before it, on the right after it.
    """

    ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    at: int

    def inputs(
        self, columns: slice = slice(None), rows: Sequence[int] | slice | Tensor = slice(None)
    ) -> dict[str, Int[Tensor, "rows columns"]]:
        """Keyword arguments of a forward over ``columns``: mask up to their end, position ids."""
        mask = self.mask[rows]
        positions = position_ids(mask)[:, columns]
        return dict(attention_mask=mask[:, : columns.stop], position_ids=positions)


def tokens(lm: LM, text: str, end: int) -> tuple[list[int], int]:
    """Token ids of ``text`` and the index of the token that holds the character before ``end``."""
    return lm.tokenizer(text)["input_ids"], lm.token_at(text, end)


def aligned(lm: LM, rows: Sequence[tuple[Sequence[int], int]]) -> Batch:
    """One batch from (token ids, lookup index) pairs."""
    at = max(index for _, index in rows)
    left = [[lm.tokenizer.pad_token_id] * (at - index) + list(ids) for ids, index in rows]
    ids, mask = lm.pad(left)
    for i, (_, index) in enumerate(rows):
        mask[i, : at - index] = 0
    return Batch(ids, mask, at)


def overlay_of(
    updates: Sequence[Update | None] | None, groups: Iterable[int]
) -> list[Update | None]:
    """What ``overlaid`` needs for rows of these groups.

    updates: one for each group; None means an unedited model.
    """
    return [None] if updates is None else [updates[g] for g in groups]


# ---------------------------------------------------------------------- up the stack


class Walk:
    """Requests (times prefixes), cut after the lookup token: rows at one layer's input, moving up.

    A row's hidden states below the layers that change are computed once: ``climb`` goes from where
    the rows stand to a later layer.
    """

    def __init__(
        self, lm: LM, requests: Sequence[Request], prefixes: Sequence[str] = ("",), rows: int = 1024
    ):
        self.lm, self.rows, self.per = lm, rows, len(prefixes)
        self.groups = [r.group for r in requests for _ in prefixes]
        cut = (
            tokens(lm, prefix + r.prompt, len(prefix) + r.end)
            for r in requests
            for prefix in prefixes
        )
        self.batch = aligned(lm, [(ids[: index + 1], index) for ids, index in cut])
        self.layer = 0
        self.hidden: Float[Tensor, "rows pos d_model"] | None = None  # None: the tokens themselves

    def climb(
        self, layer: int, updates: Sequence[Update | None] | None = None, kind: str = "key"
    ) -> Float[Tensor, "rows d_in"]:
        """Move every row to the input of ``layer``. Returns its keys there, of the FFN ("key") or
        of attention's output projection ("heads").
        """
        sites = [Site("in", layer), Site(kind, layer)]
        states = self._run(range(len(self.groups)), layer, sites, updates)
        if layer:  # layer 0's input holds the positions and must not get them twice: tokens stay
            self.layer, self.hidden = layer, states["in", layer]
        return states[kind, layer][:, -1]

    def look(
        self, layer: int, kind: str, updates: Sequence[Update | None] | None = None
    ) -> Float[Tensor, "n d_model"]:
        """The state "out", "mlp" or "attn" of ``layer`` at every bare prompt's lookup token; none
        moves.
        """
        bare = range(0, len(self.groups), self.per)
        return self._run(bare, layer, [Site(kind, layer)], updates)[kind, layer][:, -1]

    @torch.no_grad()
    def _run(
        self, every: range, last: int, sites: list[Site], updates: Sequence[Update | None] | None
    ) -> dict[tuple[str, int], State]:
        """The states at ``sites`` of the rows ``every``, from where they stand up to ``last``."""
        part = self.lm.between(self.layer, last)

        def forward(piece: range) -> dict[tuple[str, int], State]:
            rows = [every[i] for i in piece]
            start = (
                dict(input_ids=self.batch.ids[rows])
                if self.hidden is None
                else dict(inputs_embeds=self.hidden[rows])
            )
            with (
                overlaid(self.lm, overlay_of(updates, [self.groups[i] for i in rows])),
                read(self.lm, sites) as values,
            ):
                part(**start, **self.batch.inputs(rows=rows), use_cache=False)
            return {site: v if site[0] == "in" else v[:, -1:].clone() for site, v in values.items()}

        pieces = chunked(forward, len(every), self.rows)
        return {site: torch.cat([piece[site] for piece in pieces]) for site in sites}


def keys_at(
    lm: LM,
    requests: Sequence[Request],
    layer: int,
    prefixes: Sequence[str] = ("",),
    updates: Sequence[Update | None] | None = None,
) -> Float[Tensor, "d_mlp n"]:
    """Keys of the requests: the input of fc2 at the lookup token, mean over prefixes.

    updates: one for each group: the model as edited so far.
    Returns: K, in the unit of FFN activations.
    Raises ValueError for a layer that does not exist.   Source: MEMIT Eq. 19.
    """
    lm.layers([layer])
    keys = Walk(lm, requests, prefixes).climb(layer, updates)
    return mean_key(keys, prefix_weights(lm, prefixes))


def mean_key(
    keys: Float[Tensor, "rows d_in"], weights: Float[Tensor, " prefixes"]
) -> Float[Tensor, "d_in n"]:
    """Weighted means of keys, n * prefixes rows, request by request."""
    return torch.einsum(
        "npm,p->mn", keys.unflatten(0, (-1, len(weights))).to(weights.dtype), weights
    )


def values_at(
    lm: LM,
    requests: Sequence[Request],
    layer: int,
    kind: str = "out",
    updates: Sequence[Update | None] | None = None,
) -> Float[Tensor, "d_model n"]:
    """Output of a block ("out") or of its FFN ("mlp") at the lookup token of the bare prompts.

    In the unit of the residual stream.   Raises ValueError for an unknown kind or layer.
    """
    if kind not in ("out", "mlp"):
        raise ValueError(f"kind {kind!r} is unknown; allowed: 'out', 'mlp'")
    lm.layers([layer])
    return Walk(lm, requests).look(layer, kind, updates).T
