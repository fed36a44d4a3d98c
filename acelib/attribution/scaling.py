"""FFN neurons made weaker or stronger, for every row of a batch its own: hundreds of differently
changed models in one forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..interrupts import unbroken
from ..model.lm import LM
from ..model.states import Site, State, replaced


@unbroken
def scaled_neurons(
    lm: LM,
    factors: Float[Tensor, "rows layers d_mlp"],
    at: Int[Tensor, " rows"] | None = None,
) -> Iterator[LM]:
    """The model in which row b's activations m^l are multiplied by ``factors[b, l]``, inside a
    ``with``.

    at: a column of each row, where alone that is done; None: at every position, which is what a
    second FFN matrix with scaled columns does.
    Raises ValueError for factors of other sizes than the model's, or of other rows than a batch's.
    """
    if factors.shape[1:] != (lm.n_layers, lm.d_mlp):
        raise ValueError(
            f"factors are of {tuple(factors.shape[1:])} (layers, neurons); model {lm.name!r} has "
            f"{(lm.n_layers, lm.d_mlp)}"
        )
    factors = factors.to(lm.device, lm.dtype)
    # Layers that nobody changes are left alone.
    changed = (factors != 1).any(0).any(1).nonzero()[:, 0].tolist()

    def scale(layer: int, state: State) -> State:
        if len(state) != len(factors):
            raise ValueError(f"the batch has {len(state)} rows, the factors {len(factors)}")
        if at is None:
            return state * factors[:, layer, None]
        state, rows = state.clone(), torch.arange(len(state), device=state.device)
        state[rows, at] = state[rows, at] * factors[:, layer]
        return state

    patches: dict[Site, Callable[[State], State | None]] = {
        Site("key", layer): partial(scale, layer) for layer in changed
    }
    with replaced(lm, patches):
        yield lm
