"""The measures of the real model's chapter: on tiny models, and on rows worked out by hand."""

from dataclasses import replace
from random import Random

import pandas as pd
import pytest
import torch

from acelib.bench.tiny import make_tiny
from acelib.editors import PMET
from acelib.measures import real_cost, real_edits, real_known, real_storage, real_trace
from acelib.measures.ace import is_named
from acelib.model.shape import shape_of
from acelib.records import Fact
from acelib.study import registry
from acelib.study.free import METRICS
from acelib.study.rows import Folders, table
from acelib.study.sentences import Text
from acelib.world.world import load_world

WORLD = load_world()
KNOWN = replace(WORLD, facts=WORLD.facts[::3])
TEXT = Text("09_real_model")


@pytest.fixture
def lm():
    return make_tiny("llama", torch.float32)


@pytest.fixture
def folders(tmp_path):
    return Folders(None, tmp_path)


# ---------------------------------------------------------------- knowledge


def test_facts_are_asked_in_every_form(lm, folders):
    built = real_known.experiment({"tiny": lm}, WORLD, n_facts=4, seed=0)
    rows = table(built, folders=folders)
    assert len(rows) == 4 * len(real_known.FORMS) and set(rows.right) <= {0, 1}
    with pytest.raises(ValueError, match="tiny knows none of the 4 facts"):
        real_known.known_world(WORLD, rows.assign(right=0), "tiny")


def test_what_is_known_is_what_the_bare_cloze_says():
    facts = [f for f in WORLD.facts if f.relation == "capital"][:4]
    rows = pd.DataFrame(
        [
            dict(
                model="m",
                item=f"{fact.subject} | {fact.relation}",
                relation=fact.relation,
                form=form,
                right=int(i < 3 if form == real_known.CLOZE else i == 3),
                bare=int(i < 1),
            )
            for i, fact in enumerate(facts)
            for form in real_known.FORMS
        ]
    )
    known = real_known.known_world(WORLD, rows, "m")
    assert list(known.facts) == facts[:3]
    shown = real_known.by_relation(rows, WORLD, least=4)
    assert shown.index.tolist() == ["capital", "all relations"]
    assert shown[real_known.CLOZE].tolist() == [75, 75] and shown.facts.tolist() == [4, 4]
    assert shown[real_known.COMMONEST].tolist() == [25, 25]
    told = real_known.sentence_numbers(rows, WORLD, {"m": known}, 0)["m"]
    assert (told["facts"], told["known"]) == (4, 3)
    assert "m says 3 of 4 facts" in TEXT.render("known", models={"m": told})


# ---------------------------------------------------------------- tracing


def test_traces_of_three_kinds(lm, folders, monkeypatch):
    monkeypatch.setattr(real_trace, "known_items", lambda lm, items, ask: list(items))
    settings = dict(n_traced=1, n_noise=2, seed=0)
    rows = table(real_trace.experiment({"tiny": lm}, {"tiny": KNOWN}, **settings), folders=folders)
    assert set(rows.kind) == set(real_trace.KINDS)
    assert {len(values) for values in rows.restored} == {lm.n_layers}


def test_the_share_that_comes_back_and_the_layer_of_the_hand_over():
    base = dict(model="m", item="a", kind="out", clean=0.6, corrupted=0.1)
    rows = pd.DataFrame(
        [
            {**base, "role": real_trace.SUBJECT, "restored": [0.35, 0.6, 0.1]},
            {**base, "role": real_trace.LAST, "restored": [0.1, 0.1, 0.6]},
            {**base, "item": "b", "clean": 0.12, "role": "last", "restored": [0.1, 0.1, 0.1]},
        ]
    )
    shares = real_trace.restored(rows)
    assert set(shares.item) == {"a"}  # b loses nothing to the noise
    assert shares.share.round(6).tolist() == [50, 100, 0, 0, 0, 100]
    assert real_trace.hand_over(shares) == {"m": 2}
    told = real_trace.sentence_numbers(rows, 0)
    assert told["m"]["peaks"]["out", "last subject"]["layer"] == 1
    said = TEXT.render("verdict", models=told)
    assert "until layer 1" in said and "from layer 2 on" in said
    assert "1 of 2 traced facts" in TEXT.render("sites", models=told)
    assert real_trace.lines(shares).axes


# ---------------------------------------------------------------- zeroing


def test_controls_are_as_many_neurons_and_of_the_same_layers(lm):
    best = [(0, 3), (2, 5), (2, 7)]
    draw = real_storage.drawn_neurons
    assert draw(lm, best, "top", Random(0)) == best
    assert len(set(draw(lm, best, "random", Random(0)))) == 3
    same = draw(lm, best, "same layers", Random(0))
    assert sorted(layer for layer, _ in same) == [0, 2, 2] and len(set(same)) == 3
    with pytest.raises(ValueError, match="control 'all' is unknown; allowed: top, random, same"):
        draw(lm, best, "all", Random(0))


def test_zeroing_of_every_share_and_control(lm, folders, monkeypatch):
    few = replace(KNOWN, facts=tuple(f for f in KNOWN.facts if f.relation == "capital")[:6])
    monkeypatch.setattr(real_storage.storage, "known_items", lambda lm, items, ask: list(items))
    settings = dict(n_located=1, n_judged=2, shares=[0.01, 0.05], n_random=2, norm="frozen", seed=0)
    built = real_storage.zeroing({"tiny": lm}, {"tiny": few}, **settings)
    assert len(built.series[0].items) == 2 * (1 + 2 + 2)
    rows = table(built, folders=folders)
    points = real_storage.lost(rows)
    assert set(points.zeroed) == set(real_storage.CONTROLS) and set(points.percent) == {1, 5}
    assert real_storage.lost_table(points).shape[0] == 6
    assert real_storage.lost_by_share(points).axes


def test_selectivity_is_what_a_category_loses_beyond_others():
    rows = pd.DataFrame(
        [
            dict(
                model="m", percent=1.0, zeroed=zeroed, category=c, questions=q, prompt=c + q, drop=d
            )
            for zeroed, c, q, d in (
                ("top", "CP", "related", 1),
                ("top", "CP", "unrelated", 0),
                ("top", "LG", "related", 1),
                ("top", "LG", "unrelated", 1),
                ("random", "CP", "related", 0),
            )
        ]
    )
    points = real_storage.lost(rows)
    assert real_storage.selectivity(points)["m", 1.0].mean == 50
    values = real_storage.claim_values(points, 0)
    assert values["zeroing_related", "m"].mean == 100 and values["zeroing_random", "m"].mean == 0
    assert {claim for claim, _ in values} == {
        "zeroing_related",
        "zeroing_random",
        "zeroing_specific",
    }
    assert "50" in TEXT.render("selective", models=real_storage.selectivity(points))


def test_layers_by_questions():
    rows = pd.DataFrame(
        [
            dict(model="m", questions="CP", role=role, layer=layer, importance=value, n_prompts=2)
            for role, values in (("query", (1, 3, 0)), ("value", (0, 1, 3)))
            for layer, value in enumerate(values)
        ]
    )
    assert real_storage.layers_table(rows).loc["CP", ("m", "query")] == "1, 0, 2"
    found = real_storage.depths(rows)["m"]
    assert found == {"query": 0.75, "value": 1.75}
    assert "layer 0.8" in TEXT.render("order", depths={"m": found})


# ---------------------------------------------------------------- editing


def edited_rows() -> pd.DataFrame:
    """Two cases; the base answers the first; ACE makes it, PMET the other."""
    hits = {"Base": (1, 0), "PMET": (0, 1), "ACE": (1, 0)}
    return pd.DataFrame(
        [
            dict(model="m", editor=name, case_id=i, n_edits=1, n_hops=2)
            | {metric: float(hit) for metric in METRICS}
            for name, of in hits.items()
            for i, hit in enumerate(of)
        ]
    )


def test_questions_that_were_answered_before_stand_apart():
    rows = edited_rows()
    shown = real_edits.multi_hop_table(rows)
    assert shown.at["ACE", ("direct answer", "all")].mean == 50
    assert shown.at["ACE", ("direct answer", "answered before")].mean == 100
    assert shown.at["PMET", ("direct answer", "answered before")].mean == 0
    assert real_edits.metrics_table(rows).shape == (3, len(METRICS))
    assert real_edits.leads(rows, "direct")["PMET"].mean == 0
    said = TEXT.render("editing", models=real_edits.sentence_numbers(rows, 0))
    assert "On m (2 cases)" in said and "ACE reaches 50" in said


def test_claims_are_of_chains_of_thought_and_of_cases_with_one_edit():
    cases = real_edits.cases_of(KNOWN, 12, 0)
    right = dict.fromkeys(("FT", "ROME", "MEMIT", "IFMET"), 0.0) | {"ACE": 1.0}
    rows = pd.DataFrame(
        [
            dict(model="m", editor=name, case_id=case.case_id, n_edits=case.n_edits)
            | dict.fromkeys(METRICS, 0.0)
            | {"thoughts": right.get(name, float(is_named(case))), "near": 1.0, "efficacy": 1.0}
            for name in (*right, "PMET")
            for case in cases
        ]
    )
    values = real_edits.claim_values(rows, {"m": KNOWN}, 12, (2, 3), 0)
    assert values["ace_leads_one_edit", "m"].mean > 0
    assert values["implicit_edits_are_harder", "m"].mean == 100
    assert values["specificity_leads", "m"].mean == values["efficacy_leads", "m"].mean == 0
    assert not real_edits.claim_values(rows[rows.editor == "ACE"], {"m": KNOWN}, 12, (2, 3), 0)


def test_the_grid_writes_every_pair_of_layers(lm, folders, monkeypatch, tmp_path):
    pmet = PMET(
        layers=(0,),
        weight=2.0,
        n_prefixes=0,
        objective=replace(PMET(layers=(0,)).objective, steps=2),
    )
    monkeypatch.setattr(real_edits, "preset", lambda name, lm: pmet)
    monkeypatch.setattr("acelib.editing.moments.user_cache_path", lambda name: tmp_path)
    monkeypatch.setattr("acelib.study.experiments.documents", lambda *_: ["A text of words."] * 9)
    settings = dict(n_grid=1, steps={"tiny": 2}, n_kept=1, seed=0)
    built = real_edits.grid({"tiny": lm}, {"tiny": KNOWN}, **settings)
    rows = table(built, folders=folders)
    assert {*rows["query"]} == {*rows.value} == {real_edits.NONE, 0, 2} and len(rows) == 9
    assert real_edits.grid_means(rows, "direct").index.tolist() == ["none", 0, 2]
    assert real_edits.grid_maps(rows).axes
    with pytest.raises(ValueError, match="layers 0 apart"):
        real_edits.grid({"tiny": lm}, {"tiny": KNOWN}, **{**settings, "steps": {"tiny": 0}})


def test_cases_that_cannot_be_made_are_said():
    one = replace(WORLD, facts=(Fact("France", "capital", "Paris"),))
    with pytest.raises(ValueError, match=r"1 known facts make no case of \[2, 3\] hops"):
        real_edits.cases_of(one, 5, 0)


# ---------------------------------------------------------------- what it would take


def test_the_shapes_of_published_models_are_known_offline():
    large = shape_of("EleutherAI/gpt-j-6b")
    assert (large.n_layers, large.d_mlp) == (28, 16384) and 6.0e9 < large.parameters < 6.1e9
    assert 8.1e9 < shape_of("Qwen/Qwen3-8B").parameters < 8.3e9
    assert shape_of("smollm2-135m").parameters == real_cost.PARAMETERS
    with pytest.raises(ValueError, match="the shape of 'nobody/nothing' is not known"):
        shape_of("nobody/nothing")


def test_no_estimate_without_a_chapter():
    with pytest.raises(ValueError, match="no estimate is made of '01_storage'"):
        registry.estimate("01_storage", {})
