"""Sets of neurons by hand."""

import pytest
import torch

from acelib.attribution.consistency import (
    consistency_aware,
    neighbours,
    random_set,
    scores,
    strongest,
)


def sets_of(*wordings, size=6):
    """Sets of one layer from the indices of each wording."""
    sets = torch.zeros(len(wordings), 1, size, dtype=torch.bool)
    for one, indices in zip(sets, wordings, strict=True):
        one[0, list(indices)] = True
    return sets


SETS = sets_of({0, 1, 2}, {0, 1, 3}, {0, 4})


def test_scores_of_three_sets():
    found = scores(torch.stack([SETS, sets_of({1}, {1}, {1}), sets_of({0}, {1}, {2})]))
    assert found.strict.tolist() == pytest.approx([1 / 5, 1, 0])
    assert found.relaxed.tolist() == pytest.approx([2 / 5, 1, 0])
    assert found.union.tolist() == [5, 1, 3]
    assert found.size.tolist() == pytest.approx([8 / 3, 1, 1])
    empty = scores(sets_of((), ())[None])
    assert empty.strict.isnan().all() and empty.relaxed.isnan().all()


def test_neighbours_leave_the_own_wording_out():
    found = {name: set(of[0].nonzero()[:, 0].tolist()) for name, of in neighbours(SETS, 2).items()}
    assert found == {"Union": {0, 1, 2, 3}, "Intersection": {0, 1}, "Refine": {0, 1}}
    found = {name: set(of[0].nonzero()[:, 0].tolist()) for name, of in neighbours(SETS, 0).items()}
    assert found == {"Union": {0, 1, 3, 4}, "Intersection": {0}, "Refine": {0}}


def test_consistency_aware_score_by_hand():
    # means 2, 2, 0.5; deviations with 1/k 0, 2, 0.5: CAS 1.4, 0.8, 0.2
    scores = torch.tensor([[[2.0, 4.0, 1.0]], [[2.0, 0.0, 0.0]]])
    assert consistency_aware(scores).tolist() == [[True, True, False]]
    assert consistency_aware(scores, cut=0.6).tolist() == [[True, False, False]]
    assert consistency_aware(scores, beta=(1.0, 0.0), cut=0.9).tolist() == [[True, True, False]]


def test_matched_sets():
    values = torch.tensor([[3.0, 1.0, 2.0], [9.0, 0.0, 4.0]])
    among = torch.tensor([[True, True, True], [False, True, True]])
    assert strongest(values, 2, among).tolist() == [[True, False, False], [False, False, True]]
    assert strongest(values, 9, among).equal(among)
    like = torch.rand(3, 50) < 0.3
    drawn = random_set(like, 1)
    assert drawn.sum(1).tolist() == like.sum(1).tolist() and not drawn.equal(like)
    assert drawn.equal(random_set(like, 1)) and not drawn.equal(random_set(like, 2))


@pytest.mark.parametrize(
    "call",
    [
        lambda: scores(SETS[None, :1]),
        lambda: neighbours(SETS[:1], 0),
        lambda: consistency_aware(torch.ones(1, 2, 3)),
    ],
)
def test_one_wording_is_refused(call):
    with pytest.raises(ValueError, match="1 wording of a fact is given; .* at least two"):
        call()
