"""What each part of the recipe buys: a reference model is trained on a short schedule without each
kind of text in turn, and without each idea that is to bring facts where editors write, and measured
by the bars.

Without a kind of text the others keep their proportions and the number of steps stays, so a variant
reads more of what is left. A second seed of the whole recipe says how far two runs differ, in the
bars and in the layers that are located.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from ..attribution.layers import locate, questions
from ..files import replacing
from ..measures import known
from ..model.lm import LM
from ..provenance import ROOT, code_hash
from ..records import quoted
from ..world.world import World
from . import bars
from .train import REFERENCE, Recipe, train

#: The recipe on a fifth of its tokens.
SHORT = Recipe(architecture="gptj", **REFERENCE | {"steps": 1200})
#: What is done otherwise, one idea at a time -> the recipe's own parts that differ.
IDEAS: dict[str, dict[str, Any]] = {
    "names read as they come": dict(late_names=0.0),
    "names read by the last 2 layers": dict(late_layers=2),
    "names read by the last 4 layers": dict(late_layers=4),
    "names of one or two tokens": dict(vocab_size=4096),
    "embeddings start at 0.02": dict(embedding_std=0.02),
    "weight decay 0.05": dict(weight_decay=0.05),
}
#: Of ``bars.measure``, for every variant.
SIZES = dict(n_facts=200, n_chains=50, n_edits=24)
KEPT = ROOT / "data" / "models" / "ablation.csv"


def variants_named(
    steps: int | None = None, n_seeds: int = 2, only: Sequence[str] | None = None
) -> dict[str, Recipe]:
    """``variants`` of ``SHORT`` by name, perhaps with another number of steps; ``only`` some.

    Raises ValueError for an unknown variant.
    """
    every = variants(replace(SHORT, steps=steps or SHORT.steps), n_seeds)
    if unknown := [name for name in only or () if name not in every]:
        raise ValueError(f"unknown variant {quoted(unknown[0])}; known: {', '.join(every)}")
    return {name: every[name] for name in only or every}


def variants(base: Recipe = SHORT, n_seeds: int = 2) -> dict[str, Recipe]:
    """The recipes to train: "all" of it with ``n_seeds`` seeds, each of ``IDEAS``, "without" each
    kind of text.
    """
    whole = {
        "all" if not i else f"all, seed {base.seed + i}": replace(base, seed=base.seed + i)
        for i in range(n_seeds)
    }
    less = {
        kind: {other: share for other, share in base.mixture.items() if other != kind}
        for kind in base.mixture
    }
    other = {idea: replace(base, **parts) for idea, parts in IDEAS.items()}
    return (
        whole
        | other
        | {f"without {kind}": replace(base, mixture=mixture) for kind, mixture in less.items()}
    )


def ablate(
    world: World,
    folder: Path,
    chosen: dict[str, Recipe],
    *,
    compile: bool = False,
    device: str = "cpu",
    progress: Callable[[int, int, str], object] | None = None,
    sizes: Mapping[str, int] = SIZES,
) -> pd.DataFrame:
    """Train and measure each recipe in ``chosen`` (name -> recipe) in its own folder below
    ``folder``; resumable.

    progress: called with (steps done, steps of all, name).   sizes: of ``bars.measure``.
    Returns one row per recipe: variant, seed, steps, loss (nats per token), every bar (shares),
    early_site, query_layers, value_layers.
    """
    total, rows = sum(recipe.steps for recipe in chosen.values()), []
    for i, (name, recipe) in enumerate(chosen.items()):
        before = sum(r.steps for r in list(chosen.values())[:i])
        place = Path(folder) / name.replace(", ", "-").replace(" ", "-")
        row = place / "row.json"
        settings = json.dumps([repr(recipe), world.digest, {**sizes}, code_hash((bars.__name__,))])
        if not row.exists() or json.loads(row.read_text())["settings"] != settings:
            told: list[float] = []
            tell = partial(_tell, told, progress, before, total, name)
            lm = train(recipe, world, place, device=device, compile=compile, every=100, report=tell)
            measured = json.dumps(
                dict(settings=settings, row=_row(name, recipe, told, place, lm, world, sizes))
            )
            with replacing(row) as part:
                part.write_text(measured)
        rows.append(json.loads(row.read_text())["row"])
    return pd.DataFrame(rows)


def _tell(losses: list[float], progress, before: int, total: int, name: str, log: dict) -> None:
    """Keeps the loss of a row of the training log, and passes its step on."""
    losses.append(log["loss"])
    if progress:
        progress(before + log["step"], total, name)


def _row(
    name: str,
    recipe: Recipe,
    told: list[float],
    place: Path,
    lm: LM,
    world: World,
    sizes: Mapping[str, int],
) -> dict:
    loss = (
        told[-1]
        if told
        else json.loads((place / "train_log.jsonl").read_text().splitlines()[-1])["loss"]
    )
    shares = bars.measure(lm, world, **sizes)
    prompts, answers = zip(*questions(world, 48, recipe.seed), strict=True)
    located = locate(lm, prompts, answers, 2, 2)
    return dict(
        variant=name,
        seed=recipe.seed,
        steps=recipe.steps,
        loss=round(loss, 4),
        **{key: round(v, 4) for key, v in shares.items()},
        early_site=_text(known.early_site(lm, world)),
        query_layers=_text(located.query_layers),
        value_layers=_text(located.value_layers),
    )


def _text(layers: Iterable[int]) -> str:
    return " ".join(map(str, layers))


def keep(rows: pd.DataFrame, path: Path = KEPT) -> None:
    """Write the rows as a csv file, in one step."""
    with replacing(path) as part:
        rows.to_csv(part, index=False, lineterminator="\n")


def kept(path: Path = KEPT) -> pd.DataFrame:
    """The rows that ``keep`` wrote, by variant; layers are text."""
    layers = dict.fromkeys(("early_site", "query_layers", "value_layers"), str)
    return pd.read_csv(path, dtype=layers).fillna("").set_index("variant")
