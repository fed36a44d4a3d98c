"""FT: fine-tuning of the FFN's second matrix of one layer or several on the new answers.

    W <- W0 + clip(D, -epsilon, epsilon)
    D by Adam on the mean over edits of -1/|o*| sum_t log p(o*_t | .)

"target" reads every token of o* where it stands, after those before it (EasyEdit's FT-M). "last"
reads all of them at the prompt's last position, as if each were the next word: the loss of the code
released with ROME and MEMIT, and EasyEdit's FT-L. The bound on every weight makes FT-L in the sense
of the ROME paper. The released code for GPT-J trains the bias of the matrix too; here, as for
models without one, weights only.
Source: ROME Appendix E.1 and its released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain, pairwise
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from ..editing.keys import Batch
from ..editing.moments import Moments
from ..editing.request import Request, check_lengths, requests
from ..model.lm import LM
from ..model.states import Keys, Outputs, Site, added, chunked, read
from ..model.update import Factors, Update
from ..records import Edit
from ..settings import Layers, settings
from .base import Editor

Loss = Literal["last", "target"]  #: where the tokens of an answer are read

BUDGET = 2**28  #: numbers held for the changes and their Adam states at a time


@settings()
class FT(Editor):
    """Settings of FT; ``editor(lm, edits)`` edits one batch, ``each`` many; no moments are used.

    The Update is dense, kept as the pair (identity, dW^T).
    Raises ValueError, and leaves the model as it was, for settings out of range, no edit, edits
    that contradict, a layer that does not exist, a loss that is not finite.
    """

    layers: Layers
    loss: Loss = "last"
    steps: PositiveInt = 25  #: passes over the edits
    lr: PositiveFloat = 5e-4  #: of Adam
    floor: float = 1e-2  #: a batch below it makes no step; a pass with a mean below it is the last
    norm_constraint: PositiveFloat | None = None  #: epsilon, how far a weight may go from its start
    batch_size: PositiveInt = 64  #: edits per step

    def each(
        self, lm: LM, groups: Sequence[Sequence[Edit]], moments: Moments | None = None
    ) -> list[Update]:
        """One Update for each group, as if it were alone, as many in one batch as memory holds."""
        batches = [requests(edits, "last", g) for g, edits in enumerate(groups)]
        check_lengths(lm, chain(*batches))
        size = BUDGET // (4 * len(lm.layers(self.layers)) * lm.d_model * lm.d_mlp)

        def train(piece: range) -> list[Update]:
            return _Training(lm, [batches[g] for g in piece], self).run()

        parts = chunked(train, len(batches), max(1, size))
        return self.label(lm, groups, [update for part in parts for update in part])


class _Training:
    """Groups that train side by side, each with its own change of every layer.

    What lies below the first changed matrix runs once.
    """

    @torch.inference_mode(False)
    def __init__(self, lm: LM, groups: Sequence[Sequence[Request]], editor: FT):
        self.lm, self.editor, self.layers = lm, editor, lm.layers(editor.layers)
        self.precision = torch.promote_types(lm.dtype, torch.float32)
        # 1. One row of tokens for each request; for each token of its answer where it is read.
        self.requests, rows, labels = [r for group in groups for r in group], [], []
        for i, r in enumerate(self.requests):
            prompt, answer = lm.tokenizer(r.prompt)["input_ids"], lm.answer_ids(r.target)
            rows.append(prompt + (answer[:-1] if editor.loss == "target" else []))
            step = int(editor.loss == "target")
            labels += [
                (i, len(prompt) - 1 + t * step, token, 1 / len(answer))
                for t, token in enumerate(answer)
            ]
        self.batch = Batch(*lm.pad(rows), at=0)
        self.row, self.column, self.token = (
            torch.tensor(x, device=lm.device) for x in list(zip(*labels, strict=True))[:3]
        )
        self.share = torch.tensor([x[3] for x in labels], dtype=self.precision, device=lm.device)
        # 2. The rows of each group's batches.
        starts = torch.tensor([0, *map(len, groups)]).cumsum(0).tolist()
        self.pieces = [
            [range(a, b)[i : i + editor.batch_size] for i in range(0, b - a, editor.batch_size)]
            for a, b in pairwise(starts)
        ]
        # 3. Keys and outputs of the first layer, which training does not move.
        first = self.layers[0]
        below, self.above = lm.between(0, first), lm.above(first)
        key, out = Site("key", first), Site("out", first)

        def forward(piece: range) -> tuple[Keys, Outputs]:
            with torch.no_grad(), read(lm, [key, out]) as values:
                below(
                    input_ids=self.batch.ids[piece],
                    **self.batch.inputs(rows=piece),
                    use_cache=False,
                )
            return values[key], values[out]

        self.key, self.out = map(torch.cat, zip(*chunked(forward, len(rows), 256), strict=True))
        # 4. The changes, from zero.
        shape = (lm.d_model, lm.d_mlp)
        self.change = {
            layer: [
                torch.zeros(shape, dtype=self.precision, device=lm.device, requires_grad=True)
                for _ in groups
            ]
            for layer in self.layers
        }

    def _losses(self, groups: list[int], turn: int) -> list[Float[Tensor, ""]]:
        """The loss of the ``turn``-th batch of each group."""
        # 1. The rows of these batches, group by group.
        pieces = [self.pieces[g][turn] for g in groups]
        sizes = [len(piece) for piece in pieces]
        rows = torch.tensor([i for piece in pieces for i in piece], device=self.row.device)

        def product(x: Keys, layer: int) -> Outputs:
            changes = [self.change[layer][g] for g in groups]
            parts = zip(x.to(self.precision).split(sizes), changes, strict=True)
            return torch.cat([part @ change.T for part, change in parts]).to(x.dtype)

        # 2. The layers from the first changed matrix up, each group with its own changes.
        first, *others = self.layers
        with added(self.lm, {("mlp", layer): partial(product, layer=layer) for layer in others}):
            states = self.above(
                inputs_embeds=self.out[rows] + product(self.key[rows], first),
                **self.batch.inputs(rows=rows),
                use_cache=False,
            ).last_hidden_state
        # 3. The loss of each row: the mean surprise at the tokens of its answer.
        place = torch.full((len(self.requests),), -1, device=rows.device).index_copy(
            0, rows, torch.arange(len(rows), device=rows.device)
        )
        kept = place[self.row] >= 0
        at = place[self.row[kept]]
        logp = self.lm.head(states[at, self.column[kept]]).to(self.precision).log_softmax(-1)
        surprise = -logp.gather(1, self.token[kept][:, None])[:, 0] * self.share[kept]
        nll = torch.zeros(len(rows), dtype=self.precision, device=rows.device).index_add(
            0, at, surprise
        )
        if not nll.isfinite().all():
            bad = self.requests[rows[~nll.isfinite()][0]]
            raise ValueError(f"the loss of {bad.prompt!r} -> {bad.target!r} is not finite")
        return [part.mean() for part in nll.split(sizes)]

    @torch.inference_mode(False)
    @torch.enable_grad()
    def run(self) -> list[Update]:
        e, alive = self.editor, list(range(len(self.pieces)))
        parameters = [change for changes in self.change.values() for change in changes]
        adam = torch.optim.Adam(parameters, lr=e.lr)
        for _ in range(e.steps):
            total = dict.fromkeys(alive, 0.0)  # sum of the losses of a pass
            for turn in range(max(len(self.pieces[g]) for g in alive)):
                # 1. The loss of every group's batch.
                groups = [g for g in alive if len(self.pieces[g]) > turn]
                losses = self._losses(groups, turn)
                for g, loss in zip(groups, losses, strict=True):
                    total[g] += loss.item() * len(self.pieces[g][turn])
                # 2. One step of the groups above the floor; Adam passes by what has no gradient.
                moving = {
                    g: loss for g, loss in zip(groups, losses, strict=True) if loss >= e.floor
                }
                adam.zero_grad()
                if moving:
                    inputs = [changes[g] for changes in self.change.values() for g in moving]
                    torch.stack([*moving.values()]).sum().backward(inputs=inputs)
                    adam.step()
                # 3. Back into the box.
                if e.norm_constraint is not None:
                    with torch.no_grad():
                        for parameter in parameters:
                            parameter.clamp_(-e.norm_constraint, e.norm_constraint)
            # 4. A group whose pass was below the floor is done.
            alive = [g for g in alive if total[g] / sum(map(len, self.pieces[g])) >= e.floor]
            if not alive:
                break
        eye = torch.eye(self.lm.d_model, dtype=self.precision, device=self.lm.device)
        return [
            Update(
                {
                    layer: Factors(eye, self.change[layer][g].detach().T.contiguous())
                    for layer in self.layers
                }
            )
            for g in range(len(self.pieces))
        ]
