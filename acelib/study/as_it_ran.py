"""Cases as the released evaluation of ACE edits them: one edit after another, with its faults.

It writes the edits of a case one by one, each into the model that those before have left, judges
the case, and puts weights back. Three of its faults change what is judged. They are faults of that
run and of no editor, so they are switches here; without any, every case is edited one by one and
undone.

* F1: the list of the two groups of layers is flattened in the settings at the first call. From the
  second edit of a run on there is one group of all layers.
* F2: searched vectors are kept by case, and not by edit. A case's second and later edits are
  written with the vectors of its first, under their own keys.
* F3: what is put back after a case is the copy taken before its last edit. All its other edits
  stay in the model, for all cases after it.

Source: the released code of ACE (repository yjywdzh/ACE, commit c1a425b).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import cast

from ..editing.moments import Moments
from ..editors.ace import ACE, ReleasedACE
from ..editors.base import Staged
from ..editors.memit import MEMIT
from ..model.lm import LM
from ..model.update import Update, applied
from ..provenance import digest
from ..records import Case
from ..world.world import World
from .experiments import WRITTEN, Corpus, depends, modules
from .judge import Protocol, judge
from .rows import Series
from .store import canonical


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Which faults of the released run are made."""

    groups_forgotten: bool = False  #: F1
    vectors_kept: bool = False  #: F2
    edits_stay: bool = False  #: F3


def one_group(editor: ACE) -> MEMIT:
    """The editor of the query layers on all layers of both: what F1 turns ``editor`` into."""
    return replace(editor.query, layers=editor.layers)


def states(
    lm: LM, editor: ReleasedACE, cases: Sequence[Case], moments: Moments, faults: Faults
) -> Iterator[Update]:
    """For each case in turn, all that is changed in the model when it is judged.

    Texts that prompts are read after are those of the model without any edit, as are ``moments``.
    Raises ValueError as the editor does.
    """
    released = editor.with_texts(editor.prefixes(lm)[1:])
    stays, writer = Update(), cast(Staged, released)
    for case in cases:
        state, before, vectors = stays, stays, None
        for edit in case.edits:
            before = state
            with applied(lm, state):
                # 1. The edit's own vectors, or (F2) those of the case's first.
                if vectors is None or not faults.vectors_kept:
                    vectors = writer.search(lm, [[edit]])
                state += writer(lm, [edit], moments, targets=vectors)
            # 2. From the first edit on (F1) both groups are one.
            if faults.groups_forgotten:
                writer = one_group(released)
        yield state
        # 3. What is put back: everything, or (F3) the last edit alone.
        if faults.edits_stay:
            stays = before


class Run:
    """``states`` by place, each computed once, however they are asked for.

    begin: gives them from the first on; called when one is first wanted.
    """

    def __init__(self, begin: Callable[[], Iterator[Update]]):
        self._begin = begin
        self._states: Iterator[Update] | None = None
        self._known: list[Update] = []

    def __getitem__(self, place: int) -> Update:
        self._states = self._states or self._begin()
        while len(self._known) <= place:
            self._known.append(next(self._states))
        return self._known[place]


@dataclass(frozen=True)
class Turn:
    """A case in its place of a run: its rows depend on the cases before it."""

    case: Case
    place: int
    before: str  #: digest of the cases before it


def turns(cases: Sequence[Case]) -> list[Turn]:
    """The cases in their order, each knowing those before it."""
    before, found = "", []
    for place, case in enumerate(cases):
        found.append(Turn(case, place, before))
        before = digest([before, canonical(case)])
    return found


def series(
    name: str,
    lm: LM,
    world: World,
    editor: ReleasedACE,
    runs: Mapping[str, Faults],
    cases: Sequence[Case],
    texts: Corpus,
    protocol: Protocol,
) -> tuple[Series, ...]:
    """One series per run, named by model and run: the rows of ``judge`` of every case in turn.

    name: of the model, as tables show it.   written: norm of all that is changed in the model when
    a case is judged, with what earlier cases left there.
    """
    items = {str(turn.case.case_id): turn for turn in turns(cases)}

    def begin(faults: Faults) -> Iterator[Update]:
        return states(lm, editor, cases, texts.moments, faults)

    return tuple(
        Series(
            names={"model": name, "editor": run},
            depends={
                **depends(lm, world, editor, texts),
                "protocol": json.dumps(asdict(protocol)),
                "faults": repr(faults),
            },
            code=(__name__, *modules(editor)),
            items=items,
            compute=partial(_rows, lm, world, protocol, Run(partial(begin, faults))),
            tolerances={"written": WRITTEN},
        )
        for run, faults in runs.items()
    )


def _rows(
    lm: LM, world: World, protocol: Protocol, run: Run, part: Sequence[Turn]
) -> list[list[dict]]:
    updates = [run[turn.place] for turn in part]
    rows = judge(lm, world, [turn.case for turn in part], updates, protocol)
    return [[{**row, "written": update.norm()}] for row, update in zip(rows, updates, strict=True)]
