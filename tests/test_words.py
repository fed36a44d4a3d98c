"""How a chapter reads: a question, its answer in one word that code makes, at most 1,500 words, one
interval a sentence, figures that say what they show, verdicts at the end, no checks on the page.
"""

import re
from collections import Counter

import nbformat
import pytest

from acelib.book.contents import known
from acelib.study import claims
from acelib.study.sentences import Text

MOST = 1500  #: words that a reader sees without opening anything
FOLDED = {"hide-cell", "remove-cell", "hide-output", "remove-output", "provenance"}
WORD = re.compile(r"[\w'’%-]*[A-Za-z0-9][\w'’%.-]*")
INTERVAL = re.compile(r"\[[−-]?\d[^\]\n]*, [^\]\n]*\d\]")
ANSWER = re.compile(r"\*\*(Yes|No|Partly|Cannot tell)\.\*\*")
CALL = re.compile(r'text\.(?:render|show|headline|figure)\(\s*(?:[^"]*?,\s*)?"(\w+)"')
#: Blocks that no cell shows: of `acelib ablate`, and of more seeds of the models.
ELSEWHERE = {
    "00_world": {"ideas", "small", "effects", "small_layers", "dense", "noise"},
    "07_where_to_edit": {"table_seeds"},
}
every_chapter = pytest.mark.parametrize("name", known())


def cells(name: str) -> list:
    return nbformat.read(known()[name], 4).cells


def tags(cell) -> set[str]:
    return set(cell.metadata.get("tags", ()))


def outputs(cell, kind: str) -> list[str]:
    found = [output.get("data", {}).get(kind) for output in cell.get("outputs", ())]
    return [text for text in found if text]


def shown(name: str) -> list[str]:
    """The sentences of a page: Markdown cells and outputs, without what is folded and tables."""
    texts = []
    for cell in cells(name):
        if not tags(cell) & FOLDED:
            markdown = cell.cell_type == "markdown"
            texts += [cell.source] if markdown else outputs(cell, "text/markdown")
    return [unfolded(text) for text in texts]


def unfolded(text: str) -> str:
    text = re.sub(r"(?s)<details>.*?</details>|```.*?```|:::\{.*?:::", "", text)
    return re.sub(r"(?m)^\|.*$|`[^`\n]*`", "", text)


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.?!:])\s+(?=[A-Z*“(])|\n\s*\n|\n(?=- )", text)


def blocks(name: str) -> dict[str, str]:
    """The blocks of a chapter's template, as they are written."""
    source = (Text(name).template.environment.loader.get_source)(
        Text(name).template.environment, f"{name}.md.j2"
    )[0]
    return dict(re.findall(r"(?s)\{% block (\w+) %\}(.*?)\{% endblock %\}", source))


# ------------------------------------------------------------------- what does not need execution


@every_chapter
def test_a_chapter_opens_with_a_question(name):
    title, _, rest = cells(name)[0].source.partition("\n\n")
    question = re.match(r"(?s)\*\*(.+?)\*\*", rest)
    assert title.startswith("# ") and question and question[1].endswith("?")


@every_chapter
def test_its_answer_is_made_by_code(name):
    """The first block that a page shows is "verdict", and it begins with the word of ``answer``."""
    code = [cell.source for cell in cells(name) if cell.cell_type == "code"]
    calls = [found for source in code for found in re.findall(r"text\.(show|headline)\(", source)]
    assert calls[0] == "headline"
    first = next(source for source in code if "text.headline(" in source)
    assert 'text.headline("verdict"' in first
    body = re.sub(r"(?s)\{% (if|set|for) .*?%\}|\{% end\w+ %\}", "", blocks(name)["verdict"])
    body = re.sub(r"(?s)\{% macro.*?\{%- endmacro %\}", "", body)
    body = re.sub(r"\{\{ words\.append\(.*?\) or \"\" \}\}", "", body).strip()
    assert re.match(r"\*\*\{\{ [^}]*\| answer \}\}\.\*\*", body), body[:200]
    assert not any(ANSWER.search(text) for text in blocks(name).values())


@every_chapter
def test_its_checks_are_not_on_the_page(name):
    checks = [cell for cell in cells(name) if "assert_table(" in cell.source]
    assert checks and all({"check", "remove-cell"} <= tags(cell) for cell in checks)


@every_chapter
def test_blocks_are_all_shown_and_all_there(name):
    code = "\n".join(cell.source for cell in cells(name) if cell.cell_type == "code")
    assert set(CALL.findall(code)) <= set(blocks(name))
    assert set(blocks(name)) - set(re.findall(r'"(\w+)"', code)) <= ELSEWHERE.get(name, set())


@pytest.mark.parametrize("name", sorted({*claims.claims_list().chapter} & {*known()}))
def test_a_chapter_that_tests_claims_ends_with_their_verdicts(name):
    code = [cell for cell in cells(name) if cell.cell_type == "code" and "check" not in tags(cell)]
    last = max(i for i, cell in enumerate(code) if "verdicts.styled(" in cell.source)
    assert len(code) - last <= 2  # notes may follow
    heads = [cell.source for cell in cells(name) if cell.cell_type == "markdown"]
    assert re.findall(r"(?m)^## (.*)$", "\n".join(heads))[-1] == "Verdicts"


# --------------------------------------------------------------------------- what an execution gave


@every_chapter
def test_a_page_has_no_more_words_than_are_read(name):
    words = sum(len(WORD.findall(text)) for text in shown(name))
    assert words <= MOST, f"{words} words"


@every_chapter
def test_the_first_word_answers(name):
    said = next(text for cell in cells(name) for text in outputs(cell, "text/markdown"))
    assert ANSWER.match(said), said[:80]


@every_chapter
def test_a_sentence_has_one_interval(name):
    said = [one for text in shown(name) for one in sentences(text)]
    assert [one for one in said if len(INTERVAL.findall(one)) > 1] == []


def test_every_figure_has_a_text_of_its_own():
    """It says what is seen; where the chapter found something, that comes first."""
    texts = {}
    for name in known():
        for i, cell in enumerate(cells(name)):
            for output in cell.get("outputs", ()):
                if "image/png" in output.get("data", {}):
                    shown = cell.metadata.get("mystnb", {})
                    alt = shown.get("image", {}).get("alt", "")
                    found = output.metadata.get("image/png", {}).get("alt", "")
                    assert alt.startswith(found) and "caption" in shown.get("figure", {}), name
                    texts[name, i] = alt
    assert [key for key, text in texts.items() if len(text.split()) < 6] == []
    assert [text for text, n in Counter(texts.values()).items() if n > 1] == []


@every_chapter
def test_a_figure_carries_the_finding(name):
    """One figure of a page at least says what it shows, with numbers from the rows."""
    drawn = [cell for cell in cells(name) if "text.figure(" in cell.source]
    assert drawn and all("mystnb" in cell.metadata for cell in drawn)
