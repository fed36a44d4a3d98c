"""Asking a model: does it say the answer? Who asks never knows the method that changed the model.

``recall`` compares greedy decoding with one expected answer in a single forward pass (teacher
forcing: greedy decoding says the answer exactly when every answer token is the arg-max after the
ones before it). ``generate`` writes the continuation out, for chains of thought. Both take one
``Update`` for each row, so that thousands of differently edited models are asked as one batch
without touching a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar, cast

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from .lm import LM, common_start
from .states import position_ids
from .update import Update, overlaid

Item = TypeVar("Item")

ROOM = 32  #: positions that a cache makes room for at once


class Recall(NamedTuple):
    """What ``recall`` returns, one entry for each prompt."""

    correct: list[bool]  #: greedy decoding says exactly the expected answer
    logprob: list[float]  #: log-probability of the whole answer, nats


@torch.no_grad()
def recall(
    lm: LM,
    prompts: Sequence[str],
    answers: Sequence[str],
    updates: Sequence[Update | None] | None = None,
    batch_size: int = 128,
) -> Recall:
    """Whether greedy decoding continues each prompt with its answer, and how probable that is.

    prompts, answers: n texts each; an answer follows its prompt after one space.
    updates: one for each prompt, or None for the model as it is.
    Raises ValueError if the numbers differ, a prompt or an answer is empty, or both together are
    longer than the model reads.
    """
    if len(prompts) != len(answers) or (updates is not None and len(updates) != len(prompts)):
        raise ValueError(
            f"{len(prompts)} prompts, {len(answers)} answers, {len(updates or prompts)} updates: "
            "give the same number of each"
        )
    tails = [lm.answer_ids(answer) for answer in answers]
    heads = _tokens(lm, prompts, [len(tail) - 1 for tail in tails])
    order = sorted(range(len(prompts)), key=lambda i: len(heads[i]) + len(tails[i]))
    correct, logprob = [False] * len(prompts), [0.0] * len(prompts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        ids, mask = lm.pad([heads[i] + tails[i] for i in rows])
        with overlaid(lm, [updates[i] for i in rows] if updates else []):
            hidden = lm.stack(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        where = [
            (r, len(heads[i]) - 1 + t) for r, i in enumerate(rows) for t in range(len(tails[i]))
        ]
        row, column = (torch.tensor(index, device=ids.device) for index in zip(*where, strict=True))
        scores = log_softmax(lm.head(hidden[row, column]).float(), -1)
        wanted = ids[row, column + 1]
        hit = (scores.argmax(-1) == wanted).tolist()
        value = scores.gather(-1, wanted[:, None])[:, 0].tolist()
        done = 0
        for i in rows:
            span = slice(done, done := done + len(tails[i]))
            correct[i], logprob[i] = all(hit[span]), sum(value[span])
    return Recall(correct, logprob)


def known_items(
    lm: LM, items: Sequence[Item], ask: Callable[[Item], tuple[str, str]]
) -> list[Item]:
    """Those of ``items`` that the model knows: it says the answer (see ``recall``).

    ask: the prompt and the answer of an item.
    """
    prompts, answers = zip(*map(ask, items), strict=True) if items else ((), ())
    correct = recall(lm, prompts, answers).correct
    return [item for item, good in zip(items, correct, strict=True) if good]


@torch.no_grad()
def generate(
    lm: LM,
    prompts: Sequence[str],
    updates: Sequence[Update | None] | None = None,
    max_new_tokens: int = 64,
    until: Callable[[str], bool] = lambda text: "\n" in text,
    batch_size: int = 128,
) -> list[str]:
    """Greedy continuations, each cut where ``until(continuation)`` first holds or the text ends.

    Tokens that neighbours share at their start (few-shot demonstrations before several questions)
    are computed once for each of their updates; rows that are done leave the batch.
    Raises ValueError if the numbers differ, a prompt is empty, or longer than the model reads with
    the tokens to come.
    """
    if updates is not None and len(updates) != len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts, {len(updates)} updates: give one for each prompt"
        )
    texts: list[str] = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        texts += _generate_batch(
            lm, prompts[part], list(updates[part]) if updates else [], max_new_tokens, until
        )
    return texts


def _generate_batch(
    lm: LM,
    prompts: Sequence[str],
    updates: Sequence[Update | None],
    max_new_tokens: int,
    until: Callable[[str], bool],
) -> list[str]:
    # 1. What neighbours begin with runs once; every row goes on from its group's cache.
    rows = _tokens(lm, prompts, [max(max_new_tokens - 1, 0)] * len(prompts))
    group, starts, whose = _beginnings(rows, updates)
    cache, mask = _start(lm, starts, whose, group)
    ids, own = lm.pad(
        [row[len(starts[g]) :] for row, g in zip(rows, group, strict=True)], side="left"
    )
    mask = torch.cat([mask, own], 1)
    end, text = lm.tokenizer.eos_token_id, [""] * len(rows)
    new: list[list[int]] = [[] for _ in rows]
    alive, left = list(range(len(rows))), max_new_tokens
    while alive and left:
        open_ = [True] * len(alive)
        with overlaid(lm, [updates[i] for i in alive] if updates else []):
            # 2. One token for every row of the batch, until three in ten rows are done.
            while left and sum(open_) > 0.7 * len(alive):
                positions = position_ids(mask)[:, -ids.shape[1] :]
                hidden = lm.stack(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                )
                ids = lm.head(hidden.last_hidden_state[:, -1]).argmax(-1, keepdim=True)
                mask = torch.cat([mask, mask.new_ones(len(alive), 1)], 1)
                left -= 1
                # 3. A row is done at the end of text, or where its text says so.
                for r, (i, token) in enumerate(zip(alive, ids[:, 0].tolist(), strict=True)):
                    if open_[r]:
                        if token != end:
                            new[i].append(token)
                            text[i] = cast(str, lm.tokenizer.decode(new[i]))
                        open_[r] = token != end and not until(text[i])
        # 4. Rows that are done leave the batch and the cache.
        still = [r for r, is_open in enumerate(open_) if is_open]
        keep = torch.tensor(still, dtype=torch.long, device=lm.device)
        alive = [alive[r] for r in still]
        if alive and left:
            cache.batch_select_indices(keep)
            ids, mask = ids[keep], mask[keep]
    return text


def _beginnings(
    rows: Sequence[list[int]], updates: Sequence[Update | None]
) -> tuple[list[int], list[list[int]], list[Update | None]]:
    """Groups of neighbours with one update and at least half of their tokens in common.

    Returns each row's group, each group's start, each group's update.
    """
    group: list[int] = []
    starts: list[list[int]] = []
    whose: list[Update | None] = []
    for i, row in enumerate(rows):
        update, head = updates[i] if updates else None, row[:-1]  # a row's last token is its own
        if starts and update is whose[-1]:
            common = common_start(starts[-1], head)
            if 2 * common >= len(row):
                starts[-1] = starts[-1][:common]
                group.append(len(starts) - 1)
                continue
        group.append(len(starts))
        starts.append(head)
        whose.append(update)
    return group, starts, whose


def _tokens(lm: LM, prompts: Sequence[str], more: Sequence[int]) -> list[list[int]]:
    """The tokens of prompts, behind each of which the model reads so many more."""
    rows = [lm.tokenizer(prompt)["input_ids"] for prompt in prompts]
    if not all(rows):
        raise ValueError(f"prompt {rows.index([])} is empty; a model needs a token to go on from")
    sizes = [len(row) + extra for row, extra in zip(rows, more, strict=True)]
    most = lm.model.config.max_position_embeddings
    if sizes and max(sizes) > most:
        i = sizes.index(max(sizes))
        raise ValueError(
            f"prompt {i} has {len(rows[i])} tokens, and {more[i]} are to follow; "
            f"model {lm.name!r} reads {most} at most"
        )
    return rows


def _start(
    lm: LM, starts: Sequence[list[int]], whose: Sequence[Update | None], group: Sequence[int]
) -> tuple[Cache, Int[Tensor, "batch pos"]]:
    """The key-value cache and the mask of every row's start, computed once for each group."""
    cache = Cache(layers=[_Roomy() for _ in range(lm.n_layers)])
    rows = torch.tensor(group, device=lm.device)
    if not any(starts):
        return cache, torch.zeros(len(rows), 0, dtype=torch.long, device=lm.device)
    ids, mask = lm.pad(starts, side="left")
    with overlaid(lm, list(whose) if any(update is not None for update in whose) else []):
        lm.stack(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position_ids(mask),
            past_key_values=cache,
            use_cache=True,
        )
    cache.batch_select_indices(rows)
    return cache, mask[rows]


class _Roomy(DynamicLayer):
    """Keys and values with room for those to come, so that a new token does not copy the old."""

    store: tuple[Tensor, ...] | None = None  #: keys and values, and the room after them

    def update(
        self, key_states: Tensor, value_states: Tensor, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old, new = self.get_seq_length(), (key_states, value_states)
        n = old + key_states.shape[-2]
        if self.store is None or self.store[0].shape[-2] < n:
            self.store = tuple(x.new_empty(*x.shape[:-2], n + ROOM, x.shape[-1]) for x in new)
            if old:
                for room, kept in zip(self.store, (self.keys, self.values), strict=True):
                    room[..., :old, :] = cast(Tensor, kept)
        for room, x in zip(self.store, new, strict=True):
            room[..., old:n, :] = x
        self.keys, self.values = (room[..., :n, :] for room in self.store)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.store = None  # the rows that stay are a copy without room
