"""What follows from rows of averaged FFN outputs, on rows made by hand."""

import pandas as pd
import pytest

from acelib.measures import fact_sites_analysis as analysis
from acelib.measures import fact_sites_figures as figures
from acelib.measures.fact_sites import EVERYWHERE, OTHER, SEVERED, SUBJECT, conditions
from acelib.study.sentences import Text

LENGTHS = pd.DataFrame(
    [
        dict(model="m", item=layer, added=added, onto=onto)
        for layer, added, onto in (("0", 40.0, 2.0), ("1", 3.0, 6.0))
    ]
)


def averaged() -> pd.DataFrame:
    """Ten facts, of which the last is not known; each condition keeps some of the others."""
    kept = {("all but 0", EVERYWHERE): 1, ("lower middle", SUBJECT): 3, ("lower middle", OTHER): 8}
    return pd.DataFrame(
        [
            dict(
                model="m",
                item=f"fact {i}",
                layers=c.name,
                tokens=c.tokens,
                right=int(i < kept.get((c.name, c.tokens), 9)),
            )
            for i in range(10)
            for c in conditions(4)
        ]
    )


def test_only_known_facts_count():
    kept = analysis.kept(averaged())
    assert kept["m", "none", EVERYWHERE].mean == 100 and kept["m", "none", EVERYWHERE].n == 9
    assert kept["m", "all but 0", EVERYWHERE].mean == pytest.approx(100 / 9)
    assert set(kept) == {("m", c.name, c.tokens) for c in conditions(4)}


def test_bars_are_reached_or_not():
    found = analysis.measured(averaged(), LENGTHS)["m"]
    assert found["ffns_needed"].mean == pytest.approx(100 * 8 / 9)
    assert found["lower_middle_needed"].mean == pytest.approx(100 * 6 / 9)
    assert found["another_token_spared"].mean == pytest.approx(100 * 8 / 9)
    assert found["embedding_share"].mean == 5
    assert found["ffns_needed"].low < found["ffns_needed"].mean < found["ffns_needed"].high
    table = analysis.bars_table(averaged(), LENGTHS)
    assert list(table.reached) == ["yes", "yes", "not by m", "not by m"]
    assert list(table["to be reached (%)"]) == ["80", "40", "90", "10"]


def test_lengths_are_ratios_by_layer():
    table = analysis.lengths_table(LENGTHS)
    assert table.loc["m", 0] == 20 and table.loc["m", 1] == 0.5


def traced() -> pd.DataFrame:
    """Two facts from which noise takes 0.8 and 0.4; severing FFNs leaves nothing of layer 1."""
    back = {"nothing": (0.0, 0.6, 0.3), "FFN": (0.0, 0.0, 0.3), "attention": (0.0, 0.3, 0.3)}
    return pd.DataFrame(
        [
            dict(model="m", severed=name, clean=0.1 + taken, corrupted=0.1)
            | {str(layer): 0.1 + share for layer, share in enumerate(back[name])}
            for taken in (0.8, 0.4)
            for name in SEVERED
        ]
    )


def test_what_comes_back_is_a_share_of_what_noise_takes():
    shares = analysis.restored(traced())
    bare = shares[(shares.severed == "nothing") & (shares["layer"] == 1)]
    assert list(bare.share) == pytest.approx([100, 100])
    site = analysis.early_site(shares)["m"]
    assert site["layer"] == 1 and site["FFN"].mean == pytest.approx(0, abs=1e-9)
    assert site["attention"].mean == pytest.approx(50)


def test_the_early_site_is_the_first_layer_that_brings_back_half():
    shares = pd.DataFrame(
        [
            dict(model="m", severed="nothing", layer=layer, share=share)
            for layer, back in enumerate((70.0, 40.0, 60.0, 90.0))
            for share in (back, back)
        ]
    )
    assert analysis.early_site(shares)["m"]["layer"] == 2
    assert analysis.early_site(shares[shares.layer < 2])["m"]["layer"] == 1


def test_figures_show_every_group_and_layer():
    fig = figures.kept_by_layer(analysis.kept(averaged()))
    labels = [tick.get_text() for tick in fig.axes[0].get_xticklabels()]
    assert labels == ["0", "1", "2", "3", "1–2", "1–3"]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [EVERYWHERE, SUBJECT, OTHER]
    fig = figures.severed_traces(analysis.restored(traced()))
    assert len(fig.axes[0].containers) == 3


def test_sentences_have_their_numbers():
    text = Text("00_world")
    said = text.render("needed", **analysis.needed_numbers(averaged(), LENGTHS))
    assert "m loses 89 [" in said and "FFN 0 adds 20.0 times the length" in said
    assert "2 of 4 bars are missed." in said
    said = text.render("severed", models=analysis.early_site(analysis.restored(traced())))
    assert "after layer 1 brings back 100 [100, 100] % of what the noise takes" in said
