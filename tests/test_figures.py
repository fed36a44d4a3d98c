"""Every figure draws, names its axes, keeps its colours and leaves nothing behind."""

import io

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("agg")

import matplotlib.pyplot as plt
from matplotlib.colors import to_hex

from acelib.measures import robustness_figures
from acelib.paper.published import published
from acelib.study import drawing, figures
from acelib.study.tables import layers_table, paired_table

pytestmark = pytest.mark.filterwarnings("error")
CATEGORIES, LAYERS, ROLES = (
    ("NN", "CP"),
    range(4),
    ("first subject", "middle subject", "last subject", "last"),
)


def rows() -> pd.DataFrame:
    return pd.DataFrame(
        [
            dict(
                case_id=case,
                n_edits=1 + case % 4,
                multi_hop=float((case + i) % 3 == 0),
                efficacy=1.0,
                paraphrase=case / 12,
                specificity=0.9,
                specificity_token=0.7,
                editor=editor,
            )
            for i, editor in enumerate(("Base", "MEMIT", "ACE"))
            for case in range(12)
        ]
    )


def scores(sign: float = 1.0) -> pd.DataFrame:
    power = {"attn": 1, "ffn": 2}
    return pd.DataFrame(
        [
            dict(
                category=category,
                role=role,
                block=block,
                layer=layer,
                importance=sign * (layer + question) ** power[block],
            )
            for category in CATEGORIES
            for role in ("query", "value")
            for block in ("attn", "ffn")
            for layer in LAYERS
            for question in range(3)
        ]
    )


def png(fig) -> bytes:
    file = io.BytesIO()
    fig.savefig(file, format="png", bbox_inches="tight", dpi=fig.dpi)
    return file.getvalue()


def ranks():
    return {
        name: layers_table(two(scores(sign)), top=3)
        for name, sign in (("few-shot", 1.0), ("zero-shot", -1.0))
    }


def states():
    return two(
        pd.DataFrame(
            [
                dict(
                    place=place,
                    state=state,
                    ffn=float(i),
                    attn=np.nan if state == "edited" else 2.0,
                )
                for place in ("subject", "answer")
                for state in ("unedited", "edited")
                for i in range(3)
            ]
        )
    )


def two(some):
    return pd.concat([some.assign(model=name) for name in ("one", "two")])


DRAWN = {
    "multi_hop_bars": lambda: figures.multi_hop_bars(rows(), published(2)),
    "multi_hop_bars, two models": lambda: figures.multi_hop_bars(
        two(rows()), published(2), {"one": "GPT-J", "two": "Qwen3-8B"}
    ),
    "layer_bars, two models": lambda: figures.layer_bars(two(scores())),
    "paired_differences, two models": lambda: figures.paired_differences(
        {name: paired_table(rows()) for name in ("one", "two")}
    ),
    "failure_map": lambda: figures.failure_map(rows().assign(hops=2), "hops"),
    "failure_map, two models": lambda: figures.failure_map(two(rows()), "n_edits"),
    "multi_hop_bars, measured": lambda: figures.multi_hop_bars(rows()),
    "layer_bars": lambda: figures.layer_bars(scores()),
    "layer_bars, one row each": lambda: figures.layer_bars(scores()[::3]),
    "paired_differences": lambda: figures.paired_differences(paired_table(rows())),
    "dots": lambda: figures.dots(
        states(), "place", "state", {"ffn": "FFN (nats)", "attn": "attention (nats)"}
    ),
    "dots, logarithmic": lambda: figures.dots(
        states().assign(place=7), "place", "state", {"ffn": "error (%)"}, log=True
    ),
    "rank_map": lambda: robustness_figures.rank_map(ranks()),
    "failure_map, its own scale": lambda: figures.failure_map(
        two(rows()), "n_edits", "paraphrase", None
    ),
    "failure_map, few cases": lambda: figures.failure_map(two(rows()), "n_edits", few=5),
}


@pytest.mark.parametrize("name", DRAWN)
def test_figures_draw_with_labelled_axes(name):
    before = dict(matplotlib.rcParams)
    fig = DRAWN[name]()
    assert (
        dict(matplotlib.rcParams) == before and not plt.get_fignums()
    )  # nothing left behind, so nothing shown twice
    assert fig.dpi == 144 and to_hex(fig.get_facecolor()) == "#ffffff"
    shared = fig.get_supxlabel()
    for ax in fig.axes:
        assert shared or ax.get_xlabel() or ax.get_ylabel() or ax.get_title("left"), (
            "an axis without any label"
        )
    if "map" not in name:
        assert any(
            unit in label
            for ax in fig.axes
            for label in (ax.get_ylabel(), shared)
            for unit in ("(%)", "points)", "(nats", "(arb.", "(s)")
        )
    assert len(png(fig)) < 120_000


def test_equal_rows_give_equal_pictures():
    one = png(DRAWN["paired_differences"]())
    with plt.rc_context(
        {"font.size": 20, "axes.facecolor": "red", "figure.dpi": 50}
    ):  # whatever the notebook has set
        assert png(DRAWN["paired_differences"]()) == one


def test_the_bars_are_the_means_in_the_editors_colours():
    fig = figures.multi_hop_bars(rows(), published(2))
    bars = [bar for container in fig.axes[0].containers for bar in container]
    means = rows().pivot_table(
        index="editor", columns="n_edits", values="multi_hop", margins=True, sort=False
    )
    wanted = 100 * means.loc[["Base", "MEMIT", "ACE"]].to_numpy().ravel()
    assert [bar.get_height() for bar in bars] == pytest.approx(wanted)
    assert [to_hex(bars[i].get_facecolor()).upper() for i in (0, 5, 10)] == [
        drawing.EDITORS[name] for name in ("Base", "MEMIT", "ACE")
    ]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "Base",
        "MEMIT",
        "ACE",
        "published",
    ]
    assert fig.axes[0].get_title("left") == "diamonds: GPT-J"
    diamonds = [line for line in fig.axes[0].lines if line.get_marker() == "D"]
    assert diamonds[-1].get_ydata().tolist() == [45.26, 50.24, 36.17, 43.29, 46.45]


def test_editors_have_their_own_colours():
    assert len(set(drawing.EDITORS.values())) == len(drawing.EDITORS)
    assert (
        drawing.hue("ACE (PMET)") == drawing.hue("ACE") != drawing.hue("ACE (AlphaEdit)")
        and drawing.hue("Mine") == drawing.OTHER
    )


def test_dots_stand_at_the_means_in_the_order_of_the_rows():
    fig = DRAWN["dots"]()
    unedited, edited = fig.axes[0].containers
    assert unedited.lines[0].get_ydata().tolist() == edited.lines[0].get_ydata().tolist() == [1, 1]
    assert [label.get_text() for label in fig.axes[2].get_xticklabels()] == ["subject", "answer"]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["unedited", "edited"]
    assert np.isnan(
        np.array(fig.axes[2].containers[1].lines[0].get_ydata(), float)
    ).all()  # nothing measured, nothing drawn


def test_changed_ranks_are_marked():
    fig = DRAWN["rank_map"]()
    assert [text.get_text() for text in fig.axes[2].texts][:3] == [
        "0",
        "1",
        "2",
    ]  # against 3, 2, 1, the best first
    assert np.asarray(fig.axes[2].collections[0].get_array()).reshape(8, 3)[0].tolist() == [2, 1, 1]
    assert not np.nan_to_num(
        fig.axes[0].collections[0].get_array()
    ).any()  # the published layers are the same in both


def test_a_map_of_small_shares_has_its_own_scale():
    assert DRAWN["failure_map, its own scale"]().axes[0].collections[0].get_clim()[1] < 100


def test_a_map_has_the_interval_of_every_mean():
    texts = [text.get_text() for text in DRAWN["failure_map"]().axes[0].texts]
    means, intervals = texts[: len(texts) // 2], texts[len(texts) // 2 :]
    assert all(text.isdigit() for text in means) and len(means) == len(intervals)
    for mean, (low, high) in zip(
        means, (text.strip("[]").split(", ") for text in intervals), strict=True
    ):
        assert 0 <= int(low) <= int(mean) <= int(high) <= 100
    assert not any(
        "[" in text.get_text()
        for text in figures.failure_map(rows().assign(hops=2), "hops", seed=None).axes[0].texts
    )
