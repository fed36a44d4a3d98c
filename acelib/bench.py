"""What the library's exact replacements save: each timed against the plain procedure it replaces, on the same inputs, results compared.

Plain procedures, written out here as published: a target vector with the whole model, all positions and logits everywhere, one fact at a
time (MEMIT's released code); dW = R K^T (weight C + K K^T)^{-1} by a full solve (MEMIT Eq. 14); value scores neuron by neuron
(ACE Eq. 9); independent edits one by one. Where the plain procedure is too slow it runs on a sample, its time is multiplied up, and
``Timing.note`` says so. Times are wall-clock seconds of one run on this machine.
"""

from __future__ import annotations

import random
import tempfile
import time
from dataclasses import dataclass, field
from typing import Callable, Sequence

import torch
from torch import Tensor

from .attribution import first_tokens, value_scores
from .covariance import Moments, second_moments
from .editors import MEMIT
from .facts import Edit, World, load_world
from .keys import Request, contexts, reading, requests
from .lm import LM, load, shipped
from .pretrain import RECIPES, make_tokenizer, new_model
from .prompts import single_hop_cloze, statement
from .solve import ridge
from .targets import Objective, target_vectors

Progress = Callable[[int, int, str], object]  #: (done, total, what)


@dataclass(frozen=True)
class Timing:
    """Seconds of the plain procedure and of this library for the same work."""

    name: str
    baseline_s: float
    ours_s: float
    ratio: float = field(init=False)  #: baseline_s / ours_s
    note: str = ""  #: sizes, what was extrapolated, how near the results are

    def __post_init__(self):
        object.__setattr__(self, "ratio", self.baseline_s / max(self.ours_s, 1e-9))


def bench(what: Sequence[str] = (), progress: Progress | None = None) -> list[Timing]:
    """The benchmarks named (all if none), at their default sizes; the model is made once.

    Raises ValueError for an unknown name; AssertionError if a plain procedure and the library's disagree.
    """
    for name in what:
        if name not in BENCHMARKS:
            raise ValueError(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    chosen, rows = list(what) or list(BENCHMARKS), []
    lm = reference() if set(chosen) - {"update"} else None
    for name in chosen:
        rows += BENCHMARKS[name](progress=progress) if name == "update" else BENCHMARKS[name](lm, progress=progress)
    return rows


def reference(name: str = "gptj-mini") -> LM:
    """The shipped model of that name, or, where it is not there, a random one of its recipe's shape, which is as fast."""
    if name in shipped():
        return load(name)
    tokenizer = make_tokenizer(load_world(), RECIPES[name])
    with torch.random.fork_rng():
        return LM(new_model(RECIPES[name], len(tokenizer)), tokenizer, f"{name}, random")


def edits_of(world: World, n: int, seed: int = 0) -> list[Edit]:
    """``n`` facts of the world, each to get another object of its relation. Raises ValueError if the world has fewer that can."""
    rng = random.Random(seed)
    pool = [fact for fact in world.facts if len(world.objects(fact.relation)) > 1]
    if not 1 <= n <= len(pool):
        raise ValueError(f"{n} facts asked for; this world has 1 to {len(pool)}")
    return [Edit(f.subject, world.relations[f.relation].cloze[0],
                 rng.choice([name for name in world.objects(f.relation) if name != f.object]), f.object) for f in rng.sample(pool, n)]


# ---------------------------------------------------------------------- the benchmarks

def targets(lm: LM | None = None, n: int = 100, sample: int = 3, layer: int = 3, n_prefixes: int = 0, steps: int = 25, seed: int = 0,
            rtol: float = 1e-2, progress: Progress | None = None) -> list[Timing]:
    """Target vectors of ``n`` facts at ``layer`` with MEMIT's settings, no early stop; the plain procedure on ``sample`` of them.

    rtol: allowed difference of the pushes z - h_0, as a share of the greatest entry (Adam's ``steps`` amplify rounding).
    Raises ValueError for a sample outside 1 to n; AssertionError if the results differ.
    """
    _sampled(sample, n)
    lm, world = lm or reference(), load_world()
    given, objective = requests(edits_of(world, n, seed)), Objective(steps=steps, floor=None)
    prefixes = contexts(lm, n_prefixes, seed=seed)
    n = len(given)  # exact duplicates are searched once
    found, ours = _timed(lambda: target_vectors(lm, given, layer, objective, prefixes), lm)
    plain, spent = [], 0.0
    for i, r in enumerate(given[:sample]):
        z, seconds = _timed(lambda: plain_target(lm, r, layer, objective, prefixes), lm)
        plain, spent = [*plain, z], spent + seconds
        _tell(progress, i + 1, sample, "targets")
    start = (found.value - found.delta[0])[:sample]
    off = _same("targets", found.delta[0, :sample], torch.stack(plain) - start, rtol)
    return [Timing("targets", spent * n / sample, ours, f"{n} facts, {steps} steps, {n_prefixes} prefixes, {lm.name}; "
                   f"plain timed on {sample} and multiplied up; {off}")]


def update(m: int = 8192, d: int = 256, n: int = 16, weight: float = 15000.0, seed: int = 0, rtol: float = 1e-8,
           progress: Progress | None = None) -> list[Timing]:
    """One write of ``n`` facts at d_ff = ``m`` on a made-up second moment, float64: full solve against cached factor, and making it.

    Raises ValueError for a size below 1; AssertionError if the results differ by more than rtol of the greatest entry.
    """
    if min(m, d, n) < 1:
        raise ValueError(f"sizes m={m}, d={d}, n={n} must be positive")
    draw = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)
    low, K, R = normal(m, min(m, 64)), normal(m, n), normal(d, n)
    C = (low @ low.T).div_(low.shape[1])
    C.diagonal().add_(0.1 + normal(m).abs())
    moments = Moments({0: C}, tokens=m)
    full, whole = _timed(lambda: R @ torch.linalg.solve(torch.addmm(C, K, K.T, beta=weight), K).T)
    _tell(progress, 1, 3, "update")
    _, making = _timed(lambda: moments.solver(0, weight))
    _tell(progress, 2, 3, "update")
    (left, right), ours = _timed(lambda: ridge(K, R, moments.solver(0, weight)))
    off = _same("update", left @ right.T, full, rtol)
    _tell(progress, 3, 3, "update")
    size = f"d_ff {m}, {n} facts, float64; {off}"
    return [Timing("update, factor cached", whole, ours, size), Timing("update, the first one", whole, making + ours, size)]


def attribution(lm: LM | None = None, n: int = 4, sample: int = 256, seed: int = 0, rtol: float = 1e-2,
                progress: Progress | None = None) -> list[Timing]:
    """Value scores (exact norm) of all FFN neurons for ``n`` prompts; the plain loop on the ``sample`` greatest, least touched by rounding.

    Raises ValueError for a sample outside 1 to the number of neurons; AssertionError if results differ by more than rtol of the greatest.
    """
    lm, world = lm or reference(), load_world()
    facts = random.Random(seed).sample(world.facts, n)
    (ids, mask), words = lm.encode([single_hop_cloze(world, fact) for fact in facts]), first_tokens(lm, [fact.object for fact in facts])
    _sampled(sample, n * lm.n_layers * lm.d_mlp)
    lm.traced  # wrapped once in a model's life
    scores, ours = _timed(lambda: value_scores(lm, ids, mask, words, norm="exact"), lm)
    _tell(progress, 1, 2, "attribution")
    places = scores.abs().flatten().topk(sample).indices
    chosen = [index.tolist() for index in torch.unravel_index(places, scores.shape)]
    plain, spent = _timed(lambda: plain_scores(lm, ids, mask, words, list(zip(*chosen))), lm)
    off = _same("attribution", scores.flatten()[places], plain, rtol)
    _tell(progress, 2, 2, "attribution")
    return [Timing("attribution", spent * scores.numel() / sample, ours, f"{n} prompts x {lm.n_layers} layers x {lm.d_mlp} neurons, "
                   f"{lm.name}; plain timed on {sample} and multiplied up; {off}")]


def each(lm: LM | None = None, n: int = 16, layers: Sequence[int] = (2, 3, 4), steps: int = 25, seed: int = 0, rtol: float = 1e-2,
         progress: Progress | None = None) -> list[Timing]:
    """``n`` independent single edits by MEMIT, in one batch against one by one; without prefixes, whose sampling a loop would repeat.

    Raises AssertionError if a matrix of an update differs by more than rtol of its greatest entry.
    """
    lm, world = lm or reference(), load_world()
    groups = [[edit] for edit in edits_of(world, n, seed)]
    editor = MEMIT(layers=tuple(layers), objective=Objective(steps=steps, floor=None), n_prefixes=0)
    with tempfile.TemporaryDirectory() as folder:
        moments = second_moments(lm, [statement(world, fact) for fact in world.facts[:300]], layers, folder)
    for layer in layers:
        moments.solver(layer, 1.0)  # factored once, by neither side
    lm.fingerprint
    together, ours = _timed(lambda: editor.each(lm, groups, moments), lm)
    alone, spent = [], 0.0
    for i, edits in enumerate(groups):
        one, seconds = _timed(lambda: editor(lm, edits, moments), lm)
        alone, spent = [*alone, one], spent + seconds
        _tell(progress, i + 1, n, "each")
    off = max((_same("each", a.delta(layer), b.delta(layer), rtol) for a, b in zip(together, alone) for layer in a.layers), key=_share)
    return [Timing("each", spent, ours, f"{n} independent edits, {len(layers)} layers, {steps} steps, {lm.name}; {off}")]


BENCHMARKS: dict[str, Callable[..., list[Timing]]] = {run.__name__: run for run in (targets, update, attribution, each)}


# ---------------------------------------------------------------------- the plain procedures

def plain_target(lm: LM, r: Request, layer: int, objective: Objective, prefixes: Sequence[str] = ("",)) -> Tensor:
    """The target vector z (d,) of one request as published: every step runs the whole model on all prompts, with logits at all positions.

    Only the objective kind "block" without a floor. Source: MEMIT Section 4.2 and its released code.
    """
    texts = [(prefix + r.prompt, len(prefix) + r.end) for prefix in prefixes] + [(r.subject + " is a", len(r.subject))]
    heads, answer = [lm.tokenizer(text)["input_ids"] for text, _ in texts], lm.answer_ids(r.target)
    ids, mask = lm.pad([head + answer[:-1] for head in heads[:-1]] + heads[-1:])
    at, rows = [lm.token_at(*text) for text in texts], list(range(len(texts)))
    delta, start = torch.zeros(lm.d_model, dtype=lm.dtype, device=lm.device, requires_grad=True), []

    def push(_, args, out):
        h = (out[0] if isinstance(out, tuple) else out).clone()
        start.append(h[0, at[0]].detach().clone())
        h[rows, at] = h[rows, at] + delta
        return (h, *out[1:]) if isinstance(out, tuple) else h

    hook, adam, guard_0 = lm.blocks[layer].register_forward_hook(push), torch.optim.Adam([delta], lr=objective.lr), None
    try:
        for step in range(objective.steps):
            logp = lm.model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
            nll = -torch.stack([logp[i, len(head) - 1 + t, token]
                                for i, head in enumerate(heads[:-1]) for t, token in enumerate(answer)]).mean()
            guard = logp[-1, at[-1]]
            guard_0 = guard.detach() if guard_0 is None else guard_0
            loss = nll + objective.kl * (guard.exp() * (guard - guard_0)).sum() + objective.decay * delta.norm() / start[0].norm() ** 2
            if step == objective.steps - 1:
                break  # the last evaluation of the loss moves nothing
            adam.zero_grad()
            loss.backward()
            adam.step()
            if objective.clamp is not None and delta.norm() > (ball := objective.clamp * start[0].norm()):
                delta.data *= ball / delta.norm()
    finally:
        hook.remove()
    return start[0] + delta.detach()


@torch.no_grad()
def plain_scores(lm: LM, ids: Tensor, mask: Tensor, words: Tensor, neurons: Sequence[tuple[int, int, int]]) -> Tensor:
    """I(v) = log p(w | h + v) - log p(w | h) of (prompt, layer, index), one at a time, nats; right-padded prompts. Source: ACE Eq. 9."""
    with reading(lm, [(kind, layer) for layer in range(lm.n_layers) for kind in ("in", "attn", "key")]) as seen:
        lm.stack(input_ids=ids, attention_mask=mask, use_cache=False)
    say, gains = lambda h, w: lm.head(lm.norm(h)).log_softmax(-1)[w], []
    for row, layer, k in neurons:
        end = int(mask[row].sum()) - 1
        h = seen["in", layer][row, end] + seen["attn", layer][row, end]
        gains.append(say(h + seen["key", layer][row, end, k] * lm.weight(layer)[:, k], words[row]) - say(h, words[row]))
    return torch.stack(gains)


# ---------------------------------------------------------------------- timing and comparing

def _timed(work: Callable, lm: LM | None = None):
    """Result and wall-clock seconds of ``work()``, the accelerator's queue emptied before and after."""
    wait = torch.accelerator.synchronize if lm is not None and lm.device.type != "cpu" else lambda: None
    wait()
    start = time.perf_counter()
    result = work()
    wait()
    return result, time.perf_counter() - start


def _same(name: str, found: Tensor, expected: Tensor, rtol: float) -> str:
    """How near two results are, in words. Raises AssertionError if the greatest difference exceeds rtol times the greatest entry."""
    off = ((found - expected).abs().max() / expected.abs().max()).item()
    if not off <= rtol:
        raise AssertionError(f"{name}: the plain procedure and the library differ by {off:.1e} of the greatest entry; allowed: {rtol:g}")
    return f"results agree to {off:.0e}"


def _share(words: str) -> float:
    return float(words.rsplit(" ", 1)[1])


def _sampled(sample: int, n: int):
    if not 1 <= sample <= n:
        raise ValueError(f"a sample of {sample} is not possible; allowed: 1 to {n}")


def _tell(progress: Progress | None, done: int, total: int, what: str):
    if progress:
        progress(done, total, what)
