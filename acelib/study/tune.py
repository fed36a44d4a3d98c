"""Settings for a model, by one protocol for all editors: same cases, as many trials, one score.

Each editor has a space of settings, in which every layer of the model is a candidate. ``n_trials``
of them are drawn with a seed and edit a few identification cases; the best third goes on to three
times as many cases, and again until three or fewer are left (successive halving, by thirds). The
one with the highest ``score`` in the last round becomes the preset, in
``data/presets/<model>.toml``. Evaluation cases are never looked at. The trials are kept beside it,
in ``data/presets/<model>.csv``.
Source of the halving: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and
Hyperparameter Optimization", 2016, Figure 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from itertools import product, zip_longest
from math import isnan
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pandas as pd

from ..attribution.layers import locate, questions
from ..editing.moments import Moments
from ..editing.write import Writes
from ..editors import ACE, FT, IFMET, KN, MEMIT, PMET, ROME, AlphaEdit, ReleasedACE, presets
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

#: an editor with an objective
Searching = TypeVar("Searching", MEMIT, PMET, ROME, AlphaEdit)

N_LOCATED = 96  #: questions that locate the query and the value layers
#: what a score is made of: columns of ``judge``'s rows
SCORE = ("multi_hop", "efficacy", "paraphrase", "specificity", "specificity_token")
KEEP = 3  #: one trial in so many goes on to the next round, on as many times the cases
#: lambda, on the mean second moment
WEIGHTS = (10.0, 100.0, 1000.0)
#: How targets are searched other than as published. Decay, ||delta|| / ||h_0||^2, and clamp,
#: ||delta|| / ||h_0||, go by what an FFN gives; where that is short, as in a small model with long
#: embeddings, they hold back any push that would change the answer.
SEARCHES: tuple[dict[str, Any], ...] = ({}, dict(decay=0.0), dict(decay=0.0, clamp=4.0))


def spaces(
    n_layers: int,
    query_layers: Sequence[int],
    value_layers: Sequence[int],
    parallel: bool = False,
) -> dict[str, list]:
    """All settings of each editor for a model of ``n_layers``: {"MEMIT": [...], ...}.

    Targets are searched as published, or with one of ``SEARCHES``. No editor has a prior: ROME and
    FT may write any layer, the others any one, two or three neighbouring ones, and of two stages
    each does so by itself. "LocatedACE" alone writes the layers that attribution ranks first, one
    to three of each kind.
    query_layers, value_layers: the three that are ranked first, best first.
    parallel: attention and FFN read the same input, so that PMET's FFN may be asked for half of
    what was searched, as it is written, or for all of it.
    """
    ranges = [
        tuple(range(start, start + size))
        for size in (1, 2, 3)
        for start in range(n_layers - size + 1)
    ]
    halves: tuple[Writes, ...] = ("ffn", "whole") if parallel else ("ffn",)
    pmets = [
        editor
        for r, w, half in product(ranges, WEIGHTS, halves)
        for editor in searches(PMET(layers=r, weight=w, n_prefixes=2, writes=half))
    ]
    ranked = [
        tuple(tuple(sorted(layers[:n])) for n in (1, 2, 3))
        for layers in (query_layers, value_layers)
    ]
    losses: tuple[Loss, ...] = ("last", "target")
    stages = [
        (replace(value, position="last"), query)
        for query, value in product(pmets, pmets)
        if (query.weight, query.writes) == (value.weight, value.writes)
        and query.objective == value.objective
    ]
    return {
        "FT": [
            FT(layers=(layer,), loss=loss, lr=lr, norm_constraint=norm)
            for layer, loss, lr, norm in product(
                range(n_layers), losses, (5e-4, 1e-3, 2e-3, 5e-3, 2e-2), (None, 2e-3, 5e-3, 2e-2)
            )
        ],
        "KN": [
            KN(threshold=t, old=old, new=new)
            for t, (old, new) in product(
                (0.1, 0.2, 0.4), ((None, 1.0), (1.0, 8.0), (4.0, 16.0), (0.0, 32.0))
            )
        ],
        "ROME": [
            editor
            for layer, moment in product(range(n_layers), (True, False))
            for editor in searches(
                ROME(layer=layer, second_moment=moment, n_prefixes=2, prefix_lengths=(10,))
            )
        ],
        "MEMIT": [
            editor
            for r, w in product(ranges, WEIGHTS)
            for editor in searches(MEMIT(layers=r, weight=w, n_prefixes=2))
        ],
        "PMET": pmets,
        "AlphaEdit": [
            editor
            for r, share, w in product(ranges, (0.5, 0.7, 0.9), (0.1, 1.0, 10.0))
            for editor in searches(AlphaEdit(layers=r, null_share=share, weight=w, n_prefixes=2))
        ],
        "IFMET": [IFMET(value=value, query=query) for value, query in stages],
        "ACE": [ACE(value=value, query=query) for value, query in stages],
        "ReleasedACE": [
            ReleasedACE(
                value=replace(value, writes="both", position=query.position),
                query=replace(query, writes="both"),
            )
            for value, query in stages
            if query.writes == "ffn"
        ],
        "LocatedACE": [
            ACE(
                value=replace(pmet, layers=value, position="last"),
                query=replace(pmet, layers=query),
            )
            for query, value in product(*ranked)
            for pmet in pmets
            if pmet.layers == ranges[0]
        ],
    }


def searches(editor: Searching) -> list[Searching]:
    """An editor with each of ``SEARCHES``, those that are the same for it once."""
    found = {
        objective: replace(editor, objective=objective)
        for objective in (replace(editor.objective, **other) for other in SEARCHES)
    }
    return list(found.values())


def spaces_of(
    lm: LM, world: World, seed: int = 0, progress: Callable[[int, int], object] | None = None
) -> dict[str, list]:
    """``spaces`` of a model, with the layers that attribution ranks first behind layer 0, which
    extends the embedding.

    progress: called with (questions done, questions).
    """
    prompts, answers = zip(*questions(world, N_LOCATED, seed), strict=True)
    found = locate(lm, prompts, answers, lm.n_layers, lm.n_layers, progress=progress)
    query, value = (
        [layer for layer in layers if layer > 0][:3]
        for layers in (found.query_layers, found.value_layers)
    )
    return spaces(lm.n_layers, query, value, lm.family.parallel)


def editors_named(editors: str = "") -> list[str]:
    """The editors of a list with commas between, "ace, memit", as they are called; "": all.

    Raises ValueError for an unknown one.
    """
    known = {name.lower(): name for name in presets.KNOWN}
    asked = [name.strip().lower() for name in editors.split(",")] if editors else list(known)
    if unknown := [name for name in asked if name not in known]:
        allowed = ", ".join(presets.KNOWN)
        raise ValueError(f"unknown editor {quoted(unknown[0])}; known: {allowed}")
    return [known[name] for name in asked]


def identification(lm: LM, world: World, n: int, seed: int = 0) -> list[Case]:
    """``n`` (or a few more) identification cases of which the model recalls every fact.

    As many with one edit as with two, three, four, and so are those of any first part. Of a model
    that learned from natural text they are made of the facts that it knows: it would know all
    facts of hardly any other.
    Raises ValueError if it recalls all facts of none: there would be nothing to search on.
    """
    if lm.natural:
        facts = tuple(known_items(lm, world.facts, partial(single_hop, world)))
        known = all_cases(replace(world, facts=facts), ("identification",), n, seed)
    else:
        drawn = make_cases(world, "identification", 6 * n, seed)
        known = balanced(known_cases(lm, drawn), -(-n // 4))
    if not known:
        raise ValueError(
            f"{lm.name} recalls all facts of no identification case, so that no settings can be "
            "searched on them; ask for more cases"
        )
    groups = [[case for case in known if case.n_edits == n] for n in (1, 2, 3, 4)]
    return [case for some in zip_longest(*groups) for case in some if case is not None]


def draw(candidates: Mapping[str, Sequence], n: int, seed: int = 0) -> list[tuple[str, Any]]:
    """``n`` of the settings of every editor, (name, editor); more are the same ones and others."""
    return [
        (name, editor)
        for name, settings in candidates.items()
        for editor in Random(f"{seed}/{name}").sample(list(settings), len(settings))[:n]
    ]


def rounds(n_trials: int, n_cases: int) -> list[tuple[int, int]]:
    """(trials, cases) of every round: of 81 trials and 36 cases 81 x 2, 27 x 4, 9 x 12, 3 x 36.

    The last round has at most ``KEEP`` trials and all cases.
    """
    counts = [n_trials]
    while counts[-1] > KEEP:
        counts.append(-(-counts[-1] // KEEP))
    last = len(counts) - 1
    return [(n, -(-n_cases // KEEP ** (last - i))) for i, n in enumerate(counts)]


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
    """Scores of ``trials``, round by round (``rounds``) on the first ``cases``; resumable.

    trials: (name, editor), as ``draw`` gives them.
    progress: called with (cases done, cases of all rounds, editor).
    Returns one row per trial, best first within an editor, those of later rounds before: editor,
    settings (JSON of the preset's table), the means of SCORE and their ``score``, n_cases.
    """
    groups: dict[str, list] = {}
    for name, editor in trials:
        groups.setdefault(name, []).append(editor)
    plans = {name: rounds(len(some), len(cases)) for name, some in groups.items()}
    total = sum(n * m for plan in plans.values() for n, m in plan)
    rows: list[dict[str, Any]] = []
    done = 0

    def judged(name: str, editor: Any, n: int) -> dict[str, Any]:
        """The row of one trial on the first ``n`` cases."""
        nonlocal done
        start = done

        def tell(i: int, _: int, what: str) -> None:
            if progress:
                progress(start + i, total, what)

        series = comparison(lm.name, lm, world, {name: editor}, cases[:n], moments, protocol)
        means = run(series, folder, tell)[list(SCORE)].mean()
        done += n
        table = json.dumps(presets.to_table(editor))
        scored = dict(score=round(score(means), 4), n_cases=n)
        return dict(editor=name, settings=table, **means.round(4), **scored)

    for name, candidates in groups.items():
        for n_trials, n_cases in plans[name]:
            # 1. The best of the round before, or all; equal ones in the order that they were drawn.
            found = [(judged(name, one, n_cases), one) for one in candidates[:n_trials]]
            found.sort(key=lambda pair: -pair[0]["score"])
            # 2. A trial has one row, that of its last round.
            candidates = [one for _, one in found]
            again = {row["settings"] for row, _ in found}
            rows = [r for r in rows if (r["editor"], r["settings"] in again) != (name, True)]
            rows += [row for row, _ in found]
    return pd.DataFrame(rows).sort_values(
        ["editor", "n_cases", "score"], ascending=[True, False, False], ignore_index=True
    )


def score(means: Mapping[str, float]) -> float:
    """What trials are ranked by: the mean of multi-hop accuracy, efficacy, paraphrase, and
    specificity over its three kinds of facts.

    means: of ``SCORE``. Two of the kinds, the edited and other relations, are together in
    "specificity"; the third is left out where no subject ends in the same token (nan).
    """
    *parts, two, third = (means[name] for name in SCORE)
    kept = two if isnan(third) else (2 * two + third) / 3
    return (sum(parts) + kept) / (len(parts) + 1)


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
    """Write the first trial of each editor, its best, as its preset into a TOML file, in one step.

    fingerprint: of the model, by which ``preset`` finds them.

    What the file holds of other editors stays, and so do its comments.
    Returns the editors by name, with the settings written.
    """
    best = trials.drop_duplicates("editor")
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

    Columns: editor, settings, SCORE and score in percent,
    n_cases; nan where a trial that was kept earlier has no such column.
    """
    path = presets.path_of(model).with_suffix(".csv")
    if not path.exists():
        return pd.DataFrame(columns=["editor", "settings", *SCORE, "score", "n_cases"])
    kept = pd.read_csv(path)
    settings = [
        words(parse(editor, settings))
        for editor, settings in zip(kept.editor, kept.settings, strict=True)
    ]
    scores = kept.reindex(columns=[*SCORE, "score"])
    percent = {name: (100 * scores[name]).round(1) for name in scores}
    return kept[["editor"]].assign(settings=settings, **percent, n_cases=kept.n_cases)


def words(editor: Any) -> str:
    """The settings of an editor that are not its defaults, those of its search among them.

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
    """The fields of an editor, and of its objective, that are not at their defaults."""
    values = {field.name: getattr(editor, field.name) for field in fields(editor)}
    usual = {field.name: field.default for field in fields(editor)}
    other = {name: value for name, value in values.items() if value != usual[name]}
    searched = other.pop("objective", None)
    if searched:
        names = [field.name for field in fields(searched)]
        wanted, published = (
            [getattr(one, n) for n in names] for one in (searched, usual["objective"])
        )
        other |= {n: a for n, a, b in zip(names, wanted, published, strict=True) if a != b}
    return {name: value for name, value in other.items() if not is_dataclass(value)}
