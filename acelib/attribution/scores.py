"""Which neurons, heads and layers say the answer (value scores), and which earlier ones switch those on (query scores).

    I(v) = log p(w | h + v) - log p(w | h)                        v = m_k fc2_k                          (ACE, Eq. 9)
    Q(l', j) = sum over top (l, k), l > l', of I(l, k) (v_j . fc1_k)      v_j = m_j fc2_j of layer l'    (ACE, Eq. 10)

w is the first token of the answer, all at the last token of the prompt. h is what the residual stream holds before v is added:
h^{l-1} + A^l for the FFN, h^{l-1} for attention. p(. | h) = softmax(head(N(h))) is read through the final norm N in one of two ways:
"frozen" keeps N's scale (and mean) at their values for the true last hidden state, so that logits are linear in v; "exact" norms h + v.
Either way the change of the logits by m_k fc2_k is a multiple of one vector a neuron, fixed by the weights, plus a multiple of
one vector a prompt: neurons are done in chunks, no vocabulary-sized row outlives its chunk, and nothing is approximated.
"""

from __future__ import annotations

from typing import NamedTuple, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from ..model.lm import LM, oriented
from ..model.states import Site, last, trace

PARTS = ("ffn", "attn", "heads")


class Neuron(NamedTuple):
    """One neuron (or head): its layer, its index there, its score."""

    layer: int
    index: int
    score: float = 0.0


@torch.no_grad()
def value_scores(
    lm: LM,
    ids: Tensor,
    mask: Tensor,
    targets: Sequence[int] | Tensor,
    of: str = "ffn",
    norm: str = "frozen",
    budget: int = 2**22,
) -> Tensor:
    """I(v) of every neuron of every layer, as if it alone were added to the residual stream.

    ids, mask: (b, p), padded on any side.   targets: token w of each row (b,).   of: "ffn", the m FFN neurons; "attn", the columns of
    attention's output projection times their coefficients; "heads", their sums by head.   norm: "frozen" or "exact" final norm.
    budget: numbers held at a time for the vocabulary, which bounds the memory.
    Returns (b, l, m), (b, l, n_heads d_head) or (b, l, n_heads), nats. Raises ValueError for an unknown choice or target.
    Source: ACE, Eq. 9; Yu & Ananiadou (2023).
    """
    return _scores(lm, ids, mask, targets, of, norm, False, budget)


@torch.no_grad()
def layer_scores(
    lm: LM,
    ids: Tensor,
    mask: Tensor,
    targets: Sequence[int] | Tensor,
    of: str = "ffn",
    reading: str = "sum",
    norm: str = "frozen",
    budget: int = 2**22,
) -> Tensor:
    """I(l) of every layer: the "sum" of its neurons' scores (Table 1), or the score of its "whole" output, bias included (Fig. 3).

    of: "ffn" or "attn" (or "heads": their sum); the rest as in ``value_scores``.
    Returns (b, l), nats. Raises ValueError for an unknown choice or target. Source: ACE, Eq. 9.
    """
    if reading not in ("sum", "whole"):
        raise ValueError(f"reading {reading!r} is unknown; allowed: 'sum', 'whole'")
    return _scores(lm, ids, mask, targets, of, norm, reading == "whole", budget).sum(-1)


@torch.no_grad()
def query_scores(
    lm: LM,
    ids: Tensor,
    mask: Tensor,
    values: Tensor,
    n: int = 100,
    row: str = "gate",
    of: str = "ffn",
) -> Tensor:
    """Q of every neuron: its output's inner product with the keys of each prompt's top value neurons in later layers, weighted by their I.

    Only the direct path counts (no attention or norm in between, but the norm's gain is in the key; a LayerNorm's centring is not).
    Attention comes before the FFN of its own layer, so "later" includes that FFN, except where both read the same input (GPT-J).
    values: (b, l, m), FFN value scores of the same prompts.   n: value neurons a prompt.   row: key of a gated neuron, "gate" or "up".
    of: whose outputs, "ffn", "attn" or "heads".
    Returns (b, l, m), (b, l, n_heads d_head) or (b, l, n_heads). Raises ValueError for an unknown choice or values of another shape.
    Source: ACE, Eq. 10.
    """
    if values.shape != (len(ids), lm.n_layers, lm.d_mlp):
        raise ValueError(
            f"values are {tuple(values.shape)}; give FFN value scores of these prompts, {(len(ids), lm.n_layers, lm.d_mlp)}"
        )
    states, kept = states_at_last(lm, ids, mask, of, False), top(values, n).to(lm.dtype)
    same = of != "ffn" and not lm.family.parallel
    later, scores = (
        torch.zeros(len(ids), lm.d_model, dtype=lm.dtype, device=lm.device),
        [],
    )  # sum of I(l, k) fc1_k over later layers
    for layer in reversed(range(lm.n_layers)):
        toward = kept[:, layer] @ lm.subkeys(layer, row)
        _, amounts, vectors = addends(lm, states, layer, of, False)
        seen = later + toward if same else later
        scores.append(amounts * _dot(seen, vectors))
        later = later + toward
    return torch.stack(scores[::-1], 1)


def top(scores: Tensor, n: int) -> Tensor:
    """Scores (..., l, m) with all but the n greatest of each (l, m) set to zero; of equal ones the first stay."""
    flat = scores.flatten(-2)
    chosen = flat.sort(descending=True, stable=True).indices[..., : _count(n)]
    return torch.zeros_like(flat).scatter(-1, chosen, flat.gather(-1, chosen)).view_as(scores)


def top_neurons(scores: Tensor, n: int) -> list[Neuron]:
    """The n neurons of greatest score, best first; equal ones in the order of layer and index.   scores: (l, m)."""
    value, place = scores.flatten().sort(descending=True, stable=True)
    return [
        Neuron(*divmod(i, scores.shape[1]), v)
        for i, v in zip(place[: _count(n)].tolist(), value[:n].tolist())
    ]


def layer_mass(scores: Tensor, n: int | None = None) -> Tensor:
    """Score of each layer, (..., l): the sum over its neurons, or over those among the n greatest.   scores: (..., l, m)."""
    return (scores if n is None else top(scores, n)).sum(-1)


def first_tokens(lm: LM, answers: Sequence[str]) -> Tensor:
    """First token of each answer as a continuation, (b,): the w of Eq. 9. Raises ValueError if an answer is empty."""
    return torch.tensor([lm.answer_ids(answer)[0] for answer in answers], device=lm.device)


# ---------------------------------------------------------------------- what is added to the residual stream, and to what


def states_at_last(lm: LM, ids: Tensor, mask: Tensor, of: str, whole: bool) -> dict[Site, Tensor]:
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
    lm: LM, states: dict[Site, Tensor], layer: int, of: str, whole: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What a part adds to the residual stream: h (b, d), amounts (b, k), vectors (k, d) shared by all rows or (b, k, d) of each row."""
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


def _dot(h: Tensor, vectors: Tensor) -> Tensor:
    """Inner products (b, k) of h (b, d) with vectors (k, d) or (b, k, d)."""
    return h @ vectors.T if vectors.ndim == 2 else (vectors @ h[..., None])[..., 0]


# ---------------------------------------------------------------------- reading them through the final norm and the head


def _scores(
    lm: LM, ids: Tensor, mask: Tensor, targets, of: str, norm: str, whole: bool, budget: int
) -> Tensor:
    """``value_scores``, or with ``whole`` the scores (b, l, 1) of whole outputs."""
    targets = torch.as_tensor(targets, device=lm.device)
    vocabulary, rows = len(lm.head.weight), len(ids)
    if norm not in ("frozen", "exact"):
        raise ValueError(f"norm {norm!r} is unknown; allowed: 'frozen', 'exact'")
    if targets.shape != (rows,) or not bool(((targets >= 0) & (targets < vocabulary)).all()):
        raise ValueError(
            f"targets {targets.tolist()} do not fit; give one token for each of the {rows} prompts, 0 to {vocabulary - 1}"
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
                    gain(place[-1], reader.change(place, a, v), targets)
                    for a, v in zip(amounts.split(chunk, 1), vectors.split(chunk, -2))
                ],
                1,
            )
        )
    return torch.stack(layers, 1)


class Reader:
    """The final norm and the head. N(h) = gain (h - mean) / scale + bias, with mean and scale of ``final``, or of h if it is None."""

    def __init__(self, lm: LM, final: Tensor | None):
        self.lm, self.gain, shift = lm, lm.norm.weight, getattr(lm.norm, "bias", None)
        self.layer_norm = isinstance(lm.norm, nn.LayerNorm)
        self.head = lm.head.weight
        bias, self.bias = (
            getattr(lm.head, "bias", None),
            0.0 if shift is None else self.head @ shift,
        )
        if bias is not None:
            self.bias = self.bias + bias
        self.exact = final is None
        self.mean, self.scale = (None, None) if self.exact else lm.norm_moments(lm.norm, final)

    def place(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where h (b, d) stands: h - mean, scale (b, 1), its logits before scaling, its logits (b, v)."""
        mean, scale = self.mean, self.scale
        if self.exact:
            mean, scale = self.lm.norm_moments(self.lm.norm, h)
        raw = ((h - mean) * self.gain) @ self.head.T
        return h - mean, scale, raw, raw / scale + self.bias

    def change(self, place: tuple[Tensor, ...], amounts: Tensor, vectors: Tensor) -> Tensor:
        """Change of the logits, (b, k, v), by amount * vector added to h, without ever taking the difference of two near numbers."""
        h, scale, raw, _ = place
        if not self.exact:
            return (amounts / scale)[..., None] * ((vectors * self.gain) @ self.head.T)
        if self.layer_norm:
            vectors = vectors - vectors.mean(-1, keepdim=True)
        grown = (
            2 * amounts * _dot(h, vectors) + amounts.square() * vectors.square().sum(-1)
        ) / h.shape[-1]  # new scale^2 - scale^2
        new = (scale.square() + grown).sqrt()
        shrink = -grown / (scale * new * (scale + new))  # 1 / new - 1 / scale
        out = (amounts / new)[..., None] * ((vectors * self.gain) @ self.head.T)
        return out.add_(shrink[..., None] * raw[:, None])


def gain(logits: Tensor, change: Tensor, targets: Tensor) -> Tensor:
    """log p(w) after minus log p(w) before a change of the logits, (b, k); exact to rounding also where it is tiny.

    log p_w(after) - log p_w(before) = c_w - log(1 + sum_j p_j (e^{c_j} - 1)); where the sum is not small, two log-softmaxes instead.
    logits: (b, v).   change c: (b, k, v).   targets w: (b,).
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
