"""Options that several commands have, and the model that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import early
from .console import quiet

Model = Annotated[
    str,
    typer.Option("--model", "-m", help="A shipped model, a local folder, or a Hugging Face id."),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
Dtype = Annotated[
    str, typer.Option("--dtype", help="Of the weights: float32, bfloat16, float16 or float64.")
]
Start = Annotated[
    str,
    typer.Option(
        "--start",
        help="A token or a text that every prompt is read after; default: what the tokenizer says.",
    ),
]
Texts = Annotated[
    Path | None,
    typer.Option(
        "--texts",
        help="Text for second moments, paragraphs between blank lines. Default: natural prose that "
        "ships; for the reference models, what they learned from.",
    ),
]


def check_model(name: str, dtype: str = "float32") -> None:
    """Raises ValueError for a model or a type of weights that there is none of, at once."""
    early.dtype(dtype)
    early.model(name)


def load_model(name: str, device: str | None = None, dtype: str = "float32", start: str = ""):
    """A model; a bar of transformers is shown for downloads only."""
    from ..model import fetch, loading

    if name in loading.shipped() or fetch.is_name(name) or Path(name).is_dir():
        quiet()
    return loading.load(name, device, loading.dtype_named(dtype), start)
