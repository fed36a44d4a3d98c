"""What a model knows, asked one fact, chain and edit at a time: single facts in every wording,
multi-hop chains, the same answer in another context, and edits made where the model keeps facts.

Every answer is a row of its bar (the name of a measurement), the number of prompts that were
``asked`` and of those answered ``right``; a share is the sum of one over the sum of the other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from operator import attrgetter
from typing import Any

import torch

from ..attribution.interventions import CausalTrace, causal_trace
from ..attribution.layers import ROLES, locate, questions
from ..editing.moments import second_moments
from ..editors.memit import MEMIT
from ..editors.rome import ROME
from ..model.answers import generate, known_items, recall
from ..model.lm import LM
from ..model.update import Update
from ..records import Chain, Edit, Fact
from ..study.endings import same_ending_facts
from ..study.experiments import depends
from ..study.rows import Experiment, Series
from ..world.cases import single_edits
from ..world.text import documents
from ..world.wording import (
    few_shot,
    first_answer,
    held_out,
    matches,
    multi_hop_cloze,
    multi_hop_question,
    parse_answer,
    single_hop,
    single_hop_cloze,
)
from ..world.world import World, sample_chains, unrelated_facts

Answers = list[dict[str, Any]]  #: rows of one item: bar, right, asked
N_CONTEXTS = 300  #: facts that are asked behind another sentence
N_UNRELATED = 10  #: facts per edit whose answers should stay
N_QUESTIONS = 48  #: that locate layers
EDITORS = ("rome", "memit")
WEIGHT = 100.0  #: lambda of MEMIT, for every model; chosen on edits of seed 1, not those judged


def shares(answers: Iterable[Answers]) -> dict[str, float]:
    """Share of right answers by bar, between 0 and 1."""
    right: dict[str, int] = {}
    asked: dict[str, int] = {}
    for row in (row for rows in answers for row in rows):
        right[row["bar"]] = right.get(row["bar"], 0) + row["right"]
        asked[row["bar"]] = asked.get(row["bar"], 0) + row["asked"]
    return {bar: right[bar] / asked[bar] for bar in right}


def _row(bar: str, right: Sequence[bool]) -> dict[str, Any]:
    return {"bar": bar, "right": sum(map(bool, right)), "asked": len(right)}


# ------------------------------------------------------------------------------------ single facts


def facts(world: World, n: int | None = None, seed: int = 0) -> list[Fact]:
    """A sample of facts; None: all of them."""
    return list(world.facts) if n is None else random.Random(seed).sample(world.facts, n)


def fact_answers(lm: LM, world: World, facts: Sequence[Fact]) -> list[Answers]:
    """Prompts of single facts that are answered exactly: ``cloze`` in every wording, ``qa`` in
    every form of question; ``cloze_unseen`` and ``qa_unseen``, the one wording of each fact that
    training text never used for it.
    """
    rows: list[Answers] = [[] for _ in facts]
    for name, at, prompt in (("cloze", 0, "{}"), ("qa", 1, "Q: {} A:")):
        asked = [
            (i, template) for i, fact in enumerate(facts) for template in _wordings(world, fact)[at]
        ]
        prompts = [prompt.format(template.format(facts[i].subject)) for i, template in asked]
        right = recall(lm, prompts, [facts[i].object for i, _ in asked]).correct
        told = list(zip((template for _, template in asked), right, strict=True))
        for fact, mine, row in zip(facts, _by_owner(asked, told, facts), rows, strict=True):
            unseen = [ok for template, ok in mine if template == held_out(world, fact)[at]]
            row += [_row(name, [ok for _, ok in mine]), _row(f"{name}_unseen", unseen)]
    return rows


def _by_owner(owned: Sequence[tuple], values: Iterable, owners: Sequence) -> list[list]:
    """Values by the number of their owner, with which each of ``owned`` begins."""
    groups: list[list] = [[] for _ in owners]
    for (i, *_), value in zip(owned, values, strict=True):
        groups[i].append(value)
    return groups


def _wordings(world: World, fact: Fact) -> tuple[Sequence[str], Sequence[str]]:
    relation = world.relations[fact.relation]
    return relation.cloze, relation.questions


# ------------------------------------------------------------------------------------------ chains


def drawn_chains(world: World, n: int, seed: int = 0, split: str = "evaluation") -> list[Chain]:
    """``n`` chains of two, of three and of four facts."""
    rng = random.Random(f"{seed}/{split}")
    return [chain for hops in (2, 3, 4) for chain in sample_chains(world, split, hops, n, rng)]


def chain_answers(lm: LM, world: World, chains: Sequence[Chain], n_shots: int = 3) -> list[Answers]:
    """Chains that are answered: ``cot_n`` few-shot with a chain of thought, ``implicit_n`` as one
    statement and ``direct_n`` as one question, both answered at once (up to three facts).
    """
    rows: list[Answers] = [[] for _ in chains]
    for n in (2, 3, 4):
        places = [i for i, chain in enumerate(chains) if len(chain.facts) == n]
        if not places:
            continue
        some = [chains[i] for i in places]
        answers = multi_hop(lm, [_few_shot(world, chain, n_shots) for chain in some])
        right = {f"cot_{n}": [_says(world, *pair) for pair in zip(answers, some, strict=True)]}
        if n < 4:
            goals = [chain.answer for chain in some]
            statements = [multi_hop_cloze(world, chain) for chain in some]
            asked = [f"Q: {multi_hop_question(world, chain)} A:" for chain in some]
            right[f"implicit_{n}"] = recall(lm, statements, goals).correct
            right[f"direct_{n}"] = recall(lm, asked, goals).correct
        for bar, oks in right.items():
            for i, ok in zip(places, oks, strict=True):
                rows[i].append(_row(bar, [ok]))
    return rows


def _few_shot(world: World, chain: Chain, n_shots: int) -> str:
    return few_shot(world, multi_hop_question(world, chain), n_shots=n_shots)


def _says(world: World, answer: str, chain: Chain) -> bool:
    return matches(answer, (chain.answer, *world.aliases(chain.answer)))


def multi_hop(
    lm: LM,
    prompts: Sequence[str],
    updates: Sequence[Update | None] | None = None,
    max_new_tokens: int = 80,
) -> list[str]:
    """The answers a model gives to few-shot chain-of-thought prompts, greedily: (n,) texts after
    "Answer:", empty where it gave none.
    """
    texts = generate(lm, prompts, updates, max_new_tokens, first_answer)
    return [parse_answer(text) for text in texts]


# ---------------------------------------------------------------------------------------- contexts


def context_pairs(world: World, n: int = N_CONTEXTS, seed: int = 0) -> list[tuple[Fact, Fact]]:
    """``n`` facts, each with another one that is to stand before it."""
    rng = random.Random(seed)
    asked, before = rng.sample(world.facts, n), rng.sample(world.facts, n)
    return list(zip(asked, before, strict=True))


def context_answers(lm: LM, world: World, pairs: Sequence[tuple[Fact, Fact]]) -> list[Answers]:
    """``robust``: prompts that are answered the same, right or wrong, when a true, unrelated
    sentence precedes them.
    """

    def cloze(fact: Fact) -> str:
        return world.relations[fact.relation].cloze[0].format(fact.subject)

    goals = [fact.object for fact, _ in pairs]
    bare = recall(lm, [cloze(fact) for fact, _ in pairs], goals).correct
    prompts = [f"{cloze(other)} {other.object}. {cloze(fact)}" for fact, other in pairs]
    after = recall(lm, prompts, goals).correct
    return [[_row("robust", [a == b])] for a, b in zip(bare, after, strict=True)]


# ------------------------------------------------------------------------------------------- edits


@dataclass(frozen=True)
class Trial:
    """An edit, and prompts and answers of facts that it should leave alone."""

    edit: Edit
    others: tuple[tuple[str, str], ...]
    endings: tuple[tuple[str, str], ...]  #: of subjects that end in the same token


def trials(
    lm: LM, world: World, n: int, n_unrelated: int = N_UNRELATED, seed: int = 0
) -> list[Trial]:
    """Up to ``n`` edits of facts that the model knows, and facts that it knows and should keep: of
    ``n_unrelated`` half are of the edited relation, and half as many again are about subjects of
    like names.
    """
    pool, rng = single_edits(world, 2 * n, seed), random.Random(f"{seed}/editing")
    edits = known_items(lm, pool, attrgetter("text", "target_true"))[:n]
    # What a model never knew it cannot lose: twice as many are drawn, and those known are asked.
    near_far = [unrelated_facts(world, [edit], 2 * n_unrelated, rng) for edit in edits]
    alike = [same_ending_facts(lm, world, [edit], n_unrelated, rng) for edit in edits]
    drawn = dict.fromkeys(fact for facts in (*near_far, *alike) for fact in facts)
    known = set(known_items(lm, list(drawn), partial(single_hop, world)))
    half = n_unrelated // 2

    def asked(facts: Sequence[Fact]) -> tuple[tuple[str, str], ...]:
        return tuple(single_hop(world, fact) for fact in facts if fact in known)[:half]

    return [
        Trial(
            edit,
            others=asked([fact for fact in facts if fact.relation == edit.relation])
            + asked([fact for fact in facts if fact.relation != edit.relation]),
            endings=asked(same),
        )
        for edit, facts, same in zip(edits, near_far, alike, strict=True)
    ]


def early_site(
    lm: LM, world: World, n_facts: int = 16, n_noise: int = 4, seed: int = 0
) -> tuple[int, ...]:
    """Layers whose state at the subject's last token carries the fact: put back clean into a run
    with a noisy subject, it restores, in the mean over known facts, at least half of what the noise
    took from the answer's probability. Source: ROME, Section 2.1.
    """
    drawn = random.Random(f"{seed}/site").sample(world.facts, 2 * n_facts)
    known = known_items(lm, drawn, partial(single_hop, world))[:n_facts]
    if not known:
        return ()
    traces = [fact_trace(lm, world, fact, n_noise=n_noise, seed=seed) for fact in known]
    restored = torch.stack([t.restored[ROLES.index("last subject")] for t in traces]).mean(0)
    clean = sum(t.clean for t in traces) / len(traces)
    corrupted = sum(t.corrupted for t in traces) / len(traces)
    return tuple((restored >= (clean + corrupted) / 2).nonzero()[:, 0].tolist())


def written_site(lm: LM, world: World, seed: int = 0) -> tuple[int, ...]:
    """The first three layers of the early site, but layer 0, which extends the embedding."""
    return tuple(layer for layer in early_site(lm, world, seed=seed) if layer > 0)[:3]


def edit_answers(
    lm: LM, world: World, trials: Sequence[Trial], site: Sequence[int], moments: Any
) -> list[Answers]:
    """``rome_...`` and ``memit_...`` efficacy, paraphrase, specificity and endings of known facts,
    edited one by one at the subject's last token: MEMIT in all layers of ``site``, ROME in the last
    of them.

    efficacy, paraphrase: edited facts (their other wordings) whose new object is said; specificity:
    other facts that keep their answer; endings: those about subjects that end in the same token.
    Nothing is right where there is no site.
    """
    names = ("efficacy", "paraphrase", "specificity", "endings")
    if not site:
        bars = [f"{editor}_{name}" for editor in EDITORS for name in names]
        return [[{"bar": bar, "right": 0, "asked": 1} for bar in bars] for _ in trials]
    rows: list[Answers] = [[] for _ in trials]
    for editor, settings in _editors(tuple(site)).items():
        updates = settings.each(lm, [[trial.edit] for trial in trials], moments)
        for name in names:
            groups = [_asked_of(trial, name) for trial in trials]
            asked = [(i, *pair) for i, group in enumerate(groups) for pair in group]
            owners, prompts, goals = zip(*asked, strict=True)
            right = recall(lm, prompts, goals, [updates[i] for i in owners]).correct
            for row, mine in zip(rows, _by_owner(asked, right, trials), strict=True):
                row.append(_row(f"{editor}_{name}", mine))
    return rows


def _editors(site: tuple[int, ...]) -> dict[str, Any]:
    """The same settings for every model, but for the layers; targets are searched as published, but
    that ROME's search has no decay, which holds any push back where an FFN's output is short.
    """
    free = replace(ROME.objective, decay=0.0)
    return {
        "rome": ROME(layer=site[-1], n_prefixes=5, prefix_lengths=(10,), objective=free),
        "memit": MEMIT(layers=site, weight=WEIGHT, n_prefixes=2),
    }


def _asked_of(trial: Trial, name: str) -> Sequence[tuple[str, str]]:
    """Prompts and answers that one measurement of an edit asks for."""
    edit = trial.edit
    if name == "efficacy":
        return [(edit.text, edit.target_new)]
    if name == "paraphrase":
        return [(text.replace("{}", edit.subject), edit.target_new) for text in edit.paraphrases]
    return trial.endings if name == "endings" else trial.others


# ---------------------------------------------------------------------------------- causal traces


def fact_trace(lm: LM, world: World, fact: Fact, n_noise: int = 10, seed: int = 0) -> CausalTrace:
    """The causal trace of a fact in its canonical wording."""
    prompt = single_hop_cloze(world, fact)
    return causal_trace(lm, prompt, fact.subject, fact.object, n_noise=n_noise, seed=seed)


def known_of(lm: LM, world: World, category: str, n: int, seed: int = 0) -> list[Fact]:
    """The first ``n`` facts of a category, in an order drawn, that the model knows."""
    facts = list(world.facts_of(category))
    random.Random(f"{seed}/{category}").shuffle(facts)
    known: list[Fact] = []
    for start in range(0, len(facts), 64):  # few are needed, most are known
        known += known_items(lm, facts[start : start + 64], partial(single_hop, world))
        if len(known) >= n:
            break
    return known[:n]


def trace_rows(lm: LM, world: World, category: str, n: int, seed: int = 0) -> list[dict]:
    """One row per fact and token role: probabilities of the answer, ``clean``, ``corrupted``, and
    with the clean state put back after each layer (columns "0", "1", ...; None without a token).
    """
    rows = []
    for fact in known_of(lm, world, category, n, seed):
        trace = fact_trace(lm, world, fact, seed=seed)
        base = {"fact": single_hop_cloze(world, fact), "clean": trace.clean}
        for role, by_layer in zip(ROLES, trace.restored.tolist(), strict=True):
            restored = {str(i): None if p != p else p for i, p in enumerate(by_layer)}
            rows.append({**base, "corrupted": trace.corrupted, "role": role, **restored})
    return rows


# ------------------------------------------------------------------------------------- experiments


@dataclass(frozen=True, eq=False)
class _Host:
    """A model whose early site and second moments are found when an edit first needs them."""

    lm: LM
    world: World
    seed: int

    @cached_property
    def site(self) -> tuple[int, ...]:
        """The layers that are edited: ``written_site``."""
        return written_site(self.lm, self.world, self.seed)

    @cached_property
    def moments(self):
        return second_moments(self.lm, documents(self.world, 2000), self.site)

    def answers(self, trials: list[Trial]) -> list[Answers]:
        moments = self.moments if self.site else None
        return edit_answers(self.lm, self.world, trials, self.site, moments)


def experiment(
    hosts: Mapping[str, LM], world: World, *, n_facts: int, n_chains: int, seed: int
) -> Experiment:
    """Answers to single facts (all, if ``n_facts`` is 0), to chains, and in other contexts."""
    parts: dict[str, tuple[dict[str, Any], Callable]] = {
        "facts": (_named(facts(world, n_facts or None, seed), _fact_id), fact_answers),
        "chains": (_named(drawn_chains(world, n_chains, seed), _chain_id), chain_answers),
        "contexts": (_named(context_pairs(world, seed=seed), _pair_id), context_answers),
    }
    series = [
        _series(name, part, lm, world, items, partial(ask, lm, world), chunk=400)
        for name, lm in hosts.items()
        for part, (items, ask) in parts.items()
    ]
    return Experiment("00_world_known", tuple(series))


def edits(hosts: Mapping[str, LM], world: World, *, n_edits: int, seed: int) -> Experiment:
    """Answers after single edits by ROME and MEMIT."""
    series = []
    for name, lm in hosts.items():
        items = _named(trials(lm, world, n_edits, seed=seed), _trial_id)
        answers = _Host(lm, world, seed).answers
        series.append(_series(name, "edits", lm, world, items, answers, seed, chunk=40))
    return Experiment("00_world_edits", tuple(series), tolerances={"right": (0.0, 1.0)})


def traces(hosts: Mapping[str, LM], world: World, *, n_traced: int, seed: int) -> Experiment:
    """Causal traces of known facts of every category."""
    n, names = n_traced // len(world.categories()), list(world.categories())
    items: dict[str, Any] = {name: {"category": name, "facts": n} for name in names}
    series = []
    for name, lm in hosts.items():

        def compute(part: list[dict], lm: LM = lm) -> list[list[dict]]:
            return [trace_rows(lm, world, of["category"], of["facts"], seed) for of in part]

        series.append(_series(name, "traces", lm, world, items, compute, seed, chunk=1))
    return Experiment("00_world_traces", tuple(series), rtol=1e-3, atol=1e-5)


def sites(hosts: Mapping[str, LM], world: World, *, seed: int) -> Experiment:
    """Located layers, best first: the early site by causal tracing, query and value layers by
    attribution.
    """
    series = []
    for name, lm in hosts.items():

        def compute(part: list[dict], lm: LM = lm) -> list[list[dict]]:
            return [[site_row(lm, world, of["questions"], seed)] for of in part]

        items = {"layers": {"questions": N_QUESTIONS}}
        series.append(_series(name, "sites", lm, world, items, compute, seed, chunk=1))
    return Experiment("00_world_sites", tuple(series))


def site_row(lm: LM, world: World, n_questions: int, seed: int = 0) -> dict[str, str]:
    """Early site, query and value layers, each as text."""
    prompts, answers = zip(*questions(world, n_questions, seed), strict=True)
    found = locate(lm, prompts, answers, 3, 3)
    layers = {
        "early": early_site(lm, world, seed=seed),
        "query": found.query_layers,
        "value": found.value_layers,
    }
    return {name: ", ".join(map(str, some)) for name, some in layers.items()}


def _series(
    name: str,
    part: str,
    lm: LM,
    world: World,
    items: Mapping[str, object],
    compute: Callable[[list], list[list[dict]]],
    seed: int = 0,
    chunk: int = 24,
) -> Series:
    settings = {**depends(lm, world, None, None), "seed": str(seed)}
    return Series({"model": name, "part": part}, settings, (__name__,), items, compute, chunk)


def _named(items: Sequence, name: Callable[[Any], str]) -> dict[str, Any]:
    """Items by their names; a name that occurs again is numbered."""
    named: dict[str, Any] = {}
    for item in items:
        key, n = name(item), 1
        while key in named:
            n += 1
            key = f"{name(item)} ({n})"
        named[key] = item
    return named


def _fact_id(fact: Fact) -> str:
    return f"{fact.subject} | {fact.relation}"


def _chain_id(chain: Chain) -> str:
    return " | ".join([chain.subject, *chain.path])


def _pair_id(pair: tuple[Fact, Fact]) -> str:
    return f"{_fact_id(pair[0])} after {_fact_id(pair[1])}"


def _trial_id(trial: Trial) -> str:
    return f"{trial.edit.text} {trial.edit.target_new}"
