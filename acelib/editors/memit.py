"""MEMIT: one target vector for each fact at the subject's last token, spread evenly over a range of layers (Meng et al., ICLR 2023).

    dW_l = R_l K_l^T (weight C_l + K_l K_l^T)^{-1},  R_l = (Z - H_L) / (L - l + 1)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Sequence

from acelib.covariance import Moments
from acelib.keys import contexts, requests
from acelib.lm import LM
from acelib.spread import Stage, edit
from acelib.targets import Objective
from acelib.update import Update

if TYPE_CHECKING:
    from acelib.facts import Edit


@dataclass(frozen=True, kw_only=True)
class MEMIT:
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

    def __post_init__(self):
        self.stage

    @property
    def stage(self) -> Stage:
        return Stage(self.layers, self.weight, self.objective, self.share)

    def __call__(self, lm: LM, edits: Sequence[Edit], moments: Moments) -> Update:
        """The Update that writes ``edits`` together."""
        return self.each(lm, [edits], moments)[0]

    def each(self, lm: LM, groups: Sequence[Sequence[Edit]], moments: Moments) -> list[Update]:
        """One Update for each group, every group as if it were alone, all in one batch."""
        given = [r for g, edits in enumerate(groups) for r in requests(edits, self.position, g)]
        lm.layers(self.layers)
        updates = edit(lm, given, self.stage, moments, contexts(lm, self.n_prefixes, self.prefix_length, self.seed)) if given else []
        return signed(lm, self, groups, updates)


def signed(lm: LM, editor, groups: Sequence[Sequence[Edit]], updates: Sequence[Update]) -> list[Update]:
    """``updates`` with the editor's name, the edits and the model they are for."""
    name, model = type(editor).__name__, lm.fingerprint
    return [replace(u, editor=name, edits=tuple(dict.fromkeys(edits)), model=model) for u, edits in zip(updates, groups)]


PRESETS = {
    "gpt-j-6b": MEMIT(layers=(3, 4, 5, 6, 7, 8)),
    "gptj-mini": MEMIT(layers=(0, 1, 2), weight=10.0,
                       objective=Objective(steps=100, lr=0.3, decay=0.0, clamp=None), n_prefixes=2),
}
