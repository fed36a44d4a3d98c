"""Layers for somebody's questions: the sums of ``locate``, as means with intervals."""

import pytest

from acelib.attribution.layers import locate
from acelib.measures.typed_locate import Layers, located
from acelib.study.stats import Mean

ASKED = [(f"Zork {i} likes the taste of", name) for i, name in enumerate(["a", "bc", "d", "e"] * 3)]


def test_means_are_the_sums_of_locate(tiny):
    lm, done = tiny("gptj"), []
    found = located(lm, ASKED, 2, lambda *n: done.append(n))
    whole = locate(lm, *zip(*ASKED, strict=True), 2, 2)
    for role in ("query", "value"):
        sums = getattr(whole, f"{role}_by_layer")
        assert [score.mean for score in found.by_layer[role]] == pytest.approx(
            [one / len(ASKED) for one in sums]
        )
        assert all(score.low <= score.high for score in found.by_layer[role])
        assert found.best[role] == getattr(whole, f"{role}_layers")
    assert found.n_questions == 12 and found.n_answered == 0
    assert done[-1] == (12, 12) and len(done) == 8


def test_one_question_has_no_interval(tiny):
    found = located(tiny("qwen3"), ASKED[:1], 1)
    assert str(found.by_layer["value"][0]).count("[") == 0 and found.close("value") == ()


def test_what_is_pasted_and_what_is_not_told_apart():
    scores = [Mean(3, 2, 4, 9), Mean(2, 1.5, 2.5, 9), Mean(1, 0, 1.6, 9), Mean(0, 0, 0.1, 9)]
    layers = Layers({"query": scores, "value": scores}, {"query": (0, 1), "value": (0,)}, 9, 9)
    assert layers.options == "--query-layers 0,1 --value-layers 0"
    assert layers.close("query") == (2,) and layers.close("value") == (1,)
