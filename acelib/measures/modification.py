"""Erasing and updating a fact through its neurons: Query Localization, Sections 2.2 and 3.3.

Of one query of a fact, drawn with the fact as seed, the neurons of that query (N_i) are changed, of
all its wordings (N_g), or those that are consistent over the wordings (CAS); beside them two
controls, as many of N_g as N_i has, those of highest mean attribution, and random ones, as many in
every layer. Reliability is asked with the query, generalization with the other wordings, locality
with other facts that the model knows, and perplexity over texts drawn with the fact as seed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import exp
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attribution.consistency import consistency_aware, random_set, strongest
from ..attribution.integrated import Attribution, knowledge_neurons
from ..editors.kn import KN, value_update
from ..model.answers import recall
from ..model.lm import LM
from ..model.states import position_ids
from ..model.update import Update, overlaid
from ..records import Edit, quoted
from ..study.rows import Experiment, Series
from ..world.paraphrases import Reworded, answers_of
from ..world.text import documents
from ..world.world import World, untouched
from .localization import CHAPTER, SHARE, Facts, asked, attributions, moved

ERASURE, UPDATE = "Erasure", "Update"
LOCAL, GLOBAL, CAS = "N_i", "N_g", "CAS"
CUT, RANDOM = "N_g, as many", "Random"
SETS = (LOCAL, GLOBAL, CAS, CUT, RANDOM)
OLD, NEW = 2.0, 2.0  #: lambda_1, lambda_2
EDITOR = KN(neurons="consistent", old=OLD, new=NEW)  #: beta and cut
N_TEXTS, N_DRAWN, N_TOKENS = 200, 5, 128  #: texts there are, of a fact, tokens of each at most
METRICS = ("rel", "gen", "loc", "avg", "ppl")
N_UNRELATED = 20  #: facts per fact whose answers should stay
#: a neuron at the threshold may change an answer
TOLERANCES = moved(METRICS) | dict.fromkeys(("rel", "gen", "loc", "avg"), (0.0, 1.0))


@dataclass(frozen=True, eq=False)
class Bench:
    """Facts to change, and what is asked of a changed model."""

    of: Facts
    texts_from: str
    n_unrelated: int
    seed: int

    @cached_property
    def texts(self) -> list[str]:
        """Texts whose perplexity is measured. Raises ValueError for a file without ``N_DRAWN``."""
        if not self.texts_from:
            return documents(self.of.world, N_TEXTS, self.seed + 1)
        try:
            lines = Path(self.texts_from).read_text("utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise ValueError(f"texts {quoted(self.texts_from)} cannot be read: {error}") from None
        lines = [line for line in lines if line.strip()]
        if len(lines) < N_DRAWN:
            raise ValueError(
                f"texts {quoted(self.texts_from)} hold {len(lines)} entries, one a line; at least "
                f"{N_DRAWN} are needed"
            )
        return lines

    def new_answer(self, fact: Reworded) -> str:
        """Another answer of the fact's relation. Raises ValueError if there is none."""
        others = [a for a in answers_of(self.of.pool, fact.fact.relation) if a != fact.fact.object]
        if not others:
            raise ValueError(f"relation {fact.fact.relation!r} has one answer only")
        return self._rng("answer", fact).choice(others)

    def unrelated(self, fact: Reworded, new: str) -> list[Reworded]:
        """Facts that the change must leave alone and the model knows in their first wording: half
        of the relation, half of others, as far as there are so many among three times as many.
        """
        edit = Edit(fact.fact.subject, "{}", new, fact.fact.object, relation=fact.fact.relation)
        stays, rng = untouched(self.of.world, [edit]), self._rng("unrelated", fact)
        chosen = []
        for same in (True, False):
            some = [
                one
                for one in self.of.pool
                if (one.fact.relation == fact.fact.relation) == same
                and one.fact.subject != fact.fact.subject
                and stays(one.fact)
            ]
            some = rng.sample(some, min(3 * self.n_unrelated // 2, len(some)))
            right = recall(
                self.of.lm, [one.prompts[0] for one in some], [one.fact.object for one in some]
            ).correct
            known = [one for one, ok in zip(some, right, strict=True) if ok]
            chosen += known[: self.n_unrelated // 2]
        return chosen

    def query(self, fact: Reworded) -> int:
        """The wording that is changed and asked for reliability."""
        return self._rng("query", fact).randrange(len(fact.prompts))

    def drawn_texts(self, fact: Reworded) -> list[str]:
        return self._rng("texts", fact).sample(self.texts, N_DRAWN)

    def _rng(self, what: str, fact: Reworded) -> random.Random:
        return random.Random(f"{self.seed}/{what}/{fact.name}")


def chosen_sets(found: Tensor, i: int, share: float = SHARE, seed: int = 0) -> dict[str, Tensor]:
    """``SETS`` of wording i from the attributions (k, l, m) of all wordings."""
    sets = knowledge_neurons(found, share)
    n = int(sets[i].sum())
    return {
        LOCAL: sets[i],
        GLOBAL: sets.any(0),
        CAS: consistency_aware(found, EDITOR.beta, EDITOR.cut),
        CUT: strongest(found.mean(0), n, sets.any(0)),
        RANDOM: random_set(sets[i], seed),
    }


@torch.no_grad()
def perplexities(lm: LM, texts: Sequence[str], updates: Sequence[Update | None]) -> list[float]:
    """Perplexity of all texts together, of the model with each of the updates.

    Of the first ``N_TOKENS`` tokens of each text. Raises ValueError for no text of two tokens.
    """
    rows = [lm.tokenizer(text)["input_ids"][:N_TOKENS] for text in texts]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise ValueError("no text has two tokens; perplexity needs one to go on from")
    ids, mask = lm.pad(rows)
    found = []
    for update in updates:  # one model after the other: texts are long, models few
        with overlaid(lm, [update] if update is not None else []):
            hidden = lm.stack(
                input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False
            ).last_hidden_state
        scores = lm.head(hidden[:, :-1]).float().log_softmax(-1)
        losses = -scores.gather(-1, ids[:, 1:, None])[..., 0] * mask[:, 1:]
        found.append(exp(float(losses.double().sum() / mask[:, 1:].sum())))
    return found


def rows_of(bench: Bench, fact: Reworded, how: Attribution, operation: str) -> list[dict[str, Any]]:
    """A row for each of ``SETS``: size; rel, gen, loc, avg (shares; after an erasure, of answers
    that are gone); ppl (relative change of perplexity).

    Source: Query Localization, Section 2.2, Eq. 23-25.
    """
    lm, i, new = bench.of.lm, bench.query(fact), bench.new_answer(fact)
    sets = chosen_sets(attributions(lm, fact, how)[0], i, seed=bench.seed)
    # 1. The changed models.
    old = fact.fact.object
    change = NEW * _embedded(lm, new) - OLD * _embedded(lm, old)
    updates = [
        value_update(lm, of, None if operation == ERASURE else change) for of in sets.values()
    ]
    # 2. What they say to the fact's wordings and to other facts.
    others = bench.unrelated(fact, new)
    said = old if operation == ERASURE else new
    asked_of = [(prompt, said) for prompt in fact.prompts]
    asked_of += [(one.prompts[0], one.fact.object) for one in others]
    prompts, answers = zip(*asked_of * len(updates), strict=True)
    owners = [update for update in updates for _ in asked_of]
    right = torch.tensor(recall(lm, prompts, answers, owners).correct).double()
    right = right.unflatten(0, (len(updates), len(asked_of)))
    before, *after = perplexities(lm, bench.drawn_texts(fact), [None, *updates])
    # 3. Shares; an answer that is gone is a success of an erasure.
    k, rows = len(fact.prompts), []
    for (name, of), own, ppl in zip(sets.items(), right, after, strict=True):
        success = 1 - own[:k] if operation == ERASURE else own[:k]
        rel = float(success[i])
        gen = (float(success.sum()) - rel) / (k - 1)
        loc = float(own[k:].mean()) if others else float("nan")
        rows.append(
            {
                "set": name,
                "size": float(of.sum()),
                "rel": rel,
                "gen": gen,
                "loc": loc,
                "avg": (rel + gen + loc) / 3,
                "ppl": (ppl - before) / before,
            }
        )
    return rows


@torch.no_grad()
def _embedded(lm: LM, answer: str) -> Tensor:
    """E(o): the sum of an answer's input embeddings."""
    dtype = torch.promote_types(lm.dtype, torch.float32)
    return lm.embed.weight[lm.answer_ids(answer)].to(dtype).sum(0)


def experiment(
    hosts: Mapping[str, LM],
    world: World,
    *,
    wordings: str,
    texts: str,
    n_facts: int,
    n_wordings: int,
    steps: int,
    seed: int,
) -> Experiment:
    """Facts erased and updated through ``SETS`` of neurons."""
    series, how = [], Attribution(steps=steps)
    for name, of in asked(hosts, world, n_facts, n_wordings, seed, wordings).items():
        bench = Bench(of, texts, N_UNRELATED, seed)
        for operation in (ERASURE, UPDATE):

            def compute(
                part: Sequence[Reworded], bench: Bench = bench, operation: str = operation
            ) -> list[list[dict[str, Any]]]:
                return [rows_of(bench, one, how, operation) for one in part]

            settings = of.depends(
                seed, attribution=asdict(how), editor=EDITOR, share=SHARE, texts=texts or "world"
            )
            series.append(
                Series(
                    {"model": name, "operation": operation},
                    settings,
                    (__name__,),
                    of.items,
                    compute,
                )
            )
    return Experiment(f"{CHAPTER}_modification", tuple(series), tolerances=TOLERANCES)
