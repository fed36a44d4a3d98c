"""What counts as an answer of a model that speaks freely.

A model that was not trained on a list of names says "the United States of America." where the list
has "United States". One rule reads such answers:

* the answer is the first line; a leading article does not count;
* it counts if it begins with the expected name or one of its aliases, word by word, without regard
  to case, accents and punctuation;
* the name must end there: behind it comes punctuation, nothing, or a word in lower case. "Paris
  Saint-Germain" is not Paris, "basketball player" is basketball.

``is_bare`` is the narrower rule of ``model.answers.recall``, kept beside it: the name itself, as
the world writes it, and nothing before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .wording import normalise

ARTICLES = ("the", "a", "an")
LONGEST = 10  #: words of a name


def first_line(text: str) -> str:
    """The first line of a continuation, without blanks around it; "" if it begins with a break."""
    return text.strip(" \t").split("\n")[0].strip()


def counts(text: str, accepted: Iterable[str]) -> bool:
    """Whether a continuation answers with one of the accepted names."""
    names = {normalise(name) for name in accepted} - {""}
    words = first_line(text).split()
    if len(words) > 1 and words[0].casefold() in ARTICLES:
        words = words[1:]
    return any(
        normalise(" ".join(words[:n])) in names and _ends(words, n)
        for n in range(1, min(len(words), LONGEST) + 1)
    )


def _ends(words: list[str], n: int) -> bool:
    """Whether a name may end after n words: no further name word follows it directly."""
    if n == len(words) or not words[n - 1][-1].isalnum():
        return True
    return not words[n][0].isupper()


def is_bare(text: str, name: str) -> bool:
    """Whether a continuation begins with a name exactly as it is written."""
    rest = text.removeprefix(" ")
    return rest.startswith(name) and not re.match(r"\w", rest[len(name) :])
