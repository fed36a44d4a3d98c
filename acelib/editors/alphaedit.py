"""AlphaEdit: MEMIT's targets and spread, every write inside the null space of preserved keys (Fang et al., ICLR 2025).

    dW_l = R_l K_l^T P (P (K_l K_l^T + H_l H_l^T) P + weight I)^{-1},  R_l = (Z - H_L) / (L - l + 1)

P projects onto the directions in which texts hardly move the keys, H_l holds the keys of earlier edits. The state of a sequence of edits is
the sum of their Updates: its ``keys`` are the next call's ``history``. The released code reads the keys once more after a batch is
written; a layer's key depends on the layers below only, so they are those of the write.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..editing.search import Objective
from ..editing.write import Stage
from .memit import MEMIT


@dataclass(frozen=True, kw_only=True)
class AlphaEdit(MEMIT):
    """MEMIT's procedure with a null-space write; ``editor(lm, edits, moments, history)``, ``editor.each(lm, groups, moments, history)``.

    A threshold is in squared units of a model's activations: the released one fits large models. ``null_share`` means the same at every
    layer of every model. (The author's threshold leaves about 0.7 of Llama 3's directions.)
    """

    weight: float = 10.0  #: L2, on the change itself
    threshold: float = (
        2e-2  #: eigenvectors of the second moment with smaller eigenvalues span the null space
    )
    null_share: float | None = (
        None  #: instead of a threshold: the share of eigenvectors, smallest eigenvalues first
    )

    @property
    def stage(self) -> Stage:
        null_space = (self.threshold, None) if self.null_share is None else (None, self.null_share)
        return replace(super().stage, null_space=null_space)


PRESETS = {
    "gpt-j-6b": AlphaEdit(layers=(3, 4, 5, 6, 7, 8)),
    # derived: the released settings of Qwen2.5-7B
    "qwen3-8b": AlphaEdit(
        layers=(4, 5, 6, 7, 8), weight=1.0, objective=Objective(decay=1e-3, clamp=4.0)
    ),
    "gptj-mini": AlphaEdit(
        layers=(1, 2, 3),
        weight=0.1,
        objective=Objective(steps=100, lr=2.0, decay=0.0, clamp=None),
        n_prefixes=2,
        null_share=0.7,
    ),
    "qwen3-mini": AlphaEdit(
        layers=(1, 2, 3),
        weight=0.1,
        objective=Objective(steps=100, lr=2.0, decay=0.0, clamp=None),
        n_prefixes=2,
        null_share=0.7,
    ),
}
