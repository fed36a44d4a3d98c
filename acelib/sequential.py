"""Editing in turn: batch after batch, each on the model as the batches before have left it.

The state is the sum of the Updates so far: their changes, and, from editors that keep earlier edits (AlphaEdit), the keys that the next
batch takes as its history. Between two batches the weights are what they were, to the bit: look at the edited model through ``applied``
or ``overlaid``, keep it with ``commit``, save the state with ``Update.save`` and go on from it another day.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Iterable, Iterator, Sequence

from acelib.covariance import Moments
from acelib.lm import LM
from acelib.update import Update, applied

if TYPE_CHECKING:
    from acelib.facts import Edit


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
