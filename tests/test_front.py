"""The front page and the README say what the rows that ship say."""

import re

import pandas as pd
import pytest

from acelib.book import front
from acelib.provenance import ROOT
from acelib.study.stats import Mean


def made(**reached):
    """Rows of one model: 20 cases of each editor, of which so many are answered; half of them keep
    the other facts.
    """
    return pd.DataFrame(
        {
            "model": "m",
            "editor": name,
            front.REACHED: 100.0 * (case < n),
            front.KEPT: 100.0 * (case < 10),
            front.ALIKE: 100.0 * (case < 10 + (name == "PMET")),
            "case": str(case),
        }
        for name, n in reached.items()
        for case in range(20)
    )


ROWS = made(**{"Base": 0, "ROME": 10, "PMET": 4, "ACE": 20, "ACE (located)": 1})


def test_a_lead_is_over_the_best_other_editor_on_the_same_cases():
    best, lead = front.leads(ROWS, "ACE")["m"]
    assert best == "ROME" and lead.mean == 50.0 and lead.low > 0
    best, lead = front.leads(ROWS, "ACE (located)")["m"]
    assert best == "ROME" and lead.mean == -45.0 and lead.high < 0


def test_sentences_say_who_is_ahead():
    said = " ".join(front.sentences(ROWS).split())
    assert "ACE is then, on m, behind the best other editor (ROME)." in said
    assert "it is, on m, ahead of the best other editor (ROME)." in said
    assert said.endswith("keeps 50 % on m (PMET, which keeps most, 55 %).")
    level = " ".join(
        front.sentences(made(**{"Base": 0, "ROME": 10, "ACE": 10, "ACE (located)": 10})).split()
    )
    assert "ACE is then, on m, not told apart from the best other editor (ROME)." in level


def test_the_published_ace_stands_beside_the_form_whose_layers_are_located():
    table = front.by_evidence(ROWS)
    assert list(table.index)[:1] == ["Base"] and list(table.index)[-1] == front.CALLED["ACE"]
    located, searched = (front.CALLED[name] for name in ("ACE (located)", "ACE"))
    assert table.loc[located, ("published GPT-J", "multi-hop")] > 0
    assert pd.isna(table.loc[searched, ("published GPT-J", "multi-hop")])
    cell = table.loc[searched, ("measured m", "multi-hop")]
    assert isinstance(cell, Mean) and (cell.mean, cell.n) == (100.0, 20)


def test_the_readme_and_its_figure_are_of_the_rows_that_ship():
    rows = front.shipped()
    readme = (ROOT / "README.md").read_text("utf-8")
    part = readme.partition(front.BEGIN)[2].partition(front.END)[0].strip()
    assert part == front.summary(rows), "acelib run --all --update"
    kept = (ROOT / front.PICTURE).read_text("utf-8")
    assert numbers(kept) == pytest.approx(numbers(front.svg(rows)), abs=0.5)


def numbers(svg):
    """Where the bars of the figure are, in points."""
    paths = re.findall(r'<g id="LineCollection_\d+">(.*?)</g>', svg, re.S)
    return [float(n) for path in paths for n in re.findall(r"[\d.]+(?= )", path)]


def test_a_phone_has_the_whole_legend_below_the_panels():
    fig = front.picture(ROWS, narrow=True)
    width, height = fig.canvas.get_width_height()
    (legend,) = fig.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= width < height and box.y0 >= 0
    assert box.y1 <= min(ax.get_window_extent().y0 for ax in fig.axes)
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [front.CALLED[name] for name in front.CALLED if name in set(ROWS.editor)]


def test_both_forms_can_stand_on_one_page():
    wide, narrow = (
        set(re.findall(r'\bid="([^"]+)"', front.svg(ROWS, form))) for form in (False, True)
    )
    assert wide and narrow and wide.isdisjoint(narrow)
    named = re.findall(r'(?:href="#|url\(#)([^")]+)', front.svg(ROWS, True))
    assert set(named) <= narrow


def test_nothing_is_written_without_rows(tmp_path):
    front.keep(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no rows of chapter 03"):
        front.shipped(tmp_path)
