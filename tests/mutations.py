"""Malformed inputs from well-formed ones by seeded mutations, and the judge of what comes of them.

An input has two ways to end: a result, which must be a legitimate one, or one sentence.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from operator import getitem
from random import Random
from typing import Any

#: Environment variable: another seed than 0 tries other inputs.
SEED = "ACELIB_FUZZ_SEED"
LONGEST = 600  #: characters of a sentence

#: What stands where something else should: of every type, empty, out of range, unprintable, long.
NUMBERS: tuple[Any, ...] = (0, 1, -1, 2.5, 10**30, float("nan"), float("inf"))
TEXTS: tuple[Any, ...] = ("", " ", "x", "x" * 20_000, "\ud800", "a\nb", "{}", "{} {}", "\0", "ü")
OTHERS: tuple[Any, ...] = (None, True, False, [], [[]], [None], [""], ["x"], [1], {}, {"a": 1})
WRONG: tuple[Any, ...] = (*NUMBERS, *TEXTS, *OTHERS)


def random(kind: str) -> Random:
    """The random numbers of one kind of input."""
    return Random(f"{kind}/{os.environ.get(SEED, '0')}")


def is_text(value: object) -> bool:
    """Whether a value is a text that UTF-8 can hold (not the library's own test of it)."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


# ---------------------------------------------------------------------- mutations


def places(value: Any, way: tuple = ()) -> Iterator[tuple]:
    """The ways to every part of nested lists and mappings."""
    parts = value.items() if isinstance(value, dict) else ()
    for key, part in enumerate(value) if isinstance(value, list) else parts:
        yield (*way, key)
        yield from places(part, (*way, key))


def mutated(rng: Random, value: Any, wrong: Sequence[Any] = WRONG) -> Any:
    """A copy of nested lists and mappings with one part deleted, replaced, doubled or renamed."""
    value = copy.deepcopy(value)
    ways = list(places(value))
    *way, last = rng.choice(ways)
    inside = reduce(getitem, way, value)
    match rng.choice(("delete", "replace", "replace", "replace", "copy", "double", "rename")):
        case "delete":
            del inside[last]
        case "copy":  # of another part
            inside[last] = copy.deepcopy(reduce(getitem, rng.choice(ways), value))
        case "double" if isinstance(inside, list):
            inside.insert(last, copy.deepcopy(inside[last]))
        case "rename" if isinstance(inside, dict):
            inside[f"{last}_"] = inside.pop(last)
        case _:
            inside[last] = copy.deepcopy(rng.choice(wrong))
    return value


def damaged(rng: Random, content: bytes) -> bytes:
    """A copy of bytes with one to three damages: cut off, flipped, deleted, doubled, put in."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(content) + 1)
        end = at + rng.choice((1, 1, 8, 100))
        before, piece, after = content[:at], content[at:end], content[end:]
        match rng.choice(("cut", "flip", "flip", "delete", "double", "insert", "swap", "replace")):
            case "cut":
                content = before
            case "flip" if piece:
                content = before + bytes([piece[0] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
            case "delete":
                content = before + after
            case "double":
                content = before + piece + piece + after
            case "insert":
                content = before + rng.choice(RUBBISH) + piece + after
            case "swap":
                content = after + piece + before if rng.random() < 0.1 else before + after + piece
            case _:
                content = before + rng.randbytes(len(piece)) + after
    return content


RUBBISH = (
    b"\0",
    b"\xff\xfe",
    b"\n",
    b'"',
    b"[" * 5000,
    b"{",
    b"}",
    b",",
    b"=",
    b"nan",
    b"\xed\xa0\x80",
)


# ---------------------------------------------------------------------- the judge


class Judge:
    """Collects how inputs end; at the end of its ``with``, raises AssertionError for any that ended
    in a traceback, in an unclear sentence, or in a result that is none.
    """

    def __init__(self, kind: str):
        self.kind, self.accepted, self.refused = kind, 0, 0
        self.faults: list[str] = []

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            print(f"\n{self.kind}: {self.accepted} accepted, {self.refused} refused", end=" ")
            wrong = "\n".join(self.faults[:12])
            assert not self.faults, f"{len(self.faults)} faults of {self.kind}:\n{wrong}"

    def __call__(
        self,
        call: Callable[[], Any],
        named: Sequence[str],
        shown: object,
        check: Callable[[Any], object] = lambda result: None,
        legitimate: bool | None = None,
    ) -> None:
        """Judge one input.

        named: a sentence holds one of these.   shown: the input, for who looks into a fault.
        check: raises AssertionError for a result that the input does not give.
        legitimate: whether the input is well formed; None where only its result can tell.
        """
        try:
            try:
                result = call()
            except ValueError as error:
                self.refused += 1
                self._check_sentence(error, named)
                assert not legitimate, f"refused, but it is well formed: {error}"
            else:
                self.accepted += 1
                assert legitimate is not False, f"accepted as {str(result)[:300]!r}"
                check(result)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a library in Rust is no Exception
            said = str(error).strip()[:700]
            self.faults.append(f"- {type(error).__name__}: {said}\n    of {repr(shown)[:500]}")

    def _check_sentence(self, error: ValueError, named: Sequence[str]) -> None:
        sentence, kind = str(error), type(error)
        own = kind is ValueError or kind.__module__.startswith("acelib.")
        assert own, f"{kind.__name__} is not the library's own: {sentence}"
        assert "\n" not in sentence, f"more than one line: {sentence!r}"
        own_words = sentence.partition("known: ")[0]  # then come names that the library has
        assert 10 < len(own_words) < LONGEST, f"{len(own_words)} characters: {sentence}"
        assert any(name in sentence for name in named), f"names none of {named}: {sentence}"
