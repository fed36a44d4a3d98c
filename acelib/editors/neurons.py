"""ACE at the level of neurons: of the layers that ACE writes, only some columns of fc2 change.

    dW_S = R K_S^T (weight C_SS + K_S K_S^T)^{-1},  zero outside S

The paper finds neurons and edits whole layers; this writes what it finds. S holds the n neurons of
a layer with the greatest scores, summed over the edits of a batch, of each edit's own prompt and
old answer: in the value stage value scores (Eq. 9) at the prompt's last token, in the query stage
query scores (Eq. 10) at the subject's last token, which is where these stages write. It is ACE's
least-squares write under the constraint that all other columns stay as they are, so with S = all
neurons it is ACE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import PositiveInt
from torch import Tensor

from ..attribution.scores import Ids, first_tokens, query_scores, value_scores
from ..editing.keys import tokens
from ..editing.moments import Moments
from ..editing.request import Request, request
from ..editing.solve import Solver
from ..editing.write import History, Stage
from ..model.lm import LM
from ..records import Edit
from ..settings import settings
from .ace import ACE


@settings()
class NeuronStage(Stage):
    """A stage that writes the columns of some neurons only, those of the request's group."""

    neurons: Mapping[int, Tensor]  #: by layer, indices (groups, n)
    groups: Tensor  #: of each request, (n_requests,)

    def constraint(
        self, moments: Moments, layer: int, history: History | None = None
    ) -> tuple[Solver, Solver]:
        """``Stage.constraint`` of the sub-block C_SS, by column of the requests; zero outside S.

        Raises ValueError also for a history.
        """
        if history:
            raise ValueError(
                "keys of earlier edits are given, but other edits have other neurons; they cannot "
                "be kept"
            )
        blocks, C = [], moments[layer]
        for g in self.groups.unique().tolist():
            S = self.neurons[layer][g].to(C.device)[:, None]
            maps = super().constraint(Moments({layer: C[S, S.T]}, moments.tokens), layer)
            blocks.append((S, (self.groups == g).nonzero()[:, 0].to(C.device), maps))

        def whole(which: int) -> Solver:
            def solve(x: Float[Tensor, "d_mlp n"]) -> Float[Tensor, "d_mlp n"]:
                out = torch.zeros_like(x, dtype=C.dtype)
                for S, columns, maps in blocks:
                    out[S, columns] = maps[which](x[S, columns].to(C))
                return out

            return solve

        return whole(0), whole(1)


@settings()
class NeuronACE(ACE):
    """ACE's settings, and how many neurons of every layer are written.

    Neurons of "random" choice, by the seed of the stages, are the control.
    Raises ValueError as ACE does, and for more neurons than a layer has.
    """

    n_neurons: PositiveInt = 128
    choice: Literal["attribution", "random"] = "attribution"

    def stages_for(
        self, lm: LM, groups: Sequence[Sequence[Edit]], requests: Mapping[str, Sequence[Request]]
    ) -> dict[str, Stage]:
        """The stages of ``plan``, each with the neurons that the edits at hand are written into."""
        if self.n_neurons > lm.d_mlp:
            raise ValueError(f"n_neurons {self.n_neurons}: a layer of {lm.name!r} has {lm.d_mlp}")
        layers = lm.layers(self.layers)
        if not groups:
            return self.plan
        stages: dict[str, Stage] = {}
        for name, stage in self.plan.items():
            neurons = self.neurons(lm, groups, name)
            stages[name] = NeuronStage(
                **vars(stage),
                neurons={layer: neurons[:, layer] for layer in layers},
                groups=torch.tensor([r.group for r in requests[name]], dtype=torch.long),
            )
        return stages

    def neurons(
        self, lm: LM, groups: Sequence[Sequence[Edit]], stage: str
    ) -> Int[Tensor, "groups layers n_neurons"]:
        """The neurons of each layer that a stage would write for each group, in ascending order."""
        edits = [edit for group in groups for edit in group]
        owner = torch.tensor([g for g, group in enumerate(groups) for _ in group], device=lm.device)
        scores = (
            self._random(lm, edits) if self.choice == "random" else self._scores(lm, edits, stage)
        )
        total = torch.zeros(
            len(groups), lm.n_layers, lm.d_mlp, dtype=torch.float64, device=lm.device
        )
        total.index_add_(0, owner, scores.to(total))
        order = total.sort(dim=-1, descending=True, stable=True).indices
        return order[..., : self.n_neurons].sort(-1).values

    def _random(self, lm: LM, edits: Sequence[Edit]) -> Float[Tensor, "edits layers d_mlp"]:
        """Scores that are the same for all edits."""
        generator = torch.Generator().manual_seed(self.value.seed)
        return torch.rand(lm.n_layers, lm.d_mlp, generator=generator).expand(len(edits), -1, -1)

    def _scores(
        self, lm: LM, edits: Sequence[Edit], stage: str
    ) -> Float[Tensor, "edits layers d_mlp"]:
        """Value or query scores of each edit's prompt and old answer."""

        def read(position: str) -> tuple[Ids, Ids]:
            """Ids and mask of the prompts, up to their lookup tokens."""
            requests = [request(edit, position) for edit in edits]
            ends = [tokens(lm, r.prompt, r.end) for r in requests]
            return lm.pad([ids[: at + 1] for ids, at in ends])

        answers = first_tokens(lm, [edit.target_true or edit.target_new for edit in edits])
        scores = value_scores(lm, *read(self.value.position), answers)
        if stage == "query":
            scores = query_scores(lm, *read(self.query.position), scores)
        return scores
