"""The figures of Sections 4.1 and 4.2: what they show is what the rows say."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("agg")

import matplotlib.pyplot as plt

from acelib.measures.accumulation_figures import head_map
from acelib.measures.storage_figures import ablation_bars, layer_heatmap, similarity_maps

pytestmark = pytest.mark.filterwarnings("error")


def scores(sign: float = 1.0) -> pd.DataFrame:
    power = {"attn": 1, "ffn": 2}
    return pd.DataFrame(
        [
            dict(category=name, block=block, layer=i, importance=sign * (i + j) ** power[block])
            for name in ("NN", "CP")
            for block in power
            for i in range(4)
            for j in range(3)
        ]
    )


def zeroed() -> pd.DataFrame:
    return pd.DataFrame(
        [
            dict(category=name, zeroed=kind, questions=group, drop=int(kind[0] == "t" and i < 3))
            for name in ("NN", "CP")
            for kind in ("top 1 %", "random 1 %")
            for group in ("unrelated", "related")
            for i in range(4)
        ]
    )


def alike() -> pd.DataFrame:
    rows = [("NN", "CP", -0.5, 0.1), ("NN", "ST", 0.5, 0.2), ("CP", "ST", 0.9, 0.3)]
    return pd.DataFrame(rows, columns=["a", "b", "ffn", "shared"])


def two(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([rows.assign(model=name) for name in ("one", "two")])


@pytest.fixture(autouse=True)
def leaves_pyplot_as_it_was():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before and not plt.get_fignums()


def test_heatmap_rows_are_shares_on_one_scale():
    fig = layer_heatmap(scores())
    maps = [ax.collections[0] for ax in fig.axes[:2]]
    for image in maps:
        assert np.asarray(image.get_array()).reshape(2, 4).max(1) == pytest.approx(1)
    assert {image.get_clim() for image in maps} == {(0, 1)}
    assert [text.get_text() for text in fig.axes[0].texts][:4] == ["", "3", "2", "1"]
    assert fig.axes[0].get_yticklabels()[0].get_text() == "nationality"
    assert fig.axes[0].get_xlabel() == "layer"


def test_importances_below_zero_have_a_scale_with_two_sides():
    fig = layer_heatmap(two(scores(-1.0)))
    assert {ax.collections[0].get_clim() for ax in fig.axes[:4]} == {(-1, 1)}
    titles = [ax.get_title("left") for ax in fig.axes[:4]]
    assert titles == ["one: attention", "one: FFN", "two: attention", "two: FFN"]


def test_bars_are_points_lost_with_the_published_value_in_the_related_panel():
    fig = ablation_bars(two(zeroed()), {"one": {"top 1 %": 90}})
    titles = [ax.get_title("left") for ax in fig.axes]
    assert titles[:2] == ["one: related questions", "one: unrelated questions"]
    assert [bar.get_height() for bar in fig.axes[0].patches] == [75, 75, 0, 0]
    assert fig.axes[0].get_ylabel() == "accuracy lost (percentage points)"
    whiskers = [some for ax in fig.axes for some in ax.collections]
    ends = [end[1] for some in whiskers for line in some.get_segments() for end in line]
    assert ends and min(ends) >= 0, "nothing is gained by zeroing: no whisker goes below 0"
    lines = [[line for line in ax.lines if "published" in str(line.get_label())] for ax in fig.axes]
    assert [len(some) for some in lines] == [1, 0, 0, 0]
    assert set(lines[0][0].get_ydata()) == {90}


def test_one_model_needs_no_name():
    fig = ablation_bars(zeroed(), {"top 1 %": 90, "random 1 %": 9.47})
    assert [ax.get_title("left") for ax in fig.axes] == ["related questions", "unrelated questions"]


def test_all_similarity_maps_have_one_scale_and_one_bar():
    fig = similarity_maps(two(alike()), {"ffn": "FFN layers", "shared": "neurons"})
    assert {ax.collections[0].get_clim() for ax in fig.axes[:4]} == {(-100, 100)}
    assert len(fig.axes) == 5 and fig.axes[4].get_ylabel() == "similarity (%)"
    assert fig.axes[0].texts[0].get_text() == "−50"
    titles = [ax.get_title("left") for ax in fig.axes[:4]]
    assert titles == ["one: FFN layers", "neurons", "two: FFN layers", "neurons"]


def test_heads_have_a_scale_of_their_own_around_zero():
    fig = head_map({"one": np.arange(12.0).reshape(3, 4) - 6, "two": np.zeros((3, 4))})
    assert fig.axes[0].collections[0].get_clim() == (-6, 6)
    assert [ax.get_title("left") for ax in fig.axes[:2]] == ["one", "two"]
    assert (fig.axes[0].get_xlabel(), fig.axes[0].get_ylabel()) == ("head", "layer")
    assert not fig.axes[0].yaxis_inverted()  # the first layer is at the bottom
