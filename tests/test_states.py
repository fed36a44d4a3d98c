"""trace: what nnsight reads and writes is what plain hooks read and write, to the bit."""

import copy
import gc
import weakref

import pytest
import torch

from acelib.model.states import KINDS, Site, added, last, position_ids, read, replaced, trace

TEXTS = ("Tim Duncan plays the sport of", "The capital of France", "Apple")


def hooked(lm, ids, mask, patches):
    """The oracle: every site by plain hooks, with replacements."""
    states, hooks = {}, []

    def see(site, value):
        value, rest = (value[0], value[1:]) if isinstance(value, tuple) else (value, None)
        states[site] = value = patches[site](value) if site in patches else value
        return value if rest is None else (value, *rest)

    for layer, block in enumerate(lm.blocks):
        for kind, module in {
            "in": block,
            "heads": lm.attn_out(layer),
            "key": lm.fc2(layer),
        }.items():

            def before(_, args, kwargs, site=Site(kind, layer)):
                return (see(site, args[0]), *args[1:]), kwargs

            hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        for kind, module in {"attn": lm.attn(layer), "mlp": lm.mlp(layer), "out": block}.items():
            hooks.append(
                module.register_forward_hook(
                    lambda _, args, out, site=Site(kind, layer): see(site, out)
                )
            )
    logits = lm.model(
        input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False
    ).logits
    for hook in hooks:
        hook.remove()
    return states, logits


@pytest.mark.parametrize("side", ("left", "right"))
@pytest.mark.parametrize("patched", ((), ("heads", "mlp"), KINDS))
def test_every_site_and_patch_is_bit_equal_to_plain_hooks(any_lm, side, patched):
    ids, mask = any_lm.encode(TEXTS, side)
    sites = [Site(kind, layer) for layer in range(any_lm.n_layers) for kind in KINDS]
    patches = {Site(kind, 1): (lambda x: 0.5 * x + 0.1) for kind in patched}
    found = trace(any_lm, ids, mask, sites, patches, logits="all")
    states, logits = hooked(any_lm, ids, mask, patches)
    assert torch.equal(found[Site("logits", any_lm.n_layers)], logits)
    assert all(torch.equal(found[site], states[site]) for site in sites)


@pytest.mark.parametrize("kind", KINDS)
def test_read_and_replaced_are_trace_for_forwards_of_ones_own(any_lm, kind):
    lm, (ids, mask), site = any_lm, any_lm.encode(TEXTS), Site(kind, 1)
    patch = {site: lambda x: 0.5 * x + 0.1}
    wanted = trace(lm, ids, mask, [site, Site("out", 3)], patch)
    with torch.no_grad(), replaced(lm, patch), read(lm, [site, Site("out", 3)]) as states:
        lm.stack(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask))
    assert torch.equal(states["out", 3], wanted["out", 3])
    assert torch.equal(states[site], wanted[site])
    looked = []
    with torch.no_grad(), replaced(lm, {site: lambda x: looked.append(x)}):  # None: as it is
        plain = lm.stack(input_ids=ids, attention_mask=mask).last_hidden_state
    with torch.no_grad():
        assert torch.equal(plain, lm.stack(input_ids=ids, attention_mask=mask).last_hidden_state)
    assert len(looked) == 1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


@pytest.mark.parametrize("part, reads", [("mlp", "key"), ("attn", "heads")])
def test_what_is_added_to_a_part_depends_on_what_it_reads(any_lm, part, reads):
    lm, (ids, mask) = any_lm, any_lm.encode(TEXTS)
    matrix = torch.randn(lm.d_model, lm.width(part), dtype=lm.dtype)
    with added(lm, {(part, 2): lambda x: x @ matrix.T}):
        s = trace(lm, ids, mask, [Site(reads, 2), Site(part, 2)])
    torch.testing.assert_close(s[part, 2], lm.output(2, part)(s[reads, 2]) + s[reads, 2] @ matrix.T)


def test_the_sites_are_the_letters_of_the_paper(any_lm):
    lm, (ids, mask) = any_lm, any_lm.encode(TEXTS)
    s = trace(lm, ids, mask, [Site(kind, 2) for kind in KINDS])
    torch.testing.assert_close(s["in", 2] + s["attn", 2] + s["mlp", 2], s["out", 2])
    torch.testing.assert_close(lm.fc2(2)(s["key", 2]), s["mlp", 2])
    torch.testing.assert_close(lm.attn_out(2)(s["heads", 2]), s["attn", 2])
    assert s["key", 2].shape == (*ids.shape, lm.d_mlp) and s["heads", 2].shape[:2] == ids.shape


def test_padding_side_and_batch_do_not_matter(any_lm):
    sites = [Site("out", 3), Site("key", 1)]
    (ids, mask), (ids2, mask2) = any_lm.encode(TEXTS, "left"), any_lm.encode(TEXTS, "right")
    left = trace(any_lm, ids, mask, sites, logits="last", at=last(mask))
    right = trace(any_lm, ids2, mask2, sites, logits="last", at=last(mask2))
    for i, text in enumerate(TEXTS):
        ids, mask = any_lm.encode([text])
        alone = trace(any_lm, ids, mask, sites, logits="last", at=last(mask))
        for site, value in alone.items():
            torch.testing.assert_close(left[site][i], value[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(right[site][i], value[0], rtol=1e-5, atol=1e-5)


def test_only_what_is_asked_for_is_computed(any_lm):
    ids, mask = any_lm.encode(TEXTS)
    ran = []
    hook = any_lm.blocks[2].register_forward_hook(lambda *_: ran.append(1))
    found = trace(any_lm, ids, mask, [Site("out", 1)])
    assert list(found) == [Site("out", 1)] and not ran
    last_logits = trace(any_lm, ids, mask, logits="last")["logits", any_lm.n_layers]
    hook.remove()
    every = trace(any_lm, ids, mask, logits="all")["logits", any_lm.n_layers]
    torch.testing.assert_close(last_logits, every[range(3), last(mask)])


def test_a_failing_patch_leaves_the_model_usable(any_lm):
    ids, mask = any_lm.encode(TEXTS)
    before = trace(any_lm, ids, mask, logits="all")["logits", any_lm.n_layers]
    with pytest.raises(RuntimeError, match="size"):
        trace(any_lm, ids, mask, patches={Site("mlp", 0): lambda x: x[..., :3]}, logits="all")
    assert torch.equal(before, trace(any_lm, ids, mask, logits="all")["logits", any_lm.n_layers])


def test_the_wrapper_dies_with_its_model_and_is_not_copied(tiny):
    lm = tiny("gptj")
    ids, mask = lm.encode(TEXTS)
    trace(lm, ids, mask, logits="all")
    twin = copy.deepcopy(lm)
    assert "traced" not in vars(twin)
    twin.fc2(0).weight.data.zero_()
    assert (
        float(trace(twin, ids, mask, [Site("mlp", 0)])["mlp", 0].sub(twin.fc2(0).bias).abs().max())
        == 0
    )
    alive = weakref.ref(lm.model)
    del lm
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    "bad, words",
    (
        (dict(sites=[Site("ffn", 0)]), "'ffn'.*'?in"),
        (dict(sites=[Site("out", 4)]), "layer 4.*0 to 3"),
        (dict(patches={Site("out", -1): abs}), "layer -1"),
        (dict(logits="first"), "'first'.*'last'"),
    ),
)
def test_bad_input_is_named(tiny, bad, words):
    lm = tiny("gpt2")
    with pytest.raises(ValueError, match=words):
        trace(lm, *lm.encode(TEXTS), **bad)
