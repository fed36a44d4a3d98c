"""Ripple effects: what one edit does to all that a model knows, judged without a sample.

The world is complete and a pair (s, r) has one object, so after the edit (s, r, o) -> (s, r, o*) every fact of the world and every two-hop
composition through the edited fact must change, must stay, or is left open. The categories are those of RippleEdits, without its
Preservation, which asks for the other objects of (s, r) and has no instance here; facts that must stay are told apart by how near they are.
Left open, and not asked, is what the edit contradicts without saying what holds instead: the former spouse's spouse.
Source: Cohen et al., "Evaluating the Ripple Effects of Knowledge Editing in Language Models" (TACL 2024), Section 3.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..editing.tail import lean
from ..model.answers import known_items
from ..model.lm import LM
from ..model.update import Update, overlaid
from ..records import Edit, Fact
from ..study.stats import SHARE, interval
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


def known_edits(lm: LM, world: World, n: int, seed: int = 0) -> list[Edit]:
    """``n`` single edits of facts that the model says, half of them of relations that have an inverse.

    Raises ValueError if there are fewer.
    """
    pool = known_items(lm, single_edits(world, 60 * n, seed), attrgetter("text", "target_true"))
    two = {
        inverse: [edit for edit in pool if (edit.relation in INVERSES) == inverse]
        for inverse in (True, False)
    }
    chosen = two[True][: n // 2] + two[False][: n - n // 2]
    if len(chosen) < n or n < 1:
        raise ValueError(
            f"{n} edits of known facts asked for, half of them with an inverse; the sample has {len(chosen)}"
        )
    return chosen


def probes(world: World, edit: Edit) -> pd.DataFrame:
    """Every fact of the world in its first wording, and every consequence of ``edit`` over two hops, in the last wording of both relations.

    Returns columns category, relation (of the fact asked; "" for compositions), prompt, old ("" if there was no answer), new.
    Raises ValueError if the world does not hold the fact that is edited.
    """
    subject, relation, target, old = (
        edit.subject,
        edit.relation,
        edit.target_new,
        world.lookup(edit.subject, edit.relation),
    )
    if old is None:
        raise ValueError(f"the world has no fact ({subject!r}, {relation!r}) to edit")
    rows = []
    changed = {(subject, relation): target} | (
        {(target, INVERSES[relation]): subject} if relation in INVERSES else {}
    )
    holds = lambda fact: (
        changed.get((fact.object, INVERSES.get(fact.relation)), fact.subject) == fact.subject
    )  # the inverse agrees

    def category(fact: Fact) -> str:
        if fact.subject == subject:
            return "same subject"
        if fact.relation == relation:
            return "same answer" if fact.object == old else "same relation"
        return "the objects" if fact.subject in (old, target) else "far"

    def phrase(*facts: tuple[str, str]) -> str:
        text = facts[0][0]
        for _, key in facts:
            text = world.relations[key].nouns[-1].replace("{}", text)
        return f"{text[0].upper()}{text[1:]} is"

    for place, new in changed.items():
        fact = Fact(*place, new)
        rows.append(
            (
                "the edit" if place == (subject, relation) else "logic",
                fact.relation,
                single_hop_cloze(world, fact),
                world.lookup(*place) or "",
                new,
            )
        )
    stay = [
        fact for fact in world.facts if (fact.subject, fact.relation) not in changed and holds(fact)
    ]
    rows += [
        (category(fact), fact.relation, single_hop_cloze(world, fact), fact.object, fact.object)
        for fact in stay
    ]
    rows += [
        ("aliasing", relation, edit.prompt.replace("{}", alias), old, target)
        for alias in world.aliases(subject)
    ]
    for fact in stay:
        if fact.subject == target and fact.object != subject:
            rows.append(
                (
                    "composition I",
                    "",
                    phrase((subject, relation), (target, fact.relation)),
                    world.lookup(old, fact.relation) or "",
                    fact.object,
                )
            )
        if fact.object == subject and fact.subject not in (old, target):
            rows.append(
                (
                    "composition II",
                    "",
                    phrase((fact.subject, fact.relation), (subject, relation)),
                    old,
                    target,
                )
            )
    table = pd.DataFrame(rows, columns=["category", "relation", "prompt", "old", "new"])
    table = table[
        (table.old != table.new) | ~table.category.map(CATEGORIES)
    ]  # a consequence that is as before says nothing
    return table.assign(category=pd.Categorical(table.category, list(CATEGORIES))).reset_index(
        drop=True
    )


def judge(
    lm: LM, world: World, edits: Sequence[Edit], updates: Mapping[str, Sequence[Update]]
) -> pd.DataFrame:
    """What each editor's ``updates[name][i]`` for ``edits[i]`` does to everything that the unedited model answers with the old answer.

    Returns a row an editor, edit and question: editor, edit (number), category, relation, change (whether the answer must change), right
    (whether it is the new answer, or still the old one). Questions without an old answer are asked after the edit only.
    Raises ValueError if no question is left.
    """
    asked = pd.concat(
        [probes(world, edit).assign(edit=i) for i, edit in enumerate(edits)], ignore_index=True
    )
    had = asked.loc[asked.old != "", ["prompt", "old"]].drop_duplicates()
    known = set(
        had[Questions(lm, had.prompt, had.old).said().numpy()].itertuples(index=False, name=None)
    )
    asked = asked[
        [old == "" or (prompt, old) in known for prompt, old in zip(asked.prompt, asked.old)]
    ]
    if asked.empty:
        raise ValueError(
            f"the model answers none of the {len(had)} questions before it is edited; there is nothing to judge"
        )
    parts = []
    for i, part in asked.groupby("edit"):
        questions, fixed = (
            Questions(lm, part.prompt, part.new),
            part[["edit", "category", "relation"]].assign(change=part.old != part.new),
        )
        parts += [
            fixed.assign(editor=name, right=questions.said(of[i]).numpy())
            for name, of in updates.items()
        ]
    return pd.concat(parts, ignore_index=True)


class Questions:
    """Prompts with their answers, asked again and again: what several begin with is computed once, as a tree of tokens a row.

    A token sees those before it on its own path only, at the position it has there, so ``said`` is ``evaluate.recall(...).correct``, in
    about two thirds of the time. Rows hold ``width`` tokens, or as many as the longest question has.
    Raises ValueError for no prompt, an empty prompt or answer, or unequal numbers.
    """

    def __init__(self, lm: LM, prompts: Sequence[str], answers: Sequence[str], width: int = 64):
        prompts, answers = list(prompts), list(answers)
        if not prompts or len(prompts) != len(answers):
            raise ValueError(
                f"{len(prompts)} prompts and {len(answers)} answers: give at least one, and as many of each"
            )
        heads, tails = (
            lm.tokenizer(prompts)["input_ids"],
            [lm.answer_ids(answer) for answer in answers],
        )
        if not all(heads):
            raise ValueError(
                f"prompt {heads.index([])} is empty; a model needs a token to go on from"
            )
        whole = [tuple(head + tail[:-1]) for head, tail in zip(heads, tails)]
        width, rows, labels = max(width, *map(len, whole)), [], []
        for i in sorted(range(len(whole)), key=whole.__getitem__):
            paths = [whole[i][: k + 1] for k in range(len(whole[i]))]
            if not rows or len(rows[-1].keys() | paths) > width:
                rows.append({})
            row = rows[-1]
            for path in paths:
                row.setdefault(path, len(row))
            labels += [
                (i, (len(rows) - 1) * width + row[paths[len(heads[i]) - 1 + t]], token)
                for t, token in enumerate(tails[i])
            ]
        self.lm, self.n, shape = lm, len(prompts), (len(rows), width)
        ids, position = np.zeros((2, *shape), dtype=np.int64)
        seen = np.tile(np.eye(width, dtype=bool), (len(rows), 1, 1))
        for r, row in enumerate(rows):
            for path, k in row.items():
                ids[r, k], position[r, k] = path[-1], len(path) - 1
                if path[:-1]:
                    seen[r, k] |= seen[r, row[path[:-1]]]
        self.ids, self.position, self.seen = map(torch.from_numpy, (ids, position, seen))
        self.question, self.place, self.token = torch.tensor(labels).T

    @torch.no_grad()
    def said(self, update: Update | None = None, batch_size: int = 32) -> Tensor:
        """Whether greedy decoding of the model, edited by ``update``, continues each prompt with its answer, (n,) bool, on the CPU."""
        lm, width, right = self.lm, self.ids.shape[1], torch.ones(self.n, dtype=torch.bool)
        part = lean(lm, 0, lm.n_layers - 1, width)
        with overlaid(lm, [] if update is None else [update]):
            for start in range(0, len(self.ids), batch_size):
                ids, position, seen = (
                    x[start : start + batch_size].to(lm.device)
                    for x in (self.ids, self.position, self.seen)
                )
                mask = torch.zeros(seen.shape, dtype=lm.dtype, device=lm.device).masked_fill_(
                    ~seen, torch.finfo(lm.dtype).min
                )
                hidden = part(
                    input_ids=ids,
                    attention_mask=mask[:, None],
                    position_ids=position,
                    use_cache=False,
                ).last_hidden_state
                mine = (self.place >= start * width) & (self.place < (start + len(ids)) * width)
                place, of = (self.place[mine] - start * width).unique(return_inverse=True)
                best = lm.head(hidden.flatten(0, 1)[place.to(lm.device)]).argmax(-1).cpu()
                right[self.question[mine][best[of] != self.token[mine]]] = False
        return right


def ripple_table(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Share of right answers in percent by category, and the facts damaged, both by edit: means over edits with their intervals.

    rows: ``ripple.judge``, with a column ``model`` if there are several. Returns editors, or (model, editor), x categories.
    """
    table = {}
    for name, part in rows.groupby(
        ["model", "editor"] if "model" in rows else "editor", sort=False
    ):
        shares, stay = (
            part.groupby(["edit", "category"], observed=False)["right"].mean().unstack(),
            part[~part.change],
        )
        table[name] = {
            category: interval(100 * shares[category], seed, bounds=SHARE) for category in shares
        }
        table[name] |= {"damaged facts": interval((~stay.right).groupby(stay.edit).sum(), seed)}
    return pd.DataFrame(table, dtype=object).T
