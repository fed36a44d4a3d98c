"""What a model loses when states are replaced: causal tracing, and neurons silenced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..interrupts import unbroken
from ..model.lm import LM
from ..model.states import Site, State, replaced, trace
from .scores import first_tokens


class CausalTrace(NamedTuple):
    """Probabilities of the answer's first token."""

    clean: float  #: the prompt as it is
    corrupted: float  #: noise on the subject, mean over noise samples
    #: by ``ROLES``: noise on the subject, the clean state put back; nan where no token has the role
    restored: Float[Tensor, "5 layers"]


@torch.no_grad()
def causal_trace(  # noqa: PLR0913 - the settings of causal tracing
    lm: LM,
    prompt: str,
    subject: str,
    answer: str,
    kind: str = "out",
    noise: float = 3.0,
    n_noise: int = 10,
    seed: int = 0,
    window: int = 10,
    sever: str | None = None,
) -> CausalTrace:
    """Which states carry the answer.

    The subject is corrupted with Gaussian noise, one clean state is put back, and the answer's
    probability is read. One forward pass for each layer, whose rows are tokens x samples; tokens
    before the subject cannot see it and are left out.
    kind: the state put back at one token, the block output "out" of one layer, or "mlp" or "attn"
    outputs of ``window`` layers around it.
    noise: standard deviation of the noise in those of the embedding matrix.
    n_noise: samples, the same ones for every state.
    sever: "mlp" or "attn", whose outputs at the token, in all layers above, stay as the noise has
    left them: what it is then that a state no longer brings back went through them.
    Raises ValueError if the subject is not in the prompt, the answer is empty, or a number is out
    of range.
    Source: Meng et al. (2022), Section 2.1; severed: their Figure 3.
    """
    if kind not in ("out", "mlp", "attn"):
        raise ValueError(f"kind {kind!r} cannot be restored; allowed: 'out', 'mlp', 'attn'")
    if sever not in (None, "mlp", "attn"):
        raise ValueError(f"sever {sever!r} is unknown; allowed: None, 'mlp', 'attn'")
    if not subject or subject not in prompt:
        raise ValueError(f"subject {subject!r} is not in the prompt {prompt!r}")
    if n_noise < 1 or window < 1 or not noise >= 0:
        raise ValueError(
            f"noise {noise}, n_noise {n_noise}, window {window}: noise is at least 0, "
            "the others at least 1"
        )
    # 1. The prompt as it is.
    start = prompt.index(subject)
    first, final = lm.token_at(prompt, start + 1), lm.token_at(prompt, start + len(subject))
    target = int(first_tokens(lm, [answer]))
    ids, mask = lm.encode([prompt])
    n_layers, logits = lm.n_layers, Site("logits", lm.n_layers)
    clean = trace(lm, ids, mask, [Site(kind, layer) for layer in range(n_layers)], logits="last")
    # 2. The noise, and the prompt with it.
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(
        n_noise, final - first + 1, lm.d_model, generator=generator, dtype=torch.float64
    )
    samples = (samples * noise * float(lm.embed.weight.double().std())).to(lm.device, lm.dtype)

    def corrupt(h: State) -> State:
        h = h.clone()
        h[:, first : final + 1] += samples.repeat(len(h) // n_noise, 1, 1)
        return h

    many = ids.expand(n_noise, -1), mask.expand(n_noise, -1)
    severed = [Site(sever, layer) for layer in range(n_layers)] if sever else []
    spoiled = trace(lm, *many, sites=severed, patches={Site("in", 0): corrupt}) if sever else {}

    def probabilities(layers: Sequence[int], tokens: Sequence[int]) -> Float[Tensor, " tokens"]:
        """Mean probability of the answer for each token, its clean states put back at layers."""
        row = torch.arange(len(tokens) * n_noise, device=lm.device)
        column = torch.tensor(tokens, device=lm.device).repeat_interleave(n_noise)

        def put_back(state: Float[Tensor, "batch d"], h: State) -> State:
            return h.index_put((row, column), state)

        patches: dict[Site, Callable[[State], State]] = {Site("in", 0): corrupt}
        for layer in layers:
            state = clean[Site(kind, layer)][0, column]
            patches[Site(kind, layer)] = partial(put_back, state)
        for site in severed[max(layers) + 1 :] if layers else []:
            patches[site] = partial(put_back, spoiled[site][row % n_noise, column])
        many_ids, many_mask = (x.expand(len(row), -1) for x in (ids, mask))
        last = trace(lm, many_ids, many_mask, patches=patches, logits="last")[logits]
        return last.softmax(-1)[:, target].view(len(tokens), n_noise).mean(1).cpu()

    def around(layer: int) -> Sequence[int]:
        if kind == "out":
            return [layer]
        return range(max(0, layer - window // 2), min(n_layers, layer - (-window // 2)))

    # 3. The clean states of every token put back, layer by layer.
    end = ids.shape[1] - 1
    tokens = list(range(first, end + 1))
    by_token = torch.stack([probabilities(around(layer), tokens) for layer in range(n_layers)], 1)
    # 4. The mean over the tokens of each role.
    restored = torch.stack(
        [by_token[[t - first for t in role]].mean(0) for role in _roles(first, final, end)]
    )
    return CausalTrace(
        float(clean[logits].softmax(-1)[0, target]), float(probabilities([], [end])), restored
    )


def _roles(first: int, final: int, end: int) -> tuple[Sequence[int], ...]:
    """The tokens of each of ``ROLES``: the subject goes from first to final, the prompt to end."""
    return (
        [first] if first < final else [],
        range(first + 1, final),
        [final],
        range(final + 1, end),
        [end] if end > final else [],
    )


@unbroken
def ablate(lm: LM, neurons: Iterable[tuple[int, int] | tuple[int, int, float]]) -> Iterator[LM]:
    """The model with the coefficients m_k of some FFN neurons at zero, inside a ``with``.

    neurons: (layer, index), or the ``Neuron`` of ``top_neurons``.
    Raises ValueError for a neuron that the model does not have.
    """
    silent: dict[int, list[int]] = {}
    for layer, index, *_ in neurons:
        lm.layers([layer])
        if not 0 <= index < lm.d_mlp:
            raise ValueError(
                f"neuron {index} of layer {layer} does not exist: the FFN has neurons 0 to "
                f"{lm.d_mlp - 1}"
            )
        silent.setdefault(layer, []).append(index)

    def silencer(indices: list[int]) -> Callable[[State], State]:
        index = torch.tensor(indices, device=lm.device)

        def zero(key: State) -> State:
            return key.index_fill(-1, index, 0.0)

        return zero

    patches = {Site("key", layer): silencer(indices) for layer, indices in silent.items()}
    with replaced(lm, patches):
        yield lm
