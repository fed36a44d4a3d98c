"""A batch of independent edits equals one by one, on the worst second moment that is accepted."""

import pytest
import torch

from acelib.editing.moments import LEAST, second_moments
from acelib.editors import preset
from acelib.model.loading import load
from acelib.world.cases import make_cases
from acelib.world.text import documents
from acelib.world.world import load_world

MODEL, N_TEXTS = "gptj-mini", 4  #: too few texts: dozens of directions are not determined
EDITORS = ("FT", "KN", "ROME", "MEMIT", "PMET", "AlphaEdit", "IFMET", "ACE")
RTOL = 1e-3  #: of an update's norm
ATOL = 1e-5  #: where a target is said already, what is written is rounding


@pytest.fixture(scope="module")
def lm():
    return load(MODEL, "cpu")


@pytest.fixture(scope="module")
def moments(lm, tmp_path_factory):
    texts = documents(load_world(), N_TEXTS)
    folder = tmp_path_factory.mktemp("moments")
    return second_moments(lm, texts, range(lm.n_layers), folder)


def test_the_moment_is_a_bad_one(lm, moments):
    values = torch.linalg.eigvalsh(moments[0])
    undetermined = int((values < LEAST * moments[0].diagonal().mean()).sum())
    assert undetermined > 20
    with pytest.warns(UserWarning, match=f"rank {lm.d_mlp - undetermined} of {lm.d_mlp}"):
        moments.solver(0, 1.0)


@pytest.mark.parametrize("name", EDITORS)
def test_a_batch_of_edits_equals_one_by_one(lm, moments, name):
    editor = preset(name, MODEL)
    groups = [case.edits for case in make_cases(load_world(), "evaluation", 3, 0)]
    batch = editor.each(lm, groups, moments)
    for group, together in zip(groups, batch, strict=True):
        [alone] = editor.each(lm, [group], moments)
        for layer in together.layers:
            difference = (together.delta(layer) - alone.delta(layer)).norm()
            assert difference <= RTOL * alone.delta(layer).norm() + ATOL
