"""Ripple effects: what one edit does to all that a model knows, judged without a sample.

The world is complete and a pair (s, r) has one object, so after the edit (s, r, o) -> (s, r, o*)
every fact of the world and every two-hop composition through the edited fact must change, must
stay, or is left open. The categories are those of RippleEdits, without its Preservation, which asks
for the other objects of (s, r) and has no instance here; facts that must stay are told apart by how
near they are. Left open, and not asked, is what the edit contradicts without saying what holds
instead: the former spouse's spouse.
Source: Cohen et al., "Evaluating the Ripple Effects of Knowledge Editing in Language Models" (TACL
2024), Section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter

import pandas as pd

from ..editors import preset
from ..model.answers import known_items, recall
from ..model.lm import LM
from ..model.update import Update, applied
from ..records import Edit, Fact
from ..study import experiments
from ..study.rows import Experiment, Series
from ..world.cases import single_edits
from ..world.wording import single_hop_cloze
from ..world.world import INVERSES, World

#: Category -> whether its answers must change.
CATEGORIES = {
    "the edit": True,
    "logic": True,  # Logical Generalization: (o*, q, s), q the inverse of r
    "composition I": True,  # (s, r, o*), (o*, r2, z)
    "composition II": True,  # (s', r', s), (s, r, o*)
    "aliasing": True,  # Subject Aliasing: s by another name
    "same subject": False,  # Relation Specificity: (s, r', .)
    "same answer": False,  # other subjects of which (., r, o) holds
    "same relation": False,  # other facts of r
    "the objects": False,  # facts about o and o*
    "far": False,  # all others
}
COLUMNS = ["category", "relation", "prompt", "old", "new"]


# ---------------------------------------------------------------- edits and questions


def known_edits(lm: LM, world: World, n: int, seed: int = 0) -> list[Edit]:
    """``n`` single edits of facts that the model says, half of them of relations with an inverse.

    Raises ValueError if there are fewer.
    """
    pool = known_items(lm, single_edits(world, 60 * n, seed), attrgetter("text", "target_true"))
    mutual = [edit for edit in pool if edit.relation in INVERSES]
    others = [edit for edit in pool if edit.relation not in INVERSES]
    edits = mutual[: n // 2] + others[: n - n // 2]
    if len(edits) < n or n < 1:
        raise ValueError(
            f"{n} edits of known facts asked for, half of them with an inverse; "
            f"the sample has {len(edits)}"
        )
    return edits


def probes(world: World, edit: Edit) -> pd.DataFrame:
    """Every fact of the world in its first wording, and every consequence of ``edit`` over two
    hops, in the last wording of both relations.

    Returns columns category, relation (of the fact; "" for compositions), prompt, old ("" if there
    was no answer), new. Raises ValueError if the world does not hold the fact that is edited.
    """
    old = world.lookup(edit.subject, edit.relation)
    if old is None:
        raise ValueError(f"the world has no fact ({edit.subject!r}, {edit.relation!r}) to edit")
    changed = _changes(edit)
    stay = [fact for fact in world.facts if _stays(fact, changed)]
    rows = [
        *_changed_rows(world, edit, changed),
        *(_unchanged_row(world, edit, old, fact) for fact in stay),
        *_alias_rows(world, edit, old),
        *_compositions(world, edit, old, stay),
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    # A consequence that is as it was before says nothing.
    table = table[(table.old != table.new) | ~table.category.map(CATEGORIES)]
    category = pd.Categorical(table.category, list(CATEGORIES))
    return table.assign(category=category).reset_index(drop=True)


def _changes(edit: Edit) -> dict[tuple[str, str], str]:
    """The new object of every (subject, relation) that the edit gives one."""
    changed = {(edit.subject, edit.relation): edit.target_new}
    if edit.relation in INVERSES:
        changed[edit.target_new, INVERSES[edit.relation]] = edit.subject
    return changed


def _stays(fact: Fact, changed: Mapping[tuple[str, str], str]) -> bool:
    """Whether a fact holds after the edit: it is not changed, and its inverse does not deny it."""
    inverse = changed.get((fact.object, INVERSES.get(fact.relation, "")), fact.subject)
    return (fact.subject, fact.relation) not in changed and inverse == fact.subject


def _changed_rows(world: World, edit: Edit, changed: Mapping) -> Iterator[tuple]:
    """The edit itself, and what follows from it by logic."""
    for (subject, relation), new in changed.items():
        category = "the edit" if (subject, relation) == (edit.subject, edit.relation) else "logic"
        prompt = single_hop_cloze(world, Fact(subject, relation, new))
        yield category, relation, prompt, world.lookup(subject, relation) or "", new


def _unchanged_row(world: World, edit: Edit, old: str, fact: Fact) -> tuple:
    """A fact that must stay."""
    if fact.subject == edit.subject:
        category = "same subject"
    elif fact.relation == edit.relation:
        category = "same answer" if fact.object == old else "same relation"
    else:
        category = "the objects" if fact.subject in (old, edit.target_new) else "far"
    return category, fact.relation, single_hop_cloze(world, fact), fact.object, fact.object


def _alias_rows(world: World, edit: Edit, old: str) -> Iterator[tuple]:
    """The edit by other names of its subject."""
    for alias in world.aliases(edit.subject):
        prompt = edit.prompt.replace("{}", alias)
        yield "aliasing", edit.relation, prompt, old, edit.target_new


def _compositions(world: World, edit: Edit, old: str, stay: Sequence[Fact]) -> Iterator[tuple]:
    """Chains of two facts of which one is the edit."""
    place, target = (edit.subject, edit.relation), edit.target_new
    for fact in stay:
        if fact.subject == target and fact.object != edit.subject:
            prompt = _phrase(world, place, (target, fact.relation))
            before = world.lookup(old, fact.relation) or ""
            yield "composition I", "", prompt, before, fact.object
        if fact.object == edit.subject and fact.subject not in (old, target):
            prompt = _phrase(world, (fact.subject, fact.relation), place)
            yield "composition II", "", prompt, old, target


def _phrase(world: World, first: tuple[str, str], *more: tuple[str, str]) -> str:
    """ "The sport of the spouse of X is", of (X, spouse) and (., sport), in the last wordings."""
    text = first[0]
    for _, key in (first, *more):
        text = world.relations[key].nouns[-1].replace("{}", text)
    return f"{text[0].upper()}{text[1:]} is"


# ---------------------------------------------------------------- judging


class Exam:
    """What edited models are asked about an edit: all that the unedited model answers right.

    Questions without an old answer are asked in any case. The unedited model is asked once.
    """

    def __init__(self, lm: LM, world: World):
        self.lm, self.world = lm, world
        self._known: dict[tuple[str, str], bool] = {}
        self._tables: dict[Edit, pd.DataFrame] = {}

    def __call__(self, edit: Edit, update: Update) -> pd.DataFrame:
        """One row per question: category, relation, change (whether the answer must change), right
        (whether it is the new answer, or still the old one).

        Raises ValueError if no question is left.
        """
        if edit not in self._tables:
            self._tables[edit] = self._answerable(probes(self.world, edit))
        table = self._tables[edit]
        with applied(self.lm, update):
            right = recall(self.lm, list(table.prompt), list(table.new)).correct
        return table[["category", "relation"]].assign(change=table.old != table.new, right=right)

    def _answerable(self, table: pd.DataFrame) -> pd.DataFrame:
        """The questions that the unedited model answers right, or that had no answer."""
        pairs = list(zip(table.prompt, table.old, strict=True))
        if new := [pair for pair in dict.fromkeys(pairs) if pair[1] and pair not in self._known]:
            prompts, answers = zip(*new, strict=True)
            self._known |= zip(new, recall(self.lm, prompts, answers).correct, strict=True)
        table = table[[not pair[1] or self._known[pair] for pair in pairs]]
        if table.empty:
            raise ValueError(
                f"the model answers none of {len(pairs)} questions before it is edited; "
                "there is nothing to judge"
            )
        return table


def counts(answers: pd.DataFrame) -> list[dict]:
    """Rows of an exam, counted: category, relation, asked, right (both numbers of questions).

    Whether answers must change is a matter of the category alone (``CATEGORIES``).
    """
    groups = answers.groupby(["category", "relation"], observed=True)["right"]
    return [
        {"category": category, "relation": relation, "asked": len(right), "right": int(right.sum())}
        for (category, relation), right in groups
    ]


# ---------------------------------------------------------------- the experiment


def experiment(
    hosts: Mapping[str, LM], world: World, *, editors: Sequence[str], n_edits: int, seed: int
) -> Experiment:
    """Every fact and consequence after each of ``n_edits`` edits, by model and editor.

    Rows: category, relation, asked, right; see ``counts``.
    """
    return Experiment(
        "06_ripple",
        tuple(
            series
            for model, lm in hosts.items()
            for series in _of_model(model, lm, world, editors, n_edits, seed)
        ),
        tolerances={"right": (0.02, 2)},
    )


def _of_model(
    model: str, lm: LM, world: World, editors: Sequence[str], n_edits: int, seed: int
) -> Iterator[Series]:
    edits = known_edits(lm, world, n_edits, seed)
    presets = {name: preset(name, lm) for name in editors}
    corpus = experiments.corpus(lm, world, presets.values(), seed)
    exam = Exam(lm, world)
    for name, editor in presets.items():
        yield Series(
            names={"model": model, "editor": name},
            depends=experiments.depends(lm, world, editor, corpus),
            code=(__name__, *experiments.modules(editor)),
            items=by_name(edits),
            compute=partial(_counts_of_edits, lm, editor, corpus, exam),
        )


def by_name(edits: Sequence[Edit]) -> dict[str, Edit]:
    """Edits by "subject, relation, new object"."""
    return {f"{edit.subject}, {edit.relation}, {edit.target_new}": edit for edit in edits}


def _counts_of_edits(
    lm: LM,
    editor,
    corpus: experiments.Corpus,
    exam: Callable[[Edit, Update], pd.DataFrame],
    edits: list[Edit],
) -> list[list[dict]]:
    updates = editor.each(lm, [[edit] for edit in edits], corpus.moments)
    return [counts(exam(edit, update)) for edit, update in zip(edits, updates, strict=True)]
