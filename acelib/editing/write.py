"""Writing target vectors into one layer or several: layer by layer, a share of what is missing.

    dW_l = R_l K_l^T (A_l + K_l K_l^T)^{-1},   R_l = share_l (Z - current)

with share_l = 1/(J-j) ("even", MEMIT) or 1/sqrt(J-j) ("root", PMET) for the j-th of J layers, j
from 0; keys and current values are those of the model as edited so far. What must stay is in A_l:
weight C_l (MEMIT, PMET), or, with keys projected onto the null space of C_l, weight I and the keys
of earlier edits (AlphaEdit). Requests with different group numbers belong to independent edits:
they run in one batch, each group sees only its own writes, and each yields its own ``Update``.
Attention's output projections can be written too: the same formula with what they read as keys, the
second moment of that as C, and a target of their own; of one layer, both parts have the keys and
the residuals that they had before either was written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor

from ..model.lm import LM, Part
from ..model.update import Factors, Update
from ..settings import Layers, settings
from .keys import Walk, mean_key, prefix_weights
from .moments import Moments
from .request import Request
from .search import Objective, Targets, target_vectors
from .solve import Solver, null_space_solver, ridge

KEYS: dict[Part, str] = {"mlp": "key", "attn": "heads"}  #: sites that the parts' matrices read
SHARES = {"even": lambda left: 1 / left, "root": lambda left: left**-0.5}

Share = Literal["even", "root"]
#: of what a search finds: the FFN's part, through the FFN; attention's and the FFN's, each through
#: its own matrix; or both through the FFN
Writes = Literal["ffn", "both", "whole"]
#: by layer, the keys of earlier edits: ``Update.keys``
History = Mapping[int, Float[Tensor, "d_mlp keys"]]


def identity(x: Float[Tensor, "d_mlp ..."]) -> Float[Tensor, "d_mlp ..."]:
    """x: the projector of keys where there is no null space."""
    return x


@settings(kw_only=False)
class Stage:
    """One target search and its write. Raises ValueError for a setting outside its range."""

    layers: Layers  #: written, in order
    weight: PositiveFloat  #: lambda, on the mean second moment; with a null space L2, on the change
    objective: Objective
    share: Share = "even"
    #: (threshold, share) of ``Moments.projector``; None: no projection
    null_space: tuple[float | None, float | None] | None = None
    writes: Writes = "ffn"
    at: int | None = None  #: the layer that targets belong to; None: the last one written

    def __post_init__(self):
        if self.writes != "ffn" and self.objective.kind != "pmet":
            raise ValueError(
                f"writes {self.writes!r} needs a target vector of attention; the objective "
                f"{self.objective.kind!r} searches none, 'pmet' does"
            )
        if self.writes == "both" and self.null_space is not None:
            raise ValueError("writes 'both' is not made for a null space; allowed: 'ffn', 'whole'")
        if self.at is not None and self.layers and self.at < max(self.layers):
            raise ValueError(
                f"targets at layer {self.at} lie below layer {max(self.layers)}, which is written"
            )

    @property
    def target_layer(self) -> int:
        """The layer that targets belong to."""
        return max(self.layers) if self.at is None else self.at

    @property
    def parts(self) -> tuple[Part, ...]:
        """Whose last matrices are written."""
        return ("attn", "mlp") if self.writes == "both" else ("mlp",)

    def search(
        self,
        lm: LM,
        requests: Sequence[Request],
        prefixes: Sequence[str] = ("",),
        updates: Sequence[Update] | None = None,
    ) -> Targets:
        """The target vectors, on the model as edited by ``updates``, one for each group.

        Raises ValueError as ``target_vectors`` does.
        """
        return target_vectors(lm, requests, self.target_layer, self.objective, prefixes, updates)

    def wanted(self, targets: Targets) -> dict[Part, Float[Tensor, "n d_model"]]:
        """What the written parts should give at the lookup tokens."""
        ffn = targets.whole if self.writes == "whole" else targets.value
        return {"attn": targets.attn, "mlp": ffn} if self.writes == "both" else {"mlp": ffn}

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
        lm.layers([self.target_layer])
        for part in self.parts:
            known = moments.of(part)
            for layer in layers:
                if layer in known.matrices and len(known[layer]) != lm.width(part):
                    raise ValueError(
                        f"the second moment of layer {layer} is of {len(known[layer])} neurons; "
                        f"{lm.name!r} has {lm.width(part)}"
                    )
                self.constraint(known, layer, history)
        return layers


def edit(
    lm: LM,
    requests: Sequence[Request],
    stage: Stage,
    moments: Moments,
    prefixes: Sequence[str] = ("",),
    updates: Sequence[Update] | None = None,
    history: History | None = None,
    targets: Targets | None = None,
) -> list[Update]:
    """Search target vectors and write them on the model as edited by ``updates``.

    targets: one for each request, if they are not to be searched on that same model.
    Returns: one new Update for each group (without ``updates``).
    Raises: ValueError as ``target_vectors`` and ``write`` do, before any work where it can.
    Source: MEMIT Algorithm 1; ACE Algorithm 1.
    """
    stage.check(lm, moments, history)
    wanted = stage.wanted(targets or stage.search(lm, requests, prefixes, updates))
    return write(lm, requests, stage, moments, wanted, prefixes, updates, history)


@torch.inference_mode(False)
@torch.no_grad()
def write(
    lm: LM,
    requests: Sequence[Request],
    stage: Stage,
    moments: Moments,
    Z: Float[Tensor, "n d_model"] | Mapping[Part, Float[Tensor, "n d_model"]],
    prefixes: Sequence[str] = ("",),
    updates: Sequence[Update] | None = None,
    history: History | None = None,
) -> list[Update]:
    """Fill ``stage.layers`` so that the written site at the n lookup tokens becomes Z.

    Z: of the FFN, or, by part, of what ``stage.parts`` are.

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
    wanted: Mapping[Part, Tensor] = {"mlp": Z} if isinstance(Z, Tensor) else Z
    for goal in wanted.values():
        if goal.shape != (len(requests), lm.d_model):
            raise ValueError(
                f"targets {tuple(goal.shape)} do not fit {len(requests)} requests of width "
                f"{lm.d_model}"
            )
    groups = torch.tensor([r.group for r in requests])
    base = list(updates) if updates is not None else [Update()] * (int(groups.max()) + 1)
    new = [Update() for _ in base]
    walk = Walk(lm, requests, prefixes)
    for j, layer in enumerate(layers):
        # 1. The model of each group as edited so far; None: nothing is edited yet.
        edited = updates is not None or j > 0
        now = [b + u for b, u in zip(base, new, strict=True)] if edited else None
        for part, goal in wanted.items():
            # 2. Keys of all requests, inside what may change.
            project, solver = stage.constraint(moments.of(part), layer, history)
            K = project(mean_key(walk.climb(layer, now, KEYS[part]), weights).double())
            # 3. This layer's share of what is still missing at the targets' layer.
            site = "attn" if part == "attn" else stage.objective.site
            missing = goal - walk.look(stage.target_layer, site, now)
            R = SHARES[stage.share](len(layers) - j) * missing.double().T
            # 4. One system for all requests, then each group's own write.
            G = solver(K).to(K)
            for g in groups.unique().tolist():
                mine = (groups == g).nonzero()[:, 0].to(K.device)
                pair = ridge(K[:, mine], R[:, mine], G[:, mine])
                keys = {} if stage.null_space is None else {layer: K[:, mine].to(weights.dtype)}
                change = {layer: Factors(*(t.to(weights.dtype) for t in pair))}
                new[g] += Update(attn=change) if part == "attn" else Update(change, keys=keys)
    return new
