"""Integrated gradients of FFN neurons: how much of an answer's probability each one accounts for.

    Attr(l, i) = F 1/m sum_j dp(o)/da_i at a0 + t_j (a - a0),    F = a - a0, or a

a: the activations of FFN l at the prompt's last token, scaled together; a0: their baseline.
Three methods differ in the baseline and the factor: IG (Dai et al., 2022) goes from zero; SIG
(Enguehard, 2023) once for every word, from the activations of the prompt without that word; AMIG
(Chen et al., 2024) from the mean of those, with a for a factor, as its released code does. SIG is a
method for words of the input: its form for neurons is a reading. Points t_j are those of a Riemann
sum from the right (the papers), from the left (Dai et al.'s code), or both ends (EleutherAI's).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import PositiveInt
from torch import Tensor
from transformers import DynamicCache

from ..model.lm import LM
from ..model.states import Site, chunked, hooked, position_ids, read
from ..settings import settings

METHODS = ("IG", "SIG", "AMIG")
Rows = Sequence[tuple[Sequence[int], int]]  #: token ids, next token


@settings()
class Attribution:
    """One method with its readings; the default is IG. Raises ValueError for an unknown one.

    Source: Query Localization, Appendix A.4.
    """

    method: Literal["IG", "SIG", "AMIG"] = "IG"
    steps: PositiveInt = 20  #: m, points of each path
    activation: Literal["post", "pre"] = "post"  #: after the nonlinearity, or before
    #: of an answer: its first token, or the mean over its tokens, each behind those before it
    tokens: Literal["first", "mean"] = "first"
    points: Literal["right", "left", "both"] = "right"
    #: a0: of the prompt with one word replaced by the end-of-text token (SIG: a path for every
    #: word; AMIG: one from their mean), of as many such tokens, or zero; None: the method's own
    baseline: Literal["words", "sentence", "zero"] | None = None
    factor: Literal["difference", "value"] | None = None  #: F; None: the method's own

    @property
    def start(self) -> str:
        """Where the path begins."""
        return self.baseline or ("zero" if self.method == "IG" else "words")

    @property
    def times(self) -> str:
        """What gradients are multiplied by."""
        return self.factor or ("value" if self.method == "AMIG" else "difference")


def localize(
    lm: LM, prompts: Sequence[str], answers: Sequence[str], how: Attribution | None = None
) -> Float[Tensor, "prompts layers d_mlp"]:
    """Attr of every FFN neuron for the answer of each prompt, by one method.

    how: the method and its readings, IG if none is given.
    In probability. Raises ValueError if the numbers differ, or for an empty prompt or answer.
    Source: Query Localization, Eq. 8-19.
    """
    how = how or Attribution()
    if len(prompts) != len(answers):
        raise ValueError(f"{len(prompts)} prompts, {len(answers)} answers: give as many of each")
    if empty := [prompt for prompt in prompts if not prompt.strip()]:
        raise ValueError(f"prompt {empty[0]!r} is empty; a model needs a token to go on from")
    # 1. A row for every token that is attributed.
    rows: list[tuple[list[int], int]] = []
    words: list[list[list[int]]] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids, said = list(lm.tokenizer(prompt)["input_ids"]), lm.answer_ids(answer)
        for t, token in enumerate(said[:1] if how.tokens == "first" else said):
            rows.append((ids + said[:t], token))
            words.append(word_places(lm, prompt))
    counts = [1 if how.tokens == "first" else len(lm.answer_ids(answer)) for answer in answers]
    # 2. Their attributions; the mean over the tokens of an answer.
    scores = _by_rows(lm, rows, words, how)
    return torch.stack([part.mean(0) for part in scores.split(counts)])


def _by_rows(
    lm: LM, rows: Rows, words: Sequence[Sequence[Sequence[int]]], how: Attribution
) -> Float[Tensor, "rows layers d_mlp"]:
    """``localize`` of tokens instead of answers."""

    def attribute(
        some: Rows, baseline: Float[Tensor, "rows layers d_mlp"] | None = None
    ) -> Float[Tensor, "rows layers d_mlp"]:
        return integrated_gradients(
            lm,
            some,
            how.steps,
            how.activation,
            baseline=baseline,
            points=how.points,
            factor=how.times,
        )

    if how.start == "zero":
        return attribute(rows)
    if how.start == "sentence":
        every = [[[*range(len(ids))]] for ids, _ in rows]
        return attribute(rows, baseline=baselines(lm, rows, every, how.activation)[0])
    starts, owners = baselines(lm, rows, words, how.activation)
    if how.method == "SIG":  # one path for every word, and their sum
        paths = attribute([rows[i] for i in owners], baseline=starts)
        sums = paths.new_zeros(len(rows), *paths.shape[1:])
        return sums.index_add_(0, torch.tensor(owners, device=paths.device), paths)
    counts = [owners.count(i) for i in range(len(rows))]
    return attribute(rows, baseline=torch.stack([part.mean(0) for part in starts.split(counts)]))


def word_places(lm: LM, prompt: str) -> list[list[int]]:
    """The tokens of each word of a prompt, words being what blanks set apart."""
    offsets = lm.tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    words: list[list[int]] = []
    for token, (start, stop) in enumerate(offsets):
        inside = prompt[start:stop]
        begins = inside[:1].isspace() or (start > 0 and prompt[start - 1].isspace())
        if stop > start and words and not begins:
            words[-1].append(token)
        elif inside.strip():
            words.append([token])
    return words or [[*range(len(offsets))]]


@torch.no_grad()
def baselines(
    lm: LM,
    rows: Rows,
    words: Sequence[Sequence[Sequence[int]]],
    activation: str = "post",
    budget: int = 256,
) -> tuple[Float[Tensor, "words layers d_mlp"], list[int]]:
    """Activations at the last position of each row with one word after the other replaced by the
    end-of-text token.

    words: of each row, places of tokens that are replaced together.
    Returns the activations of all words of all rows, and the row of each.
    Source: Chen et al. (2024), as released.
    """
    eos = lm.tokenizer.eos_token_id
    eos = lm.tokenizer.pad_token_id if eos is None else eos
    texts, owners = [], []
    for i, ((ids, _), places) in enumerate(zip(rows, words, strict=True)):
        for word in places:
            texts.append([eos if t in set(word) else token for t, token in enumerate(ids)])
            owners.append(i)

    def forward(piece: range) -> Float[Tensor, "words layers d_mlp"]:
        ids, mask = lm.pad([texts[i] for i in piece], side="left")
        kept: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for layer in range(lm.n_layers):
                site = _fc1(lm, layer) if activation == "pre" else lm.fc2(layer)
                stack.enter_context(hooked(site, _keeper(kept, layer, activation)))
            lm.stack(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask))
        return torch.stack([kept[layer] for layer in range(lm.n_layers)], 1)

    return torch.cat(chunked(forward, len(texts), budget)), owners


def _keeper(kept: dict[int, Tensor], layer: int, activation: str):
    def keep(_module, args: tuple, output: Tensor) -> None:
        kept[layer] = (output if activation == "pre" else args[0])[:, -1]

    return keep


def _fc1(lm: LM, layer: int):
    return getattr(lm.mlp(layer), lm.family.fc1[0])


@torch.inference_mode(False)
def integrated_gradients(
    lm: LM,
    rows: Rows,
    steps: int = 20,
    activation: str = "post",
    budget: int = 256,
    baseline: Float[Tensor, "rows layers d_mlp"] | None = None,
    points: str = "right",
    factor: str = "difference",
) -> Float[Tensor, "rows layers d_mlp"]:
    """Attr of every FFN neuron for a token after some others, by integrated gradients.

    F/m sum_j of the gradient of the token's probability at a0 + t_j (a - a0).
    rows: b pairs (token ids, next token).   steps: m.
    activation: "post", fc2's input, or "pre", the output of fc1 (of the gate).
    budget: scaled copies in one forward. Everything before the last position runs once for all
    layers and copies.   baseline: a0 of each row, zero if none is given.
    points: t_j = j/m, j from 1 ("right") or from 0 to m - 1 ("left"), or evenly from 0 to 1
    ("both").   factor: F, "difference" (a - a0) or "value" (a).
    In probability. Raises ValueError for unknown ``points`` or ``factor``.
    Source: KN, Eq. 4 and 5; Query Localization, Eq. 10 and 17.
    """
    if factor not in ("difference", "value"):
        raise ValueError(f"factor {factor!r} is unknown; allowed: 'difference', 'value'")
    ids, mask = lm.pad([row for row, _ in rows], side="left")
    target = torch.tensor([token for _, token in rows], device=lm.device)
    scale = _points(steps, points, torch.promote_types(lm.dtype, torch.float32)).to(lm.device)
    with torch.no_grad():
        past, states = _until_last(lm, ids, mask)
    at, above = ids.shape[1] - 1, [lm.above(layer) for layer in range(lm.n_layers)]
    last = {"attention_mask": mask, "position_ids": position_ids(mask)[:, at:]}

    def attribute(layer: int, piece: range) -> Float[Tensor, "piece d_mlp"]:
        # 1. What the FFN reads, and its activations, on their way from the baseline.
        many = torch.tensor(piece, device=lm.device).repeat_interleave(steps)
        h = states["in", layer]
        if not lm.family.parallel:
            h = h + states["attn", layer]
        h = lm.ffn_norm(layer)(h)
        fc1 = _fc1(lm, layer)
        a = states["key", layer] if activation == "post" else fc1(h)
        start = None if baseline is None else baseline[:, layer].to(a)
        whole = a if start is None else a - start
        x = whole[many] * scale.repeat(len(piece))[:, None].to(a)
        x = (x if start is None else start[many] + x).detach().requires_grad_()
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
            top = above[layer](
                inputs_embeds=hidden[:, None],
                **{name: value[many] for name, value in last.items()},
                past_key_values=cache if at else None,
                use_cache=bool(at),
            ).last_hidden_state[:, 0]
            p = lm.head(top).to(scale).softmax(-1).gather(1, target[many][:, None])
            (gradient,) = torch.autograd.grad(p.sum(), x)
        times = whole if factor == "difference" else a
        return times[list(piece)] * gradient.unflatten(0, (len(piece), steps)).mean(1)

    per_layer = [
        torch.cat(chunked(partial(attribute, layer), len(rows), max(1, budget // steps)))
        for layer in range(lm.n_layers)
    ]
    return torch.stack(per_layer, 1)


def _points(steps: int, points: str, dtype: torch.dtype) -> Float[Tensor, " steps"]:
    """The places t_j of a Riemann sum."""
    if points == "both":
        return torch.linspace(0, 1, steps, dtype=dtype)
    if points not in ("right", "left"):
        raise ValueError(f"points {points!r} are unknown; allowed: 'right', 'left', 'both'")
    first = int(points == "right")
    return torch.arange(first, steps + first, dtype=dtype) / steps


def _until_last(
    lm: LM, ids: Int[Tensor, "rows pos"], mask: Int[Tensor, "rows pos"]
) -> tuple[list[tuple[Tensor, Tensor]], dict[tuple[str, int], Float[Tensor, "rows d"]]]:
    """Keys and values of the positions before the last, and the states at it."""
    at, past, positions = ids.shape[1] - 1, DynamicCache(), position_ids(mask)
    if at:
        lm.stack(
            input_ids=ids[:, :at],
            attention_mask=mask[:, :at],
            position_ids=positions[:, :at],
            past_key_values=past,
            use_cache=True,
        )
    pairs = [(k, v) for k, v, *_ in past]
    kinds = ("in", "attn", "key", "mlp", "out")
    with read(lm, [Site(kind, layer) for kind in kinds for layer in range(lm.n_layers)]) as values:
        lm.stack(
            input_ids=ids[:, at:],
            attention_mask=mask,
            position_ids=positions[:, at:],
            past_key_values=past,
            use_cache=bool(at),
        )
    return pairs, {site: value[:, 0] for site, value in values.items()}


def knowledge_neurons(
    attributions: Float[Tensor, "*queries layers d_mlp"], share: float = 0.2
) -> Bool[Tensor, "*queries layers d_mlp"]:
    """Whether each neuron is a knowledge neuron of its query: Attr > share * max Attr, over all
    layers.

    Raises ValueError for a share that is not between 0 and 1. Source: Dai et al. (2022); the
    threshold of Query Localization, Eq. 19, is not stated.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share {share!r} must be at least 0 and less than 1")
    return attributions > share * attributions.amax((-2, -1), keepdim=True)
