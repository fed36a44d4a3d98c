"""acelib against the released procedures of ``acelib.bench.released``: same trajectory, same keys,
same dW, in float64, on all four families.
"""

from dataclasses import replace

import pytest

from acelib.bench import released
from acelib.bench.released_check import (
    BLOCK,
    COMPARISONS,
    EDITS,
    JOINT,
    PARTS,
    difference,
    differences,
    in_float64,
    search,
)
from acelib.editing.request import requests
from acelib.editing.search import target_vectors

SAME = 1e-8  #: relative difference allowed


@pytest.fixture(autouse=True)
def float64():
    with in_float64():
        yield


def test_the_facts_are_hard_enough(tiny):
    lm = tiny("gpt2")
    assert [len(lm.answer_ids(e.target_new)) for e in EDITS] == [3, 5, 1]
    assert all(len(lm.tokenizer(e.subject)["input_ids"]) > 1 for e in EDITS)


@pytest.mark.parametrize("name", COMPARISONS)
def test_equals_the_released_procedure(any_lm, name):
    assert differences(name, any_lm)[0] <= SAME


def runner_up(lm, e):
    """A word that the model nearly says."""
    words = [
        lm.tokenizer.decode(t).strip()
        for t in released.run(lm, released.at_last(e).row(lm)[0])[0][-1].argsort(descending=True)[
            1:
        ]
    ]
    return next(word for word in words if word.isalpha() and len(lm.answer_ids(word)) == 1)


@pytest.mark.parametrize(
    "objective",
    [
        replace(BLOCK, steps=14, clamp=None, floor=3.6),
        replace(JOINT, steps=14, lr=0.01, clamp=None),
    ],
    ids=["a low loss", "arg-max and a small KL"],
)
def test_stops(tiny, objective):
    """Every fact at its own step; with PMET's objective the NLL counts a tenth while the target is
    the arg-max.
    """
    lm, lengths, parts = tiny("llama"), [], PARTS[objective.kind]
    easy = [replace(e, target_new=runner_up(lm, e)) for e in EDITS]
    got = target_vectors(lm, requests(easy, "last"), 1, objective)
    for i, e in enumerate(easy):
        modules = [released.module(lm, part, 1) for part in parts]
        _, trajectory, _ = released.target_vector(
            lm, released.at_last(e), modules, ("",), **search(objective)
        )
        assert (
            got.steps[i] == len(trajectory) - 1
            and difference(got.delta[:, i], trajectory[-1]) <= SAME
        )
        lengths.append(len(trajectory))
    assert min(lengths) < objective.steps and len(set(lengths)) > 1
