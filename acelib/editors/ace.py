"""ACE, an edit of value layers and one of query layers; IFMET, the same two the other way round;
ReleasedACE, the same two as ACE's released code writes them.

Value stage: each edit's single-hop prompt and its multi-hop prompts ("The sport of the spouse of X
is"), each at its last token, written into the value layers, which are deep. Query stage: the
single-hop prompt at the subject's last token, written into the query layers. Each stage is an
editor of its own (PMET, MEMIT, AlphaEdit); the result is the sum.

The paper is silent on details; every reading is a field, and the defaults follow its text.
Algorithm 1 searches all targets first and then writes, so by default no stage searches on a model
that another has edited (``chained``); each writes on the weights as they are by then. The other
reading hardly writes its second stage: after the value stage the model says the target, and PMET's
search stops at once. Two steps of Algorithm 1 are not followed: it writes one vector v* of a fact
into both kinds of layers, where here a stage searches its own, for a target belongs to one layer
and position; and it finds the query layers after the value write, where here both are settings,
located before (``attribution.layers.locate``). On AlphaEdit, the keys kept of the value layers are
those of their write; the query stage, below them, moves them once more.
Source: ACE Section 5, Algorithm 1, Eq. 11-13.

IFMET (Zhang et al., 2024), first edit: the single-hop prompt at the subject's last token, as PMET.
Further edit, searched and written on the model so edited: the multi-hop prompts that end in the
fact, at their last token, into deeper layers. These are ACE's two stages in the other order, with
fewer prompts, and with layers that are a rule of thumb instead of located.
Source: Zhang et al., "Locate-then-edit for Multi-hop Factual Recall under Knowledge Editing",
Section 5.

The released code of ACE (repository yjywdzh/ACE, commit c1a425b) does something else than its
paper: one search per edit, at the last layer of both groups, of the single-hop prompt at its
subject's last token; the one pair of vectors it finds is written into both groups, the shallower
first, each as if it were alone, through attention's output projections and FFNs. The residual is
what the modules lack at that last layer, so that a group's last layer is asked for all that
remains: the query layers are asked for the whole of it, and the value layers for what they missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from ..editing.request import Request, batch_of, request, unique_requests
from ..editing.write import Stage
from ..model.lm import LM
from ..records import Edit
from ..settings import Listed, settings
from .base import Staged
from .memit import MEMIT

Stages = Annotated[tuple[Literal["value", "query"], ...], Listed]
Prompts = Annotated[tuple[Literal["single", "hops"], ...], Listed]

#: what both stages must agree on: the texts that prompts are read after
READING = ("n_prefixes", "prefix_length", "seed", "texts")
#: what they must agree on besides, if both write the vectors of one search
SHARED = ("position", "objective")


@settings()
class ACE(Staged):
    """Settings of ACE; ``editor(lm, edits, moments)`` edits one batch, ``each`` many.

    ``value`` and ``query`` are editors of one stage each: MEMIT, PMET or AlphaEdit. The single-hop
    prompt is read at their ``position``, a multi-hop prompt always at its last token; both stages
    read prompts after the same texts. A stage leaves out edits that it has no prompt for.
    Raises ValueError, and leaves the model as it was, for unknown settings, no edit, edits that
    contradict or that no stage has a prompt for, a layer without a moment.
    """

    value: MEMIT  #: writes the value layers; in the paper at the last token
    query: MEMIT  #: writes the query layers
    stages: Stages = ("value", "query")  #: which, in which order
    chained: bool = False  #: whether a stage searches on the model that the ones before have edited
    value_prompts: Prompts = ("single", "hops")
    query_prompts: Prompts = ("single",)

    def __post_init__(self):
        for name in ("stages", "value_prompts", "query_prompts"):
            names = getattr(self, name)
            if not names or len(set(names)) < len(names):
                raise ValueError(f"{name} {names!r} must name at least one, and each once")
        for name in READING:
            value, query = getattr(self.value, name), getattr(self.query, name)
            if value != query:
                raise ValueError(
                    f"the stages must read prompts after the same texts: {name} is {value!r} in "
                    f"value and {query!r} in query"
                )

    # ------------------------------------------------------------------ layers and stages

    @property
    def value_layers(self) -> tuple[int, ...]:
        return self.value.layers

    @property
    def query_layers(self) -> tuple[int, ...]:
        return self.query.layers

    @property
    def layers(self) -> tuple[int, ...]:
        """All layers that are written, in order."""
        return tuple(sorted({i for stage in self.stages for i in self.writer(stage).layers}))

    @property
    def plan(self) -> dict[str, Stage]:
        return {stage: self.writer(stage).stage for stage in self.stages}

    def writer(self, stage: str) -> MEMIT:
        """The editor of one stage, "value" or "query"."""
        return self.value if stage == "value" else self.query

    def prompts(self, stage: str) -> tuple[str, ...]:
        """The kinds of prompts that one stage writes."""
        return self.value_prompts if stage == "value" else self.query_prompts

    # ------------------------------------------------------------------ the same, but for ...

    def at(
        self,
        query_layers: Sequence[int] | None = None,
        value_layers: Sequence[int] | None = None,
    ) -> ACE:
        """The same editor on other layers; None: on those that it has."""
        query = self.query_layers if query_layers is None else tuple(query_layers)
        value = self.value_layers if value_layers is None else tuple(value_layers)
        return replace(
            self,
            query=replace(self.query, layers=query),
            value=replace(self.value, layers=value),
        )

    def on(self, editor: MEMIT) -> ACE:
        """The same layers, positions and texts, but both stages written as ``editor`` writes."""

        def write(stage: str) -> MEMIT:
            own = self.writer(stage)
            same = {name: getattr(own, name) for name in ("layers", "position", *READING)}
            return replace(editor, **same)

        return replace(self, value=write("value"), query=write("query"))

    def with_both(self, **changes: Any) -> ACE:
        """The same editor with ``changes`` of the settings of both stages."""
        return replace(
            self, value=replace(self.value, **changes), query=replace(self.query, **changes)
        )

    def with_texts(self, texts: Sequence[str]) -> ACE:
        """The same editor, with ``texts`` read before prompts instead of sampled ones."""
        return self.with_both(texts=tuple(texts))

    # ------------------------------------------------------------------ what is read

    @property
    def texts(self) -> tuple[str, ...] | None:
        """What both stages read prompts after, if not sampled texts."""
        return self.value.texts

    def prefixes(self, lm: LM) -> tuple[str, ...]:
        """What both stages read prompts after."""
        return self.value.prefixes(lm)

    def requests(self, edits: Sequence[Edit], stage: str, group: int = 0) -> list[Request]:
        """The requests of one stage for one batch of edits, single-hop prompts first.

        Raises ValueError as ``editing.request.requests``, and if no stage has a prompt.
        """
        hops = any(edit.hops for edit in batch_of(edits))
        if not hops and not any("single" in self.prompts(name) for name in self.stages):
            raise ValueError(
                "the edits have no multi-hop prompts and single-hop prompts are switched off"
            )
        prompts, position = self.prompts(stage), self.writer(stage).position
        requests = [request(edit, position, group) for edit in edits]
        if "single" not in prompts:
            requests = []
        if "hops" in prompts:
            requests += [request(edit, "last", group, hop) for edit in edits for hop in edit.hops]
        return unique_requests(requests)


@settings()
class IFMET(ACE):
    """ACE's settings: query layers take the first edit, value layers the further one.

    Edits without multi-hop prompts get the first edit only.
    """

    stages: Stages = ("query", "value")
    chained: bool = True
    value_prompts: Prompts = ("hops",)


@settings()
class ReleasedACE(ACE):
    """ACE's settings; the query layers take the edit first, the value layers what it left to do.

    Both stages write one search's vectors: their prompts, positions and objectives are the same.
    """

    stages: Stages = ("query", "value")
    value_prompts: Prompts = ("single",)

    shared = True

    def __post_init__(self):
        super().__post_init__()
        pairs = {name: (getattr(self.value, name), getattr(self.query, name)) for name in SHARED}
        pairs["prompts"] = (self.value_prompts, self.query_prompts)
        for name, (value, query) in pairs.items():
            if value != query:
                raise ValueError(
                    f"both stages write one search's vectors: {name} is {value!r} in value and "
                    f"{query!r} in query"
                )

    @property
    def plan(self) -> dict[str, Stage]:
        return {name: replace(stage, at=max(self.layers)) for name, stage in super().plan.items()}
