"""MEMIT: one target vector for each fact at the subject's last token, spread evenly over a range of layers (Meng et al., ICLR 2023).

dW_l = R_l K_l^T (weight C_l + K_l K_l^T)^{-1},  R_l = (Z - H_L) / (L - l + 1)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from ..editing.request import Request, check_reading, requests
from ..editing.search import Objective
from ..editing.write import Stage
from ..records import Edit
from .base import Staged


@dataclass(frozen=True, kw_only=True)
class MEMIT(Staged):
    """Hyper-parameters of MEMIT; ``editor(lm, edits, moments)`` edits one batch, ``editor.each(lm, groups, moments)`` independent ones.

    Raises ValueError, and leaves the model as it was, for no edit, edits that contradict, a layer that does not exist or has no moment.
    """

    layers: tuple[int, ...]  #: written, in order
    weight: float = 15000.0  #: lambda, on the mean second moment
    objective: Objective = Objective()
    share: str = "even"
    position: str = "subject_last"
    n_prefixes: int = 5  #: texts sampled from the model that prompts are also read after
    prefix_length: int = 10  #: tokens
    seed: int = 0  #: of the sampling
    texts: tuple[str, ...] | None = None  #: read before prompts instead of sampled ones

    def __post_init__(self):
        check_reading((self.position,), self.n_prefixes, self.prefix_length)
        self.stage

    @property
    def stage(self) -> Stage:
        return Stage(self.layers, self.weight, self.objective, self.share)

    @property
    def plan(self) -> dict[str, Stage]:
        return {"only": self.stage}

    def asked(self, edits: Sequence[Edit], stage: str = "only", group: int = 0) -> list[Request]:
        """The requests of one batch of edits. Raises ValueError as ``keys.requests``."""
        return requests(edits, self.position, group)


PRESETS = {
    "gpt-j-6b": MEMIT(layers=(3, 4, 5, 6, 7, 8)),
    # derived: the released settings of Qwen2.5-7B
    "qwen3-8b": MEMIT(layers=(4, 5, 6, 7, 8), objective=Objective(decay=1e-3, clamp=4.0)),
    "gptj-mini": MEMIT(
        layers=(0, 1, 2),
        weight=10.0,
        objective=Objective(steps=100, lr=2.0, decay=0.0, clamp=None),
        n_prefixes=2,
    ),
    "qwen3-mini": MEMIT(
        layers=(0, 1, 2),
        weight=10.0,
        objective=Objective(steps=100, lr=2.0, decay=0.0, clamp=None),
        n_prefixes=2,
    ),
}
