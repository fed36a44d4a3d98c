"""The final norm and the head: what a state of the residual stream says, and how a push changes it.

N(h) = gain (h - mean) / scale + bias. "frozen" keeps mean and scale at their values for the true
last state, so that logits are linear in h; "exact" takes those of h itself. Either way a push
amount * vector changes the logits by E (a u + b g), with u = gain * vector, g = gain (h - mean),
E the head and two numbers a, b: one vector of the weights, and one of the prompt.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from ..model.lm import LM

Targets = Int[Tensor, " batch"]


class Place(NamedTuple):
    """A state of the residual stream before the final norm, and its logits."""

    centred: Float[Tensor, "*layers batch d_model"]  #: h - mean
    scale: Float[Tensor, "*layers batch 1"]
    raw: Float[Tensor, "*layers batch vocab"]  #: logits before scaling
    logits: Float[Tensor, "*layers batch vocab"]


class Reader:
    """The final norm and the head.

    Mean and scale are those of ``final``, or of h if it is None.
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

    def place(self, h: Float[Tensor, "*layers batch d_model"]) -> Place:
        """Where h stands."""
        mean, scale = self.frozen or self.lm.norm_moments(self.lm.norm, h)
        raw = ((h - mean) * self.gain) @ self.head.T
        return Place(h - mean, scale, raw, raw / scale + self.bias)

    def factors(
        self,
        place: Place,
        amounts: Float[Tensor, "batch units"],
        vectors: Float[Tensor, "*rows units d_model"],
    ) -> tuple[
        Float[Tensor, "batch units"],
        Float[Tensor, "batch units"] | None,
        Float[Tensor, "*rows units d_model"],
    ]:
        """a and b of the module's formula, b None where it is 0, and u before the norm's gain."""
        h, scale = place.centred, place.scale
        if self.frozen:
            return amounts / scale, None, vectors
        if self.layer_norm:
            vectors = vectors - vectors.mean(-1, keepdim=True)
        # grown = new scale^2 - scale^2
        grown = (
            2 * amounts * dot(h, vectors) + amounts.square() * vectors.square().sum(-1)
        ) / h.shape[-1]
        new = (scale.square() + grown).sqrt()
        shrink = -grown / (scale * new * (scale + new))  # 1 / new - 1 / scale
        return amounts / new, shrink, vectors

    def change(
        self,
        place: Place,
        amounts: Float[Tensor, "batch units"],
        vectors: Float[Tensor, "*rows units d_model"],
    ) -> Float[Tensor, "batch units vocab"]:
        """Change of the logits by amount * vector added to h; no difference of near numbers."""
        a, b, vectors = self.factors(place, amounts, vectors)
        out = a[..., None] * ((vectors * self.gain) @ self.head.T)
        return out if b is None else out.add_(b[..., None] * place.raw[:, None])


def gain(
    logits: Float[Tensor, "batch vocab"],
    change: Float[Tensor, "batch units vocab"],
    targets: Targets,
) -> Float[Tensor, "batch units"]:
    """log p(w) after minus before a change of the logits, exact to rounding also where it is tiny.

    log p_w(after) - log p_w(before) = c_w - log(1 + sum_j p_j (e^{c_j} - 1)), c the change; where
    the sum is not small, two log-softmaxes instead.
    """
    moved = (change.expm1() @ logits.softmax(-1)[..., None])[..., 0]
    return gain_of(logits, change, targets, moved)


def gain_of(
    logits: Float[Tensor, "batch vocab"],
    change: Float[Tensor, "batch units vocab"],
    targets: Targets,
    moved: Float[Tensor, "batch units"],
) -> Float[Tensor, "batch units"]:
    """``gain``, given moved = sum_j p_j (e^{c_j} - 1)."""
    rows = torch.arange(len(logits), device=logits.device)
    score = change[rows, :, targets] - moved.log1p()
    row, k = (~(moved.abs() < 0.5)).nonzero(as_tuple=True)
    if len(row):
        old, new = log_softmax(logits[row], -1), log_softmax(logits[row] + change[row, k], -1)
        score[row, k] = (new - old).gather(-1, targets[row, None])[:, 0]
    return score


def dot(
    h: Float[Tensor, "batch d_model"], vectors: Float[Tensor, "*rows units d_model"]
) -> Float[Tensor, "batch units"]:
    """Inner products of h with vectors, shared by all rows or each row's own."""
    return h @ vectors.T if vectors.ndim == 2 else (vectors @ h[..., None])[..., 0]
