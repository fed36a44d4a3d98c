"""One edit that somebody types: made in a model, with what the model answers before and after."""

from __future__ import annotations

import pandas as pd

from ..editing.moments import Moments
from ..editors.base import Editor
from ..model.answers import recall
from ..model.lm import LM
from ..model.update import Update
from ..records import Edit
from ..world.world import World
from .probe import before_and_after, probes


def edit_of_prompt(world: World, subject: str, prompt: str, target: str) -> Edit:
    """The edit of a prompt, with the relation and the old answer that the world knows for it.

    prompt: with {} for the subject.   Raises ValueError as ``Edit``.
    """
    relation = world.relation_of(prompt)
    old = world.lookup(subject, relation) if relation else None
    return Edit(subject, prompt, target, old or "", relation=relation)


def check_new(lm: LM, edit: Edit) -> None:
    """Raises ValueError if the model says the new object already."""
    if recall(lm, [edit.text], [edit.target_new]).correct[0]:
        raise ValueError(
            f"{lm.name} answers {edit.target_new!r} to {edit.text!r} already; choose another target"
        )


def edit_and_ask(
    lm: LM,
    world: World,
    editor: Editor,
    edit: Edit,
    moments: Moments | None,
    n_unrelated: int = 8,
    seed: int = 0,
) -> tuple[Update, pd.DataFrame]:
    """The update, and ``probe.before_and_after`` of the edit's ``probe.probes``."""
    update = editor(lm, [edit], moments)
    return update, before_and_after(lm, probes(world, edit, n_unrelated, seed), update)
