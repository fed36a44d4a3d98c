"""Ctrl-C anywhere: the model comes out as it went in, or, after ``commit``, as it should be."""

import contextlib
import signal
import sys
from pathlib import Path

import pytest
import torch

from acelib import interrupts
from acelib.attribution.interventions import ablate
from acelib.bench.tiny import make_tiny
from acelib.editing.moments import Moments
from acelib.editing.search import Objective
from acelib.editors import FT, KN, MEMIT
from acelib.editors.base import edit_in_turn
from acelib.interrupts import unbroken
from acelib.model.states import Site, read, replaced
from acelib.model.update import Factors, Update, applied, commit, overlaid
from acelib.records import Edit

HERE, CONTEXTLIB = str(Path(interrupts.__file__).parent), contextlib.__file__


@pytest.fixture(autouse=True)
def listening():
    """Interrupts as at the start of a program; pytest's workers ignore them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def lm():
    return make_tiny("gptj", torch.float32, n_layers=2, d_model=16, d_mlp=16)


@pytest.fixture(scope="module")
def update(lm):
    """A change of both layers."""
    return Update({layer: Factors(torch.ones(16, 1), torch.ones(16, 1)) for layer in range(2)})


def state(lm):
    """Everything that a block could leave behind: weights, hooks, the fingerprint."""
    hooks = [
        (name, len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in lm.model.named_modules()
    ]
    return hooks, {name: value.clone() for name, value in lm.model.state_dict().items()}


def assert_same(one, other):
    assert one[0] == other[0]
    for name, value in one[1].items():
        assert torch.equal(value, other[1][name]), name


def interrupted(work, at: int) -> bool:
    """Run ``work`` and send the interrupt signal at the ``at``-th point at which it can fall;
    whether that point was reached.

    The interpreter looks for signals where a function begins and where a call of C returns: points
    in the files of acelib, in contextlib and here count.
    """
    count = 0

    def profile(frame, event, _):
        nonlocal count
        name = frame.f_code.co_filename
        ours = name.startswith(HERE) or name in (__file__, CONTEXTLIB)
        if ours and event in ("call", "c_return"):
            count += 1
            if count == at:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)

    try:
        sys.setprofile(profile)
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


def blocks(lm, update):
    """What changes a model for the length of a ``with``."""
    yield "applied", lambda: applied(lm, update)
    yield "overlaid", lambda: overlaid(lm, [update])
    yield "read", lambda: read(lm, [Site("key", 0), Site("out", 1)])
    yield "replaced", lambda: replaced(lm, {Site("mlp", 1): lambda x: x})
    yield "ablate", lambda: ablate(lm, [(0, 1), (1, 2)])
    yield "changing", lambda: lm.changing([0, 1])


@pytest.mark.parametrize("name", ["applied", "overlaid", "read", "replaced", "ablate", "changing"])
def test_a_block_that_is_interrupted_anywhere_leaves_the_model_as_it_was(lm, update, name):
    make = dict(blocks(lm, update))[name]
    before, handler, at = state(lm), signal.getsignal(signal.SIGINT), 0

    def work():
        with make():
            if name == "changing":
                with torch.no_grad():
                    lm.weight(0).add_(1)
                    lm.weight(1).add_(1)
            else:
                len("the body")

    while interrupted(work, at := at + 1):
        assert_same(before, state(lm))
        assert signal.getsignal(signal.SIGINT) is handler
    assert at > 10


def test_commit_writes_all_layers_or_none_wherever_it_is_interrupted(lm, update):
    before, fingerprint, at, outcomes = state(lm), lm.fingerprint, 0, set()
    with applied(lm, update):
        after, changed = state(lm), lm.fingerprint
    while interrupted(lambda: commit(lm, update), at := at + 1):
        written = not torch.equal(lm.weight(0), before[1]["transformer.h.0.mlp.fc_out.weight"])
        assert_same(after if written else before, state(lm))
        assert lm.fingerprint == (changed if written else fingerprint)
        outcomes.add(written)
        lm.model.load_state_dict(before[1])
        lm.__dict__.pop("fingerprint")
    assert outcomes == {True, False}
    lm.model.load_state_dict(before[1])
    lm.__dict__.pop("fingerprint", None)


def test_edits_in_turn_leave_the_model_as_it_was(lm, update):
    """The editor is interrupted while the state of earlier batches is applied."""

    def editor(lm, edits, moments):
        return update

    edits = [Edit("Paris", "{} is in", "Rome"), Edit("Rome", "{} is in", "Paris")]
    before, at = state(lm), 0

    def work():
        for _ in edit_in_turn(lm, editor, [[edit] for edit in edits], None):
            pass

    while interrupted(work, at := at + 1):
        assert_same(before, state(lm))
    assert at > 50


@pytest.mark.parametrize("name", ["FT", "KN", "KN, before", "MEMIT"])
def test_an_editor_interrupted_anywhere_leaves_the_model_as_it_was(name):
    """At every 47th point, since there are thousands."""
    lm = make_tiny("gptj", torch.float32, n_layers=2, d_model=16, d_mlp=16)
    moments = Moments({layer: torch.eye(16, dtype=torch.float64) for layer in range(2)}, 8)
    editor = {
        "FT": FT(layers=(0, 1), steps=2),
        "KN": KN(steps=2),
        "KN, before": KN(steps=2, activation="pre"),
        "MEMIT": MEMIT(layers=(0, 1), objective=Objective(steps=2), texts=("",)),
    }[name]
    edit = Edit("Paris", "{} is in", "Rome", "France")
    before, at = state(lm), 1
    while interrupted(lambda: editor(lm, [edit], moments), at := at + 47):
        assert_same(before, state(lm))
    assert at > 200


def test_the_body_is_interrupted_at_once():
    reached = []

    @unbroken
    def block():
        try:
            yield
        finally:
            reached.append("left")

    with pytest.raises(KeyboardInterrupt), block():
        signal.raise_signal(signal.SIGINT)
        reached.append("not reached")
    assert reached == ["left"]


def test_an_interrupt_while_leaving_is_raised_when_that_is_done():
    reached = []

    @unbroken
    def block():
        yield
        signal.raise_signal(signal.SIGINT)
        reached.append("done")

    with pytest.raises(KeyboardInterrupt), block():
        pass
    assert reached == ["done"]


def test_an_interrupt_while_entering_is_raised_before_the_body():
    reached = []

    @unbroken
    def block():
        signal.raise_signal(signal.SIGINT)
        reached.append("entered")
        try:
            yield
        finally:
            reached.append("left")

    with pytest.raises(KeyboardInterrupt), block():
        reached.append("body")
    assert reached == ["entered", "left"]


def test_errors_pass_and_values_are_given():
    @unbroken
    def block(value):
        yield value

    with block(3) as found:
        assert found == 3
    with pytest.raises(RuntimeError, match="boom"), block(1):
        raise RuntimeError("boom")
