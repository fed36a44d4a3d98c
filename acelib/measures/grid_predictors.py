"""What could tell where to edit: scores of every layer as a query layer and as a value layer.

Attribution is read on two-hop statements, as the paper locates layers; the causal measures and the
transfer of keys on the statement's last fact, for edits write single facts. "query" scores are
read at the subject's last token where a predictor can be read there, "value" scores at the prompt's
last. Every predictor is a function of a model and chains; a row holds the scores of one chain, so
that intervals over chains are possible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from random import Random

import torch
from torch import Tensor

from ..attribution.interventions import causal_trace
from ..attribution.layers import ROLES as TOKENS
from ..attribution.readings import BLOCKS, output_query_scores
from ..attribution.scores import first_tokens, query_scores, value_scores
from ..editing.keys import Walk, mean_key, prefix_weights
from ..editing.request import Request
from ..editors import preset
from ..editors.memit import PMET
from ..model.answers import known_items
from ..model.lm import LM
from ..model.states import Site, trace
from ..records import Chain, Fact
from ..study.experiments import Corpus, corpus, depends, modules
from ..study.rows import Experiment, Series
from ..world.text import documents
from ..world.wording import (
    demonstrations,
    few_shot,
    multi_hop_cloze,
    multi_hop_question,
    single_hop,
    statement,
)
from ..world.world import World, sample_chains

ROLES = ("query", "value")
#: Scores by role, each (l,), for every chain.
Scores = list[dict[str, list[float]]]

N_SHOTS = 4  #: statements before the one that attribution reads, where it is few-shot
N_TOP = 100  #: value neurons that query scores aim at
N_MEANS = 200  #: texts that the mean outputs of FFNs are taken over
N_NOISE = 4  #: samples of noise of a causal trace
ROWS = 96  #: prompts in one batch


@dataclass(frozen=True, eq=False)
class Reader:
    """A model, the world, and what its predictors have in common."""

    lm: LM
    world: World
    editor: PMET  #: on all layers: the texts that the edits' keys are averaged over
    corpus: Corpus
    seed: int

    @cached_property
    def mean_outputs(self) -> list[Tensor]:
        """Mean of every FFN's output over the tokens of ``N_MEANS`` texts, (d,) each."""
        lm, sites = self.lm, [Site("mlp", layer) for layer in range(self.lm.n_layers)]
        n, total = 0, torch.zeros(len(sites), lm.d_model, dtype=torch.float64, device=lm.device)
        for text in documents(self.world, N_MEANS, self.seed):
            ids, mask = lm.encode([text])
            states = trace(lm, ids, mask, sites)
            n += ids.shape[1]
            total += torch.stack([states[site][0].double().sum(0) for site in sites])
        return list((total / n).to(lm.dtype))


# ---------------------------------------------------------------- chains


def answered_chains(lm: LM, world: World, n: int, seed: int) -> list[Chain]:
    """Up to ``n`` held-out chains of two facts of which the model says the end, and the last fact.

    Raises ValueError if there is none.
    """
    drawn = sample_chains(world, "identification", 2, 2 * n, Random(seed))
    chains = known_items(lm, drawn, partial(_two_hops, world))
    chains = known_items(lm, chains, lambda chain: single_hop(world, chain.facts[-1]))[:n]
    if not chains:
        raise ValueError(f"{lm.name} answers none of {len(drawn)} questions; layers need some")
    return chains


def _two_hops(world: World, chain: Chain) -> tuple[str, str]:
    return multi_hop_cloze(world, chain), chain.answer


# ---------------------------------------------------------------- attribution


def statement_after_others(world: World, chain: Chain) -> str:
    """The two-hop statement without its end, after ``N_SHOTS`` others that share no name."""
    others = demonstrations(world, chain.entities, N_SHOTS)
    told = [" ".join(_two_hops(world, other)) + "." for other in others]
    return " ".join([*told, multi_hop_cloze(world, chain)])


def few_shot_attribution(reader: Reader, chains: Sequence[Chain], divided: bool = False) -> Scores:
    """Eq. 9 and Eq. 10 summed over each layer's neurons, at the last token, as in the paper.

    divided: query scores as in the released code (``output_query_scores``).
    """
    prompts = [statement_after_others(reader.world, chain) for chain in chains]
    return _attribution(reader.lm, prompts, chains, divided)


def zero_shot_attribution(reader: Reader, chains: Sequence[Chain]) -> Scores:
    """The same without other statements."""
    prompts = [multi_hop_cloze(reader.world, chain) for chain in chains]
    return _attribution(reader.lm, prompts, chains)


def attribution_everywhere(reader: Reader, chains: Sequence[Chain]) -> Scores:
    """The same, read at every token as if the statement ended there, summed over tokens."""
    lm, scores = reader.lm, []
    for chain in chains:
        ids, mask = lm.encode([multi_hop_cloze(reader.world, chain)])
        n = ids.shape[1]
        ends = mask.expand(n, n).tril()
        target = first_tokens(lm, [chain.answer]).expand(n)
        query, value = _by_layer(lm, ids.expand(n, n), ends, target)
        scores.append({"query": query.sum(0).tolist(), "value": value.sum(0).tolist()})
    return scores


def _attribution(
    lm: LM, prompts: Sequence[str], chains: Sequence[Chain], divided: bool = False
) -> Scores:
    scores = []
    for start in range(0, len(prompts), ROWS):
        part = slice(start, start + ROWS)
        targets = first_tokens(lm, [chain.answer for chain in chains[part]])
        query, value = _by_layer(lm, *lm.encode(prompts[part]), targets, divided)
        pairs = zip(query.tolist(), value.tolist(), strict=True)
        scores += [dict(zip(ROLES, pair, strict=True)) for pair in pairs]
    return scores


def _by_layer(
    lm: LM, ids: Tensor, mask: Tensor, targets: Tensor, divided: bool = False
) -> tuple[Tensor, Tensor]:
    """Query and value scores of every row's layers, (b, l) each."""
    values = value_scores(lm, ids, mask, targets)
    if divided:
        query = output_query_scores(lm, ids, mask, values, N_TOP)[:, BLOCKS.index("ffn")]
    else:
        query = query_scores(lm, ids, mask, values, N_TOP).sum(-1)
    return query, values.sum(-1)


# ---------------------------------------------------------------- causal measures


def causal_tracing(
    reader: Reader, chains: Sequence[Chain], kind: str = "out", window: int = 1
) -> Scores:
    """The answer's probability once the clean state of a layer is put back into a run whose subject
    is noisy: at the subject's last token (query) and at the prompt's (value).

    kind: of the state, "out" or "mlp".   window: layers put back together, if it is no "out".
    Source: Meng et al. (2022), Section 2.
    """
    scores = []
    for chain in chains:
        fact = chain.facts[-1]
        prompt, answer = single_hop(reader.world, fact)
        restored = causal_trace(
            reader.lm,
            prompt,
            fact.subject,
            answer,
            kind,
            n_noise=N_NOISE,
            seed=reader.seed,
            window=window,
        ).restored
        query, value = (restored[TOKENS.index(name)] for name in ("last subject", "last"))
        scores.append({"query": query.tolist(), "value": value.tolist()})
    return scores


def ffn_tracing(reader: Reader, chains: Sequence[Chain]) -> Scores:
    """Causal tracing of FFN outputs, in windows of a fifth of the layers, as ROME's Figure 3."""
    return causal_tracing(reader, chains, "mlp", max(1, round(reader.lm.n_layers / 5)))


@torch.no_grad()
def ablation_cost(reader: Reader, chains: Sequence[Chain]) -> Scores:
    """What the answer's first token loses, nats, if a layer's FFN gives its mean output at one
    token.
    """
    lm, scores, said = reader.lm, [], Site("logits", reader.lm.n_layers)
    n = lm.n_layers
    for chain in chains:
        # 1. One row for each layer and role, and one that is left alone.
        text, answer = single_hop(reader.world, chain.facts[-1])
        ids, mask = lm.encode([text])
        columns = [lm.token_at(text, _subject_end(text, chain.facts[-1])), ids.shape[1] - 1]
        patches = {}
        for layer, mean in enumerate(reader.mean_outputs):
            patches[Site("mlp", layer)] = partial(_put, [layer, n + layer], columns, mean)
        # 2. All in one forward.
        many, masks = (x.expand(2 * n + 1, -1) for x in (ids, mask))
        logits = trace(lm, many, masks, patches=patches, logits="last")[said]
        log_p = logits.double().log_softmax(-1)[:, int(first_tokens(lm, [answer]))]
        cost = (log_p[-1] - log_p[:-1]).tolist()
        scores.append({"query": cost[:n], "value": cost[n:]})
    return scores


def _put(rows: Sequence[int], columns: Sequence[int], state: Tensor, h: Tensor) -> Tensor:
    """h with ``state`` at some rows and columns."""
    h = h.clone()
    h[rows, columns] = state
    return h


def _subject_end(text: str, fact: Fact) -> int:
    """Where the subject of a fact ends in a text about it."""
    return text.index(fact.subject) + len(fact.subject)


# ---------------------------------------------------------------- keys


def key_transfer(reader: Reader, chains: Sequence[Chain]) -> Scores:
    """How much of a write acts in a few-shot chain of thought: k'^T C^-1 k / k^T C^-1 k, k the key
    that is written, of the bare prompt, k' that of the same words there.

    The write of one edit alone is dW = r (C^-1 k)^T / (k^T C^-1 k) where the rest costs nothing: it
    gives r times this. k is the mean over the texts that an edit's prompt is read after: what
    begins a text is not what follows a blank, and a name may be other tokens there.
    """
    lm, prefixes = reader.lm, reader.editor.prefixes(reader.lm)
    scores: Scores = [{role: [] for role in ROLES} for _ in chains]
    for role in ROLES:
        bare = [_bare(reader, chain, role) for chain in chains]
        there = [_in_thoughts(reader, *pair) for pair in zip(chains, bare, strict=True)]
        written, met = Walk(lm, bare, prefixes), Walk(lm, there)
        for layer in range(lm.n_layers):
            key = mean_key(written.climb(layer), prefix_weights(lm, prefixes)).double()
            other = met.climb(layer).double().T
            direction = reader.corpus.moments.solver(layer, 1.0)(key).to(key)
            shares = (other * direction).sum(0) / (key * direction).sum(0)
            for row, share in zip(scores, shares.tolist(), strict=True):
                row[role].append(share)
    return scores


def _bare(reader: Reader, chain: Chain, role: str) -> Request:
    """The last fact's prompt, read at the token that a role writes at."""
    text, answer = single_hop(reader.world, chain.facts[-1])
    end = _subject_end(text, chain.facts[-1]) if role == "query" else len(text)
    return Request(text, end, answer)


def _in_thoughts(reader: Reader, chain: Chain, bare: Request) -> Request:
    """The same after demonstrations, the question and the thoughts before."""
    world = reader.world
    asked = few_shot(world, multi_hop_question(world, chain))
    before = " ".join([asked, *(statement(world, fact) for fact in chain.facts[:-1]), ""])
    return Request(before + bare.prompt, len(before) + bare.end, bare.target)


def random_scores(reader: Reader, chains: Sequence[Chain]) -> Scores:
    """Nothing: normal numbers, the same for all chains."""
    rng, n = Random(f"{reader.seed}/where to edit"), reader.lm.n_layers
    drawn = {role: [rng.gauss(0, 1) for _ in range(n)] for role in ROLES}
    return [drawn for _ in chains]


#: Name -> scores of chains. "attribution" is the paper's.
PREDICTORS: dict[str, Callable[[Reader, Sequence[Chain]], Scores]] = {
    "attribution": few_shot_attribution,
    "attribution, zero-shot": zero_shot_attribution,
    "attribution, every token": attribution_everywhere,
    "attribution, divided": partial(few_shot_attribution, divided=True),
    "causal tracing": causal_tracing,
    "causal tracing of FFNs": ffn_tracing,
    "ablation cost": ablation_cost,
    "key transfer": key_transfer,
    "random": random_scores,
}


# ---------------------------------------------------------------- the experiment


def experiment(hosts: Mapping[str, LM], world: World, *, n_located: int, seed: int) -> Experiment:
    """Scores of every layer by every predictor: a series per model and predictor, an item is a
    chain.

    Rows: "query" and "value", lists over layers, nan where there is no such token.
    """
    series = []
    for model, lm in hosts.items():
        editor = replace(preset("PMET", lm), layers=tuple(range(lm.n_layers)))
        reader = Reader(lm, world, editor, corpus(lm, world, [editor], seed), seed)
        chains = answered_chains(lm, world, n_located, seed)
        items = {" | ".join([chain.subject, *chain.path]): chain for chain in chains}
        for name, predict in PREDICTORS.items():
            using = (editor, reader.corpus) if predict is key_transfer else (None, None)
            series.append(
                Series(
                    names={"model": model, "predictor": name},
                    depends={
                        **depends(lm, world, *using),
                        "seed": str(seed),
                    },
                    code=(__name__, *modules(using[0])),
                    items=items,
                    compute=partial(_rows, reader, predict),
                )
            )
    # Sums over many neurons in another order; shares of sums near zero amplify it.
    tolerances = {"query": (5e-3, 1e-2), "value": (5e-3, 1e-2)}
    return Experiment("07_where_to_edit_predictors", tuple(series), tolerances=tolerances)


def _rows(
    reader: Reader,
    predict: Callable[[Reader, Sequence[Chain]], Scores],
    chains: Sequence[Chain],
) -> list[list[dict]]:
    """One row per chain, its scores to six digits."""
    return [
        [{role: [float(f"{x:.6g}") for x in values] for role, values in one.items()}]
        for one in predict(reader, chains)
    ]
