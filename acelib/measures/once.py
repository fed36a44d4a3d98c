"""Results by item, each computed once, however often and in whatever company it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")


class Once(Generic[Item, Result]):
    """A function of lists that works on every item once and keeps the result.

    work: items that were not asked for before -> their results, in order.
    """

    def __init__(self, work: Callable[[list[Item]], Sequence[Result]]):
        self._work = work
        self._results: dict[Item, Result] = {}

    def __call__(self, items: Iterable[Item]) -> list[Result]:
        """The results of ``items``, in order."""
        items = list(items)
        missing = [item for item in dict.fromkeys(items) if item not in self._results]
        if missing:
            self._results |= zip(missing, self._work(missing), strict=True)
        return [self._results[item] for item in items]
