import pytest
import torch

from acelib.editing.moments import LEAST, Moments, second_moments

TEXTS = [
    "The capital of France is Paris.",
    "Tim Duncan plays the sport of basketball",
    "golf",
    "Steve Jobs founded Apple",
] * 5


def plain(lm, layer):
    keys = []
    hook = lm.fc2(layer).register_forward_pre_hook(lambda m, a: keys.append(a[0][0]))
    with torch.no_grad():
        for text in TEXTS:
            lm.model(torch.tensor([lm.tokenizer(text)["input_ids"]]))
    hook.remove()
    X = torch.cat(keys).double()
    return X.T @ X / len(X), len(X)


def test_one_pass_equals_text_by_text(any_lm, tmp_path):
    seen = []
    moments = second_moments(any_lm, TEXTS, (2, 0), tmp_path, lambda *p: seen.append(p), budget=60)
    for layer in (0, 2):
        C, count = plain(any_lm, layer)
        torch.testing.assert_close(moments[layer], C, rtol=1e-5, atol=1e-8)
        assert moments.tokens == count
    assert seen[-1] == (len(TEXTS), len(TEXTS)) and moments.model == any_lm.fingerprint
    with pytest.raises(ValueError, match="layer 1"):
        moments[1]


def test_cache(tiny, tmp_path, monkeypatch):
    lm = tiny("gpt2")
    first = second_moments(lm, TEXTS, (0, 1), tmp_path)
    monkeypatch.setattr("acelib.editing.moments._accumulate", None)
    assert torch.equal(second_moments(lm, TEXTS, (1,), tmp_path)[1], first[1])
    monkeypatch.undo()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    flipped = files[1].read_bytes()[:-1] + bytes([files[1].read_bytes()[-1] ^ 1])
    for rubbish in (b"rubbish", files[0].read_bytes()[:200], b"", flipped):
        files[1].write_bytes(rubbish)
        with pytest.warns(UserWarning, match="no second moment .*it is computed again"):
            assert torch.equal(second_moments(lm, TEXTS, (0, 1), tmp_path)[1], first[1])
    second_moments(lm, TEXTS[:-1], (0,), tmp_path)
    second_moments(tiny("gpt2", seed=1), TEXTS, (0,), tmp_path)
    second_moments(tiny("gpt2", torch.float32), TEXTS, (0,), tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_solver(any_lm, tmp_path):
    moments = second_moments(any_lm, TEXTS, (1,), tmp_path)
    X = torch.randn(any_lm.d_mlp, 3, dtype=torch.float64)
    for weight in (2.0, 50.0):
        solved = moments.solver(1, weight)(X)
        torch.testing.assert_close(
            weight * (moments[1] @ solved + moments.ridge[1] * solved), X, rtol=1e-3, atol=1e-3
        )


def test_singular_moments_get_a_recorded_ridge():
    v = torch.randn(6, 2, dtype=torch.float64)
    moments = Moments(
        {
            0: v @ v.T,
            1: torch.eye(6, dtype=torch.float64),
            2: torch.zeros(6, 6, dtype=torch.float64),
        },
        1,
    )
    x = torch.randn(6, 1, dtype=torch.float64)
    least = LEAST * moments[0].diagonal().mean().item()
    with pytest.warns(UserWarning, match="layer 0 has rank 2 of 6 over 1 tokens.* More texts"):
        assert moments.solver(0, 1.0)(x).isfinite().all()
    assert (
        moments.rank(0) == 2
        and moments.condition(0) > 1e9
        and least <= moments.ridge[0] < 1.001 * least
    )
    torch.testing.assert_close(moments.solver(1, 4.0)(x), x / 4)
    assert moments.rank(1) == 6 and moments.condition(1) == 1.0 and moments.ridge[1] == 0.0
    with pytest.raises(ValueError, match="layer 2 is zero"):
        moments.solver(2, 1.0)
    with pytest.raises(ValueError, match="weight 0"):
        moments.solver(1, 0)


@pytest.mark.parametrize(
    "threshold, share, kept", [(0.5, None, 4), (5.0, None, 2), (None, 0.3, 4), (None, 1.0, 0)]
)
def test_projector(threshold, share, kept, monkeypatch):
    basis = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    moments, x = (
        Moments({0: (basis * torch.tensor([0.0, 1e-9, 1.0, 2.0, 8.0, 9.0]).double()) @ basis.T}, 1),
        torch.randn(6, 2).double(),
    )
    kept = {4: basis[:, 2:], 2: basis[:, 4:], 0: basis[:, :0]}[kept]
    expected = x - kept @ kept.T @ x
    torch.testing.assert_close(moments.projector(0, threshold, share)(x), expected)
    monkeypatch.setattr(torch.linalg, "eigh", None)  # found once
    torch.testing.assert_close(
        moments.projector(0, threshold, share)(x.float()), expected, rtol=1e-5, atol=1e-5
    )


def test_projector_refusals():
    moments = Moments({0: torch.eye(6).double(), 1: torch.full((6, 6), float("nan"))}, 1)
    for layer, given, match in (
        (0, {}, "give one of the two"),
        (0, dict(threshold=1.0, share=0.5), "give one of the two"),
        (0, dict(threshold=0.0), "threshold 0.0 must be positive"),
        (0, dict(share=1.5), "share 1.5"),
        (0, dict(threshold=0.5), "0 of the 6.*from 1 to 1"),
        (0, dict(threshold=2.0), "6 of the 6"),
        (0, dict(share=0.01), "0 of the 6"),
        (1, dict(share=0.5), "layer 1 is not finite"),
        (2, dict(share=0.5), "no second moment of layer 2"),
    ):
        with pytest.raises(ValueError, match=match):
            moments.projector(layer, **given)


def test_bad_input(tiny, tmp_path):
    lm = tiny("gpt2")
    for texts, layers, match in (
        ([], (0,), "no text"),
        (["a", ""], (0,), "text 1"),
        (TEXTS, (7,), "layer 7"),
    ):
        with pytest.raises(ValueError, match=match):
            second_moments(lm, texts, layers, tmp_path)


def test_moments_of_attention_are_those_of_what_its_projection_reads(any_lm, tmp_path):
    lm, keys = any_lm, []
    moments = second_moments(lm, TEXTS, (1,), tmp_path, attn=(0, 2))
    hook = lm.attn_out(2).register_forward_pre_hook(lambda m, a: keys.append(a[0][0]))
    for text in TEXTS:
        ids, mask = lm.encode([text])
        with torch.no_grad():
            lm.model(input_ids=ids, attention_mask=mask)
    hook.remove()
    K = torch.cat(keys).double()
    torch.testing.assert_close(moments.of("attn")[2], K.T @ K / len(K), rtol=1e-5, atol=1e-8)
    assert moments.of("mlp") is moments and set(moments.attn.matrices) == {0, 2}
    again = second_moments(lm, TEXTS, (1,), tmp_path, attn=(2,))
    assert torch.equal(again.attn[2], moments.attn[2]), "read from the cache"
    with pytest.raises(ValueError, match="no second moments of attention are given"):
        second_moments(lm, TEXTS, (1,), tmp_path).of("attn")
