"""Do the wordings of a fact find the same neurons? Sets of knowledge neurons, compared.

    CS_1 = |in all N_i| / |in any N_i|        CS_2 = |in more than one N_i| / |in any N_i|

N_i: the neurons of wording i of a fact, of k. Nothing here knows a model.
Source: Query Localization, Eq. 1, 3 and 7.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Sets = Bool[Tensor, "facts wordings layers d_mlp"]


class Scores(NamedTuple):
    """Consistency of each fact; nan where no wording has a neuron."""

    strict: Float[Tensor, " facts"]  #: CS_1
    relaxed: Float[Tensor, " facts"]  #: CS_2
    union: Float[Tensor, " facts"]  #: neurons of any wording
    size: Float[Tensor, " facts"]  #: mean neurons of a wording


def scores(sets: Sets) -> Scores:
    """CS_1 and CS_2 of facts from the neurons of their wordings.

    Raises ValueError for fewer than two wordings. Source: Query Localization, Eq. 1.
    """
    _check(sets.shape[1])
    counts = sets.sum(1)
    union = (counts > 0).sum((-2, -1)).float()
    return Scores(
        (counts == sets.shape[1]).sum((-2, -1)) / union,
        (counts > 1).sum((-2, -1)) / union,
        union,
        sets.sum((-2, -1)).float().mean(1),
    )


def neighbours(
    sets: Bool[Tensor, "wordings layers d_mlp"], i: int
) -> dict[str, Bool[Tensor, "layers d_mlp"]]:
    """Neurons of the other wordings: of any ("Union"), of all ("Intersection"), of more than one
    ("Refine").

    Raises ValueError for fewer than two wordings. Source: Query Localization, Eq. 3.
    """
    _check(len(sets))
    counts = sets.sum(0) - sets[i].long()
    return {
        "Union": counts > 0,
        "Intersection": counts == len(sets) - 1,
        "Refine": counts > 1,
    }


def consistency_aware(
    attributions: Float[Tensor, "wordings layers d_mlp"],
    beta: tuple[float, float] = (0.7, 0.3),
    cut: float = 0.3,
) -> Bool[Tensor, "layers d_mlp"]:
    """Neurons whose consistency-aware score is above ``cut`` of the largest.

    CAS = beta_1 mean - beta_2 std over the wordings, std with 1/k.
    Raises ValueError for fewer than two wordings. Source: Query Localization, Eq. 7, A.1.
    """
    _check(len(attributions))
    values = beta[0] * attributions.mean(0) - beta[1] * attributions.std(0, correction=0)
    return values > cut * values.max()


def strongest(
    values: Float[Tensor, "layers d_mlp"], n: int, among: Bool[Tensor, "layers d_mlp"]
) -> Bool[Tensor, "layers d_mlp"]:
    """The ``n`` greatest of ``values`` ``among`` some, or all of those if they are fewer."""
    flat = values.masked_fill(~among, -torch.inf).flatten()
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.topk(min(n, int(among.sum()))).indices] = True
    return chosen.unflatten(0, values.shape)


def random_set(like: Bool[Tensor, "layers d_mlp"], seed: int = 0) -> Bool[Tensor, "layers d_mlp"]:
    """As many neurons in every layer as ``like`` has, drawn by ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(like.shape, generator=generator).argsort(1).argsort(1)
    return order.to(like.device) < like.sum(1, keepdim=True)


def _check(k: int) -> None:
    if k < 2:
        raise ValueError(f"{k} wording of a fact is given; consistency needs at least two")
