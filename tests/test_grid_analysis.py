"""What the grid says, on rows whose answer is known by hand."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from acelib.measures import grid_analysis as analysis
from acelib.measures import grid_figures
from acelib.measures.grid import METRICS, WRITES
from acelib.measures.grid_analysis import ALL, ANY, DEEPER, DEPTH, PAPER, SEARCH, Setting
from acelib.study.ranks import rank_correlation
from acelib.study.sentences import Text
from acelib.study.stats import Mean

pytestmark = pytest.mark.filterwarnings("error")
QUERY, VALUE = [0.0, 3.0, 1.0, 2.0], [3.0, 0.0, 1.0, 2.0]  #: scores that success follows
N, CASES = 4, 6


def rows(model="m", write="whole", width="1", n=N, noise=0.0) -> pd.DataFrame:
    """Success is the sum of both scores, the same in every case but for ``noise``."""
    rng, lines = np.random.default_rng(0), []
    for case in range(CASES):
        for query in range(-1, n):
            first = 0.0 if query < 0 else QUERY[query]
            share = [first / 10, *(first / 10 + v / 10 for v in VALUE[:n])]
            share = [x + noise * rng.normal() for x in share]
            values = {name: share for name in METRICS if name not in ("log_p", "same_token")}
            # The first case has no facts of like names.
            values["same_token"] = [float("nan")] * (n + 1) if case == 0 else [1.0] * (n + 1)
            about = dict(model=model, write=write, width=width, weight="1", item=str(case))
            lines.append(about | dict(query=query, log_p=[10 * x for x in share]) | values)
    return pd.DataFrame(lines)


def scored(model="m", **by_name) -> pd.DataFrame:
    """Two questions with the same scores: {predictor: (query, value)}."""
    lines = [
        dict(model=model, predictor=name, item=item, query=query, value=value)
        for name, (query, value) in by_name.items()
        for item in ("a", "b")
    ]
    return pd.DataFrame(lines)


@pytest.fixture
def found():
    return analysis.grids(rows())


@pytest.fixture
def predictors():
    backwards = [-x for x in QUERY], [-x for x in VALUE]
    frame = scored(attribution=(QUERY, VALUE), backwards=backwards, flat=([1.0] * N, [1.0] * N))
    return analysis.scores(frame)


@pytest.fixture
def agreement(found, predictors):
    return analysis.correlations(found, predictors, "multi_hop", times=99)


def one(agreement, predictor, ranked, layers=ALL):
    part = agreement[(agreement.predictor == predictor) & (agreement.layers == layers)]
    return part[part.ranked == ranked].iloc[0]


# ---------------------------------------------------------------- reading rows


def test_grids_are_cases_by_query_by_value(found):
    ((setting, grid),) = found.items()
    assert setting == Setting("m", "whole", 1, 1.0) and grid.windows == ((0,), (1,), (2,), (3,))
    mean = grid.mean("multi_hop")
    assert grid.values["multi_hop"].shape == (CASES, 5, 5) and mean[0, 0] == 0
    assert mean[1 + 1, 1 + 3] == pytest.approx(50)  # query 1: 3, value 3: 2
    assert grid.mean("log_p")[2, 4] == pytest.approx(5)  # nats are no shares
    assert grid.mean("same_token")[0, 0] == 100  # of the cases that have such facts


def test_rows_may_come_in_any_order(found):
    shuffled = analysis.grids(rows().sample(frac=1, random_state=0))
    (grid,), (other,) = found.values(), shuffled.values()
    assert np.allclose(grid.mean("multi_hop"), other.mean("multi_hop"))


def test_windows_have_the_sum_of_their_layers_scores():
    values = np.array([[1.0, 2.0, 4.0]])
    assert analysis.of_windows(values, [(0, 1), (1, 2)]).tolist() == [[3.0, 6.0]]
    wide = analysis.grids(rows(width="2", n=3))
    assert next(iter(wide.values())).windows == ((0, 1), (1, 2), (2, 3))


def test_without_layer_0_no_window_holds_it():
    grid = next(iter(analysis.grids(rows(width="2", n=3)).values()))
    assert grid.deeper.windows == ((1, 2), (2, 3))
    assert grid.deeper.values["multi_hop"].shape == (CASES, 3, 3)
    kept = grid.deeper.values["multi_hop"][:, 0, 0]
    assert np.array_equal(kept, grid.values["multi_hop"][:, 0, 0])  # none stays


def test_ranks_are_from_the_greatest():
    assert analysis.ranking(np.array([[1.0, 5.0, 5.0], [1.0, 5.0, 5.0]])) == [3, 1, 2]


def test_one_grid_per_model_is_shown():
    some = pd.concat([rows(write="half"), rows(), rows(width="2", n=3), rows("b", "half")])
    chosen = analysis.shown(analysis.grids(some))
    assert [*chosen] == [Setting("m", "whole", 1, 1.0), Setting("b", "half", 1, 1.0)]
    assert {s.width for s in analysis.of_width(analysis.grids(some), 2)} == {2}


# ---------------------------------------------------------------- correlations


def test_a_predictor_that_is_success_has_rho_1(agreement):
    for ranked in analysis.RANKINGS:
        row = one(agreement, PAPER, ranked)
        assert row.rho.mean == pytest.approx(1, abs=0.01) and row.rho.n == CASES
        assert one(agreement, "backwards", ranked).rho.mean == pytest.approx(-row.rho.mean)
    # Of 24 orders of 4 layers, the same and the reverse are as far.
    assert one(agreement, PAPER, "query").p == pytest.approx(2 / 24)
    assert one(agreement, PAPER, "pair").p < 0.01


def test_depth_and_what_is_left_given_depth_are_as_by_hand(agreement):
    """Query ranks 1 4 2 3 against depth 1 2 3 4: sum d^2 = 6, rho = 1 - 36 / 60 = 0.4."""
    assert one(agreement, DEPTH, "query").rho.mean == pytest.approx(0.4)
    assert one(agreement, DEPTH, "value").rho.mean == pytest.approx(-0.2)  # 4 1 2 3: sum d^2 = 12
    assert np.isnan(one(agreement, DEPTH, "query").given.mean)
    # A predictor that is success: whatever is given, all of it is left.
    assert one(agreement, PAPER, "query").given.mean == pytest.approx(1)
    assert one(agreement, PAPER, "pair").given.mean == pytest.approx(1, abs=0.02)


def test_a_predictor_that_is_depth_adds_nothing(found):
    depths = [0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]
    same = analysis.scores(scored(attribution=depths))
    agreement = analysis.correlations(found, same, "multi_hop", times=99)
    row = one(agreement, PAPER, "value")
    assert row.rho.mean == pytest.approx(-0.2)
    for ranked in analysis.RANKINGS:
        row = one(agreement, PAPER, ranked)
        assert row.given.n == 0 and np.isnan(row.given_p)
    told = analysis.verdict(agreement)["m"][ALL]
    assert told["word"] == "cannot be told from"


def test_a_predictor_without_a_ranking_has_no_correlation(agreement):
    row = one(agreement, "flat", "pair")
    assert np.isnan(row.rho.mean) and np.isnan(row.p) and row.rho.n == 0


def test_given_depth_is_given_both_depths(found, predictors):
    (grid,) = found.values()
    x = analysis.pair_ranks(np.array(QUERY), np.array(VALUE)).ravel()
    y = np.random.default_rng(1).normal(size=(1, 5, 5))
    other = analysis.Grid(grid.windows, {"multi_hop": y})
    depth = np.arange(4.0)
    sums = np.add.outer(depth, depth).ravel()
    given = [np.repeat(depth, 4), np.tile(depth, 4), sums]
    wanted = rank_correlation(x, y[0, 1:, 1:].ravel(), given)
    row = analysis.correlation(other, predictors["m", PAPER], "multi_hop", "pair", times=9)
    assert row.given.mean == pytest.approx(float(wanted))


def test_p_of_pairs_permutes_layers_by_exact_enumeration(found, predictors):
    """All 24 x 24 relabellings of four layers, counted one by one."""
    (grid,) = found.values()
    y = np.random.default_rng(2).normal(size=(1, 5, 5))
    other = analysis.Grid(grid.windows, {"multi_hop": y})
    row = analysis.correlation(other, predictors["m", PAPER], "multi_hop", "pair", times=9)
    x, orders = analysis.pair_ranks(np.array(QUERY), np.array(VALUE)), list(permutations(range(4)))
    target = y[0, 1:, 1:].ravel()
    rhos = [
        float(rank_correlation(x[np.ix_(rows_, columns)].ravel(), target))
        for rows_ in orders
        for columns in orders
    ]
    as_far = np.mean([abs(rho) >= abs(row.rho.mean) - 1e-9 for rho in rhos])
    assert row.p == pytest.approx(as_far)


def test_intervals_are_over_cases():
    noisy = analysis.grids(rows(noise=0.3))
    same = analysis.scores(scored(attribution=(QUERY, VALUE)))
    row = one(analysis.correlations(noisy, same, "multi_hop", times=199), PAPER, "pair")
    assert row.rho.low < row.rho.mean < row.rho.high <= 1 and row.rho.low < 0.95


@pytest.mark.parametrize(
    "given, p, word",
    [
        (Mean(0.5, 0.2, 0.8, 9), 0.01, "adds to"),
        (Mean(0.5, 0.2, 0.8, 9), 0.2, "cannot be told from"),
        (Mean(0.1, -0.2, 0.4, 9), 0.01, "cannot be told from"),
        (Mean(-0.5, -0.8, 0.0, 9), 0.01, "adds nothing to"),
        (Mean(np.nan, np.nan, np.nan, 0), np.nan, "cannot be told from"),
    ],
)
def test_what_adding_to_depth_means(given, p, word):
    assert analysis.adds(given, p) == word


def test_the_verdict_names_the_best_predictor(agreement):
    told = analysis.verdict(agreement)["m"]
    assert [*told] == [ALL, DEEPER] and told[ALL]["word"] == "adds to"
    assert told[ALL]["leader"] == PAPER and told[ALL]["depth"].mean < 0.5


def test_tables_hold_every_predictor(agreement, found, predictors):
    table = analysis.ranking_table(agreement)
    assert list(table.index) == [PAPER, "backwards", "flat", DEPTH]
    assert table.loc[PAPER, (ALL, "query")] == "1.00 [1.00, 1.00], p 0.08"
    assert table.loc["flat", (DEEPER, "pair, given depth")] == "–"
    (grid,) = found.values()
    measures = analysis.measures_table(grid, analysis.of_model(predictors, "m"))
    assert measures.loc[PAPER, ("multi-hop accuracy", "alone")] > 0.98
    assert np.isnan(
        measures.loc[PAPER, ("specificity, same last token", "alone")]
    )  # always kept: no ranking
    flat = analysis.rhos(agreement)
    assert flat.loc[("m", ALL, DEPTH), "query"] == pytest.approx(0.4)


# ---------------------------------------------------------------- choices


def test_who_would_have_edited_which_pair(found, predictors):
    (grid,) = found.values()
    picks = analysis.choices(grid, analysis.of_model(predictors, "m"), "multi_hop")
    paper = picks[PAPER]
    assert (paper.query, paper.value, paper.place) == ("1", "0", 1)
    assert paper.share.mean == pytest.approx(60) and paper.lead.mean == pytest.approx(0)
    deeper = picks[f"{PAPER}, {DEEPER}"]
    assert (deeper.query, deeper.value, deeper.place) == ("1", "3", 2)
    assert picks[DEPTH].query == picks[DEPTH].value == "3"
    assert f"{DEPTH}, {DEEPER}" not in picks  # the same pair
    assert picks[SEARCH].share.mean == pytest.approx(60)
    assert picks[ANY].share.mean == pytest.approx(30)
    best = analysis.best(grid, "multi_hop")
    assert (best.query, best.value) == ("1", "0")
    table = analysis.choices_table(picks)
    assert table.loc[PAPER, "place"] == "1" and table.loc[SEARCH, "place"] == "–"
    assert analysis.choices_table(picks, 2).loc[ANY, "success"].startswith("30.00 [")


def test_the_search_is_judged_on_cases_that_it_has_not_seen():
    """Each case has a lucky pair of its own; the others say nothing for it."""
    values = 100 * np.eye(4).reshape(4, 2, 2)
    assert analysis._left_out(values).tolist() == [0, 0, 0, 0]


def test_halves_are_compared_on_the_same_cases(predictors):
    some = pd.concat([rows(write=write) for write in WRITES])
    found = analysis.grids(some)
    told = analysis.sentence_numbers(found, predictors, "multi_hop")["m"]
    assert told["halves"]["gap"].mean == pytest.approx(0) and told["pairs"] == 16
    assert told["halves"]["best_half"].mean == pytest.approx(60)
    alone = analysis.sentence_numbers(analysis.grids(rows()), predictors, "log_p")["m"]
    assert alone["halves"] == {} and alone["choices"][PAPER].share.mean == pytest.approx(6)


def test_the_summary_is_of_every_setting(found):
    table = analysis.summary(found)
    assert table.index.tolist() == [("m", "whole", "1", "1.0")]
    assert table.multi_hop.item() == pytest.approx(30) and list(table.columns) == list(METRICS)


# ---------------------------------------------------------------- sentences and figures


def test_every_sentence_can_be_said(agreement, predictors):
    some = analysis.grids(pd.concat([rows(write=write) for write in WRITES]))
    told = analysis.sentence_numbers(some, predictors, "multi_hop")
    values = dict(verdict=analysis.verdict(agreement), told=told, names=analysis.NAMES)
    more = dict(model="m", of=told["m"], n=24, seed=0, **analysis.unit("multi_hop"))
    text = Text("07_where_to_edit")
    said = {b: " ".join(text.render(b, **values, **more).split()) for b in text.template.blocks}
    assert "agrees with multi-hop accuracy by 0.9" in said["verdict"]
    assert (
        said["verdict"].startswith("**")
        and "once depth is given, adds to depth." in said["verdict"]
    )
    assert "On m, all layers, attribution agrees by 0.9" in said["agreement"]
    assert "Nothing predicts better." in said["agreement"]
    assert "query layer 1 and value layer 0, reaches 60 [32, 78] %" in said["choices"]
    assert "number 1 of 16" in said["choices"] and "whole write" in said["halves"]
    assert analysis.unit("log_p")["places"] == 2 and set(analysis.WORDS) == set(METRICS)
    with pytest.raises(ValueError, match="measure 'x' is unknown; allowed: multi_hop, "):
        analysis.unit("x")


def test_maps_show_the_means_and_frame_attributions_pair(found, predictors):
    fig = grid_figures.maps(found, predictors, "multi_hop")
    assert isinstance(fig, Figure)
    ax = fig.axes[0]
    texts = [text.get_text() for text in ax.texts]
    assert texts[:5] == ["0", "30", "0", "10", "20"] and len(texts) == 25
    assert [t.get_text() for t in ax.get_yticklabels()][:3] == ["none", "0\n#4", "1\n#1"]
    frame = next(p for p in ax.patches if not p.get_fill())
    assert frame.get_xy() == (1, 2)  # value layer 0, query layer 1
    assert "λ 1" in ax.get_title(loc="left")
    nats = grid_figures.maps(found, predictors, "log_p")
    assert [text.get_text() for text in nats.axes[0].texts][1] == "3.0"


def test_rankings_and_agreement_are_drawn(agreement, predictors):
    fig = grid_figures.rankings(predictors)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["m, query", "m, value"]
    assert [text.get_text() for text in fig.axes[0].texts][:4] == ["4", "1", "3", "2"]
    some = agreement[agreement.layers == ALL]
    fig = grid_figures.agreement(some)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["m, query", "m, value", "m, pair"]
    alone = fig.axes[0].containers[0].lines[0].get_xdata()
    assert alone[0] == pytest.approx(1) and np.isnan(alone[2])


def test_seeds_side_by_side():
    frames = [rows("m"), rows("m-1", noise=0.0)]
    found = analysis.grids(pd.concat(frames))
    scored_both = [scored(model, attribution=(QUERY, VALUE)) for model in ("m", "m-1")]
    table = analysis.seeds_table(found, analysis.scores(pd.concat(scored_both)), "multi_hop")
    line = table.loc["m-1"]
    assert (line["query layers"], line["value layers"]) == ("1, 3, 2", "0, 3, 2")
    assert line["best pair"] == "1, 0" and line["its success"].mean == 60
    assert line["attribution's pair"].mean == 60 and line["rho with the first"] == "1.00"
    assert float(line["rho of attribution"]) > 0.9 > float(line["rho of depth"])
