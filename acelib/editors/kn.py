"""KN: the neurons that hold an answer, and a write into their value vectors (Dai et al., ACL 2022).

    Attr(l, i) = a_i 1/m sum_{k=1..m} dp(o)/da_i at (k/m) a      (integrated gradients)
    a: the activations of FFN l at the prompt's last token, scaled together
    knowledge neurons: Attr > threshold * max Attr, over all layers
    update: fc2_i <- fc2_i - old E[o] + new E[o*]      erase: fc2_i <- 0      E: input embedding

An answer of several tokens: mean Attr of its tokens, each behind those before it; E summed over
the tokens. The activation is the paper's, after the nonlinearity (the key, fc2's input); the
released code takes the one before it (the gate's, where there is one): "pre". Edits of a batch are
located on the unedited model.

Of a fact in several wordings (the edit's prompt and its paraphrases) the neurons are those of the
prompt itself, as in KN; those of any wording; or those of

    CAS(l, i) = beta_1 mean_q Attr_q(l, i) - beta_2 std_q Attr_q(l, i) > cut * max CAS

over the wordings q (Consistency-Aware KN modification: Query Localization, Eq. 2 and 7).

The released code (EasyEdit, after EleutherAI's) is not followed where it tokenises answers without
their leading space, scores the later tokens of an answer at the position of the first and after the
model's own guesses, takes m points from 0 to 1 as a mean (and with one point, the preset for Qwen,
the gradient at 0), or subtracts an embedding of the model's guess instead of the old answer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt
from torch import Tensor

from ..attribution.consistency import consistency_aware
from ..attribution.integrated import Attribution, knowledge_neurons, localize
from ..editing.moments import Moments
from ..editing.request import Request, check_lengths, request, requests
from ..model.lm import LM
from ..model.states import chunked
from ..model.update import Factors, Update
from ..records import Edit
from ..settings import Fraction, Listed, settings
from .base import Editor


@settings()
class KN(Editor):
    """Settings of KN; ``editor(lm, edits)`` edits one batch, ``each`` many; no moments are used.

    Raises ValueError, and leaves the model as it was, for settings out of range, no edit, edits
    that contradict or do not name one old answer (``target_true``), an answer that no neuron makes
    likelier, an edit without another wording where neurons of several are asked for.
    """

    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.2  #: share of the largest attribution
    steps: PositiveInt = 20  #: m, points of the integral
    activation: Literal["post", "pre"] = "post"  #: after the nonlinearity, or before
    mode: Literal["update", "erase"] = "update"
    #: lambda_1, for each token of the old answer; None, as released: 2 if it is the only, else 1
    old: float | None = None
    #: lambda_2, for each token of the new answer; the paper has 8, and 1 for the old one
    new: float = 1.0
    #: of the prompt itself; of any of its wordings; those that are consistent over them (CAS)
    neurons: Literal["own", "union", "consistent"] = "own"
    method: Literal["IG", "SIG", "AMIG"] = "IG"  #: of attribution
    beta: Annotated[tuple[float, float], Listed] = (0.7, 0.3)  #: beta_1 and beta_2 of CAS
    cut: Fraction = 0.3  #: share of the largest CAS

    @torch.inference_mode(False)
    def each(
        self, lm: LM, groups: Sequence[Sequence[Edit]], moments: Moments | None = None
    ) -> list[Update]:
        """One Update for each group, every group as if it were alone, all in one batch."""
        # 1. The old answer of each request.
        olds, updates = _old_answers(groups), [Update() for _ in groups]
        texts = {} if self.neurons == "own" else _wordings(groups)
        check_lengths(lm, olds)
        check_lengths(lm, [replace(r, target=old) for r, old in olds.items()])
        batch = list(olds)

        def locate(piece: range) -> list[Bool[Tensor, "layers d_mlp"]]:
            some = [batch[i] for i in piece]
            if self.neurons == "own":
                return self._locate(lm, [(r.prompt, olds[r]) for r in some])
            return [self._located_together(lm, texts[r], olds[r]) for r in some]

        # 2. The neurons of all requests, on the model as it is.
        parts = chunked(locate, len(batch), 32)
        # 3. Write request by request.
        for r, neurons in zip(batch, (one for part in parts for one in part), strict=True):
            updates[r.group] += self._write(
                lm, neurons, lm.answer_ids(olds[r]), lm.answer_ids(r.target), updates[r.group]
            )
        return self.label(lm, groups, updates)

    def _locate(
        self, lm: LM, pairs: Sequence[tuple[str, str]]
    ) -> list[Bool[Tensor, "layers d_mlp"]]:
        """Whether each neuron is a knowledge neuron of each (prompt, answer)."""
        prompts, answers = [prompt for prompt, _ in pairs], [answer for _, answer in pairs]
        scores = localize(lm, prompts, answers, self._how)
        for (prompt, answer), score in zip(pairs, scores, strict=True):
            _check_attribution(score, prompt, answer)
        return list(knowledge_neurons(scores, self.threshold))

    def _located_together(
        self, lm: LM, prompts: Sequence[str], answer: str
    ) -> Bool[Tensor, "layers d_mlp"]:
        """Whether each neuron is one of a fact, located by several wordings."""
        scores = localize(lm, prompts, [answer] * len(prompts), self._how)
        for prompt, score in zip(prompts, scores, strict=True):
            _check_attribution(score, prompt, answer)
        if self.neurons == "union":
            return knowledge_neurons(scores, self.threshold).any(0)
        return consistency_aware(scores, self.beta, self.cut)

    @property
    def _how(self) -> Attribution:
        return Attribution(
            method=self.method, steps=self.steps, activation=self.activation, tokens="mean"
        )

    @torch.no_grad()
    def _write(
        self,
        lm: LM,
        neurons: Bool[Tensor, "layers d_mlp"],
        old: list[int],
        new: list[int],
        so_far: Update,
    ) -> Update:
        """The change of ``neurons``; what ``so_far`` erases is not erased again."""
        if self.mode == "update":
            return value_update(lm, neurons, self._change(lm, old, new))
        left = neurons.clone()
        for layer, factors in so_far.factors.items():
            left[layer] &= ~factors.right.any(1)
        return value_update(lm, left)

    def _change(self, lm: LM, old: list[int], new: list[int]) -> Float[Tensor, " d_model"]:
        """What is added to a value vector: lambda_2 E[new] - lambda_1 E[old]."""
        E, dtype = lm.embed.weight, torch.promote_types(lm.dtype, torch.float32)
        weight = self.old if self.old is not None else 2.0 if len(old) == 1 else 1.0
        return self.new * E[new].to(dtype).sum(0) - weight * E[old].to(dtype).sum(0)


@torch.no_grad()
def value_update(
    lm: LM,
    neurons: Bool[Tensor, "layers d_mlp"],
    change: Float[Tensor, " d_model"] | None = None,
) -> Update:
    """The Update that adds ``change`` to the value vectors of some neurons, or erases them (None).

    Source: Query Localization, Eq. 2.
    """
    dtype, factors = torch.promote_types(lm.dtype, torch.float32), {}
    for layer in neurons.any(1).nonzero()[:, 0].tolist():
        mine = neurons[layer]
        if change is not None:
            factors[layer] = Factors(change[:, None], mine[:, None].to(dtype))
            continue
        at = mine.nonzero()[:, 0]
        factors[layer] = Factors(
            -lm.weight(layer)[:, at].to(dtype),
            torch.eye(lm.d_mlp, dtype=dtype, device=at.device)[:, at],
        )
    return Update(factors)


def _old_answers(groups: Sequence[Sequence[Edit]]) -> dict[Request, str]:
    """The requests of all groups with the answers that they are to lose.

    Raises ValueError as ``requests``, for an edit without an old answer, or with two of them.
    """
    olds: dict[Request, str] = {}
    for g, edits in enumerate(groups):
        requests(edits, "last", g)
        for edit in edits:
            old = (edit.target_true or "").strip()
            if not old:
                raise ValueError(
                    f"edit of {edit.subject!r}: KN needs the old answer, but target_true is empty"
                )
            r = request(edit, "last", g)
            if olds.setdefault(r, old) != old:
                raise ValueError(
                    f"{r.prompt!r} -> {r.target!r} is given two old answers: "
                    f"{olds[r]!r} and {old!r}"
                )
    return olds


def _wordings(groups: Sequence[Sequence[Edit]]) -> dict[Request, list[str]]:
    """The prompt of each request and its paraphrases.

    Raises ValueError for an edit that has only one wording.
    """
    texts: dict[Request, list[str]] = {}
    for g, edits in enumerate(groups):
        for edit in edits:
            own = texts.setdefault(request(edit, "last", g), [edit.text])
            own += [wording.replace("{}", edit.subject).rstrip() for wording in edit.paraphrases]
            if len(set(own)) < 2:
                raise ValueError(
                    f"the edit of {edit.subject!r} has one wording; neurons of several wordings "
                    "need paraphrases"
                )
    return {r: list(dict.fromkeys(own)) for r, own in texts.items()}


def _check_attribution(score: Float[Tensor, "layers d_mlp"], prompt: str, answer: str) -> None:
    if not (score.isfinite().all() and score.max() > 0):
        raise ValueError(
            f"no neuron makes {answer!r} likelier after {prompt!r}, or an attribution is not finite"
        )
