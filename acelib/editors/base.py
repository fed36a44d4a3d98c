"""What editors share: groups of edits in, one ``Update`` for each group out, the model untouched.

``Editor`` is the base of all; ``Staged`` of those made of stages (MEMIT, PMET, AlphaEdit, IFMET,
ACE), each a target search and its write.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ..editing.moments import Moments
from ..editing.request import Request, check_lengths
from ..editing.search import Targets
from ..editing.write import History, Stage, edit
from ..model.lm import LM
from ..model.update import Update, applied
from ..records import Edit


class Editor(ABC):
    """Base of editors: settings with ``each``. Subclasses are made by ``@settings()``."""

    @abstractmethod
    def each(
        self, lm: LM, groups: Sequence[Sequence[Edit]], moments: Moments | None = None
    ) -> list[Update]:
        """One Update for each group of edits, every group as if it were alone."""

    def __call__(self, lm: LM, edits: Sequence[Edit], moments: Moments | None = None) -> Update:
        """The Update that writes ``edits`` together."""
        return self.each(lm, [edits], moments)[0]

    def label(
        self, lm: LM, groups: Sequence[Sequence[Edit]], updates: Sequence[Update]
    ) -> list[Update]:
        """``updates`` with the editor's name, their edits and the model that they are for."""
        name, model = type(self).__name__, lm.fingerprint
        return [
            replace(update, editor=name, edits=tuple(dict.fromkeys(edits)), model=model)
            for update, edits in zip(updates, groups, strict=True)
        ]


class Staged(Editor):
    """Base of editors made of stages. A subclass has ``plan``, ``requests`` and ``prefixes``."""

    chained = True  #: whether a stage searches on the model that the stages before have edited
    shared = False  #: whether all stages write the vectors that the first one searches

    @property
    @abstractmethod
    def plan(self) -> dict[str, Stage]:
        """The stages by name, in order."""

    @abstractmethod
    def requests(self, edits: Sequence[Edit], stage: str, group: int = 0) -> list[Request]:
        """The requests of one stage for one batch of edits. Raises ValueError as ``requests``."""

    @abstractmethod
    def prefixes(self, lm: LM) -> tuple[str, ...]:
        """What prompts are also read after: nothing (""), then texts."""

    @property
    def attn_layers(self) -> tuple[int, ...]:
        """The layers whose attention is written too: their second moments are needed."""
        writes = (stage for stage in self.plan.values() if "attn" in stage.parts)
        return tuple(sorted({layer for stage in writes for layer in stage.layers}))

    def __call__(
        self,
        lm: LM,
        edits: Sequence[Edit],
        moments: Moments | None = None,
        history: History | None = None,
        targets: Targets | None = None,
    ) -> Update:
        """The Update that writes ``edits`` together.

        history: ``Update.keys`` of earlier edits, for a null-space write.   targets: as in
        ``each``.
        """
        return self.each(lm, [edits], moments, history, targets)[0]

    def search(self, lm: LM, groups: Sequence[Sequence[Edit]]) -> Targets:
        """The target vectors of the first stage, one for each request of each group."""
        name, stage = next(iter(self.plan.items()))
        requests = [r for g, edits in enumerate(groups) for r in self.requests(edits, name, g)]
        return stage.search(lm, requests, self.prefixes(lm))

    def stages_for(
        self, lm: LM, groups: Sequence[Sequence[Edit]], requests: Mapping[str, Sequence[Request]]
    ) -> dict[str, Stage]:
        """The stages by name, for the edits at hand and their requests: ``plan``."""
        return self.plan

    def each(
        self,
        lm: LM,
        groups: Sequence[Sequence[Edit]],
        moments: Moments | None = None,
        history: History | None = None,
        targets: Targets | None = None,
    ) -> list[Update]:
        """One Update for each group, every group as if it were alone, all in one batch.

        history: ``Update.keys`` of earlier edits, the same for all groups, for a null-space write.
        targets: vectors that every stage writes instead of searching, one for each request.
        """
        # 1. Check edits, settings and moments before any work.
        requests = {
            name: [r for g, edits in enumerate(groups) for r in self.requests(edits, name, g)]
            for name in self.plan
        }
        together = [r for of_stage in requests.values() for r in of_stage]
        check_lengths(lm, together)
        if moments is None:
            raise ValueError(f"{type(self).__name__} needs second moments, but none are given")
        stages = self.stages_for(lm, groups, requests)
        for stage in stages.values():
            stage.check(lm, moments, history)
        if not groups:
            return []
        # 2. The texts that prompts are read after, of the model as it is.
        prefixes, done = self.prefixes(lm), [Update()] * len(groups)
        check_lengths(lm, together, prefixes)
        base, found = done, targets
        # 3. Search and write stage by stage; the sum is the edit.
        for name, stage in stages.items():
            if requests[name]:
                asked, host = requests[name], done if self.chained else base
                if targets is None and not (self.shared and found):
                    found = stage.search(lm, asked, prefixes, host)
                new = edit(lm, asked, stage, moments, prefixes, done, history, found)
                done = [before + one for before, one in zip(done, new, strict=True)]
        return self.label(lm, groups, done)


def edit_in_turn(
    lm: LM,
    editor,
    batches: Iterable[Sequence[Edit]],
    moments: Moments | None,
    state: Update | None = None,
) -> Iterator[Update]:
    """The state after each batch: W_l + dW_l(1) + ... + dW_l(t).

    editor: anything with ``editor(lm, edits, moments) -> Update``, and ``history=`` if its Updates
    hold keys. Texts that it samples from the model to read prompts after are those of the model
    without any edit, as in released code.
    moments: of the model without any edit.   state: what earlier batches have left, to go on from.
    Raises: ValueError as the editor does, or if ``state`` belongs to another model; the model is as
    it was.
    Source: AlphaEdit Section 4.
    """
    state = Update() if state is None else state
    if state.model not in ("", lm.fingerprint):
        raise ValueError(
            f"the state was made for the model {state.model}, not for {lm.name!r} "
            f"({lm.fingerprint})"
        )
    if getattr(editor, "texts", ()) is None:
        editor = editor.with_texts(editor.prefixes(lm)[1:])
    for edits in batches:
        with applied(lm, state):
            history = dict(history=state.keys) if state.keys else {}
            new = editor(lm, edits, moments, **history)
        state += new
        yield state
