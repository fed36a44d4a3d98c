"""Appendix M: the statements that the scores and the write of ACE rest on, each computed both ways.

    z(S) = z_base + sum_S Delta z_i     I(v) ~ sum_k (delta_kw - p_k) Delta z_k     I(sum v_i) ~ sum I(v_i)     delta F = sum m_i delta v_i

Functions return rows with the two sides of a statement; they decide nothing. Give a model in float64, or rounding hides small errors.
"""

from __future__ import annotations

from typing import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, one_hot

from ..attribution.scores import Reader, addends, gain, states_at_last, value_scores
from ..editing.keys import keys_at, values_at
from ..editing.moments import Moments
from ..editing.request import Request
from ..editing.search import target_vectors
from ..editing.write import SHARES, Stage, write
from ..model.lm import LM
from ..model.states import Site, last, read, trace
from ..model.update import Update

SIZES = tuple(2.0**k for k in range(-5, 3))  #: of a push, in multiples of a neuron's output


def logits(lm: LM, ids: Tensor, mask: Tensor, targets: Tensor) -> pd.DataFrame:
    """Theorem 2: what all FFN neurons together add to the target's logit, z(h + sum v_i) - z(h), against sum_i z(h + v_i) - z(h).

    ids, mask: (b, p).   targets: token w of each row (b,).   h: the last state without FFN neurons.   norm, how z reads: "none" (as the
    paper's Lemma 1), "frozen" (at the true last state) or "exact".   Returns: a row a norm and prompt: together, summed, in logits.
    """
    states, norms = states_at_last(lm, ids, mask, "ffn", False), ("none", "frozen", "exact")
    final, e, sides = (
        states["out", lm.n_layers - 1][:, None],
        (lm.head.weight[targets] * lm.norm.weight)[:, None],
        [],
    )
    base = (
        final
        - sum(states["key", layer] @ lm.weight(layer).T for layer in range(lm.n_layers))[:, None]
    )
    for norm in norms:

        def read(h: Tensor) -> Tensor:
            mean, scale = (
                (0.0, 1.0)
                if norm == "none"
                else lm.norm_moments(lm.norm, final if norm == "frozen" else h)
            )
            return ((h - mean) / scale * e).sum(-1)

        alone = (
            read(base + states["key", layer][..., None] * lm.weight(layer).T) - read(base)
            for layer in range(lm.n_layers)
        )
        sides.append(
            torch.stack([(read(final) - read(base))[:, 0], sum(change.sum(1) for change in alone)])
        )
    together, summed = torch.stack(sides, 1)
    return _rows(dict(norm=norms, prompt=range(len(ids))), together=together, summed=summed)


def taylor(
    lm: LM,
    ids: Tensor,
    mask: Tensor,
    targets: Tensor,
    norm: str = "frozen",
    n: int = 20,
    sizes: Sequence[float] = SIZES,
) -> pd.DataFrame:
    """M.3: Eq. 9 of each prompt's n top value neurons, their outputs times ``sizes``, against the first order with the norm held.

    Returns: a row a prompt, neuron, size: score = I(size v), first = size sum_k (delta_kw - p_k) Delta z_k, nats.
    """
    states, row, w = (
        states_at_last(lm, ids, mask, "ffn", False),
        torch.arange(len(ids)).repeat_interleave(n),
        targets.repeat_interleave(n),
    )
    layer, k = (
        value_scores(lm, ids, mask, targets, norm=norm).flatten(1).topk(n).indices.flatten()
        // d
        % m
        for d, m in ((lm.d_mlp, lm.n_layers), (1, lm.d_mlp))
    )
    where = list(zip(row.tolist(), layer.tolist(), k.tolist()))
    h = torch.stack([states["in", i][r] + states["attn", i][r] for r, i, _ in where])
    v = torch.stack([states["key", i][r, j] * lm.weight(i)[:, j] for r, i, j in where])
    reader = Reader(lm, states["out", lm.n_layers - 1][row] if norm == "frozen" else None)
    place = reader.place(h)
    linear = ((v * reader.gain) @ reader.head.T) / place[1]
    first = linear.gather(1, w[:, None]) - (place[-1].softmax(-1) * linear).sum(-1, keepdim=True)
    score = [
        gain(place[-1], reader.change(place, torch.full_like(first, size), v[:, None]), w)
        for size in sizes
    ]
    axes = dict(prompt=range(len(ids)), neuron=range(n), size=sizes)
    return _rows(axes, score=torch.cat(score, 1), first=first * first.new_tensor(sizes))


def additivity(
    lm: LM,
    ids: Tensor,
    mask: Tensor,
    targets: Tensor,
    norm: str = "frozen",
    counts: Sequence[int] = (1, 4, 16, 64),
) -> pd.DataFrame:
    """Theorem 3: I of the summed output of a layer's top neurons, as many as ``counts`` says, against the sum of their I.

    Returns: a row a layer, prompt, n: whole, summed, nats.
    """
    states, scores = (
        states_at_last(lm, ids, mask, "ffn", False),
        value_scores(lm, ids, mask, targets, norm=norm),
    )
    reader, whole, summed = (
        Reader(lm, None if norm == "exact" else states["out", lm.n_layers - 1]),
        [],
        [],
    )
    for layer in range(lm.n_layers):
        h, amounts, vectors = addends(lm, states, layer, "ffn", False)
        order, place = scores[:, layer].argsort(descending=True), reader.place(h)
        sets = torch.stack(
            [torch.zeros_like(amounts).scatter(1, order[:, :n], 1.0) for n in counts], 1
        )  # (b, counts, m)
        whole.append(
            gain(
                place[-1],
                reader.change(
                    place, torch.ones_like(sets[..., 0]), (sets * amounts[:, None]) @ vectors
                ),
                targets,
            )
        )
        summed.append((sets * scores[:, layer, None]).sum(-1))
    return _rows(
        dict(layer=range(lm.n_layers), prompt=range(len(ids)), n=counts),
        whole=torch.stack(whole),
        summed=torch.stack(summed),
    )


def queries(
    lm: LM, ids: Tensor, mask: Tensor, targets: Tensor, n: int = 20, sizes: Sequence[float] = SIZES
) -> pd.DataFrame:
    """Eq. 10: outputs of the n earlier neurons of greatest |v_j . fc1_k|, times ``sizes``, added to what the top value neuron k reads.

    Returns: a row a prompt, neuron, size: first = size v_j . fc1_k over the norm's scale, preactivation: the change of fc1_k . N(h) (of two
    keys the gate's), coefficient: the change of m_k; by the direct path.
    """
    best = (
        value_scores(lm, ids, mask, targets)[:, 1:].flatten(1).argmax(1).tolist()
    )  # nothing is before the first layer
    states = trace(
        lm,
        ids,
        mask,
        [Site(kind, i) for i in range(lm.n_layers) for kind in ("in", "attn", "key")],
        at=last(mask),
    )
    found = []
    for i, (layer, k) in enumerate(divmod(index + lm.d_mlp, lm.d_mlp) for index in best):
        h, key = (
            states["in", layer][i] + (0 if lm.family.parallel else states["attn", layer][i]),
            lm.subkeys(layer)[k],
        )
        outputs = torch.cat(
            [states["key", before][i][:, None] * lm.weight(before).T for before in range(layer)]
        )
        chosen = outputs[(outputs @ key).abs().topk(n).indices]
        pushed = h + h.new_tensor([0.0, *sizes])[:, None] * chosen[:, None]  # (n, 1 + sizes, d)
        mean, scale = lm.norm_moments(lm.ffn_norm(layer), pushed)
        with read(lm, [Site("key", layer)]) as seen:
            lm.mlp(layer)(lm.ffn_norm(layer)(pushed))
        ends = torch.stack([(pushed - mean) / scale @ key, seen["key", layer][..., k]])
        found.append(
            torch.stack(
                [
                    h.new_tensor(sizes) * (chosen @ key)[:, None] / scale[0, 0],
                    *(ends[..., 1:] - ends[..., :1]),
                ]
            )
        )
    sides = dict(zip(("first", "preactivation", "coefficient"), torch.stack(found, 1)))
    return _rows(dict(prompt=range(len(ids)), neuron=range(n), size=sizes), **sides)


def slopes(rows: pd.DataFrame, of: str, most: float = 1.0) -> pd.Series:
    """Exponent of the mean |of - first| in the size of the push, a prompt each; 2 says that ``first`` is the first order.

    By least squares over sizes up to ``most``.
    """
    errors = (
        (rows[of] - rows["first"])
        .abs()
        .groupby([rows["prompt"], rows["size"]])
        .mean()
        .unstack()
        .loc[:, :most]
    )
    return pd.Series(
        np.polyfit(np.log(errors.columns.to_numpy(float)), np.log(errors.to_numpy().T), 1)[0],
        errors.index,
    )


def writes(
    lm: LM,
    given: Sequence[Request],
    stage: Stage,
    moments: Moments,
    prefixes: Sequence[str] = ("",),
) -> pd.DataFrame:
    """Theorem 4: the write of one stage, R K^T (weight C + K K^T)^{-1}, and what it does to the FFN's output at the bare prompts.

    Returns: a row a layer and request. formula: relative distance of the written matrix from the plain formula; error: of the shift of the
    FFN's output from sum m_i delta v_i, m_i unedited, relative to the shift; cosine, reach: of that sum with the residual R, and its length
    over R's; logit: its cosine with the gradient of log p(target) by the last state at the prompt's end, the norm frozen.
    Raises ValueError for a stage with a null space, and as ``spread.write``.   Source: ACE, Appendix M.5, Eq. 12.
    """
    if stage.null_space is not None:
        raise ValueError(
            "a write inside a null space does not follow Eq. 12; give a stage of PMET or MEMIT"
        )
    (ids, mask), layers, found, now = (
        lm.encode([r.prompt for r in given]),
        lm.layers(stage.layers),
        [],
        Update(),
    )
    reader = Reader(
        lm,
        final := trace(lm, ids, mask, [Site("out", lm.n_layers - 1)], at=last(mask))[
            "out", lm.n_layers - 1
        ],
    )
    wrong = one_hot(
        ids.new_tensor([lm.answer_ids(r.target)[0] for r in given]), len(reader.head)
    ) - reader.place(final)[-1].softmax(-1)
    uphill = (((wrong @ reader.head) * reader.gain) / reader.scale).double().T
    Z = target_vectors(lm, given, layers[-1], stage.objective, prefixes).value
    update = write(lm, given, stage, moments, Z, prefixes)[0]
    for j, layer in enumerate(layers):
        K, there = (
            keys_at(lm, given, layer, prefixes, [now]).double(),
            values_at(lm, given, layers[-1], stage.objective.site, [now]),
        )
        R, dW = (
            SHARES[stage.share](len(layers) - j) * (Z.T - there).double(),
            update.delta(layer).double(),
        )
        plain = torch.linalg.solve(stage.weight * moments[layer] + K @ K.T, K @ R.T).T
        shift = (
            values_at(lm, given, layer, "mlp", [update]) - values_at(lm, given, layer, "mlp")
        ).double()
        sums, size = dW @ keys_at(lm, given, layer).double(), shift.norm(dim=0)
        found.append(
            torch.stack(
                [
                    ((dW - plain).norm() / plain.norm()).expand(len(given)),
                    (shift - sums).norm(dim=0) / size,
                    cosine_similarity(sums, R, 0),
                    sums.norm(dim=0) / R.norm(dim=0),
                    cosine_similarity(sums, uphill, 0),
                ]
            )
        )
        now = now + Update({layer: update.factors[layer]})
    measures = dict(zip(("formula", "error", "cosine", "reach", "logit"), torch.stack(found, 1)))
    return _rows(dict(layer=layers, request=range(len(given))), **measures)


def _rows(axes: Mapping[str, Sequence], **values: Tensor) -> pd.DataFrame:
    index = pd.MultiIndex.from_product(list(axes.values()), names=list(axes))
    return pd.DataFrame(
        {name: value.detach().cpu().flatten() for name, value in values.items()}, index
    ).reset_index()
