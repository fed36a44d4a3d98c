"""Every editor on input that is awkward or wrong, or stopped half-way: it works or raises a clear
ValueError; the model is untouched.

Editors are those of ``EDITORS``, a new one is tested as soon as it is registered there, and ACE at
neuron level.
"""

from contextlib import contextmanager
from dataclasses import fields, replace

import pytest
import torch
from test_moments import TEXTS

from acelib import editors
from acelib.editing.keys import tokens
from acelib.editing.moments import Moments, second_moments
from acelib.editing.request import check_lengths, requests
from acelib.editing.search import Objective
from acelib.editors import EDITORS, PMET, AlphaEdit
from acelib.records import Edit

#: Small settings by the name of a field; whoever has the field gets it.
SMALL = dict(
    layer=1,
    layers=(1, 2),
    value=PMET(layers=(2, 3), position="last", texts=(), objective=Objective(kind="pmet", steps=3)),
    query=PMET(layers=(0, 1), texts=(), objective=Objective(kind="pmet", steps=3)),
    steps=3,
    texts=(),
    n_neurons=9,
)
EDIT = Edit(
    "Tim Duncan",
    "{} plays the sport of",
    "football",
    "basketball",
    hops=("The sport of the founder of Apple is",),
)
OTHER = Edit(
    "France",
    "The capital of {} is",
    "Hamlet",
    "Paris",
    hops=("The capital of the country of Hamlet is",),
)


def small(name):
    editor = getattr(editors, name)
    names = {field.name for field in fields(editor)}
    small = {name: value for name, value in SMALL.items() if name in names}
    if name == "ReleasedACE":  # one search for both stages; attention is written too
        both = dict(writes="both", position="subject_last")
        small |= {stage: replace(SMALL[stage], **both) for stage in ("value", "query")}
        # A push at the subject reaches nothing from the last layer.
        small["value"] = replace(small["value"], layers=(1, 2))
    editor = editor(**small)
    if "objective" in names:
        editor = replace(editor, objective=replace(editor.objective, steps=3))
    return replace(editor, null_share=0.5) if isinstance(editor, AlphaEdit) else editor


@pytest.fixture(params=[*EDITORS, "NeuronACE", "ReleasedACE"])
def editor(request):
    return small(request.param)


def eye(lm):
    def of(part):
        return {i: torch.eye(lm.width(part), dtype=torch.float64) for i in range(lm.n_layers)}

    return Moments(of("mlp"), 1, attn=Moments(of("attn"), 1))


def state(lm):
    """All that an editor might leave changed; weights as bytes, so that NaN equals NaN."""
    model = lm.model
    return (
        {name: value.contiguous().numpy().tobytes() for name, value in model.state_dict().items()},
        {name: (p.requires_grad, p.grad is None, id(p)) for name, p in model.named_parameters()},
        {
            name: (
                m.training,
                list(m._forward_hooks),
                list(m._forward_pre_hooks),
                list(m._backward_hooks),
                vars(m).get("forward"),
            )
            for name, m in model.named_modules()
        },
        lm.tokenizer.padding_side,
        lm.fingerprint,
        torch.random.get_rng_state().tolist(),
        torch.is_grad_enabled(),
    )


@contextmanager
def untouched(lm):
    """The same weights to the bit, parameters, flags, mode, hooks, random state afterwards,
    whatever happened.
    """
    _ = lm.traced  # a model that was ever looked into keeps the wrapper of nnsight
    before = state(lm)
    try:
        yield
    finally:
        lm.__dict__.pop("fingerprint", None)  # to be computed anew
        assert state(lm) == before


def same(one, other):
    return one.layers == other.layers and all(
        torch.equal(x, y)
        for i in one.layers
        for x, y in zip(one.factors[i], other.factors[i], strict=True)
    )


def finite(update):
    """Something, everywhere a number, and no graph hangs on it."""
    factors = [x for pair in update.factors.values() for x in pair]
    return bool(factors) and all(
        x.isfinite().all() and x.any() and not x.requires_grad for x in factors
    )


# ---------------------------------------------------------------------- awkward, but right

AWKWARD = {  # what the lookup tokens end with
    "a subject of many tokens": (replace(EDIT, subject="William Shakespeare of Hamlet"), "Hamlet"),
    "a subject whose letters are several tokens": (replace(EDIT, subject="Zoë 東京"), "京"),
    "a subject that goes on": (replace(OTHER, prompt="The best {}ian player is"), "France"),
    "a subject in quotes": (replace(OTHER, prompt='The capital of "{}" is'), "France"),
    "the subject again, before and after": (
        replace(OTHER, prompt="France and Paris: {}'s France is"),
        "France and Paris: France",
    ),
    "one token, the prompt's first": (Edit("T", "{} is", "a", "the", hops=("T",)), "T"),
    "a target of one token": (replace(EDIT, target_new="of"), "Duncan"),
    "a target of many tokens": (replace(EDIT, target_new="Señor Çelebi's 東京 company"), "Duncan"),
}


@pytest.mark.parametrize("case", AWKWARD)
def test_the_lookup_token_is_the_last_of_the_subject(tiny, case):
    lm, (edit, ending) = tiny("gpt2"), AWKWARD[case]
    (r,) = requests([edit])
    ids, at = tokens(lm, r.prompt, r.end)
    assert lm.tokenizer.decode(ids[:at]) != r.prompt[: r.end]
    if case == "a subject that goes on":  # its last letters may share a token with what follows
        assert lm.tokenizer.decode(ids[: at + 1]).startswith(r.prompt[: r.end])
    else:
        assert at == len(lm.tokenizer(r.prompt[: r.end])["input_ids"]) - 1 and lm.tokenizer.decode(
            ids[: at + 1]
        ).endswith(ending)


def test_awkward_edits(tiny, editor):
    lm = tiny("gpt2")
    with untouched(lm):
        updates = editor.each(lm, [[edit] for edit, _ in AWKWARD.values()], eye(lm))
    assert all(map(finite, updates))


def test_leading_and_trailing_spaces_do_not_matter(tiny, editor):
    lm = tiny("qwen3")
    with untouched(lm):
        plain = editor(lm, [EDIT], eye(lm))
        for other in (
            dict(target_new=" football"),
            dict(target_new="football  "),
            dict(target_true=" basketball "),
            dict(prompt=EDIT.prompt + " ", hops=(EDIT.hops[0] + " ",)),
        ):
            assert same(editor(lm, [replace(EDIT, **other)], eye(lm)), plain)


def test_duplicates_count_once(tiny, editor):
    """Released code counts the keys of a repeated edit twice; here the batch is the set of its
    edits.
    """
    lm = tiny("llama")
    with untouched(lm):
        once = editor(lm, [EDIT, OTHER], eye(lm))
        assert same(
            editor(lm, [EDIT, OTHER, EDIT, replace(OTHER, target_new=" Hamlet")], eye(lm)), once
        )


def test_dead_neurons(any_lm, editor, tmp_path):
    """Neurons that never fire make the moment singular; their value vectors are left alone."""
    lm, dead = any_lm, [0, 7, 40]
    for layer in range(lm.n_layers):
        for name in lm.family.fc1:
            fc1 = getattr(lm.mlp(layer), name)
            (fc1.weight.T if lm.model.config.model_type == "gpt2" else fc1.weight).data[dead] = 0
            if getattr(fc1, "bias", None) is not None:
                fc1.bias.data[dead] = 0
    with untouched(lm):
        every = range(lm.n_layers)
        moments = second_moments(lm, TEXTS, every, tmp_path, attn=every)
        assert not moments[1][dead].any()
        update = editor(lm, [EDIT, OTHER], moments)
    assert finite(update)
    for layer in update.layers:
        assert update.delta(layer)[:, dead].norm() <= 1e-9 * update.delta(layer).norm()


# ---------------------------------------------------------------------- wrong


def test_conflicting_edits(tiny, editor):
    lm = tiny("gpt2")
    with (
        untouched(lm),
        pytest.raises(
            ValueError,
            match="conflicting edits: 'Tim Duncan plays the sport of' -> 'football' and -> 'golf'",
        ),
    ):
        editor(lm, [EDIT, OTHER, replace(EDIT, target_new="golf", hops=())], eye(lm))
    if "hops" in getattr(editor, "value_prompts", ()):
        with (
            untouched(lm),
            pytest.raises(
                ValueError, match="conflicting edits: 'The sport of the founder of Apple is'"
            ),
        ):
            editor(lm, [EDIT, replace(OTHER, hops=EDIT.hops)], eye(lm))


def test_an_edit_that_is_no_batch(tiny, editor):
    lm = tiny("gpt2")
    for ask in (lambda: editor(lm, EDIT, eye(lm)), lambda: editor.each(lm, [EDIT, OTHER], eye(lm))):
        with (
            untouched(lm),
            pytest.raises(
                ValueError,
                match=r"a batch is a list of edits, such as \[edit\]; got Edit\(subject='Tim",
            ),
        ):
            ask()


@pytest.mark.parametrize("part", ["embedding", "head"])
def test_nan_in_the_loss(tiny, editor, part):
    lm = tiny("gptj")
    weight = lm.embed.weight if part == "embedding" else lm.head.weight
    weight.data[lm.tokenizer("Tim Duncan")["input_ids"][-1]] = float("nan")
    with (
        untouched(lm),
        pytest.raises(ValueError, match="'Tim Duncan plays the sport of'.* not finite"),
    ):
        editor(lm, [EDIT], eye(lm))


def test_nan_in_the_second_moment(tiny, editor):
    lm, moments = tiny("gpt2"), eye(tiny("gpt2"))
    for C in moments.matrices.values():
        C[3, 3] = float("nan")
    with untouched(lm):
        try:
            assert finite(editor(lm, [EDIT], moments))  # an editor that needs none
        except ValueError as error:
            assert "second moment of layer" in str(error) and "not finite" in str(error)


# ---------------------------------------------------------------------- stopped


@contextmanager
def watched(lm, stop=None):
    """Count the calls of second FFN matrices; Ctrl-C at the ``stop``-th."""
    calls = []

    def hook(*_):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt

    hooks = [lm.fc2(layer).register_forward_hook(hook) for layer in range(lm.n_layers)]
    try:
        yield calls
    finally:
        for handle in hooks:
            handle.remove()


def test_interruption(tiny, editor):
    """At the first forward, half-way, in the last; afterwards the same edit gives the same bits."""
    lm = tiny("gpt2")
    with watched(lm) as calls:
        whole = editor(lm, [EDIT, OTHER], eye(lm))
    for stop in {1, len(calls) // 2, len(calls) * 3 // 4, len(calls)}:
        with untouched(lm), watched(lm, stop), pytest.raises(KeyboardInterrupt):
            editor(lm, [EDIT, OTHER], eye(lm))
    with untouched(lm):
        assert same(editor(lm, [EDIT, OTHER], eye(lm)), whole)


def test_flags_and_mode_are_the_users(tiny, editor):
    """A model that is being trained stays so, and no gradient is left on its parameters."""
    lm = tiny("llama")
    lm.model.requires_grad_(True).train()
    with untouched(lm):
        assert finite(editor(lm, [EDIT, OTHER], eye(lm)))


@pytest.mark.parametrize("part", ["prompt", "target", "hops"])
def test_what_is_longer_than_the_model_reads_is_refused_before_any_work(tiny, editor, part):
    lm = tiny("gpt2")
    long = "word " * 300
    change = {
        "prompt": dict(prompt=long + "{} is"),
        "target": dict(target_new=long),
        "hops": dict(hops=(long + "is",)),
    }[part]
    if part == "hops" and "hops" not in getattr(editor, "value_prompts", ()):
        pytest.skip("the editor reads no multi-hop prompts")
    with untouched(lm), pytest.raises(ValueError, match="model 'tiny-gpt2' reads 256 at most"):
        editor(lm, [replace(EDIT, **change)], eye(lm))


def test_the_longest_prefix_is_that_of_most_tokens(tiny):
    """Not of most letters: a token of the tiny tokenizer may be a whole word."""
    lm = tiny("gpt2")
    words, letters = " Paris" * 60, "\u4e2d" * 80
    prefixes = ("", words + ". ", letters + ". ")
    few, many = (len(lm.tokenizer(text)["input_ids"]) for text in (words, letters))
    assert len(words) > len(letters) and few < many
    [asked] = requests([EDIT])
    check_lengths(lm, [asked], prefixes[:2])
    with pytest.raises(ValueError, match="behind the text before them; .* reads 256 at most"):
        check_lengths(lm, [replace(asked, prompt=asked.prompt + " word" * 10)], prefixes)
