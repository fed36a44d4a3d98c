"""Judging a model: does it say the answer? A judge knows prompts and answers, never the method that changed the model.

Two ways of asking. ``recall`` compares greedy decoding with one expected answer in a single forward pass (teacher forcing: greedy
decoding says the answer exactly when every answer token is the arg-max after the ones before it). ``generate`` writes the
continuation out, for chains of thought. Both take one ``Update`` a row, so that thousands of differently edited models are judged as
one batch without touching a weight.
"""

from __future__ import annotations

from typing import Callable, NamedTuple, Sequence

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import DynamicCache

from .lm import LM
from .prompts import parse_answer
from .update import Update, overlaid


class Recall(NamedTuple):
    """What ``recall`` found, one entry a prompt."""

    correct: list[bool]  #: greedy decoding says exactly the expected answer
    logprob: list[float]  #: log-probability of the whole answer, nats


@torch.no_grad()
def recall(lm: LM, prompts: Sequence[str], answers: Sequence[str], updates: Sequence[Update | None] | None = None,
           batch_size: int = 128) -> Recall:
    """Whether greedy decoding continues each prompt with its answer, and the answer's log-probability.

    prompts, answers: n texts each; an answer follows its prompt after one space.   updates: one a prompt, or None for the model as it is.
    Raises ValueError if the numbers differ, or a prompt or an answer is empty.
    """
    if len(prompts) != len(answers) or (updates is not None and len(updates) != len(prompts)):
        raise ValueError(f"{len(prompts)} prompts, {len(answers)} answers, {len(updates or prompts)} updates: give the same number of each")
    heads = _tokens(lm, prompts)
    tails = [lm.answer_ids(answer) for answer in answers]
    order = sorted(range(len(prompts)), key=lambda i: len(heads[i]) + len(tails[i]))
    correct, logprob = [False] * len(prompts), [0.0] * len(prompts)
    for start in range(0, len(order), batch_size):
        rows = order[start:start + batch_size]
        ids, mask = lm.pad([heads[i] + tails[i] for i in rows])
        with overlaid(lm, [updates[i] for i in rows] if updates else []):
            hidden = lm.stack(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        where = [(r, len(heads[i]) - 1 + t) for r, i in enumerate(rows) for t in range(len(tails[i]))]
        row, column = (torch.tensor(index, device=ids.device) for index in zip(*where))
        scores = log_softmax(lm.head(hidden[row, column]).float(), -1)
        wanted = ids[row, column + 1]
        hit, value = (scores.argmax(-1) == wanted).tolist(), scores.gather(-1, wanted[:, None])[:, 0].tolist()
        done = 0
        for i in rows:
            span = slice(done, done := done + len(tails[i]))
            correct[i], logprob[i] = all(hit[span]), sum(value[span])
    return Recall(correct, logprob)


@torch.no_grad()
def generate(lm: LM, prompts: Sequence[str], updates: Sequence[Update | None] | None = None, max_new_tokens: int = 64,
             until: Callable[[str], bool] = lambda text: "\n" in text, batch_size: int = 128) -> list[str]:
    """Greedy continuations of ``prompts``, each cut where ``until(continuation)`` first holds or the text ends.

    The tokens that all prompts of a batch share at their start (few-shot demonstrations) are computed once per distinct update.
    Raises ValueError if the numbers differ or a prompt is empty.
    """
    if updates is not None and len(updates) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts, {len(updates)} updates: give one update a prompt")
    texts: list[str] = []
    for start in range(0, len(prompts), batch_size):
        chosen = slice(start, start + batch_size)
        texts += _generate_batch(lm, prompts[chosen], list(updates[chosen]) if updates else [], max_new_tokens, until)
    return texts


def _generate_batch(lm: LM, prompts, updates, max_new_tokens, until) -> list[str]:
    rows = _tokens(lm, prompts)
    shared = min(len(row) - 1 for row in rows)
    while any(row[:shared] != rows[0][:shared] for row in rows):
        shared -= 1
    cache = _shared_cache(lm, rows[0][:shared], updates, len(rows))
    ids, mask = lm.pad([row[shared:] for row in rows], side="left")
    mask = torch.cat([mask.new_ones(len(rows), shared), mask], 1)
    end, text, open_ = lm.tokenizer.eos_token_id, [""] * len(rows), [True] * len(rows)
    new: list[list[int]] = [[] for _ in rows]
    with overlaid(lm, updates):
        for _ in range(max_new_tokens):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1]:]
            hidden = lm.stack(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
            ids = lm.head(hidden.last_hidden_state[:, -1]).argmax(-1, keepdim=True)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
            for i, token in enumerate(ids[:, 0].tolist()):
                if open_[i]:
                    if token != end:
                        new[i].append(token)
                        text[i] = lm.tokenizer.decode(new[i])
                    open_[i] = token != end and not until(text[i])
            if not any(open_):
                break
    return text


def _tokens(lm: LM, prompts: Sequence[str]) -> list[list[int]]:
    rows = [lm.tokenizer(prompt)["input_ids"] for prompt in prompts]
    if not all(rows):
        raise ValueError(f"prompt {rows.index([])} is empty; a model needs a token to go on from")
    return rows


def _shared_cache(lm: LM, ids: list[int], updates, n_rows: int) -> DynamicCache:
    """The key-value cache of a shared beginning, computed once per distinct update and laid out one row a prompt."""
    cache = DynamicCache(config=lm.model.config)
    if not ids:
        return cache
    distinct = list({id(update): update for update in updates}.values())
    with overlaid(lm, distinct):
        block = torch.tensor([ids] * max(1, len(distinct)), device=lm.device)
        lm.stack(input_ids=block, past_key_values=cache, use_cache=True)
    number = {id(update): row for row, update in enumerate(distinct)}
    rows = [number[id(update)] for update in updates] if updates else [0] * n_rows
    cache.batch_select_indices(torch.tensor(rows, device=lm.device))
    return cache


def first_answer(text: str) -> bool:
    """True once a chain of thought has given its answer: the stopping rule of few-shot chain-of-thought prompts."""
    head, found, tail = text.partition("Answer:")
    return bool(found) and "\n" in tail


def multi_hop(lm: LM, prompts: Sequence[str], updates: Sequence[Update | None] | None = None, max_new_tokens: int = 80) -> list[str]:
    """The answers a model gives to few-shot chain-of-thought prompts, greedily: (n,) texts after "Answer:", empty where it gave none."""
    texts = generate(lm, prompts, updates, max_new_tokens, first_answer)
    return [parse_answer(text) for text in texts]
