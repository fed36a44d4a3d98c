"""What a model still says when FFN outputs are averaged away, token by token and layer by layer.

An averaged output is the same for every text: what it said of this one is lost, and the residual
stream stays where later layers expect it. (A zero would take away both.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import log_softmax

from ..model.lm import LM
from ..model.states import Site, State, replaced, trace


class Lengths(NamedTuple):
    """Mean lengths over the tokens of texts, by layer."""

    added: Float[Tensor, " layers"]  #: of F^l
    onto: Float[Tensor, " layers"]  #: of what F^l is added to, h^{l-1} + A^l


class Said(NamedTuple):
    """What is said of one answer under each condition."""

    correct: Bool[Tensor, " conditions"]  #: greedy decoding says exactly the answer
    logprob: Float[Tensor, " conditions"]  #: log-probability of the whole answer, nats


@torch.no_grad()
def mean_outputs(
    lm: LM, texts: Sequence[str], batch_size: int = 16
) -> tuple[Float[Tensor, "layers d_model"], Lengths]:
    """The mean of every layer's FFN output over all tokens of ``texts``, and the lengths beside.

    texts: cut to the model's longest input.
    Raises ValueError without texts.
    """
    if not texts:
        raise ValueError("no texts are given to average over")
    layers, most = range(lm.n_layers), lm.model.config.max_position_embeddings
    rows = [lm.tokenizer(text)["input_ids"][:most] for text in texts]
    sites = [Site(kind, layer) for layer in layers for kind in ("in", "attn", "mlp")]
    sums, n = torch.zeros(lm.n_layers, lm.d_model + 2, dtype=torch.float64, device=lm.device), 0
    for start in range(0, len(texts), batch_size):
        ids, mask = lm.pad(rows[start : start + batch_size])
        states, real = trace(lm, ids, mask, sites), mask.bool()
        for layer in layers:
            before, attn, ffn = (states[kind, layer][real] for kind in ("in", "attn", "mlp"))
            norms = torch.stack([ffn.norm(dim=-1), (before + attn).norm(dim=-1)], -1)
            sums[layer] += torch.cat([ffn, norms], -1).double().sum(0)
        n += int(real.sum())
    means = sums / n
    return means[:, :-2].to(lm.dtype), Lengths(means[:, -2], means[:, -1])


@torch.no_grad()
def said_without(
    lm: LM,
    prompt: str,
    answer: str,
    means: Float[Tensor, "layers d_model"],
    where: Bool[Tensor, "conditions pos layers"],
) -> Said:
    """Whether ``prompt`` is still answered where FFN outputs are replaced by their means.

    means: of ``mean_outputs``.   where: for every condition, the tokens and layers at which they
    are; its positions are the prompt's tokens, and the last one stands for those of the answer too.
    Raises ValueError if ``where`` has another number of positions or layers.
    """
    head, tail = lm.tokenizer(prompt)["input_ids"], lm.answer_ids(answer)
    if where.shape[1:] != (len(head), lm.n_layers):
        raise ValueError(
            f"where {tuple(where.shape)} must be (conditions, {len(head)}, {lm.n_layers}): "
            "tokens of the prompt, layers of the model"
        )
    ids, mask = lm.pad([head + tail] * len(where))
    longer = torch.cat([where, where[:, -1:].expand(-1, len(tail), -1)], 1).to(lm.device)

    def averaged(layer: int) -> Callable[[State], State]:
        return lambda state: torch.where(longer[:, :, layer, None], means[layer], state)

    touched = [layer for layer in range(lm.n_layers) if longer[..., layer].any()]
    with replaced(lm, {Site("mlp", layer): averaged(layer) for layer in touched}):
        hidden = lm.stack(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    scores = log_softmax(lm.head(hidden[:, len(head) - 1 : -1]).float(), -1)
    wanted = ids[:, len(head) :]
    logprob = scores.gather(-1, wanted[..., None])[..., 0].sum(-1)
    return Said((scores.argmax(-1) == wanted).all(-1), logprob)
