"""Where to edit: every pair of a query layer and a value layer, judged on the same cases.

Query layers are written at the subject's last token, value layers at the prompt's last, as the two
stages of ACE write them. The target vectors of a stage are searched once for every layer, on the
unedited model; each stage is written on that model alone, and the edit of a pair is the sum:

    dW(q, v) = dW_query(q) + dW_value(v)

So L layers take 2 L searches instead of L^2. Where the value layers lie above the query layers,
this is ACE's own edit: no write changes what the other reads. Elsewhere ACE writes its second
stage, the query stage, on what the first has left; here neither stage knows of the other.

PMET searches two pushes, one on the attention's and one on the FFN's output, and writes the second
alone. The write "half" follows it. "whole" asks of the FFN what both pushes together add to the
block's output. In a parallel block (GPT-J) both get the same gradient, but for decay and clamp, and
Adam makes them the same vector, so that "half" is exactly half. In a sequential block (GPT-2,
Llama, Qwen3) the first also passes through the FFN of its own layer; "whole" then includes what it
changes there, and "half" is a name only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import hypot
from typing import Any, NamedTuple

from torch import Tensor

from ..editing.request import Request
from ..editing.search import target_vectors
from ..editing.write import write as write_targets
from ..editors import ACE, preset
from ..model.answers import recall
from ..model.lm import LM
from ..model.update import Update
from ..records import Case, quoted
from ..study.experiments import Corpus, cases_by_model, corpus, depends, modules
from ..study.judge import Protocol, judge
from ..study.rows import Experiment, Series
from ..world.wording import few_shot
from ..world.world import World
from .once import Once

ROLES = ("query", "value")
WRITES = ("half", "whole")
NONE = -1  #: the first layer of a role that is not written
#: Column of ``judge``'s rows -> name of the measure here.
JUDGED = {
    "multi_hop": "multi_hop",
    "efficacy": "efficacy",
    "paraphrase": "paraphrase",
    "specificity_near": "same_relation",
    "specificity_far": "other_relations",
    "specificity_token": "same_token",
}
#: What a pair is judged by. log_p: mean log-probability of the tokens of the canonical chain of
#: thought, nats. The others are shares.
METRICS = (*JUDGED.values(), "log_p")
PLACES = 4  #: decimals that are kept

# A search may end elsewhere on another machine (``study.recheck.ELSEWHERE``), and one answer of a
# cell with it; the sizes of the writes and the log-probabilities say whether the code is the same.
TOLERANCES = {
    **dict.fromkeys(METRICS, (0.0, 1.0)),
    "log_p": (0.05, 0.25),
    "written": (0.05, 0.1),
}


class Searched(NamedTuple):
    """The targets of one stage for the edits of one case."""

    requests: list[Request]
    #: by write and layer, (n, d): what the FFN's output should be at the n lookup tokens
    values: dict[tuple[str, int], Tensor]


@dataclass(frozen=True, eq=False)
class Host:
    """A model, and what all cases and pairs share on it."""

    lm: LM
    world: World
    ace: ACE  #: how the stages search, write and read prompts; its layers do not count
    corpus: Corpus

    @cached_property
    def prefixes(self) -> tuple[str, ...]:
        """What prompts are also read after."""
        return self.ace.prefixes(self.lm)

    @cached_property
    def searched(self) -> Once[Case, dict[str, Searched]]:
        """The targets of both stages, once for each case: all weights, widths, writes share them.

        A case is searched alone, or its targets would depend on the company.
        """
        return Once(lambda cases: [self._search(case) for case in cases])

    def _search(self, case: Case) -> dict[str, Searched]:
        return {role: search(self, case, role) for role in ROLES}


# ---------------------------------------------------------------- one search and one write


def settings(model: str, n_layers: int, value_prompts: Sequence[str]) -> ACE:
    """ACE with the search, the share and the texts of PMET's preset in both stages, on all layers.

    value_prompts: "single", "hops" or both. Raises ValueError for others.
    """
    pmet = replace(preset("PMET", model), layers=tuple(range(n_layers)), weight=1.0)
    prompts: Any = tuple(value_prompts)  # ACE refuses others
    return ACE(
        value=replace(pmet, position="last"),
        query=replace(pmet, position="subject_last"),
        value_prompts=prompts,
    )


def windows(n_layers: int, width: int) -> list[tuple[int, ...]]:
    """All windows of ``width`` neighbouring layers, lowest first.

    Raises ValueError for a width that the model does not have.
    """
    if not 1 <= width <= n_layers:
        raise ValueError(f"a window of {width} layers: it must have 1 to {n_layers}")
    return [tuple(range(first, first + width)) for first in range(n_layers - width + 1)]


def search(host: Host, case: Case, role: str) -> Searched:
    """Target vectors of a stage at every layer of the unedited model, for both writes."""
    lm, requests = host.lm, host.ace.requests(case.edits, role)
    values: dict[tuple[str, int], Tensor] = {}
    for layer in range(lm.n_layers if requests else 0):
        objective = host.ace.writer(role).objective
        targets = target_vectors(lm, requests, layer, objective, host.prefixes)
        values["half", layer] = targets.value
        values["whole", layer] = targets.whole
    return Searched(requests, values)


def single_updates(
    host: Host, case: Case, role: str, write: str, width: int, weight: float
) -> list[Update]:
    """The edit of one stage: none, then one for every window, each on the unedited model.

    weight: lambda, on the mean second moment.
    """
    requests, values = host.searched([case])[0][role]
    stage = replace(host.ace.writer(role).stage, weight=weight)
    updates = [Update()]
    for layers in windows(host.lm.n_layers, width):
        updates += (
            write_targets(
                host.lm,
                requests,
                replace(stage, layers=layers),
                host.corpus.moments,
                values[write, layers[-1]],
                host.prefixes,
            )
            if requests
            else [Update()]
        )
    return updates


# ---------------------------------------------------------------- what a pair is judged by


def canonical_chain(case: Case) -> str:
    """The chain of thought that a demonstration would show for the case after its edits."""
    thoughts = " ".join(f"{hop.cloze} {hop.answer}." for hop in case.new_hops)
    return f"{thoughts}\nAnswer: {case.new_answer}"


def judged(
    host: Host, case: Case, updates: Sequence[Update], protocol: Protocol
) -> dict[str, list[float]]:
    """The measures of ``METRICS`` and "written", the norm of an update, one value for each update.

    Of the three kinds of facts that should stay, half of ``n_unrelated`` each are asked, or as many
    as there are; nan if there is none.
    """
    lm, world = host.lm, host.world
    # 1. As everywhere in the book: chains of thought, the edits, other wordings, unrelated facts.
    rows = judge(lm, world, [case] * len(updates), updates, protocol)
    columns = {name: [row[column] for row in rows] for column, name in JUDGED.items()}
    # 2. The chain of thought that is right, without demonstrations.
    chain, prompt = canonical_chain(case), few_shot(world, case.questions[0], n_shots=0)
    n, size = len(updates), len(lm.answer_ids(chain))
    said = recall(lm, [prompt] * n, [chain] * n, updates)
    columns["log_p"] = [value / size for value in said.logprob]
    # 3. Answers may hide a fault; the size of what is written does not.
    columns["written"] = [hypot(*update.norms().values()) for update in updates]
    return columns


def pair_rows(
    host: Host, case: Case, protocol: Protocol, write: str, width: int, weight: float
) -> list[dict]:
    """One row per query window, ``NONE`` first: "query", its first layer, and of every column of
    ``judged`` a list over the value windows, ``NONE`` first.
    """
    query, value = (single_updates(host, case, role, write, width, weight) for role in ROLES)
    pairs = [one + other for one in query for other in value]
    columns = judged(host, case, pairs, protocol)
    n = len(value)
    return [
        {"query": NONE + i}
        | {
            name: [round(number, PLACES) for number in values[i * n : (i + 1) * n]]
            for name, values in columns.items()
        }
        for i in range(len(query))
    ]


# ---------------------------------------------------------------- the experiment


def experiment(  # noqa: PLR0913 - the parameters of the chapter
    hosts: Mapping[str, LM],
    world: World,
    *,
    widths: Sequence[int],
    writes: Sequence[str],
    weights: Sequence[float],
    value_prompts: Sequence[str],
    cases: str,
    n_cases: int,
    n_unrelated: int,
    seed: int,
) -> Experiment:
    """Every pair of windows on the same cases: a series per model, write, width and weight.

    Rows: ``pair_rows``. Raises ValueError for an unknown write, or a width that a model does not
    have.
    """
    if wrong := [write for write in writes if write not in WRITES]:
        raise ValueError(f"write {quoted(wrong[0])} is unknown; allowed: {', '.join(WRITES)}")
    for lm in hosts.values():
        for width in widths:
            windows(lm.n_layers, width)  # refuses one that there is not, before any work
    protocol = Protocol(n_unrelated=n_unrelated, seed=seed)
    known = cases_by_model(hosts, world, n_cases, seed, cases)
    series = []
    for model, lm in hosts.items():
        ace = settings(model, lm.n_layers, value_prompts)
        host = Host(lm, world, ace, corpus(lm, world, [ace], seed))
        for weight in weights:
            for width in widths:
                for write in writes:
                    setting = write, width, weight
                    series.append(_series(model, host, known[model], protocol, *setting))
    return Experiment("07_where_to_edit", tuple(series), tolerances=TOLERANCES)


def _series(
    model: str,
    host: Host,
    cases: Sequence[Case],
    protocol: Protocol,
    write: str,
    width: int,
    weight: float,
) -> Series:
    """The rows of one model under one write, width and weight; an item is a case."""

    def compute(some: list[Case]) -> list[list[dict]]:
        return [pair_rows(host, case, protocol, write, width, weight) for case in some]

    return Series(
        names={"model": model, "write": write, "width": f"{width}", "weight": f"{weight:g}"},
        depends={
            **depends(host.lm, host.world, host.ace, host.corpus),
            "protocol": json.dumps(asdict(protocol)),
        },
        code=(__name__, *modules(host.ace)),
        items={str(case.case_id): case for case in cases},
        compute=compute,
        chunk=1,
    )
