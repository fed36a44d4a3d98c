"""Appendix M: the statements that the scores and the write of ACE rest on, each computed both ways.

z(S) = z_base + sum_S Delta z_i
I(v) ~ sum_k (delta_kw - p_k) Delta z_k
I(sum v_i) ~ sum I(v_i)
delta F = sum m_i delta v_i

Functions return rows with the two sides of a statement; they decide nothing. Give a model in
float64, or rounding hides small errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, one_hot

from ..attribution.layers import questions
from ..attribution.reader import Reader, gain
from ..attribution.scores import (
    addends,
    first_tokens,
    states_at_last,
    value_scores,
)
from ..editing.keys import keys_at, values_at
from ..editing.moments import Moments
from ..editing.request import Request
from ..editing.search import target_vectors
from ..editing.write import SHARES, Stage, write
from ..editors import preset
from ..model.lm import LM
from ..model.loading import load
from ..model.states import Site, last, read, trace
from ..model.update import Update
from ..study.experiments import Corpus, depends, modules
from ..study.rows import Experiment, Series
from ..world.cases import single_edits
from ..world.text import documents
from ..world.world import World

SIZES = tuple(2.0**k for k in range(-5, 3))  #: of a push, in multiples of a neuron's output


def logits(lm: LM, ids: Tensor, mask: Tensor, targets: Tensor) -> pd.DataFrame:
    """Theorem 2: what all FFN neurons together add to the target's logit, z(h + sum v_i) - z(h),
    against sum_i z(h + v_i) - z(h).

    ids, mask: (b, p).
    targets: token w of each row (b,).
    h: the last state without FFN neurons.
    norm, how z reads: "none" (as the paper's Lemma 1), "frozen" (at the true last state) or
    "exact".
    Returns: one row per norm and prompt: together, summed, in logits.
    """
    states, norms = states_at_last(lm, ids, mask, "ffn", False), ("none", "frozen", "exact")
    final = states["out", lm.n_layers - 1][:, None]
    e = (lm.head.weight[targets] * lm.norm.get_parameter("weight"))[:, None]
    zero = final.new_zeros(())
    ffn = sum((states["key", layer] @ lm.weight(layer).T for layer in range(lm.n_layers)), zero)
    base = final - ffn[:, None]

    def logit(h: Tensor, norm: str) -> Tensor:
        at = final if norm == "frozen" else h
        mean, scale = (0.0, 1.0) if norm == "none" else lm.norm_moments(lm.norm, at)
        return ((h - mean) / scale * e).sum(-1)

    sides = []
    for norm in norms:
        start = logit(base, norm)
        alone = (
            logit(base + states["key", layer][..., None] * lm.weight(layer).T, norm) - start
            for layer in range(lm.n_layers)
        )
        whole = (logit(final, norm) - start)[:, 0]
        sides.append(torch.stack([whole, sum((change.sum(1) for change in alone), zero)]))
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
    """M.3: Eq. 9 of each prompt's n top value neurons, their outputs times ``sizes``, against the
    first order with the norm held.

    Returns: one row per prompt, neuron and size: score = I(size v),
    first = size sum_k (delta_kw - p_k) Delta z_k, nats.
    """
    # 1. The n neurons of greatest score of each prompt, and their outputs.
    states = states_at_last(lm, ids, mask, "ffn", False)
    row, w = torch.arange(len(ids)).repeat_interleave(n), targets.repeat_interleave(n)
    scores = value_scores(lm, ids, mask, targets, norm=norm)
    best = scores.flatten(1).topk(n).indices.flatten()
    layer, k = best // lm.d_mlp % lm.n_layers, best % lm.d_mlp
    where = list(zip(row.tolist(), layer.tolist(), k.tolist(), strict=True))
    h = torch.stack([states["in", i][r] + states["attn", i][r] for r, i, _ in where])
    v = torch.stack([states["key", i][r, j] * lm.weight(i)[:, j] for r, i, j in where])
    # 2. The first order, with the norm held, and the score itself.
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
    """Theorem 3: I of the summed output of a layer's top neurons, as many as ``counts`` says,
    against the sum of their I.

    Returns: one row per layer, prompt and n: whole, summed, nats.
    """
    states = states_at_last(lm, ids, mask, "ffn", False)
    scores = value_scores(lm, ids, mask, targets, norm=norm)
    reader = Reader(lm, None if norm == "exact" else states["out", lm.n_layers - 1])
    whole, summed = [], []
    for layer in range(lm.n_layers):
        h, amounts, vectors = addends(lm, states, layer, "ffn", False)
        order, place = scores[:, layer].argsort(descending=True), reader.place(h)
        sets = torch.stack(
            [torch.zeros_like(amounts).scatter(1, order[:, :n], 1.0) for n in counts], 1
        )  # (b, counts, m)
        push = (sets * amounts[:, None]) @ vectors
        changed = reader.change(place, torch.ones_like(sets[..., 0]), push)
        whole.append(gain(place[-1], changed, targets))
        summed.append((sets * scores[:, layer, None]).sum(-1))
    return _rows(
        dict(layer=range(lm.n_layers), prompt=range(len(ids)), n=counts),
        whole=torch.stack(whole),
        summed=torch.stack(summed),
    )


def queries(
    lm: LM, ids: Tensor, mask: Tensor, targets: Tensor, n: int = 20, sizes: Sequence[float] = SIZES
) -> pd.DataFrame:
    """Eq. 10: outputs of the n earlier neurons of greatest |v_j . fc1_k|, times ``sizes``, added to
    what the top value neuron k reads.

    Returns: one row per prompt, neuron and size: first = size v_j . fc1_k over the norm's scale,
    preactivation: the change of fc1_k . N(h) (of two keys the gate's), coefficient: the change of
    m_k; by the direct path.
    """
    # Nothing is before the first layer.
    best = value_scores(lm, ids, mask, targets)[:, 1:].flatten(1).argmax(1).tolist()
    sites = [Site(kind, i) for i in range(lm.n_layers) for kind in ("in", "attn", "key")]
    states = trace(lm, ids, mask, sites, at=last(mask))
    sides = []
    for i, (layer, k) in enumerate(divmod(index + lm.d_mlp, lm.d_mlp) for index in best):
        h = states["in", layer][i] + (0 if lm.family.parallel else states["attn", layer][i])
        key = lm.subkeys(layer)[k]
        outputs = torch.cat(
            [states["key", before][i][:, None] * lm.weight(before).T for before in range(layer)]
        )
        top = outputs[(outputs @ key).abs().topk(n).indices]
        pushed = h + h.new_tensor([0.0, *sizes])[:, None] * top[:, None]  # (n, 1 + sizes, d)
        mean, scale = lm.norm_moments(lm.ffn_norm(layer), pushed)
        with read(lm, [Site("key", layer)]) as seen:
            lm.mlp(layer)(lm.ffn_norm(layer)(pushed))
        ends = torch.stack([(pushed - mean) / scale @ key, seen["key", layer][..., k]])
        first = h.new_tensor(sizes) * (top @ key)[:, None] / scale[0, 0]
        sides.append(torch.stack([first, *(ends[..., 1:] - ends[..., :1])]))
    names = ("first", "preactivation", "coefficient")
    named = dict(zip(names, torch.stack(sides, 1), strict=True))
    return _rows(dict(prompt=range(len(ids)), neuron=range(n), size=sizes), **named)


def slopes(rows: pd.DataFrame, of: str, most: float = 1.0) -> pd.Series:
    """Exponent of the mean |of - first| in the size of the push, a prompt each; 2 says that
    ``first`` is the first order.

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
    """Theorem 4: the write of one stage, R K^T (weight C + K K^T)^{-1}, and what it does to the
    FFN's output at the bare prompts.

    Returns: one row per layer and request. formula: relative distance of the written matrix from
    the plain formula; error: of the shift of the FFN's output from sum m_i delta v_i, m_i unedited,
    relative to the shift; cosine, reach: of that sum with the residual R, and its length over R's;
    logit: its cosine with the gradient of log p(target) by the last state at the prompt's end, the
    norm frozen. Raises ValueError for a stage with a null space, and as ``spread.write``.
    Source: ACE, Appendix M.5, Eq. 12.
    """
    if stage.null_space is not None:
        raise ValueError(
            "a write inside a null space does not follow Eq. 12; give a stage of PMET or MEMIT"
        )
    ids, mask = lm.encode([r.prompt for r in given])
    layers = lm.layers(stage.layers)
    # 1. The direction in which the last state raises the target's log-probability the most (M.3).
    site = Site("out", lm.n_layers - 1)
    final = trace(lm, ids, mask, [site], at=last(mask))[site]
    reader = Reader(lm, final)
    place = reader.place(final)
    goals = ids.new_tensor([lm.answer_ids(r.target)[0] for r in given])
    wrong = one_hot(goals, len(reader.head)) - place.logits.softmax(-1)
    uphill = (((wrong @ reader.head) * reader.gain) / place.scale).double().T
    # 2. The write, and layer by layer what it is and does.
    Z = target_vectors(lm, given, layers[-1], stage.objective, prefixes).value
    update = write(lm, given, stage, moments, Z, prefixes)[0]
    measures, now = [], Update()
    for j, layer in enumerate(layers):
        K = keys_at(lm, given, layer, prefixes, [now]).double()
        there = values_at(lm, given, layers[-1], stage.objective.site, [now])
        R = SHARES[stage.share](len(layers) - j) * (Z.T - there).double()
        dW = update.delta(layer).double()
        # Where C is singular, the write adds a ridge to it, and so does the formula.
        C = moments[layer] + moments.ridge.get(layer, 0.0) * torch.eye(len(K)).to(K)
        plain = torch.linalg.solve(stage.weight * C + K @ K.T, K @ R.T).T
        before = values_at(lm, given, layer, "mlp")
        shift = (values_at(lm, given, layer, "mlp", [update]) - before).double()
        sums, size = dW @ keys_at(lm, given, layer).double(), shift.norm(dim=0)
        measures.append(
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
    names = ("formula", "error", "cosine", "reach", "logit")
    named = dict(zip(names, torch.stack(measures, 1), strict=True))
    return _rows(dict(layer=layers, request=range(len(given))), **named)


def _rows(axes: Mapping[str, Sequence], **values: Tensor) -> pd.DataFrame:
    index = pd.MultiIndex.from_product(list(axes.values()), names=list(axes))
    return pd.DataFrame(
        {name: value.detach().cpu().flatten() for name, value in values.items()}, index
    ).reset_index()


# ------------------------------------------------------------------------------------- experiments


def experiment(
    hosts: Mapping[str, LM], world: World, *, n_prompts: int, n_top: int, seed: int
) -> Experiment:
    """Both sides of Theorem 2, M.3, Eq. 10 and Theorem 3 for prompts of single facts, in float64.

    One series per model and statement, "logits", "value", "query" or "sets", whose items are the
    prompts with their answers; pushes of one neuron are one row, sizes its columns.
    """
    pairs = questions(world, n_prompts, seed, single=True)
    items = {prompt: {"prompt": prompt, "answer": answer} for prompt, answer in pairs}
    series = []
    for name, lm in in_float64(hosts).items():
        counts = sorted({2, 4, 8, n_top, 64, 256, lm.d_mlp})
        statements: dict[str, Callable] = {
            "logits": logits,
            "value": partial(_both_norms, partial(taylor, n=n_top)),
            "query": partial(queries, n=n_top),
            "sets": partial(_both_norms, partial(additivity, counts=counts)),
        }
        settings = {**depends(lm, world, None, None), "top": str(n_top)}
        series += [
            Series(
                {"model": name, "statement": statement},
                settings,
                (__name__,),
                items,
                partial(_of_prompts, lm, rows),
                chunk=64,
            )
            for statement, rows in statements.items()
        ]
    return Experiment("appendix_m_derivation", tuple(series), rtol=1e-6, atol=1e-9)


def written(
    hosts: Mapping[str, LM], world: World, *, n_edits: int, n_texts: int, seed: int
) -> Experiment:
    """Theorem 4 for both stages of ACE, each on its own, of facts that are written together, in
    float64. One item per model and stage; one row per layer and request.
    """
    edits, texts = single_edits(world, n_edits, seed), documents(world, n_texts, seed)
    series = []
    for name, lm in in_float64(hosts).items():
        ace = preset("ACE", name)
        corpus = Corpus(lm, texts, ace.layers)
        items = {stage: {"stage": stage, "edits": edits} for stage in ace.plan}

        def compute(part: list[dict], lm=lm, ace=ace, corpus=corpus) -> list[list[dict]]:
            return [_records(_stage_rows(lm, ace, of, corpus)) for of in part]

        settings = depends(lm, world, ace, corpus)
        code = (__name__, *modules(ace))
        series.append(Series({"model": name}, settings, code, items, compute, chunk=1))
    return Experiment("appendix_m_derivation_written", tuple(series), rtol=1e-3, atol=1e-6)


def _stage_rows(lm: LM, ace: Any, of: Mapping, corpus: Corpus) -> pd.DataFrame:
    stage, requests = ace.plan[of["stage"]], ace.requests(of["edits"], of["stage"])
    return writes(lm, requests, stage, corpus.moments, ace.prefixes(lm))


def in_float64(hosts: Mapping[str, LM]) -> dict[str, LM]:
    """The models in double precision: as they are, or loaded again by their names."""
    return {
        name: lm if lm.dtype == torch.float64 else _in_float64(name) for name, lm in hosts.items()
    }


@cache
def _in_float64(name: str) -> LM:
    return load(name, dtype=torch.float64)


def _both_norms(rows: Callable[..., pd.DataFrame], *asked) -> pd.DataFrame:
    """Rows with the norm frozen, then with the exact norm; column norm."""
    return pd.concat([rows(*asked, norm=norm).assign(norm=norm) for norm in ("frozen", "exact")])


def _of_prompts(
    lm: LM, rows: Callable[..., pd.DataFrame], items: Sequence[Mapping[str, str]]
) -> list[list[dict]]:
    """The rows of each prompt; of pushes, one for all sizes."""
    ids, mask = lm.encode([item["prompt"] for item in items])
    table = rows(lm, ids, mask, first_tokens(lm, [item["answer"] for item in items]))
    if "size" in table:
        table = _over_sizes(table)
    by_prompt = dict(list(table.groupby("prompt", sort=False)))
    return [_records(by_prompt[i].drop(columns="prompt")) for i in range(len(items))]


def _over_sizes(table: pd.DataFrame) -> pd.DataFrame:
    """One row per prompt, norm and neuron: ``first`` at size 1, and the other sides by size, in
    columns such as "score 0.5".
    """
    keys = [name for name in ("norm", "prompt", "neuron") if name in table]
    sides = [name for name in table if name not in (*keys, "size", "first")]
    wide = table.pivot(index=keys, columns="size", values=sides)
    wide.columns = [f"{side} {size:g}" for side, size in wide.columns]
    first = table[table["size"] == 1].set_index(keys)["first"]
    return wide.assign(first=first).loc[first.index].reset_index()


def _records(table: pd.DataFrame) -> list[dict]:
    return table.to_dict("records")
