"""acelib against the released procedures of ``released.py``: same trajectory, same keys, same dW, in float64, on all four families."""

from dataclasses import replace

import pytest
import released
import torch
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3

from acelib.covariance import Moments
from acelib.editors import ACE, IFMET, MEMIT, PMET, AlphaEdit
from acelib.editors.ft import FT
from acelib.editors.kn import KN, integrated_gradients
from acelib.editors.rome import ROME
from acelib.facts import Edit
from acelib.keys import contexts, keys_at, requests
from acelib.sequential import edit_in_turn
from acelib.targets import Objective, target_vectors

SAME = 1e-8  #: relative difference allowed
EDITS = [Edit("Tim Duncan", "{} plays the sport of", "chess"),
         Edit("William Shakespeare", "The author {} is in the company of", "Steve Jobs"),
         Edit("Hamlet", "Is Hamlet a company? In {}'s country golf is", "Paris")]
HOPS = [replace(e, hops=(f"The sport of the author of {e.subject} is", f"{e.subject} is located in the country of")) for e in EDITS]
CONTEXTS = ("", "The golf is. ", "Because Apple plays. ", "I Jobs. ")
BLOCK = Objective(steps=9, lr=0.1, decay=0.3, clamp=1.5, kl=0.5)
JOINT = replace(BLOCK, kind="pmet", kl=1.0)


class Float64:
    """torch, but what a model does in float32 whatever its precision is (RMS norms, the attention of GPT-J) is done in float64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture(autouse=True)
def float64(monkeypatch):
    for modeling in (modeling_gptj, modeling_llama, modeling_qwen3):
        monkeypatch.setattr(modeling, "torch", Float64())


def moments(lm, floor=0.1):
    """Random second moments, positive: eigenvalues from ``floor`` up."""
    g, eye = torch.Generator().manual_seed(5), torch.eye(lm.d_mlp, dtype=torch.float64)
    X = [torch.randn(lm.d_mlp, 20, dtype=torch.float64, generator=g) for _ in range(lm.n_layers)]
    return Moments({i: x @ x.T / 20 + floor * eye for i, x in enumerate(X)}, 20)


def search(objective):
    named = {name: getattr(objective, name) for name in ("steps", "lr", "decay", "clamp", "kl", "floor")}
    return named | dict(joint=objective.kind == "pmet")


def difference(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def same(update, written):
    """The largest relative difference of dW over the layers."""
    assert update.layers == tuple(written)
    worst = max(difference(update.delta(layer), written[layer]) for layer in written)
    assert worst <= SAME
    return worst


def test_the_facts_are_hard_enough(tiny):
    lm = tiny("gpt2")
    assert [len(lm.answer_ids(e.target_new)) for e in EDITS] == [3, 5, 1]
    assert all(len(lm.tokenizer(e.subject)["input_ids"]) > 1 for e in EDITS)


def test_keys(any_lm):
    for layer in (0, 2):
        expected = released.keys(any_lm, [released.at_subject(e) for e in EDITS], layer, CONTEXTS)
        assert difference(keys_at(any_lm, requests(EDITS), layer, CONTEXTS), expected) <= SAME


SEARCHES = {"block": BLOCK, "mlp": replace(BLOCK, kind="mlp", clamp=4.0), "pmet": JOINT}
PARTS = {"block": ("block",), "mlp": ("mlp",), "pmet": ("attn", "fc2")}
POSITIONS = {"subject_last": released.at_subject, "last": released.at_last}


@pytest.mark.parametrize("kind, position", [("block", "subject_last"), ("mlp", "subject_last"), ("pmet", "subject_last"), ("pmet", "last")])
def test_trajectories(any_lm, kind, position):
    """delta after 0, 1, 2, 5 and 8 Adam updates."""
    lm, objective, modules = any_lm, SEARCHES[kind], [released.module(any_lm, part, 1) for part in PARTS[kind]]
    expected = [released.target_vector(lm, POSITIONS[position](e), modules, CONTEXTS[:2], **search(objective)) for e in EDITS]
    for updates in (0, 1, 2, 5, 8):
        got = target_vectors(lm, requests(EDITS, position), 1, replace(objective, steps=updates + 1), CONTEXTS[:2])
        for i, (h_0, trajectory) in enumerate(expected):
            assert got.steps[i] == updates and difference(got.value[i], h_0[-1] + trajectory[updates][-1]) <= SAME
            assert difference(got.delta[:, i], trajectory[updates]) <= SAME if updates else not got.delta.any()


def runner_up(lm, e):
    """A word that the model nearly says."""
    words = [lm.tokenizer.decode(t).strip() for t in released.run(lm, released.at_last(e).row(lm)[0])[0][-1].argsort(descending=True)[1:]]
    return next(word for word in words if word.isalpha() and len(lm.answer_ids(word)) == 1)


@pytest.mark.parametrize("objective", [replace(BLOCK, steps=14, clamp=None, floor=3.6), replace(JOINT, steps=14, lr=0.01, clamp=None)],
                         ids=["a low loss", "arg-max and a small KL"])
def test_stops(tiny, objective):
    """Every fact at its own step; with PMET's objective the NLL counts a tenth while the target is the arg-max."""
    lm, lengths, parts = tiny("llama"), [], PARTS[objective.kind]
    easy = [replace(e, target_new=runner_up(lm, e)) for e in EDITS]
    got = target_vectors(lm, requests(easy, "last"), 1, objective)
    for i, e in enumerate(easy):
        modules = [released.module(lm, part, 1) for part in parts]
        _, trajectory = released.target_vector(lm, released.at_last(e), modules, ("",), **search(objective))
        assert got.steps[i] == len(trajectory) - 1 and difference(got.delta[:, i], trajectory[-1]) <= SAME
        lengths.append(len(trajectory))
    assert min(lengths) < objective.steps and len(set(lengths)) > 1


@pytest.mark.parametrize("editor, procedure", [(MEMIT, released.memit), (PMET, released.pmet)])
def test_memit_and_pmet(any_lm, editor, procedure):
    lm, C, objective = any_lm, moments(any_lm), replace(JOINT if editor is PMET else BLOCK, steps=4)
    expected = procedure(lm, [released.at_subject(e) for e in EDITS], (0, 1, 2), 2.0, C.matrices, CONTEXTS[:3], **search(objective))
    same(editor(layers=(0, 1, 2), objective=objective, weight=2.0, texts=CONTEXTS[1:3])(lm, EDITS, C), expected)


def test_alphaedit(any_lm):
    """Two batches, with what the first leaves behind."""
    lm, C, so_far = any_lm, moments(any_lm, 1e-3), []
    editor = AlphaEdit(layers=(0, 1, 2), weight=0.5, threshold=2e-2, objective=replace(BLOCK, steps=4), texts=CONTEXTS[1:3])
    batches = [EDITS[:2], EDITS[2:]]
    expected = released.alphaedit(lm, [[released.at_subject(e) for e in batch] for batch in batches], editor.layers, 0.5, 2e-2, C.matrices,
                                  CONTEXTS[:3], **search(editor.objective))
    for after, (written, S, P) in zip(edit_in_turn(lm, editor, batches, C), expected):
        so_far.append(written)
        same(after, {layer: sum(part[layer] for part in so_far) for layer in written})
        for layer, H in after.keys.items():
            assert difference(H @ H.T, P[layer] @ S[layer] @ P[layer]) <= SAME


@pytest.mark.parametrize("second_moment", [True, False])
def test_rome(any_lm, second_moment):
    """Several facts one after the other, each searched on the model as edited so far."""
    lm, C, texts = any_lm, moments(any_lm), contexts(any_lm, 2, 6)
    editor = ROME(layer=1, second_moment=second_moment, objective=replace(SEARCHES["mlp"], steps=4), n_prefixes=2, prefix_lengths=(6,))
    expected = released.rome(lm, EDITS, 1, C[1] if second_moment else None, texts, **search(editor.objective))
    same(editor(lm, EDITS, C), {1: expected})


def test_ifmet(any_lm):
    lm, C, objective = any_lm, moments(any_lm), replace(JOINT, steps=3)
    editor = IFMET(query_layers=(0, 1), value_layers=(2, 3), weight=2.0, objective=objective, texts=CONTEXTS[1:2])
    same(editor(lm, HOPS, C), released.ifmet(lm, HOPS, (0, 1), (2, 3), 2.0, C.matrices, CONTEXTS[:2], **search(objective)))


@pytest.mark.parametrize("query, value", [((0, 1), (2, 3)), ((0, 1), (1, 2)), ((1, 2), (0, 1))], ids=["apart", "overlapping", "below"])
def test_ace(any_lm, query, value):
    lm, C, objective = any_lm, moments(any_lm), replace(JOINT, steps=3)
    editor = ACE(query_layers=query, value_layers=value, weight=2.0, objective=objective, texts=CONTEXTS[1:2])
    same(editor(lm, HOPS, C), released.ace(lm, HOPS, query, value, 2.0, C.matrices, CONTEXTS[:2], **search(objective)))


@pytest.mark.parametrize("loss", ["last", "target"])
@pytest.mark.parametrize("bound", [None, 5e-4])
def test_ft(any_lm, loss, bound):
    """Batches of two and one; the bound is reached; the bias of the matrix is not trained."""
    editor = FT(layers=(2,), loss=loss, steps=6, lr=2e-3, norm_constraint=bound, batch_size=2)
    expected = released.ft(any_lm, EDITS, 2, lr=2e-3, steps=6, ball=bound, batch_size=2, loss_at=loss)
    same(editor(any_lm, EDITS), {2: expected})
    assert bound is None or expected.abs().max().item() == pytest.approx(bound)


@pytest.mark.parametrize("activation", ["pre", "post"])
def test_kn(any_lm, activation):
    edits = [replace(e, target_true=t) for e, t in zip(EDITS, ("basketball", "Apple", "Hamlet"))]
    lm, e = any_lm, edits[1]
    prompt, answer = lm.tokenizer(e.text)["input_ids"], lm.answer_ids(e.target_true)
    scores = integrated_gradients(lm, [(prompt + answer[:t], token) for t, token in enumerate(answer)], 4, activation).mean(0)
    assert difference(scores, released.kn_attributions(lm, e.text, e.target_true, 4, activation == "pre")) <= SAME
    expected = released.kn(any_lm, edits, threshold=0.3, steps=4, before_nonlinearity=activation == "pre")
    same(KN(threshold=0.3, steps=4, activation=activation)(any_lm, edits), expected)
