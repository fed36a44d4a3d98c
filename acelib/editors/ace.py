"""ACE: a first edit of the value layers (deep, at the prompt's last token), then one of the query layers (at the subject's last token).

Value stage: each edit's single-hop prompt and its multi-hop prompts ("The sport of the spouse of X is"), each at its last token, written
into the value layers. Query stage: the single-hop prompt at the subject's last token, written into the query layers. Both by the closed
form of a backbone (PMET, MEMIT, AlphaEdit); the result is the sum. The paper is silent on details; every reading is a field, and the
defaults follow its text. Algorithm 1 searches all targets first and then writes, so by default no stage searches on a model that another
has edited (``chained``); each writes on the weights as they are by then. The other reading hardly writes its second stage: after the value
stage the model says the target, and PMET's search stops at once. Two steps of Algorithm 1 are not followed: it writes one vector v* of a
fact into both kinds of layers, where here a stage searches its own, for a target belongs to one layer and position; and it finds the query
layers after the value write, where here both are settings, located before (``locate``). On AlphaEdit, the keys kept of the value layers
are those of their write; the query stage, below them, moves them once more. Source: ACE Section 5, Algorithm 1, Eq. 11-13.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from ..editing.request import Request, batch_of, check_reading, request, unique_requests
from ..editing.search import Objective
from ..editing.write import Stage
from ..records import Edit
from .alphaedit import AlphaEdit
from .base import Staged
from .memit import MEMIT
from .pmet import PMET

BACKBONES = {"pmet": PMET, "memit": MEMIT, "alphaedit": AlphaEdit}


@dataclass(frozen=True, kw_only=True)
class ACE(Staged):
    """Hyper-parameters of ACE; ``editor(lm, edits, moments)`` edits one batch, ``editor.each(lm, groups, moments)`` many independent ones.

    A stage leaves out edits that it has no prompt for (no multi-hop prompts, and single-hop ones switched off).
    Raises ValueError, and leaves the model as it was, for unknown settings, no edit, edits that contradict or that no stage has a prompt
    for, a layer without a moment.
    """

    query_layers: tuple[int, ...]
    value_layers: tuple[int, ...]
    backbone: str = "pmet"  #: "pmet", "memit" or "alphaedit": the form of the write, and the defaults of the four fields below
    weight: float | None = None  #: lambda, on the mean second moment; of "alphaedit" L2
    objective: Objective | None = None
    threshold: float | None = None  #: of "alphaedit" only
    null_share: float | None = None  #: of "alphaedit" only
    value_weight: float | None = None  #: lambda of the value stage; None: ``weight``
    value_objective: Objective | None = None  #: of the value stage; None: ``objective``
    stages: tuple[str, ...] = ("value", "query")  #: which, in which order
    chained: bool = False  #: whether a stage searches its targets on the model that the stages before have edited (see above)
    value_prompts: tuple[str, ...] = ("single", "hops")
    value_position: str = (
        "last"  #: of the single-hop prompt; multi-hop prompts are always edited at their last token
    )
    query_prompts: tuple[str, ...] = ("single",)
    query_position: str = "subject_last"
    n_prefixes: int = 5
    prefix_length: int = 10
    seed: int = 0
    texts: tuple[str, ...] | None = None  #: read before prompts instead of sampled ones

    def __post_init__(self):
        for name, allowed in dict(
            stages=("value", "query"),
            value_prompts=("single", "hops"),
            query_prompts=("single", "hops"),
        ).items():
            chosen = getattr(self, name)
            if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(allowed):
                raise ValueError(f"{name} {chosen!r} must name some of {allowed}, each once")
        if self.backbone not in BACKBONES:
            raise ValueError(
                f"backbone {self.backbone!r} is unknown; allowed: {', '.join(map(repr, BACKBONES))}"
            )
        if self.backbone != "alphaedit" and (self.threshold, self.null_share) != (None, None):
            raise ValueError(
                f"backbone {self.backbone!r} has no null space; threshold and null_share are for 'alphaedit'"
            )
        check_reading(
            (self.value_position, self.query_position), self.n_prefixes, self.prefix_length
        )
        for stage in self.stages:
            self.writer(stage)

    @property
    def layers(self) -> tuple[int, ...]:
        """All layers that are written, in order."""
        return tuple(
            sorted({layer for stage in self.stages for layer in self.writer(stage).layers})
        )

    @property
    def plan(self) -> dict[str, Stage]:
        return {stage: self.writer(stage).stage for stage in self.stages}

    def writer(self, stage: str) -> MEMIT:
        """The backbone, set up for one stage."""
        own = stage == "value"
        given = dict(
            weight=self.value_weight if own and self.value_weight is not None else self.weight,
            objective=self.value_objective
            if own and self.value_objective is not None
            else self.objective,
            threshold=self.threshold,
            null_share=self.null_share,
        )
        return BACKBONES[self.backbone](
            layers=self.value_layers if own else self.query_layers,
            position=self.value_position if own else self.query_position,
            **{name: value for name, value in given.items() if value is not None},
        )

    def prompts(self, stage: str) -> tuple[str, ...]:
        return self.value_prompts if stage == "value" else self.query_prompts

    def asked(self, edits: Sequence[Edit], stage: str, group: int = 0) -> list[Request]:
        """The requests of one stage for one batch of edits, single-hop prompts first. Raises ValueError as ``keys.requests``."""
        if not any(e.hops for e in batch_of(edits)) and not any(
            "single" in self.prompts(stage) for stage in self.stages
        ):
            raise ValueError(
                "the edits have no multi-hop prompts and single-hop prompts are switched off"
            )
        checked = [
            request(e, self.value_position if stage == "value" else self.query_position, group)
            for e in edits
        ]
        single = checked if "single" in self.prompts(stage) else []
        hops = (
            [request(e, "last", group, hop) for e in edits for hop in e.hops]
            if "hops" in self.prompts(stage)
            else []
        )
        return unique_requests(single + hops)


#: From Appendix G. Its value layers of GPT-J, 26-28, count from 1 (there are 28), its query layers are those that PMET's settings count
#: from 0. Its layers of Qwen3-8B, 25-27 and 28-32, are read as located and so as counted from 1, like the value layers of GPT-J.
PRESETS = {
    "gpt-j-6b": ACE(query_layers=(3, 4, 5, 6, 7, 8), value_layers=(25, 26, 27)),
    "qwen3-8b": ACE(query_layers=(24, 25, 26), value_layers=(27, 28, 29, 30, 31)),
    "gptj-mini": ACE(
        query_layers=(1, 2, 3),
        value_layers=(5, 6, 7),
        weight=1.0,
        objective=Objective(kind="pmet", steps=100, lr=2.0, decay=0.0, clamp=None),
        n_prefixes=2,
    ),
    "qwen3-mini": ACE(
        query_layers=(1, 2),
        value_layers=(5, 6),
        weight=1.0,
        objective=Objective(kind="pmet", steps=100, lr=2.0, decay=0.0, clamp=None),
        n_prefixes=2,
    ),
}
