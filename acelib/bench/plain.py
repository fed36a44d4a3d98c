"""The plain published procedures, written out once as baselines for ``bench``: what they compute,
the library must compute too.

One fact at a time, the whole model at every step, logits at every position (read twice, as
released), a full linear solve for every update, a full forward for every layer's keys, a pass over
the text for every layer's second moment. Only results are returned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..editing.keys import prefix_weights
from ..editing.request import Request
from ..editing.search import Objective
from ..model.lm import LM
from ..model.states import Site, read, replaced


def target_vectors(
    lm: LM,
    given: Sequence[Request],
    layer: int,
    objective: Objective,
    prefixes: Sequence[str] = ("",),
    logits: str = "all",
    frozen: bool = False,
) -> Tensor:
    """Target vectors z (n, d) of ``given``, every row in one batch; released code gives it one
    request at a time.

    logits: "all" positions, twice, as released, or at the "labels" only.
    frozen: whether states up to ``layer`` are computed once. Only the objective kind "block"
    without a floor.
    Source: MEMIT Section 4.2 and Algorithm 1, and its released code.
    """
    # 1. Every request after every prefix, then its guard against drift.
    per, n = len(prefixes) + 1, len(given)
    (ids, mask), at, labels = _padded_rows(lm, given, prefixes)
    each = list(range(len(ids)))
    who, row, column, token = labels
    weight = 1 / torch.bincount(who)[who].to(lm.dtype)  # the mean over its rows and tokens
    guards = list(range(per - 1, len(ids), per))
    owner = torch.arange(n, device=lm.device).repeat_interleave(per)
    guard_at = [at[i] for i in guards]
    delta = torch.zeros(n, lm.d_model, dtype=lm.dtype, device=lm.device, requires_grad=True)
    start: list[Tensor] = []
    guard_0 = None

    def push(h: Tensor) -> Tensor:
        h = h.clone()
        if not start:
            start.append(h[each, at][::per].detach().clone())
        h[each, at] = h[each, at] + delta[owner]
        return h

    # 2. Where each step starts: at the tokens, or at the states of ``layer``.
    if frozen:
        with torch.no_grad(), read(lm, [Site("out", layer)]) as values:
            lm.between(0, layer)(input_ids=ids, attention_mask=mask, use_cache=False)
        kept, above = values[Site("out", layer)], lm.above(layer)

    def run() -> Tensor:
        if frozen:
            part, start_at = above, dict(inputs_embeds=push(kept))
        else:
            part, start_at = lm.stack, dict(input_ids=ids)
        return part(**start_at, attention_mask=mask, use_cache=False).last_hidden_state

    # 3. The search.
    adam = torch.optim.Adam([delta], lr=objective.lr)
    with replaced(lm, {} if frozen else {Site("out", layer): push}):
        for step in range(objective.steps):
            states = run()
            if logits == "all":
                first, second = lm.head(states), lm.head(states).log_softmax(-1)
                said, guard = second[row, column, token], first[guards, guard_at].log_softmax(-1)
            else:
                said = lm.head(states[row, column]).log_softmax(-1)[range(len(token)), token]
                guard = lm.head(states[guards, guard_at]).log_softmax(-1)
            guard_0 = guard.detach() if guard_0 is None else guard_0
            kl = (guard.exp() * (guard - guard_0)).sum(-1)
            nll = torch.zeros(n, dtype=said.dtype, device=said.device).index_add(
                0, who, -said * weight
            )
            loss = (
                nll
                + objective.kl * kl
                + objective.decay * delta.norm(dim=-1) / start[0].norm(dim=-1) ** 2
            )
            if step == objective.steps - 1:
                break  # the last evaluation of the loss moves nothing
            adam.zero_grad()
            loss.sum().backward()
            adam.step()
            if objective.clamp is not None:
                delta.data *= (
                    objective.clamp * start[0].norm(dim=-1) / delta.data.norm(dim=-1)
                ).clamp(max=1)[:, None]
    return start[0] + delta.detach()


def _padded_rows(
    lm: LM, given: Sequence[Request], prefixes: Sequence[str]
) -> tuple[tuple[Tensor, Tensor], list[int], Tensor]:
    """Padded rows, per request one for each prefix with the answer and one "S is a".

    Returns ids and mask, the place of the subject's last token in each row, and for every token of
    an answer its request, row, column and id, (4, tokens).
    """
    rows: list[list[int]] = []
    at: list[int] = []
    labels: list[tuple[int, int, int, int]] = []
    for i, r in enumerate(given):
        answer = lm.answer_ids(r.target)
        for prefix in prefixes:
            head = lm.tokenizer(prefix + r.prompt)["input_ids"]
            labels += [(i, len(rows), len(head) - 1 + t, token) for t, token in enumerate(answer)]
            rows.append(head + answer[:-1])
            at.append(lm.token_at(prefix + r.prompt, len(prefix) + r.end))
        rows.append(lm.tokenizer(r.subject + " is a")["input_ids"])
        at.append(lm.token_at(r.subject + " is a", len(r.subject)))
    return lm.pad(rows), at, torch.tensor(labels, device=lm.device).T


def ridge(C: Tensor, K: Tensor, R: Tensor, weight: float) -> Tensor:
    """dW (d, m) = R K^T (weight C + K K^T)^{-1} by a full solve (LU).

    Source: MEMIT Eq. 14 and its released code.
    """
    return R @ torch.linalg.solve(torch.addmm(C, K, K.T, beta=weight), K).T


def null_ridge(P: Tensor, S: Tensor, K: Tensor, R: Tensor, weight: float) -> Tensor:
    """dW (d, m) with dW^T = (P (K K^T + S) + weight I)^{-1} P K R^T, S = sum of earlier K K^T; m
    unknowns, d right-hand sides.

    Source: AlphaEdit Eq. 14 and its released code.
    """
    left = P @ torch.addmm(S, K, K.T)
    left.diagonal().add_(weight)
    return torch.linalg.solve(left, P @ K @ R.T).T


@torch.no_grad()
def keys_and_values(
    lm: LM,
    given: Sequence[Request],
    layers: Sequence[int],
    prefixes: Sequence[str] = ("",),
    rows: int = 128,
) -> list[tuple[Tensor, Tensor]]:
    """For each of ``layers`` the mean keys K (m, n), and the last one's outputs (d, n), each from
    forwards of the whole model, with logits.

    Source: MEMIT's released code.
    """
    found, weights = [], prefix_weights(lm, prefixes)
    for layer in layers:
        keys = _read(
            lm,
            [(p + r.prompt, len(p) + r.end) for r in given for p in prefixes],
            Site("key", layer),
            rows,
        )
        values = _read(lm, [(r.prompt, r.end) for r in given], Site("out", layers[-1]), rows)
        found.append(
            (
                torch.einsum(
                    "npm,p->mn", keys.to(weights).unflatten(0, (-1, len(prefixes))), weights
                ),
                values.T,
            )
        )
    return found


def _read(lm: LM, texts: Sequence[tuple[str, int]], site: Site, size: int) -> Tensor:
    """The activation of a site at the lookup token of each text, (n, .)."""
    parts = []
    for first in range(0, len(texts), size):
        some = texts[first : first + size]
        ids, mask = lm.encode([text for text, _ in some])
        with read(lm, [site]) as values:
            lm.model(input_ids=ids, attention_mask=mask, use_cache=False)
        parts.append(values[site][range(len(some)), [lm.token_at(*text) for text in some]])
    return torch.cat(parts)


@torch.no_grad()
def scores(
    lm: LM, ids: Tensor, mask: Tensor, words: Tensor, neurons: Sequence[tuple[int, int, int]]
) -> Tensor:
    """I(v) = log p(w | h + v) - log p(w | h) of (prompt, layer, index), one at a time, nats;
    right-padded prompts. Source: ACE Eq. 9.
    """
    with read(
        lm, [Site(kind, layer) for layer in range(lm.n_layers) for kind in ("in", "attn", "key")]
    ) as seen:
        lm.stack(input_ids=ids, attention_mask=mask, use_cache=False)

    def say(h: Tensor, word: Tensor) -> Tensor:
        return lm.head(lm.norm(h)).log_softmax(-1)[word]

    gains = []
    for row, layer, k in neurons:
        end = int(mask[row].sum()) - 1
        h = seen[Site("in", layer)][row, end] + seen[Site("attn", layer)][row, end]
        gains.append(
            say(h + seen[Site("key", layer)][row, end, k] * lm.weight(layer)[:, k], words[row])
            - say(h, words[row])
        )
    return torch.stack(gains)


@torch.no_grad()
def queries(
    lm: LM,
    ids: Tensor,
    mask: Tensor,
    values: Tensor,
    neurons: Sequence[tuple[int, int, int]],
    n: int = 100,
) -> Tensor:
    """Q of FFN neurons (prompt, layer, index), one inner product at a time; right-padded prompts.

    values: FFN value scores (b, l, m), of which each prompt's n greatest are the later neurons.
    Source: ACE Eq. 10.
    """
    with read(lm, [Site("key", layer) for layer in range(lm.n_layers)]) as seen:
        lm.stack(input_ids=ids, attention_mask=mask, use_cache=False)
    scores = []
    for row, layer, j in neurons:
        end = int(mask[row].sum()) - 1
        v = seen[Site("key", layer)][row, end, j] * lm.weight(layer)[:, j]
        score = v.new_zeros((), dtype=torch.float64)
        for place in values[row].flatten().topk(min(n, values[row].numel())).indices.tolist():
            later, k = divmod(place, lm.d_mlp)
            if later > layer:
                score += values[row, later, k] * (v @ lm.subkeys(later)[k])
        scores.append(score)
    return torch.stack(scores)
