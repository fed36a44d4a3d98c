"""What the stages of an edit cost, and how the cost of target vectors grows.

With the number of facts, the width, the depth and the vocabulary of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import linregress
from scipy.stats import t as student
from transformers import GPTJConfig, GPTJForCausalLM

from ..editing.moments import Moments
from ..editing.request import requests
from ..editing.search import Objective, target_vectors
from ..editing.write import write
from ..editors.base import Staged
from ..model.lm import LM
from ..records import Edit
from ..world.cases import single_edits
from ..world.world import load_world
from . import plain
from .speed import same, targets, timed

BASE = dict(facts=12, width=128, depth=6, vocabulary=4096)  #: what does not vary
SIZES = dict(
    facts=(4, 12, 36, 108),
    width=(64, 128, 256, 512),
    depth=(3, 6, 12, 24),
    vocabulary=(4096, 8192, 16384, 32768),
)


def stages(lm: LM, editor: Staged, edits: Sequence[Edit], moments: Moments) -> dict[str, float]:
    """Seconds that an editor needs for an edit, in two parts.

    For the target vectors of all ``edits`` ("vectors"), then for one edit's update ("update"), on
    average. Second moments are factored before the clock starts. Source: ACE Appendix I.
    """
    spent, prefixes = dict(vectors=0.0, update=0.0), editor.prefixes(lm)
    for name, stage in editor.plan.items():
        given = editor.requests(edits, name)
        stage.check(lm, moments)
        for layer in stage.layers:
            stage.constraint(moments, layer)
        search = partial(target_vectors, lm, given, stage.layers[-1], stage.objective, prefixes)
        vectors, seconds = timed(search, lm)
        spent["vectors"] += seconds
        value = dict(zip(given, vectors.value, strict=True))
        for edit in edits:
            own = editor.requests([edit], name)
            Z = torch.stack([value[r] for r in own])
            _, seconds = timed(partial(write, lm, own, stage, moments, Z, prefixes), lm)
            spent["update"] += seconds / len(edits)
    return spent


def random_lm(tokenizer, width: int, depth: int, vocabulary: int, seed: int = 0) -> LM:
    """A random model of GPT-J's shape with heads of 32, float32.

    Raises ValueError for a vocabulary smaller than the tokenizer's.
    """
    if vocabulary < len(tokenizer):
        raise ValueError(
            f"vocabulary {vocabulary} is smaller than the tokenizer's, {len(tokenizer)}"
        )
    config = GPTJConfig(
        n_embd=width,
        n_layer=depth,
        n_head=max(1, width // 32),
        rotary_dim=16,
        vocab_size=vocabulary,
        n_positions=256,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LM(GPTJForCausalLM(config), tokenizer, f"random, d={width}, {depth} layers")


def wide(
    tokenizer,
    n: int = 8,
    sample: int = 1,
    width: int = 1024,
    depth: int = 12,
    steps: int = 4,
    seed: int = 0,
    **more,
):
    """``speed.targets`` on a wider random model like GPT-J, edited at a quarter of its depth."""
    lm = random_lm(tokenizer, width, depth, max(len(tokenizer), BASE["vocabulary"]), seed)
    return targets(lm, n, sample, depth // 4, steps=steps, seed=seed, **more)


def curves(  # noqa: PLR0913 - what is varied, and how it is timed
    tokenizer,
    sizes: Mapping[str, Sequence[int]] = SIZES,
    base: Mapping[str, int] = BASE,
    steps: int = 3,
    repeats: int = 3,
    sample: int = 2,
    seed: int = 0,
    rtol: float = 1e-2,
    progress: Callable[[int, int, str], object] | None = None,
) -> pd.DataFrame:
    """Seconds of a target search without prefixes, as one size after another grows from ``base``.

    The edit is at a third of the depth. The plain procedure is timed on ``sample`` facts and
    multiplied up; every time is the least of ``repeats``.
    Returns one row per measurement: what, size, procedure ("plain", "acelib"), seconds.
    Raises AssertionError if the results differ.
    """
    world, rows = load_world(), []
    points = [(what, size) for what, some in sizes.items() for size in some]
    for done, (what, size) in enumerate(points, 1):
        at = {**base, what: size}
        lm = random_lm(tokenizer, at["width"], at["depth"], at["vocabulary"], seed)
        given, layer = requests(single_edits(world, at["facts"], seed)), at["depth"] // 3
        some, objective = given[:sample], Objective(steps=steps, floor=None)
        ways: dict[str, Callable[[], Any]] = {
            "plain": partial(_one_by_one, lm, some, layer, objective),
            "acelib": partial(target_vectors, lm, given, layer, objective),
        }
        runs = {name: [timed(work, lm) for _ in range(repeats)] for name, work in ways.items()}
        ours, theirs = runs["acelib"][0][0], runs["plain"][0][0]
        pushes = ours.delta[0, : len(some)]
        same(f"{what} {size}", pushes, theirs - (ours.value[: len(some)] - pushes), rtol)
        for name, results in runs.items():
            share = len(given) / len(some) if name == "plain" else 1
            rows.append(
                dict(
                    what=what,
                    size=at[what],
                    procedure=name,
                    seconds=share * min(seconds for _, seconds in results),
                )
            )
        if progress:
            progress(done, len(points), "growth")
    return pd.DataFrame(rows)


def _one_by_one(lm, facts, layer: int, objective: Objective) -> torch.Tensor:
    """The plain procedure: a search for every fact."""
    return torch.cat([plain.target_vectors(lm, [fact], layer, objective) for fact in facts])


def exponents(rows: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Slopes of log seconds over log size by least squares, with Student's interval of the slope.

    rows: ``curves``.   Returns (what, procedure): exponent, low, high; the interval is nan for
    fewer than three sizes.
    """
    table = {}
    for (what, name), part in rows.groupby(["what", "procedure"], sort=False):
        fit = linregress(np.log(part["size"].to_numpy(float)), np.log(part["seconds"].to_numpy()))
        free = len(part) - 2
        half = student.ppf((1 + level) / 2, free) * fit.stderr if free > 0 else np.nan
        table[what, name] = dict(exponent=fit.slope, low=fit.slope - half, high=fit.slope + half)
    return pd.DataFrame(table).T
