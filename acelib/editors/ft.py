"""FT: fine-tuning of the FFN's second matrix of one layer or several on the new answers, with or without a bound on every weight.

    W <- W0 + clip(D, -epsilon, epsilon),  D by Adam on the mean over edits of -1/|o*| sum_t log p(o*_t | .)

"target" reads every token of o* where it stands, after those before it (EasyEdit's FT-M). "last" reads all of them at the prompt's last
position, as if each were the next word: the loss of the code released with ROME and MEMIT, and EasyEdit's FT-L. The bound makes FT-L in
the sense of the ROME paper. The released code for GPT-J trains the bias of the matrix too; here, as for models without one, weights only.
Source: ROME Appendix E.1 and its released code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Sequence

import torch
from torch import Tensor

from ..editing.keys import Batch
from ..editing.moments import Moments
from ..editing.request import Request, requests
from ..model.lm import LM
from ..model.states import added, chunked, read
from ..model.update import Factors, Update
from ..records import Edit
from .base import signed

LOSSES = ("last", "target")
BUDGET = 2**28  #: numbers held for the changes and their Adam states at a time


@dataclass(frozen=True, kw_only=True)
class FT:
    """Hyper-parameters of FT; ``editor(lm, edits)`` edits one batch, ``editor.each(lm, groups)`` independent ones; moments are not used.

    Raises ValueError, and leaves the model as it was, for settings out of range, no edit, edits that contradict, a layer that does not
    exist, a loss that is not finite.
    """

    layers: tuple[int, ...]
    loss: str = "last"  #: "last" or "target"
    steps: int = 25  #: passes over the edits
    lr: float = 5e-4  #: of Adam
    floor: float = 1e-2  #: a batch below it makes no step; a pass with a mean below it is the last
    norm_constraint: float | None = None  #: epsilon, how far any weight may go from where it was
    batch_size: int = 64  #: edits a step

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise ValueError(
                f"loss {self.loss!r} is unknown; allowed: {', '.join(map(repr, LOSSES))}"
            )
        good = dict(
            steps=self.steps >= 1,
            lr=self.lr > 0,
            batch_size=self.batch_size >= 1,
            norm_constraint=self.norm_constraint is None or self.norm_constraint > 0,
        )
        for name in good:
            if not good[name]:
                raise ValueError(f"FT: {name} {getattr(self, name)} is out of range")

    def __call__(self, lm: LM, edits: Sequence[Edit], moments: Moments | None = None) -> Update:
        """The Update that writes ``edits`` together; dense, kept as the pair (identity, dW^T)."""
        return self.each(lm, [edits], moments)[0]

    def each(
        self, lm: LM, groups: Sequence[Sequence[Edit]], moments: Moments | None = None
    ) -> list[Update]:
        """One Update for each group, every group as if it were alone, as many in one batch as memory holds."""
        given = [requests(edits, "last", g) for g, edits in enumerate(groups)]
        size = BUDGET // (4 * len(lm.layers(self.layers)) * lm.d_model * lm.d_mlp)
        parts = chunked(
            lambda piece: _Training(lm, [given[g] for g in piece], self).run(),
            len(given),
            max(1, size),
        )
        return signed(lm, self, groups, [update for part in parts for update in part])


class _Training:
    """Groups that train side by side, each with its own change of every layer; what lies below the first changed matrix runs once."""

    @torch.inference_mode(False)
    def __init__(self, lm: LM, given: Sequence[Sequence[Request]], editor: FT):
        self.lm, self.editor, self.layers = lm, editor, lm.layers(editor.layers)
        self.precision = torch.promote_types(lm.dtype, torch.float32)
        self.given, rows, labels = [r for rs in given for r in rs], [], []
        for i, r in enumerate(self.given):
            prompt, answer = lm.tokenizer(r.prompt)["input_ids"], lm.answer_ids(r.target)
            rows.append(prompt + (answer[:-1] if editor.loss == "target" else []))
            step = int(editor.loss == "target")
            labels += [
                (i, len(prompt) - 1 + t * step, token, 1 / len(answer))
                for t, token in enumerate(answer)
            ]
        self.batch = Batch(*lm.pad(rows), at=0)
        self.row, self.column, self.token = (
            torch.tensor(x, device=lm.device) for x in list(zip(*labels))[:3]
        )
        self.share = torch.tensor([x[3] for x in labels], dtype=self.precision, device=lm.device)
        starts = torch.tensor([0, *map(len, given)]).cumsum(0).tolist()
        self.pieces = [
            [range(a, b)[i : i + editor.batch_size] for i in range(0, b - a, editor.batch_size)]
            for a, b in zip(starts, starts[1:])
        ]  # rows of each group's batches
        first = self.layers[0]
        below, self.above = lm.between(0, first), lm.above(first)

        def forward(piece: range) -> tuple[Tensor, Tensor]:
            with torch.no_grad(), read(lm, [("key", first), ("out", first)]) as values:
                below(
                    input_ids=self.batch.ids[piece],
                    **self.batch.inputs(rows=piece),
                    use_cache=False,
                )
            return values["key", first], values["out", first]

        self.key, self.out = (torch.cat(parts) for parts in zip(*chunked(forward, len(rows), 256)))
        shape = (lm.d_model, lm.d_mlp)
        self.change = {
            layer: [
                torch.zeros(shape, dtype=self.precision, device=lm.device, requires_grad=True)
                for _ in given
            ]
            for layer in self.layers
        }

    def _losses(self, groups: list[int], turn: int) -> list[Tensor]:
        """The loss of the ``turn``-th batch of each group."""
        chosen = [self.pieces[g][turn] for g in groups]
        sizes, rows = (
            [len(piece) for piece in chosen],
            torch.tensor([i for piece in chosen for i in piece], device=self.row.device),
        )

        def product(x: Tensor, layer: int) -> Tensor:
            parts = zip(x.to(self.precision).split(sizes), (self.change[layer][g] for g in groups))
            return torch.cat([part @ change.T for part, change in parts]).to(x.dtype)

        first, *others = self.layers
        with added(self.lm, {layer: partial(product, layer=layer) for layer in others}):
            states = self.above(
                inputs_embeds=self.out[rows] + product(self.key[rows], first),
                **self.batch.inputs(rows=rows),
                use_cache=False,
            ).last_hidden_state
        place = torch.full((len(self.given),), -1, device=rows.device).index_copy(
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
            bad = self.given[rows[~nll.isfinite()][0]]
            raise ValueError(f"the loss of {bad.prompt!r} -> {bad.target!r} is not finite")
        return [part.mean() for part in nll.split(sizes)]

    @torch.inference_mode(False)
    @torch.enable_grad()
    def run(self) -> list[Update]:
        e, alive = self.editor, list(range(len(self.pieces)))
        parameters = [change for changes in self.change.values() for change in changes]
        adam = torch.optim.Adam(parameters, lr=e.lr)
        for _ in range(e.steps):
            seen = dict.fromkeys(alive, 0.0)  # sum of the losses of a pass
            for turn in range(max(len(self.pieces[g]) for g in alive)):
                groups = [g for g in alive if len(self.pieces[g]) > turn]
                losses = self._losses(groups, turn)
                for g, loss in zip(groups, losses):
                    seen[g] += loss.item() * len(self.pieces[g][turn])
                moving = {g: loss for g, loss in zip(groups, losses) if loss >= e.floor}
                adam.zero_grad()  # Adam passes by what has no gradient
                if moving:
                    sum(moving.values()).backward(
                        inputs=[changes[g] for changes in self.change.values() for g in moving]
                    )
                    adam.step()
                if e.norm_constraint is not None:
                    with torch.no_grad():
                        for parameter in parameters:
                            parameter.clamp_(-e.norm_constraint, e.norm_constraint)
            alive = [g for g in alive if seen[g] / sum(map(len, self.pieces[g])) >= e.floor]
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


#: Released with MEMIT: "unconstr", which is EasyEdit's too. MQuAKE's is "constr": layers=(0,), norm_constraint=5e-5.
PRESETS = {
    "gpt-j-6b": FT(layers=(21,)),
    # Derived: the released settings of Qwen2.5-7B, which train its last layer.
    "qwen3-8b": FT(layers=(35,)),
    "gptj-mini": FT(layers=(6,), loss="target", lr=0.02, norm_constraint=0.2),
    "qwen3-mini": FT(layers=(6,), loss="target", lr=0.02, norm_constraint=0.2),
}
