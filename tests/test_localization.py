"""Rows of the companion on Query Localization, on tiny random models: what is drawn, and what the
rows hold.
"""

import pytest
import torch

from acelib.attribution.integrated import Attribution, knowledge_neurons, localize
from acelib.attribution.scaling import scaled_neurons
from acelib.measures import localization, localization_attention, modification
from acelib.model.answers import Recall, recall
from acelib.model.update import applied
from acelib.records import Fact
from acelib.world.paraphrases import Reworded
from acelib.world.world import load_world

HOW = Attribution(steps=2)


def fact(i, relation, answer):
    prompts = (f"Tim{i} plays the sport of", f"The sport of Tim{i} is", f"Tim{i} likes to play")
    return Reworded(Fact(f"Tim{i}", relation, answer), prompts, relation)


POOL = [fact(i, f"r{i % 2}", ("golf", "chess", "rugby")[i % 3]) for i in range(8)]


@pytest.fixture
def lm(tiny):
    return tiny("gpt2", torch.float32)


@pytest.fixture
def all_known(monkeypatch):
    monkeypatch.setattr(localization, "_known", lambda lm, facts: list(facts))


def test_facts_are_drawn_from_all_groups_and_fewer_are_the_first(lm, monkeypatch):
    def odd(lm, facts):
        return [one for one in facts if one.name[3] not in "4567"]

    monkeypatch.setattr(localization, "_known", odd)
    found = localization.known_facts(lm, POOL, 3)
    assert len(found) == 3
    everyone = [one.name for one in localization.known_facts(lm, POOL, 99)]
    assert len(everyone) == 4 and [one.name for one in found] == everyone[:3]
    monkeypatch.setattr(localization, "_known", lambda lm, facts: list(facts))
    mixed = [one.group for one in localization.known_facts(lm, POOL, 8)]
    assert mixed == ["r0", "r1"] * 4
    monkeypatch.setattr(localization, "_known", odd)
    assert localization.known_facts(lm, POOL, 2) == found[:2]
    monkeypatch.setattr(localization, "_known", lambda lm, facts: [])
    with pytest.raises(ValueError, match="answers no fact in all of its wordings"):
        localization.known_facts(lm, POOL, 2)


def test_a_fact_is_known_in_all_wordings_or_not(lm, monkeypatch):
    known = {(one.name, prompt) for one in POOL[:2] for prompt in one.prompts}
    known -= {(POOL[1].name, POOL[1].prompts[2])}

    def say(lm, pairs, ask):
        return [pair for pair in pairs if (pair[0].name, pair[1]) in known]

    monkeypatch.setattr(localization, "known_items", say)
    assert localization._known(lm, POOL) == [POOL[0]]


def test_other_facts_are_of_other_relations():
    for n in (2, 9):
        others = localization.drawn(POOL, POOL[0], n, 0)
        assert len(others) == n and {one.fact.relation for one in others} == {"r1"}
    assert localization.drawn(POOL, POOL[0], 3, 0) == localization.drawn(POOL, POOL[0], 3, 0)


def test_consistency_rows(lm):
    rows = localization.consistency_rows(lm, POOL[0], POOL[1:3], HOW)
    assert [row["share"] for row in rows] == list(localization.SHARES)
    scores = localize(lm, POOL[0].prompts, ["golf"] * 3, HOW)
    counts = knowledge_neurons(scores, 0.2).sum(0)
    row, union = rows[1], (counts > 0).sum().item()
    assert row["union"] == union and row["strict"] == pytest.approx((counts == 3).sum() / union)
    assert row["relaxed"] == pytest.approx((counts > 1).sum().item() / union)
    assert row["by_k"][-1] == row["relaxed"] and len(row["by_k"]) == 2
    assert sum(row["layers"]) == pytest.approx(row["size"])
    sizes = [row["size"] for row in rows]
    assert sizes == sorted(sizes, reverse=True) and 0 <= row["chance"] <= 1


def test_mapping_rows_equal_one_changed_model_at_a_time(lm):
    rows = {row["set"]: row for row in localization.mapping_rows(lm, POOL[0], HOW, 0.2, 0)}
    assert list(rows) == list(localization.SETS)
    found, token = localization.attributions(lm, POOL[0], HOW)[0], lm.answer_ids("golf")[0]
    before, sup = [], []
    for i, prompt in enumerate(POOL[0].prompts):
        chosen = localization.neighbour_sets(found, i, 0.2, 0)["Refine"]
        ids, mask = lm.encode([prompt])
        at = mask.sum(1) - 1
        for kept, factor in ((before, torch.ones_like(found[:1])), (sup, (~chosen)[None].float())):
            with torch.no_grad(), scaled_neurons(lm, factor, at):
                kept.append(lm.model(ids).logits[0, -1].softmax(-1)[token].item())
    row = rows["Refine"]
    assert row["before"] == pytest.approx(sum(before) / 3, rel=1e-4)
    assert row["sup"] == pytest.approx(sum(sup) / 3, rel=1e-4)
    ratios = [(b - s) / b for b, s in zip(before, sup, strict=True)]
    assert row["sup_ratio"] == pytest.approx(sum(ratios) / 3, abs=1e-4)
    assert rows["Union, as many"]["size"] <= rows["Self"]["size"] == rows["Random"]["size"]


def test_predominance_rows_and_what_else_there_is(lm):
    rows = localization_attention.predominance_rows(lm, POOL[0])
    assert [row["reading"] for row in rows] == list(localization_attention.READINGS)
    assert rows[0]["first"] == 0 and all(1 / 3 <= row["predominance"] <= 1 for row in rows)
    about = localization_attention.about(lm, POOL[0])
    said = recall(lm, POOL[0].prompts, ["golf"] * 3).logprob
    assert about["logprob"] == pytest.approx(sum(said) / 3)
    assert about["answer_tokens"] == len(lm.answer_ids("golf")) and 0 < about["similarity"] < 1


def test_synapse_rows(any_lm):
    rows = localization_attention.synapse_rows(any_lm, POOL[0], POOL[1], HOW, 0.2, 0.3)
    assert [(row["synapses"], row["renormalised"]) for row in rows] == [
        (name, on) for name in ("own", "irrelevant") for on in (False, True)
    ]
    assert len({row["before"] for row in rows}) == 1 and rows[0]["overlap"] == 1
    plain = torch.stack(
        [
            any_lm.model(any_lm.encode([prompt])[0]).logits[0, -1].softmax(-1)
            for prompt in POOL[0].prompts
        ]
    )
    expected = plain[:, any_lm.answer_ids("golf")[0]].mean().item()
    assert rows[0]["before"] == pytest.approx(expected, rel=1e-4)
    assert rows[0]["sup"] != rows[0]["before"]


def test_map_rows(lm):
    rows = localization_attention.map_rows(lm, POOL[0], HOW, 0.2, 0.3)
    assert len(rows) == 6 and len({tuple(row["neuron"]) for row in rows}) == 1
    assert all(len(row["sizes"]) == len(row["layer"]) > 0 for row in rows)


@pytest.fixture
def bench(lm, monkeypatch):
    monkeypatch.setattr(modification, "N_TEXTS", 20)
    of = localization.Facts(lm, load_world(), POOL, POOL[:3], "test")
    return modification.Bench(of, "", 4, 0)


@pytest.mark.parametrize("operation", [modification.ERASURE, modification.UPDATE])
def test_modification_rows_equal_one_edit_at_a_time(bench, monkeypatch, operation):
    lm, one = bench.of.lm, POOL[0]
    monkeypatch.setattr(modification.Bench, "unrelated", lambda *_: POOL[3:6])
    rows = {row["set"]: row for row in modification.rows_of(bench, one, HOW, operation)}
    assert list(rows) == list(modification.SETS)
    i, new = bench.query(one), bench.new_answer(one)
    found = localization.attributions(lm, one, HOW)[0]
    chosen = modification.chosen_sets(found, i)["N_g"]
    change = 2 * lm.embed.weight[lm.answer_ids(new)].sum(0)
    change = change - 2 * lm.embed.weight[lm.answer_ids("golf")].sum(0)
    erased = operation == modification.ERASURE
    update = modification.value_update(lm, chosen, None if erased else change)
    texts, row = bench.drawn_texts(one), rows["N_g"]
    before = modification.perplexities(lm, texts, [None])[0]
    with applied(lm, update):
        right = recall(lm, one.prompts, ["golf" if erased else new] * 3).correct
        kept = recall(lm, [x.prompts[0] for x in POOL[3:6]], [x.fact.object for x in POOL[3:6]])
        after = modification.perplexities(lm, texts, [None])[0]
    success = [ok != erased for ok in right]
    assert row["rel"] == success[i] and row["gen"] == (sum(success) - success[i]) / 2
    assert row["loc"] == pytest.approx(sum(kept.correct) / 3)
    assert row["ppl"] == pytest.approx((after - before) / before, rel=1e-3, abs=1e-4)
    assert rows["N_g, as many"]["size"] == rows["N_i"]["size"] == rows["Random"]["size"]


def test_erasing_is_the_editors_own(bench):
    lm = bench.of.lm
    chosen = torch.rand(lm.n_layers, lm.d_mlp) < 0.1
    with applied(lm, modification.value_update(lm, chosen)):
        for layer in range(lm.n_layers):
            assert not lm.weight(layer)[:, chosen[layer]].abs().max() > 1e-6


def test_perplexity_is_the_textbooks(lm):
    text = "The capital of France is Paris."
    ids = torch.tensor(lm.tokenizer(text)["input_ids"])
    with torch.no_grad():
        logits = lm.model(ids[None]).logits[0].double().log_softmax(-1)
    loss = -logits[range(len(ids) - 1), ids[1:]].mean()
    (found,) = modification.perplexities(lm, [text], [None])
    assert found == pytest.approx(loss.exp().item(), rel=1e-4)


def test_other_facts_leave_the_changed_one_out(bench, monkeypatch):
    def all_right(lm, prompts, answers):
        return Recall([True] * len(prompts), [0.0] * len(prompts))

    monkeypatch.setattr(modification, "recall", all_right)
    some = bench.unrelated(POOL[0], "chess")
    assert [one.fact.relation for one in some] == ["r0", "r0", "r1", "r1"]
    assert POOL[0] not in some and some == bench.unrelated(POOL[0], "chess")


def test_refusals(lm, tmp_path):
    alone = Reworded(Fact("x", "single", "golf"), ("a", "b"), "g")
    one = localization.Facts(lm, load_world(), [alone], [alone], "test")
    with pytest.raises(ValueError, match="relation 'single' has one answer only"):
        modification.Bench(one, "", 4, 0).new_answer(alone)
    path = tmp_path / "texts.txt"
    path.write_text("one\ntwo\n")
    with pytest.raises(ValueError, match="hold 2 entries, one a line; at least 5"):
        _ = modification.Bench(one, str(path), 4, 0).texts
    with pytest.raises(ValueError, match="cannot be read"):
        _ = modification.Bench(one, str(tmp_path / "none"), 4, 0).texts
    with pytest.raises(ValueError, match="no text has two tokens"):
        modification.perplexities(lm, [""], [None])
    with pytest.raises(ValueError, match="1 wordings of a fact are asked for"):
        localization.asked({"m": lm}, load_world(), 4, 1, 0)


def test_series_name_what_rows_depend_on(lm, all_known):
    world, hosts = load_world(), {"m": lm}
    same = dict(wordings="", n_facts=4, n_wordings=3, seed=0)
    found = [
        localization.experiment(hosts, world, steps=2, sig_steps=1, **same),
        localization.mapping(hosts, world, steps=2, **same),
        localization_attention.predominances(hosts, world, **same),
        localization_attention.synapses(hosts, world, steps=2, alpha=0.3, **same),
        modification.experiment(hosts, world, texts="", steps=2, **same),
    ]
    for experiment in found:
        assert experiment.name.startswith("companion_query_localization")
        for series in experiment.series:
            assert len(series.items) == 4 and series.depends["wordings"] == "world, 3"
    maps = localization_attention.maps(
        hosts, world, wordings="", n_wordings=3, n_maps=2, steps=2, alpha=0.3, seed=0
    )
    assert list(maps.series[0].items) == list(found[1].series[0].items)[:2]
    assert {s.names["method"] for s in found[0].series} == {"IG", "SIG", "AMIG"}
