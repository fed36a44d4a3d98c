"""What the library's exact replacements save: each timed against the plain procedure it replaces
(``plain``), results compared.

Where the plain procedure is too slow it runs on a sample, its time is multiplied up, and
``Timing.note`` says so. Times are wall-clock seconds of one run on this machine.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from math import inf, isnan

import torch
from torch import Tensor

from ..attribution.scores import (
    PLAIN,
    TOLERANCE,
    bounded_scores,
    first_tokens,
    query_scores,
    value_scores,
)
from ..editing.keys import Walk, contexts, mean_key, prefix_weights, tokens
from ..editing.moments import Moments, second_moments
from ..editing.request import Request, requests
from ..editing.search import Objective, target_vectors
from ..editing.solve import null_space_solver, ridge
from ..editors import MEMIT
from ..model.answers import recall
from ..model.lm import LM
from ..model.loading import load, shipped
from ..model.update import Update, applied
from ..records import quoted
from ..training.train import RECIPES, make_tokenizer, new_model
from ..world.cases import single_edits
from ..world.wording import single_hop_cloze, statement
from ..world.world import load_world
from . import plain
from .shapes import layers_of

Progress = Callable[[int, int, str], object]  #: (done, total, what)


@dataclass(frozen=True)
class Timing:
    """Seconds of the plain procedure and of this library for the same work."""

    name: str
    baseline_s: float
    ours_s: float
    ratio: float = field(init=False)  #: baseline_s / ours_s
    off: float = 0.0  #: greatest difference of the two results, as a share of the greatest entry
    note: str = ""  #: sizes, what was extrapolated, how near the results are

    def __post_init__(self):
        object.__setattr__(self, "ratio", self.baseline_s / max(self.ours_s, 1e-9))


def bench(what: Sequence[str] = (), progress: Progress | None = None) -> list[Timing]:
    """The benchmarks named, or of the groups named (all if none), at their default sizes; the model
    is made once.

    Raises ValueError for an unknown name; AssertionError if a plain procedure and the library's
    disagree.
    """
    for name in what:
        if name not in BENCHMARKS and name not in GROUPS:
            raise ValueError(
                f"unknown benchmark {quoted(name)}; known: {', '.join([*BENCHMARKS, *GROUPS])}"
            )
    names = [one for name in what or BENCHMARKS for one in GROUPS.get(name, [name])]
    chosen, rows = list(dict.fromkeys(names)), []
    lm = reference() if set(chosen) - ALGEBRA else None
    for name in chosen:
        rows += (
            BENCHMARKS[name](progress=progress)
            if name in ALGEBRA
            else BENCHMARKS[name](lm, progress=progress)
        )
    return rows


def reference(name: str = "gptj-mini") -> LM:
    """The shipped model of that name, or, where it is not there, a random one of its recipe's
    shape, which is as fast.
    """
    if name in shipped():
        return load(name)
    tokenizer = make_tokenizer(load_world(), RECIPES[name])
    with torch.random.fork_rng():
        return LM(new_model(RECIPES[name], len(tokenizer)), tokenizer, f"{name}, random")


# ---------------------------------------------------------------------- target vectors


def targets(  # noqa: PLR0913 - sizes of one benchmark
    lm: LM | None = None,
    n: int = 100,
    sample: int = 3,
    layer: int = 3,
    n_prefixes: int = 5,
    steps: int = 25,
    seed: int = 0,
    rtol: float = 1e-2,
    progress: Progress | None = None,
) -> list[Timing]:
    """Target vectors of ``n`` facts at ``layer`` with MEMIT's settings, no early stop; the plain
    procedure on ``sample`` of them.

    rtol: allowed difference of the pushes z - h_0, as a share of the greatest entry (Adam's
    ``steps`` amplify rounding).
    Raises ValueError for a sample outside 1 to n; AssertionError if the results differ.
    """
    _sampled(sample, n)
    lm, world = lm or reference(), load_world()
    given, objective = requests(single_edits(world, n, seed)), Objective(steps=steps, floor=None)
    prefixes = contexts(lm, n_prefixes, seed=seed)
    n = len(given)  # exact duplicates are searched once
    chosen = sorted({i * n // sample for i in range(sample)})  # spread over the facts
    found, ours = timed(lambda: target_vectors(lm, given, layer, objective, prefixes), lm)
    values: list[Tensor] = []
    spent = 0.0
    for done, i in enumerate(chosen, 1):
        search = partial(plain.target_vectors, lm, [given[i]], layer, objective, prefixes)
        z, seconds = timed(search, lm)
        values, spent = [*values, z], spent + seconds
        _tell(progress, done, len(chosen), "targets")
    pushes = found.delta[0, chosen]
    off = same("targets", pushes, torch.cat(values) - (found.value[chosen] - pushes), rtol)
    return [
        Timing(
            f"target vectors, {n_prefixes} prefixes",
            spent * n / len(chosen),
            ours,
            off,
            f"{n} facts, {steps} steps, layer {layer} of {lm.n_layers}, {lm.name}; "
            f"plain timed on {len(chosen)} and multiplied up; {_near(off)}",
        )
    ]


def bound(lm: LM, given: Sequence[Request], layer: int, prefixes: Sequence[str] = ("",)) -> float:
    """How many times fewer multiplications than the plain procedure a step of an exact target
    search can make, at most.

    Plain: every block at every position of the padded rows, back through those above ``layer``,
    logits twice, forward and back. Left: above ``layer``, forward and back, one position in the
    next block, those from the lookup token on in the others, in the last one the labels only, and
    logits there. Counts products of weights and states.
    """
    weights = [sum(p.numel() for p in block.parameters() if p.ndim == 2) for block in lm.blocks]
    head, above, all_, left = (
        sum(p.numel() for p in lm.head.parameters() if p.ndim == 2),
        weights[layer + 1 :],
        0,
        0,
    )
    for r in given:
        rows, answer = (
            [tokens(lm, prefix + r.prompt, len(prefix) + r.end) for prefix in prefixes],
            len(lm.answer_ids(r.target)),
        )
        longest = max(
            [len(ids) + answer - 1 for ids, _ in rows]
            + [len(lm.tokenizer(r.subject + " is a")["input_ids"])]
        )
        all_ += (len(rows) + 1) * longest * (sum(weights) + sum(above) + 4 * head)
        left += 2 * head + sum(
            2
            * (
                sum(above[:1])
                + (len(ids) + answer - 1 - at) * sum(above[1:-1])
                + answer * (sum(above[1:][-1:]) + head)
            )
            for ids, at in rows
        )
    return all_ / left


def savings(
    lm: LM | None = None,
    n: int = 12,
    layer: int = 3,
    n_prefixes: int = 5,
    steps: int = 6,
    seed: int = 0,
    rtol: float = 1e-2,
    progress: Progress | None = None,
) -> list[Timing]:
    """Where the gain of ``targets`` comes from: one saving after another, each timed against the
    plain procedure.
    """
    lm, world = lm or reference(), load_world()
    given, objective = requests(single_edits(world, n, seed)), Objective(steps=steps, floor=None)
    prefixes = contexts(lm, n_prefixes, seed=seed)
    batch = partial(plain.target_vectors, lm, given, layer, objective, prefixes)
    stages: dict[str, Callable[[], Tensor]] = {
        "all facts in one batch": batch,
        "logits at labels only": partial(batch, logits="labels"),
        "layers above the edit only": partial(batch, logits="labels", frozen=True),
        "positions from the lookup token on": lambda: (
            target_vectors(lm, given, layer, objective, prefixes).value
        ),
    }
    alone, spent = timed(
        lambda: torch.cat(
            [plain.target_vectors(lm, [r], layer, objective, prefixes) for r in given]
        ),
        lm,
    )
    rows, start = [], target_vectors(lm, given, layer, Objective(steps=1, floor=None)).value
    for done, (name, work) in enumerate(stages.items(), 1):
        found, ours = timed(work, lm)
        off = same(name, found - start, alone - start, rtol)
        rows.append(
            Timing(
                f"+ {name}",
                spent,
                ours,
                off,
                f"{len(given)} facts, {steps} steps, {lm.name}; {_near(off)}",
            )
        )
        _tell(progress, done, len(stages), "savings")
    return rows


# ---------------------------------------------------------------------- closed forms


def update(
    m: int = 8192,
    d: int = 256,
    n: int = 1,
    weight: float = 15000.0,
    seed: int = 0,
    rtol: float = 1e-8,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> list[Timing]:
    """One write of ``n`` facts at d_ff = ``m`` on a made-up second moment, float64: full solve
    against cached factor, and making it.

    Raises ValueError for a size below 1; AssertionError if the results differ by more than rtol of
    the greatest entry.
    """
    if min(m, d, n) < 1:
        raise ValueError(f"sizes m={m}, d={d}, n={n} must be positive")
    draw = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw, dtype=torch.float64).to(device)

    low, K, R = normal(m, min(m, 64)), normal(m, n), normal(d, n)
    C = (low @ low.T).div_(low.shape[1])
    C.diagonal().add_(0.1 + normal(m).abs())
    moments = Moments({0: C}, tokens=m)
    full, whole = timed(lambda: plain.ridge(C, K, R, weight))
    _tell(progress, 1, 3, "update")
    _, making = timed(lambda: moments.solver(0, weight))
    _tell(progress, 2, 3, "update")
    (left, right), ours = timed(lambda: ridge(K, R, moments.solver(0, weight)(K)))
    off = same("update", left @ right.T, full, rtol)
    _tell(progress, 3, 3, "update")
    size = f"d_ff {m}, facts at once: {n}, float64; {_near(off)}"
    return [
        Timing("update, factor cached", whole, ours, off, size),
        Timing("update, the first one", whole, making + ours, off, size),
    ]


def history(  # noqa: PLR0913 - sizes of one benchmark
    m: int = 4096,
    d: int = 1024,
    n: int = 1,
    stored: int = 1000,
    weight: float = 10.0,
    seed: int = 0,
    rtol: float = 1e-8,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> list[Timing]:
    """AlphaEdit's write of ``n`` facts after ``stored`` others, float64: m unknowns and d
    right-hand sides against factors of the edits.

    The null space is seven tenths of all directions, as published. Raises ValueError and
    AssertionError as ``update``.
    """
    if min(m, d, n, stored) < 1:
        raise ValueError(f"sizes m={m}, d={d}, n={n}, stored={stored} must be positive")
    draw = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw, dtype=torch.float64).to(device)

    large = torch.linalg.qr(normal(m, max(1, 3 * m // 10))).Q

    def project(x: Tensor) -> Tensor:
        return x - large @ (large.T @ x)

    P, H = project(torch.eye(m, dtype=torch.float64, device=device)), project(normal(m, stored))
    K, R = normal(m, n), normal(d, n)
    S = H @ H.T  # kept from write to write, as H is by the library
    full, whole = timed(lambda: plain.null_ridge(P, S, K, R, weight))
    _tell(progress, 1, 2, "history")

    def factored() -> tuple[Tensor, Tensor]:
        inside = project(K)
        return ridge(inside, R, null_space_solver(weight, H)(inside))

    (left, right), ours = timed(factored)
    off = same("history", left @ right.T, full, rtol)
    _tell(progress, 2, 2, "history")
    return [
        Timing(
            "AlphaEdit write",
            whole,
            ours,
            off,
            f"{stored} edits stored, {n} new, d_ff {m}, d {d}, float64; {_near(off)}",
        )
    ]


# ---------------------------------------------------------------------- reading


def keys(
    lm: LM | None = None,
    n: int = 50,
    layers: Sequence[int] = (1, 2, 3),
    n_prefixes: int = 5,
    seed: int = 0,
    rtol: float = 1e-4,
    progress: Progress | None = None,
) -> list[Timing]:
    """Keys and current values of ``n`` facts at every layer of a write: full forwards for each
    layer against states carried upwards.
    """
    lm, world = lm or reference(), load_world()
    given, prefixes = requests(single_edits(world, n, seed)), contexts(lm, n_prefixes, seed=seed)

    def carried():
        walk, weights = Walk(lm, given, prefixes), prefix_weights(lm, prefixes)
        return [
            (mean_key(walk.climb(layer), weights), walk.look(layers[-1], "out").T)
            for layer in layers
        ]

    found, ours = timed(carried, lm)
    _tell(progress, 1, 2, "keys")
    expected, spent = timed(lambda: plain.keys_and_values(lm, given, layers, prefixes), lm)
    off = max(
        same("keys", a, b, rtol)
        for one, other in zip(found, expected, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    _tell(progress, 2, 2, "keys")
    return [
        Timing(
            "keys and residuals",
            spent,
            ours,
            off,
            f"{len(given)} facts, layers {tuple(layers)}, {n_prefixes} prefixes, {lm.name}; "
            f"{_near(off)}",
        )
    ]


def covariance(
    lm: LM | None = None,
    n: int = 300,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    rtol: float = 1e-8,
    progress: Progress | None = None,
) -> list[Timing]:
    """Second moments of several layers (default: all) over ``n`` sentences: one pass for each,
    stopped there, against one for all.
    """
    lm, world = lm or reference(), load_world()
    layers = range(lm.n_layers) if layers is None else layers
    texts = [statement(world, fact) for fact in world.facts[:n]]
    _ = lm.fingerprint  # made once in a model's life, before the clock starts
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        found, ours = timed(lambda: second_moments(lm, texts, layers, one), lm)
        _tell(progress, 1, 2, "covariance")
        expected, spent = timed(
            lambda: [second_moments(lm, texts, [layer], other)[layer] for layer in layers], lm
        )
    off = max(
        same("covariance", found[layer], C, rtol) for layer, C in zip(layers, expected, strict=True)
    )
    _tell(progress, 2, 2, "covariance")
    return [
        Timing(
            "second moments",
            spent,
            ours,
            off,
            f"{len(layers)} layers, {len(texts)} sentences, {lm.name}; {_near(off)}",
        )
    ]


def attribution(
    lm: LM | None = None,
    n: int = 4,
    sample: int = 256,
    seed: int = 0,
    rtol: float = 1e-2,
    budget: int = 2**22,
    progress: Progress | None = None,
) -> list[Timing]:
    """Value scores (exact norm) of all FFN neurons for ``n`` prompts; the plain loop on the
    ``sample`` greatest, least touched by rounding.

    Raises ValueError for a sample outside 1 to the number of neurons; AssertionError if results
    differ by more than rtol of the greatest.
    """
    lm, world = lm or reference(), load_world()
    facts = random.Random(seed).sample(world.facts, n)
    ids, mask = lm.encode([single_hop_cloze(world, fact) for fact in facts])
    words = first_tokens(lm, [fact.object for fact in facts])
    _sampled(sample, n * lm.n_layers * lm.d_mlp)
    _ = lm.traced  # wrapped once in a model's life, before the clock starts
    work = partial(value_scores, lm, ids, mask, words, norm="exact", budget=budget)
    scores, ours = timed(work, lm)
    _tell(progress, 1, 2, "attribution")
    places = scores.abs().flatten().topk(sample).indices
    chosen = [index.tolist() for index in torch.unravel_index(places, scores.shape)]
    neurons = list(zip(*chosen, strict=True))
    expected, spent = timed(lambda: plain.scores(lm, ids, mask, words, neurons), lm)
    off = same("attribution", scores.flatten()[places], expected, rtol)
    _tell(progress, 2, 2, "attribution")
    return [
        Timing(
            "attribution",
            spent * scores.numel() / sample,
            ours,
            off,
            f"{n} prompts x {lm.n_layers} layers x {lm.d_mlp} neurons, "
            f"{lm.name}; plain timed on {sample} and multiplied up; {_near(off)}",
        )
    ]


def vocabulary(
    lm: LM | None = None,
    sizes: Sequence[int] = (8192, 16384, 49152),
    n: int = 2,
    layers: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Timing]:
    """Value and query scores of all FFN neurons as the vocabulary grows: every neuron over all of
    it, against a proven bound on most of it.

    On random layers of SmolLM2-135M's shape, whose logits spread as a trained model's do (a given
    model's tokenizer is taken). Raises AssertionError if a score is off by more than its bound.
    """
    world, rows = load_world(), []
    lm = lm or reference()
    facts = random.Random(seed).sample(world.facts, n)
    for done, size in enumerate(sizes, 1):
        wide = layers_of("smollm2-135m", lm.tokenizer, layers, size, seed)
        ids, mask = wide.encode([single_hop_cloze(world, fact) for fact in facts])
        words = first_tokens(wide, [fact.object for fact in facts])
        _ = wide.traced  # wrapped once in a model's life, before the clock starts

        def both(tolerance: float, wide=wide, ids=ids, mask=mask, words=words) -> Tensor:
            values = value_scores(wide, ids, mask, words, tolerance=tolerance)
            query_scores(wide, ids, mask, values)
            return values

        expected, spent = timed(partial(both, 0.0), wide)
        found, ours = timed(partial(both, TOLERANCE), wide)
        errors = bounded_scores(wide, ids, mask, words).errors
        if size > PLAIN and not bool(((found - expected).abs() <= errors + 1e-5).all()):
            raise AssertionError(f"vocabulary {size}: a score is off by more than its bound")
        off = same("vocabulary", found, expected, 1e-2)
        rows.append(
            Timing(
                f"attribution, {size:,} tokens",
                spent,
                ours,
                off,
                f"{n} prompts x {layers} layers x {wide.d_mlp} neurons, queries included, "
                f"tolerance {TOLERANCE:g} nats above {PLAIN:,} tokens, {wide.name}; {_near(off)}",
            )
        )
        _tell(progress, done, len(sizes), "vocabulary")
    return rows


# ---------------------------------------------------------------------- independent edits


def each(
    lm: LM | None = None,
    n: int = 16,
    layers: Sequence[int] = (2, 3, 4),
    steps: int = 25,
    seed: int = 0,
    rtol: float = 1e-2,
    progress: Progress | None = None,
) -> list[Timing]:
    """``n`` independent single edits by MEMIT, made and judged in one batch of differently edited
    models, against one by one.

    Without prefixes, whose sampling a loop would repeat. One by one, weights are written and put
    back for every case.
    Raises AssertionError if a matrix of an update, or a log-probability, differs by more than rtol
    of the greatest entry.
    """
    lm, world = lm or reference(), load_world()
    groups = [[edit] for edit in single_edits(world, n, seed)]
    editor = MEMIT(layers=tuple(layers), objective=Objective(steps=steps, floor=None), n_prefixes=0)
    with tempfile.TemporaryDirectory() as folder:
        moments = second_moments(
            lm, [statement(world, fact) for fact in world.facts[:300]], layers, folder
        )
    for layer in layers:
        moments.solver(layer, 1.0)  # factored once, by neither side
    _ = lm.fingerprint  # made once in a model's life, before the clock starts
    together, ours = timed(lambda: editor.each(lm, groups, moments), lm)
    alone: list[Update] = []
    spent = 0.0
    for i, edits in enumerate(groups):
        one, seconds = timed(partial(editor, lm, edits, moments), lm)
        alone, spent = [*alone, one], spent + seconds
        _tell(progress, i + 1, n, "each")
    off = max(
        same("each", a.delta(layer), b.delta(layer), rtol)
        for a, b in zip(together, alone, strict=True)
        for layer in a.layers
    )
    asked = [
        [template.replace("{}", edit.subject) for template in (edit.prompt, *edit.paraphrases)]
        for (edit,) in groups
    ]
    answers = [
        [edit.target_new] * len(prompts) for (edit,), prompts in zip(groups, asked, strict=True)
    ]
    owners = [[u] * len(p) for u, p in zip(together, asked, strict=True)]
    texts, wanted, edited = (list(chain.from_iterable(some)) for some in (asked, answers, owners))
    at_once, judging = timed(partial(recall, lm, texts, wanted, edited), lm)

    def judge(change, prompts, wanted):
        with applied(lm, change):
            return recall(lm, prompts, wanted).logprob

    cases = list(zip(together, asked, answers, strict=True))
    one_by_one, loop = timed(lambda: [value for case in cases for value in judge(*case)], lm)
    judged = same("judging", torch.tensor(at_once.logprob), torch.tensor(one_by_one), rtol)
    size = f"{n} independent edits, {len(layers)} layers, {steps} steps, {lm.name}; "
    return [
        Timing("independent edits, made", spent, ours, off, size + _near(off)),
        Timing(
            "independent edits, judged",
            loop,
            judging,
            judged,
            f"{len(one_by_one)} prompts, {lm.name}; {_near(judged)}",
        ),
    ]


BENCHMARKS: dict[str, Callable[..., list[Timing]]] = {
    run.__name__: run
    for run in (targets, savings, update, history, keys, covariance, each, attribution, vocabulary)
}
#: names that stand for several
GROUPS = {
    "editors": [name for name in BENCHMARKS if name not in ("attribution", "vocabulary")],
}
ALGEBRA = {"update", "history"}  #: those that need no model


# ---------------------------------------------------------------------- timing and comparing


def timed(work: Callable, lm: LM | None = None):
    """Result and wall-clock seconds of ``work()``, the accelerator's queue emptied before and
    after.
    """
    there = torch.accelerator.is_available() and (lm is None or lm.device.type != "cpu")
    wait = torch.accelerator.synchronize if there else lambda: None
    wait()
    start = time.perf_counter()
    result = work()
    wait()
    return result, time.perf_counter() - start


def same(name: str, found: Tensor, expected: Tensor, rtol: float) -> float:
    """The greatest difference, as a share of the greatest entry.

    Raises AssertionError if it exceeds rtol.
    """
    off = ((found - expected).abs().max() / expected.abs().max()).item()
    if rtol < inf and not off <= rtol:  # with inf it is only told; half precision may overflow
        raise AssertionError(
            f"{name}: the plain procedure and the library differ by {off:.1e} "
            f"of the greatest entry; allowed: {rtol:g}"
        )
    return off


def _near(off: float) -> str:
    return "a result overflows" if isnan(off) else f"results agree to {off:.0e}"


def _sampled(sample: int, n: int):
    if not 1 <= sample <= n:
        raise ValueError(f"a sample of {sample} is not possible; allowed: 1 to {n}")


def _tell(progress: Progress | None, done: int, total: int, what: str):
    if progress:
        progress(done, total, what)
