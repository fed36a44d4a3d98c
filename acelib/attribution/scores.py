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
chunks, and no vocabulary-sized row outlives its chunk. At a small vocabulary nothing is
approximated; at a large one neurons' scores are within a tolerance that ``normaliser`` proves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..model.lm import LM, oriented
from ..model.states import Site, last, trace
from .normaliser import Bounded, bounded_gain, head_of
from .reader import Reader, Targets, dot, gain

PARTS = ("ffn", "attn", "heads")
PLAIN = 8192  #: tokens of a vocabulary up to which every score is computed exactly
TOLERANCE = 1e-3  #: of a score at a larger one, nats

Ids = Int[Tensor, "batch pos"]


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
    tolerance: float = TOLERANCE,
) -> Float[Tensor, "batch layers units"]:
    """I(v) of every neuron of every layer, as if it alone were added to the residual stream, nats.

    ids, mask: padded on any side.   targets: token w of each row.
    of: whose units, "ffn", the d_mlp FFN neurons; "attn", the n_heads d_head columns of attention's
    output projection times their coefficients; "heads", their sums by head.
    norm: "frozen" or "exact" final norm.
    budget: numbers held at a time for the vocabulary, which bounds the memory.
    tolerance: how far a neuron's score may be from the exact one where the vocabulary is larger
    than ``PLAIN`` tokens, nats; 0 is exact at every vocabulary, and slow at a large one.
    Raises ValueError for an unknown choice or target, or a tolerance below 0.
    Source: ACE, Eq. 9; Yu & Ananiadou (2023).
    """
    return _scores(lm, ids, mask, targets, of, norm, False, _needed(lm, tolerance), budget).scores


@torch.no_grad()
def bounded_scores(
    lm: LM,
    ids: Ids,
    mask: Ids,
    targets: Sequence[int] | Targets,
    of: str = "ffn",
    norm: str = "frozen",
    tolerance: float = TOLERANCE,
    budget: int = 2**22,
) -> Bounded:
    """``value_scores`` within ``tolerance`` at any vocabulary, with proven bounds of their errors.

    Returns scores and errors, (b, l, units) each, nats. A sum of scores is off by at most the sum
    of their errors. Heads, which are few, are exact.
    Raises ValueError for an unknown choice or target, or a tolerance below 0.
    Source: ACE, Eq. 9; the bound: ``attribution.normaliser``.
    """
    return _scores(lm, ids, mask, targets, of, norm, False, tolerance, budget)


@torch.no_grad()
def layer_scores(  # noqa: PLR0913 - as ``value_scores``
    lm: LM,
    ids: Ids,
    mask: Ids,
    targets: Sequence[int] | Targets,
    of: str = "ffn",
    reading: str = "sum",
    norm: str = "frozen",
    budget: int = 2**22,
    tolerance: float = TOLERANCE,
) -> Float[Tensor, "batch layers"]:
    """I(l) of every layer, nats.

    reading: the "sum" of its neurons' scores (Table 1), or the score of its "whole" output, bias
    included (Fig. 3).   of: "ffn" or "attn" (or "heads": their sum); the rest as in
    ``value_scores``, ``tolerance`` of each neuron.
    Raises ValueError as ``value_scores``. Source: ACE, Eq. 9.
    """
    if reading not in ("sum", "whole"):
        raise ValueError(f"reading {reading!r} is unknown; allowed: 'sum', 'whole'")
    within, whole = _needed(lm, tolerance), reading == "whole"
    return _scores(lm, ids, mask, targets, of, norm, whole, within, budget).scores.sum(-1)


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
        scores.append(amounts * dot(seen, vectors))
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


# ---------------------------------------------------------------------- the change of log p(w)


def _needed(lm: LM, tolerance: float) -> float:
    """The tolerance, 0 where the vocabulary is small."""
    return tolerance if len(lm.head.weight) > PLAIN else min(tolerance, 0.0)


def _scores(  # noqa: PLR0913 - as ``value_scores``
    lm: LM,
    ids: Ids,
    mask: Ids,
    targets: Sequence[int] | Targets,
    of: str,
    norm: str,
    whole: bool,
    tolerance: float,
    budget: int,
) -> Bounded:
    """Scores within ``tolerance``, or with ``whole`` those of whole outputs, one unit, exactly."""
    tokens = torch.as_tensor(targets, device=lm.device)
    vocabulary, rows = len(lm.head.weight), len(ids)
    if norm not in ("frozen", "exact"):
        raise ValueError(f"norm {norm!r} is unknown; allowed: 'frozen', 'exact'")
    if tokens.shape != (rows,) or not bool(((tokens >= 0) & (tokens < vocabulary)).all()):
        raise ValueError(
            f"targets {tokens.tolist()} do not fit; give one token for each of the {rows} "
            f"prompts, 0 to {vocabulary - 1}"
        )
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; it is 0 (exact) or positive, in nats")
    states = states_at_last(lm, ids, mask, of, whole)
    reader = Reader(lm, None if norm == "exact" else states["out", lm.n_layers - 1])
    if tolerance and not whole and of != "heads":
        return _bounded(lm, states, reader, tokens, of, tolerance, budget)
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
    scores = torch.stack(layers, 1)
    return Bounded(scores, torch.zeros_like(scores))


def _bounded(
    lm: LM,
    states: Mapping[tuple[str, int], Float[Tensor, "batch d"]],
    reader: Reader,
    targets: Targets,
    of: str,
    tolerance: float,
    budget: int,
) -> Bounded:
    """Scores of the neurons of all layers within ``tolerance``."""
    head, parts = head_of(reader), []
    at_once = max(1, budget // (len(targets) * len(head.rows)))
    for layers in torch.arange(lm.n_layers).split(at_once):
        # The states of several layers go through the head in one product.
        added = [addends(lm, states, layer, of, False) for layer in layers.tolist()]
        places = reader.place(torch.stack([h for h, _, _ in added]))
        pushed = [(amounts, vectors) for _, amounts, vectors in added]
        parts.append(bounded_gain(reader, head, places, pushed, targets, tolerance, budget))
    return Bounded(*(torch.cat(part, 1) for part in zip(*parts, strict=True)))


def _count(n: int) -> int:
    if n < 1:
        raise ValueError(f"{n} neurons asked for; give at least 1")
    return n
