import pytest
import torch
from test_keys import EDITS
from test_update import bits, random_update, same_bits
from transformers import DynamicCache

from acelib.bench import released
from acelib.bench.released_check import PARTS, in_float64, search
from acelib.editing import search as targets
from acelib.editing.keys import aligned
from acelib.editing.request import Request, request, requests
from acelib.editing.search import Objective, target_vectors
from acelib.editing.tail import Tail, frozen_outputs, rows_that_fit, shared_start
from acelib.model.states import Site, read, trace
from acelib.model.update import Update, applied

BLOCK = Objective(steps=9, lr=0.1, decay=0.3, clamp=2.0, kl=0.5, floor=None)
PMET = Objective(kind="pmet", steps=9, lr=0.1, decay=0.3, clamp=2.0, kl=1.0, floor=None)


def compare(lm, given, layer, objective, prefixes, updates=None):
    """With the released loop: one fact, whole model, whole logits, one row at a time."""
    modules = [released.module(lm, part, layer) for part in PARTS[objective.kind]]
    with in_float64():
        got = target_vectors(lm, given, layer, objective, prefixes, updates)
        for i, r in enumerate(given):
            with applied(lm, updates[r.group] if updates else Update()):
                ask = released.Ask(r.prompt[: r.end], r.prompt[r.end :], r.target, r.subject)
                h_0, path, loss = released.target_vector(
                    lm, ask, modules, prefixes, **search(objective)
                )
            assert got.steps[i] == len(path) - 1 and got.loss[i].item() == pytest.approx(loss)
            torch.testing.assert_close(got.delta[:, i], path[-1], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(got.value[i], h_0[-1] + path[-1][-1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_ends_of_the_stack(any_lm, layer):
    before = bits(any_lm)
    compare(
        any_lm, requests(EDITS[:2], "last"), layer, PMET, ("",)
    )  # above the last layer an earlier token has no say
    compare(
        any_lm, [Request("T", 1, "golf", subject="T")], layer, BLOCK, ("",)
    )  # nothing before the lookup token
    assert same_bits(any_lm, before)


def test_a_push_that_reaches_no_label_stays_zero(any_lm):
    """In the last layer, before the prompt's end; the KL's gradient there is rounding."""
    given = [Request("The capital of Oz is", len("The capital of Oz"), "golf", subject="Oz")]
    last, at_the_end = any_lm.n_layers - 1, requests(EDITS[:1], "last")
    for objective in (BLOCK, PMET):
        got = target_vectors(any_lm, given + at_the_end, last, objective, ("", "Well. "))
        assert not got.delta[:, 0].any() and got.steps.tolist() == [0, objective.steps - 1]
        assert got.delta[:, 1].norm() > 0.1 and got.nll[0] > 0 and got.kl[0] == 0
    below = target_vectors(any_lm, given, last - 1, BLOCK)
    assert below.delta.any() and below.steps.tolist() == [BLOCK.steps - 1]


def test_on_an_edited_model_group_by_group(any_lm):
    given = [r for g, e in enumerate(EDITS) for r in requests([e], group=g)]
    updates = [random_update(any_lm, (0, 1, 2, 3), seed=g) for g in range(3)]
    compare(any_lm, given, 1, Objective(kind="pmet", steps=4, lr=0.05, floor=None), ("",), updates)


def test_a_push_stays_in_its_ball(tiny):
    lm = tiny("llama")
    got = target_vectors(lm, requests(EDITS), 1, Objective(steps=30, lr=0.5, clamp=0.1, floor=None))
    start = got.value - got.delta[0]
    assert (got.delta[0].norm(dim=-1) <= 0.1 * start.norm(dim=-1) * (1 + 1e-9)).all()


def test_chunks_and_float32(tiny):
    lm, given = tiny("qwen3"), requests(EDITS)
    whole, parts = (target_vectors(lm, given, 1, BLOCK, rows=rows) for rows in (512, 1))
    torch.testing.assert_close(whole.value, parts.value)
    assert parts.delta.shape == (1, 3, lm.d_model) and parts.loss.shape == (3,)
    lm32 = tiny("qwen3", torch.float32)
    with torch.inference_mode():
        single = target_vectors(lm32, given, 1, BLOCK)
    torch.testing.assert_close(single.value.double(), whole.value, rtol=1e-2, atol=1e-2)
    half = target_vectors(tiny("qwen3", torch.bfloat16), given, 1, BLOCK)
    assert half.value.dtype == torch.float32 and half.value.isfinite().all()


def test_refusals(tiny):
    lm = tiny("gptj")
    for bad, match in (
        ({"kind": "x"}, "'x'"),
        ({"steps": 0}, "steps 0"),
        ({"steps": 2.5}, "steps 2.5"),
        ({"lr": 0}, "lr 0"),
        ({"kl": -1}, "kl -1"),
        ({"clamp": 0}, "clamp 0"),
    ):
        with pytest.raises(ValueError, match=match):
            Objective(**bad)
    with pytest.raises(ValueError, match="layer 9"):
        target_vectors(lm, requests(EDITS), 9, BLOCK)
    with pytest.raises(ValueError, match="no request"):
        target_vectors(lm, [], 1, BLOCK)
    lm.embed.weight.data[lm.tokenizer(" Paris")["input_ids"][-1]] = float("nan")
    with pytest.raises(ValueError, match="Paris is.*-> 'golf' is not finite"):
        target_vectors(lm, [request(EDITS[0]), Request("In Paris is", 8, "golf")], 1, BLOCK)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


def test_a_model_that_was_traced_gives_the_same_targets(any_lm):
    """nnsight binds a forward of its own to the stack; a partial stack must run its own."""
    given = requests(EDITS)
    before = target_vectors(any_lm, given, 1, BLOCK)
    _ = any_lm.traced
    torch.testing.assert_close(
        target_vectors(any_lm, given, 1, BLOCK).value, before.value, rtol=0, atol=0
    )


def test_batches_are_halved_when_memory_runs_out(tiny, monkeypatch):
    lm, given, sizes = tiny("gptj"), requests(EDITS), []
    whole = target_vectors(lm, given, 1, BLOCK)

    class Scarce(targets._Search):
        def __init__(self, lm, given, *args):
            sizes.append(len(given))
            if len(given) > 1:
                raise torch.OutOfMemoryError("no memory")
            super().__init__(lm, given, *args)

    monkeypatch.setattr(targets, "_Search", Scarce)
    torch.testing.assert_close(
        target_vectors(lm, given, 1, BLOCK).value, whole.value, rtol=2e-4, atol=2e-4
    )
    assert sizes == [3, 1, 1, 1]


def test_a_batch_shrinks_with_what_a_prompt_needs(tiny):
    narrow, wide = tiny("gptj"), tiny("gptj", d_model=64, d_mlp=96)
    base = rows_that_fit(narrow, 1, 8, 20)
    assert (
        base > rows_that_fit(wide, 1, 8, 20) >= 1
        and base > rows_that_fit(narrow, 0, 8, 20)
        and base > rows_that_fit(narrow, 1, 80, 20)
    )
    assert rows_that_fit(tiny("gptj", n_layers=8), 1, 10**9, 10**9) == 1


def test_shared_beginnings_stand_in_the_first_columns(tiny):
    rows = [([5, 6, 7, 8], 2), ([5, 6, 9], 2), ([5, 6, 7], 1), ([1, 2, 3], 2)]
    batch, shared, first, like = shared_start(tiny("gptj"), rows, ["a", "a", "b", ""])
    assert (shared, batch.at, first.tolist(), like.tolist()) == (2, 4, [0, 2], [0, 0, 1, 0])
    assert [batch.ids[i][batch.mask[i].bool()].tolist() for i in range(4)] == [
        ids for ids, _ in rows
    ]
    assert [batch.ids[i, batch.at].item() for i in range(4)] == [ids[at] for ids, at in rows]
    batch, shared, first, like = shared_start(tiny("gptj"), rows, [""] * 4)
    assert (shared, batch.at, len(first)) == (0, 2, 0)


def test_what_is_skipped_is_what_a_push_cannot_change(any_lm):
    """The part equals the whole model: states where they are read, gradient of a push."""
    texts, layer = ("Tim Duncan plays the sport", "The capital of France is"), 0
    batch = aligned(any_lm, [(any_lm.tokenizer(text)["input_ids"], 2) for text in texts])
    tail, push = (
        batch.inputs(slice(batch.at, None)),
        torch.randn(2, any_lm.d_model, dtype=any_lm.dtype),
    )
    past = DynamicCache()
    with torch.no_grad():
        any_lm.stack(
            input_ids=batch.ids[:, : batch.at],
            **batch.inputs(slice(0, batch.at)),
            past_key_values=past,
            use_cache=True,
        )
        frozen = [(slot.keys, slot.values) for slot in past.layers]
        with read(any_lm, [Site("out", layer)]) as values, frozen_outputs(any_lm, layer) as kept:
            any_lm.between(0, layer + 1)(
                input_ids=batch.ids[:, batch.at :], **tail, past_key_values=past, use_cache=True
            )
    hidden, rows = values["out", layer], torch.arange(2)
    width = hidden.shape[1]
    places = torch.tensor([0, 2, width + 1])
    part = Tail(any_lm, layer, batch, rows, hidden, frozen, kept, places)
    wanted, found = [], []
    for out, narrow in ((wanted, False), (found, True)):
        delta = push.clone().requires_grad_()
        if narrow:
            states = part(hidden[:, 0] + delta)
        else:

            def add(_, args, h):
                h_ = (h[0] if isinstance(h, tuple) else h).clone()
                h_[:, batch.at] = h_[:, batch.at] + delta
                return (h_, *h[1:]) if isinstance(h, tuple) else h_

            hook = any_lm.blocks[layer].register_forward_hook(add)
            states = any_lm.stack(
                input_ids=batch.ids, **batch.inputs(), use_cache=False
            ).last_hidden_state
            states = states[:, batch.at :].flatten(0, 1)[places]
            hook.remove()
        states.square().sum().backward()
        out += [states.detach(), delta.grad]
    torch.testing.assert_close(
        found, wanted, **dict.fromkeys(("rtol", "atol"), 2e-4 if any_lm.family.parallel else 1e-9)
    )
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in any_lm.model.modules())


def test_attention_and_ffn_get_one_vector_in_a_parallel_block_and_two_in_a_sequential(any_lm):
    """Without decay and ball, which know the sizes of the two outputs, nothing tells them apart
    where both are added to what they both read.
    """
    objective = Objective(kind="pmet", steps=6, decay=0.0, clamp=None)
    attn, ffn = target_vectors(any_lm, requests(EDITS), 1, objective).delta
    if any_lm.family.parallel:
        assert torch.equal(attn, ffn) and attn.norm() > 0
    else:
        assert (attn - ffn).norm() > 1e-3 * ffn.norm()


def test_the_whole_of_a_search_is_what_the_block_then_gives(any_lm):
    """Pushed at both places, the block's output is the one with attention as it is and the FFN at
    ``whole``; in a parallel block that is F_0 and both vectors.
    """
    lm, given = any_lm, requests(EDITS)
    found = target_vectors(lm, given, 1, Objective(kind="pmet", steps=6, lr=0.5))
    for i, r in enumerate(given):
        ids, mask = lm.encode([r.prompt])
        at = lm.token_at(r.prompt, r.end)

        def pushed(delta):
            def push(state):
                new = state.clone()
                new[:, at] += delta
                return new

            return push

        patches = {
            Site(part, 1): pushed(found.delta[j, i]) for j, part in enumerate(("attn", "mlp"))
        }
        out = trace(lm, ids, mask, [Site("out", 1)], patches)["out", 1][0, at]
        states = trace(lm, ids, mask, [Site("in", 1), Site("attn", 1)])
        middle = (states["in", 1] + states["attn", 1])[0, at]
        torch.testing.assert_close(middle + found.whole[i], out, rtol=1e-6, atol=1e-6)
        if lm.family.parallel:
            torch.testing.assert_close(found.whole[i], found.value[i] + found.delta[0, i])
    block = target_vectors(lm, given, 1, BLOCK)
    assert torch.equal(block.whole, block.value)
