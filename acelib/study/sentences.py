"""Sentences with numbers: the wording in a template beside the notebooks, the numbers from a dict.

``notebooks/text/<chapter>.md.j2`` holds a chapter's sentences as named jinja2 blocks:

    {% block verdict %}
    ACE answers {{ hits | num(1, " %") | each }} of the questions; {{ missed | listed }} fail.
    {% endblock %}

A block sees the values that it is rendered with and nothing else; a template imports no other, so
that all words of a chapter are in one file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from IPython.display import Markdown, display
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.exceptions import TemplateNotFound, TemplateSyntaxError, UndefinedError
from matplotlib.figure import Figure

from ..provenance import ROOT
from . import claims
from .stats import Mean

FOLDER = ROOT / "notebooks" / "text"
#: Verdicts that answer a question, on one model and on both.
ANSWERING = {*claims.VERDICTS, "holds in part", "fails in part", "disagree"}


def each(words: Mapping[str, str]) -> str:
    """For every model its own: {"a": "95 %", "b": "83 %"} -> "95 % (a) and 83 % (b)"."""
    return listed(f"{text} ({model})" for model, text in words.items())


def together(words: Mapping[str, str]) -> str:
    """Once where all models agree, by model where they differ.

    "holds on both" or, of one model, "holds"; else "holds on a, fails on b".
    """
    if len(set(words.values())) > 1:
        return ", ".join(f"{text} on {model}" for model, text in words.items())
    where = {0: "", 1: "", 2: " on both"}.get(len(words), " on all")
    return next(iter(words.values()), "") + where


def listed(words: Iterable[object], last: str = "and") -> str:
    """Words as an English list: "a", "a and b", "a, b and c"."""
    *rest, final = [str(word) for word in words] or [""]
    return f"{', '.join(rest)} {last} {final}" if rest else final


def num(value, places: int = 1, unit: str = ""):
    """A number, or a ``Mean`` with its interval, with ``places`` decimals and its unit.

    What rounds to zero has no sign (the z of the format). A mapping is formatted value by value, so
    that ``each`` or ``together`` can follow.
    """
    if isinstance(value, Mapping):
        return {name: num(one, places, unit) for name, one in value.items()}
    if (isinstance(value, Mean) and not value.n) or value != value:
        return "–"
    return f"{value:z.{places}f}{unit}"


def mean(value, places: int = 1, unit: str = ""):
    """``num`` without the interval, for a number whose interval the next table or figure has."""
    if isinstance(value, Mapping):
        return {name: mean(one, places, unit) for name, one in value.items()}
    value = value.mean if isinstance(value, Mean) else value
    return num(round(value, places) + 0.0, places, unit)  # no "-0"


def verdict(value, rule: str = "> 0"):
    """``claims.verdict`` of a mean, of none "cannot tell"; of a mapping, value by value."""
    if isinstance(value, Mapping):
        return {name: verdict(one, rule) for name, one in value.items()}
    return claims.verdict(rule, value) if value.n else "cannot tell"


def said(verdict):
    """A verdict as a verb: "holds", "cannot be told"; of a mapping, value by value."""
    if isinstance(verdict, Mapping):
        return {name: said(one) for name, one in verdict.items()}
    return claims.WORDS[verdict][0]


def told(verdict: str, claim: str) -> str:
    """ "the claim that it rains holds", "one cannot tell whether it rains"."""
    if verdict == "cannot tell":
        return f"one cannot tell whether {claim}"
    return f"the claim that {claim} {said(verdict)}"


def judged(verdicts: Mapping[str, str], claim: str) -> str:
    """A sentence on the verdicts of all models, without its full stop.

    "The claim that it rains holds on both", "... holds on a, fails on b", "... holds on a; on b one
    cannot tell", "One cannot tell, on either model, whether it rains".
    """
    if {*verdicts.values()} == {"cannot tell"}:
        where = {1: "", 2: ", on either model,"}.get(len(verdicts), ", on any model,")
        return f"One cannot tell{where} whether {claim}"
    decided = {name: word for name, word in verdicts.items() if word != "cannot tell"}
    if len(decided) == len(verdicts):
        return f"The claim that {claim} {together(said(decided))}"
    seen = ", ".join(f"{said(word)} on {name}" for name, word in decided.items())
    rest = listed(name for name in verdicts if name not in decided)
    return f"The claim that {claim} {seen}; on {rest} one cannot tell"


def answer(verdicts) -> str:
    """What a chapter's question is answered with: "Yes", "No", "Partly" or "Cannot tell".

    verdicts: all that the answer rests on, words in lists or mappings, however nested. Yes: all
    hold. No: some fail and none holds. Partly: some hold, not all. Otherwise, and of none, one
    cannot tell. Raises ValueError for a word that is no verdict.
    """
    found = set(_words(verdicts))
    if unknown := found - ANSWERING:
        raise ValueError(f"verdict {min(unknown)!r} is none of {', '.join(sorted(ANSWERING))}")
    if found == {"holds"}:
        return "Yes"
    if found & {"holds", "holds in part", "disagree"}:
        return "Partly"
    return "No" if found & {"fails", "fails in part"} else "Cannot tell"


def _words(verdicts) -> list[str]:
    if isinstance(verdicts, str):
        return [verdicts]
    inner = verdicts.values() if isinstance(verdicts, Mapping) else verdicts
    return [word for one in inner for word in _words(one)]


class Text:
    """The sentences of one chapter.

    chapter: name of the notebook.   folder: where templates are.
    Raises ValueError if there is no such template, or if it is not a valid one.
    """

    def __init__(self, chapter: str, folder: Path = FOLDER):
        self.file = f"{chapter}.md.j2"
        try:
            self.template = _environment(folder).get_template(self.file)
        except TemplateNotFound:
            there = listed(sorted(path.name for path in folder.glob("*.md.j2"))) or "none"
            raise ValueError(
                f"no template {self.file!r} in {folder.name}/; there are: {there}"
            ) from None
        except TemplateSyntaxError as error:
            raise ValueError(f"{error.filename}, line {error.lineno}: {error.message}") from error

    def render(self, block: str, **values) -> str:
        """The Markdown of a block.

        Raises ValueError naming file and block for an unknown block or a value that is missing.
        """
        blocks = self.template.blocks
        if block not in blocks:
            known = listed(blocks) or "none"
            raise ValueError(f"{self.file} has no block {block!r}; it has: {known}")
        try:
            return _tidy("".join(blocks[block](self.template.new_context(values))))
        except UndefinedError as error:
            raise ValueError(f"{self.file}, block {block!r}: {error.message}") from error

    def show(self, block: str, **values) -> None:
        """Displays a block as Markdown, which the book renders as it does a Markdown cell."""
        display(Markdown(self.render(block, **values)))

    def figure(self, drawn: Figure, block: str, **values) -> None:
        """Displays a figure of which a block says what it shows, on one line: its alt text, and the
        beginning of its caption (``book.chapters``).
        """
        found = " ".join(self.render(block, **values).split())
        display(drawn, metadata={"image/png": {"alt": found}})

    def headline(self, block: str, name: str = "", **values) -> None:
        """Displays a block as ``show`` does, and lets other pages quote it, on one line:
        ``{glue:text}`../notebooks/<chapter>.ipynb::<name>:s` ``.

        name: the block's, if it is not given. Quoted is plain text: nothing is bold in it.
        """
        said = self.render(block, **values)
        plain = " ".join(said.replace("**", "").split())
        data = {"text/markdown": said, "text/plain": repr(plain)}
        display(data, raw=True, metadata={"scrapbook": {"name": name or block, "mime_prefix": ""}})


def _environment(folder: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters |= {"each": each, "together": together, "listed": listed, "num": num}
    environment.filters |= {
        "mean": mean,
        "verdict": verdict,
        "said": said,
        "told": told,
        "judged": judged,
    }
    environment.filters |= {"answer": answer}
    return environment


def _tidy(text: str) -> str:
    """Without the blank lines and doubled spaces that conditions leave behind."""
    text = re.sub(r"(?<=\S) {2,}(?=\S)", " ", text)
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()
