"""A text that every prompt is read after, kept in the tokenizer.

Models that read no token of their own at the start make the first token of a prompt a sink: heads
that have nothing to say attend to it, and its state is a hundred times longer than the others. A
fact about a subject that begins the prompt would be edited there. A start text takes that place, as
the token between two texts did in training.
"""

from __future__ import annotations

import copy
from typing import Any

from tokenizers import Tokenizer, processors

from ..records import quoted

#: Of the longest state of a first token over the longest of the others: beyond it, it is a sink.
SINK = 10.0


def with_start(tokenizer: Any, start: str) -> Any:
    """A copy of a fast tokenizer that puts the tokens of ``start`` before every text.

    start: a special token, such as "<|endoftext|>", or a text, such as a line break. What the
    tokenizer itself puts before or behind a text is replaced.
    Raises ValueError if ``start`` has no tokens.
    """
    new = copy.deepcopy(tokenizer)
    backend: Tokenizer = new.backend_tokenizer
    found = backend.encode(start, add_special_tokens=False)
    if not found.ids:
        raise ValueError(f"the start {quoted(start)} has no tokens")
    piece: Any = {"id": "start", "ids": found.ids, "tokens": found.tokens}
    template = processors.TemplateProcessing(
        single="start $A", pair="start $A $B", special_tokens=[piece]
    )
    # Offsets of byte-level tokens are trimmed by a processor of their own, which is kept.
    old = backend.post_processor
    trimmed = isinstance(old, processors.ByteLevel)
    backend.post_processor = processors.Sequence([old, template]) if trimmed else template
    return new


def has_start(tokenizer: Any) -> bool:
    """Whether a tokenizer puts a token before a text."""
    bare, whole = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    return bool(whole) and whole[: len(bare)] != bare
