"""What a model loses when states are replaced: causal tracing, and neurons silenced."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Callable, Iterable, Iterator, NamedTuple, Sequence

import torch
from torch import Tensor

from ..model.lm import LM
from ..model.states import Site, replaced, trace
from .scores import first_tokens


class CausalTrace(NamedTuple):
    """Probabilities of the answer's first token."""

    clean: float  #: the prompt as it is
    corrupted: float  #: noise on the subject, mean over noise samples
    restored: Tensor  #: (5, l) by ``ROLES`` and layer: noise on the subject, the clean state put back; nan where no token has the role


@torch.no_grad()
def causal_trace(
    lm: LM,
    prompt: str,
    subject: str,
    answer: str,
    kind: str = "out",
    noise: float = 3.0,
    n_noise: int = 10,
    seed: int = 0,
    window: int = 10,
) -> CausalTrace:
    """Which states carry the answer: corrupt the subject with Gaussian noise, put back one clean state, and read the answer's probability.

    kind: the state put back at one token, the block output "out" of one layer, or "mlp" or "attn" outputs of ``window`` layers around it.
    noise: standard deviation of the noise in those of the embedding matrix.   n_noise: samples, the same ones for every state.
    One forward pass a layer, whose rows are tokens x samples. Tokens before the subject cannot see it and are left out.
    Raises ValueError if the subject is not in the prompt, the answer is empty, or a number is out of range.
    Source: Meng et al. (2022), Section 2.1.
    """
    if kind not in ("out", "mlp", "attn"):
        raise ValueError(f"kind {kind!r} cannot be restored; allowed: 'out', 'mlp', 'attn'")
    if not subject or subject not in prompt:
        raise ValueError(f"subject {subject!r} is not in the prompt {prompt!r}")
    if n_noise < 1 or window < 1 or not noise >= 0:
        raise ValueError(
            f"noise {noise}, n_noise {n_noise}, window {window}: noise is at least 0, the others at least 1"
        )
    start = prompt.index(subject)
    first, final = lm.token_at(prompt, start + 1), lm.token_at(prompt, start + len(subject))
    target = int(first_tokens(lm, [answer]))
    ids, mask = lm.encode([prompt])
    end, n_layers, logits = ids.shape[1] - 1, lm.n_layers, Site("logits", lm.n_layers)
    clean = trace(lm, ids, mask, [Site(kind, layer) for layer in range(n_layers)], logits="last")
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(
        n_noise, final - first + 1, lm.d_model, generator=generator, dtype=torch.float64
    )
    samples = (samples * noise * float(lm.embed.weight.double().std())).to(lm.device, lm.dtype)

    def probabilities(layers: Iterable[int], tokens: Sequence[int]) -> Tensor:
        """Mean probability of the answer for each token, its clean states put back at these layers."""
        row = torch.arange(len(tokens) * n_noise, device=lm.device)
        column = torch.tensor(tokens, device=lm.device).repeat_interleave(n_noise)

        def corrupt(h: Tensor) -> Tensor:
            h = h.clone()
            h[:, first : final + 1] += samples.repeat(len(tokens), 1, 1)
            return h

        patches = {Site("in", 0): corrupt}
        for site in (Site(kind, layer) for layer in layers):
            patches[site] = lambda h, state=clean[site][0, column]: h.index_put(
                (row, column), state
            )
        found = trace(
            lm, ids.expand(len(row), -1), mask.expand(len(row), -1), patches=patches, logits="last"
        )[logits]
        return found.softmax(-1)[:, target].view(len(tokens), n_noise).mean(1).cpu()

    tokens = list(range(first, end + 1))
    around = lambda layer: (
        [layer]
        if kind == "out"
        else range(max(0, layer - window // 2), min(n_layers, layer - (-window // 2)))
    )
    by_token = torch.stack([probabilities(around(layer), tokens) for layer in range(n_layers)], 1)
    roles = (
        [first] if first < final else [],
        range(first + 1, final),
        [final],
        range(final + 1, end),
        [end] if end > final else [],
    )
    restored = torch.stack([by_token[[t - first for t in role]].mean(0) for role in roles])
    return CausalTrace(
        float(clean[logits].softmax(-1)[0, target]), float(probabilities([], [end])), restored
    )


@contextmanager
def ablate(lm: LM, neurons: Iterable[tuple[int, int] | tuple[int, int, float]]) -> Iterator[LM]:
    """The model with the coefficients m_k of some FFN neurons at zero, at all positions, for the length of a ``with``.

    neurons: (layer, index), or the ``Neuron`` of ``top_neurons``. Raises ValueError for a neuron that the model does not have.
    """
    silent: dict[int, list[int]] = {}
    for layer, index, *_ in neurons:
        lm.layers([layer])
        if not 0 <= index < lm.d_mlp:
            raise ValueError(
                f"neuron {index} of layer {layer} does not exist: the FFN has neurons 0 to {lm.d_mlp - 1}"
            )
        silent.setdefault(layer, []).append(index)

    def silencer(indices: list[int]) -> Callable[[Tensor], Tensor]:
        index = torch.tensor(indices, device=lm.device)

        def zero(key: Tensor) -> Tensor:
            return key.index_fill(-1, index, 0.0)

        return zero

    patches = {Site("key", layer): silencer(indices) for layer, indices in silent.items()}
    with replaced(lm, patches):
        yield lm
