"""ROME: one fact, one layer, an exact rank-one write of its target vector at the subject's last token (Meng et al., NeurIPS 2022).

    dW = (v* - v) u^T / (k . u),  u = C^{-1} mean key

As released, the direction u comes from the key averaged over the prefixes and the constraint dW k = v* - v holds at the bare prompt's key;
r-ROME (Gupta et al., 2024) uses the averaged key in both. Many released settings leave C out: u = mean key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import torch

from ..editing.keys import Walk, contexts
from ..editing.moments import Moments
from ..editing.request import requests
from ..editing.search import Objective, target_vectors
from ..editing.solve import rank_one
from ..model.lm import LM
from ..model.update import Factors, Update
from ..records import Edit
from .base import signed

CONSTRAINTS = ("bare", "mean")


@dataclass(frozen=True, kw_only=True)
class ROME:
    """Hyper-parameters of ROME; ``editor(lm, edits, moments)`` edits one batch, ``editor.each(lm, groups, moments)`` independent ones.

    The edits of a batch are written one after the other, each on the model as edited so far. ``moments`` may be None without
    ``second_moment``. Raises ValueError, and leaves the model as it was, for unknown settings, no edit, edits that contradict, a layer that
    does not exist or has no moment, a loss that is not finite.
    """

    layer: int
    second_moment: bool = True  #: u = C^{-1} mean key; else the mean key itself
    constraint: str = "bare"  #: the key at which the value must arrive: "bare" prompt's (ROME) or "mean" over prefixes (r-ROME)
    objective: Objective = Objective(kind="mlp", steps=20, clamp=4.0)
    position: str = "subject_last"
    n_prefixes: int = (
        10  #: texts of each length, sampled from the model, that prompts are also read after
    )
    prefix_lengths: tuple[int, ...] = (5, 10)  #: tokens
    seed: int = 0  #: of the sampling
    texts: tuple[str, ...] | None = None  #: read before prompts instead of sampled ones

    def __post_init__(self):
        if self.constraint not in CONSTRAINTS:
            raise ValueError(
                f"constraint {self.constraint!r} is unknown; allowed: {', '.join(map(repr, CONSTRAINTS))}"
            )

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.layer,)

    def prefixes(self, lm: LM) -> tuple[str, ...]:
        """What prompts are read after: nothing, then ``texts`` or, if that is None, texts of every length sampled from the model."""
        if self.texts is not None:
            return ("", *self.texts)
        sampled = (
            contexts(lm, self.n_prefixes, length, self.seed + i)[1:]
            for i, length in enumerate(self.prefix_lengths)
        )
        return ("", *(text for texts in sampled for text in texts))

    def __call__(self, lm: LM, edits: Sequence[Edit], moments: Moments | None = None) -> Update:
        """The Update that writes ``edits`` one after the other."""
        return self.each(lm, [edits], moments)[0]

    @torch.inference_mode(False)
    def each(
        self, lm: LM, groups: Sequence[Sequence[Edit]], moments: Moments | None = None
    ) -> list[Update]:
        """One Update for each group, every group as if it were alone: the first edits of all groups in one batch, then the second ones."""
        given = [requests(edits, self.position, g) for g, edits in enumerate(groups)]
        lm.layers(self.layers)
        if self.second_moment and moments is None:
            raise ValueError("second_moment is on, but no second moments are given")
        solver = moments.solver(self.layer, 1.0) if self.second_moment else lambda x: x
        prefixes, updates = self.prefixes(lm) if given else ("",), [Update() for _ in given]
        for turn in range(max(map(len, given), default=0)):
            now, before = [rs[turn] for rs in given if len(rs) > turn], updates if turn else None
            targets = target_vectors(lm, now, self.layer, self.objective, prefixes, before)
            keys = (
                Walk(lm, now, prefixes)
                .climb(self.layer, before)
                .unflatten(0, (len(now), len(prefixes)))
                .double()
            )
            mean, bare = keys.mean(1), keys[:, 0]
            U, at, R = (
                solver(mean.T),
                bare if self.constraint == "bare" else mean,
                targets.delta[-1],
            )
            for i, r in enumerate(now):
                pair = rank_one(at[i], R[i].double(), U[:, i])
                updates[r.group] += Update({self.layer: Factors(*(t.to(R.dtype) for t in pair))})
        return signed(lm, self, groups, updates)


PRESETS = {
    "gpt-j-6b": ROME(layer=5),
    # Derived: the released settings of Qwen2.5-7B.
    "qwen3-8b": ROME(
        layer=5,
        second_moment=False,
        objective=Objective(kind="mlp", steps=25, decay=1e-3, clamp=4.0),
    ),
    "gptj-mini": ROME(
        layer=0,
        objective=Objective(kind="mlp", steps=100, lr=2.0, decay=0.0, clamp=None),
        n_prefixes=2,
        prefix_lengths=(10,),
    ),
    "qwen3-mini": ROME(
        layer=0,
        objective=Objective(kind="mlp", steps=100, lr=2.0, decay=0.0, clamp=None),
        n_prefixes=2,
        prefix_lengths=(10,),
    ),
}
