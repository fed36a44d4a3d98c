"""What attribution and edits cost at true size: Appendix I's table on random weights of a model's
shape, on whatever device there is, against the plain procedures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor

from ..attribution.scores import first_tokens, query_scores, value_scores
from ..editing.moments import Moments
from ..editing.request import Request, requests
from ..editing.search import Objective
from ..editors import ACE, MEMIT, PMET, ROME, preset
from ..editors.base import Staged
from ..model.lm import LM
from ..provenance import default_device
from ..records import Edit
from ..training.train import RECIPES, make_tokenizer
from ..world.cases import single_edits
from ..world.world import load_world
from . import plain, shapes, speed
from .speed import Progress, Timing, same, timed

NAMES = ("ROME", "MEMIT", "ACE")  #: editors that are timed
RTOL = 0.05  #: of results in float32 at large widths; half precision is only reported


def full_size(
    shape: str,
    dtype: torch.dtype = torch.float32,
    device: str | None = None,
    n: int = 4,
    steps: int = 20,
    stored: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Timing]:
    """The table of a shape: scores, target vectors, keys, writes, and edits by ``NAMES``.

    dtype: of the weights; closed forms are in float64.   n: facts of the search and the keys.
    steps: of the first search; editors have their own.
    stored: edits that AlphaEdit's write holds.
    Raises ValueError for an unknown shape, or one that does not fit into memory; AssertionError if,
    in float32, a plain procedure and the library's disagree.
    """
    where, world = torch.device(device or default_device()), load_world()
    shapes.config_of(shape)
    shapes.check_fits(shape, dtype, where)
    lm = shapes.random_model(shape, make_tokenizer(world, RECIPES["gptj-mini"]), dtype, where, seed)
    rtol = RTOL if dtype.itemsize >= 4 else inf
    editors = {name: editor_of(name, shape, lm) for name in NAMES}
    layers, at_once = editors["MEMIT"].layers, shapes.budget(where)
    size: dict[str, Any] = dict(m=lm.d_mlp, d=lm.d_model, seed=seed, device=where)
    more: dict[str, Any] = dict(seed=seed, rtol=rtol)
    works: dict[str, Callable[[], list[Timing]]] = {
        "value scores": partial(
            speed.attribution, lm, 1, min(64, lm.d_mlp), budget=at_once, **more
        ),
        "query scores": partial(queries, lm, 1, budget=at_once, **more),
        "target vectors": partial(speed.targets, lm, n, 1, layers[-1], steps=steps, **more),
        "keys": partial(speed.keys, lm, n, layers, **more),
        "update": partial(speed.update, **size),
        "history": partial(speed.history, stored=stored, **size),
        **{name: partial(edit, lm, name, editor, seed) for name, editor in editors.items()},
    }
    rows = []
    for done, (name, work) in enumerate(works.items(), 1):
        rows += work()
        if progress:
            progress(done, len(works), name)
    return rows


def editor_of(name: str, shape: str, lm: LM) -> Any:
    """The editor with its settings for a shape or, where there are none, layers by its depth."""
    try:
        return preset(name, shape)
    except ValueError:
        early = tuple(sorted({lm.n_layers * i // 12 for i in (2, 3, 4)}))
    if name == "ROME":
        return ROME(layer=early[-1])
    if name == "MEMIT":
        return MEMIT(layers=early)
    deep = tuple(range(lm.n_layers - 3, lm.n_layers))
    return ACE(value=PMET(layers=deep, position="last"), query=PMET(layers=early))


def queries(
    lm: LM,
    n: int = 1,
    sample: int = 32,
    seed: int = 0,
    rtol: float = 1e-2,
    budget: int = 2**22,
) -> list[Timing]:
    """Query scores of all FFN neurons for ``n`` prompts; the plain double loop on the ``sample``
    greatest.

    Raises AssertionError if results differ by more than rtol of the greatest.
    """
    world = load_world()
    edits = single_edits(world, n, seed)
    ids, mask = lm.encode([edit.prompt.replace("{}", edit.subject) for edit in edits])
    words = first_tokens(lm, [edit.target_new for edit in edits])
    values = value_scores(lm, ids, mask, words, budget=budget)
    scores, ours = timed(lambda: query_scores(lm, ids, mask, values), lm)
    places = scores.abs().flatten().topk(min(sample, scores.numel())).indices
    chosen = [index.tolist() for index in torch.unravel_index(places, scores.shape)]
    neurons = list(zip(*chosen, strict=True))
    expected, spent = timed(lambda: plain.queries(lm, ids, mask, values, neurons), lm)
    off = same("queries", scores.flatten()[places].double(), expected.double(), rtol)
    note = (
        f"{n} prompts x {lm.n_layers} layers x {lm.d_mlp} neurons, {lm.name}; "
        f"plain timed on {len(neurons)} and multiplied up; results agree to {off:.0e}"
    )
    return [Timing("query scores", spent * scores.numel() / len(neurons), ours, off, note)]


def edit(lm: LM, name: str, editor: Any, seed: int = 0) -> list[Timing]:
    """Latency of one edit, second moments factored before the clock starts.

    Plain: the parts of the same edit, each timed and added up: a search for every request, keys
    from full forwards for every layer, one full solve times the layers.
    """
    edits = single_edits(load_world(), 1, seed)
    editor = editor.with_texts(editor.prefixes(lm)[1:])  # sampled once, by neither side
    prefixes = editor.prefixes(lm)
    moments = made_up(lm, editor.layers, seed)
    _, ours = timed(lambda: editor(lm, edits, moments), lm)
    spent = 0.0
    for given, layers, objective in _stages(editor, edits):
        simple = Objective(steps=objective.steps, floor=None)  # as much work as the other kinds
        for request in given:
            search = partial(plain.target_vectors, lm, [request], layers[-1], simple, prefixes)
            spent += timed(search, lm)[1]
        read = partial(plain.keys_and_values, lm, given, layers, prefixes)
        found, seconds = timed(read, lm)
        K, R = (part.double() for part in found[0])
        solve = partial(plain.ridge, moments[layers[0]], K, R, 1.0)
        spent += seconds + timed(solve, lm)[1] * len(layers)
    note = f"layers {editor.layers}, {len(prefixes) - 1} prefixes, {lm.name}; plain in parts"
    return [Timing(f"one edit by {name}", spent, ours, 0.0, note)]


def _stages(
    editor: Any, edits: Sequence[Edit]
) -> list[tuple[list[Request], tuple[int, ...], Objective]]:
    """Requests, layers and objective of each search of an editor."""
    if isinstance(editor, Staged):
        plan = editor.plan.items()
        return [(editor.requests(edits, name), s.layers, s.objective) for name, s in plan]
    return [(requests(edits, editor.position), editor.layers, editor.objective)]


def made_up(lm: LM, layers: Sequence[int], seed: int = 0) -> Moments:
    """One second moment of full rank for all ``layers``, with its factor: 16 d_mlp^2 bytes."""
    m = lm.d_mlp
    draw = torch.Generator().manual_seed(seed)
    low = torch.randn(m, min(m, 64), generator=draw, dtype=torch.float64).to(lm.device)
    C: Tensor = (low @ low.T).div_(low.shape[1])
    C.diagonal().add_(0.5)
    factor = torch.linalg.cholesky(C)
    return Moments(
        dict.fromkeys(layers, C),
        tokens=m,
        ridge=dict.fromkeys(layers, 0.0),
        _factors=dict.fromkeys(layers, factor),
    )
