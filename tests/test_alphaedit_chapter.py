"""Appendix J: what is put together from two presets, and what its rows say."""

import pandas as pd

from acelib.editors import preset
from acelib.measures import alphaedit
from acelib.study import claims, experiments
from acelib.study.sentences import Text
from acelib.world.cases import make_cases
from acelib.world.world import load_world


def rows() -> pd.DataFrame:
    """On m, ACE on AlphaEdit answers three of four cases, AlphaEdit none, ACE on PMET all."""
    hits = {alphaedit.ACE: (0, 1, 1, 1), alphaedit.PLAIN: (0,) * 4, alphaedit.ON_PMET: (1,) * 4}
    return pd.DataFrame(
        {
            "model": "gptj-mini",
            "editor": name,
            "case_id": case,
            "multi_hop": float(hit),
            "specificity": 0.5,
            "specificity_token": 0.25,
        }
        for name, of in hits.items()
        for case, hit in enumerate(of)
    )


def test_ace_on_alphaedit_is_put_together_from_two_presets():
    of = alphaedit.editors("gptj-mini")
    ace, plain, both = of[alphaedit.ON_PMET], of[alphaedit.PLAIN], of[alphaedit.ACE]
    assert ace == preset("ACE", "gptj-mini") and plain == preset("AlphaEdit", "gptj-mini")
    assert (both.query_layers, both.value_layers) == (ace.query_layers, ace.value_layers)
    for stage in ("value", "query"):
        new, old = both.writer(stage), ace.writer(stage)
        assert type(new) is type(plain) and new.position == old.position
        for name in ("weight", "objective", "null_share"):
            assert getattr(new, name) == getattr(plain, name)


def test_settings_tell_the_writes_apart():
    table = alphaedit.settings_table(["gptj-mini"])
    assert table.loc[("gptj-mini", alphaedit.ACE), "write"] == "AlphaEdit"
    assert table.loc[("gptj-mini", alphaedit.ON_PMET), ["write", "target"]].tolist() == [
        "PMET",
        "pmet",
    ]
    assert table.loc[("gptj-mini", alphaedit.ON_PMET), "null space, share"] == "–"


def test_leads_are_paired_over_cases():
    values = alphaedit.leads(rows())
    assert values["alphaedit_backbone", "gptj-mini"].mean == 75
    assert values["newer_backbone_helps", "gptj-mini"].mean == -25
    of = alphaedit.verdict(rows())["gptj-mini"]
    assert of["alphaedit_backbone"]["gap"] == values["alphaedit_backbone", "gptj-mini"]
    assert of["newer_backbone_helps"]["is"] in claims.VERDICTS
    kept = alphaedit.kept(rows())["gptj-mini"]
    assert [of[alphaedit.ACE].mean for of in kept.values()] == [50, 25]


def test_cases_come_from_the_world_or_from_a_file(tiny, monkeypatch):
    lm, world, seen = tiny("gptj"), load_world(), []
    cases = make_cases(world, "identification", 4, 0)

    def evaluation_cases(lm, world, n, seed, path):
        seen.append((n, seed, path))
        return cases

    monkeypatch.setattr(experiments, "evaluation_cases", evaluation_cases)
    of = alphaedit.experiment(
        {"gptj-mini": lm}, world, cases="own.json", n_cases=4, n_unrelated=2, seed=3
    )
    assert seen == [(4, 3, "own.json")] and len(of.series) == 3
    assert [series.names["editor"] for series in of.series] == list(alphaedit.editors("gptj-mini"))
    assert list(of.series[0].items) == [str(case.case_id) for case in cases]


def test_sentences():
    text = Text("appendix_j_alphaedit")
    said = text.render("verdict", models=alphaedit.verdict(rows()))
    assert "ACE on AlphaEdit minus AlphaEdit is 75.0 [" in said
    said = text.render("gains", gains={"GPT-J": 1.5, "Qwen3-8B": 2.5})
    assert "1.5 points on GPT-J,\n2.5 points on Qwen3-8B\n(differences" in said
    said = text.render("kept", models=alphaedit.kept(rows()))
    assert "% (AlphaEdit), 50 %" in said
    assert "an edited one keep their answer in 25 %" in said
    assert "ACE on AlphaEdit minus AlphaEdit is 75 points" in text.render(
        "paired_found", models=alphaedit.verdict(rows())
    )
