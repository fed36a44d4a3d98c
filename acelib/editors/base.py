"""What MEMIT, PMET, AlphaEdit, IFMET and ACE share: target vectors searched and written in one stage or several, groups side by side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from ..editing.keys import contexts
from ..editing.moments import Moments
from ..editing.request import Request
from ..editing.write import Stage, edit
from ..model.lm import LM
from ..model.update import Update, applied
from ..records import Edit


class Staged(ABC):
    """Base of editors made of stages. A subclass has ``plan`` and ``asked``, and fields texts, n_prefixes, prefix_length, seed."""

    chained = True  #: whether a stage searches its targets on the model that the stages before have edited

    @property
    @abstractmethod
    def plan(self) -> dict[str, Stage]:
        """The stages by name, in order."""

    @abstractmethod
    def asked(self, edits: Sequence[Edit], stage: str, group: int = 0) -> list[Request]:
        """The requests of one stage for one batch of edits. Raises ValueError as ``keys.requests``."""

    def prefixes(self, lm: LM) -> tuple[str, ...]:
        """What prompts are also read after: ``texts``, or, if that is None, texts sampled from the model as it is."""
        return (
            contexts(lm, self.n_prefixes, self.prefix_length, self.seed)
            if self.texts is None
            else ("", *self.texts)
        )

    def __call__(
        self,
        lm: LM,
        edits: Sequence[Edit],
        moments: Moments,
        history: Mapping[int, Tensor] | None = None,
    ) -> Update:
        """The Update that writes ``edits`` together.   history: ``Update.keys`` of earlier edits, for a null-space write."""
        return self.each(lm, [edits], moments, history)[0]

    def each(
        self,
        lm: LM,
        groups: Sequence[Sequence[Edit]],
        moments: Moments,
        history: Mapping[int, Tensor] | None = None,
    ) -> list[Update]:
        """One Update for each group, every group as if it were alone (with the same history), all in one batch."""
        plan = self.plan
        given = {
            name: [r for g, edits in enumerate(groups) for r in self.asked(edits, name, g)]
            for name in plan
        }
        for stage in plan.values():
            stage.check(lm, moments, history)
        if not groups:
            return []
        prefixes, done = self.prefixes(lm), [Update()] * len(groups)
        base = done
        for name, stage in plan.items():
            if given[name]:
                new = edit(
                    lm,
                    given[name],
                    stage,
                    moments,
                    prefixes,
                    done,
                    history,
                    done if self.chained else base,
                )
                done = [before + one for before, one in zip(done, new)]
        return signed(lm, self, groups, done)


def signed(
    lm: LM, editor, groups: Sequence[Sequence[Edit]], updates: Sequence[Update]
) -> list[Update]:
    """``updates`` with the editor's name, the edits and the model they are for."""
    name, model = type(editor).__name__, lm.fingerprint
    return [
        replace(u, editor=name, edits=tuple(dict.fromkeys(edits)), model=model)
        for u, edits in zip(updates, groups)
    ]


def edit_in_turn(
    lm: LM,
    editor,
    batches: Iterable[Sequence[Edit]],
    moments: Moments | None,
    state: Update = Update(),
) -> Iterator[Update]:
    """The state after each batch: W_l + dW_l(1) + ... + dW_l(t).

    editor: anything with ``editor(lm, edits, moments) -> Update``, and ``history=`` if its Updates hold keys. Texts that it samples from
    the model to read prompts after are those of the model without any edit, as in released code.
    moments: of the model without any edit.   state: what earlier batches have left, to go on from.
    Raises: ValueError as the editor does, or if ``state`` belongs to another model; the model is as it was.
    Source: AlphaEdit Section 4.
    """
    if state.model not in ("", lm.fingerprint):
        raise ValueError(
            f"the state was made for the model {state.model}, not for {lm.name!r} ({lm.fingerprint})"
        )
    if getattr(editor, "texts", ()) is None:
        editor = replace(editor, texts=editor.prefixes(lm)[1:])
    for edits in batches:
        with applied(lm, state):
            new = editor(lm, edits, moments, **(dict(history=state.keys) if state.keys else {}))
        state += new
        yield state
