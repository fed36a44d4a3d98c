"""IFMET: a first edit of shallow layers, then a further one of deep layers with multi-hop prompts (Zhang et al., 2024).

First edit: the single-hop prompt at the subject's last token, as PMET. Further edit, searched and written on the model so edited: the
multi-hop prompts that end in the fact ("The sport of the spouse of X is"), at their last token, into deeper layers. These are ACE's two
stages in the other order, with fewer prompts, and with layers that are a rule of thumb instead of located.
Source: Zhang et al., "Locate-then-edit for Multi-hop Factual Recall under Knowledge Editing", Section 5.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..editing.search import Objective
from .ace import ACE


@dataclass(frozen=True, kw_only=True)
class IFMET(ACE):
    """ACE's fields: query layers take the first edit, value layers the further one. Edits without multi-hop prompts get the first only."""

    stages: tuple[str, ...] = ("query", "value")
    chained: bool = True
    value_prompts: tuple[str, ...] = ("hops",)


#: First edit: PMET's layers. Further edit: recalled from the paper for GPT-J, not read again.
PRESETS = {
    "gpt-j-6b": IFMET(query_layers=(3, 4, 5, 6, 7, 8), value_layers=(16, 17, 18, 19, 20)),
    # derived: PMET's layers; the same depth as in GPT-J, as a share of all layers
    "qwen3-8b": IFMET(query_layers=(4, 5, 6, 7, 8), value_layers=(21, 22, 23, 24, 25)),
    "gptj-mini": IFMET(
        query_layers=(1, 2),
        value_layers=(5, 6, 7),
        weight=1.0,
        objective=Objective(kind="pmet", steps=100, lr=2.0, decay=0.0, clamp=None),
        n_prefixes=2,
    ),
    "qwen3-mini": IFMET(
        query_layers=(1, 2, 3),
        value_layers=(5, 6),
        weight=1.0,
        objective=Objective(kind="pmet", steps=100, lr=2.0, decay=0.0, clamp=None),
        n_prefixes=2,
    ),
}
