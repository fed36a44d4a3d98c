"""PMET: MEMIT with target vectors of attention and FFN searched together, only the FFN's written, spread by root (Li et al., AAAI 2024).

dW_l = R_l K_l^T (weight C_l + K_l K_l^T)^{-1},  R_l = (Z - F_L) / sqrt(L - l + 1)
"""

from __future__ import annotations

from dataclasses import dataclass

from ..editing.search import Objective
from .memit import MEMIT


@dataclass(frozen=True, kw_only=True)
class PMET(MEMIT):
    """MEMIT's procedure with PMET's objective, share and weight."""

    weight: float = 6000.0
    objective: Objective = Objective(kind="pmet", steps=30, lr=0.2, kl=1.0)
    share: str = "root"


PRESETS = {
    "gpt-j-6b": PMET(layers=(3, 4, 5, 6, 7, 8)),
    # derived: MEMIT's layers for Qwen2.5-7B; the ACE paper (Appendix G) takes PMET's weight, steps and lr for this model too
    "qwen3-8b": PMET(layers=(4, 5, 6, 7, 8)),
    "gptj-mini": PMET(
        layers=(0, 1),
        weight=1.0,
        objective=Objective(kind="pmet", steps=100, lr=2.0, decay=0.0, clamp=None),
        n_prefixes=2,
    ),
    "qwen3-mini": PMET(
        layers=(0, 1),
        weight=1.0,
        objective=Objective(kind="pmet", steps=100, lr=2.0, decay=0.0, clamp=None),
        n_prefixes=2,
    ),
}
