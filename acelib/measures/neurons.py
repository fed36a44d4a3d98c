"""ACE on some neurons of its layers: those that attribution finds, and as many random ones.

The paper argues for neurons and edits whole layers. Rows judge ACE on all neurons of its layers, on
the best of each layer, and on random ones, and measure how large the written changes are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

from ..editors import preset
from ..editors.base import Editor
from ..editors.neurons import NeuronACE
from ..model.lm import LM
from ..records import Edit
from ..study import experiments
from ..study.judge import Protocol
from ..study.rows import Experiment, Series
from ..world.world import World
from .ripple import by_name, known_edits

#: word in a name -> ``NeuronACE.choice``
KINDS: dict[str, Literal["attribution", "random"]] = {
    "neurons": "attribution",
    "random": "random",
}


def variants(model: str, n_neurons: Sequence[int]) -> dict[str, Editor]:
    """ACE with its settings for a model, on whole layers ("ACE") and on some neurons of each layer
    ("128 neurons", "128 random").
    """
    ace = preset("ACE", model)
    parts = {
        f"{n} {kind}": NeuronACE(**vars(ace), n_neurons=n, choice=choice)
        for n in n_neurons
        for kind, choice in KINDS.items()
    }
    return {"ACE": ace, **parts}


def experiment(
    hosts: Mapping[str, LM], world: World, *, n_neurons: Sequence[int], n_cases: int, seed: int
) -> Experiment:
    """``variants`` of ACE on evaluation cases, balanced over 1 to 4 edits. Rows: ``judge``."""
    editors = {model: variants(model, n_neurons) for model in hosts}
    cases = experiments.cases_by_model(hosts, world, n_cases, seed)
    series = experiments.comparisons(hosts, world, editors, cases, Protocol(seed=seed))
    return Experiment("06_ripple_neurons", series)


def norms(
    hosts: Mapping[str, LM], world: World, *, n_neurons: Sequence[int], n_edits: int, seed: int
) -> Experiment:
    """How large the change is that ``variants`` write for single edits of known facts.

    Rows: norm (Frobenius, over all layers), weights (number of weights that may change).
    """
    series: list[Series] = []
    for model, lm in hosts.items():
        edits = by_name(known_edits(lm, world, n_edits, seed))
        editors = variants(model, n_neurons)
        corpus = experiments.corpus(lm, world, editors.values(), seed)
        series += [
            Series(
                names={"model": model, "editor": name},
                depends=experiments.depends(lm, world, editor, corpus),
                code=(__name__, *experiments.modules(editor)),
                items=edits,
                compute=partial(_sizes, lm, editor, corpus),
            )
            for name, editor in editors.items()
        ]
    return Experiment("06_ripple_norms", tuple(series), rtol=1e-3)


def _sizes(lm: LM, editor, corpus: experiments.Corpus, edits: list[Edit]) -> list[list[dict]]:
    updates = editor.each(lm, [[edit] for edit in edits], corpus.moments)
    n = getattr(editor, "n_neurons", lm.d_mlp) * lm.d_model * len(editor.layers)
    norms = [sum(norm * norm for norm in update.norms().values()) ** 0.5 for update in updates]
    return [[{"norm": norm, "weights": n}] for norm in norms]
