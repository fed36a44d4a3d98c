"""One edit under the lens: what follows from it; blanks at a prompt's end change nothing."""

from dataclasses import replace

import pytest
import torch
from test_update import random_update

from acelib.editing.moments import Moments
from acelib.measures.probe import probes, written
from acelib.records import Edit
from acelib.world.world import load_world


def test_what_is_asked_follows_from_the_world():
    world, edit = load_world(), Edit("Tim Duncan", "{} plays the sport of", "cricket", "basketball")
    rows = probes(world, edit, n_unrelated=3)
    assert rows.iloc[0].tolist() == ["fact", "Tim Duncan plays the sport of", "cricket"]
    assert (
        set(rows.kind) == {"fact", "paraphrase", "multi-hop", "unrelated"}
        and (rows.kind == "unrelated").sum() == 3
    )
    assert (rows.ideal[rows.kind == "paraphrase"] == "cricket").all()
    after = {fact.object for fact in world.about("cricket")}
    assert after and after <= set(rows.ideal[rows.kind == "multi-hop"])
    assert not rows.prompt[rows.kind == "unrelated"].str.contains("Tim Duncan").any()
    assert rows.equals(probes(world, replace(edit, prompt=edit.prompt + " "), n_unrelated=3))


def test_a_fact_that_the_world_does_not_know():
    rows = probes(
        load_world(), Edit("Zork Blip", "{} likes the taste of", "cricket"), n_unrelated=0
    )
    assert rows.values.tolist() == [["fact", "Zork Blip likes the taste of", "cricket"]]


def test_what_is_written_for_one_edit_by_layer(tiny):
    lm, edit = tiny("qwen3"), Edit("Zork", "{} likes the taste of", "cricket")
    update = random_update(lm, (0, 1), rank=1, seed=0)
    before = written(lm, None, edit, None)
    assert [(row["layer"], row["norm"], row["share"]) for row in before] == [(None, None, None)]
    rows = written(lm, lambda *_: update, edit, None)
    assert {row["layer"]: row["norm"] for row in rows} == update.norms()
    weights = {row["layer"]: lm.weight(row["layer"]).norm().item() for row in rows}
    assert all(row["share"] == row["norm"] / weights[row["layer"]] for row in rows)
    assert len({row["log_p"] for row in rows}) == 1 and rows[0]["log_p"] != before[0]["log_p"]
    assert {(row["used"], row["idle"]) for row in rows} == {(None, None)}


def test_what_is_written_at_neurons_that_texts_do_not_use_is_told_apart(tiny):
    lm, edit = tiny("gptj"), Edit("Zork", "{} likes the taste of", "cricket")
    update = random_update(lm, (1,), rank=1, seed=0)
    squares = torch.ones(lm.weight(1).shape[1], dtype=torch.float64)
    squares[[0, 3]] = 1e-9
    (row,) = written(lm, lambda *_: update, edit, Moments({1: squares.diag()}, tokens=9))
    change = update.delta(1).clone()
    change[:, [0, 3]] = 0
    assert row["idle"] == 2
    assert row["used"] == pytest.approx((change.norm() / lm.weight(1).norm()).item(), rel=1e-6)
    assert row["used"] < row["share"]
