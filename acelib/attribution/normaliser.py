"""Value scores at a large vocabulary: part of the normaliser exactly, a proven bound on the rest.

A push c of the logits (c_j = q . e_j, e_j the head's row of token j) changes log p(w) by

    I = q . (e_w - mu) - log(1 + sum_j p_j g(x_j)),   x_j = q . (e_j - mu),  g(x) = e^x - 1 - x,

with p = softmax before the push and mu = sum_j p_j e_j, because sum_j p_j x_j = 0. The first term
needs no vocabulary; the second, KL(p || p'), is never negative, and for most neurons tiny. Of its
sum the k likeliest tokens (and a few farthest from the mean row) are added up as they are. Of the
rest R, g(x) / x^2 grows with x, so that

    0 <= sum_R p_j g(x_j) <= phi(b) / 2  min(max_R p . sum_R x_j^2, sum_R p . B^2),
    phi(b) = g(b) / (b^2 / 2),  b >= max_R x,  B >= max_R |x|.

b and B come from the lengths of the rows (Cauchy and Schwarz), the sum of squares from the head's
second moment, which is made once for all neurons. What is taken for the rest is its second order at
R's mean probability, kept inside the bound. Each neuron gets the smallest k that proves its
tolerance; those that none proves are done over the whole vocabulary.
Bounds hold in exact arithmetic, and allow for the rounding of the second moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .reader import Place, Reader, Targets, gain_of

SIZES = (256, 1024, 4096)  #: likeliest tokens added up as they are, one of these
FAR = 4  #: for so many of them, one of the tokens farthest from the mean row
BLOCK = 4096  #: rows of the head at a time
STEEP = 80.0  #: x up to which e^x is a number in single precision
SLACK = 16  #: roundings of the second moment that its bound allows for


class Bounded(NamedTuple):
    """Scores, and how far each may be from the exact one."""

    scores: Float[Tensor, "batch *layers units"]  #: nats
    errors: Float[Tensor, "batch *layers units"]  #: nats; 0 where nothing was left out


@dataclass(frozen=True, eq=False)
class Head:
    """What the bounds need of the head's rows e_j. In float32 at least."""

    rows: Float[Tensor, "vocab d_model"]
    mean: Float[Tensor, " d_model"]
    moment: Float[Tensor, "d_model d_model"]  #: sum of (e - mean)(e - mean)^T
    order: Int[Tensor, " vocab"]  #: tokens, the farthest from the mean row first
    distance: Float[Tensor, " vocab"]  #: theirs from the mean row

    @property
    def rounding(self) -> float:
        """Allowed for in q . moment q, as a share of |q|^2."""
        return SLACK * torch.finfo(self.moment.dtype).eps * float(self.moment.norm())


def head_of(reader: Reader) -> Head:
    """The head's rows, their second moment made in blocks: one product of v d^2."""
    rows = reader.head
    dtype = _working(rows.dtype)
    mean, lengths = rows.mean(0, dtype=dtype), []
    moment = torch.zeros(rows.shape[1], rows.shape[1], dtype=dtype, device=rows.device)
    for block in rows.split(BLOCK):
        centred = block.to(dtype) - mean
        moment.addmm_(centred.T, centred)
        lengths.append(centred.norm(dim=1))
    distance, order = torch.cat(lengths).sort(descending=True)
    return Head(rows, mean, moment, order, distance)


def _expected_rows(head: Head, p: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch d_model"]:
    """mu = sum_j p_j e_j."""
    parts = zip(p.split(BLOCK, -1), head.rows.split(BLOCK), strict=True)
    zero = p.new_zeros(*p.shape[:-1], head.rows.shape[1])
    return sum((part @ block.to(p.dtype) for part, block in parts), zero)


def bounded_gain(
    reader: Reader,
    head: Head,
    places: Place,
    pushed: Sequence[tuple[Tensor, Tensor]],
    targets: Targets,
    tolerance: float,
    budget: int,
) -> Bounded:
    """Change of log p(w) by each amount * vector of several layers, exact to ``tolerance`` nats.

    places: of all layers, (l, b, d).   pushed: each layer's amounts (b, units) and vectors
    (units, d).   budget: numbers held at a time for each k, and for the vocabulary.
    """
    logits = places.logits.to(head.moment.dtype)
    sizes = [k for k in SIZES if k + k // FAR < len(head.rows)]
    scores, errors, left = [], [], []
    p = logits.softmax(-1)
    mus = _expected_rows(head, p)
    scales = places.scale.expand(*logits.shape[:2], 1)
    for layer, (amounts, vectors) in enumerate(pushed):
        place = Place(places.centred[layer], scales[layer], places.raw[layer], places.logits[layer])
        mu = mus[layer]
        pushes = _pushes(reader, head, place, amounts, vectors, mu)
        score = pushes.along(head.rows[targets].to(mu.dtype) - mu)
        error = torch.zeros_like(score)
        for row in range(len(mu)):
            own, tokens = pushes.row(row), _Tokens(head, p[layer, row], mu[row], sizes)
            # 1. The place in ``sizes`` of the smallest k that proves the tolerance; behind the last
            #    where none does, or where e^x of the farthest token may overflow.
            finite = own.length * head.distance[0] - own.drift < STEEP
            rests = [own.rest(tokens.left(i), own.squares) for i in range(len(sizes))]
            proofs = [(rest <= tolerance) & finite for rest in rests] + [torch.ones_like(finite)]
            choice = torch.stack(proofs).int().argmax(0)
            # 2. Neurons of the same k together.
            for i, k in enumerate(sizes):
                for units in _chunks(choice == i, budget // (k + k // FAR)):
                    kl, error[row, units] = tokens.part(own, units, i)
                    score[row, units] -= kl
            # 3. What none proves.
            (units,) = (choice == len(sizes)).nonzero(as_tuple=True)
            left.append((layer, row, units, own.vectors(units)))
        scores.append(score)
        errors.append(error)
    # 4. The neurons left, of all layers together, over the whole vocabulary.
    found = Bounded(torch.stack(scores, 1), torch.stack(errors, 1))
    _fill(found.scores, left, head, logits, p, targets, budget)
    return found


def _fill(
    scores: Float[Tensor, "batch layers units"],
    left: Sequence[tuple[int, int, Tensor, Tensor]],
    head: Head,
    logits: Float[Tensor, "layers batch vocab"],
    p: Float[Tensor, "layers batch vocab"],
    targets: Targets,
    budget: int,
) -> None:
    """Put in the scores of units of (layer, row), given their pushes, without any bound."""
    layers, rows, chosen, pushes = zip(*left, strict=True)
    units, q = torch.cat(chosen), torch.cat(pushes)
    count = torch.tensor([len(some) for some in chosen], device=units.device)
    layer, row = (
        torch.tensor(places, device=units.device).repeat_interleave(count)
        for places in (layers, rows)
    )
    for some in torch.arange(len(units), device=units.device).split(
        max(1, budget // len(head.rows))
    ):
        at, who = layer[some], row[some]
        change = (q[some].to(head.rows.dtype) @ head.rows.T).to(q.dtype)
        # A sum in pairs: an inner product as long as the vocabulary would lose digits.
        moved = change.expm1().mul_(p[at, who]).sum(-1, keepdim=True)
        done = gain_of(logits[at, who], change[:, None], targets[who], moved)
        scores[who, at, units[some]] = done[:, 0]


# ---------------------------------------------------------------------- what is pushed


@dataclass(frozen=True, eq=False)
class _Pushes:
    """q_k = a_k u_k + b_k g of every neuron, and what the bounds need of it; of a batch of rows."""

    a: Float[Tensor, "*batch units"]
    b: Float[Tensor, "*batch units"] | None
    u: Float[Tensor, "units d_model"]
    g: Float[Tensor, "*batch d_model"]
    drift: Float[Tensor, "*batch units"]  #: q . (mu - mean row)
    squares: Float[Tensor, "*batch units"]  #: sum over all tokens of x^2, at least
    length: Float[Tensor, "*batch units"]  #: |q|

    def along(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch units"]:
        """q . x, x one vector a row."""
        own = self.a * (x @ self.u.T)
        return own if self.b is None else own + self.b * (self.g * x).sum(-1, keepdim=True)

    def vectors(self, units: Int[Tensor, " some"]) -> Float[Tensor, "some d_model"]:
        """q of one row's ``units``."""
        own = self.a[units, None] * self.u[units]
        return own if self.b is None else own + self.b[units, None] * self.g

    def row(self, row: int) -> _Pushes:
        """Those of one row of the batch."""
        parts = (self.g, self.drift, self.squares, self.length)
        b = None if self.b is None else self.b[row]
        return _Pushes(self.a[row], b, self.u, *(part[row] for part in parts))

    def rest(
        self, left: _Left, squares: Tensor, units: Tensor | slice = slice(None)
    ) -> Float[Tensor, " some"]:
        """Upper bound of sum_R p g(x) of one row's ``units``.

        squares: their sum_R x^2, at least.
        """
        reach, drift = self.length[units] * left.radius, self.drift[units]
        squared = torch.minimum(left.most * squares, left.mass * (reach + drift.abs()).square())
        return _phi((reach - drift).clamp(min=0)) / 2 * squared


def _pushes(
    reader: Reader,
    head: Head,
    place: Place,
    amounts: Float[Tensor, "batch units"],
    vectors: Float[Tensor, "units d_model"],
    mu: Float[Tensor, "batch d_model"],
) -> _Pushes:
    """What is pushed at one layer."""
    a, b, vectors = reader.factors(place, amounts, vectors)
    a, b = a.to(mu.dtype), None if b is None else b.to(mu.dtype)
    u, g = (vectors * reader.gain).to(mu.dtype), (place.centred * reader.gain).to(mu.dtype)

    def quadratic(Mu: Tensor, Mg: Tensor) -> Tensor:
        """q . M q of a symmetric M."""
        own = a.square() * (Mu * u).sum(1)
        if b is not None:
            own = own + 2 * a * b * (Mg @ u.T) + b.square() * (Mg * g).sum(1, keepdim=True)
        return own.clamp(min=0)

    length = quadratic(u, g).sqrt()
    squares = quadratic(u @ head.moment, g @ head.moment) + head.rounding * length.square()
    pushes = _Pushes(a, b, u, g, torch.zeros_like(a), squares, length)
    drift = pushes.along(mu - head.mean)
    return replace(pushes, drift=drift, squares=squares + len(head.rows) * drift.square())


def _phi(b: Tensor) -> Tensor:
    """(e^b - 1 - b) / (b^2 / 2), from above where b is small; b >= 0."""
    return torch.where(b < 0.05, 1 + b / 3 + b.square() / 11, 2 * (b.expm1() - b) / b.square())


# ---------------------------------------------------------------------- what is added up


class _Left(NamedTuple):
    """What is known of the tokens R that are not added up."""

    most: Float[Tensor, ""]  #: greatest probability
    mass: Float[Tensor, ""]  #: sum of their probabilities
    radius: Float[Tensor, ""]  #: greatest distance from the mean row


class _Tokens:
    """One row's tokens, the likeliest first."""

    def __init__(self, head: Head, p: Tensor, mu: Tensor, sizes: Sequence[int]):
        self.head, self.mu, self.sizes = head, mu, sizes
        self.p = p
        likeliest, self.order = self.p.topk(max(sizes, default=0) + 1)
        self.most = likeliest[list(sizes)]
        # From the least upwards: a difference from 1 would lose a small tail.
        tails = likeliest.flip(0).cumsum(0).flip(0)
        self.mass = tails[list(sizes)] + self._outside(self.order)

    def _outside(self, inside: Tensor) -> Tensor:
        """Probability of all other tokens."""
        return self.p.index_fill(0, inside, 0.0).sum()

    def left(self, i: int) -> _Left:
        """All but the ``sizes[i]`` likeliest and the farthest, which its mass still holds."""
        radius = self.head.distance[self.sizes[i] // FAR]
        return _Left(self.most[i], self.mass[i], radius)

    def part(self, own: _Pushes, units: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """KL(p || p') of ``units`` and its error, ``sizes[i]`` tokens added up."""
        # 1. The likeliest tokens and those far from the mean row.
        k, left = self.sizes[i], self.left(i)
        best, far = self.order[:k], self.head.order[: k // FAR]
        inside = torch.cat([best, far[~torch.isin(far, best)]])
        rows, p = self.head.rows.index_select(0, inside).to(self.p.dtype), self.p[inside]
        # 2. What they add up to, and what is left of the squares.
        u = own.u.index_select(0, units)
        x = (u @ rows.T).sub_((u @ self.mu)[:, None]).mul_(own.a[units, None])
        if own.b is not None:
            x += own.b[units, None] * (rows @ own.g - self.mu @ own.g)
        squares = (own.squares[units] - torch.linalg.vector_norm(x, dim=1).square()).clamp(min=0)
        first = x @ p
        known = (x.expm1_() @ p - first).clamp(min=0)
        # 3. The rest: at most, and at its mean probability.
        left = left._replace(mass=self._outside(inside))
        most = own.rest(left, squares, units)
        guess = torch.minimum(left.mass / (len(self.p) - len(inside)) / 2 * squares, most)
        low, middle, high = (value.log1p() for value in (known, known + guess, known + most))
        return middle, torch.maximum(high - middle, middle - low)


def _chunks(chosen: Bool[Tensor, " units"], size: int) -> Sequence[Tensor]:
    """Indices of the chosen units, at most ``size`` at a time."""
    units = chosen.nonzero()[:, 0]
    return units.split(max(1, size)) if len(units) else ()


def _working(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
