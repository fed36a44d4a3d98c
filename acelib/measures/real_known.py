"""What a pretrained model knows of the world, by relation and by how it is asked.

Every fact is asked in three forms: as a cloze, as a cloze behind four statements of its relation,
and as a question behind four questions of its relation. An answer counts by the rule of
``world.spoken``. What the model says to the bare cloze is what it *knows* in the rest of the
chapter: only there can an edit be judged by the same prompt without demonstrations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from random import Random

import pandas as pd

from ..model.lm import LM
from ..records import Fact
from ..study.experiments import depends
from ..study.free import said
from ..study.rows import Experiment, Series, table
from ..study.stats import SHARE, Mean, interval
from ..world.shots import question_after, statements_before
from ..world.spoken import counts, is_bare
from ..world.wording import single_hop_cloze
from ..world.world import World, chains

NAME = "09_real_model_known"
CLOZE = "cloze"
#: how a fact is asked
FORMS: dict[str, Callable[[World, Fact], str]] = {
    CLOZE: single_hop_cloze,
    "cloze, 4 statements before": statements_before,
    "question, 4 questions before": question_after,
}
COMMONEST = "always the commonest"  #: object of the relation: what guessing would get


def experiment(hosts: Mapping[str, LM], world: World, *, n_facts: int, seed: int) -> Experiment:
    """Answers to facts in every form; n_facts: how many, drawn with ``seed``; 0 for all.

    Rows, one per form: relation, form, said, right, bare (the world's own name).
    """
    facts = list(world.facts)
    some = facts if not n_facts else Random(seed).sample(facts, min(n_facts, len(facts)))
    items = {f"{fact.subject} | {fact.relation}": fact for fact in sorted(some, key=_by_relation)}
    series = tuple(
        Series(
            names={"model": name},
            depends=depends(lm, world, None, None),
            code=(__name__,),
            items=items,
            compute=partial(answers, lm, world),
            chunk=128,
        )
        for name, lm in hosts.items()
    )
    # An answer may turn where two words are level; elsewhere it may turn on another machine.
    return Experiment(NAME, series, tolerances={"right": (0.0, 1.0), "bare": (0.0, 1.0)})


def _by_relation(fact: Fact) -> str:
    """Neighbours share their demonstrations, which are read once."""
    return fact.relation


def answers(lm: LM, world: World, facts: Sequence[Fact]) -> list[list[dict]]:
    """The rows of each fact."""
    rows: list[list[dict]] = [[] for _ in facts]
    for form, prompt in FORMS.items():
        texts = said(lm, [prompt(world, fact) for fact in facts])
        for row, fact, text in zip(rows, facts, texts, strict=True):
            names = (fact.object, *world.aliases(fact.object))
            right, bare = counts(text, names), is_bare(text, fact.object)
            labels = dict(relation=fact.relation, form=form, said=text)
            row.append({**labels, "right": int(right), "bare": int(bare)})
    return rows


def known_worlds(
    hosts: Mapping[str, LM], world: World, *, n_facts: int, seed: int
) -> dict[str, World]:
    """For each model the world with the facts only that it says to the bare cloze.

    Its rows are read, or computed. Raises ValueError for a model that knows none.
    """
    return {
        name: _known(name, lm, lm.fingerprint, world, n_facts, seed) for name, lm in hosts.items()
    }


@lru_cache(maxsize=8)
def _known(name: str, lm: LM, fingerprint: str, world: World, n_facts: int, seed: int) -> World:
    """``known_worlds`` of one model, the same object whenever it is asked for."""
    rows = table(experiment({name: lm}, world, n_facts=n_facts, seed=seed))
    return known_world(world, rows, name)


def known_world(world: World, rows: pd.DataFrame, name: str) -> World:
    """The world with the facts only that the rows of one model say are known."""
    right = set(rows[(rows.form == CLOZE) & (rows.right == 1)].item)
    facts = tuple(fact for fact in world.facts if f"{fact.subject} | {fact.relation}" in right)
    if not facts:
        raise ValueError(f"{name} knows none of the {rows.item.nunique()} facts that it was asked")
    return replace(world, facts=facts)


# ---------------------------------------------------------------- what the rows say


def guesses(world: World, items: Sequence[str]) -> dict[str, int]:
    """For each asked fact 1 if its object is the commonest of its relation among them."""
    pairs = [item.split(" | ") for item in items]
    objects = [world.lookup(subject, relation) for subject, relation in pairs]
    frame = pd.DataFrame({"relation": [r for _, r in pairs], "object": objects})
    top = frame.groupby("relation")["object"].agg(lambda some: some.mode()[0])
    hits = frame["object"] == frame.relation.map(top)
    return dict(zip(items, hits.astype(int), strict=True))


def by_relation(rows: pd.DataFrame, world: World, least: int = 15) -> pd.DataFrame:
    """Percent of the facts of each relation that one model answers, by form, the best known first,
    then all; and what always saying the relation's commonest object would get.

    rows: of one model.   least: facts that a relation must have to be shown by itself.
    """
    guessed = guesses(world, list(dict.fromkeys(rows.item)))
    wide = rows.pivot_table(index="item", columns="form", values="right")[list(FORMS)]
    wide[COMMONEST] = wide.index.map(guessed)
    wide["relation"] = [item.split(" | ")[1] for item in wide.index]
    columns = [*FORMS, COMMONEST]
    groups = wide.groupby("relation")
    shown = 100 * groups[columns].mean()[groups.size() >= least]
    shown.insert(0, "facts", groups.size())
    shown = shown.sort_values(CLOZE, ascending=False)
    whole = {"facts": len(wide), **(100 * wide[columns].mean())}
    labels = {key: world.relations[key].label for key in shown.index}
    shown = pd.concat([shown.rename(index=labels), pd.DataFrame([whole], index=["all relations"])])
    return shown.astype({"facts": int})


def shares(rows: pd.DataFrame, world: World, seed: int = 0) -> dict[str, dict[str, Mean]]:
    """Percent of the facts that each model answers, by form, by the rule ("right"), by the bare
    name ("bare"), and of facts whose object is not their relation's commonest ("uncommon").
    """
    found: dict[str, dict[str, Mean]] = {}
    for model, part in rows.groupby("model", sort=False):
        guessed = guesses(world, list(dict.fromkeys(part.item)))
        rare = part.item.map(guessed) == 0
        for form, some in part.groupby("form", sort=False):
            uncommon = some[rare.loc[some.index]]
            for name, values in (
                (f"{form}, right", some.right),
                (f"{form}, bare", some.bare),
                (f"{form}, uncommon", uncommon.right),
            ):
                found.setdefault(str(model), {})[name] = interval(
                    list(100 * values), seed, bounds=SHARE
                )
    return found


def sentence_numbers(
    rows: pd.DataFrame, world: World, known: Mapping[str, World], seed: int
) -> dict[str, dict]:
    """What the sentences say, by model: "facts" asked, "known" of them, "shares", "chains" of two
    and of three known facts.
    """
    percent = shares(rows, world, seed)
    return {
        model: {
            "facts": rows[rows.model == model].item.nunique(),
            "known": len(of.facts),
            "shares": percent[model],
            "chains": {n: sum(1 for _ in chains(of, n)) for n in (2, 3)},
        }
        for model, of in known.items()
    }
