"""What is asked of an editor at the level of tokens: requests, the prefixes they are read with, their keys and current values.

The lookup token (the subject's last, or the prompt's last) is brought to one column for a whole batch, so that everything before it is
shared work and everything after it can be cut off: a causal model's key cannot depend on it. Nothing here touches a weight.
Source of keys, prefixes and their weights: MEMIT (Section 4.3, and its released code).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from acelib.lm import LM
from acelib.update import Update, overlaid

if TYPE_CHECKING:
    from acelib.facts import Edit

OPENERS = ("The", "Therefore", "Because", "I", "You")
POSITIONS = ("subject_last", "last")


# ---------------------------------------------------------------------- requests


@dataclass(frozen=True)
class Request:
    """One association to write: after ``prompt``, the token that ends at character ``end`` should make the model say ``target``."""

    prompt: str
    end: int
    target: str
    group: int = 0  #: the independent edit batch it belongs to
    subject: str = (
        ""  #: whose essence must stay ("{subject} is a"); empty: the prompt up to ``end``
    )


def check_reading(positions: Sequence[str], n_prefixes: int, prefix_length: int) -> None:
    """Raises ValueError for an unknown position, a negative number of prefixes, or prefixes without a token."""
    if unknown := [position for position in positions if position not in POSITIONS]:
        raise ValueError(
            f"position {unknown[0]!r} is unknown; allowed: {', '.join(map(repr, POSITIONS))}"
        )
    if n_prefixes < 0 or prefix_length < 1:
        raise ValueError(
            f"n_prefixes {n_prefixes} must not be negative, and prefix_length {prefix_length} at least 1"
        )


def request(
    edit: Edit, position: str = "subject_last", group: int = 0, prompt: str | None = None
) -> Request:
    """The request of ``edit`` at the last token of its subject ("subject_last") or of the prompt ("last").

    prompt: a complete prompt to use instead of the edit's own (a multi-hop one); then only "last" makes sense.
    Raises ValueError for an unknown position, an empty subject or target, a template without exactly one "{}", a target that is the answer.
    """
    if position not in POSITIONS:
        raise ValueError(
            f"position {position!r} is unknown; allowed: {', '.join(map(repr, POSITIONS))}"
        )
    if not edit.subject.strip() or not edit.target_new.strip():
        raise ValueError(
            f"edit {edit.prompt!r}: subject {edit.subject!r} and target {edit.target_new!r} must not be empty"
        )
    if edit.prompt.count("{}") != 1:
        raise ValueError(f"prompt {edit.prompt!r} must hold the subject's place {{}} exactly once")
    if edit.target_new.strip() == (edit.target_true or "").strip():
        raise ValueError(
            f"edit of {edit.subject!r}: the target {edit.target_new!r} is the answer already"
        )
    if prompt is not None and position != "last":
        raise ValueError(
            f"prompt {prompt!r} is complete: it can only be edited at its last token, not at {position!r}"
        )
    text = (edit.prompt.replace("{}", edit.subject) if prompt is None else prompt).rstrip()
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
    edits: Sequence[Edit], position: str = "subject_last", group: int = 0
) -> list[Request]:
    """The requests of one batch of edits, exact duplicates once (see ``request``). Raises ValueError for no edit, or contradicting ones."""
    return distinct(request(edit, position, group) for edit in batch_of(edits))


def batch_of(edits: Sequence[Edit]) -> Sequence[Edit]:
    """``edits`` itself. Raises ValueError if it is no list or tuple (but a single edit, say), or an empty one."""
    if not isinstance(edits, (list, tuple)):
        raise ValueError(f"a batch is a list of edits, such as [edit]; got {edits!r}")
    if not edits:
        raise ValueError("no edit given; an editor needs at least one")
    return edits


def distinct(given: Iterable[Request]) -> list[Request]:
    """``given`` without exact duplicates. Raises ValueError if one prompt of a group is to get two different answers."""
    kept = list(dict.fromkeys(given))
    seen: dict[tuple, str] = {}
    for r in kept:
        if seen.setdefault((r.group, r.prompt, r.end), r.target) != r.target:
            raise ValueError(
                f"conflicting edits: {r.prompt!r} -> {seen[r.group, r.prompt, r.end]!r} and -> {r.target!r}"
            )
    return kept


# ---------------------------------------------------------------------- prefixes


def contexts(lm: LM, n: int, length: int = 10, seed: int = 0) -> tuple[str, ...]:
    """Texts to put before a prompt, so that a key is not tied to one beginning: "" and ``n`` texts sampled from the model.

    length: tokens each, opener included.   seed: of the sampling (top 5 tokens, temperature 1).
    Returns: n + 1 strings, the first empty.
    Source: MEMIT's released code.
    """
    generator, texts = torch.Generator().manual_seed(seed), [""]
    for i in range(n):
        ids = lm.tokenizer(OPENERS[i % len(OPENERS)])["input_ids"]
        with torch.no_grad():
            while len(ids) < length:
                hidden = lm.stack(
                    torch.tensor([ids], device=lm.device), use_cache=False
                ).last_hidden_state[0, -1:]
                top = lm.head(hidden)[0].double().cpu().topk(5)
                ids = ids + [
                    int(
                        top.indices[
                            torch.multinomial(top.values.softmax(0), 1, generator=generator)
                        ]
                    )
                ]
        text = lm.tokenizer.decode(ids, skip_special_tokens=True)
        texts.append(" ".join(text.replace("{", " ").replace("}", " ").split()) + ". ")
    return tuple(texts)


def prefix_weights(lm: LM, prefixes: Sequence[str]) -> Tensor:
    """Weights of the prefixes in a mean key, (len(prefixes),): 1/2 bare, the rest shares 1/2. Raises ValueError if "" is not first."""
    if not len(prefixes) or prefixes[0] != "":
        raise ValueError(f"prefixes {tuple(prefixes)!r} must begin with the empty one")
    others = len(prefixes) - 1
    share = [0.5] + [0.5 / others] * others if others else [1.0]
    return torch.tensor(share, dtype=torch.promote_types(lm.dtype, torch.float32), device=lm.device)


# ---------------------------------------------------------------------- batches with one lookup column


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of tokens whose lookup tokens all stand in column ``at``: padded on the left before it, on the right after it."""

    ids: Tensor  #: (b, p)
    mask: Tensor  #: (b, p)
    at: int

    def inputs(
        self, columns: slice = slice(None), rows: Sequence[int] | slice | Tensor = slice(None)
    ) -> dict[str, Tensor]:
        """Keyword arguments of a forward over ``columns``: the mask up to their end, the positions of a row's real tokens."""
        mask = self.mask[rows]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return dict(attention_mask=mask[:, : columns.stop], position_ids=positions[:, columns])


def tokens(lm: LM, text: str, end: int) -> tuple[list[int], int]:
    """Token ids of ``text`` and the index of the token that holds the character before ``end``."""
    return lm.tokenizer(text)["input_ids"], lm.token_at(text, end)


def aligned(lm: LM, rows: Sequence[tuple[Sequence[int], int]]) -> Batch:
    """One batch from (token ids, lookup index) pairs."""
    at = max(index for _, index in rows)
    left = [[lm.tokenizer.pad_token_id] * (at - index) + list(ids) for ids, index in rows]
    ids, mask = lm.pad(left)
    for i, (_, index) in enumerate(rows):
        mask[i, : at - index] = 0
    return Batch(ids, mask, at)


@contextmanager
def reading(lm: LM, sites: Iterable[tuple[str, int]]) -> Iterator[dict[tuple[str, int], Tensor]]:
    """Fill a dict with activations (b, p, .) of the forward inside: "in", "out" of a block, "attn", "mlp" output, "key" (fc2's input)."""
    values, hooks = {}, []
    where = {
        "in": lambda i: lm.blocks[i],
        "out": lambda i: lm.blocks[i],
        "attn": lm.attn,
        "mlp": lm.mlp,
        "key": lm.fc2,
    }
    try:
        for site in sites:
            kind, layer = site
            if kind in ("in", "key"):
                hooks.append(
                    where[kind](layer).register_forward_pre_hook(
                        lambda _, args, site=site: values.__setitem__(site, args[0])
                    )
                )
            else:
                hooks.append(
                    where[kind](layer).register_forward_hook(
                        lambda _, args, out, site=site: values.__setitem__(
                            site, out[0] if isinstance(out, tuple) else out
                        )
                    )
                )
        yield values
    finally:
        for hook in hooks:
            hook.remove()


def chunked(function: Callable[[range], object], n: int, size: int) -> list:
    """``function`` of consecutive index ranges that cover ``range(n)``, at most ``size`` long; out of memory halves it and retries."""
    start, results = 0, []
    while start < n:
        try:
            results.append(function(range(start, min(start + size, n))))
            start += size
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = max(1, min(size, n - start) // 2)
    return results


def overlay_of(
    updates: Sequence[Update | None] | None, groups: Iterable[int]
) -> list[Update | None]:
    """What ``overlaid`` needs for rows of these groups: ``updates`` has one entry a group, None means an unedited model."""
    return [None] if updates is None else [updates[g] for g in groups]


# ---------------------------------------------------------------------- walking up the stack, row by row


class Walk:
    """The rows of some requests (times prefixes), cut after the lookup token, standing at the input of one layer and moving up.

    A row's hidden states below the layers that change are computed once: ``climb`` goes from where the rows stand to a later layer.
    """

    def __init__(
        self, lm: LM, given: Sequence[Request], prefixes: Sequence[str] = ("",), rows: int = 1024
    ):
        self.lm, self.rows, self.per = lm, rows, len(prefixes)
        self.groups = [r.group for r in given for _ in prefixes]
        cut = (
            tokens(lm, prefix + r.prompt, len(prefix) + r.end) for r in given for prefix in prefixes
        )
        self.batch = aligned(lm, [(ids[: index + 1], index) for ids, index in cut])
        self.layer, self.hidden = 0, None  # None: the tokens themselves

    def climb(self, layer: int, updates: Sequence[Update | None] | None = None) -> Tensor:
        """Move every row to the input of ``layer``. Returns its keys there, (b, m)."""
        done = self._run(range(len(self.groups)), layer, [("in", layer), ("key", layer)], updates)
        if layer:  # at layer 0 the rows stay tokens: their input holds the positions already, and must not get them twice
            self.layer, self.hidden = layer, done["in", layer]
        return done["key", layer][:, -1]

    def look(self, layer: int, kind: str, updates: Sequence[Update | None] | None = None) -> Tensor:
        """The activation "out" or "mlp" of ``layer`` at the lookup token of every bare row, (n, d); nobody moves."""
        return self._run(range(0, len(self.groups), self.per), layer, [(kind, layer)], updates)[
            kind, layer
        ][:, -1]

    @torch.no_grad()
    def _run(self, chosen: range, last: int, sites: list, updates) -> dict:
        part = self.lm.between(self.layer, last)

        def forward(piece: range) -> dict:
            rows = [chosen[i] for i in piece]
            start = (
                dict(input_ids=self.batch.ids[rows])
                if self.hidden is None
                else dict(inputs_embeds=self.hidden[rows])
            )
            with (
                overlaid(self.lm, overlay_of(updates, [self.groups[i] for i in rows])),
                reading(self.lm, sites) as values,
            ):
                part(**start, **self.batch.inputs(rows=rows), use_cache=False)
            return {site: v if site[0] == "in" else v[:, -1:].clone() for site, v in values.items()}

        pieces = chunked(forward, len(chosen), self.rows)
        return {site: torch.cat([piece[site] for piece in pieces]) for site in sites}


def keys_at(
    lm: LM,
    given: Sequence[Request],
    layer: int,
    prefixes: Sequence[str] = ("",),
    updates: Sequence[Update | None] | None = None,
) -> Tensor:
    """Keys of the requests: the input of fc2 at the lookup token, mean over prefixes (1/2 bare, 1/2 the others).

    updates: one for each group: the model as edited so far.
    Returns: K (m, n), in the unit of FFN activations.   Raises ValueError for a layer that does not exist.
    Source: MEMIT Eq. 19.
    """
    lm.layers([layer])
    return mean_key(Walk(lm, given, prefixes).climb(layer, updates), prefix_weights(lm, prefixes))


def mean_key(keys: Tensor, weights: Tensor) -> Tensor:
    """Keys of all rows (n * n_prefixes, m), request by request -> weighted mean (m, n)."""
    return torch.einsum(
        "npm,p->mn", keys.unflatten(0, (-1, len(weights))).to(weights.dtype), weights
    )


def values_at(
    lm: LM,
    given: Sequence[Request],
    layer: int,
    kind: str = "out",
    updates: Sequence[Update | None] | None = None,
) -> Tensor:
    """Current output of a block ("out") or of its FFN ("mlp") at the lookup token of the bare prompts.

    Returns: (d, n), in the unit of the residual stream.   Raises ValueError for an unknown kind or layer.
    """
    if kind not in ("out", "mlp"):
        raise ValueError(f"kind {kind!r} is unknown; allowed: 'out', 'mlp'")
    lm.layers([layer])
    return Walk(lm, given).look(layer, kind, updates).T
