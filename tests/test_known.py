"""What a model knows: every prompt of an item is counted once, and shares add up."""

import pandas as pd
import pytest

from acelib.attribution.layers import ROLES
from acelib.bench.tiny import make_tiny
from acelib.measures import known, known_analysis, world_tables
from acelib.model.answers import Recall
from acelib.study.sentences import Text
from acelib.world.world import load_world

WORLD = load_world()
BARS = {"cloze": 0.9, "cot_2": 0.5}


@pytest.fixture
def asked(monkeypatch):
    """A made-up model that knows all prompts but questions; what it was asked is kept."""
    seen = []

    def recall(lm, prompts, answers, updates=None):
        seen.extend(zip(prompts, answers, strict=True))
        return Recall([not p.startswith("Q:") for p in prompts], [0.0] * len(prompts))

    monkeypatch.setattr(known, "recall", recall)
    return seen


def test_facts_are_asked_in_every_wording(asked):
    facts = known.facts(WORLD, 3)
    rows = known.fact_answers(None, WORLD, facts)
    assert [row["bar"] for row in rows[0]] == ["cloze", "cloze_unseen", "qa", "qa_unseen"]
    assert sum(row["asked"] for of in rows for row in of[::2]) == len(asked)
    assert known.shares(rows) == dict(cloze=1.0, cloze_unseen=1.0, qa=0.0, qa_unseen=0.0)
    assert known.facts(WORLD, 3) == facts and len(known.facts(WORLD)) == len(WORLD.facts)


def test_chains_are_asked_with_and_without_thoughts(asked, monkeypatch):
    chains = known.drawn_chains(WORLD, 2)
    answers = {id(chain): chain.answer for chain in chains}
    monkeypatch.setattr(known, "multi_hop", lambda lm, prompts: ["nothing"] * len(prompts))
    rows = known.chain_answers(None, WORLD, chains)
    assert len(answers) == 6 and [row["bar"] for row in rows[0]] == [
        "cot_2",
        "implicit_2",
        "direct_2",
    ]
    assert [row["bar"] for row in rows[-1]] == ["cot_4"]
    assert known.shares(rows)["implicit_3"] == 1 and known.shares(rows)["cot_4"] == 0


def test_a_context_counts_when_it_changes_the_answer(asked):
    pairs = known.context_pairs(WORLD, 5)
    assert known.shares(known.context_answers(None, WORLD, pairs)) == {"robust": 1.0}
    assert asked[5][0].endswith(f". {asked[0][0]}")


def test_edits_are_judged_alone_and_nothing_is_right_without_a_site(asked, monkeypatch):
    monkeypatch.setattr(known, "known_items", lambda lm, items, ask: items)
    trials = known.trials(make_tiny("gptj"), WORLD, 2, n_unrelated=4)
    assert len(trials) == 2 and all(len(trial.others) == 4 for trial in trials)
    assert all(len(trial.endings) <= 2 for trial in trials) and any(t.endings for t in trials)
    rows = known.edit_answers(None, WORLD, trials, (), None)
    assert set(known.shares(rows).values()) == {0.0} and len(rows[0]) == 8


def test_experiments_name_every_item(monkeypatch):
    hosts = {"tiny": make_tiny("gptj")}
    one = known.experiment(hosts, WORLD, n_facts=4, n_chains=2, seed=0)
    assert [len(series.items) for series in one.series] == [4, 6, known.N_CONTEXTS]
    traces = known.traces(hosts, WORLD, n_traced=8, seed=0)
    assert len(traces.series[0].items) == 8  # categories


def test_a_trace_row_holds_every_layer(tiny, monkeypatch):
    lm, fact = tiny("gptj"), WORLD.facts[0]
    monkeypatch.setattr(known, "known_of", lambda *_: [fact])
    rows = known.trace_rows(lm, WORLD, "ST", 1)
    assert [row["role"] for row in rows] == list(ROLES)
    assert all({str(i) for i in range(lm.n_layers)} <= row.keys() for row in rows)


# -------------------------------------------------------------------------------------- analysis


def answers() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"model": model, "item": item, "bar": bar, "right": right, "asked": 2}
            for model, right in (("one", 2), ("two", 1))
            for bar in BARS
            for item in ("a", "b")
        ]
    )


def test_a_bar_is_missed_below_its_share():
    rows = answers()
    assert known_analysis.measured(rows).to_dict() == {
        "one": {"cloze": 1.0, "cot_2": 1.0},
        "two": {"cloze": 0.5, "cot_2": 0.5},
    }
    assert known_analysis.bars_missed(rows, BARS) == [("cloze", "two")]
    numbers = known_analysis.verdict_numbers(rows, BARS)
    assert (numbers["passed"], numbers["bars"]) == (3, 4)
    said = Text("00_world").render("verdict", **numbers)
    assert said.startswith("**Partly.** They pass 3 of 4 bars.") and "(two, 50.0 of " in said
    table = known_analysis.bars_table(rows, BARS)
    assert table["reached"].to_dict() == {
        "statement": "not by two",
        "2-hop chain of thought": "yes",
    }
    assert Text("00_world").render("verdict", passed=4, bars=4, missed=[]) == (
        "**Yes.** They pass 4 of 4 bars."
    )


def traces() -> pd.DataFrame:
    rows = []
    for role in ROLES:
        restored = {"0": 0.2, "1": 0.9} if role == "last" else {"0": 0.6, "1": 0.3}
        if role == "middle subject":
            restored = dict.fromkeys(restored)
        base = {"model": "one", "item": "ST", "fact": "x", "clean": 1.0, "corrupted": 0.2}
        rows.append({**base, "role": role, **restored})
    return pd.DataFrame(rows)


def test_what_a_state_brings_back_is_a_share_of_what_the_noise_took():
    states = known_analysis.traced_states(traces())
    assert len(states) == 2 * len(ROLES)
    assert known_analysis.prompts(traces()).loc["one"].tolist() == [1, 1.0, 0.2]
    back = known_analysis.brought_back(states)
    best = known_analysis.best_states(back)
    assert best.share["last", "one"] == pytest.approx(87.5) and best.layer["last", "one"] == 1
    table = known_analysis.best_table(back)
    assert table.loc["middle subject token"].tolist() == ["–"] * 4
    assert table.loc["last token"].tolist() == ["1", "88", "1", "1"]
    numbers = known_analysis.trace_numbers(back)
    assert numbers["one"]["middle_subject"] is None
    assert "brings back up to" in Text("00_world").render("trace_found", models=numbers)
    said = Text("00_world").render("trace", models=numbers)
    assert "none (no such token) at a middle token" in said
    assert "88 % (layer 1) at the last\ntoken" in said
    assert known_analysis.probabilities(states).index.tolist() == [
        ("one", role) for role in ROLES if role != "middle subject"
    ]


def test_the_ablation_is_told_with_the_noise_of_a_seed():
    kept = pd.DataFrame(
        {
            "steps": 5,
            "cloze": [0.5, 0.4, 0.6],
            "rome_efficacy": [0.5, 0.45, 0.2],
            "early_site": ["1 2", "1", ""],
        },
        index=["all", "all, seed 1", "without dense"],
    )
    names = ["cloze", "rome_efficacy"]
    table = known_analysis.effects_table(kept, names)
    assert table["all (%)"].tolist() == [50, 50]
    assert table["without dense"].tolist() == [10, -30]
    dense = known_analysis.dense_numbers(kept, names)
    assert (dense["more"], dense["losses"], dense["site_without"]) == (1, 1, "none")
    noise = known_analysis.noise_numbers(kept, names, 50, 24)
    assert (noise["changes"], noise["exceed"]) == (2, 1)
    text = Text("00_world")
    assert "changes by -30.0 points (another seed alone:\n-5.0):" in text.render("dense", **dense)
    assert "± 14 points" in text.render("noise", **noise)
    assert text.render("noise", known=False) == ""
    assert known_analysis.dense_numbers(kept[:1], names) == {"known": False}


def test_the_world_and_its_models_as_tables():
    assert world_tables.relations_table(WORLD).facts.sum() == len(WORLD.facts)
    assert world_tables.size_numbers(WORLD)["facts"] == len(WORLD.facts)
    chain = world_tables.example_chain(WORLD)
    assert chain.answer in world_tables.chain_table(WORLD, chain).text["chain"]
    assert world_tables.texts_table(WORLD).iloc[:, 0].str.len().max() <= 320
    assert world_tables.card("gptj-mini")
    logs = world_tables.training_logs(["gptj-mini", "qwen3-mini"])
    assert logs.model.unique().tolist() == ["gptj-mini", "qwen3-mini"]
