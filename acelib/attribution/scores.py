"""Which neurons, heads and layers say the answer, and which earlier ones switch those on.

Value scores, v = m_k fc2_k (ACE, Eq. 9), and query scores, v_j = m_j fc2_j of layer l' (Eq. 10):

    I(v) = log p(w | h + v) - log p(w | h)
    Q(l', j) = sum over top (l, k), l > l', of I(l, k) (v_j . fc1_k)

w is the first token of the answer, all at the last token of the prompt. h is what the residual
stream holds before v is added: h^{l-1} + A^l for the FFN, h^{l-1} for attention.
p(. | h) = softmax(head(N(h))) is read through the final norm N in one of two ways: "frozen" keeps
N's scale (and mean) at their values for the true last hidden state, so that logits are linear in v;
"exact" norms h + v. Either way the change of the logits by m_k fc2_k is a multiple of one vector
per neuron, fixed by the weights, plus a multiple of one vector per prompt: neurons are done in
chunks, no vocabulary-sized row outlives its chunk, and nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from ..model.lm import LM, oriented
from ..model.states import Site, last, trace

PARTS = ("ffn", "attn", "heads")

Ids = Int[Tensor, "batch pos"]
Targets = Int[Tensor, " batch"]


class Neuron(NamedTuple):
    """One neuron (or head): its layer, its number there, its score."""

    layer: int
    unit: int
    score: float = 0.0


@torch.no_grad()
def value_scores(
    lm: LM,
    ids: Ids,
    mask: Ids,
    targets: Sequence[int] | Targets,
    of: str = "ffn",
    norm: str = "frozen",
    budget: int = 2**22,
) -> Float[Tensor, "batch layers units"]:
    """I(v) of every neuron of every layer, as if it alone were added to the residual stream, nats.

    ids, mask: padded on any side.   targets: token w of each row.
    of: whose units, "ffn", the d_mlp FFN neurons; "attn", the n_heads d_head columns of attention's
    output projection times their coefficients; "heads", their sums by head.
    norm: "frozen" or "exact" final norm.
    budget: numbers held at a time for the vocabulary, which bounds the memory.
    Raises ValueError for an unknown choice or target.
    Source: ACE, Eq. 9; Yu & Ananiadou (2023).
    """
    return _scores(lm, ids, mask, targets, of, norm, False, budget)


@torch.no_grad()
def layer_scores(
    lm: LM,
    ids: Ids,
    mask: Ids,
    targets: Sequence[int] | Targets,
    of: str = "ffn",
    reading: str = "sum",
    norm: str = "frozen",
    budget: int = 2**22,
) -> Float[Tensor, "batch layers"]:
    """I(l) of every layer, nats.

    reading: the "sum" of its neurons' scores (Table 1), or the score of its "whole" output, bias
    included (Fig. 3).   of: "ffn" or "attn" (or "heads": their sum); the rest as in
    ``value_scores``.
    Raises ValueError for an unknown choice or target. Source: ACE, Eq. 9.
    """
    if reading not in ("sum", "whole"):
        raise ValueError(f"reading {reading!r} is unknown; allowed: 'sum', 'whole'")
    return _scores(lm, ids, mask, targets, of, norm, reading == "whole", budget).sum(-1)


@torch.no_grad()
def query_scores(
    lm: LM,
    ids: Ids,
    mask: Ids,
    values: Float[Tensor, "batch layers d_mlp"],
    n: int = 100,
    row: str = "gate",
    of: str = "ffn",
) -> Float[Tensor, "batch layers units"]:
    """Q of every neuron: how far its output points along the keys of later value neurons.

    The sum of its output's inner products with the keys of each prompt's top value neurons in later
    layers, weighted by their I. Only the direct path counts (no attention or norm in between, but
    the norm's gain is in the key; a LayerNorm's centring is not). Attention comes before the FFN of
    its own layer, so "later" includes that FFN, except where both read the same input (GPT-J).
    values: FFN value scores of the same prompts.   n: value neurons per prompt.
    row: key of a gated neuron, "gate" or "up".   of: whose outputs, as in ``value_scores``.
    Raises ValueError for an unknown choice or values of another shape.
    Source: ACE, Eq. 10.
    """
    if values.shape != (len(ids), lm.n_layers, lm.d_mlp):
        raise ValueError(
            f"values are {tuple(values.shape)}; give FFN value scores of these prompts, "
            f"{(len(ids), lm.n_layers, lm.d_mlp)}"
        )
    states, top_values = states_at_last(lm, ids, mask, of, False), top(values, n).to(lm.dtype)
    same = of != "ffn" and not lm.family.parallel
    # The sum of I(l, k) fc1_k over later layers.
    later = torch.zeros(len(ids), lm.d_model, dtype=lm.dtype, device=lm.device)
    scores = []
    for layer in reversed(range(lm.n_layers)):
        toward = top_values[:, layer] @ lm.subkeys(layer, row)
        _, amounts, vectors = addends(lm, states, layer, of, False)
        seen = later + toward if same else later
        scores.append(amounts * _dot(seen, vectors))
        later = later + toward
    return torch.stack(scores[::-1], 1)


def top(
    scores: Float[Tensor, "*batch layers units"], n: int
) -> Float[Tensor, "*batch layers units"]:
    """Scores with all but the n greatest of each row set to zero; of equal ones the first stay."""
    flat = scores.flatten(-2)
    best = flat.sort(descending=True, stable=True).indices[..., : _count(n)]
    return torch.zeros_like(flat).scatter(-1, best, flat.gather(-1, best)).view_as(scores)


def top_neurons(scores: Float[Tensor, "layers units"], n: int) -> list[Neuron]:
    """The n neurons of greatest score, best first; equal ones in the order of layer and index."""
    value, place = scores.flatten().sort(descending=True, stable=True)
    return [
        Neuron(i // scores.shape[1], i % scores.shape[1], v)
        for i, v in zip(place[: _count(n)].tolist(), value[:n].tolist(), strict=True)
    ]


def layer_mass(
    scores: Float[Tensor, "*batch layers units"], n: int | None = None
) -> Float[Tensor, "*batch layers"]:
    """Score of each layer: the sum over its neurons, or over those among the n greatest."""
    return (scores if n is None else top(scores, n)).sum(-1)


def first_tokens(lm: LM, answers: Sequence[str]) -> Targets:
    """First token of each answer as a continuation: the w of Eq. 9.

    Raises ValueError if an answer is empty.
    """
    return torch.tensor([lm.answer_ids(answer)[0] for answer in answers], device=lm.device)


# ---------------------------------------------------------------------- additions to the stream


def states_at_last(
    lm: LM, ids: Ids, mask: Ids, of: str, whole: bool
) -> dict[tuple[str, int], Float[Tensor, "batch d"]]:
    """All that the scores need of the forward pass, at the last token."""
    if of not in PARTS:
        raise ValueError(
            f"of {of!r} is not a part of a layer; allowed: {', '.join(map(repr, PARTS))}"
        )
    kinds = (
        ("in", "attn", "mlp" if whole else "key")
        if of == "ffn"
        else ("in", "attn" if whole else "heads")
    )
    sites = [Site(kind, layer) for layer in range(lm.n_layers) for kind in kinds] + [
        Site("out", lm.n_layers - 1)
    ]
    return trace(lm, ids, mask, sites, at=last(mask))


def addends(
    lm: LM,
    states: Mapping[tuple[str, int], Float[Tensor, "batch d"]],
    layer: int,
    of: str,
    whole: bool,
) -> tuple[
    Float[Tensor, "batch d_model"],
    Float[Tensor, "batch units"],
    Float[Tensor, "*rows units d_model"],
]:
    """What a part adds to the residual stream: h, amounts, and vectors (shared, or of each row)."""
    h = states["in", layer]
    if of == "ffn":
        h = h + states["attn", layer]
    if whole:
        output = states["mlp" if of == "ffn" else "attn", layer][:, None]
        return h, torch.ones_like(output[..., 0]), output
    if of == "ffn":
        return h, states["key", layer], lm.weight(layer).T
    amounts, columns = states["heads", layer], oriented(lm.attn_out(layer)).T
    if of == "attn":
        return h, amounts, columns
    heads = torch.einsum(
        "bhk,hkd->bhd",
        amounts.unflatten(-1, (lm.n_heads, -1)),
        columns.unflatten(0, (lm.n_heads, -1)),
    )
    return h, torch.ones_like(heads[..., 0]), heads


def _dot(
    h: Float[Tensor, "batch d_model"], vectors: Float[Tensor, "*rows units d_model"]
) -> Float[Tensor, "batch units"]:
    """Inner products of h with vectors, shared by all rows or each row's own."""
    return h @ vectors.T if vectors.ndim == 2 else (vectors @ h[..., None])[..., 0]


# ---------------------------------------------------------------------- the final norm and the head


def _scores(
    lm: LM,
    ids: Ids,
    mask: Ids,
    targets: Sequence[int] | Targets,
    of: str,
    norm: str,
    whole: bool,
    budget: int,
) -> Float[Tensor, "batch layers units"]:
    """``value_scores``, or with ``whole`` the scores of whole outputs, one unit."""
    tokens = torch.as_tensor(targets, device=lm.device)
    vocabulary, rows = len(lm.head.weight), len(ids)
    if norm not in ("frozen", "exact"):
        raise ValueError(f"norm {norm!r} is unknown; allowed: 'frozen', 'exact'")
    if tokens.shape != (rows,) or not bool(((tokens >= 0) & (tokens < vocabulary)).all()):
        raise ValueError(
            f"targets {tokens.tolist()} do not fit; give one token for each of the {rows} "
            f"prompts, 0 to {vocabulary - 1}"
        )
    states = states_at_last(lm, ids, mask, of, whole)
    reader = Reader(lm, None if norm == "exact" else states["out", lm.n_layers - 1])
    chunk = max(1, budget // (rows * vocabulary))
    layers = []
    for layer in range(lm.n_layers):
        h, amounts, vectors = addends(lm, states, layer, of, whole)
        place = reader.place(h)
        layers.append(
            torch.cat(
                [
                    gain(place.logits, reader.change(place, a, v), tokens)
                    for a, v in zip(amounts.split(chunk, 1), vectors.split(chunk, -2), strict=True)
                ],
                1,
            )
        )
    return torch.stack(layers, 1)


class Place(NamedTuple):
    """A state of the residual stream before the final norm, and its logits."""

    centred: Float[Tensor, "batch d_model"]  #: h - mean
    scale: Float[Tensor, "batch 1"]
    raw: Float[Tensor, "batch vocab"]  #: logits before scaling
    logits: Float[Tensor, "batch vocab"]


class Reader:
    """The final norm and the head.

    N(h) = gain (h - mean) / scale + bias, with mean and scale of ``final``, or of h if it is None.
    """

    def __init__(self, lm: LM, final: Float[Tensor, "batch d_model"] | None):
        self.lm, self.gain = lm, lm.norm.get_parameter("weight")
        self.layer_norm = isinstance(lm.norm, nn.LayerNorm)
        self.head, shift = lm.head.weight, getattr(lm.norm, "bias", None)
        self.bias: float | Tensor = 0.0
        if shift is not None:
            self.bias = self.head @ shift
        if lm.head.bias is not None:
            self.bias = self.bias + lm.head.bias
        #: mean and scale of ``final``; None: those of each state
        self.frozen = None if final is None else lm.norm_moments(lm.norm, final)

    def place(self, h: Float[Tensor, "batch d_model"]) -> Place:
        """Where h stands."""
        mean, scale = self.frozen or self.lm.norm_moments(self.lm.norm, h)
        raw = ((h - mean) * self.gain) @ self.head.T
        return Place(h - mean, scale, raw, raw / scale + self.bias)

    def change(
        self,
        place: Place,
        amounts: Float[Tensor, "batch units"],
        vectors: Float[Tensor, "*rows units d_model"],
    ) -> Float[Tensor, "batch units vocab"]:
        """Change of the logits by amount * vector added to h; no difference of near numbers."""
        h, scale, raw, _ = place
        if self.frozen:
            return (amounts / scale)[..., None] * ((vectors * self.gain) @ self.head.T)
        if self.layer_norm:
            vectors = vectors - vectors.mean(-1, keepdim=True)
        # grown = new scale^2 - scale^2
        grown = (
            2 * amounts * _dot(h, vectors) + amounts.square() * vectors.square().sum(-1)
        ) / h.shape[-1]
        new = (scale.square() + grown).sqrt()
        shrink = -grown / (scale * new * (scale + new))  # 1 / new - 1 / scale
        out = (amounts / new)[..., None] * ((vectors * self.gain) @ self.head.T)
        return out.add_(shrink[..., None] * raw[:, None])


def gain(
    logits: Float[Tensor, "batch vocab"],
    change: Float[Tensor, "batch units vocab"],
    targets: Targets,
) -> Float[Tensor, "batch units"]:
    """log p(w) after minus before a change of the logits, exact to rounding also where it is tiny.

    log p_w(after) - log p_w(before) = c_w - log(1 + sum_j p_j (e^{c_j} - 1)), c the change; where
    the sum is not small, two log-softmaxes instead.
    """
    rows = torch.arange(len(logits), device=logits.device)
    moved = (change.expm1() @ logits.softmax(-1)[..., None])[..., 0]
    score = change[rows, :, targets] - moved.log1p()
    row, k = (~(moved.abs() < 0.5)).nonzero(as_tuple=True)
    if len(row):
        old, new = log_softmax(logits[row], -1), log_softmax(logits[row] + change[row, k], -1)
        score[row, k] = (new - old).gather(-1, targets[row, None])[:, 0]
    return score


def _count(n: int) -> int:
    if n < 1:
        raise ValueError(f"{n} neurons asked for; give at least 1")
    return n
