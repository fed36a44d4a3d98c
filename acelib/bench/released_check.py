"""acelib beside the released procedures of ``released.py``: the same work by both, and the largest
relative difference of the results.

On tiny random models: facts with subjects of several tokens, at the beginning and inside the
prompt, and repeated in it; targets of one, three and five tokens; several prefixes, the same texts
for both sides.
"""

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from unittest import mock

import torch
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3

from ..attribution.integrated import integrated_gradients
from ..editing.keys import contexts, keys_at
from ..editing.moments import Moments
from ..editing.request import requests
from ..editing.search import Objective, target_vectors
from ..editors import ACE, FT, IFMET, KN, MEMIT, PMET, ROME, AlphaEdit
from ..editors.base import edit_in_turn
from ..records import Edit
from . import released
from .tiny import make_tiny

EDITS = [
    Edit("Tim Duncan", "{} plays the sport of", "chess", "basketball"),
    Edit("William Shakespeare", "The author {} is in the company of", "Steve Jobs", "Apple"),
    Edit("Hamlet", "Is Hamlet a company? In {}'s country golf is", "Paris", "Hamlet"),
]
HOPS = [
    replace(
        e,
        hops=(
            f"The sport of the author of {e.subject} is",
            f"{e.subject} is located in the country of",
        ),
    )
    for e in EDITS
]
CONTEXTS = ("", "The golf is. ", "Because Apple plays. ", "I Jobs. ")
BLOCK = Objective(steps=9, lr=0.1, decay=0.3, clamp=1.5, kl=0.5)
MLP = replace(BLOCK, kind="mlp", clamp=4.0)
JOINT = replace(BLOCK, kind="pmet", kl=1.0)
PARTS = {"block": ("block",), "mlp": ("mlp",), "pmet": ("attn", "fc2")}
POSITIONS = {"subject_last": released.at_subject, "last": released.at_last}


class Float64:
    """torch, but what a model does in float32 whatever its precision is (RMS norms, the attention
    of GPT-J) is done in float64.
    """

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@contextmanager
def in_float64():
    with ExitStack() as stack:
        for modeling in (modeling_gptj, modeling_llama, modeling_qwen3):
            stack.enter_context(mock.patch.object(modeling, "torch", Float64()))
        yield


def moments(lm, floor=0.1):
    """Random second moments, positive: eigenvalues from ``floor`` up."""
    g, eye = torch.Generator().manual_seed(5), torch.eye(lm.d_mlp, dtype=torch.float64)
    X = [torch.randn(lm.d_mlp, 20, dtype=torch.float64, generator=g) for _ in range(lm.n_layers)]
    return Moments({i: x @ x.T / 20 + floor * eye for i, x in enumerate(X)}, 20)


def search(objective):
    named = {
        name: getattr(objective, name) for name in ("steps", "lr", "decay", "clamp", "kl", "floor")
    }
    return named | dict(joint=objective.kind == "pmet")


def dense(update):
    return {layer: update.delta(layer) for layer in update.layers}


# -------------------------- each: what the procedure gives, and how the library is asked for it
# Results are nested lists or dicts of matrices.


def keys(lm):
    return (
        [
            released.keys(lm, [released.at_subject(e) for e in EDITS], layer, CONTEXTS)
            for layer in (0, 2)
        ],
        lambda lm: [keys_at(lm, requests(EDITS), layer, CONTEXTS) for layer in (0, 2)],
    )


def targets(lm, objective, position="subject_last"):
    """z, and from the first update on delta, after 0, 1, 2, 5 and 8 Adam updates."""
    modules = [released.module(lm, part, 1) for part in PARTS[objective.kind]]
    after = (0, 1, 2, 5, 8)
    found = [
        released.target_vector(
            lm, POSITIONS[position](e), modules, CONTEXTS[:2], **search(objective)
        )
        for e in EDITS
    ]

    def library(lm):
        got = [
            target_vectors(
                lm, requests(EDITS, position), 1, replace(objective, steps=t + 1), CONTEXTS[:2]
            )
            for t in after
        ]
        assert [set(g.steps.tolist()) for g in got] == [{t} for t in after]
        assert not got[0].delta.any()
        return [
            [g.value[i], g.delta[:, i]] if t else [g.value[i]]
            for t, g in zip(after, got, strict=True)
            for i in range(len(EDITS))
        ]

    return [
        [h_0[-1] + path[t][-1], path[t]] if t else [h_0[-1] + path[t][-1]]
        for t in after
        for h_0, path, _ in found
    ], library


def batch(lm, editor, procedure, objective):
    """MEMIT, PMET."""
    C, layers, asks = moments(lm), (0, 1, 2), [released.at_subject(e) for e in EDITS]
    mine = editor(layers=layers, objective=objective, weight=2.0, texts=CONTEXTS[1:3])
    return procedure(
        lm, asks, layers, 2.0, C.matrices, CONTEXTS[:3], **search(objective)
    ), lambda lm: dense(mine(lm, EDITS, C))


def alphaedit(lm):
    """Two batches, with what the first leaves behind."""
    C, batches = moments(lm, 1e-3), [EDITS[:2], EDITS[2:]]
    sums: dict[int, torch.Tensor] = {}
    editor = AlphaEdit(
        layers=(0, 1, 2),
        weight=0.5,
        threshold=2e-2,
        objective=replace(BLOCK, steps=4),
        texts=CONTEXTS[1:3],
    )
    found = []
    for written, S, P in released.alphaedit(
        lm,
        [[released.at_subject(e) for e in some] for some in batches],
        editor.layers,
        0.5,
        2e-2,
        C.matrices,
        CONTEXTS[:3],
        **search(editor.objective),
    ):
        sums = released.added(sums, written)
        found.append([sums, {layer: P[layer] @ S[layer] @ P[layer] for layer in written}])
    return found, lambda lm: [
        [dense(state), {layer: H @ H.T for layer, H in state.keys.items()}]
        for state in edit_in_turn(lm, editor, batches, C)
    ]


def rome(lm, second_moment):
    """Several facts one after the other, each searched on the model as edited so far."""
    C, texts, objective = moments(lm), contexts(lm, 2, 6), replace(MLP, steps=4)
    editor = ROME(
        layer=1, second_moment=second_moment, objective=objective, n_prefixes=2, prefix_lengths=(6,)
    )
    return (
        {
            1: released.rome(
                lm, EDITS, 1, C[1] if second_moment else None, texts, **search(objective)
            )
        },
        lambda lm: dense(editor(lm, EDITS, C)),
    )


def two_stages(lm, editor, procedure, first, second):
    """IFMET, ACE."""
    C, objective = moments(lm), replace(JOINT, steps=3)
    query = PMET(layers=first, weight=2.0, objective=objective, texts=CONTEXTS[1:2])
    mine = editor(query=query, value=replace(query, layers=second, position="last"))
    return procedure(
        lm, HOPS, first, second, 2.0, C.matrices, CONTEXTS[:2], **search(objective)
    ), lambda lm: dense(mine(lm, HOPS, C))


def ft(lm, loss, bound):
    """Batches of two and one; the bound is reached; the bias of the matrix is not trained."""
    editor = FT(layers=(2,), loss=loss, steps=6, lr=2e-3, norm_constraint=bound, batch_size=2)
    found, _ = released.ft(
        lm, EDITS, (2,), lr=2e-3, steps=6, ball=bound, batch_size=2, loss_at=loss
    )
    assert bound is None or (found[2].abs() > bound * (1 - 1e-6)).any()
    return found, lambda lm: dense(editor(lm, EDITS))


def kn(lm, activation):
    e, before = EDITS[1], activation == "pre"
    editor = KN(threshold=0.3, steps=4, activation=activation)

    def library(lm):
        prompt, answer = lm.tokenizer(e.text)["input_ids"], lm.answer_ids(e.target_true)
        rows = [(prompt + answer[:t], token) for t, token in enumerate(answer)]
        return [[integrated_gradients(lm, rows, 4, activation).mean(0)], dense(editor(lm, EDITS))]

    return [
        [released.kn_attributions(lm, e.text, e.target_true, 4, before)],
        released.kn(lm, EDITS, threshold=0.3, steps=4, before_nonlinearity=before),
    ], library


COMPARISONS: dict[str, Callable[..., tuple]] = {
    "keys": keys,
    "target vectors, block (MEMIT)": partial(targets, objective=BLOCK),
    "target vectors, FFN (ROME)": partial(targets, objective=MLP),
    "target vectors, attention and FFN (PMET)": partial(targets, objective=JOINT),
    "target vectors, attention and FFN, last token": partial(
        targets, objective=JOINT, position="last"
    ),
    "ROME": partial(rome, second_moment=True),
    "ROME, no second moment": partial(rome, second_moment=False),
    "MEMIT": partial(
        batch, editor=MEMIT, procedure=released.memit, objective=replace(BLOCK, steps=4)
    ),
    "PMET": partial(batch, editor=PMET, procedure=released.pmet, objective=replace(JOINT, steps=4)),
    "AlphaEdit, two batches": alphaedit,
    "FT, last position": partial(ft, loss="last", bound=None),
    "FT, last position, bounded": partial(ft, loss="last", bound=5e-4),
    "FT, target": partial(ft, loss="target", bound=None),
    "FT, target, bounded": partial(ft, loss="target", bound=5e-4),
    "KN, before the nonlinearity": partial(kn, activation="pre"),
    "KN, after the nonlinearity": partial(kn, activation="post"),
    "IFMET": partial(
        two_stages, editor=IFMET, procedure=released.ifmet, first=(0, 1), second=(2, 3)
    ),
    "ACE, query below value layers": partial(
        two_stages, editor=ACE, procedure=released.ace, first=(0, 1), second=(2, 3)
    ),
    "ACE, layers overlapping": partial(
        two_stages, editor=ACE, procedure=released.ace, first=(0, 1), second=(1, 2)
    ),
    "ACE, query above value layers": partial(
        two_stages, editor=ACE, procedure=released.ace, first=(1, 2), second=(0, 1)
    ),
}


# ---------------------------------------------------------------------- comparing


def difference(found, expected):
    """||found - expected|| / ||expected||, the largest over all matrices."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list):
        return max(difference(a, b) for a, b in zip(found, expected, strict=True))
    return ((found.to(expected) - expected).norm() / expected.norm()).item()


def differences(name, lm, *others):
    """Of the library on ``lm``, in float64 throughout, and on ``others`` as they are, from the
    procedure on ``lm``.
    """
    with in_float64():
        expected, library = COMPARISONS[name](lm)
        first = difference(library(lm), expected)
    return [first, *(difference(library(other), expected) for other in others)]


def agreement(name: str, family: str) -> dict[str, float]:
    """The largest relative difference of a comparison on a tiny random model of a family, of the
    library in float64 and in float32.

    name: of ``COMPARISONS``.   Raises ValueError for another one.
    """
    if name not in COMPARISONS:
        raise ValueError(f"unknown comparison {name!r}; known: {', '.join(COMPARISONS)}")
    exact, single = differences(name, make_tiny(family), make_tiny(family, torch.float32))
    return {"float64": exact, "float32": single}
