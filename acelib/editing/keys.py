"""What is asked of an editor at the level of tokens: requests, the prefixes they are read with, their keys and current values.

The lookup token (the subject's last, or the prompt's last) is brought to one column for a whole batch, so that everything before it is
shared work and everything after it can be cut off: a causal model's key cannot depend on it. Nothing here touches a weight.
Source of keys, prefixes and their weights: MEMIT (Section 4.3, and its released code).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Sequence

import torch
from torch import Tensor

from ..model.lm import LM
from ..model.states import chunked, position_ids, read
from ..model.update import Update, overlaid
from .request import Request

OPENERS = ("The", "Therefore", "Because", "I", "You")


# ---------------------------------------------------------------------- prefixes


def contexts(lm: LM, n: int, length: int = 10, seed: int = 0) -> tuple[str, ...]:
    """Texts to put before a prompt, so that a key is not tied to one beginning: "" and ``n`` texts sampled from the model.

    length: tokens each, opener included.   seed: of the sampling (top 5 tokens, temperature 1).
    Returns: n + 1 strings, the first empty.
    Source: MEMIT's released code.
    """
    generator, texts = torch.Generator().manual_seed(seed), [""]
    for i in range(n):
        ids = lm.tokenizer(OPENERS[i % len(OPENERS)])["input_ids"]
        with torch.no_grad():
            while len(ids) < length:
                hidden = lm.stack(
                    torch.tensor([ids], device=lm.device), use_cache=False
                ).last_hidden_state[0, -1:]
                top = lm.head(hidden)[0].double().cpu().topk(5)
                ids = ids + [
                    int(
                        top.indices[
                            torch.multinomial(top.values.softmax(0), 1, generator=generator)
                        ]
                    )
                ]
        text = lm.tokenizer.decode(ids, skip_special_tokens=True)
        texts.append(" ".join(text.replace("{", " ").replace("}", " ").split()) + ". ")
    return tuple(texts)


def prefix_weights(lm: LM, prefixes: Sequence[str]) -> Tensor:
    """Weights of the prefixes in a mean key, (len(prefixes),): 1/2 bare, the rest shares 1/2. Raises ValueError if "" is not first."""
    if not len(prefixes) or prefixes[0] != "":
        raise ValueError(f"prefixes {tuple(prefixes)!r} must begin with the empty one")
    others = len(prefixes) - 1
    share = [0.5] + [0.5 / others] * others if others else [1.0]
    return torch.tensor(share, dtype=torch.promote_types(lm.dtype, torch.float32), device=lm.device)


# ---------------------------------------------------------------------- batches with one lookup column


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of tokens whose lookup tokens all stand in column ``at``: padded on the left before it, on the right after it."""

    ids: Tensor  #: (b, p)
    mask: Tensor  #: (b, p)
    at: int

    def inputs(
        self, columns: slice = slice(None), rows: Sequence[int] | slice | Tensor = slice(None)
    ) -> dict[str, Tensor]:
        """Keyword arguments of a forward over ``columns``: the mask up to their end, the positions of a row's real tokens."""
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
    """What ``overlaid`` needs for rows of these groups: ``updates`` has one entry a group, None means an unedited model."""
    return [None] if updates is None else [updates[g] for g in groups]


# ---------------------------------------------------------------------- walking up the stack, row by row


class Walk:
    """The rows of some requests (times prefixes), cut after the lookup token, standing at the input of one layer and moving up.

    A row's hidden states below the layers that change are computed once: ``climb`` goes from where the rows stand to a later layer.
    """

    def __init__(
        self, lm: LM, given: Sequence[Request], prefixes: Sequence[str] = ("",), rows: int = 1024
    ):
        self.lm, self.rows, self.per = lm, rows, len(prefixes)
        self.groups = [r.group for r in given for _ in prefixes]
        cut = (
            tokens(lm, prefix + r.prompt, len(prefix) + r.end) for r in given for prefix in prefixes
        )
        self.batch = aligned(lm, [(ids[: index + 1], index) for ids, index in cut])
        self.layer, self.hidden = 0, None  # None: the tokens themselves

    def climb(self, layer: int, updates: Sequence[Update | None] | None = None) -> Tensor:
        """Move every row to the input of ``layer``. Returns its keys there, (b, m)."""
        done = self._run(range(len(self.groups)), layer, [("in", layer), ("key", layer)], updates)
        if layer:  # at layer 0 the rows stay tokens: their input holds the positions already, and must not get them twice
            self.layer, self.hidden = layer, done["in", layer]
        return done["key", layer][:, -1]

    def look(self, layer: int, kind: str, updates: Sequence[Update | None] | None = None) -> Tensor:
        """The activation "out" or "mlp" of ``layer`` at the lookup token of every bare row, (n, d); nobody moves."""
        return self._run(range(0, len(self.groups), self.per), layer, [(kind, layer)], updates)[
            kind, layer
        ][:, -1]

    @torch.no_grad()
    def _run(self, chosen: range, last: int, sites: list, updates) -> dict:
        part = self.lm.between(self.layer, last)

        def forward(piece: range) -> dict:
            rows = [chosen[i] for i in piece]
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

        pieces = chunked(forward, len(chosen), self.rows)
        return {site: torch.cat([piece[site] for piece in pieces]) for site in sites}


def keys_at(
    lm: LM,
    given: Sequence[Request],
    layer: int,
    prefixes: Sequence[str] = ("",),
    updates: Sequence[Update | None] | None = None,
) -> Tensor:
    """Keys of the requests: the input of fc2 at the lookup token, mean over prefixes (1/2 bare, 1/2 the others).

    updates: one for each group: the model as edited so far.
    Returns: K (m, n), in the unit of FFN activations.   Raises ValueError for a layer that does not exist.
    Source: MEMIT Eq. 19.
    """
    lm.layers([layer])
    return mean_key(Walk(lm, given, prefixes).climb(layer, updates), prefix_weights(lm, prefixes))


def mean_key(keys: Tensor, weights: Tensor) -> Tensor:
    """Keys of all rows (n * n_prefixes, m), request by request -> weighted mean (m, n)."""
    return torch.einsum(
        "npm,p->mn", keys.unflatten(0, (-1, len(weights))).to(weights.dtype), weights
    )


def values_at(
    lm: LM,
    given: Sequence[Request],
    layer: int,
    kind: str = "out",
    updates: Sequence[Update | None] | None = None,
) -> Tensor:
    """Current output of a block ("out") or of its FFN ("mlp") at the lookup token of the bare prompts.

    Returns: (d, n), in the unit of the residual stream.   Raises ValueError for an unknown kind or layer.
    """
    if kind not in ("out", "mlp"):
        raise ValueError(f"kind {kind!r} is unknown; allowed: 'out', 'mlp'")
    lm.layers([layer])
    return Walk(lm, given).look(layer, kind, updates).T
