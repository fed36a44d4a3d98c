from random import Random

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from acelib.model.states import Site, trace
from acelib.model.update import (
    Factors,
    Update,
    applied,
    commit,
    overlaid,
    save_pretrained,
    save_tensors,
)


def random_update(lm, layers=(1, 2), rank=2, seed=0, attn=(), **kw):
    """Changes of the FFNs of ``layers``, and of the attention of the layers ``attn``."""
    g = torch.Generator().manual_seed(seed)

    def factors(part, some):
        return {
            i: Factors(
                *(
                    torch.randn(s, rank, dtype=torch.float64, generator=g).to(lm.dtype)
                    for s in (lm.d_model, lm.width(part))
                )
            )
            for i in some
        }

    return Update(factors("mlp", layers), attn=factors("attn", attn), model=lm.fingerprint, **kw)


def logits(lm, texts):
    ids, mask = lm.encode(texts)
    with torch.no_grad():
        return lm.model(input_ids=ids, attention_mask=mask).logits, mask.bool()


def bits(lm):
    return {k: v.clone() for k, v in lm.model.state_dict().items()}


def same_bits(lm, before):
    return all(torch.equal(v, before[k]) for k, v in lm.model.state_dict().items())


TEXTS = ["The capital of France is", "Tim Duncan plays", "Apple"]


#: layers whose attention two updates change, beside FFNs
ATTN = pytest.mark.parametrize("attn", [((), ()), ((1, 3), (0, 1))], ids=["ffn", "both"])


@ATTN
@pytest.mark.parametrize("rank", [3, 32], ids=["low", "full"])
def test_overlay_equals_applied_row_by_row(any_lm, rank, attn):
    a = random_update(any_lm, attn=attn[0])
    b = random_update(any_lm, (2, 3), rank=rank, seed=1, attn=attn[1])
    before = bits(any_lm)
    with overlaid(any_lm, [a, None, b]):
        mixed, mask = logits(any_lm, TEXTS)
    assert same_bits(any_lm, before)
    for row, update in enumerate([a, Update(), b]):
        with applied(any_lm, update):
            alone, _ = logits(any_lm, TEXTS)
        torch.testing.assert_close(
            mixed[row][mask[row]], alone[row][mask[row]], rtol=1e-6, atol=1e-8
        )
    with overlaid(any_lm, [a]):
        shared, _ = logits(any_lm, TEXTS)
    with applied(any_lm, a):
        torch.testing.assert_close(
            shared[mask], logits(any_lm, TEXTS)[0][mask], rtol=1e-6, atol=1e-8
        )


def test_sum_is_both_and_norms(any_lm):
    a, b = random_update(any_lm), random_update(any_lm, (2, 3), seed=1)
    assert (a + b).layers == (1, 2, 3)
    torch.testing.assert_close((a + b).delta(2), a.delta(2) + b.delta(2))
    assert (a + b).norms()[2] == pytest.approx((a.delta(2) + b.delta(2)).norm().item())
    with pytest.raises(ValueError, match="layer 0"):
        a.delta(0)


def test_an_update_of_attention_moves_its_output_by_what_it_says(any_lm):
    """A changed output projection adds dW times its input to attention's output, nothing else."""
    lm, update = any_lm, random_update(any_lm, (), attn=(2,))
    ids, mask = lm.encode(TEXTS[:1])
    sites = [Site("heads", 2), Site("attn", 2), Site("key", 1)]
    before = trace(lm, ids, mask, sites)
    with applied(lm, update):
        after = trace(lm, ids, mask, sites)
    change = before["heads", 2] @ update.delta(2, "attn").T
    torch.testing.assert_close(after["attn", 2], before["attn", 2] + change)
    torch.testing.assert_close(after["key", 1], before["key", 1], rtol=0, atol=0)
    assert change.norm() > 0 and update.layers == (2,)
    with pytest.raises(ValueError, match="layer 2 is not changed"):
        update.delta(2)


def test_sums_and_norms_of_both_parts(any_lm):
    a = random_update(any_lm, (1,), attn=(1, 2))
    b = random_update(any_lm, (3,), attn=(0, 2), seed=1)
    total = a + b
    assert list(total.factors) == [1, 3] and list(total.attn) == [0, 1, 2]
    torch.testing.assert_close(total.delta(2, "attn"), a.delta(2, "attn") + b.delta(2, "attn"))
    torch.testing.assert_close(total.delta(3), b.delta(3))
    changes = [total.delta(i) for i in (1, 3)] + [total.delta(i, "attn") for i in (0, 1, 2)]
    assert total.norm() == pytest.approx(sum(dW.square().sum().item() for dW in changes) ** 0.5)
    assert total.norms("attn")[2] == pytest.approx(total.delta(2, "attn").norm().item())


def test_ranks_of_a_sum_do_not_grow_beyond_the_width(tiny):
    lm = tiny("gptj")
    many = [random_update(lm, (1,), rank=12, seed=seed) for seed in range(5)]
    total = sum(many[1:], many[0])
    assert [sum(many[1:n], many[0]).factors[1].left.shape[1] for n in (1, 2, 3, 5)] == [
        12,
        24,
        lm.d_model,
        lm.d_model,
    ]
    torch.testing.assert_close(total.delta(1), sum(u.delta(1) for u in many))
    assert total.norms()[1] == pytest.approx(total.delta(1).norm().item())


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@ATTN
def test_applied_restores_the_very_bits(tiny, error, dtype, attn):
    lm = tiny("gpt2", dtype)
    before, name, update = bits(lm), lm.fingerprint, random_update(lm, attn=attn[0])
    try:
        with applied(lm, update):
            assert not same_bits(lm, before) and lm.fingerprint != name
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        pass
    assert same_bits(lm, before) and lm.fingerprint == name


def test_interrupted_writing_restores(tiny, monkeypatch):
    lm = tiny("llama")
    before, update, calls = bits(lm), random_update(lm, (1,), attn=(1,)), []
    real = torch.Tensor.copy_

    def interrupted(self, other):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, other)

    monkeypatch.setattr(torch.Tensor, "copy_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        commit(lm, update)
    assert same_bits(lm, before)


def test_commit_stays_and_changes_the_fingerprint(tiny):
    lm = tiny("gptj")
    name, update = lm.fingerprint, random_update(lm, attn=(3,))
    W, A = lm.weight(1).clone(), lm.weight(3, "attn").clone()
    commit(lm, update)
    assert lm.fingerprint != name
    torch.testing.assert_close(lm.weight(1), W + update.delta(1))
    torch.testing.assert_close(lm.weight(3, "attn"), A + update.delta(3, "attn"))


@ATTN
def test_save_load(tiny, tmp_path, attn):
    lm, path = tiny("qwen3"), tmp_path / "u.safetensors"
    update = random_update(lm, editor="X", attn=attn[0])
    update.save(path)
    back = Update.load(path, lm)
    assert back.layers == update.layers and back.editor == "X" and back.model == lm.fingerprint
    for part, layers in (("mlp", (1, 2)), ("attn", attn[0])):
        assert tuple(back.changes(part)) == layers
        assert all(
            torch.equal(x, y)
            for i in layers
            for x, y in zip(back.changes(part)[i], update.changes(part)[i], strict=True)
        )
    assert [p.name for p in tmp_path.iterdir()] == ["u.safetensors"]
    with pytest.raises(ValueError, match="was made for the model"):
        Update.load(path, tiny("qwen3", seed=1))
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="not a saved update"):
        Update.load(path, lm)


def test_a_file_from_before_attention_was_written_loads(tiny, tmp_path):
    """The names and the metadata of those files, written out."""
    lm, path = tiny("gpt2"), tmp_path / "u.safetensors"
    update = random_update(lm, (1,))
    tensors = {"left.1": update.factors[1].left, "right.1": update.factors[1].right}
    save_tensors(path, tensors, dict(model=lm.fingerprint, editor="MEMIT", edits=[]))
    back = Update.load(path, lm)
    assert torch.equal(back.delta(1), update.delta(1)) and not back.attn


MADE = dict(editor="X", edits=[], model="0123456789abcdef")


@pytest.mark.parametrize(
    "tensors, meta",
    [
        ({}, {}),
        ({}, MADE | dict(edits=["France"])),
        ({}, MADE | dict(edits=[dict(capital="Paris")])),
        ({}, MADE | dict(edits=[dict(subject="France", prompt="no slot", target_new="Rome")])),
        ({"left.1": torch.zeros(32, 1)}, MADE),
        ({"left.one": torch.zeros(32, 1)}, MADE),
        ({"attn.left.1": torch.zeros(32, 1)}, MADE),
        ({"mlp.left.1": torch.zeros(32, 1), "mlp.right.1": torch.zeros(48, 1)}, MADE),
    ],
)
def test_another_file_is_not_an_update(tiny, tmp_path, tensors, meta):
    save_tensors(tmp_path / "u.safetensors", tensors, meta)
    with pytest.raises(ValueError, match="u.safetensors' is not a saved update"):
        Update.load(tmp_path / "u.safetensors", tiny("gpt2"))


def test_a_file_of_something_else_is_not_an_update(tiny, tmp_path):
    lm, path = tiny("gpt2"), tmp_path / "u.safetensors"
    for meta in (None, {"acelib": "{no json"}):
        save_file({"left.1": torch.zeros(32, 1)}, path, meta)
        with pytest.raises(ValueError, match="u.safetensors' is not a saved update"):
            Update.load(path, lm)
    with pytest.raises(ValueError, match="none' is not a saved update"):
        Update.load(tmp_path / "none", lm)
    with pytest.raises(ValueError, match="is a folder; name a file"):
        random_update(lm).save(tmp_path)


def test_a_changed_bit_is_found_wherever_it_is(tiny, tmp_path):
    lm, path = tiny("gpt2"), tmp_path / "u.safetensors"
    random_update(lm, (1,), attn=(2,)).save(path)
    whole, rng = path.read_bytes(), Random(0)
    for _ in range(100):
        damaged, at = bytearray(whole), rng.randrange(len(whole))
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="u.safetensors' (is not a saved update|was made for)"):
            Update.load(path, lm)


@pytest.mark.parametrize(
    "left, right, said",
    [
        (torch.full((32, 1), torch.nan), torch.ones(48, 1), "left holds a number that is not fin"),
        (torch.ones(32, 1), torch.full((48, 1), torch.inf), "right holds a number that is not fin"),
        (torch.ones(32), torch.ones(48), "are no matrices"),
        (torch.ones(32, 1, dtype=torch.long), torch.ones(48, 1), "left is torch.int64, no tensor"),
        ([[1.0]] * 32, torch.ones(48, 1), "left is list, no tensor of floating-point numbers"),
        (torch.ones(32, 2), torch.ones(48, 1), r"factors \(32, 2\), \(48, 1\) do not fit"),
    ],
)
def test_what_is_no_finite_matrix_is_refused_before_a_weight_is_touched(tiny, left, right, said):
    lm = tiny("gpt2")
    before, update = bits(lm), Update({1: Factors(left, right)})
    for use in (commit, applied, lambda lm, update: overlaid(lm, [update])):
        with pytest.raises(ValueError, match=f"layer 1 of the update: .*{said}"), use(lm, update):
            pass
    assert same_bits(lm, before)


@pytest.mark.parametrize("family", ["gptj", "qwen3"])
def test_an_edited_model_loads_in_plain_transformers(tiny, tmp_path, family):
    lm, folder = tiny(family, dtype=torch.float32), tmp_path / "new" / "edited"
    before, update = bits(lm), random_update(lm, attn=(0,))
    save_pretrained(lm, update, folder)
    assert same_bits(lm, before) and [p.name for p in folder.parent.iterdir()] == ["edited"]
    plain, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder),
    )
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    with applied(lm, update):
        torch.testing.assert_close(plain(ids).logits, lm.model(ids).logits, rtol=0, atol=0)
    with pytest.raises(ValueError, match="exists"):
        save_pretrained(lm, update, folder)


def test_refusals_leave_the_model(tiny):
    lm = tiny("gpt2")
    before = bits(lm)
    wrong = Update({0: Factors(torch.zeros(3, 1), torch.zeros(lm.d_mlp, 1))})
    as_ffn = Update(attn={0: Factors(torch.zeros(lm.d_model, 1), torch.zeros(lm.d_mlp, 1))})
    with pytest.raises(ValueError, match="layer 0 of the update of attention: .* do not fit"):
        commit(lm, as_ffn)
    for use in (
        lambda: commit(lm, wrong),
        lambda: applied(lm, wrong).__enter__(),
        lambda: overlaid(lm, [wrong]).__enter__(),
        lambda: commit(lm, random_update(lm, (9,))),
    ):
        with pytest.raises(ValueError):
            use()
    a = random_update(lm)
    with pytest.raises(ValueError, match="3 rows, the overlay 2"), overlaid(lm, [a, None]):
        logits(lm, TEXTS)
    assert same_bits(lm, before) and not any(
        lm.output(i, part)._forward_hooks for part in ("mlp", "attn") for i in range(lm.n_layers)
    )
