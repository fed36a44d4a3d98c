"""MEMIT and the two editors that share its procedure: PMET and AlphaEdit.

MEMIT (Meng et al., ICLR 2023): one target vector for each fact at the subject's last token, spread
evenly over a range of layers.

    dW_l = R_l K_l^T (weight C_l + K_l K_l^T)^{-1},   R_l = (Z - H_L) / (L - l + 1)

PMET (Li et al., AAAI 2024): target vectors of attention and FFN searched together, of which only
the FFN's are written, spread by root.

    R_l = (Z - F_L) / sqrt(L - l + 1)

Its released code can write both, attention's through its output projection, R_l = (Z' - A_L) / ...
with that matrix's own keys. In a parallel block (GPT-J) the two vectors are the same one, so the
FFN's alone is half of what was searched; ``writes="whole"`` writes both through the FFN.

AlphaEdit (Fang et al., ICLR 2025): MEMIT's targets and spread, every write inside the null space of
preserved keys.

    dW_l = R_l K_l^T P (P (K_l K_l^T + H_l H_l^T) P + weight I)^{-1}

P projects onto the directions in which texts hardly move the keys, H_l holds the keys of earlier
edits. The state of a sequence of edits is the sum of their Updates: its ``keys`` are the next
call's ``history``. The released code reads the keys once more after a batch is written; a layer's
key depends on the layers below only, so they are those of the write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from ..editing.keys import contexts
from ..editing.request import Position, Request, requests
from ..editing.search import Objective
from ..editing.write import Share, Stage, Writes
from ..model.lm import LM
from ..records import Edit
from ..settings import Fraction, Layers, Texts, settings
from .base import Staged


@settings()
class MEMIT(Staged):
    """Settings of MEMIT; ``editor(lm, edits, moments)`` edits one batch, ``each`` many.

    Raises ValueError, and leaves the model as it was, for no edit, edits that contradict, a layer
    that does not exist or has no moment.
    """

    layers: Layers  #: written, in order
    weight: PositiveFloat = 15000.0  #: lambda, on the mean second moment
    objective: Objective = Objective()
    share: Share = "even"
    position: Position = "subject_last"
    n_prefixes: NonNegativeInt = 5  #: texts sampled from the model that prompts are also read after
    prefix_length: PositiveInt = 10  #: tokens
    seed: int = 0  #: of the sampling
    texts: Texts | None = None  #: read before prompts instead of sampled ones

    @property
    def stage(self) -> Stage:
        """The search and the write of one batch."""
        return Stage(self.layers, self.weight, self.objective, self.share)

    @property
    def plan(self) -> dict[str, Stage]:
        return {"only": self.stage}

    def requests(self, edits: Sequence[Edit], stage: str = "only", group: int = 0) -> list[Request]:
        return requests(edits, self.position, group)

    def prefixes(self, lm: LM) -> tuple[str, ...]:
        """Nothing, then ``texts``, or, if that is None, texts sampled from the model as it is."""
        if self.texts is not None:
            return ("", *self.texts)
        return contexts(lm, self.n_prefixes, self.prefix_length, self.seed)

    def with_texts(self, texts: Sequence[str]) -> MEMIT:
        """The same editor, with ``texts`` read before prompts instead of sampled ones."""
        return replace(self, texts=tuple(texts))


@settings()
class PMET(MEMIT):
    """MEMIT's procedure with PMET's objective, share and weight."""

    weight: PositiveFloat = 6000.0  #: lambda, on the mean second moment
    objective: Objective = Objective(kind="pmet", steps=30, lr=0.2, kl=1.0)
    share: Share = "root"
    writes: Writes = "ffn"  #: "ffn" (the paper), "both" (attention's too), or both as "whole"

    def __post_init__(self):
        _ = self.stage  # what does not go together is refused now, not at the first edit

    def __repr__(self) -> str:
        """``writes`` is said only if it is not the usual one: rows are kept under this text."""
        said = (f.name for f in fields(self) if f.name != "writes" or self.writes != f.default)
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in said)})"

    @property
    def stage(self) -> Stage:
        return replace(super().stage, writes=self.writes)


@settings()
class AlphaEdit(MEMIT):
    """MEMIT's procedure with a write inside a null space; ``each`` also takes a ``history``.

    A threshold is in squared units of a model's activations: the released one fits large models.
    ``null_share`` means the same at every layer of every model. (The author's threshold leaves
    about 0.7 of Llama 3's directions.)
    """

    weight: PositiveFloat = 10.0  #: L2, on the change itself
    #: eigenvectors of the second moment with smaller eigenvalues span the null space
    threshold: PositiveFloat = 2e-2
    #: instead of a threshold: the share of eigenvectors, smallest eigenvalues first
    null_share: Fraction | None = None

    @property
    def stage(self) -> Stage:
        null_space = (self.threshold, None) if self.null_share is None else (None, self.null_share)
        return replace(super().stage, null_space=null_space)
