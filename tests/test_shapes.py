"""Shapes in signatures are checked under pytest, and nowhere else."""

import subprocess
import sys

import pytest
import torch
from jaxtyping import TypeCheckError

from acelib.editing.keys import mean_key
from acelib.editing.tail import fused
from acelib.model.states import Site, last, trace


def test_wrong_shapes_are_refused(tiny):
    lm = tiny("gptj")
    ids, mask = lm.encode(["The capital of France", "Apple"])
    with pytest.raises(TypeCheckError, match="mask"):
        trace(lm, ids, mask[:, :2], [Site("out", 0)])  # other positions than ids
    with pytest.raises(TypeCheckError, match="mask"):
        last(mask[0])
    with pytest.raises(TypeCheckError, match="weights"):
        mean_key(torch.zeros(4, 3), torch.ones(2, 2))
    with pytest.raises(TypeCheckError, match="norm_moments"):
        lm.norm_moments(lm.norm, torch.zeros(2, 3, dtype=torch.long))  # not real numbers
    with pytest.raises(TypeCheckError, match="positions"):
        fused(lm, 0, 1, "two")


def test_normal_use_checks_nothing():
    code = (
        "import sys, torch; from acelib.editing.keys import mean_key; "
        "assert not hasattr(mean_key, '__wrapped__') and 'beartype' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
