"""Chapter 03: what is read off rows of editors, on rows that are made up."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch

from acelib.attribution.layers import Located
from acelib.editors import ACE, FT, PMET, preset
from acelib.measures import ace, ace_tables, located, lost_hops
from acelib.records import Case, Edit, Hop
from acelib.study.sentences import Text
from acelib.study.stats import Mean
from acelib.world.world import load_world

EDITORS = ("FT", "ROME", "MEMIT", "PMET", "IFMET", "ACE", "ACE (located)")
MODELS = ("gptj-mini", "qwen3-mini")


def case(case_id: int, n_edits: int = 1, hop: int = 0) -> Case:
    """A chain A -> B -> C whose hop ``hop`` (and, of two edits, the other) is edited."""
    names = [("A", "B"), ("B", "C")]
    hops = tuple(Hop(f"Q {s}?", f"The r of {s} is", o) for s, o in names)
    edited = [hop, 1 - hop][:n_edits]
    new = tuple(
        Hop(h.question, h.cloze, f"{h.answer}*" if i in edited else h.answer)
        for i, h in enumerate(hops)
    )
    edits = tuple(
        Edit(names[i][0], "The r of {} is", f"{names[i][1]}*", names[i][1], (), "sport")
        for i in edited
    )
    chain = tuple((s, "r", o) for s, o in names)
    return Case(case_id, edits, ("?",), "C", (), "C*", (), hops, new, chain, chain, ("sport",) * 2)


CASES = {model: [case(i, 1 + i % 2, i // 2 % 2) for i in range(12)] for model in MODELS}


@pytest.fixture
def rows() -> pd.DataFrame:
    """ACE is right on all cases, editor i on every case whose number i + 1 does not divide."""
    names = ("Base", *EDITORS)
    return pd.DataFrame(
        [
            dict(
                model=model,
                editor=name,
                case_id=one.case_id,
                n_edits=one.n_edits,
                n_hops=2,
                multi_hop=float(name in ("ACE", "Base") or one.case_id % (i + 1) != 0),
                multi_hop_each=0.5,
                multi_hop_substring=1.0,
                efficacy=1.0,
                paraphrase=0.5,
                specificity=0.9,
                specificity_near=0.5 + i / 100,
                specificity_far=1.0,
                specificity_token=0.25,
                lost_at=[0, 1, 2],
            )
            for model, cases in CASES.items()
            for i, name in enumerate(names)
            for one in cases
        ]
    )


# ---------------------------------------------------------------- standings and claims


def test_standings_say_who_is_ahead_on_the_same_cases(rows):
    of = ace.standings(rows, 0)["qwen3-mini"]
    assert list(of.multi_hop) == ["Base", *EDITORS] and list(of.lead) == [
        name for name in EDITORS if name != "ACE"
    ]
    assert of.multi_hop["ACE"].mean == 100 and of.lead["FT"].mean == pytest.approx(50)
    assert of.ahead[0] == "FT" and not of.behind
    assert sorted(of.ahead + of.level) == sorted(of.lead)
    assert of.best == "MEMIT" and of.keeper == "ACE"  # ACE (located) was not searched


def test_without_ace_there_is_no_lead(rows):
    some = rows[~rows.editor.isin(["ACE", "ACE (located)"])]
    told = ace.sentence_numbers(some, 0)
    assert not told["ace"] and all(not of.lead for of in told["models"].values())
    assert Text("03_ace").render("verdict", **told) == "ACE was not among the editors."
    assert not ace.claim_values(some)


def test_nothing_is_claimed_of_a_metric_that_no_case_asks(rows):
    """MQuAKE's own records have no other wordings of the edit."""
    values = ace.claim_values(rows.assign(paraphrase=float("nan")))
    assert not [claim for claim, _ in values if claim.startswith("paraphrase")]
    assert ("efficacy_leads", "gptj-mini") in values


def test_claims_compare_ace_with_the_best_rival_on_the_same_cases(rows):
    values = ace.claim_values(rows)
    gap = values["ace_leads_best", "gptj-mini"]
    assert gap.mean == pytest.approx(100 * 3 / 12) and gap.n == 12  # MEMIT loses 0, 4, 8
    assert values["ace_leads_pmet", "gptj-mini"].mean == gap.mean  # PMET 0, 5, 10
    assert ("ace_leads_four_edits", "gptj-mini") not in values  # no case has four edits
    assert values["worse_on_qwen3", "both"].mean == 0


def test_implicit_edits_are_compared_with_named_ones(rows):
    """One edit: case 0, 4, 8 of the first fact, 2, 6, 10 of the second; PMET loses 0 and 10."""
    found = ace.named_minus_implicit(rows[rows.n_edits == 1], CASES, 0)
    named, implicit, gap = found["PMET"]["gptj-mini"]
    assert named.mean == implicit.mean == pytest.approx(200 / 3) and gap.mean == 0 and gap.n == 3
    assert ace.implicit_claim(found)["implicit_edits_are_harder", "gptj-mini"] == gap
    few = {model: cases[:3] for model, cases in CASES.items()}
    assert not ace.named_minus_implicit(rows[(rows.case_id < 3) & (rows.n_edits == 1)], few, 0)


def test_cases_of_both_kinds_are_drawn_and_known(monkeypatch):
    world = load_world()
    monkeypatch.setattr(ace, "known_cases", lambda lm, cases: cases)
    cases = ace.single_edit_cases(None, world, 7, 0)
    assert [ace.is_named(case) for case in cases] == [True] * 7 + [False] * 7
    assert {case.n_edits for case in cases} == {1} and len({c.case_id for c in cases}) == 14


# ---------------------------------------------------------------- where questions are lost


def test_a_lost_hop_is_edited_or_not(rows):
    lost = lost_hops.questions(rows, CASES)
    assert len(lost) == 3 * len(rows[rows.editor != "Base"])
    one = lost[(lost.model == "gptj-mini") & (lost.editor == "FT")].set_index("case_id")
    assert list(one.loc[0].edited) == [False, True, False]  # the first hop is edited
    assert list(one.loc[2].edited) == [False, False, True]  # the second
    assert list(one.loc[1].edited) == [False, True, True]  # both
    assert list(one.loc[0, "first wrong hop"]) == ["none", "hop 1", "hop 2"]


def test_shares_of_lost_questions_add_up(rows):
    lost = lost_hops.questions(rows, CASES)
    table = lost_hops.table(lost, 0)
    assert list(table.index[0]) == ["gptj-mini", "FT"]
    line = table.loc[("gptj-mini", "FT")].map(lambda mean: mean.mean)
    assert line[["none", "hop 1", "hop 2"]].sum() == pytest.approx(100)
    assert line[["lost at an edited hop", "lost at another"]].sum() == pytest.approx(200 / 3)
    later = lost_hops.at_later_hops(lost, 0)
    assert later["gptj-mini"]["FT"].mean == pytest.approx(100 / 3)
    assert lost_hops.at_edited_hops(lost, 0)["qwen3-mini"].mean == pytest.approx(75)


# ---------------------------------------------------------------- layers, settings, writes


@pytest.fixture
def scores() -> pd.DataFrame:
    """Two groups of two questions: layer i has query importance i and value importance -i."""
    layers = np.arange(8.0)
    return pd.DataFrame(
        [
            dict(model=model, role=role, layer=layer, importance=2 * value, n_prompts=2)
            for model in MODELS
            for _ in range(2)
            for role, values in (("query", layers), ("value", -layers))
            for layer, value in enumerate(values)
        ]
    )


def test_scores_of_groups_give_means_and_ranks(scores):
    means = located.means(scores)
    assert list(means["gptj-mini", "query"]) == list(range(8)) and means.index.name == "layer"
    ranking = located.ranking(scores, "qwen3-mini")
    assert ranking == {"query": (7, 6, 5, 4, 3, 2, 1, 0), "value": tuple(range(8))}
    groups = located.per_group(scores)
    assert set(groups.block) == {"ffn"} and groups.importance.max() == 7


def test_a_row_for_each_role_and_layer():
    one = Located(torch.ones(2, 3).double(), torch.zeros(2, 3).double(), (1, 0), 5)
    rows = located.by_layer(one)
    assert [(row["role"], row["layer"], row["importance"]) for row in rows] == [
        ("query", 0, 0.0),
        ("query", 1, 0.0),
        ("value", 0, 3.0),
        ("value", 1, 3.0),
    ]
    assert {row["n_prompts"] for row in rows} == {5}


def test_ace_moves_to_as_many_layers_as_it_has(scores):
    one = ACE(value=PMET(layers=(5, 6), position="last"), query=PMET(layers=(1, 2)))
    moved = ace.on_ranked_layers(one, located.ranking(scores, "qwen3-mini"))
    assert (moved.query_layers, moved.value_layers) == ((6, 7), (1, 2))
    assert moved.stages == one.stages
    chosen = {"qwen3-mini": {"ACE": one, "ACE (located)": moved}}
    line = ace_tables.layers(scores, chosen).loc["qwen3-mini"]
    assert line["query layers"] == "7, 6, 5" and line["ACE writes"] == "query 1, 2; value 5, 6"
    written = ace_tables.written(scores, chosen)["qwen3-mini"]
    assert written["query"] == "1, 2 (none named by attribution)"
    assert written["located"] == "query 6, 7; value 1, 2"


def test_layers_are_named_by_attribution_all_in_part_or_not():
    names = [ace_tables._named(layers, (3, 2, 1, 0)) for layers in ((1, 2), (0, 1), (0,))]
    assert names == [
        "1, 2 (all named by attribution)",
        "0, 1 (attribution names 1)",
        "0 (none named by attribution)",
    ]


def test_settings_name_what_is_not_a_default():
    stage = PMET(layers=(3,), n_prefixes=2)
    editors = {
        "FT": FT(layers=(5,), loss="target", norm_constraint=0.2),
        "ACE": ACE(value=stage, query=stage),
    }
    frame = ace_tables.settings({"gptj-mini": editors})
    assert list(frame.further) == ["loss target, norm_constraint 0.2", "n_prefixes 2"]
    quoted = ace_tables.published_settings()
    assert list(quoted.index) == [("published", "ACE on GPT-J"), ("published", "ACE on Qwen3-8B")]


def test_writes_are_shown_by_layer_with_their_share():
    columns = ["model", "editor", "layer", "norm", "share", "used", "idle", "log_p"]
    rows = pd.DataFrame(
        [
            ("m", "Base", None, None, None, None, None, -9.0),
            ("m", "FT", 6, 2.0, 0.5, 0.5, 0, -0.5),
            ("m", "ACE", 1, 30.0, 3.0, 0.3, 4, -0.25),
            ("m", "ACE", 6, 1.0, 0.2, 0.2, 0, -0.25),
        ],
        columns=columns,
    )
    table = ace_tables.writes(rows)
    assert list(table.columns) == ["layer 1", "layer 6", "log p (nats)"]
    assert list(table.loc[("m", "ACE")]) == ["30 (3)", "1 (0.2)", "-0.25"]
    assert list(table.loc[("m", "Base")]) == ["–", "–", "-9"]
    assert ace_tables.log_probabilities(rows).m.to_dict() == {"Base": -9, "FT": -0.5, "ACE": -0.25}
    assert list(ace_tables.norms(rows).index) == [("m", "FT", 6), ("m", "ACE", 1), ("m", "ACE", 6)]
    greatest = dict(layer=1, share=3.0, used=0.3, idle=4)
    assert ace.heavier(rows) == {"m": {"ACE": greatest}}


def test_the_steps_of_an_edit_are_those_of_the_editor():
    edit, one = ace.example(load_world()), preset("ACE", "gptj-mini")
    ranking = {"query": tuple(range(8)), "value": tuple(range(8))}
    steps = ace_tables.steps(one, edit, ranking, 96)
    assert list(steps.index) == ["Stage 1: identify", "Stage 2: value edit", "Stage 2: query edit"]
    assert steps.layers.iloc[0] == "query 0, 1, 2; value 0, 1, 2"
    assert steps.prompt.iloc[2].startswith("Tim Duncan|") and set(steps.target[1:]) == {"cricket"}


def test_the_search_is_summed_up():
    trials = pd.DataFrame(
        [("m", "FT", 10.0), ("m", "FT", 40.0), ("m", "ACE", 70.0), ("m", "KN", 5.0)],
        columns=["model", "editor", "multi_hop"],
    )
    assert ace.search(trials, ["FT", "ACE"]) == {
        "n_trials": "1 to 2",
        "models": {"m": {"settings": 7.5, "editors": 15.0}},
    }
    assert ace.search(trials, ["PMET"]) == {"n_trials": "no", "models": {}}


def test_other_readings_stand_in_columns(rows):
    table = ace_tables.readings(rows, 0)
    assert list(table.columns) == list(ace_tables.READINGS.values())
    assert table.loc[("gptj-mini", "ACE"), "each question"].mean == 50


# ---------------------------------------------------------------- cases


@dataclass(frozen=True)
class Knows:
    """Stands in for a model in ``recall``."""

    correct: list


def test_base_is_asked_for_the_old_answers(monkeypatch):
    said = {"B": True, "C": False}
    monkeypatch.setattr(
        ace, "recall", lambda host, prompts, targets: Knows([said[target] for target in targets])
    )
    two = case(0, 2)
    new_subject = Edit("B*", "The r of {} is", "X", "C", (), "sport")
    other = Case(**{**vars(two), "edits": (two.edits[0], new_subject)})
    assert ace.base_knows({"m": None}, {"m": [two, other]}) == {
        "m": {"known": 2, "chain": 3, "known_others": 0, "others": 1}
    }


def test_categories_are_those_of_the_edited_relations():
    world = load_world()
    foreign = Edit("A", "The r of {} is", "X", "B", (), "P999")
    two = case(0, 2)
    frame = ace.categories({"m": [two, Case(**{**vars(two), "edits": (foreign,)})]}, world)
    assert len(frame) == 2 and frame.category.iloc[1] == "other"


# ---------------------------------------------------------------- sentences


def test_every_sentence_can_be_said(rows, scores):
    text, told = Text("03_ace"), ace.sentence_numbers(rows, 0)
    lost = lost_hops.questions(rows, CASES)
    chosen = {m: {"ACE": preset("ACE", m)} for m in MODELS}
    for model in MODELS:
        ranking = located.ranking(scores, model)
        chosen[model]["ACE (located)"] = ace.on_ranked_layers(chosen[model]["ACE"], ranking)
    values = dict(
        told,
        written=ace_tables.written(scores, chosen),
        found={"PMET": {"m": (Mean(60, 40, 80, 9), Mean(50, 30, 70, 9), Mean(10, -20, 40, 9))}},
        later=lost_hops.at_later_hops(lost, 0),
        edited=lost_hops.at_edited_hops(lost, 0),
        counts={"m": {"known": 2, "chain": 3, "known_others": 0, "others": 1}},
        heavier={"m": {"ACE": dict(layer=1, share=3.0, used=0.3, idle=4)}},
        unbounded=True,
        n_trials="10",
        n={"m": 8},
        large="GPT-J",
        model="m",
        target="cricket",
        n_cases=12,
        n_located=96,
        n_unrelated=20,
        seed=0,
    )
    blocks = set(text.template.blocks) - {"search"}
    assert all(text.render(block, **values).strip() for block in blocks)
    models = {"m": {"settings": 15.0, "editors": 30.0}}
    said = text.render("search", models=models, n_trials="10")
    assert "scatter by 15 points" in said and "settings matter no more than the editor." in said
    verdict = " ".join(text.render("verdict", **told).split())
    assert verdict.startswith("**") and "ACE answers 100 [" in verdict
    assert "ahead of FT" in verdict and "ROME 52" in verdict


def test_a_claim_is_decided_by_the_whole_interval():
    text = Text("03_ace")
    for gap, said in (
        (Mean(5, 1, 9, 20), "the claim holds on this model."),
        (Mean(-5, -9, -1, 20), "the claim fails on this model."),
        (Mean(0, -9, 9, 20), "so one cannot tell on this model."),
    ):
        shares = {"ACE": Mean(90, 80, 99, 20), "PMET": Mean(85, 80, 90, 20)}
        models = {"m": ace.Standing(shares, shares, shares, shares, {"PMET": gap})}
        assert text.render("claim", ace=True, models=models).endswith(said)
