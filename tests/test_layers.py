"""locate: sums over prompts, and interventions that undo themselves."""

import pytest
import torch

from acelib.attribution.interventions import ablate, causal_trace
from acelib.attribution.layers import ROLES, locate, rank
from acelib.attribution.scores import first_tokens, query_scores, top, top_neurons, value_scores
from acelib.model.states import Site, trace

PROMPTS = (
    "Tim Duncan plays the sport of",
    "The capital of France is",
    "The author of Hamlet is",
    "Apple is a company",
)
ANSWERS = ("basketball", "Paris", "William Shakespeare", "golf")
PROMPT, SUBJECT, ANSWER = (
    "The player Tim Q. Duncan plays the sport of",
    "Tim Q. Duncan",
    "basketball",
)


def test_locate_is_the_sum_over_prompts_whatever_the_batch(any_lm):
    lm, seen = any_lm, []
    found = locate(
        lm,
        PROMPTS,
        ANSWERS,
        2,
        3,
        n_top=9,
        batch_size=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    value, query, count = 0, 0, 0
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        ids, mask = lm.encode([prompt])
        scores = value_scores(lm, ids, mask, first_tokens(lm, [answer]))
        value, query = value + scores[0], query + query_scores(lm, ids, mask, scores, 9)[0]
        count = count + (top(scores, 9)[0] != 0).sum(1)
    torch.testing.assert_close(found.value, value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.query, query, rtol=1e-5, atol=1e-6)
    assert found.value_count_by_layer == tuple(count.tolist()) and sum(
        found.value_count_by_layer
    ) == 9 * len(PROMPTS)
    assert found.value_by_layer == tuple(found.value.sum(1).tolist()) and found.n_prompts == 4
    assert found.value_layers == rank(found.value_by_layer, 3) and found.query_layers == rank(
        found.query_by_layer, 2
    )
    assert found.query_by_layer[-1] == 0 and seen == [(3, 4), (4, 4)]
    again = locate(lm, PROMPTS, ANSWERS, 2, 3, n_top=9, batch_size=3)
    assert torch.equal(again.value, found.value) and torch.equal(again.query, found.query)


def test_scores_of_groups_of_prompts_add_up(tiny):
    lm = tiny("gptj")
    groups = [locate(lm, PROMPTS[i::2], ANSWERS[i::2], 2, 3, n_top=9) for i in range(2)]
    whole = locate(lm, PROMPTS, ANSWERS, 2, 3, n_top=9)
    total = sum(groups)
    assert total.n_prompts == whole.n_prompts and total.n_query == 2
    assert total.value_count_by_layer == whole.value_count_by_layer
    torch.testing.assert_close(total.value, whole.value)
    torch.testing.assert_close(total.query, whole.query)
    with pytest.raises(ValueError, match=r"\(4, 48\) and \(3, 48\)"):
        whole + locate(tiny("gptj", n_layers=3), PROMPTS, ANSWERS)


def test_rank_breaks_ties_in_ascending_order():
    assert rank([1.0, 2.0, 2.0, 0.0], 3) == (1, 2, 0)


@pytest.mark.parametrize(
    ("kind", "sever"),
    [("out", None), ("mlp", None), ("attn", None), ("out", "mlp"), ("out", "attn")],
)
def test_causal_trace_equals_one_state_and_one_sample_at_a_time(any_lm, kind, sever):
    lm = any_lm
    found = causal_trace(
        lm, PROMPT, SUBJECT, ANSWER, kind, n_noise=2, seed=3, window=3, sever=sever
    )
    ids, mask = lm.encode([PROMPT])
    first, final, end = (
        lm.token_at(PROMPT, PROMPT.index("T", 3) + 1),
        lm.token_at(PROMPT, PROMPT.index("n p") + 1),
        ids.shape[1] - 1,
    )
    clean = trace(lm, ids, mask, [Site(kind, layer) for layer in range(4)])
    noise = torch.randn(
        2,
        final - first + 1,
        lm.d_model,
        generator=torch.Generator().manual_seed(3),
        dtype=torch.float64,
    )
    noise = noise * 3 * lm.embed.weight.std()

    def probability(layers, token):
        out = 0.0
        for sample in noise:

            def corrupt(h):
                return torch.cat(
                    [h[:, :first], h[:, first : final + 1] + sample, h[:, final + 1 :]], 1
                )

            def put(h, state):
                return torch.cat([h[:, :token], state[:, token : token + 1], h[:, token + 1 :]], 1)

            patches = {Site("in", 0): corrupt}
            above = range(max(layers) + 1, 4) if sever and layers else ()
            frozen = trace(lm, ids, mask, [Site(sever, at) for at in above], patches)
            for at in layers:
                patches[Site(kind, at)] = lambda h, at=at: put(h, clean[kind, at])
            for at in above:
                patches[Site(sever, at)] = lambda h, at=at: put(h, frozen[sever, at])
            logits = trace(lm, ids, mask, patches=patches, logits="last")["logits", 4]
            out += float(logits.softmax(-1)[0, first_tokens(lm, [ANSWER])[0]]) / 2
        return out

    groups = ([first], range(first + 1, final), [final], range(final + 1, end), [end])
    assert found.corrupted == pytest.approx(probability([], 0), rel=1e-6)
    for layer in range(4):
        layers = [layer] if kind == "out" else range(max(0, layer - 1), min(4, layer + 2))
        for role, tokens in enumerate(groups):
            naive = sum(probability(layers, t) for t in tokens) / len(tokens)
            assert float(found.restored[role, layer]) == pytest.approx(naive, rel=1e-6), (
                layer,
                ROLES[role],
            )


def test_causal_trace_restores(any_lm):
    lm = any_lm
    found = causal_trace(lm, PROMPT, SUBJECT, ANSWER, n_noise=3)
    assert found.restored.shape == (5, 4) and found.corrupted != pytest.approx(
        found.clean, rel=1e-3
    )
    assert float(found.restored[4, -1]) == pytest.approx(
        found.clean, rel=1e-6
    )  # the last state of all is the prediction
    assert all(
        float(x) == pytest.approx(found.corrupted, rel=1e-6) for x in found.restored[:4, -1]
    )  # the rest cannot be read any more
    quiet = causal_trace(lm, PROMPT, SUBJECT, ANSWER, noise=0.0, n_noise=1)
    assert quiet.corrupted == pytest.approx(quiet.clean, rel=1e-6)
    assert torch.equal(
        found.restored, causal_trace(lm, PROMPT, SUBJECT, ANSWER, n_noise=3).restored
    )
    assert not torch.equal(
        found.restored, causal_trace(lm, PROMPT, SUBJECT, ANSWER, n_noise=3, seed=1).restored
    )


def test_what_can_be_severed_is_said(tiny):
    with pytest.raises(ValueError, match="sever 'out' is unknown; allowed: None, 'mlp', 'attn'"):
        causal_trace(tiny("gptj"), PROMPT, SUBJECT, ANSWER, n_noise=1, sever="out")


def test_roles_without_a_token_are_nan(tiny):
    found = causal_trace(tiny("gptj"), "The capital of France", "France", ANSWER, n_noise=1)
    assert (
        found.restored.isnan().all(1).tolist()[3:] == [True, True]
        and not found.restored[2].isnan().any()
    )


def test_ablating_all_neurons_leaves_the_bias(any_lm):
    lm, (ids, mask) = any_lm, any_lm.encode(PROMPTS)
    before = trace(lm, ids, mask, [Site("mlp", 1)], logits="all")
    with ablate(lm, [(1, k) for k in range(lm.d_mlp)]):
        silent = trace(lm, ids, mask, [Site("mlp", 1)])["mlp", 1]
    bias = getattr(lm.fc2(1), "bias", None)
    torch.testing.assert_close(silent, torch.zeros_like(silent) + (0 if bias is None else bias))
    after = trace(lm, ids, mask, [Site("mlp", 1)], logits="all")
    assert all(torch.equal(before[site], after[site]) for site in before)


def test_ablating_one_neuron_takes_its_vector_away(any_lm):
    lm, (ids, mask) = any_lm, any_lm.encode(PROMPTS)
    s = trace(lm, ids, mask, [Site("key", 2), Site("mlp", 2)])
    with (
        pytest.raises(RuntimeError),
        ablate(lm, top_neurons(torch.eye(4, lm.d_mlp).roll(5, 1), 3)),
    ):  # (0, 5), (1, 6), (2, 7)
        found = lm.fc2(2)(s["key", 2])
        raise RuntimeError
    torch.testing.assert_close(found, s["mlp", 2] - s["key", 2][..., 7:8] * lm.weight(2)[:, 7])
    assert torch.equal(trace(lm, ids, mask, [Site("mlp", 2)])["mlp", 2], s["mlp", 2])


def test_bad_input_is_named(tiny):
    lm = tiny("qwen3")
    for args, words in (
        ((PROMPTS, ANSWERS[:2]), "4 prompts and 2 answers"),
        (((), ()), "0 prompts"),
        ((PROMPTS[:1], [" "]), "empty"),
        ((PROMPTS, ANSWERS, 0), "n_query is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            locate(lm, *args)
    for args, words in (
        ((PROMPT, "Michael", ANSWER), "'Michael'"),
        ((PROMPT, "", ANSWER), "subject ''"),
        ((PROMPT, SUBJECT, ""), "empty"),
        ((PROMPT, SUBJECT, ANSWER, "key"), "'key'.*'out'"),
        ((PROMPT, SUBJECT, ANSWER, "out", -1.0), "noise -1.0"),
    ):
        with pytest.raises(ValueError, match=words):
            causal_trace(lm, *args)
    for neuron, words in (((4, 0), "layer 4"), ((0, 48), "neuron 48.*0 to 47")):
        with pytest.raises(ValueError, match=words), ablate(lm, [(0, 0), neuron]):
            pass
    assert not lm.fc2(0)._forward_pre_hooks
