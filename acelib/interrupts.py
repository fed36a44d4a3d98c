"""Ctrl-C waits until what must not be cut in two is done.

A model that a ``with`` block changes must come out of it as it went in, wherever an interrupt
falls. ``finally`` alone does not promise that: an interrupt may fall into the ``finally``, or
between the block's last line and the first one of its clean-up.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from threading import current_thread, main_thread
from types import FrameType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def unbroken(function: Callable[P, Iterator[T]]) -> Callable[P, AbstractContextManager[T]]:
    """Decorator: a ``contextmanager`` whose entering and leaving no Ctrl-C cuts in two.

    The body of the ``with`` is interrupted as ever. An interrupt that comes while the block is
    entered or left is raised as soon as that is done. In other threads than the main one there are
    no interrupts, and nothing is held.
    """
    make = contextmanager(function)

    @wraps(function)
    def made(*args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[T]:
        return _Unbroken(make(*args, **kwargs))

    return made


class _Unbroken(AbstractContextManager):
    def __init__(self, inner: AbstractContextManager):
        self.inner, self.waiting = inner, False
        self.before: Callable[[int, FrameType | None], object] = signal.default_int_handler
        self.holds = False

    def __enter__(self):
        self._hold()
        try:
            value = self.inner.__enter__()
        except BaseException:
            self._let_go()
            raise
        if self.waiting:  # nobody has seen the block yet: if this raises, it is left at once
            self.waiting = False
            try:
                self.before(signal.SIGINT, sys._getframe().f_back)
            except BaseException:
                self.__exit__(*sys.exc_info())
                raise
        return value

    def __exit__(self, *error):
        try:
            return self.inner.__exit__(*error)
        finally:
            self._let_go()

    def _hold(self) -> None:
        """From here on an interrupt asks first where it falls."""
        handler = signal.getsignal(signal.SIGINT)
        if current_thread() is main_thread() and callable(handler):
            self.before, self.holds = handler, True
            signal.signal(signal.SIGINT, self._interrupted)

    def _let_go(self) -> None:
        if self.holds:
            signal.signal(signal.SIGINT, self.before)
            self.holds = False
            if self.waiting:
                self.waiting = False
                signal.raise_signal(signal.SIGINT)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        below = frame
        while below is not None:
            if below.f_code in HELD and below.f_locals["self"] is self:
                self.waiting = True
                return
            below = below.f_back
        self.before(number, frame)


#: Code that no interrupt may cut; what it calls is not cut either.
HELD = {_Unbroken.__enter__.__code__, _Unbroken.__exit__.__code__}
