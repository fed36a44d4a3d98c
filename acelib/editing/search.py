"""Target vectors: the smallest push at one layer's lookup token that makes a model say the object.

    L(delta) = phi NLL(target) + kl KL(p_delta || p_0) + decay ||delta|| / ||h_0||^2

(ACE Eq. 13; MEMIT Eq. 16; PMET Eq. 8.) "block" (MEMIT): one delta on the block's output,
z = h_0 + delta. "mlp" (ROME): on the FFN's, z = F_0 + delta. "pmet": one on the attention's and one
on the FFN's output, of which only the FFN's is written, z = F_0 + delta. Many requests are
optimised in one batch, exactly: each has its own delta, Adam state, stop, clamp.
Both deltas of "pmet" are kept: where attention and FFN read the same input (GPT-J) they get the
same gradient and are one vector, so that F_0 + delta asks the FFN for half of what was searched.
What cannot change in the loop (layers up to the edit, positions before the lookup token) is
computed once, and the unembedding is read at the label positions only. The KL term reads the
next-token distribution at the subject's last token of "{subject} is a", as the released code does,
so only the subject is run; where the prompt begins with the subject and is edited there, that
position is in the batch already and costs nothing. For requests at a prompt's last token the KL
prompt is the same, with delta added at its subject's last token.
A push into the last layer before the tokens that are read never reaches them: its best delta is 0,
and that is what it gets. (The gradient there is rounding, which Adam would turn into whole steps.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from transformers import DynamicCache

from ..model.lm import LM
from ..model.states import Site, chunked, read
from ..model.update import Update, overlaid
from ..settings import settings
from .keys import overlay_of, prefix_weights, tokens
from .request import Request
from .tail import Tail, frozen_outputs, fused, rows_that_fit, shared_start

Kind = Literal["block", "mlp", "pmet"]

#: where each kind adds its deltas; the last is written
KINDS = {"block": ("out",), "mlp": ("mlp",), "pmet": ("attn", "mlp")}

#: PMET, once the model says the target: the KL that ends the search, and phi until then
SAID_KL, SAID_PHI = 0.01, 0.1


@settings()
class Objective:
    """How target vectors are searched. Raises ValueError for a setting outside its range."""

    kind: Kind = "block"  #: "block" (MEMIT), "mlp" (ROME) or "pmet"
    steps: PositiveInt = 25  #: evaluations of the loss; one Adam update fewer
    lr: PositiveFloat = 0.5  #: of Adam
    decay: NonNegativeFloat = 0.5  #: weight of ||delta|| / ||h_0||^2
    clamp: PositiveFloat | None = 0.75  #: delta stays in the ball of clamp * ||h_0||; None: no ball
    kl: NonNegativeFloat = 0.0625  #: weight of the KL term
    floor: float | None = 0.05  #: stop a request at this loss; None: never

    @property
    def site(self) -> str:
        """Where the target is measured and the residual taken: block's output or FFN's."""
        return KINDS[self.kind][-1]


@dataclass(frozen=True, eq=False)
class Targets:
    """Result of a search for n requests."""

    #: h_0, what the pushed sites give at the lookup token
    start: Float[Tensor, "pushes n d_model"]
    #: one push ("block", "mlp"), or two ("pmet": attention, FFN)
    delta: Float[Tensor, "pushes n d_model"]
    #: last loss
    loss: Float[Tensor, " n"]
    #: last mean NLL of the target's tokens, nats
    nll: Float[Tensor, " n"]
    #: last KL, nats
    kl: Float[Tensor, " n"]
    #: Adam updates made
    steps: Int[Tensor, " n"]
    #: by how much attention's push moves the FFN's output: 0 in parallel blocks
    passed: Float[Tensor, "n d_model"]

    @property
    def value(self) -> Float[Tensor, "n d_model"]:
        """z, what the written site should be at the lookup token."""
        return self.start[-1] + self.delta[-1]

    @property
    def attn(self) -> Float[Tensor, "n d_model"]:
        """What attention's output should be ("pmet")."""
        return self.start[0] + self.delta[0]

    @property
    def whole(self) -> Float[Tensor, "n d_model"]:
        """What the FFN's output should be so that, with attention as it is, the block's output is
        the one that was searched: F_0 + delta, attention's delta, and what that moves the FFN by.
        """
        return self.value + self.delta[0] + self.passed if len(self.delta) > 1 else self.value


def target_vectors(
    lm: LM,
    requests: Sequence[Request],
    layer: int,
    objective: Objective,
    prefixes: Sequence[str] = ("",),
    updates: Sequence[Update | None] | None = None,
    rows: int | None = None,
) -> Targets:
    """Optimise the target vectors of all requests at ``layer``; weights are not touched.

    prefixes: each request's NLL is the mean over these (the first is "").
    updates: the model is searched as edited by these, one for each group, or None.
    rows: prompts in one batch, halved when memory runs out; None: as many as
    ``tail.rows_that_fit``. Requests of like length run together.
    Returns: ``Targets``; vectors in the unit of the residual stream.
    Raises: ValueError for a layer that does not exist, no request, or a loss that is not finite
    (naming the request).
    Source: MEMIT Section 4.2 and Algorithm 1; PMET Section 3.3; ACE Eq. 13.
    """
    lm.layers([layer])
    prefix_weights(lm, prefixes)
    if not requests:
        raise ValueError("no request given; target vectors need at least one")
    # 1. In the order of the tokens from the lookup token on, so that there is little padding.
    length = [
        (len(ids) - at + len(lm.answer_ids(r.target)), at)
        for r in requests
        for ids, at in [tokens(lm, r.prompt, r.end)]
    ]
    order = sorted(range(len(requests)), key=length.__getitem__)
    if rows is None:
        rows = rows_that_fit(lm, layer, *map(max, zip(*length, strict=True)))

    # 2. As many at once as fit into memory.
    def search(piece: range) -> Targets:
        some = [requests[order[i]] for i in piece]
        return _Search(lm, some, layer, objective, prefixes, updates).run()

    parts = chunked(search, len(requests), max(1, rows // (len(prefixes) + 1)))

    # 3. Back in the order of the requests.
    back, whole = torch.tensor(order).argsort(), {}
    for name in (f.name for f in fields(Targets)):
        dim = 1 if name in ("start", "delta") else 0
        values = torch.cat([getattr(part, name) for part in parts], dim)
        whole[name] = values.index_select(dim, back.to(values.device))
    return Targets(**whole)


class _Search:
    """One batch: what stays fixed in the loop, and the loop."""

    def __init__(
        self,
        lm: LM,
        requests: Sequence[Request],
        layer: int,
        objective: Objective,
        prefixes: Sequence[str],
        updates: Sequence[Update | None] | None,
    ):
        self.lm, self.requests, self.layer = lm, requests, layer
        self.objective, self.updates = objective, updates
        self.precision = torch.promote_types(lm.dtype, torch.float32)
        changes = [updates[r.group] if updates else None for r in requests]
        self.one_model = len({id(u) if u and u.layers else None for u in changes}) == 1
        self._lay_out(prefixes)
        with torch.inference_mode(False), torch.no_grad():
            self._freeze()

    def _lay_out(self, prefixes: Sequence[str]) -> None:
        """Rows of every request; labels: request, row, column after the lookup, token."""
        guard = self.objective.kl > 0 or self.objective.kind == "pmet"
        rows: list[tuple[list[int], int]] = []  # tokens, and where the lookup token is
        owner: list[int] = []  # of each row, its request
        beginning: list[str] = []  # of each row, its prefix
        self.bare: list[int] = []  # of each request, the row without prefix
        kl_row: list[int] = []  # of each request, the row of the KL term
        labels: list[tuple[int, int, int, int]] = []
        weights: list[float] = []
        for i, r in enumerate(self.requests):
            # 1. One row for each prefix: prompt and answer, whose tokens are the labels.
            answer = self.lm.answer_ids(r.target)
            self.bare.append(len(rows))
            for prefix in prefixes:
                ids, at = tokens(self.lm, prefix + r.prompt, len(prefix) + r.end)
                labels += [
                    (i, len(rows), len(ids) - 1 - at + j, token) for j, token in enumerate(answer)
                ]
                weights += [1 / (len(answer) * len(prefixes))] * len(answer)
                rows.append((ids + answer[:-1], at))
                owner.append(i)
                beginning.append(prefix)
            # 2. One for the KL term, the subject alone, unless the bare prompt begins with it.
            subject = r.subject or r.prompt[: r.end]
            ids, at = tokens(self.lm, subject + " is a", len(subject))
            bare_ids, bare_at = rows[self.bare[i]]
            if not guard or ids[: at + 1] == bare_ids[: bare_at + 1]:
                kl_row.append(self.bare[i])
            else:
                kl_row.append(len(rows))
                rows.append((ids[: at + 1], at))
                owner.append(i)
                beginning.append("")
        # 3. Whose push reaches a label: below the last layer every one, in it only at the label.
        below = self.layer < self.lm.n_layers - 1
        reached = {i for i, _, column, _ in labels if below or column == 0}
        # 4. What rows of one prefix begin with runs once, if they all ask one model.
        self.batch, self.shared, self.first, self.like = shared_start(
            self.lm, rows, beginning if self.one_model else [""] * len(rows)
        )
        device = self.lm.device
        self.owner = torch.tensor(owner, device=device)
        self.reached = torch.tensor([i in reached for i in range(len(kl_row))], device=device)
        self.kl_row = torch.tensor(kl_row, device=device)
        self.label = torch.tensor(labels, device=device)
        self.label_weight = torch.tensor(weights, device=device, dtype=self.precision)

    def _freeze(self) -> None:
        """Keys and values before the lookup token, and the states of the rest after ``layer``."""
        lm, layer, at, batch = self.lm, self.layer, self.batch.at, self.batch
        sites = [Site(kind, layer) for kind in ("in", "attn", "mlp", "out")]
        past, whole = DynamicCache(), fused(lm, 0, lm.n_layers - 1, batch.ids.shape[1])
        # 1. What rows of one prefix begin with, once; every row gets its keys and values.
        if self.shared:
            with overlaid(lm, self._overlay(self.first)):
                whole(
                    input_ids=batch.ids[self.first, : self.shared],
                    **batch.inputs(slice(self.shared), self.first),
                    past_key_values=past,
                    use_cache=True,
                )
            past = DynamicCache([(k[self.like], v[self.like]) for k, v, *_ in past])
        with overlaid(lm, self._overlay(torch.arange(len(self.owner)))):
            # 2. The rest before the lookup token.
            if at > self.shared:
                head = slice(self.shared, at)
                whole(
                    input_ids=batch.ids[:, head],
                    **batch.inputs(head),
                    past_key_values=past,
                    use_cache=True,
                )
            self.past = [(k, v) for k, v, *_ in past]
            # 3. From the lookup token on, one block further than ``layer``.
            with read(lm, sites) as values, frozen_outputs(lm, layer) as self.frozen:
                tail, last = batch.inputs(slice(at, None)), min(layer + 1, lm.n_layers - 1)
                fused(lm, 0, last, batch.ids.shape[1])(
                    input_ids=batch.ids[:, at:], **tail, past_key_values=past, use_cache=bool(at)
                )
        self.hidden = values["out", layer]
        # Between attention and FFN, at the lookup token.
        self.middle = (values["in", layer] + values["attn", layer])[:, 0]
        start = [values[kind, layer][self.bare, 0] for kind in KINDS[self.objective.kind]]
        self.start = torch.stack(start).to(self.precision)  # h_0 (pushes, n, d_model)
        self.size = self.start.norm(dim=-1)

    def _overlay(self, rows: Int[Tensor, " rows"]) -> list[Update | None]:
        """The update of each row's group."""
        owners = self.owner.tolist()
        return overlay_of(self.updates, [self.requests[owners[i]].group for i in rows.tolist()])

    def _push(
        self, rows: Int[Tensor, " rows"], delta: Float[Tensor, "pushes rows d_model"]
    ) -> Float[Tensor, "rows d_model"]:
        """States after ``layer`` at the lookup token, with delta added."""
        lm, first, delta = self.lm, self.hidden[rows, 0], delta.to(self.hidden.dtype)
        if len(delta) == 1 or lm.family.parallel:
            return first + delta.sum(0)
        # What attention adds also passes through the FFN of its own layer.
        middle = (self.middle[rows] + delta[0])[:, None]
        return (middle + self._ffn(middle))[:, 0] + delta[1]

    def _ffn(self, middle: Float[Tensor, "rows 1 d_model"]) -> Float[Tensor, "rows 1 d_model"]:
        """What the FFN of ``layer`` gives for states between attention and FFN."""
        return self.lm.mlp(self.layer)(self.lm.ffn_norm(self.layer)(middle))

    def _passed(self, delta: Float[Tensor, "pushes n d_model"]) -> Float[Tensor, "n d_model"]:
        """By how much attention's push moves the FFN's output at the bare prompts' lookup token."""
        if len(delta) == 1 or self.lm.family.parallel:
            return torch.zeros_like(delta[0])
        middle = self.middle[self.bare]
        with torch.no_grad(), overlaid(self.lm, self._overlay(torch.tensor(self.bare))):
            moved = self._ffn((middle + delta[0].to(middle.dtype))[:, None])
            return (moved - self._ffn(middle[:, None]))[:, 0].to(delta)

    def _narrow(self, alive: Int[Tensor, " alive"]) -> None:
        """Set the loop up for the requests ``alive``: rows, labels, and where states are read."""
        self.rows = torch.isin(self.owner, alive).nonzero()[:, 0]
        place = torch.full_like(self.owner, -1).index_copy(
            0, self.rows, torch.arange(len(self.rows), device=alive.device)
        )
        self.active, width = place[self.label[:, 1]] >= 0, self.hidden.shape[1]
        self.who, row, column, self.token = self.label[self.active].T
        wanted = torch.cat([place[row] * width + column, place[self.kl_row[alive]] * width])
        places, self.order = wanted.unique(return_inverse=True)
        self.tail = Tail(
            self.lm,
            self.layer,
            self.batch,
            self.rows,
            self.hidden,
            self.past,
            self.frozen,
            places if self.one_model else None,
        )
        if not self.one_model:
            self.order = wanted

    def _losses(
        self, alive: Int[Tensor, " alive"], delta: Float[Tensor, "pushes n d_model"]
    ) -> tuple[Float[Tensor, " alive"], Float[Tensor, "alive vocab"], Bool[Tensor, " alive"]]:
        """Of the requests ``alive``: NLL, log-probabilities at the KL position, and success.

        Success (asked for by PMET only): every target token is the arg-max.
        """
        n = len(self.requests)
        states = self.tail(self._push(self.rows, delta[:, self.owner[self.rows]]))
        read = states.view(-1, states.shape[-1])[self.order]
        logp = self.lm.head(read).to(self.precision).log_softmax(-1)
        said, guard = logp[: len(self.who)], logp[len(self.who) :]
        surprise = -said.gather(1, self.token[:, None])[:, 0] * self.label_weight[self.active]
        nll = torch.zeros(n, dtype=logp.dtype, device=logp.device).index_add(0, self.who, surprise)
        missed = torch.ones(n, device=logp.device)
        if self.objective.kind == "pmet":
            missed = torch.zeros_like(missed).index_add(
                0, self.who, (said.argmax(-1) != self.token).float()
            )
        return nll[alive], guard, missed[alive] == 0

    @torch.inference_mode(False)
    @torch.enable_grad()
    def run(self) -> Targets:
        """Adam, for all requests at once; each stops for itself."""
        o, n, device = self.objective, len(self.requests), self.lm.device
        delta = torch.zeros_like(self.start).requires_grad_()
        adam = torch.optim.Adam([delta], lr=o.lr)
        loss, nll, kl, phi = (torch.ones(n, dtype=self.precision, device=device) for _ in range(4))
        steps, alive = torch.zeros(n, dtype=torch.long), torch.arange(n, device=device)
        step, guard_0 = 0, None
        while len(alive):
            self._narrow(alive)
            with overlaid(self.lm, self._overlay(self.rows)):
                while True:  # until a request stops and the batch gets smaller
                    # 1. The losses; the first step is also what KL compares with.
                    with torch.set_grad_enabled(step < o.steps - 1):
                        nll_, guard, hit = self._losses(alive, delta)
                    if guard_0 is None:
                        guard_0 = guard.detach()
                    kl_ = (guard.exp() * (guard - guard_0[alive])).sum(-1)
                    loss_ = (
                        phi[alive] * nll_
                        + o.kl * kl_
                        + o.decay * (delta[:, alive].norm(dim=-1) / self.size[:, alive] ** 2).sum(0)
                    )
                    self._check(loss_, alive, step)
                    loss[alive], nll[alive] = loss_.detach(), nll_.detach()
                    kl[alive], steps[alive.cpu()] = kl_.detach(), step
                    # 2. Who stops: whose push reaches nothing, at the last step, below the floor,
                    # or (PMET) once it is said.
                    stop = ~self.reached[alive] | (step == o.steps - 1)
                    if o.floor is not None:
                        stop |= loss_ < o.floor
                    if o.kind == "pmet":
                        stop |= hit & (kl_ <= SAID_KL)
                        phi[alive] = torch.where(hit, SAID_PHI, 1.0).to(phi)
                    # 3. The others take one step and stay in their balls.
                    moving = alive[~stop]
                    if len(moving):
                        self._step(adam, delta, loss_[~stop], moving)
                    step += 1
                    if stop.any():
                        break
            alive = moving
        delta = delta.detach()
        return Targets(self.start, delta, loss, nll, kl, steps, self._passed(delta))

    def _check(self, loss: Float[Tensor, " alive"], alive: Int[Tensor, " alive"], step: int):
        """Raises ValueError, naming a request, for a loss that is not finite."""
        if not loss.isfinite().all():
            bad = self.requests[int(alive[~loss.isfinite()][0])]
            raise ValueError(
                f"the loss of {bad.prompt!r} -> {bad.target!r} is not finite at step {step}"
            )

    def _step(
        self,
        adam: torch.optim.Adam,
        delta: Float[Tensor, "pushes n d_model"],
        losses: Float[Tensor, " moving"],
        moving: Int[Tensor, " moving"],
    ) -> None:
        """One step of Adam for the requests ``moving``, then back into their balls."""
        clamp, before = self.objective.clamp, delta.detach().clone()
        adam.zero_grad()
        losses.sum().backward(inputs=[delta])
        adam.step()
        with torch.no_grad():
            if clamp is not None:
                ball = clamp * self.size / delta.norm(dim=-1).clamp(min=1e-30)
                delta.mul_(ball.clamp(max=1)[..., None])
            # Adam moves them all; the ones that have stopped go back.
            moves = torch.isin(torch.arange(delta.shape[1], device=delta.device), moving)
            delta.copy_(torch.where(moves[:, None], delta, before))
