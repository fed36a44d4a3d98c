"""What an editor works on: requests, made of edits before any work starts."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ..model.lm import LM
from ..model.start import SINK, has_start
from ..records import Edit, quoted

Position = Literal["subject_last", "last"]  #: of a prompt: its subject's last token, or its own
POSITIONS = get_args(Position)


@dataclass(frozen=True)
class Request:
    """One association to write: after ``prompt``, the model should say ``target``.

    The token of the prompt that ends at character ``end`` is the one to write at.
    """

    prompt: str
    end: int
    target: str
    #: the independent edit batch it belongs to
    group: int = 0
    #: whose essence must stay ("{subject} is a"); empty: the prompt up to ``end``
    subject: str = ""


def request(
    edit: Edit, position: str = "subject_last", group: int = 0, prompt: str | None = None
) -> Request:
    """The request of ``edit`` at the last token of its subject ("subject_last") or prompt ("last").

    prompt: a complete prompt to use instead of the edit's own (a multi-hop one); then only "last"
    makes sense.
    Raises ValueError for an unknown position, or a prompt that is empty or edited elsewhere.
    """
    if position not in POSITIONS:
        raise ValueError(
            f"position {position!r} is unknown; allowed: {', '.join(map(repr, POSITIONS))}"
        )
    if prompt is not None and position != "last":
        raise ValueError(
            f"prompt {prompt!r} is complete: it can only be edited at its last token, "
            f"not at {position!r}"
        )
    text = edit.text if prompt is None else prompt.rstrip()
    if not text:
        raise ValueError(f"edit of {edit.subject!r}: an empty multi-hop prompt")
    subject_end = edit.prompt.index("{}") + len(edit.subject.rstrip())
    return Request(
        text,
        subject_end if position == "subject_last" else len(text),
        edit.target_new.strip(),
        group,
        edit.subject.strip(),
    )


def requests(
    edits: Sequence[Edit] | Edit, position: str = "subject_last", group: int = 0
) -> list[Request]:
    """The requests of one batch of edits, exact duplicates once.

    Raises ValueError for no edit, for contradicting ones, and as ``request`` does.
    """
    return unique_requests(request(edit, position, group) for edit in batch_of(edits))


def batch_of(edits: Sequence[Edit] | Edit) -> Sequence[Edit]:
    """``edits`` itself.

    Raises ValueError if it is no list or tuple (but a single edit, say), or an empty one.
    """
    if not isinstance(edits, (list, tuple)):
        raise ValueError(f"a batch is a list of edits, such as [edit]; got {edits!r}")
    if not edits:
        raise ValueError("no edit given; an editor needs at least one")
    return edits


def unique_requests(requests: Iterable[Request]) -> list[Request]:
    """``requests`` without exact duplicates.

    Raises ValueError if one prompt of a group is to get two different answers.
    """
    unique = list(dict.fromkeys(requests))
    targets: dict[tuple, str] = {}
    for r in unique:
        target = targets.setdefault((r.group, r.prompt, r.end), r.target)
        if target != r.target:
            raise ValueError(f"conflicting edits: {r.prompt!r} -> {target!r} and -> {r.target!r}")
    return unique


def warn_of_sink(lm: LM, r: Request) -> None:
    """Warns of a request at the first token that the model reads, where attention rests on it.

    Its state is huge there whatever the token is, and every later token reads it: an edit moves
    what is no fact.
    """
    if has_start(lm.tokenizer) or lm.token_at(r.prompt, r.end) > 0 or lm.sink < SINK:
        return
    warnings.warn(
        f"the subject of {quoted(r.prompt)} is the first token that {lm.name!r} reads, an "
        f"attention sink (its state is {lm.sink:.0f} times longer than others): the edit writes "
        "there. Load the model with a start, such as --start '<|endoftext|>'",
        stacklevel=4,
    )


def check_lengths(lm: LM, requests: Iterable[Request], prefixes: Sequence[str] = ("",)) -> None:
    """Raises ValueError if a prompt and its target, after any prefix, are longer than ``lm`` reads.

    Later that would be an index out of range, or an update that nobody can judge.
    """
    most = lm.model.config.max_position_embeddings
    for r in requests:
        if r.end < len(r.prompt):
            warn_of_sink(lm, r)
        rows = lm.tokenizer([prefix + r.prompt for prefix in prefixes])["input_ids"]
        n = max(map(len, rows)) + len(lm.answer_ids(r.target))
        if n > most:
            raise ValueError(
                f"the prompt {quoted(r.prompt)} and its target have {n} tokens"
                f"{' behind the text before them' if any(prefixes) else ''}; "
                f"model {lm.name!r} reads {most} at most"
            )
