"""ACE: a first edit of the value layers (deep, at the prompt's last token), then one of the query layers (at the subject's last token).

Value stage: each edit's single-hop prompt and its multi-hop prompts ("The sport of the spouse of X is"), each at its last token, written
into the value layers. Query stage: the single-hop prompt at the subject's last token, written into the query
layers. Both by the closed form of a backbone (PMET, MEMIT); the result is the sum. The paper is silent on details; every reading is a
field, and the defaults follow its text. Algorithm 1 searches all targets first and then writes, so by default no stage searches on a model
that another has edited (``chained``). The other reading hardly writes its second stage: after the value stage the model says the target,
and PMET's search stops at once. Source: ACE Section 5, Algorithm 1, Eq. 11-13.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Sequence

from acelib.covariance import Moments
from acelib.editors.memit import MEMIT, signed
from acelib.editors.pmet import PMET
from acelib.keys import Request, contexts, distinct, request
from acelib.lm import LM
from acelib.spread import edit
from acelib.targets import Objective
from acelib.update import Update

if TYPE_CHECKING:
    from acelib.facts import Edit

BACKBONES = {"pmet": PMET, "memit": MEMIT}


@dataclass(frozen=True, kw_only=True)
class ACE:
    """Hyper-parameters of ACE; ``editor(lm, edits, moments)`` edits one batch, ``editor.each(lm, groups, moments)`` many independent ones.

    Raises ValueError, and leaves the model as it was, for unknown settings, no edit, edits that contradict, a layer without a moment.
    """

    query_layers: tuple[int, ...]
    value_layers: tuple[int, ...]
    backbone: str = "pmet"  #: "pmet" or "memit": the form of the write, and the defaults of the two fields below
    weight: float | None = None  #: lambda, on the mean second moment
    objective: Objective | None = None
    value_weight: float | None = None  #: lambda of the value stage; None: ``weight``
    value_objective: Objective | None = None  #: of the value stage; None: ``objective``
    stages: tuple[str, ...] = ("value", "query")  #: which, in which order
    chained: bool = False  #: whether a stage searches its targets on the model that the stages before have edited (see below)
    value_prompts: tuple[str, ...] = ("single", "hops")
    value_position: str = "last"  #: of the single-hop prompt; multi-hop prompts are always edited at their last token
    query_prompts: tuple[str, ...] = ("single",)
    query_position: str = "subject_last"
    n_prefixes: int = 5
    prefix_length: int = 10
    seed: int = 0

    def __post_init__(self):
        for name, allowed in dict(stages=("value", "query"), value_prompts=("single", "hops"), query_prompts=("single", "hops")).items():
            chosen = getattr(self, name)
            if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(allowed):
                raise ValueError(f"{name} {chosen!r} must name some of {allowed}, each once")
        if self.backbone not in BACKBONES:
            raise ValueError(f"backbone {self.backbone!r} is unknown; allowed: {', '.join(map(repr, BACKBONES))}")
        for stage in self.stages:
            self.writer(stage)

    def writer(self, stage: str) -> MEMIT:
        """The backbone, set up for one stage."""
        own = stage == "value"
        given = dict(weight=self.value_weight if own and self.value_weight is not None else self.weight,
                     objective=self.value_objective if own and self.value_objective is not None else self.objective)
        return BACKBONES[self.backbone](layers=self.value_layers if own else self.query_layers,
                                        position=self.value_position if own else self.query_position,
                                        **{name: value for name, value in given.items() if value is not None})

    def asked(self, edits: Sequence[Edit], stage: str, group: int = 0) -> list[Request]:
        """The requests of one stage for one batch of edits, single-hop prompts first. Raises ValueError as ``keys.requests``."""
        if not len(edits):
            raise ValueError("no edit given; an editor needs at least one")
        prompts, position = (self.value_prompts, self.value_position) if stage == "value" else (self.query_prompts, self.query_position)
        checked = [request(e, position, group) for e in edits]
        single = checked if "single" in prompts else []
        hops = [request(e, "last", group, hop) for e in edits for hop in e.hops] if "hops" in prompts else []
        if not single + hops:
            raise ValueError(f"{stage} stage: the edits have no multi-hop prompts and single-hop prompts are switched off")
        return distinct(single + hops)

    def __call__(self, lm: LM, edits: Sequence[Edit], moments: Moments) -> Update:
        """The Update that writes ``edits`` together."""
        return self.each(lm, [edits], moments)[0]

    def each(self, lm: LM, groups: Sequence[Sequence[Edit]], moments: Moments) -> list[Update]:
        """One Update for each group, every group as if it were alone, all in one batch."""
        given = {stage: [r for g, edits in enumerate(groups) for r in self.asked(edits, stage, g)] for stage in self.stages}
        writers = {stage: self.writer(stage).stage for stage in self.stages}
        for writer in writers.values():
            for layer in lm.layers(writer.layers):
                moments[layer]
        if not groups:
            return []
        prefixes, done = contexts(lm, self.n_prefixes, self.prefix_length, self.seed), []
        for stage in self.stages:
            before = [reduce(add, parts) for parts in zip(*done)] if done and self.chained else None
            done.append(edit(lm, given[stage], writers[stage], moments, prefixes, before))
        return signed(lm, self, groups, [reduce(add, parts) for parts in zip(*done)])


#: The paper's value layers 26-28 of this model count from 1.
PRESETS = {
    "gpt-j-6b": ACE(query_layers=(3, 4, 5, 6, 7, 8), value_layers=(25, 26, 27)),
    "gptj-mini": ACE(query_layers=(3, 4), value_layers=(4, 5, 6), weight=10.0,
                     objective=Objective(kind="pmet", steps=100, lr=0.3, decay=0.0, clamp=None), n_prefixes=2),
}
