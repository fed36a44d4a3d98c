"""derivation: both sides of every statement against one neuron at a time, and the statements where
they must hold.
"""

import numpy as np
import pandas as pd
import pytest

from acelib.attribution.scores import first_tokens, layer_scores, value_scores
from acelib.bench.tiny import SENTENCES, make_tiny
from acelib.editing.moments import second_moments
from acelib.editing.request import requests
from acelib.editing.search import Objective
from acelib.editing.write import Stage
from acelib.measures.derivation import additivity, logits, queries, slopes, taylor, writes
from acelib.model.states import Site, last, trace
from acelib.records import Edit

TEXTS = ("Tim Duncan plays the sport of", "The capital of France is")


@pytest.fixture(params=("gptj", "qwen3"))
def asked(request):
    lm = make_tiny(request.param)
    return lm, *lm.encode(TEXTS), first_tokens(lm, ("basketball", "Paris"))


def test_logits_add_up_but_for_the_norm(asked):
    lm, ids, mask, targets = asked
    rows = logits(lm, ids, mask, targets).set_index(["norm", "prompt"])
    gap = (rows.together - rows.summed).abs()
    assert gap["none"].max() < 1e-9 and gap["frozen"].max() < 1e-9 and gap["exact"].min() > 1e-6
    states = trace(
        lm, ids, mask, [Site("key", layer) for layer in range(lm.n_layers)], at=last(mask)
    )
    plain = sum(
        states["key", layer][0]
        @ (lm.weight(layer).T @ (lm.head.weight[targets[0]] * lm.norm.weight))
        for layer in range(lm.n_layers)
    )
    assert rows.together["none", 0] == pytest.approx(float(plain))


@pytest.mark.parametrize("norm", ("frozen", "exact"))
def test_taylor_at_size_one_is_the_value_score(asked, norm):
    lm, ids, mask, targets = asked
    rows = taylor(lm, ids, mask, targets, norm, n=3, sizes=(0.001, 0.002, 1.0))
    best = value_scores(lm, ids, mask, targets, norm=norm).flatten(1).topk(3).values
    assert rows[rows["size"] == 1].score.to_numpy() == pytest.approx(
        best.flatten().numpy(), rel=1e-6
    )
    assert slopes(rows, "score", 0.01).to_numpy() == pytest.approx(
        2 if norm == "frozen" else 1, abs=0.15
    )


def test_additivity_of_one_and_of_all(asked):
    lm, ids, mask, targets = asked
    rows = additivity(lm, ids, mask, targets, counts=(1, lm.d_mlp)).set_index(
        ["n", "layer", "prompt"]
    )
    assert rows.whole[1].to_numpy() == pytest.approx(rows.summed[1].to_numpy(), abs=1e-9)
    mine = rows.summed[lm.d_mlp].unstack("layer").to_numpy()
    assert mine == pytest.approx(layer_scores(lm, ids, mask, targets).numpy(), abs=1e-9)


def test_queries_first_order_is_the_inner_product_over_the_scale(asked):
    lm, ids, mask, targets = asked
    rows = queries(lm, ids, mask, targets, n=4, sizes=(1e-3, 1.0))
    assert len(rows) == 16 and np.isfinite(rows.to_numpy(float)).all()
    one = rows[rows["size"] == 1].reset_index(drop=True)
    assert one["first"].to_numpy() == pytest.approx(
        1e3 * rows[rows["size"] == 1e-3]["first"].to_numpy()
    )
    assert (
        one["first"].abs().groupby(one.prompt).apply(lambda of: of.is_monotonic_decreasing)
    ).all()
    assert (np.sign(one.preactivation) == np.sign(one["first"])).mean() > 0.5


def test_slopes_fit_powers():
    rows = pd.DataFrame(
        [
            dict(prompt=0, neuron=0, size=s, score=s + 3 * s**2, first=s)
            for s in (0.25, 0.5, 1.0, 4.0)
        ]
    )
    assert slopes(rows, "score").tolist() == pytest.approx([2.0])


def test_writes_follow_the_formula_and_one_layer_shifts_by_the_sum(asked, tmp_path):
    lm, before = asked[0], asked[0].fingerprint
    edits = [
        Edit("Tim Duncan", "{} plays the sport of", "golf"),
        Edit("France", "The capital of {} is", "Rome"),
    ]
    given, moments = requests(edits), second_moments(lm, SENTENCES * 4, (1, 2), tmp_path)
    objective = Objective(kind="pmet", steps=4, lr=0.1)
    one = writes(lm, given, Stage((1,), 100.0, objective, "root"), moments, ("",))
    assert (
        one.error.max() < 1e-6
        and one.formula.max() < 1e-6
        and one.reach.between(0, 1.5).all()
        and one.cosine.max() <= 1 + 1e-9
    )
    # A singular second moment: the write adds a ridge to it, which the formula must have too.
    few = second_moments(lm, SENTENCES[:1], (1,), tmp_path / "few")
    with pytest.warns(UserWarning, match="rank"):
        singular = writes(lm, given, Stage((1,), 100.0, objective, "root"), few, ("",))
    assert few.rank(1) < lm.d_mlp and singular.formula.max() < 1e-4
    two = writes(lm, given, Stage((1, 2), 100.0, objective, "root"), moments, ("",)).set_index(
        "layer"
    )
    assert (
        two.error[1].max() < 1e-6 < two.error[2].min()
    )  # its keys are no longer those of the unedited model
    assert lm.fingerprint == before
    with pytest.raises(ValueError, match="null space"):
        writes(lm, given, Stage((1,), 1.0, objective, null_space=(None, 0.5)), moments)
