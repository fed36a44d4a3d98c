"""Judging: teacher forcing equals generation, batches one by one, overlays what is applied."""

import pytest
import torch
from test_update import bits, random_update, same_bits

from acelib.measures.known import multi_hop
from acelib.model import answers
from acelib.model.answers import Recall, generate, known_items, recall
from acelib.model.update import Factors, Update, applied
from acelib.world.wording import first_answer

PROMPTS = [
    "The capital of France is",
    "Tim Duncan plays the sport of",
    "Apple",
    "The author of Hamlet is William",
]
SHARED = "Question: Which sport does Tim Duncan play? Answer: basketball\n\n"


def never(text):
    return False


def small(lm, seed, layers=(1, 2)):
    """A random update weak enough to leave a live model."""
    update = random_update(lm, layers, seed=seed)
    return Update(
        {layer: Factors(0.3 * left, right) for layer, (left, right) in update.factors.items()}
    )


def plain(lm, prompt, n):
    """Greedy token ids, one forward of everything for each."""
    ids = lm.tokenizer(prompt)["input_ids"]
    new = []
    with torch.no_grad():
        for _ in range(n):
            new.append(int(lm.model(torch.tensor([ids + new])).logits[0, -1].argmax()))
    return new


def test_generate_equals_the_library(any_lm):
    """The model's own ``generate(do_sample=False)``, prompt by prompt."""
    wanted = []
    for prompt in PROMPTS:
        ids = torch.tensor([any_lm.tokenizer(prompt)["input_ids"]])
        out = any_lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=9
        )
        wanted.append(any_lm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    assert generate(any_lm, PROMPTS, max_new_tokens=9, until=never) == wanted


@pytest.mark.parametrize("room", [0, 3])
def test_the_room_of_a_cache_changes_nothing(any_lm, monkeypatch, room):
    """Rows leave the batch on the way, so that a cache is made anew between its growths."""

    def until(text):
        return len(text) > 12

    prompts = [SHARED + prompt for prompt in PROMPTS]
    wanted = generate(any_lm, prompts, max_new_tokens=9, until=until)
    monkeypatch.setattr(answers, "ROOM", room)
    assert generate(any_lm, prompts, max_new_tokens=9, until=until) == wanted


def test_recall_equals_generating_one_by_one(any_lm):
    """Right answers are what greedy decoding says, wrong ones are not.

    They are spelt so that the tokenizer gives the same tokens back.
    """
    lm, asked = any_lm, []
    for prompt in PROMPTS:
        for n in (1, 2, 3):
            said = lm.tokenizer.decode(plain(lm, prompt, n)).strip()
            asked += [(prompt, said)] if said else []
        asked += [(prompt, "basketball"), (prompt, "William Shakespeare")]
    got = recall(lm, *zip(*asked, strict=True), batch_size=5)
    for (prompt, answer), correct, logprob in zip(asked, *got, strict=True):
        ids, tail = lm.tokenizer(prompt)["input_ids"], lm.answer_ids(answer)
        assert correct == (plain(lm, prompt, len(tail)) == tail)
        with torch.no_grad():
            logp = lm.model(torch.tensor([ids + tail])).logits[0].log_softmax(-1)[len(ids) - 1 : -1]
        assert logprob == pytest.approx(
            sum(logp[t, token].item() for t, token in enumerate(tail)), rel=1e-4
        )
    assert not all(got.correct)


def test_known_items_are_those_recalled(tiny, monkeypatch):
    lm, right = tiny("gpt2"), {"Tim Duncan plays the": True, "Apple": False, "The capital of": True}

    def single(text):
        return text, "x"

    monkeypatch.setattr(
        answers, "recall", lambda lm, prompts, _: Recall([*map(right.get, prompts)], [])
    )
    assert known_items(lm, [*right], single) == [t for t in right if right[t]]
    assert known_items(lm, [], single) == []


def test_recall_says_yes(tiny, monkeypatch):
    """Every beginning of the greedy continuation is recalled; a changed last token is not."""
    lm = tiny("qwen3")
    said = {f"{prompt}{n}": plain(lm, prompt, n) for prompt in PROMPTS for n in (1, 4)}
    monkeypatch.setattr(
        type(lm),
        "answer_ids",
        lambda self, answer: said[answer] if answer in said else [*said[answer[1:]][:-1], 3],
    )
    prompts = [prompt for prompt in PROMPTS for _ in (1, 4)]
    assert all(recall(lm, prompts, list(said), batch_size=3).correct)
    assert not any(recall(lm, prompts, [f"!{key}" for key in said]).correct)


@pytest.mark.parametrize("batch_size", [1, 3, 128])
def test_one_update_a_row_equals_applied(any_lm, batch_size):
    """A shared beginning, updates shared by some rows, none for one; whatever the batch."""
    lm, (a, b) = any_lm, (small(any_lm, 1), small(any_lm, 2, (2, 3)))
    before, updates = bits(lm), [a, b, None, a]
    prompts, answers = (
        [SHARED + prompt for prompt in PROMPTS],
        ["Paris", "basketball", "tennis", "Shakespeare"],
    )
    texts = generate(lm, prompts, updates, 6, never, batch_size)
    found = recall(lm, prompts, answers, updates, batch_size)
    assert same_bits(lm, before)
    for i, update in enumerate(updates):
        with applied(lm, update or Update()):
            assert texts[i] == lm.tokenizer.decode(
                plain(lm, prompts[i], 6), skip_special_tokens=True
            )
            alone = recall(lm, prompts[i : i + 1], answers[i : i + 1])
        assert found.correct[i] == alone.correct[0] and found.logprob[i] == pytest.approx(
            alone.logprob[0], rel=1e-3
        )
    assert len(set(texts)) > 1


def test_generation_stops_at_until_and_at_the_end(tiny):
    lm = tiny("llama")
    free = generate(lm, PROMPTS, max_new_tokens=8, until=never)
    cut = generate(lm, PROMPTS, max_new_tokens=8, until=lambda text: len(text) >= 4)
    assert (
        all(
            text.startswith(part) and len(part) >= min(4, len(text))
            for part, text in zip(cut, free, strict=True)
        )
        and cut != free
    )
    lm.head.weight.data.zero_()  # equal logits: the arg-max is token 0, the end
    assert generate(lm, PROMPTS, max_new_tokens=8) == [""] * 4
    assert generate(lm, []) == [] and recall(lm, [], []) == ([], [])


def test_answers_of_chains_of_thought(tiny, monkeypatch):
    texts = [
        " A. B.\nAnswer: Paris\n\nQuestion: x",
        " nothing",
        "Answer:",
        " t\nAnswer: New York",
        " t\nAnswer:\nOslo\n",
        "Answer: \n",
    ]
    monkeypatch.setattr("acelib.measures.known.generate", lambda *_: texts)
    assert multi_hop(tiny("gpt2"), PROMPTS + PROMPTS[:2]) == [
        "Paris",
        "",
        "",
        "New York",
        "Oslo",
        "",
    ]
    assert [first_answer(text) for text in texts] == [True, False, False, False, True, False], (
        "an answer on the next line counts"
    )


def test_refusals(tiny):
    lm = tiny("gptj")
    with pytest.raises(ValueError, match="2 prompts, 1 answers"):
        recall(lm, PROMPTS[:2], ["a"])
    with pytest.raises(ValueError, match="1 updates"):
        recall(lm, PROMPTS[:2], ["a", "b"], [None])
    with pytest.raises(ValueError, match="2 prompts, 1 updates"):
        generate(lm, PROMPTS[:2], [None])
    with pytest.raises(ValueError, match="empty"):
        recall(lm, PROMPTS[:1], [" "])
    for ask in (lambda: recall(lm, ["a", ""], ["b", "c"]), lambda: generate(lm, ["a", ""])):
        with pytest.raises(ValueError, match="prompt 1 is empty"):
            ask()
    for ask in (
        lambda: recall(lm, ["a", "a b " * 400], ["b", "c"]),
        lambda: generate(lm, ["a", "a b " * 400]),
    ):
        with pytest.raises(
            ValueError, match="prompt 1 has .* tokens, .*model 'tiny-gptj' reads 256 at most"
        ):
            ask()
    long = "a b " * 60
    room = 256 - len(lm.tokenizer(long)["input_ids"])
    generate(lm, [long], max_new_tokens=room + 1)  # the last token is written, not read
    for ask in (
        lambda: generate(lm, [long], max_new_tokens=room + 2),
        lambda: recall(lm, [long], ["b c " * room]),
    ):
        with pytest.raises(
            ValueError,
            match="prompt 0 has .* tokens, and .* are to follow; model 'tiny-gptj' reads 256",
        ):
            ask()
    assert not any(m._forward_hooks for m in lm.model.modules())


@pytest.mark.parametrize("edited", [False, True])
def test_shared_beginnings_and_rows_that_are_done_change_nothing(any_lm, edited):
    """Several questions after each beginning, updates, answers of many lengths: as one by one."""
    lm, other = (
        any_lm,
        "The author of Hamlet is William Shakespeare\n\nThe capital of France is Paris\n\n",
    )
    prompts = [
        SHARED + PROMPTS[0],
        SHARED + PROMPTS[1],
        other + PROMPTS[0],
        other + PROMPTS[2],
        PROMPTS[2],
        SHARED + PROMPTS[3],
        "a",
    ]
    one, two = small(lm, 1), small(lm, 2)
    updates = [one, one, one, two, two, two, None] if edited else None

    def done(text):
        return len(text) > 12

    wanted = [
        generate(lm, [prompt], [updates[i]] if edited else None, 16, done)[0]
        for i, prompt in enumerate(prompts)
    ]
    assert (
        generate(lm, prompts, updates, 16, done) == wanted
        and len({len(text) for text in wanted}) > 1
    )
    for prompt, text, update in zip(prompts, wanted, updates or [None] * len(prompts), strict=True):
        with applied(lm, update or Update()):
            new = plain(lm, prompt, 16)
        assert lm.tokenizer.decode(new).startswith(text)
