"""Attributions of FFN neurons: captum's integrated gradients (its points are in single
precision), completeness, the three methods.
"""

import pytest
import torch
from captum.attr import IntegratedGradients

from acelib.attribution.integrated import (
    Attribution,
    baselines,
    integrated_gradients,
    knowledge_neurons,
    localize,
    word_places,
)

PROMPT, ANSWER = "Tim Duncan plays the sport of", "golf"
RULES = {"right": "riemann_right", "left": "riemann_left"}


def row_of(lm):
    return lm.tokenizer(PROMPT)["input_ids"], lm.answer_ids(ANSWER)[0]


def probability(lm, ids, token, layer):
    """p(token) of a whole forward as a function of the activations of one layer at the end."""

    def p(x):
        def swap(_, args):
            return (torch.cat([args[0][:, :-1], x[:, None].to(args[0])], 1),)

        hook = lm.fc2(layer).register_forward_pre_hook(swap)
        logits = lm.model(torch.tensor([ids] * len(x))).logits[:, -1]
        hook.remove()
        return logits.softmax(-1)[:, token]

    return p


def activation(lm, ids, layer):
    kept = []
    hook = lm.fc2(layer).register_forward_pre_hook(lambda _, args: kept.append(args[0][:, -1]))
    with torch.no_grad():
        lm.model(torch.tensor([ids]))
    hook.remove()
    return kept[0]


@pytest.mark.parametrize("points", ["right", "left"])
@pytest.mark.parametrize("based", [False, True])
def test_captum_finds_the_same(any_lm, points, based):
    (ids, token), tol = row_of(any_lm), 1e-4 if any_lm.family.parallel else 1e-6
    generator = torch.Generator().manual_seed(0)
    sizes = (1, any_lm.n_layers, any_lm.d_mlp)
    start = torch.rand(sizes, generator=generator, dtype=any_lm.dtype) if based else None
    (got,) = integrated_gradients(any_lm, [(ids, token)], 5, baseline=start, points=points)
    for layer in (0, any_lm.n_layers - 1):
        oracle = IntegratedGradients(probability(any_lm, ids, token, layer))
        baseline = 0 if start is None else start[:, layer]
        expected = oracle.attribute(
            activation(any_lm, ids, layer), baseline, n_steps=5, method=RULES[points]
        )
        largest = expected.abs().max().item()
        torch.testing.assert_close(got[layer], expected[0], rtol=tol, atol=tol * largest)


def test_a_layer_adds_up_to_what_its_path_changes(tiny):
    lm = tiny("llama")
    (ids, token) = row_of(lm)
    start = torch.full((1, lm.n_layers, lm.d_mlp), 0.3, dtype=lm.dtype)
    p = probability(lm, ids, token, 1)
    with torch.no_grad():
        change = (p(activation(lm, ids, 1)) - p(start[:, 1])).item()
    errors = [
        abs(integrated_gradients(lm, [(ids, token)], m, baseline=start)[0, 1].sum().item() - change)
        for m in (20, 200)
    ]
    assert errors[1] < errors[0] / 5 and errors[1] < 0.02 * abs(change)


def test_factors_and_points(tiny):
    lm = tiny("gpt2")
    rows = [row_of(lm)]
    start = torch.full((1, lm.n_layers, lm.d_mlp), 0.3, dtype=lm.dtype)
    difference, value = (
        integrated_gradients(lm, rows, 3, baseline=start, factor=factor)
        for factor in ("difference", "value")
    )
    a = activation(lm, rows[0][0], 2)[0]
    torch.testing.assert_close(difference[0, 2] * a, value[0, 2] * (a - 0.3))
    ends = integrated_gradients(lm, rows, 2, points="both")
    left, right = (integrated_gradients(lm, rows, 1, points=points) for points in RULES)
    torch.testing.assert_close(ends, (left + right) / 2)


def test_words_are_what_blanks_set_apart(tiny):
    lm = tiny("gpt2")
    ids = lm.tokenizer(PROMPT)["input_ids"]
    places = word_places(lm, PROMPT)
    assert [lm.tokenizer.decode([ids[t] for t in word]).strip() for word in places] == [
        *PROMPT.split()
    ]
    assert word_places(lm, "") == [[]]


def test_a_baseline_is_the_activation_without_a_word(any_lm):
    ids, token = row_of(any_lm)
    words = [word_places(any_lm, PROMPT)]
    found, owners = baselines(any_lm, [(ids, token)], words, budget=4)
    assert owners == [0] * 6
    without = list(ids)
    for t in words[0][1]:
        without[t] = any_lm.tokenizer.eos_token_id
    expected = activation(any_lm, without, 3)[0]
    torch.testing.assert_close(found[1, 3], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("activation", ["post", "pre"])
def test_methods_differ_in_baseline_and_factor_only(tiny, activation):
    lm = tiny("qwen3")
    row = row_of(lm)
    starts, _ = baselines(lm, [row], [word_places(lm, PROMPT)], activation)
    mean = starts.mean(0, keepdim=True)
    common = dict(steps=2, activation=activation)
    expected = {
        "IG": integrated_gradients(lm, [row], **common),
        "SIG": integrated_gradients(lm, [row] * len(starts), **common, baseline=starts).sum(0)[
            None
        ],
        "AMIG": integrated_gradients(lm, [row], **common, baseline=mean, factor="value"),
    }
    for method, scores in expected.items():
        got = localize(lm, [PROMPT], [ANSWER], Attribution(method=method, **common))
        torch.testing.assert_close(got, scores)
    sentence = Attribution(method="AMIG", baseline="sentence", factor="difference", **common)
    start, _ = baselines(lm, [row], [[[*range(len(row[0]))]]], activation)
    torch.testing.assert_close(
        localize(lm, [PROMPT], [ANSWER], sentence),
        integrated_gradients(lm, [row], **common, baseline=start),
    )


def test_an_answer_of_several_tokens(tiny):
    lm, prompts, answers = tiny("gpt2"), [PROMPT, "The capital of France is"], ["golfing", "Paris"]
    how = Attribution(steps=2, tokens="mean")
    got = localize(lm, prompts, answers, how)
    ids, said = lm.tokenizer(PROMPT)["input_ids"], lm.answer_ids("golfing")
    rows = [(ids + said[:t], token) for t, token in enumerate(said)]
    assert len(rows) > 1
    torch.testing.assert_close(got[0], integrated_gradients(lm, rows, 2).mean(0))
    first = localize(lm, prompts, answers, Attribution(steps=2))
    torch.testing.assert_close(first[0], integrated_gradients(lm, rows[:1], 2)[0])


def test_knowledge_neurons_are_relative_to_the_best_of_all_layers():
    scores = torch.tensor([[[1.0, 0.2], [0.21, -3.0]], [[4.0, 1.0], [0.7, 0.9]]])
    assert knowledge_neurons(scores, 0.2).tolist() == [
        [[True, False], [True, False]],
        [[True, True], [False, True]],
    ]


def test_refusals(tiny):
    lm = tiny("gpt2")
    for bad, match in (
        ({"method": "DIG"}, "method 'DIG' is unknown; allowed: 'IG', 'SIG', 'AMIG'"),
        ({"steps": 0}, "steps 0"),
        ({"tokens": "last"}, "tokens 'last' is unknown"),
        ({"baseline": "mask"}, "baseline 'mask'"),
        ({"reading": 1}, "no 'reading'; it has: method"),
    ):
        with pytest.raises(ValueError, match=match):
            Attribution(**bad)
    for prompts, answers, match in (
        (["a"], ["b", "c"], "1 prompts, 2 answers"),
        ([" "], ["b"], "prompt ' ' is empty"),
        (["a"], [" "], "answer ' ' is empty"),
    ):
        with pytest.raises(ValueError, match=match):
            localize(lm, prompts, answers)
    for bad in ({"points": "mid"}, {"factor": "none"}):
        with pytest.raises(ValueError, match="unknown; allowed"):
            integrated_gradients(lm, [row_of(lm)], 2, **bad)
    with pytest.raises(ValueError, match="share 1 must be"):
        knowledge_neurons(torch.zeros(1, 1), 1)
