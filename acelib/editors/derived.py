"""Settings of editors for models that have no preset: rules of depth and width.

Layers lie at the same share of the depth, and lambda grows with the width, as in settings that are
known to work: the published ones of GPT-2 XL, GPT-J and Qwen3-8B (28 to 48 layers), and short
trials on SmolLM2-135M (30 layers). They are a start and no search: ``acelib tune`` searches.
"""

from __future__ import annotations

from typing import Any

from ..editing.search import Objective
from ..model.lm import LM
from ..records import quoted
from .ace import ACE, IFMET, ReleasedACE
from .ft import FT
from .kn import KN
from .memit import MEMIT, PMET, AlphaEdit
from .rome import ROME

#: Layers and neurons a layer of the models that the rules come from.
LAYERS, NEURONS = (28, 48), (1536, 16384)
#: Depth of the first and the last layer that the early group writes, and the late one; shares.
EARLY, LATE = (0.13, 0.25), (0.83, 0.90)
ROME_AT, FT_AT = 0.17, 0.17
#: lambda of MEMIT and PMET on GPT-J, whose FFN has 16,384 neurons
MEMIT_WEIGHT, PMET_WEIGHT = 15_000.0, 6_000.0
SEARCH: dict[str, Any] = dict(steps=20, lr=0.5)


def derived(editor: str, lm: LM) -> Any:
    """The named editor with settings that follow from the depth and the width of a model.

    Raises ValueError for an editor without a rule.
    """
    early, late = _group(lm.n_layers, EARLY), _group(lm.n_layers, LATE)
    wide = lm.d_mlp / NEURONS[1]
    block = Objective(**SEARCH)
    pmet = Objective(kind="pmet", kl=1.0, decay=0.0, clamp=None, **SEARCH)
    weight = PMET_WEIGHT * wide
    first = PMET(layers=early, weight=weight, objective=pmet, n_prefixes=2)
    last = PMET(layers=late, weight=weight, objective=pmet, n_prefixes=2, position="last")
    by_name: dict[str, Any] = {
        "FT": FT(layers=(_at(lm.n_layers, FT_AT),), loss="target", lr=1e-3),
        "KN": KN(),
        "ROME": ROME(
            layer=_at(lm.n_layers, ROME_AT),
            objective=Objective(kind="mlp", clamp=4.0, **SEARCH),
            n_prefixes=2,
            prefix_lengths=(10,),
        ),
        "MEMIT": MEMIT(layers=early, weight=MEMIT_WEIGHT * wide, objective=block, n_prefixes=2),
        "PMET": first,
        "AlphaEdit": AlphaEdit(
            layers=early, null_share=0.5, weight=10.0 * wide, objective=block, n_prefixes=2
        ),
        "IFMET": IFMET(value=last, query=first),
        "ACE": ACE(value=last, query=first),
        "ReleasedACE": ReleasedACE(
            value=PMET(layers=late, weight=weight, objective=pmet, n_prefixes=2, writes="both"),
            query=PMET(layers=early, weight=weight, objective=pmet, n_prefixes=2, writes="both"),
        ),
    }
    if editor not in by_name:
        raise ValueError(f"no rule gives settings of {quoted(editor)}; of: {', '.join(by_name)}")
    return by_name[editor]


def line(editor: str, chosen: Any, lm: LM) -> str:
    """One line that says that settings were derived, and from what."""
    layers = getattr(chosen, "layers", ())
    where = f", layers {_listed(layers)}" if layers else ""
    inside = LAYERS[0] <= lm.n_layers <= LAYERS[1] and NEURONS[0] <= lm.d_mlp <= NEURONS[1]
    outside = "" if inside else ", which this model is outside of"
    return (
        f"{editor} has no settings for {lm.name!r}: derived from its {lm.n_layers} layers and "
        f"{lm.d_mlp:,} neurons a layer{where}, by rules from models of {LAYERS[0]} to "
        f"{LAYERS[1]} layers and {NEURONS[0]:,} to {NEURONS[1]:,} neurons{outside}"
    )


def _at(n_layers: int, depth: float) -> int:
    """The layer at a share of the depth."""
    return min(n_layers - 1, round(depth * (n_layers - 1)))


def _group(n_layers: int, depths: tuple[float, float]) -> tuple[int, ...]:
    """The layers between two shares of the depth, at least one."""
    first, last = (_at(n_layers, depth) for depth in depths)
    return tuple(range(first, last + 1))


def _listed(layers: tuple[int, ...]) -> str:
    """Layers with a dash between neighbours: "4-7, 24-26"."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
