"""Figures to pick from: every entry of a menu shows what the rows say, on a page of their own."""

import base64
import importlib
import json
import re
import tomllib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from acelib.book import picks as book
from acelib.measures import ace_picks, grid_analysis, grid_picks, ripple_analysis, ripple_picks
from acelib.measures.grid import METRICS
from acelib.provenance import ROOT
from acelib.study import picks
from acelib.study.stats import SHARE, interval

MODELS = ("m", "n")


def case(number: int, n_edits: int = 1) -> SimpleNamespace:
    edit = SimpleNamespace(text="Ann sings in", target_true="Rome", target_new=f"Oslo {number}")
    return SimpleNamespace(
        case_id=number,
        n_edits=n_edits,
        n_hops=2,
        edits=[edit] * n_edits,
        questions=[f"Question {number}?"],
        answer="Italy",
        new_answer="Norway",
    )


def unpacked(values):
    """An array as plotly.js reads it."""
    flat = np.frombuffer(base64.b64decode(values["bdata"]), np.dtype(values["dtype"]))
    return flat.reshape([int(n) for n in values["shape"].split(",")])


def content(pick) -> dict:
    return pick._repr_mimebundle_()[picks.MIME]


def entry(figure: dict, menu: int, i: int) -> dict:
    """What an entry of a menu changes in the data."""
    return figure["layout"]["updatemenus"][menu]["buttons"][i]["args"][0]


# ---------------------------------------------------------------- what all of them share


def test_numbers_are_rounded_whole_and_without_a_negative_zero():
    shown = unpacked(picks.numbers([[-0.04, 12.54], [np.nan, -0.0]]))
    assert np.isnan(shown[1, 0]) and shown[0, 1] == np.float32(12.5)
    assert not np.signbit(shown[[0, 1], [0, 1]]).any()
    for values, dtype in (([0, 255.2], "u1"), ([0, 300], "u2"), ([-1, 300], "f4")):
        packed = picks.numbers(values, 0)
        assert packed["dtype"] == dtype and unpacked(packed).tolist() == np.round(values).tolist()


def test_what_is_told_fits_a_phone():
    told = picks.lines("word " * 40, "short").split("<br>")
    assert max(map(len, told)) <= picks.WIDE and told[-1] == "short"
    label = picks.restyling("word " * 40, {}, {})["label"]
    assert len(label) <= picks.WIDE and label.endswith("…")


def test_an_output_is_data_and_a_title_and_the_same_every_time():
    one, other = (grid(seed=0)._repr_mimebundle_() for _ in range(2))
    assert json.dumps(one) == json.dumps(other)
    assert set(one) == {picks.MIME, "text/plain"}
    assert one["text/plain"] == f"Pick: {grid_picks.TITLE}"
    assert one[picks.MIME]["layout"]["meta"]["alt"] == grid_picks.ALT


# ---------------------------------------------------------------- chapter 07


def rows_of_grid(n: int = 3, n_cases: int = 4) -> pd.DataFrame:
    rng, lines = np.random.default_rng(0), []
    for model in MODELS:
        for number in range(n_cases):
            for query in range(-1, n):
                values = {name: rng.integers(0, 2, n + 1).tolist() for name in METRICS}
                values["same_token"] = [float("nan")] * (n + 1) if number == 0 else [1.0] * (n + 1)
                about = dict(model=model, write="whole", width="1", weight="10", item=str(number))
                lines.append(about | {"query": query} | values)
    return pd.DataFrame(lines)


def grid(seed: int = 0):
    found = grid_analysis.grids(rows_of_grid())
    scores = {
        (model, "attribution"): {
            "query": np.array([[1.0, 3.0, 2.0]]),
            "value": np.array([[3.0, 1.0, 2.0]]),
        }
        for model in MODELS
    }
    cases = {model: [case(i) for i in range(4)] for model in MODELS}
    return grid_picks.pairs(found, scores, cases, "multi_hop", seed=seed)


def test_every_setting_measure_and_case_of_the_grid_can_be_picked():
    figure, found = content(grid()), grid_analysis.grids(rows_of_grid())
    settings, shown = (menu["buttons"] for menu in figure["layout"]["updatemenus"])
    assert len(settings) == 2 and len(shown) == len(figure["data"]) == len(METRICS) + 4
    assert settings[1]["label"] == "n, whole write, one layer, λ 10"
    for i, (_, of) in enumerate(found.items()):
        data = entry(figure, 0, i)
        for k, metric in enumerate(METRICS):
            values = of.values[metric]
            values = values[~np.isnan(values[:, 0, 0])]
            places = 2 if metric == "log_p" else 1
            assert unpacked(data["z"][k]) == pytest.approx(values.mean(0), abs=10**-places)
            assert f"{len(values)} cases" in data["hovertemplate"][k]
        assert (unpacked(data["z"][len(METRICS) + 2]) == of.values["multi_hop"][2]).all()
        assert "Ann sings in Oslo 2" in data["hovertemplate"][len(METRICS) + 2]
    assert shown[3]["args"][0]["visible"] == [i == 3 for i in range(len(figure["data"]))]


def test_the_grid_shows_first_what_its_menus_say():
    figure = content(grid())
    first = entry(figure, 0, 0)
    for name in ("z", "hovertemplate"):
        assert [trace[name] for trace in figure["data"]] == first[name]
    (visible,) = [i for i, trace in enumerate(figure["data"]) if trace["visible"]]
    assert visible == figure["layout"]["updatemenus"][1]["active"] == METRICS.index("multi_hop")
    # attribution ranks query layer 1 and value layer 0 first; "none" comes before them
    (frame,) = figure["layout"]["shapes"]
    assert (frame["x0"], frame["x1"], frame["y0"], frame["y1"]) == (0.5, 1.5, 1.5, 2.5)
    assert figure["data"][0]["y"] == ["none", "0 #3", "1 #1", "2 #2"]


def test_intervals_of_the_grid_are_those_of_the_tables():
    rng = np.random.default_rng(1)
    values = 100.0 * rng.integers(0, 2, (40, 3, 3))
    values[:, 0, 0] = 100.0
    ends = grid_picks.intervals(values, bounds=SHARE)
    for place in np.ndindex(3, 3):
        mean = interval(values[(slice(None), *place)], bounds=SHARE)
        assert ends[place] == pytest.approx([mean.low, mean.high], abs=3)
    assert ends[0, 0].tolist() == [interval([100.0] * 40, bounds=SHARE).low, 100.0]


# ---------------------------------------------------------------- chapter 06


def ripples() -> pd.DataFrame:
    lines = [
        dict(category="the edit", relation="capital", asked=1, right={"FT": 0, "ACE": 1}),
        dict(category="composition I", relation="", asked=4, right={"FT": 4, "ACE": 4}),
        dict(category="far", relation="native_language", asked=50, right={"FT": 40, "ACE": 50}),
        dict(category="far", relation="sport", asked=9, right={"FT": 9, "ACE": 9}),
    ]
    return ripple_analysis.numbered(
        pd.DataFrame(
            {**line, "model": model, "editor": editor, "item": item, "right": line["right"][editor]}
            for model in MODELS
            for editor in ("FT", "ACE")
            for item in ("a", "b")
            for line in lines
        )
    )


def edits() -> pd.DataFrame:
    index = pd.MultiIndex.from_product([MODELS, range(2)], names=["model", "edit"])
    return pd.DataFrame({"fact": "The capital of A is", "old": "B", "new": "C"}, index)


def test_an_edit_shows_what_must_change_and_all_that_is_damaged():
    figure = content(ripple_picks.one_edit(ripples(), edits()))
    (menu,) = figure["layout"]["updatemenus"]
    labels = [button["label"] for button in menu["buttons"]]
    assert labels[2] == "n 1: The capital of A is C" and len(labels) == 4
    data = entry(figure, 0, 3)
    # facts about sport must stay and do: nobody needs the line
    assert data["y"] == [
        ["the edit: capital (1)", "composition I (4)", "far: native language (50)"]
    ]
    assert data["x"] == [["FT", "ACE"]]
    assert unpacked(data["z"][0]).tolist() == [[100, 0], [0, 0], [20, 0]]
    assert unpacked(data["customdata"][0]).tolist() == [[1, 0], [0, 0], [10, 0]]
    assert data["text"] == [[["1", ""], ["", ""], ["10", ""]]]
    assert figure["layout"]["height"] == menu["buttons"][0]["args"][1]["height"]


# ---------------------------------------------------------------- chapter 03


def test_a_case_shows_its_edits_and_every_answer():
    cases = {model: [case(0, 2), case(1), case(2, 2)] for model in MODELS}
    rows = pd.DataFrame(
        {
            "model": model,
            "editor": editor,
            "case_id": one.case_id,
            "multi_hop_each": share,
            "answers": answers,
        }
        for model in MODELS
        for editor, share, answers in (
            ("Base", 1.0, ["Italy"] * 3),
            ("ACE", 2 / 3, ["Norway", "", "Norway"]),
        )
        for one in cases[model]
    )
    figure = content(ace_picks.cases(rows, cases))
    data, layout = figure["layout"]["updatemenus"][0]["buttons"][1]["args"]
    assert [label.split("<br>")[0] for label in data["y"][0]] == ["case 1", "case 0", "case 2"]
    assert data["y"][0][1].count("Ann sings in Rome → Oslo 0") == 2
    assert data["y"][0][0].endswith("Question 1?<br>right: Norway (before: Italy)")
    assert data["text"][0][0] == ["Italy (3 of 3)", "Norway (2 of 3), nothing (1 of 3)"]
    assert unpacked(data["z"][0]).tolist() == [[100, 67]] * 3
    assert layout["yaxis"]["tickvals"] == [0, 1]
    assert layout["yaxis"]["ticktext"] == ["1 edit", "2 edits"]


# ---------------------------------------------------------------- the page


def test_a_page_has_the_figure_folded_with_its_data():
    figure = content(grid())
    figure["layout"]["meta"]["alt"] = 'a "map" of </script>'
    page = book.fold(figure)
    assert page.startswith(f'<details class="pick"><summary>{grid_picks.TITLE}</summary>')
    assert 'aria-label="a &quot;map&quot; of &lt;/script&gt;"' in page and "<noscript>" in page
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', page, re.S)
    assert json.loads(data) == figure


def test_the_renderer_takes_outputs_of_picks_and_no_others():
    figure = content(grid())
    (node,) = book.PickRenderer.handle_mime(
        None, SimpleNamespace(mime_type=picks.MIME, content=figure), False
    )
    assert node.astext() == book.fold(figure)
    other = SimpleNamespace(mime_type="text/html", content="")
    assert book.PickRenderer.handle_mime(None, other, False) is None


def test_the_package_names_the_renderer_and_the_book_brings_plotly():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (where,) = project["entry-points"]["myst_nb.mime_renderers"].values()
    module, _, name = where.partition(":")
    assert getattr(importlib.import_module(module), name) is book.PickRenderer
    script = (ROOT / "book" / "_static" / "figures.js").read_text()
    assert "plotly/plotly.min.js" in script and not re.search(r"https?:|//cdn", script)
    assert "html_js_files: [figures.js]" in (ROOT / "_config.yml").read_text()
