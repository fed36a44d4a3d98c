"""Tiny random models for every test."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Shapes in signatures are checked in tests only; this must come before the library is imported.
from jaxtyping import install_import_hook

# Editors are left out: they refuse wrong types themselves, which is tested.
CHECKED = ["acelib.model", "acelib.attribution", "acelib.editing"]
install_import_hook(CHECKED, "checker.check")

import pytest  # noqa: E402
from transformers.utils import logging  # noqa: E402

from acelib.bench.tiny import FAMILIES, make_tiny  # noqa: E402
from acelib.model.lm import LM  # noqa: E402

logging.set_verbosity_error()


@pytest.fixture
def tiny():
    """Factory of tiny random models: ``tiny("gptj", dtype=torch.float64)``."""
    return make_tiny


@pytest.fixture(params=FAMILIES)
def any_lm(request) -> LM:
    """A tiny random float64 model of each family in turn."""
    return make_tiny(request.param)
