"""What a sentence of a page says of several models at once."""

from __future__ import annotations

from typing import Mapping


def each(said: Mapping[str, str]) -> str:
    """Of every model its own: {"a": "95 %", "b": "83 %"} -> "95 % (a) and 83 % (b)"."""
    return " and ".join(f"{words} ({model})" for model, words in said.items())


def together(said: Mapping[str, str]) -> str:
    """Once where all models agree: "holds on both" or, of one model, "holds"; else "holds on a, is undecided on b"."""
    if len(set(said.values())) > 1:
        return ", ".join(f"{words} on {model}" for model, words in said.items())
    return next(iter(said.values()), "") + {0: "", 1: "", 2: " on both"}.get(len(said), " on all")
