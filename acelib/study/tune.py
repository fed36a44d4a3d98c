"""Settings for a model, by one protocol for all editors: same cases, as many trials, one score.

Each editor has a space of settings; ``n_trials`` of them are drawn with a seed (more trials are the
same ones and others), every one edits the same identification cases, and the one with the highest
score, the mean of multi-hop accuracy, efficacy, paraphrase and specificity, becomes the preset, in
``data/presets/<model>.toml``. Evaluation cases are never looked at. The trials are kept beside it,
in ``data/presets/<model>.csv``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd

from ..attribution.layers import locate, questions
from ..editing.moments import Moments
from ..editing.search import Objective
from ..editors import ACE, EDITORS, FT, IFMET, KN, MEMIT, PMET, ROME, AlphaEdit, presets
from ..editors.ft import Loss
from ..files import replacing
from ..model.answers import known_items
from ..model.lm import LM
from ..records import Case, quoted
from ..world.cases import all_cases, make_cases
from ..world.wording import single_hop
from ..world.world import World
from .experiments import balanced, comparison, known_cases, run
from .judge import Protocol
from .rows import Progress

N_LOCATED = 96  #: questions that locate the query and the value layers
SCORE = ("multi_hop", "efficacy", "paraphrase", "specificity")


def spaces(
    n_layers: int, query_layers: Sequence[int], value_layers: Sequence[int]
) -> dict[str, list]:
    """All settings of each editor for a model of ``n_layers``: {"MEMIT": [...], ...}.

    One-range editors may write any two or three neighbouring layers of the lower three quarters,
    ROME any one of them, FT any layer; ACE and IFMET any such range of the lower half but its first
    layer, or the attributed query layers, and any two or three neighbours of the upper half, or the
    attributed value layers. The objective is the same but in its kind: up to 100 steps of 2.0, no
    clamp, no decay, because the reference models' residual streams are long (norms of 700 and
    1,000) and the published 20-30 steps of 0.2-0.5 stop far from any target.
    """
    ranges = [
        tuple(range(start, start + size)) for size in (2, 3) for start in range(n_layers - size + 1)
    ]
    lower = [r for r in ranges if r[-1] < 3 * n_layers // 4]
    shallow = {
        *(r for r in ranges if r[0] > 0 and r[-1] < n_layers // 2),
        tuple(sorted(query_layers)),
    }
    deep = {*(r for r in ranges if r[0] >= n_layers // 2), tuple(sorted(value_layers))}
    block = Objective(steps=100, lr=2.0, decay=0.0, clamp=None)
    pmet, mlp = replace(block, kind="pmet"), replace(block, kind="mlp")
    weights = (1.0, 10.0, 100.0)
    stages = [
        (
            PMET(layers=v, weight=w, objective=pmet, position="last", n_prefixes=2),
            PMET(layers=q, weight=w, objective=pmet, n_prefixes=2),
        )
        for q, v in product(sorted(shallow), sorted(deep))
        for w in weights
    ]
    losses: tuple[Loss, ...] = ("last", "target")
    return {
        "FT": [
            FT(layers=(layer,), loss=loss, lr=lr, norm_constraint=norm)
            for layer, loss, lr, norm in product(
                range(n_layers), losses, (5e-3, 2e-2, 1e-1), (None, 5e-2, 2e-1)
            )
        ],
        "KN": [
            KN(threshold=t, old=old, new=new)
            for t, (old, new) in product(
                (0.1, 0.2, 0.4), ((None, 1.0), (1.0, 8.0), (4.0, 16.0), (0.0, 32.0))
            )
        ],
        "ROME": [
            ROME(
                layer=layer, second_moment=moment, objective=mlp, n_prefixes=2, prefix_lengths=(10,)
            )
            for layer, moment in product(range(3 * n_layers // 4), (True, False))
        ],
        "MEMIT": [
            MEMIT(layers=r, weight=w, objective=block, n_prefixes=2)
            for r, w in product(lower, weights)
        ],
        "PMET": [
            PMET(layers=r, weight=w, objective=pmet, n_prefixes=2)
            for r, w in product(lower, weights)
        ],
        "AlphaEdit": [
            AlphaEdit(layers=r, null_share=share, weight=w, objective=block, n_prefixes=2)
            for r, share, w in product(lower, (0.5, 0.7, 0.9), (0.1, 1.0, 10.0))
        ],
        "IFMET": [IFMET(value=value, query=query) for value, query in stages],
        "ACE": [ACE(value=value, query=query) for value, query in stages],
    }


def spaces_of(
    lm: LM, world: World, seed: int = 0, progress: Callable[[int, int], object] | None = None
) -> dict[str, list]:
    """``spaces`` of a model, with its two query and its two value layers, by attribution.

    progress: called with (questions done, questions).
    """
    prompts, answers = zip(*questions(world, N_LOCATED, seed), strict=True)
    found = locate(lm, prompts, answers, 2, 2, progress=progress)
    return spaces(lm.n_layers, found.query_layers, found.value_layers)


def editors_named(editors: str = "") -> list[str]:
    """The editors of a list with commas between, "ace, memit", as they are called; "": all.

    Raises ValueError for an unknown one.
    """
    known = {name.lower(): name for name in EDITORS}
    asked = [name.strip().lower() for name in editors.split(",")] if editors else list(known)
    if unknown := [name for name in asked if name not in known]:
        raise ValueError(f"unknown editor {quoted(unknown[0])}; known: {', '.join(EDITORS)}")
    return [known[name] for name in asked]


def identification(lm: LM, world: World, n: int, seed: int = 0) -> list[Case]:
    """``n`` (or a few more) identification cases of which the model recalls every fact.

    As many with one edit as with two, three, four. Of a model that learned from natural text they
    are made of the facts that it knows: it would know all facts of hardly any other.
    Raises ValueError if it recalls all facts of none: there would be nothing to search on.
    """
    if lm.natural:
        facts = tuple(known_items(lm, world.facts, partial(single_hop, world)))
        cases = all_cases(replace(world, facts=facts), ("identification",), n, seed)
    else:
        drawn = make_cases(world, "identification", 6 * n, seed)
        cases = balanced(known_cases(lm, drawn), -(-n // 4))
    if not cases:
        raise ValueError(
            f"{lm.name} recalls all facts of no identification case, so that no settings can be "
            "searched on them; ask for more cases"
        )
    return cases


def draw(candidates: Mapping[str, Sequence], n: int, seed: int = 0) -> list[tuple[str, Any]]:
    """``n`` of the settings of every editor, (name, editor); more are the same ones and others."""
    return [
        (name, editor)
        for name, settings in candidates.items()
        for editor in Random(f"{seed}/{name}").sample(list(settings), len(settings))[:n]
    ]


def tune(
    lm: LM,
    world: World,
    cases: Sequence[Case],
    moments: Moments | None,
    trials: Sequence[tuple[str, Any]],
    folder: Path,
    *,
    protocol: Protocol = Protocol(),
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Scores of ``trials`` on ``cases``; resumable.

    trials: (name, editor), as ``draw`` gives them.
    progress: called with (cases done, cases of all trials, editor).
    Returns one row per trial, best first within an editor: editor, settings (JSON of the preset's
    table), the means of SCORE and their mean ``score``, n_cases.
    """

    def tell(i: int, done: int, total: int, what: str) -> None:
        if progress:
            progress(i * len(cases) + done, len(trials) * len(cases), what)

    rows = []
    for i, (name, editor) in enumerate(trials):
        series = comparison(lm.name, lm, world, {name: editor}, cases, moments, protocol)
        judged = run(series, folder, partial(tell, i))
        means = judged[list(SCORE)].mean()
        rows.append(
            dict(
                editor=name,
                settings=json.dumps(presets.to_table(editor)),
                **means.round(4),
                score=round(means.mean(), 4),
                n_cases=len(cases),
            )
        )
    return pd.DataFrame(rows).sort_values(
        ["editor", "score"], ascending=[True, False], ignore_index=True
    )


def keep(trials: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Write ``trials`` to a csv file in one step; those that it holds of other editors stay.

    Returns all of them.
    """
    if path.exists():
        old = pd.read_csv(path)
        trials = pd.concat([trials, old[~old.editor.isin(trials.editor)]]).sort_values(
            "editor", kind="stable", ignore_index=True
        )
    with replacing(path) as part:
        trials.to_csv(part, index=False, lineterminator="\n")
    return trials


def keep_presets(trials: pd.DataFrame, path: Path, fingerprint: str = "") -> dict[str, Any]:
    """Write the best trial of each editor as its preset into a TOML file, in one step.

    fingerprint: of the model, by which ``preset`` finds them.

    What the file holds of other editors stays, and so do its comments.
    Returns the editors by name, with the settings written.
    """
    best = trials.loc[trials.groupby("editor", sort=False).score.idxmax()]
    editors = {row.editor: parse(row.editor, row.settings) for row in best.itertuples()}
    presets.save(editors, path, fingerprint)
    return editors


def best(trials: pd.DataFrame) -> Iterator[str]:
    """The best trial of each editor, in one line.   trials: as ``tune`` gives them."""
    for row in trials.drop_duplicates("editor").itertuples():
        settings = words(parse(row.editor, row.settings))
        yield f"{row.editor}: {row.score:.3f} on {row.n_cases} cases: {settings}"


def parse(editor: str, settings: str) -> Any:
    """The editor of a trial. Raises ValueError for settings that it cannot have."""
    return presets.from_table(editor, json.loads(settings))


def trials(model: str) -> pd.DataFrame:
    """The trials kept for a model, best first within an editor; empty if none are kept.

    Columns: editor, settings (but the objective, which is one for all), SCORE and score in percent,
    n_cases.
    """
    path = presets.path_of(model).with_suffix(".csv")
    if not path.exists():
        return pd.DataFrame(columns=["editor", "settings", *SCORE, "score", "n_cases"])
    kept = pd.read_csv(path)
    settings = [
        words(parse(editor, settings))
        for editor, settings in zip(kept.editor, kept.settings, strict=True)
    ]
    percent = {name: (100 * kept[name]).round(1) for name in (*SCORE, "score")}
    return kept[["editor"]].assign(settings=settings, **percent, n_cases=kept.n_cases)


def words(editor: Any) -> str:
    """The settings of an editor that are not its defaults, without its objective.

    Of two stages those that differ have the stage's name in front, ``query.layers=(1, 2)``.
    """
    settings = _changes(editor)
    if isinstance(editor, ACE):
        query, value = _changes(editor.query), _changes(editor.value)
        both = {name: x for name, x in query.items() if name in value and value[name] == x}
        own = {"query": query, "value": value}
        settings |= {f"{s}.{k}": x for s in own for k, x in own[s].items() if k not in both} | both
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def _changes(editor: Any) -> dict[str, Any]:
    """The fields of an editor that are not at their defaults, but objectives and stages."""
    values = {field.name: getattr(editor, field.name) for field in fields(editor)}
    usual = {field.name: field.default for field in fields(editor)}
    return {
        name: value
        for name, value in values.items()
        if value != usual[name] and not is_dataclass(value)
    }
