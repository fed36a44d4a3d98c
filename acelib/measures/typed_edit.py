"""One edit that somebody types: made in a model, with what the model answers before and after it.

Besides the fact, its other wordings and its consequences, the facts are asked that an edit damages
first: of the same relation, and about subjects whose names end in the same token; and of other
relations. Of each kind those count that the model answered before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp
from random import Random
from typing import Any, Literal

import pandas as pd

from ..editors.ace import ACE
from ..model.answers import generate, recall
from ..model.lm import LM, Part
from ..model.update import Update
from ..records import Chain, Edit, Fact, quoted
from ..study.endings import same_ending_facts
from ..world.cases import N_PREDECESSORS
from ..world.spoken import counts
from ..world.wording import multi_hop_cloze, single_hop
from ..world.world import World, unrelated_facts
from .probe import probes

STAY = ("same relation", "same last token", "other relations")  #: kinds of facts that must stay
TOLD = "multi-hop, told"  #: consequences that the editor was given as prompts
TRIED = 4  #: times as many facts are tried as are wanted, to find some that the model knows
ANSWER_TOKENS = 12


# ---------------------------------------------------------------------- the edit


def edit_of_prompt(
    world: World, subject: str, prompt: str, target: str, hops: Sequence[str] = ()
) -> Edit:
    """The edit of a prompt, with the relation and the old answer that the world knows for it.

    prompt: with {} for the subject.   hops: multi-hop prompts that end in the fact.
    Raises ValueError as ``Edit``, and for a hop that is empty.
    """
    relation = world.relation_of(prompt)
    old = world.lookup(subject, relation) if relation else None
    if any(not hop.strip() for hop in hops):
        raise ValueError("a multi-hop prompt is empty; it ends right before the new answer")
    return Edit(subject, prompt, target, old or "", relation=relation, hops=tuple(hops))


def with_hops(world: World, edit: Edit, avoid: Sequence[str] = ()) -> Edit:
    """The edit with multi-hop prompts: its own, or else some that the world has.

    "The sport of the spouse of X is", for up to half of the facts that lead to the subject and
    ``N_PREDECESSORS`` at most; the other half is left to be asked.
    avoid: texts that will be asked; no prompt is about a name that stands in them.
    """
    known = [
        fact
        for fact in (world.into(edit.subject) if edit.relation in world.relations else ())
        if not any(fact.subject in text for text in avoid)
    ]
    if edit.hops or not known:
        return edit
    n = min(N_PREDECESSORS, -(-len(known) // 2))
    new = Fact(edit.subject, edit.relation, edit.target_new)
    hops = tuple(multi_hop_cloze(world, Chain((before, new))) for before in known[-n:])
    return replace(edit, hops=hops)


def check_new(lm: LM, edit: Edit) -> None:
    """Raises ValueError if the model says the new object already."""
    if recall(lm, [edit.text], [edit.target_new]).correct[0]:
        raise ValueError(
            f"{lm.name} answers {edit.target_new!r} to {edit.text!r} already; choose another target"
        )


def unknown_names(lm: LM, world: World, edit: Edit) -> list[str]:
    """What of an edit the world does not have that a reference model learned from, in words.

    Empty for a model that learned from other texts: what those say, nobody here knows.
    """
    if lm.natural:
        return []
    names = (edit.subject.strip(), edit.target_new.strip())
    there = [name for name in names if name in world.entities or world.into(name)]
    missing = [f"no {quoted(name)}" for name in names if name not in there]
    worded = edit.relation in world.relations
    return missing + ["no sentence like the prompt"] * (not worded)


# ---------------------------------------------------------------------- what is asked


def questions(world: World, edit: Edit) -> pd.DataFrame:
    """What an ideal editor changes: columns kind ("fact", "paraphrase", "multi-hop", ``TOLD``),
    prompt, ideal.
    """
    rows = probes(world, edit, 0)
    told = pd.DataFrame(
        [(TOLD, hop.rstrip(), edit.target_new) for hop in edit.hops], columns=rows.columns
    )
    rest = rows[~rows.prompt.isin(told.prompt)]
    return pd.concat([rest, told], ignore_index=True)


def candidates(lm: LM, world: World, edit: Edit, n: int, seed: int = 0) -> dict[str, list[Fact]]:
    """Up to ``n`` facts of each kind of ``STAY`` that the edit leaves alone, none of two kinds."""
    rng = Random(seed)
    both = unrelated_facts(world, [edit], 2 * n, rng)
    # Rarest kind first: a fact of two kinds counts as the one that is harder to find.
    kinds = {
        "same last token": same_ending_facts(lm, world, [edit], n, rng),
        "same relation": [fact for fact in both if fact.relation == edit.relation],
        "other relations": [fact for fact in both if fact.relation != edit.relation],
    }
    taken: set[Fact] = set()
    found: dict[str, list[Fact]] = {}
    for kind, facts in kinds.items():
        free = [
            fact
            for fact in facts
            if fact not in taken and edit.subject not in (fact.subject, fact.object)
        ]
        found[kind] = free[:n]
        taken.update(free[:n])
    return {kind: found[kind] for kind in STAY}


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model answers before and after an edit."""

    #: columns kind, prompt, ideal, before, after, ok
    table: pd.DataFrame
    #: of each kind of ``STAY``: facts that the model knew, facts that were tried
    known: Mapping[str, tuple[int, int]]

    def share(self, *kinds: str) -> str:
        """How many of some kinds are ideal, "4 of 5"; "" if none was asked."""
        some = self.table[self.table.kind.isin(kinds)]
        return f"{int(some.ok.sum())} of {len(some)}" if len(some) else ""


def ask(lm: LM, world: World, edit: Edit, update: Update, n: int = 8, seed: int = 0) -> Answers:
    """The model's answers to all that is asked about an edit, before and after its update.

    n: facts of each kind that must stay.   An answer is ideal if it begins with the expected name
    or an alias of it (``world.spoken``).
    """
    changed = questions(world, edit)
    # 1. Before: the facts that must stay are among those that the model knows.
    tried = candidates(lm, world, edit, TRIED * n, seed) if n else {kind: [] for kind in STAY}
    stay = pd.DataFrame(
        [(kind, *single_hop(world, fact)) for kind in STAY for fact in tried[kind]],
        columns=changed.columns,
    )
    asked = pd.concat([changed, stay], ignore_index=True)
    asked = asked.assign(before=_answers(lm, list(asked.prompt)))
    knows = pd.Series(_good(world, asked.before, asked.ideal))
    first = knows.groupby(asked.kind).cumsum() <= n
    kept = asked[~asked.kind.isin(STAY) | (knows & first)].reset_index(drop=True)
    # 2. After.
    after = _answers(lm, list(kept.prompt), [update] * len(kept))
    kept = kept.assign(after=after, ok=_good(world, after, kept.ideal))
    counted = {kind: (int(knows[asked.kind == kind].sum()), len(tried[kind])) for kind in STAY}
    return Answers(kept, counted)


#: the end of a sentence; the period of an initial or of "D.C." is none
ENDS = re.compile(r"(?<![A-Z])\.(?=\s|$)")


def _answers(lm: LM, prompts: list[str], updates: Sequence[Update] | None = None) -> list[str]:
    """Greedy continuations up to the end of their sentence or line."""
    texts = generate(lm, prompts, updates, ANSWER_TOKENS, _has_ended) if prompts else []
    lines = [text.strip().partition("\n")[0].strip() for text in texts]
    return [ENDS.split(line, maxsplit=1)[0] for line in lines]


def _has_ended(text: str) -> bool:
    return "\n" in text.lstrip() or bool(ENDS.search(text.rstrip() if text[-1:].isspace() else ""))


def _good(world: World, texts: Sequence[str], ideals: Sequence[str]) -> list[bool]:
    """Whether answers begin with the expected names."""
    pairs = zip(texts, ideals, strict=True)
    return [counts(text, (ideal, *world.aliases(ideal))) for text, ideal in pairs]


# ---------------------------------------------------------------------- what happened


@dataclass(frozen=True)
class Outcome:
    """What became of an edit.

    edited: the model says the new object, and knows whom and what the edit is about; outside: it
    says it, but the world that it learned has no such name or relation; failed: it does not say it.
    """

    status: Literal["edited", "outside", "failed"]
    line: str


def outcome(lm: LM, world: World, edit: Edit, update: Update, answers: Answers) -> Outcome:
    """What happened, in one line: whether the new object is said and what else changed, or why it
    is not.
    """
    fact, unknown = answers.table.iloc[0], unknown_names(lm, world, edit)
    outside = f"the world that {lm.name} learned has {' and '.join(unknown)}"
    if not fact.ok:
        why = _why(lm, edit, update, fact)
        return Outcome("failed", f"not edited: {why}{f'; {outside}' if unknown else ''}")
    parts = {
        "paraphrases": answers.share("paraphrase"),
        "multi-hop consequences": answers.share("multi-hop"),
        "facts that must stay": answers.share(*STAY),
    }
    counted = [f"{share} {name}" for name, share in parts.items() if share]
    said = f"{lm.name} says {quoted(edit.target_new)} where it said {quoted(fact.before)}"
    told = f"edited: {said}; ideal are {', '.join(counted)}" if counted else f"edited: {said}"
    if unknown:
        return Outcome("outside", f"{told}; but {outside}, what it said before was a guess")
    return Outcome("edited", told)


def _why(lm: LM, edit: Edit, update: Update, fact: Any) -> str:
    """Why the new object is not said."""
    if not update.norm():
        return f"{update.editor or 'the editor'} changed no weight"
    p, q = (
        exp(recall(lm, [edit.text], [edit.target_new], some).logprob[0])
        for some in (None, [update])
    )
    verb = "still says" if fact.after == fact.before else "says"
    moved = "rose" if q > p else "did not rise"
    return (
        f"{lm.name} {verb} {quoted(fact.after)} to {quoted(edit.text)}; the probability of "
        f"{quoted(edit.target_new)} {moved}, from {p:.2g} to {q:.2g}"
    )


def sizes(lm: LM, update: Update, part: Part = "mlp") -> dict[int, tuple[float, float]]:
    """By layer: the Frobenius norm of the change, and how many times the weight's that is."""
    return {
        layer: (norm, norm / lm.weight(layer, part).norm().item())
        for layer, norm in update.norms(part).items()
    }


def takes_hops(editor: Any) -> bool:
    """Whether an editor writes multi-hop prompts."""
    return isinstance(editor, ACE) and any(
        "hops" in editor.prompts(stage) for stage in editor.stages
    )


def method_line(name: str, editor: Any, edits: Sequence[Edit], source: str) -> str:
    """Which editor runs: its layers, of ACE and IFMET also its stages and their prompts, and where
    its settings come from.
    """
    if not isinstance(editor, ACE):
        where = getattr(editor, "layers", ())
        plural = "s" * (len(where) > 1)
        return f"{name}{f' on layer{plural} {listed(where)}' if where else ''}; {source}"
    stages = []
    for stage in editor.stages:
        n_hops = sum(len(edit.hops) for edit in edits) if "hops" in editor.prompts(stage) else 0
        kinds = [f"{len(edits)} single-hop"] if "single" in editor.prompts(stage) else []
        kinds += [f"{n_hops} multi-hop"] if "hops" in editor.prompts(stage) else []
        writer = editor.writer(stage)
        stages.append(
            f"{stage} layers {listed(writer.layers)} at the "
            f"{'prompt' if writer.position == 'last' else 'subject'}'s last token by "
            f"{' and '.join(kinds)} prompt{'' if kinds == ['1 single-hop'] else 's'}"
        )
    line = f"{name} writes {', then '.join(stages)}; {source}"
    if takes_hops(editor) and not any(edit.hops for edit in edits):
        line += "; without multi-hop prompts it is not the published method: give some with --hop"
    return line


def listed(layers: Sequence[int]) -> str:
    """Layers as options take them: "4,5,6"."""
    return ",".join(map(str, layers))
