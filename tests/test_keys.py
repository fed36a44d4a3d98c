import pytest
import torch
from test_update import random_update

from acelib.editing.keys import contexts, keys_at, prefix_weights, values_at
from acelib.editing.request import Request, request, requests, unique_requests
from acelib.model.states import chunked
from acelib.model.update import applied
from acelib.records import Edit

EDITS = [
    Edit("Tim Duncan", "{} plays the sport of", "football"),
    Edit("France", "The capital of {} is", "Hamlet"),
    Edit("Paris", "Paris and Paris: {}'s country, that is", "Apple"),
]


def token_of(lm, r):
    ids = lm.tokenizer(r.prompt)["input_ids"]
    return lm.tokenizer.decode(ids[: lm.token_at(r.prompt, r.end) + 1])


def test_lookup_tokens(tiny):
    lm = tiny("gpt2")
    assert [token_of(lm, r) for r in requests(EDITS)] == [
        "Tim Duncan",
        "The capital of France",
        "Paris and Paris: Paris",
    ]
    assert [token_of(lm, r) for r in requests(EDITS, "last")] == [
        r.prompt for r in requests(EDITS, "last")
    ]
    trailing = request(Edit("France", "The capital of {} is the city ", "Rome"), "last")
    assert trailing.prompt == "The capital of France is the city" and trailing.end == len(
        trailing.prompt
    )
    assert trailing.subject == "France"


def test_batches_of_edits():
    with pytest.raises(ValueError, match="no edit"):
        requests([])
    with pytest.raises(ValueError, match="'middle'.*allowed"):
        requests(EDITS, "middle")
    with pytest.raises(ValueError, match="conflicting.*football.*golf"):
        requests([EDITS[0], Edit("Tim Duncan", "{} plays the sport of", "golf")])
    assert len(requests([EDITS[0], EDITS[0]])) == 1
    assert (
        len(unique_requests([Request("a", 1, "x", 0), Request("a", 1, "y", 1)])) == 2
    )  # different groups do not conflict
    with pytest.raises(ValueError, match="only be edited at its last"):
        request(EDITS[0], prompt="The sport of X is")


def test_contexts_are_reproducible(tiny):
    lm = tiny("llama")
    texts = contexts(lm, 3, 8, seed=4)
    assert texts == contexts(lm, 3, 8, seed=4) != contexts(lm, 3, 8, seed=5)
    assert (
        texts[0] == ""
        and len(texts) == 4
        and all(t.endswith(". ") and "{" not in t for t in texts[1:])
    )
    assert prefix_weights(lm, texts).tolist() == pytest.approx(
        [1 / 2, 1 / 6, 1 / 6, 1 / 6]
    ) and prefix_weights(lm, [""]).tolist() == [1]
    with pytest.raises(ValueError, match="begin with the empty"):
        prefix_weights(lm, ("x",))


def plain(lm, text, end, layer):
    """Key, FFN output and block output of a whole forward of one text."""
    got = {}
    hooks = [
        lm.fc2(layer).register_forward_hook(lambda m, a, o: got.update(key=a[0], mlp=o)),
        lm.blocks[layer].register_forward_hook(
            lambda m, a, o: got.update(out=o[0] if isinstance(o, tuple) else o)
        ),
    ]
    with torch.no_grad():
        lm.model(torch.tensor([lm.tokenizer(text)["input_ids"]]))
    for hook in hooks:
        hook.remove()
    return {k: v[0, lm.token_at(text, end)] for k, v in got.items()}


@pytest.mark.parametrize("edited", [False, True])
def test_keys_and_values_are_those_of_whole_forwards(any_lm, edited):
    lm, prefixes = any_lm, ("", "The. ", "Because golf. ")
    given = [r for g, e in enumerate(EDITS) for r in requests([e], group=g)]
    updates = [random_update(lm, seed=g) for g in range(3)] if edited else None
    for layer in (0, 2, 3):
        K = keys_at(lm, given, layer, prefixes, updates)
        for i, r in enumerate(given):

            def expected():
                keys = [plain(lm, p + r.prompt, len(p) + r.end, layer)["key"] for p in prefixes]
                return keys[0] / 2 + keys[1] / 4 + keys[2] / 4, plain(lm, r.prompt, r.end, layer)

            if edited:
                with applied(lm, updates[i]):
                    key, now = expected()
            else:
                key, now = expected()
            torch.testing.assert_close(K[:, i], key, rtol=1e-5, atol=1e-6)
            for kind in ("mlp", "out"):
                torch.testing.assert_close(
                    values_at(lm, given, layer, kind, updates)[:, i],
                    now[kind],
                    rtol=1e-5,
                    atol=1e-6,
                )
    with pytest.raises(ValueError, match="layer 4"):
        keys_at(lm, given, 4)
    with pytest.raises(ValueError, match="'attn'"):
        values_at(lm, given, 1, "attn")


def test_chunks_halve_when_memory_runs_out():
    seen = []

    def work(piece):
        if len(piece) > 3:
            raise torch.OutOfMemoryError
        seen.extend(piece)
        return len(piece)

    assert sum(chunked(work, 17, 16)) == 17 and seen == list(range(17))
    with pytest.raises(torch.OutOfMemoryError):
        chunked(lambda piece: (_ for _ in ()).throw(torch.OutOfMemoryError()), 2, 2)
