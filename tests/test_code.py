"""The paper against its code: every difference says what, where and what follows; layers of the
sources are those printed and released.
"""

import pandas as pd
import pytest

from acelib.editors import preset
from acelib.measures.audit_figures import COLOURS, named_layers
from acelib.paper import code
from acelib.paper.audit import DEPTH
from acelib.provenance import ROOT

pytestmark = pytest.mark.filterwarnings("error")
PRESETS = {"GPT-J": "gpt-j-6b", "Qwen3-8B": "qwen3-8b"}


def test_every_difference_is_told_whole_and_no_line_is_made_up():
    table = code.differences()
    told = table.drop(index=table[table.file == "the repository"].index)
    assert (told[["section", "paper", "file", "code", "consequence"]] != "").all(axis=None)
    assert (table[["file", "code", "consequence"]] != "").all(axis=None)
    assert (table.line == "").all(), "no line is known for certain"
    assert not table.code.duplicated().any() and len(table) >= 20
    for fault in ("F1", "F2", "F3", "F4", "F5", "F6"):
        assert table.code.str.startswith(fault).any(), fault


def test_what_is_said_to_be_measured_names_a_chapter():
    chapters = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} | {"08_released_code"}
    measured = code.differences().measured
    assert {name.partition(",")[0] for name in measured if name} <= chapters
    assert (measured == "").any() and (measured != "").any()


def test_the_settings_are_the_presets_of_the_released_form():
    layers = code.layers()
    for model, name in PRESETS.items():
        editor = preset("ReleasedACE", name)
        part = layers[(layers.model == model) & (layers.source == code.SETTINGS)]
        for role, written in (("query", editor.query_layers), ("value", editor.value_layers)):
            assert tuple(part[part.role == role].layer) == written


def test_layers_of_each_source():
    layers = code.layers()

    def named(model, source, role):
        chosen = (layers.model == model) & (layers.source == source) & (layers.role == role)
        return list(layers[chosen].layer)

    assert named("GPT-J", "6.4", "value") == [28, 29, 30]
    assert named("GPT-J", "G", "value") == [26, 27, 28]
    assert named("Qwen3-8B", "G", "query") == [25, 26, 27]
    one = layers[layers.source == code.TABLE]
    assert set(one.model) == {"GPT-J"} and one.share.between(0.125, 1).all()
    assert one.share.sum() == pytest.approx(9), "eight lists of nine layers, without repeats"
    assert list(layers.source.unique()) == list(code.SOURCES)


def test_how_far_sources_agree_with_the_settings():
    found = code.agreement().set_index(["model", "role", "source"])
    value = found.loc["GPT-J", "value"]
    # 26, 27, 28 against 23, 24, 25: nothing as printed, 25 if counted from 1.
    assert tuple(value.loc["G"]) == (3, 0, 1, 0)
    assert tuple(value.loc["6.4"]) == (3, 0, 0, 2)
    assert tuple(found.loc["GPT-J", "query", "G"]) == (6, 6, 5, 0)
    assert tuple(found.loc["Qwen3-8B", "value", "G"]) == (5, 5, 4, 0)


def test_the_figure_has_a_line_per_source_and_a_mark_per_layer():
    layers = code.layers()
    fig = named_layers(layers)
    assert [ax.get_title(loc="left") for ax in fig.axes] == list(DEPTH)
    for ax, model in zip(fig.axes, DEPTH, strict=True):
        part = layers[layers.model == model]
        marks = [line for line in ax.lines if line.get_marker() == "s"]
        assert len(marks) == len(part)
        assert [tick.get_text() for tick in ax.get_yticklabels()] == list(part.source.unique())
    assert set(layers.role) == set(COLOURS) and isinstance(layers, pd.DataFrame)
