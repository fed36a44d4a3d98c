"""Writing target vectors into one layer or several: layer by layer, a share of what is missing.

    dW_l = R_l K_l^T (A_l + K_l K_l^T)^{-1},   R_l = share_l (Z - current)

with share_l = 1/(J-j) ("even", MEMIT) or 1/sqrt(J-j) ("root", PMET) for the j-th of J layers, j
from 0; keys and current values are those of the model as edited so far. What must stay is in A_l:
weight C_l (MEMIT, PMET), or, with keys projected onto the null space of C_l, weight I and the keys
of earlier edits (AlphaEdit). Requests with different group numbers belong to independent edits:
they run in one batch, each group sees only its own writes, and each yields its own ``Update``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor

from ..model.lm import LM
from ..model.update import Factors, Update
from ..settings import Layers, settings
from .keys import Walk, mean_key, prefix_weights
from .moments import Moments
from .request import Request
from .search import Objective, target_vectors
from .solve import Solver, null_space_solver, ridge

SHARES = {"even": lambda left: 1 / left, "root": lambda left: left**-0.5}

Share = Literal["even", "root"]
#: by layer, the keys of earlier edits: ``Update.keys``
History = Mapping[int, Float[Tensor, "d_mlp keys"]]


def identity(x: Float[Tensor, "d_mlp ..."]) -> Float[Tensor, "d_mlp ..."]:
    """x: the projector of keys where there is no null space."""
    return x


@settings(kw_only=False)
class Stage:
    """One target search and its write. Raises ValueError for a setting outside its range."""

    layers: Layers  #: written, in order; targets belong to the last
    weight: PositiveFloat  #: lambda, on the mean second moment; with a null space L2, on the change
    objective: Objective
    share: Share = "even"
    #: (threshold, share) of ``Moments.projector``; None: no projection
    null_space: tuple[float | None, float | None] | None = None

    def constraint(
        self, moments: Moments, layer: int, history: History | None = None
    ) -> tuple[Solver, Solver]:
        """What a write at ``layer`` must not change: the projector of its keys, and x -> A^{-1} x.

        history: ``Update.keys`` of earlier edits.
        Raises ValueError for a layer without a moment, for a history without a null space, or one
        from another null space.
        """
        if self.null_space is None:
            if history:
                raise ValueError(
                    "keys of earlier edits are given, but only a write inside a null space "
                    "(AlphaEdit) can keep them"
                )
            return identity, moments.solver(layer, self.weight)
        project = moments.projector(layer, *self.null_space)
        if history is None or layer not in history:
            return project, null_space_solver(self.weight)
        keys = history[layer].to(moments[layer])
        if not (project(keys.sum(1)) - keys.sum(1)).norm() <= 1e-3 * keys.norm():
            raise ValueError(
                f"the keys of earlier edits at layer {layer} are not in this null space: it has "
                "another threshold or moment"
            )
        return project, null_space_solver(self.weight, keys)

    def check(self, lm: LM, moments: Moments, history: History | None = None) -> tuple[int, ...]:
        """The layers in order.

        Raises ValueError if one does not exist, its moment is of another width, or as
        ``constraint``.
        """
        layers = lm.layers(self.layers)
        for layer in layers:
            if layer in moments.matrices and len(moments[layer]) != lm.d_mlp:
                raise ValueError(
                    f"the second moment of layer {layer} is of {len(moments[layer])} neurons; "
                    f"{lm.name!r} has {lm.d_mlp}"
                )
            self.constraint(moments, layer, history)
        return layers


def edit(
    lm: LM,
    requests: Sequence[Request],
    stage: Stage,
    moments: Moments,
    prefixes: Sequence[str] = ("",),
    updates: Sequence[Update] | None = None,
    history: History | None = None,
    search_on: Sequence[Update] | None = None,
) -> list[Update]:
    """Search target vectors and write them on the model as edited by ``updates``.

    search_on: the edits of the model that targets are searched on, if not ``updates``.
    Returns: one new Update for each group (without ``updates``).
    Raises: ValueError as ``target_vectors`` and ``write`` do, before any work where it can.
    Source: MEMIT Algorithm 1; ACE Algorithm 1.
    """
    layers = stage.check(lm, moments, history)
    host = updates if search_on is None else search_on
    targets = target_vectors(lm, requests, layers[-1], stage.objective, prefixes, host)
    return write(lm, requests, stage, moments, targets.value, prefixes, updates, history)


@torch.inference_mode(False)
@torch.no_grad()
def write(
    lm: LM,
    requests: Sequence[Request],
    stage: Stage,
    moments: Moments,
    Z: Float[Tensor, "n d_model"],
    prefixes: Sequence[str] = ("",),
    updates: Sequence[Update] | None = None,
    history: History | None = None,
) -> list[Update]:
    """Fill ``stage.layers`` so that the written site at the n lookup tokens becomes Z.

    The rows' hidden states are carried up from layer to layer, so a layer below the first write
    runs once.
    history: the same for all groups.
    Returns: one Update for each group 0 ... max group (of ``updates``), low-rank, of the model
    without ``updates``; from a null space with the keys it was written at: a layer's key depends on
    the layers below only, so they are those of the model that this write leaves.
    Raises: ValueError for a layer that does not exist or has no moment, or if Z has not one row for
    each request.
    Source: MEMIT Eq. 14, 19, 20; PMET Eq. 13 (square root); AlphaEdit Eq. 14.
    """
    layers, weights = lm.layers(stage.layers), prefix_weights(lm, prefixes)
    if Z.shape != (len(requests), lm.d_model):
        raise ValueError(
            f"targets {tuple(Z.shape)} do not fit {len(requests)} requests of width {lm.d_model}"
        )
    groups = torch.tensor([r.group for r in requests])
    base = list(updates) if updates is not None else [Update()] * (int(groups.max()) + 1)
    new = [Update() for _ in base]
    walk = Walk(lm, requests, prefixes)
    for j, layer in enumerate(layers):
        # 1. The model of each group as edited so far; None: nothing is edited yet.
        edited = updates is not None or j > 0
        now = [b + u for b, u in zip(base, new, strict=True)] if edited else None
        # 2. Keys of all requests, inside what may change.
        project, solver = stage.constraint(moments, layer, history)
        K = project(mean_key(walk.climb(layer, now), weights).double())
        # 3. This layer's share of what is still missing at the last one.
        missing = Z - walk.look(layers[-1], stage.objective.site, now)
        R = SHARES[stage.share](len(layers) - j) * missing.double().T
        # 4. One system for all requests, then each group's own write.
        G = solver(K).to(K)
        for g in groups.unique().tolist():
            mine = (groups == g).nonzero()[:, 0].to(K.device)
            pair = ridge(K[:, mine], R[:, mine], G[:, mine])
            keys = {} if stage.null_space is None else {layer: K[:, mine].to(weights.dtype)}
            new[g] += Update({layer: Factors(*(t.to(weights.dtype) for t in pair))}, keys=keys)
    return new
