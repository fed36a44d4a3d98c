"""Tiny random models for every test."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from transformers.utils import logging

from acelib.bench.tiny import FAMILIES, make_tiny
from acelib.model.lm import LM

logging.set_verbosity_error()


@pytest.fixture
def tiny():
    """Factory of tiny random models: ``tiny("gptj", dtype=torch.float64)``."""
    return make_tiny


@pytest.fixture(params=FAMILIES)
def any_lm(request) -> LM:
    """A tiny random float64 model of each family in turn."""
    return make_tiny(request.param)
