"""Experiments: editors x cases, one row per case, kept with all that the rows depend on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cached_property, partial
from pathlib import Path

import pandas as pd

from ..editing.moments import Moments, second_moments
from ..model.answers import known_items
from ..model.lm import LM
from ..provenance import digest
from ..records import Case, Hop
from ..world.cases import make_cases
from ..world.mquake import read_cases
from ..world.prose import paragraphs
from ..world.text import documents
from ..world.world import World
from .judge import Protocol, edit_and_judge
from .rows import Experiment, Folders, Progress, Series, table


def known_cases(lm: LM, cases: Sequence[Case]) -> list[Case]:
    """The cases of which the model recalls every single-hop fact, old chain and new, as the paper
    filters (App. C.1).

    The facts that an edit will change are asked with their old answer; hops that only the new chain
    has must be known too, or a failure after the edit would not be the editor's.
    """
    hops = []
    for number, case in enumerate(cases):
        new = {(edit.text, edit.target_new) for edit in case.edits}
        hops += [
            (number, hop)
            for hop in dict.fromkeys(case.hops + case.new_hops)
            if (hop.cloze, hop.answer) not in new
        ]
    known = known_items(lm, hops, _ask_hop)
    needed, right = (Counter(number for number, _ in some) for some in (hops, known))
    return [case for number, case in enumerate(cases) if right[number] == needed[number]]


def _ask_hop(numbered: tuple[int, Hop]) -> tuple[str, str]:
    return numbered[1].cloze, numbered[1].answer


def balanced(cases: Sequence[Case], n_each: int) -> list[Case]:
    """The first ``n_each`` cases for each number of edits, in their order."""
    counts: dict[int, int] = {}
    kept = []
    for case in cases:
        counts[case.n_edits] = counts.get(case.n_edits, 0) + 1
        if counts[case.n_edits] <= n_each:
            kept.append(case)
    return kept


def evaluation_cases(lm: LM, world: World, n: int, seed: int, path: str = "") -> list[Case]:
    """``n`` evaluation cases of which the model recalls every fact, as many with one edit as with
    two, three, four (one more of the fewest edits, where n does not divide); fewer if there are not
    so many.

    path: of a file of cases in the shape of MQuAKE; "": made from the world.
    They are the first such cases, in their order; no more are asked than it takes.
    Raises ValueError if there is no such case.
    """
    pool = (
        read_cases(path, world.relations) if path else make_cases(world, "evaluation", 4 * n, seed)
    )
    rest = dict(enumerate(pool))
    kept: list[int] = []
    while asked := _missing(rest, Counter(pool[i].n_edits for i in kept), n):
        known = known_cases(lm, [rest.pop(i) for i in asked])
        kept += [i for i in asked if any(pool[i] is case for case in known)]
    if not kept:
        raise ValueError(f"{lm.name} recalls all facts of none of the {len(pool)} cases")
    return [pool[i] for i in sorted(kept)]


def cases_by_model(
    hosts: Mapping[str, LM], world: World, n: int, seed: int, path: str = ""
) -> dict[str, list[Case]]:
    """``evaluation_cases`` of every model."""
    return {name: evaluation_cases(lm, world, n, seed, path) for name, lm in hosts.items()}


def _missing(rest: Mapping[int, Case], counts: Counter, n: int) -> list[int]:
    """The first cases that bring the counts by number of edits to their shares of ``n``, by their
    places.
    """
    counts, places = Counter(counts), []
    for place, case in rest.items():
        counts[case.n_edits] += 1
        if counts[case.n_edits] <= n // 4 + (case.n_edits <= n % 4):
            places.append(place)
    return places


def cases_of(experiment: Experiment) -> dict[str, list[Case]]:
    """The cases that a ``comparison`` of editors judges, by model."""
    return {series.names["model"]: list(series.items.values()) for series in experiment.series}


N_TEXTS = 2000  #: of the world that second moments are taken over
#: (rtol, atol) of the size of an update: in another batch it moves by 1e-5 or less, but for the few
#: searches that rounding sends elsewhere (``recheck.ELSEWHERE``). Where nothing is to be written
#: (the last layer at a subject's token), rounding is, with a norm of up to 1e-3; edits have more
#: than 1.
WRITTEN = (1e-3, 1e-2)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Texts whose second moments are gathered when an edit first needs them."""

    lm: LM
    texts: Sequence[str]
    layers: Sequence[int]
    attn_layers: Sequence[int] = ()  #: whose attention is written too

    @cached_property
    def moments(self) -> Moments:
        """``gather``, once."""
        return self.gather()

    def gather(self, progress: Callable[[int, int], object] | None = None) -> Moments:
        """Second moments of the model's ``layers`` over the texts; none if there are no layers.

        progress: called with (texts done, texts).
        """
        if not self.layers:
            return Moments({}, 0, self.lm.fingerprint)
        attn = self.attn_layers
        return second_moments(self.lm, self.texts, self.layers, progress=progress, attn=attn)

    def __str__(self) -> str:
        return f"of {len(self.texts)} texts {digest(self.texts)}"


def corpus(
    lm: LM,
    world: World,
    editors: Iterable[object | None],
    seed: int = 0,
    texts: Sequence[str] | None = None,
) -> Corpus:
    """Texts for second moments of all layers that some editor writes: ``texts``, or if there are
    none, ``N_TEXTS`` of the world for a model that learned it, and natural prose for any other.
    """
    writers = [editor for editor in editors if editor is not None]
    layers, attn = (
        sorted({layer for editor in writers for layer in getattr(editor, name, ())})
        for name in ("layers", "attn_layers")
    )
    if texts is None:
        texts = paragraphs() if lm.natural else documents(world, N_TEXTS, seed)
    return Corpus(lm, texts, layers, attn)


def comparison(
    name: str,
    lm: LM,
    world: World,
    editors: Mapping[str, object | None],
    cases: Sequence[Case],
    moments: Moments | Corpus | None,
    protocol: Protocol | Mapping[str, Protocol] = Protocol(),
    chunk: int = 24,
) -> tuple[Series, ...]:
    """One series per editor: the rows of ``judge`` for every case, named by model and editor.

    name: of the model, as tables show it.   editors: name -> editor, None for the unedited model
    ("Base"); an editor is anything with ``each(lm, groups, moments) -> [Update]``.
    protocol: one, or several by name: then a case is edited once and has a row for each, whose
    column "prompt" is the name.
    Raises ValueError for no case, no editor, two cases of one id, or moments of another model.
    """
    if not cases or not editors:
        raise ValueError(f"{len(cases)} cases, {len(editors)} editors: both must be at least 1")
    items = {str(case.case_id): case for case in cases}
    if len(items) < len(cases):
        raise ValueError(f"{len(cases)} cases have {len(items)} different ids; each needs its own")
    if isinstance(moments, Moments) and moments.model not in ("", lm.fingerprint):
        raise ValueError(
            f"the second moments are of the model {moments.model}, not of {lm.name!r} "
            f"({lm.fingerprint}); gather them anew"
        )

    protocols = protocol if isinstance(protocol, Mapping) else {"": protocol}
    labels = [{"prompt": name} if name else {} for name in protocols]
    said = {name: asdict(one) for name, one in protocols.items()}

    def compute(editor, part: list[Case]) -> list[list[dict]]:
        if isinstance(moments, Corpus):
            known = None if editor is None else moments.moments
        else:
            known = moments
        judged = edit_and_judge(lm, world, editor, part, known, [*protocols.values()])
        return [
            [{**label, **row} for label, row in zip(labels, rows, strict=True)] for rows in judged
        ]

    return tuple(
        Series(
            names={"model": name, "editor": editor_name},
            depends={
                **depends(lm, world, editor, moments),
                "protocol": json.dumps(said.get("", said)),
            },
            code=("acelib.study.judge", *modules(editor)),
            items=items,
            compute=partial(compute, editor),
            chunk=chunk,
            tolerances={"written": WRITTEN},
        )
        for editor_name, editor in editors.items()
    )


def comparisons(
    hosts: Mapping[str, LM],
    world: World,
    editors: Mapping[str, Mapping[str, object | None]],
    cases: Mapping[str, Sequence[Case]],
    protocol: Protocol | Mapping[str, Protocol],
) -> tuple[Series, ...]:
    """``comparison`` on every model, with second moments of all layers that its editors write.

    editors, cases: by model.   protocol: one, or several of one seed by name.
    """
    first = next(iter(protocol.values())) if isinstance(protocol, Mapping) else protocol
    return tuple(
        series
        for name, lm in hosts.items()
        for series in comparison(
            name,
            lm,
            world,
            editors[name],
            cases[name],
            corpus(lm, world, editors[name].values(), first.seed),
            protocol,
        )
    )


def run(series: Sequence[Series], folder: Path, progress: Progress | None = None) -> pd.DataFrame:
    """The rows of a ``comparison`` on one model, kept in ``folder`` and nowhere else.

    Returns one row per editor and case, by case_id within an editor.
    """
    experiment = Experiment("rows", tuple(series))
    frame = table(experiment, progress, Folders(None, Path(folder)))
    order = {one.names["editor"]: i for i, one in enumerate(series)}
    frame = frame.assign(place=frame.editor.map(order)).sort_values(["place", "case_id"])
    editor = frame.editor
    frame = frame.drop(columns=["model", "item", "place", "editor"]).assign(editor=editor)
    return frame.reset_index(drop=True)


def _named(moments: Moments | Corpus | None) -> str:
    """What second moments are of.

    Moments that are there are named by model, tokens and traces: six digits, so that another order
    of summation is no other moment.
    """
    if not isinstance(moments, Moments):
        return str(moments or "")
    matrices = sorted(moments.matrices.items())
    traces = [(layer, f"{C.trace().item():.6g}") for layer, C in matrices]
    return f"{moments.model} {moments.tokens} {traces}"


def depends(
    lm: LM, world: World, editor: object | None, moments: Moments | Corpus | None
) -> dict[str, str]:
    """What rows about a model that ``editor`` has edited depend on, besides code, edits and
    questions; for ``Series.depends``.
    """
    return {
        "model": f"{lm.fingerprint} {lm.dtype}",
        "world": world.digest,
        "settings": repr(editor),
        "moments": "" if editor is None else _named(moments),
    }


def modules(editor: object | None) -> tuple[str, ...]:
    """The modules of an editor's class and of the settings that it holds, by name, for
    ``Series.code``; none for the unedited model.
    """
    return tuple(sorted(set(_modules(editor))))


def _modules(editor) -> Iterable[str]:
    """The modules of an editor's class and of the settings that it holds."""
    if editor is not None:
        yield type(editor).__module__
    if is_dataclass(editor):
        for field in fields(editor):
            if is_dataclass(getattr(editor, field.name)):
                yield from _modules(getattr(editor, field.name))
