"""ACE at the level of neurons: of the layers that ACE writes, only the columns of fc2 that belong to the most important neurons change.

    dW_S = R K_S^T (weight C_SS + K_S K_S^T)^{-1},  zero outside S

The paper finds neurons and edits whole layers; this writes what it finds. S holds the n neurons of a layer with the greatest scores, summed
over the edits of a batch, of each edit's own prompt and old answer: in the value stage value scores (Eq. 9) at the prompt's last token, in
the query stage query scores (Eq. 10) at the subject's last token, which is where these stages write. It is ACE's least-squares write under
the constraint that all other columns stay as they are, so with S = all neurons it is ACE.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Sequence

import torch
from torch import Tensor

from ..attribution.scores import first_tokens, query_scores, value_scores
from ..editing.keys import tokens
from ..editing.moments import Moments
from ..editing.request import request
from ..editing.solve import Solver
from ..editing.write import Stage
from ..model.lm import LM
from ..model.update import Update
from ..records import Edit
from .ace import ACE

CHOICES = ("attribution", "random")


@dataclass(frozen=True)
class Part(Stage):
    """A stage that writes the columns of some neurons only, those of the request's group."""

    neurons: Mapping[int, Tensor] = field(default_factory=dict)  #: by layer, indices (groups, n)
    groups: Tensor | None = None  #: of each request, (n_requests,)

    def kept(
        self, moments: Moments, layer: int, history: Mapping[int, Tensor] | None = None
    ) -> tuple[Solver, Solver]:
        """``Stage.kept`` of the sub-block C_SS, column by column of the requests; zero outside S. Raises ValueError also for a history."""
        if history:
            raise ValueError(
                "keys of earlier edits are given, but other edits have other neurons; they cannot be kept"
            )
        blocks, C = [], moments[layer]
        for g in self.groups.unique().tolist():
            S = self.neurons[layer][g].to(C.device)[:, None]
            maps = super().kept(Moments({layer: C[S, S.T]}, moments.tokens), layer)
            blocks.append((S, (self.groups == g).nonzero()[:, 0].to(C.device), maps))

        def whole(which: int) -> Solver:
            def solve(x: Tensor) -> Tensor:
                out = torch.zeros_like(x, dtype=C.dtype)
                for S, columns, maps in blocks:
                    out[S, columns] = maps[which](x[S, columns].to(C))
                return out

            return solve

        return whole(0), whole(1)


@dataclass(frozen=True, kw_only=True)
class NeuronACE(ACE):
    """ACE's fields, and how many neurons of every layer are written; neurons of "random" choice (by ``seed``) are the control.

    Raises ValueError as ACE does, and for more neurons than a layer has.
    """

    n_neurons: int = 128
    choice: str = "attribution"  #: or "random"
    parts: Mapping[str, dict] | None = field(
        default=None, repr=False, compare=False
    )  #: found by ``each`` for the edits at hand

    def __post_init__(self):
        super().__post_init__()
        if self.n_neurons < 1 or self.choice not in CHOICES:
            raise ValueError(
                f"n_neurons {self.n_neurons}, choice {self.choice!r}: at least 1, one of {', '.join(map(repr, CHOICES))}"
            )

    @property
    def plan(self) -> dict[str, Stage]:
        stages = super().plan
        return (
            stages
            if self.parts is None
            else {name: Part(**vars(stage), **self.parts[name]) for name, stage in stages.items()}
        )

    def each(
        self,
        lm: LM,
        groups: Sequence[Sequence[Edit]],
        moments: Moments,
        history: Mapping[int, Tensor] | None = None,
    ) -> list[Update]:
        if self.n_neurons > lm.d_mlp:
            raise ValueError(f"n_neurons {self.n_neurons}: a layer of {lm.name!r} has {lm.d_mlp}")
        owner = {
            name: torch.tensor(
                [r.group for g, edits in enumerate(groups) for r in self.asked(edits, name, g)],
                dtype=torch.long,
            )
            for name in self.stages
        }
        layers, parts = lm.layers(self.layers), {}
        for name in self.stages:
            found = self.neurons(lm, groups, name) if groups else None
            parts[name] = dict(
                groups=owner[name],
                neurons={layer: found[:, layer] for layer in layers} if groups else {},
            )
        bound = dict(vars(self), parts=parts)
        return super(NeuronACE, NeuronACE(**bound)).each(lm, groups, moments, history)

    def neurons(self, lm: LM, groups: Sequence[Sequence[Edit]], stage: str) -> Tensor:
        """The neurons of every layer that a stage would write for each batch of edits, (groups, l, n_neurons), in ascending order."""
        edits = [edit for group in groups for edit in group]
        owner = torch.tensor([g for g, group in enumerate(groups) for _ in group], device=lm.device)
        if self.choice == "random":
            scores = torch.rand(
                lm.n_layers, lm.d_mlp, generator=torch.Generator().manual_seed(self.seed)
            ).expand(len(edits), -1, -1)
        else:

            def read(position: str) -> tuple[Tensor, Tensor]:  # prompts up to their lookup token
                cut = [
                    tokens(lm, r.prompt, r.end) for r in (request(edit, position) for edit in edits)
                ]
                return lm.pad([ids[: at + 1] for ids, at in cut])

            answers = first_tokens(lm, [edit.target_true or edit.target_new for edit in edits])
            scores = value_scores(lm, *read(self.value_position), answers)
            if stage == "query":
                scores = query_scores(lm, *read(self.query_position), scores)
        total = torch.zeros(
            len(groups), lm.n_layers, lm.d_mlp, dtype=torch.float64, device=lm.device
        )
        total.index_add_(0, owner, scores.to(total))
        return (
            total.sort(dim=-1, descending=True, stable=True)
            .indices[..., : self.n_neurons]
            .sort(-1)
            .values
        )
