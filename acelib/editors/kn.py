"""KN: the neurons that hold an answer, and a write into their value vectors (Dai et al., ACL 2022).

    Attr(l, i) = a_i 1/m sum_{k=1..m} dp(o)/da_i at (k/m) a      (integrated gradients)
    a: the activations of FFN l at the prompt's last token, scaled together
    knowledge neurons: Attr > threshold * max Attr, over all layers
    update: fc2_i <- fc2_i - old E[o] + new E[o*]      erase: fc2_i <- 0      E: input embedding

An answer of several tokens: mean Attr of its tokens, each behind those before it; E summed over
the tokens. The activation is the paper's, after the nonlinearity (the key, fc2's input); the
released code takes the one before it (the gate's, where there is one): "pre". Edits of a batch are
located on the unedited model.

The released code (EasyEdit, after EleutherAI's) is not followed where it tokenises answers without
their leading space, scores the later tokens of an answer at the position of the first and after the
model's own guesses, takes m points from 0 to 1 as a mean (and with one point, the preset for Qwen,
the gradient at 0), or subtracts an embedding of the model's guess instead of the old answer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt
from torch import Tensor
from transformers import DynamicCache

from ..editing.keys import Batch, aligned
from ..editing.moments import Moments
from ..editing.request import Request, check_lengths, request, requests
from ..model.lm import LM
from ..model.states import Site, chunked, hooked, read
from ..model.update import Factors, Update
from ..records import Edit
from ..settings import settings
from .base import Editor


@settings()
class KN(Editor):
    """Settings of KN; ``editor(lm, edits)`` edits one batch, ``each`` many; no moments are used.

    Raises ValueError, and leaves the model as it was, for settings out of range, no edit, edits
    that contradict or do not name one old answer (``target_true``), an answer that no neuron makes
    likelier.
    """

    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.2  #: share of the largest attribution
    steps: PositiveInt = 20  #: m, points of the integral
    activation: Literal["post", "pre"] = "post"  #: after the nonlinearity, or before
    mode: Literal["update", "erase"] = "update"
    #: lambda_1, for each token of the old answer; None, as released: 2 if it is the only, else 1
    old: float | None = None
    #: lambda_2, for each token of the new answer; the paper has 8, and 1 for the old one
    new: float = 1.0

    @torch.inference_mode(False)
    def each(
        self, lm: LM, groups: Sequence[Sequence[Edit]], moments: Moments | None = None
    ) -> list[Update]:
        """One Update for each group, every group as if it were alone, all in one batch."""
        # 1. The old answer of each request.
        olds, updates = _old_answers(groups), [Update() for _ in groups]
        check_lengths(lm, olds)
        check_lengths(lm, [replace(r, target=old) for r, old in olds.items()])
        batch = list(olds)

        def locate(piece: range) -> list[Bool[Tensor, "layers d_mlp"]]:
            return self._locate(lm, [(batch[i].prompt, olds[batch[i]]) for i in piece])

        # 2. The neurons of all requests, on the model as it is.
        parts = chunked(locate, len(batch), 32)
        # 3. Write request by request.
        for r, neurons in zip(batch, (one for part in parts for one in part), strict=True):
            updates[r.group] += self._write(
                lm, neurons, lm.answer_ids(olds[r]), lm.answer_ids(r.target), updates[r.group]
            )
        return self.label(lm, groups, updates)

    def _locate(
        self, lm: LM, pairs: Sequence[tuple[str, str]]
    ) -> list[Bool[Tensor, "layers d_mlp"]]:
        """Whether each neuron is a knowledge neuron of each (prompt, answer)."""
        answers = [lm.answer_ids(answer) for _, answer in pairs]
        rows = [
            (lm.tokenizer(prompt)["input_ids"] + ids[:t], token)
            for (prompt, _), ids in zip(pairs, answers, strict=True)
            for t, token in enumerate(ids)
        ]
        scores = integrated_gradients(lm, rows, self.steps, self.activation).split(
            [len(ids) for ids in answers]
        )
        for (prompt, answer), score in zip(pairs, scores, strict=True):
            if not (score.isfinite().all() and score.mean(0).max() > 0):
                raise ValueError(
                    f"no neuron makes {answer!r} likelier after {prompt!r}, or an attribution is "
                    "not finite"
                )
        return [score.mean(0) > self.threshold * score.mean(0).max() for score in scores]

    @torch.no_grad()
    def _write(
        self,
        lm: LM,
        neurons: Bool[Tensor, "layers d_mlp"],
        old: list[int],
        new: list[int],
        so_far: Update,
    ) -> Update:
        """The change of ``neurons``; what ``so_far`` erases is not erased again."""
        E, dtype, factors = lm.embed.weight, torch.promote_types(lm.dtype, torch.float32), {}
        weight = self.old if self.old is not None else 2.0 if len(old) == 1 else 1.0
        change = self.new * E[new].to(dtype).sum(0) - weight * E[old].to(dtype).sum(0)
        for layer in neurons.any(1).nonzero()[:, 0].tolist():
            mine = neurons[layer]
            if self.mode == "update":
                factors[layer] = Factors(change[:, None], mine[:, None].to(dtype))
                continue
            if layer in so_far.factors:
                mine = mine & ~so_far.factors[layer].right.any(1)
            at = mine.nonzero()[:, 0]
            factors[layer] = Factors(
                -lm.weight(layer)[:, at].to(dtype),
                torch.eye(lm.d_mlp, dtype=dtype, device=at.device)[:, at],
            )
        return Update(factors)


def _old_answers(groups: Sequence[Sequence[Edit]]) -> dict[Request, str]:
    """The requests of all groups with the answers that they are to lose.

    Raises ValueError as ``requests``, for an edit without an old answer, or with two of them.
    """
    olds: dict[Request, str] = {}
    for g, edits in enumerate(groups):
        requests(edits, "last", g)
        for edit in edits:
            old = (edit.target_true or "").strip()
            if not old:
                raise ValueError(
                    f"edit of {edit.subject!r}: KN needs the old answer, but target_true is empty"
                )
            r = request(edit, "last", g)
            if olds.setdefault(r, old) != old:
                raise ValueError(
                    f"{r.prompt!r} -> {r.target!r} is given two old answers: "
                    f"{olds[r]!r} and {old!r}"
                )
    return olds


@torch.inference_mode(False)
def integrated_gradients(
    lm: LM,
    rows: Sequence[tuple[Sequence[int], int]],
    steps: int = 20,
    activation: str = "post",
    budget: int = 256,
) -> Float[Tensor, "rows layers d_mlp"]:
    """Attr of every FFN neuron for a token after some others, by integrated gradients.

    a/m sum_{k=1..m} of the gradient of the token's probability at (k/m) a.
    rows: b pairs (token ids, next token).   steps: m.
    activation: "post", fc2's input, or "pre", the output of fc1 (of the gate).
    budget: scaled copies in one forward. Everything before the last position runs once for all
    layers and copies.
    In probability. Source: KN, Eq. 4 and 5.
    """
    batch = aligned(lm, [(ids, len(ids) - 1) for ids, _ in rows])
    target = torch.tensor([token for _, token in rows], device=lm.device)
    precision = torch.promote_types(lm.dtype, torch.float32)
    scale = torch.arange(1, steps + 1, dtype=precision, device=lm.device) / steps
    with torch.no_grad():
        past, states = _until_last(lm, batch)
    at, above = batch.at, [lm.above(layer) for layer in range(lm.n_layers)]

    def attribute(layer: int, piece: range) -> Float[Tensor, "rows d_mlp"]:
        # 1. What the FFN reads, and its activations, scaled.
        many = torch.tensor(piece, device=lm.device).repeat_interleave(steps)
        h = states["in", layer]
        if not lm.family.parallel:
            h = h + states["attn", layer]
        h = lm.ffn_norm(layer)(h)
        fc1 = getattr(lm.mlp(layer), lm.family.fc1[0])
        a = states["key", layer] if activation == "post" else fc1(h)
        x = (a[many] * scale.repeat(len(piece))[:, None].to(a)).detach().requires_grad_()
        with torch.enable_grad():
            # 2. The FFN's output with them.
            if activation == "post":
                ffn = lm.fc2(layer)(x)
            else:
                with hooked(fc1, lambda *_: x):
                    ffn = lm.mlp(layer)(h[many])
            hidden = (states["out", layer] - states["mlp", layer])[many] + ffn
            # 3. The layers above, the probability of the token, and its gradient.
            cache = DynamicCache(
                [
                    (k[many], v[many]) if i == 0 or i > layer else (None, None)
                    for i, (k, v) in enumerate(past)
                ]
            )
            last = above[layer](
                inputs_embeds=hidden[:, None],
                **batch.inputs(slice(at, None), many),
                past_key_values=cache if at else None,
                use_cache=bool(at),
            ).last_hidden_state[:, 0]
            p = lm.head(last).to(scale).softmax(-1).gather(1, target[many][:, None])
            (gradient,) = torch.autograd.grad(p.sum(), x)
        return a[list(piece)] * gradient.unflatten(0, (len(piece), steps)).mean(1)

    per_layer = [
        torch.cat(chunked(partial(attribute, layer), len(rows), max(1, budget // steps)))
        for layer in range(lm.n_layers)
    ]
    return torch.stack(per_layer, 1)


def _until_last(
    lm: LM, batch: Batch
) -> tuple[list[tuple[Tensor, Tensor]], dict[tuple[str, int], Float[Tensor, "rows d"]]]:
    """Keys and values of the positions before the lookup token, and the states at it."""
    before, tail, past = slice(0, batch.at), slice(batch.at, None), DynamicCache()
    if batch.at:
        lm.stack(
            input_ids=batch.ids[:, before],
            **batch.inputs(before),
            past_key_values=past,
            use_cache=True,
        )
    pairs = [(k, v) for k, v, *_ in past]
    kinds = ("in", "attn", "key", "mlp", "out")
    with read(lm, [Site(kind, layer) for kind in kinds for layer in range(lm.n_layers)]) as values:
        lm.stack(
            input_ids=batch.ids[:, tail],
            **batch.inputs(tail),
            past_key_values=past,
            use_cache=bool(batch.at),
        )
    return pairs, {site: value[:, 0] for site, value in values.items()}
