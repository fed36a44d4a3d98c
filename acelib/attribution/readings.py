"""Query scores of whole outputs, as Eq. 10 is printed and as the released notebooks compute them.

Of an earlier attention or FFN output o and a value neuron k with key fc1_k and value score I_k:

    Q(o) = sum_k I_k o . fc1_k                        (Eq. 10, of a layer instead of a neuron)
    Q(o) = sum_k I_k o . fc1_k / sum_o' o' . fc1_k    (released)

k runs over the n neurons of greatest value score (released: 30), o' over all outputs before k. The
division makes the shares of every neuron add up to 1, however little its key agrees with anything;
where its inner products cancel the shares are large and of both signs. For Qwen3 the released
notebook has a further fault: it takes the column of the FFN's second matrix, which is the neuron's
value vector, for the key.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..model.lm import LM
from ..model.states import Site, last, trace
from .scores import Ids, top

KEYS = ("fc1", "fc2")
BLOCKS = ("attn", "ffn")  #: of the outputs, in the order of the result
SITES = {"attn": "attn", "ffn": "mlp"}


@torch.no_grad()
def output_query_scores(
    lm: LM,
    ids: Ids,
    mask: Ids,
    values: Float[Tensor, "batch layers d_mlp"],
    n: int = 30,
    divided: bool = True,
    key: str = "fc1",
) -> Float[Tensor, "batch blocks layers"]:
    """Q of every attention and FFN output (with its bias) at the last token, ``BLOCKS`` x layers.

    Before a neuron of layer l: all outputs of lower layers, and attention's of layer l, except
    where both read the same input (GPT-J). Products with a key treat the residual stream's mean as
    zero, as ``query_scores``.
    values: FFN value scores of the same prompts.   n: value neurons per prompt.
    divided: by the sum of a neuron's inner products.
    key: "fc1" (norm's gain folded in), or "fc2", the value vector, which is the fault.
    Returns shares weighted by I if divided, in nats; else in the unit of query scores.
    Raises ValueError for an unknown key, or values of another shape.
    Source: ACE, Eq. 10; its released notebooks.
    """
    if key not in KEYS:
        raise ValueError(f"key {key!r} is unknown; allowed: 'fc1', 'fc2'")
    if values.shape != (len(ids), lm.n_layers, lm.d_mlp):
        raise ValueError(
            f"values are {tuple(values.shape)}; give FFN value scores of these prompts, "
            f"{(len(ids), lm.n_layers, lm.d_mlp)}"
        )
    sites = [Site(SITES[b], layer) for b in BLOCKS for layer in range(lm.n_layers)]
    states = trace(lm, ids, mask, sites, at=last(mask))
    outputs = torch.stack(  # (batch, blocks, layers, d_model)
        [torch.stack([states[SITES[b], i] for i in range(lm.n_layers)], 1) for b in BLOCKS], 1
    )
    weights = top(values, n).to(outputs.dtype)
    scores = torch.zeros(outputs.shape[:3], dtype=outputs.dtype, device=outputs.device)
    for layer in range(lm.n_layers):
        # 1. The layer's value neurons of any prompt, and their keys.
        units = (weights[:, layer] != 0).any(0).nonzero()[:, 0]
        keys = lm.subkeys(layer)[units] if key == "fc1" else lm.weight(layer).T[units]
        # 2. Inner products with what comes before them: (batch, blocks, layers, units).
        products = outputs @ keys.T
        products[:, 1, layer:] = 0
        products[:, 0, layer + (not lm.family.parallel) :] = 0
        # 3. Each neuron's products or shares, weighted by its score.
        if divided:
            whole = products.sum((1, 2), keepdim=True)
            products = torch.where(whole == 0, 0.0, products / whole)
        scores += (products * weights[:, None, None, layer, units]).sum(-1)
    return scores
