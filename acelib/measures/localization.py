"""Do the wordings of a fact find the same neurons? Query Localization, Sections 2.1 and 3.1.

Facts that a model answers in all of k wordings; the knowledge neurons of every wording, by three
methods; how consistent they are, at several thresholds of attribution, with fewer wordings, without
layer 0, and beside k wordings of k different facts. And what the answer loses and gains when the
neurons of the wording itself, of the others, or as many others, are made weaker or stronger.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from math import inf
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.consistency import neighbours, random_set, scores, strongest
from ..attribution.integrated import METHODS, Attribution, knowledge_neurons, localize
from ..attribution.scaling import scaled_neurons
from ..model.answers import known_items
from ..model.lm import LM
from ..model.states import chunked, last, position_ids
from ..study.experiments import depends
from ..study.rows import Experiment, Series
from ..world.paraphrases import Reworded, of_pararel, of_world
from ..world.world import World

CHAPTER = "companion_query_localization"
SHARES = (0.1, 0.2, 0.3, 0.4)  #: thresholds of attribution, of the largest
SHARE = 0.2  #: the one that other experiments take
SUPPRESSED, ENHANCED = 0.0, 2.0  #: factors of activations and of attention
SETS = ("Self", "Union", "Refine", "Intersection", "Union, as many", "Random")
#: neurons at the threshold may be on either side of it on another machine
NEAR = {
    "strict": (0.0, 0.1),
    "relaxed": (0.0, 0.1),
    "without_first": (0.0, 0.1),
    "chance": (0.0, 0.1),
    "by_k": (0.0, 0.1),
    "union": (0.0, 3.0),
    "size": (0.0, 2.0),
    "layers": (0.0, 2.0),
    "seconds": (0.0, inf),
}
EFFECTS = ("sup", "enh", "sup_ratio", "enh_ratio", "sup_odds", "enh_odds")


@dataclass(frozen=True, eq=False)
class Facts:
    """What the experiments of a model share: all facts of the source, and those it is asked."""

    lm: LM
    world: World
    pool: Sequence[Reworded]
    facts: Sequence[Reworded]
    source: str  #: of the wordings, as rows depend on it

    @property
    def items(self) -> dict[str, Reworded]:
        """The facts that are asked, by name."""
        return {one.name: one for one in self.facts}

    def depends(self, seed: int, **settings: object) -> dict[str, str]:
        """What rows depend on; for ``Series``."""
        said = {name: str(value) for name, value in settings.items()}
        return {
            **depends(self.lm, self.world, None, None),
            "wordings": self.source,
            "seed": str(seed),
            **said,
        }


_ASKED: WeakKeyDictionary[LM, dict[tuple, Facts]] = WeakKeyDictionary()


def asked(
    hosts: Mapping[str, LM], world: World, n: int, k: int, seed: int, wordings: str = ""
) -> dict[str, Facts]:
    """By model: ``n`` facts that it answers in all of ``k`` wordings, drawn from all groups alike.

    wordings: a folder of ParaRel, or "" for those of the world.
    Raises ValueError as ``of_world`` and ``of_pararel``, or if a model answers no fact so.
    """
    pool = of_pararel(wordings, k) if wordings else of_world(world, k)
    source = f"{wordings or 'world'}, {k}"
    found = {}
    for name, lm in hosts.items():
        kept = _ASKED.setdefault(lm, {})
        key = (world.digest, source, n, seed)
        if key not in kept:  # all experiments of the chapter ask for the same
            kept[key] = Facts(lm, world, pool, known_facts(lm, pool, n, seed), source)
        found[name] = kept[key]
    return found


def known_facts(lm: LM, pool: Sequence[Reworded], n: int, seed: int = 0) -> list[Reworded]:
    """``n`` facts, or all there are, that are answered in all of their wordings: one of each group
    in turn, so that fewer facts are the first of more.

    Raises ValueError if there is none.
    """
    groups: dict[str, list[Reworded]] = {}
    for one in pool:
        groups.setdefault(one.group, []).append(one)
    for name, group in groups.items():
        random.Random(f"{seed}/{name}").shuffle(group)
    order = [one for some in zip_longest(*groups.values()) for one in some if one is not None]
    kept: list[Reworded] = []
    while order and len(kept) < n:
        block, order = order[: n - len(kept)], order[n - len(kept) :]
        kept += _known(lm, block)
    if not kept:
        raise ValueError(f"model {lm.name!r} answers no fact in all of its wordings")
    return kept


def _known(lm: LM, facts: Sequence[Reworded]) -> list[Reworded]:
    """Those that are answered in all wordings."""
    every = [(one, prompt) for one in facts for prompt in one.prompts]
    right = Counter(one.name for one, _ in known_items(lm, every, _ask))
    return [one for one in facts if right[one.name] == len(one.prompts)]


def _ask(pair: tuple[Reworded, str]) -> tuple[str, str]:
    return pair[1], pair[0].fact.object


# ------------------------------------------------------------------------------------- attributions

_KEPT: WeakKeyDictionary[LM, dict[str, tuple[Tensor, float]]] = WeakKeyDictionary()


def attributions(
    lm: LM, fact: Reworded, how: Attribution
) -> tuple[Float[Tensor, "wordings layers d_mlp"], float]:
    """Attributions of a fact's wordings, and the processor seconds that they took at first.

    A fact is attributed alone, so that its numbers do not depend on the others; what this process
    has attributed is kept.
    """
    kept, key = _KEPT.setdefault(lm, {}), repr((fact, how))
    if key not in kept:
        start = time.process_time()
        answers = [fact.fact.object] * len(fact.prompts)
        found = localize(lm, fact.prompts, answers, how)
        kept[key] = found, time.process_time() - start
    return kept[key]


def method_of(name: str, steps: int, sig_steps: int) -> Attribution:
    """A method with its number of steps; SIG takes them on the path of every word."""
    method = cast(Literal["IG", "SIG", "AMIG"], name)
    return Attribution(method=method, steps=sig_steps if name == "SIG" else steps)


# -------------------------------------------------------------------------------------- consistency


def consistency_rows(
    lm: LM, fact: Reworded, others: Sequence[Reworded], how: Attribution
) -> list[dict[str, Any]]:
    """A row for each of ``SHARES``: strict, relaxed (CS_1, CS_2); without_first (CS_2 above layer
    0); by_k (CS_2 of the first 2, 3, ... wordings); union, size (neurons); layers (mean neurons of
    a wording by layer); chance (CS_2 of the fact's first wording and one of each of ``others``);
    seconds.
    """
    found, seconds = attributions(lm, fact, how)
    strangers = torch.stack(
        [found[0], *(attributions(lm, one, how)[0][i] for i, one in enumerate(others, 1))]
    )
    rows = []
    for share in SHARES:
        sets = knowledge_neurons(found, share)[None]
        whole = scores(sets)
        rows.append(
            {
                "share": share,
                "strict": float(whole.strict),
                "relaxed": float(whole.relaxed),
                "without_first": float(scores(sets[:, :, 1:]).relaxed),
                "by_k": [float(scores(sets[:, :k]).relaxed) for k in range(2, sets.shape[1] + 1)],
                "union": float(whole.union),
                "size": float(whole.size),
                "layers": sets[0].sum(-1).float().mean(0).tolist(),
                "chance": float(scores(knowledge_neurons(strangers, share)[None]).relaxed),
                "seconds": seconds,
            }
        )
    return rows


def experiment(
    hosts: Mapping[str, LM],
    world: World,
    *,
    wordings: str,
    n_facts: int,
    n_wordings: int,
    steps: int,
    sig_steps: int,
    seed: int,
) -> Experiment:
    """Consistency of the neurons of every fact, by each of the three methods."""
    series = []
    for name, of in asked(hosts, world, n_facts, n_wordings, seed, wordings).items():
        for method in METHODS:
            how = method_of(method, steps, sig_steps)

            def compute(
                part: list[dict[str, Any]], lm: LM = of.lm, how: Attribution = how
            ) -> list[list[dict[str, Any]]]:
                return [consistency_rows(lm, one["fact"], one["others"], how) for one in part]

            items = {
                one.name: {"fact": one, "others": drawn(of.facts, one, n_wordings - 1, seed)}
                for one in of.facts
            }
            series.append(
                Series(
                    {"model": name, "method": method},
                    of.depends(seed, attribution=asdict(how)),
                    (__name__,),
                    items,
                    compute,
                    tolerances=NEAR,
                )
            )
    return Experiment(CHAPTER, tuple(series))


def drawn(facts: Sequence[Reworded], fact: Reworded, n: int, seed: int) -> list[Reworded]:
    """``n`` other facts of other relations than a fact's, or of any if those are too few; drawn
    with the fact as seed, one perhaps several times if there are not so many.
    """
    others = [one for one in facts if one.fact.relation != fact.fact.relation]
    others = others or [one for one in facts if one != fact] or [fact]
    rng = random.Random(f"{seed}/{fact.name}")
    return rng.sample(others, n) if len(others) >= n else rng.choices(others, k=n)


# ------------------------------------------------------------------------------- query-KN mapping


@torch.no_grad()
def first_probabilities(
    lm: LM,
    prompts: Sequence[str],
    answer: str,
    factors: Float[Tensor, "rows layers d_mlp"],
    batch_size: int = 128,
) -> Float[Tensor, " rows"]:
    """Probability of the answer's first token after each prompt, its neurons scaled at the last
    token.
    """
    token = lm.answer_ids(answer)[0]
    rows, mask = lm.encode(prompts)

    def forward(piece: range) -> Float[Tensor, " rows"]:
        part = list(piece)
        ids, here = rows[part], mask[part]
        at = last(here)
        with scaled_neurons(lm, factors[part], at):
            hidden = lm.stack(
                input_ids=ids, attention_mask=here, position_ids=position_ids(here), use_cache=False
            ).last_hidden_state
        said = lm.head(hidden[range(len(part)), at])
        return said.to(torch.promote_types(said.dtype, torch.float32)).softmax(-1)[:, token]

    return torch.cat(chunked(forward, len(prompts), batch_size))


def neighbour_sets(
    found: Float[Tensor, "wordings layers d_mlp"], i: int, share: float, seed: int
) -> dict[str, Tensor]:
    """``SETS`` of wording i: its own neurons; those of the others, three ways; of their union as
    many as its own, those of highest mean attribution; and random ones, as many in every layer.
    """
    sets = knowledge_neurons(found, share)
    others = found.sum(0) - found[i]
    sets_of = {"Self": sets[i], **neighbours(sets, i)}
    sets_of["Union, as many"] = strongest(others, int(sets[i].sum()), sets_of["Union"])
    sets_of["Random"] = random_set(sets[i], seed)
    return {name: sets_of[name] for name in SETS}


def mapping_rows(
    lm: LM, fact: Reworded, how: Attribution, share: float, seed: int
) -> list[dict[str, Any]]:
    """A row for each of ``SETS``: size (mean neurons); before, sup, enh (mean probability of the
    answer's first token as it is, with the neurons at zero and doubled); sup_ratio, enh_ratio
    (means of the wordings' own rates of change); odds, sup_odds, enh_odds (mean log-odds).
    """
    found, k = attributions(lm, fact, how)[0], len(fact.prompts)
    # 1. The unchanged model, then every set of every wording, weaker and stronger.
    prompts = list(fact.prompts)
    factors = [torch.ones_like(found)]
    sets = [neighbour_sets(found, i, share, seed) for i in range(k)]
    for name in SETS:
        chosen = torch.stack([of[name] for of in sets])
        for factor in (SUPPRESSED, ENHANCED):
            factors.append(torch.where(chosen, factor, 1.0).to(found))
            prompts += fact.prompts
    p = first_probabilities(lm, prompts, fact.fact.object, torch.cat(factors)).double()
    before, changed = p[:k], p[k:].unflatten(0, (len(SETS), 2, k))
    odds = torch.logit(p, 1e-7)
    shifted = odds[k:].unflatten(0, (len(SETS), 2, k)).mean(-1)
    # 2. Means over the wordings.
    return [
        {
            "set": name,
            "size": sum(float(of[name].sum()) for of in sets) / k,
            "before": float(before.mean()),
            "sup": float(changed[s, 0].mean()),
            "enh": float(changed[s, 1].mean()),
            "sup_ratio": float(((before - changed[s, 0]) / before).mean()),
            "enh_ratio": float(((changed[s, 1] - before) / before).mean()),
            "odds": float(odds[:k].mean()),
            "sup_odds": float(shifted[s, 0]),
            "enh_odds": float(shifted[s, 1]),
        }
        for s, name in enumerate(SETS)
    ]


def mapping(
    hosts: Mapping[str, LM],
    world: World,
    *,
    wordings: str,
    n_facts: int,
    n_wordings: int,
    steps: int,
    seed: int,
) -> Experiment:
    """What the answer depends on: its own neurons, those of other wordings, random ones."""
    series, how = [], Attribution(steps=steps)
    for name, of in asked(hosts, world, n_facts, n_wordings, seed, wordings).items():

        def compute(part: Sequence[Reworded], lm: LM = of.lm) -> list[list[dict[str, Any]]]:
            return [mapping_rows(lm, one, how, SHARE, seed) for one in part]

        settings = of.depends(seed, attribution=asdict(how), share=SHARE)
        series.append(Series({"model": name}, settings, (__name__,), of.items, compute))
    return Experiment(f"{CHAPTER}_mapping", tuple(series), tolerances=moved(EFFECTS))


def moved(names: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Tolerances of what changes with a neuron at the threshold."""
    return {**dict.fromkeys(names, (0.02, 0.05)), "size": (0.0, 2.0), "before": (1e-3, 1e-3)}
