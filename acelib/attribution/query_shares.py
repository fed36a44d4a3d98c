"""Query scores of layers as in ACE's released notebooks: inner products divided by their sum.

    S(l') = sum over top (l, k) I(l, k) (o_l' . fc1_k) / sum_j (o_j . fc1_k)

o_j runs over the attention and FFN outputs that come before the FFN neuron (l, k). Eq. 10 of the
paper has no such division; without it, the FFN outputs' part is the layer sum of
``scores.query_scores``, but for biases. Where the products cancel, their sum is near zero and a
single value neuron decides the score.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..model.lm import LM
from ..model.states import Site, last, trace
from .scores import Ids, top


@torch.no_grad()
def query_shares(
    lm: LM,
    ids: Ids,
    mask: Ids,
    values: Float[Tensor, "batch layers d_mlp"],
    n: int = 100,
    row: str = "gate",
    divided: bool = True,
) -> Float[Tensor, "batch layers"]:
    """S of every layer's FFN output, at the last token.

    values: FFN value scores of the same prompts.   n: value neurons per prompt.
    row: key of a gated neuron, "gate" or "up".   divided: else the products as they are.
    In units of I (nats) if divided, else of I times an inner product.
    Raises ValueError for values of another shape, or n below 1.
    Source: ACE's released code (the query layers of its attribution notebooks).
    """
    if values.shape != (len(ids), lm.n_layers, lm.d_mlp):
        raise ValueError(
            f"values are {tuple(values.shape)}; give FFN value scores of these prompts, "
            f"{(len(ids), lm.n_layers, lm.d_mlp)}"
        )
    # 1. All outputs (batch, 2 l, d): attention, FFN of layer 0, attention, FFN of layer 1, ...
    sites = [Site(kind, layer) for layer in range(lm.n_layers) for kind in ("attn", "mlp")]
    states = trace(lm, ids, mask, sites, at=last(mask))
    outputs = torch.stack([states[site] for site in sites], 1)
    chosen = top(values, n).to(lm.dtype)
    scores = outputs.new_zeros(len(ids), lm.n_layers)
    for layer in range(1 if lm.family.parallel else 0, lm.n_layers):
        # 2. Those before this layer's FFN; attention of its own layer, unless both run in parallel.
        before = outputs[:, : 2 * layer + (0 if lm.family.parallel else 1)]
        products = _products(before, lm.subkeys(layer, row), chosen[:, layer], divided)
        # 3. Of them, the FFN outputs of the layers below.
        scores[:, :layer] += products[:, 1::2][:, :layer]
    return scores


def _products(
    outputs: Float[Tensor, "batch outputs d_model"],
    keys: Float[Tensor, "d_mlp d_model"],
    weights: Float[Tensor, "batch d_mlp"],
    divided: bool,
) -> Float[Tensor, "batch outputs"]:
    """Weighted sums over neurons of the outputs' inner products with their keys."""
    rows: Int[Tensor, " hits"]
    rows, neurons = weights.nonzero(as_tuple=True)
    products = (outputs[rows] @ keys[neurons][..., None])[..., 0]
    if divided:
        products = products / products.sum(1, keepdim=True)
    total = outputs.new_zeros(outputs.shape[:2])
    return total.index_add(0, rows, weights[rows, neurons][:, None] * products)
