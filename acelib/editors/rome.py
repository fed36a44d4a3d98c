"""ROME: one fact, one layer, an exact rank-one write (Meng et al., NeurIPS 2022).

    dW = (v* - v) u^T / (k . u),  u = C^{-1} mean key

v* is the target vector at the subject's last token. As released, the direction u comes from the
key averaged over the prefixes and the constraint dW k = v* - v holds at the bare prompt's key;
r-ROME (Gupta et al., 2024) uses the averaged key in both. Many released settings leave C out:
u = mean key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Annotated, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt

from ..editing.keys import Walk, contexts
from ..editing.moments import Moments
from ..editing.request import Position, check_lengths, requests
from ..editing.search import Objective, target_vectors
from ..editing.solve import Solver, rank_one
from ..editing.write import identity
from ..model.lm import LM
from ..model.update import Factors, Update
from ..records import Edit
from ..settings import Listed, Texts, settings
from .base import Editor

Lengths = Annotated[tuple[PositiveInt, ...], Listed]


@settings()
class ROME(Editor):
    """Settings of ROME; ``editor(lm, edits, moments)`` edits one batch, ``each`` many.

    The edits of a batch are written one after the other, each on the model as edited so far.
    ``moments`` may be None without ``second_moment``. Raises ValueError, and leaves the model as it
    was, for unknown settings, no edit, edits that contradict, a layer that does not exist or has no
    moment, a loss that is not finite.
    """

    layer: int
    second_moment: bool = True  #: u = C^{-1} mean key; else the mean key itself
    #: the key at which the value must arrive: the bare prompt's (ROME), or the mean one (r-ROME)
    constraint: Literal["bare", "mean"] = "bare"
    objective: Objective = Objective(kind="mlp", steps=20, clamp=4.0)
    position: Position = "subject_last"
    #: texts of each length, sampled from the model, that prompts are also read after
    n_prefixes: NonNegativeInt = 10
    prefix_lengths: Lengths = (5, 10)  #: tokens
    seed: int = 0  #: of the sampling
    texts: Texts | None = None  #: read before prompts instead of sampled ones

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.layer,)

    def prefixes(self, lm: LM) -> tuple[str, ...]:
        """Nothing, then ``texts``, or, if that is None, texts of every length from the model."""
        if self.texts is not None:
            return ("", *self.texts)
        samples = (
            contexts(lm, self.n_prefixes, length, self.seed + i)[1:]
            for i, length in enumerate(self.prefix_lengths)
        )
        return ("", *(text for texts in samples for text in texts))

    def with_texts(self, texts: Sequence[str]) -> ROME:
        """The same editor, with ``texts`` read before prompts instead of sampled ones."""
        return replace(self, texts=tuple(texts))

    def _solver(self, moments: Moments | None) -> Solver:
        """x -> C^{-1} x, or x itself if the second moment is left out."""
        if not self.second_moment:
            return identity
        if moments is None:
            raise ValueError("second_moment is on, but no second moments are given")
        return moments.solver(self.layer, 1.0)

    @torch.inference_mode(False)
    def each(
        self, lm: LM, groups: Sequence[Sequence[Edit]], moments: Moments | None = None
    ) -> list[Update]:
        """One Update for each group, every group as if it were alone.

        The first edits of all groups run in one batch, then the second ones.
        """
        # 1. Check edits, the layer and its moment before any work.
        batches = [requests(edits, self.position, g) for g, edits in enumerate(groups)]
        check_lengths(lm, chain(*batches))
        lm.layers(self.layers)
        solver = self._solver(moments)
        if not groups:
            return []
        # 2. One edit of each group after the other, each on what the group has written so far.
        prefixes, updates = self.prefixes(lm), [Update() for _ in groups]
        check_lengths(lm, chain(*batches), prefixes)
        for turn in range(max(map(len, batches))):
            now, before = [rs[turn] for rs in batches if len(rs) > turn], updates if turn else None
            targets = target_vectors(lm, now, self.layer, self.objective, prefixes, before)
            keys = (
                Walk(lm, now, prefixes)
                .climb(self.layer, before)
                .unflatten(0, (len(now), len(prefixes)))
                .double()
            )
            mean, bare = keys.mean(1), keys[:, 0]
            U, R = solver(mean.T), targets.delta[-1]
            at = bare if self.constraint == "bare" else mean
            for i, r in enumerate(now):
                pair = rank_one(at[i], R[i].double(), U[:, i])
                updates[r.group] += Update({self.layer: Factors(*(t.to(R.dtype) for t in pair))})
        return self.label(lm, groups, updates)
