"""Writing target vectors into one layer or several: at each layer, in order, a share of what is still missing at the last one.

    dW_l = R_l K_l^T (weight C_l + K_l K_l^T)^{-1},   R_l = share_l (Z - current)

with share_l = 1/(J-j) ("even", MEMIT) or 1/sqrt(J-j) ("root", PMET) for the j-th of J layers, j from 0; keys and current values are those
of the model as edited so far. Requests with different group numbers belong to independent edits: they run in one batch, each group sees
only its own writes, and each yields its own ``Update``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor

from acelib.covariance import Moments
from acelib.keys import Request, Walk, mean_key, prefix_weights
from acelib.lm import LM
from acelib.solve import ridge
from acelib.targets import Objective, target_vectors
from acelib.update import Factors, Update

SHARES = {"even": lambda left: 1 / left, "root": lambda left: left**-0.5}


@dataclass(frozen=True)
class Stage:
    """One target search and its write. Raises ValueError for an unknown share or a weight that is not positive."""

    layers: tuple[int, ...]  #: written, in order; targets belong to the last
    weight: float  #: lambda, on the mean second moment
    objective: Objective
    share: str = "even"

    def __post_init__(self):
        if self.share not in SHARES:
            raise ValueError(f"share {self.share!r} is unknown; allowed: {', '.join(map(repr, SHARES))}")
        if not self.weight > 0:
            raise ValueError(f"weight {self.weight} of the second moment must be positive")


def edit(lm: LM, given: Sequence[Request], stage: Stage, moments: Moments, prefixes: Sequence[str] = ("",),
         updates: Sequence[Update] | None = None) -> list[Update]:
    """Search target vectors on the model as edited by ``updates`` and write them: one new Update for each group (without ``updates``).

    Raises: ValueError as ``target_vectors`` and ``write`` do, before any work where it can.
    Source: MEMIT Algorithm 1; ACE Algorithm 1.
    """
    layers = lm.layers(stage.layers)
    for layer in layers:
        moments[layer]
    targets = target_vectors(lm, given, layers[-1], stage.objective, prefixes, updates)
    return write(lm, given, stage, moments, targets.value, prefixes, updates)


@torch.inference_mode(False)
@torch.no_grad()
def write(lm: LM, given: Sequence[Request], stage: Stage, moments: Moments, Z: Tensor, prefixes: Sequence[str] = ("",),
          updates: Sequence[Update] | None = None) -> list[Update]:
    """Fill ``stage.layers`` so that the written site at the lookup tokens becomes Z (n, d).

    The rows' hidden states are carried up from layer to layer, so a layer below the first write runs once.
    Returns: one Update for each group 0 ... max group, low-rank, of the model without ``updates``.
    Raises: ValueError for a layer that does not exist or has no moment, or if Z has not one row for each request.
    Source: MEMIT Eq. 14, 19, 20; PMET Eq. 13 (square root).
    """
    layers, weights = lm.layers(stage.layers), prefix_weights(lm, prefixes)
    if Z.shape != (len(given), lm.d_model):
        raise ValueError(f"targets {tuple(Z.shape)} do not fit {len(given)} requests of width {lm.d_model}")
    groups = torch.tensor([r.group for r in given])
    base = list(updates) if updates is not None else [Update()] * (int(groups.max()) + 1)
    new = [Update() for _ in base]
    walk = Walk(lm, given, prefixes)
    for j, layer in enumerate(layers):
        now = [b + u for b, u in zip(base, new)] if updates is not None or j else None
        K = mean_key(walk.climb(layer, now), weights).double()
        R = SHARES[stage.share](len(layers) - j) * (Z - walk.look(layers[-1], stage.objective.site, now)).double().T
        solver = moments.solver(layer, stage.weight)
        solved = solver(K).to(K)
        for g in groups.unique().tolist():
            mine = (groups == g).nonzero()[:, 0].to(K.device)
            pair = ridge(K[:, mine], R[:, mine], lambda _: solved[:, mine])
            new[g] += Update({layer: Factors(*(t.to(weights.dtype) for t in pair))})
    return new
