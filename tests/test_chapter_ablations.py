"""Chapter 04: ACE with one thing changed, and what is read off the rows; rows are made up."""

from types import SimpleNamespace

import pandas as pd
import pytest

from acelib.editors import ACE, PMET
from acelib.measures import ablations, harder
from acelib.study.sentences import Text
from acelib.study.stats import Mean
from acelib.study.tables import paired_table

MODELS = ("gptj-mini", "qwen3-mini")
LAYERS = {"gptj-mini": ((1, 2, 3), (5, 6, 7)), "qwen3-mini": ((1, 2), (5, 6))}
RANKING = {"query": (3, 2, 1, 0, 4, 5, 6, 7), "value": (7, 6, 5, 4, 3, 2, 1, 0)}


def ace(model: str) -> ACE:
    """On the query and value layers of ``LAYERS``."""
    query, value = LAYERS[model]
    return ACE(value=PMET(layers=value, position="last"), query=PMET(layers=query))


def outcomes(names, wrong=None) -> pd.DataFrame:
    """Eight cases per model and setting, all right but those of number below ``wrong[name]``."""
    return pd.DataFrame(
        [
            dict(
                model=model,
                editor=name,
                case_id=case,
                n_hops=2 + case % 3,
                multi_hop=float(case >= (wrong or {}).get(name, 0)),
                multi_hop_each=float(case >= (wrong or {}).get(name, 0)) * (3 - case % 2) / 3,
                efficacy=1.0,
                paraphrase=1.0 - (name == "chained"),
                specificity=0.5,
                specificity_token=0.5,
            )
            for model in MODELS
            for name in names
            for case in range(8)
        ]
    )


@pytest.fixture
def settings():
    return {model: ablations.layer_ablations(ace(model), RANKING) for model in MODELS}


@pytest.fixture
def prompts() -> pd.DataFrame:
    frames = [
        outcomes(["Base", "ACE"], {"ACE": wrong}).assign(prompt=prompt)
        for prompt, wrong in zip(harder.PROMPTS, (0, 4, 0, 0), strict=True)
    ]
    return ablations.by_prompt(pd.concat(frames), [3, 4])


# ---------------------------------------------------------------- settings


def test_the_most_important_layers_are_skipped_first(settings):
    of = settings["gptj-mini"]
    assert list(of) == [
        "ACE",
        "no query #1",
        "no query #1, 2",
        "no query #1, 2, 3",
        "no value #1",
        "no value #1, 2",
    ]
    assert of["no query #1"].query_layers == (1, 2) and of["no query #1, 2"].query_layers == (1,)
    assert of["no value #1, 2"].value_layers == (5,)
    assert of["no value #1, 2"].query_layers == of["ACE"].query_layers


def test_without_any_layer_a_stage_does_not_take_place(settings):
    assert settings["gptj-mini"]["no query #1, 2, 3"].stages == ("value",)
    assert ablations.without_stage(settings) == {
        "gptj-mini": ["no query #1, 2, 3"],
        "qwen3-mini": ["no query #1, 2", "no value #1, 2"],
    }


def test_every_reading_changes_one_thing():
    whole = ace("gptj-mini")
    readings = ablations.other_readings(whole)
    assert len(readings) == 8 and len(set(map(repr, readings.values()))) == 8
    assert readings["value at subject"].plan["value"] == whole.plan["value"]  # a request's position
    assert list(readings["query first"].plan) == ["query", "value"]
    assert all(one.layers == whole.layers for one in readings.values())


# ---------------------------------------------------------------- tables


def test_published_values_are_named_as_the_measured_ones(settings):
    quoted = ablations.published_layers()
    assert {"ACE", "no query #1, 2", "no value #1"} <= set(quoted.editor)
    assert set(ablations.METRICS) - {"specificity_token"} <= set(quoted.metric)
    assert "Few-Shots" in set(ablations.published_prompts().editor)


def test_prompts_stand_in_the_order_of_table_5(prompts):
    assert list(prompts.editor.unique()) == list(harder.PROMPTS)
    assert len(prompts) == 2 * 4 * 8 and {"ACE", "unedited"} <= set(prompts.columns)


def test_every_prompt_is_read_hard_on_its_long_chains(prompts):
    """Cases 1, 2, 4, 5, 7 have three hops or four; odd cases answer two of three questions."""
    one = prompts[(prompts.model == "gptj-mini") & (prompts.editor == "Zero-Shot")]
    hard = one.set_index("case_id")["ACE, hard"].dropna()
    assert hard.to_dict() == pytest.approx({1: 0, 2: 0, 4: 1, 5: 2 / 3, 7: 2 / 3})
    assert one["unedited, hard"].sum() == pytest.approx(2 + 3 * 2 / 3)


# ---------------------------------------------------------------- what the rows say


@pytest.fixture
def rows(settings) -> pd.DataFrame:
    """Read hard, the cases that ``outcomes`` has right are half right without value layers."""
    usual = pd.concat(
        outcomes(settings[model], {"no query #1, 2, 3": 2, "no value #1, 2": 4}).query(
            "model == @model"
        )
        for model in MODELS
    )
    half = usual.multi_hop * usual.editor.map(lambda name: 0.5 if "value" in name else 1.0)
    both = [
        usual.assign(prompt=harder.PUBLISHED),
        usual.assign(prompt="OOD Few-Shots", multi_hop_each=half),
    ]
    return harder.beside(pd.concat(both), "OOD Few-Shots", [4])


@pytest.fixture
def values(rows, prompts):
    return ablations.claim_values(rows, prompts)


def test_claims_are_about_the_settings_without_most_layers(values):
    assert values["query_layers_needed", "gptj-mini"].mean == 25
    assert values["value_layers_needed", "gptj-mini"].mean == 50
    assert values["value_costs_more", "gptj-mini"].mean == -50
    assert values["zero_shot_robust", "qwen3-mini"].mean == 50
    assert values["one_shot_robust", "qwen3-mini"].mean == 0
    assert values["qwen3_is_more_sensitive", "both"].mean == -25


def test_settings_at_the_ceiling_are_told_with_their_hard_reading(rows, prompts):
    told = ablations.hard_numbers(rows, prompts)  # two cases have four hops, 2 and 5
    full = {name: value.mean for name, value in told["ceilings"]["gptj-mini"].items()}
    assert full == {
        "ACE": 100,
        "no query #1": 100,
        "no query #1, 2": 100,
        "no value #1": 50,
    }
    assert told["hard"]["query_layers_needed"]["gptj-mini"].mean == 0
    assert told["hard"]["value_layers_needed"]["gptj-mini"].mean == 75  # of 2 none, of 5 half
    assert told["hard"]["zero_shot_robust"]["gptj-mini"].mean == pytest.approx(100 / 3)
    assert "qwen3_is_more_sensitive" not in told["hard"]


def test_gaps_sort_readings_by_their_interval():
    names = list(ablations.other_readings(ace("gptj-mini")))
    rows = outcomes(names, {"value: single-hop": 6, "ACE": 1})
    groups = rows.groupby("model", sort=False)
    gaps = ablations.gaps({model: paired_table(part) for model, part in groups})["gptj-mini"]
    assert [name for name, _ in gaps["better"]] == ["value: single-hop"]
    assert gaps["single"].mean == pytest.approx(62.5) and not gaps["worse"]
    assert len(gaps["level"]) == 6
    assert [(name, list(losses)) for name, losses in gaps["dear"]] == [("chained", ["paraphrase"])]


def test_readings_that_agree_on_every_case_are_named():
    rows = outcomes(["ACE", "value: multi-hop", "value at subject"], {"ACE": 1})
    names = ["value: multi-hop", "value at subject"]
    assert ablations.equal(rows) == [{"model": model, "names": names} for model in MODELS]


def test_models_whose_value_layers_end_at_the_top_are_named(monkeypatch):
    monkeypatch.setattr(ablations, "preset", lambda _, host: ace(host.name))
    last = {model: max(ace(model).value_layers) for model in MODELS}
    hosts = {model: SimpleNamespace(name=model, n_layers=8) for model in MODELS}
    assert ablations.unreached(hosts) == [model for model in MODELS if last[model] == 7]
    assert sorted(last.values()) != [7, 7]  # the other one has layers above them


def test_every_sentence_can_be_said(values, rows, settings, prompts):
    text, gone = Text("04_ablations"), ablations.without_stage(settings)
    told = ablations.sentence_numbers(values, prompts, gone)
    one, gap = Mean(5.0, -1.0, 9.0, 8), Mean(5.0, 1.0, 9.0, 8)
    gaps = {
        model: {
            "better": [],
            "worse": [("a", one)],
            "level": [("b", one), ("c", one)],
            "dear": [("chained", {"paraphrase": one})],
            "single": single,
        }
        for model, single in zip(MODELS, (one, gap), strict=True)
    }
    pair = {"model": "m", "names": ["the default", "b"]}
    more = dict(
        gaps=gaps,
        equal=[pair],
        unreached=["m"],
        n={"m": 8},
        large="GPT-J",
        model="m",
        gone={"m": []},
    )
    more |= dict(ablations.hard_numbers(rows, prompts), prompt="OOD Few-Shots", long=[3, 4])
    said = {
        block: " ".join(text.render(block, **{**told, **more, "n_located": 96, "seed": 0}).split())
        for block in text.template.blocks
    }
    assert said["verdict"].startswith("**") and "layers, which are all it has, " in said["verdict"]
    assert said["table_4"].endswith("does not take place: in no row")
    assert "Hard: OOD Few-Shots prompt, chains of 3 or 4 hops, share of" in said["table_4"]
    assert "still at the ceiling: ACE, no query #1 and no query #1, 2." in said["hard"]
    assert "of the questions), that is 100.0 % [" not in said["hard"]
    assert "On gptj-mini, that interval reaches zero" in said["single"]
    assert "better than none; it is worse than *a* by -5 points." in said["readings"]
    assert "*chained* (paraphrase)" in said["readings"]
    assert "*the default* and *b* agree on every case" in said["readings"]
    assert (
        "On m, *value at subject* finds nothing to write for the single-hop prompts"
        in said["readings"]
    )
    assert "No demonstrations cost 50.0 [" in said["prompts"]
