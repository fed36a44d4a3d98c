"""How-to pages, and the API's, do what they say: what they show is what their commands print.

A block of ``bash`` or ``python`` with a block of ``text`` behind it is run, and prints that text,
whatever the digits; a command that takes long has no such block, and is checked by its parser.
With ``ACELIB_UPDATE_HOWTO=1`` the texts are written anew.
"""

import ast
import io
import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from textwrap import fill

import pytest
import typer
import yaml

from acelib.book import contents
from acelib.book.cli import app
from acelib.provenance import ROOT

UPDATE = os.environ.get("ACELIB_UPDATE_HOWTO") == "1"
PAGES = sorted(path for part in ("howto", "api") for path in (ROOT / "book" / part).glob("*.md"))
WIDTH = 92  #: of what is printed
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.M | re.S)
COMMANDS = typer.main.get_command(app).commands
OTHERS = ("make", "pytest", "jupyter", "pip", "cp")  #: commands that are not ours
every_page = pytest.mark.parametrize("path", [pytest.param(p, id=p.stem) for p in PAGES])


def blocks(path):
    return [match.groups() for match in BLOCK.finditer(path.read_text("utf-8"))]


def commands(source):
    """The commands of a block, as lists of words."""
    lines = source.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def printed(text):
    """What is compared: words, without lines of tables, digits and blanks."""
    return re.sub(r"[-\d.,]*\d|[^\w'?]+", " ", text).split()


def test_every_page_is_in_the_book_and_shows_something():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    entries = [entry for part in toc["parts"] for entry in part["chapters"]]
    files = {one["file"] for entry in entries for one in (entry, *entry.get("sections", ()))}
    there = {path.relative_to(ROOT).with_suffix("").as_posix() for path in PAGES}
    assert there and there <= files
    assert all(any(output for *_, output in blocks(path)) for path in PAGES)


@every_page
def test_every_command_is_one_that_there_is(path):
    for language, source, _ in blocks(path):
        if language == "python":
            ast.parse(source)
            continue
        for program, *words in commands(source):
            assert program in ("acelib", *OTHERS), program
            if program == "acelib":
                context = COMMANDS[words[0]].make_context(words[0], words[1:])
                if words[0] == "run":
                    check_run(context.params)


def check_run(given):
    """Chapters and parameters are there; values are in the form of their defaults."""
    for chapter in given["chapters"] or ():
        pairs = dict(pair.split("=", 1) for pair in given["parameter"] or ())
        contents.checked_parameters(
            contents.find(chapter), {key: json_or_text(value) for key, value in pairs.items()}
        )


def json_or_text(value):
    try:
        return json.loads(value)
    except ValueError:
        return value


@every_page
def test_a_page_shows_what_its_commands_print(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("data", "tests", "notebooks"):  # read by their names in the repository
        (tmp_path / name).symlink_to(ROOT / name)
    space, found = {"__name__": "page"}, []
    for language, source, output in blocks(path):
        if language == "python":
            with redirect_stdout(io.StringIO()) as out:
                exec(compile(source, path.name, "exec"), space)
            text = out.getvalue()
        elif output is None:
            continue
        else:
            text = "".join(ran(words) for words in commands(source))
        found.append((source, output or "", shown(text)))
    if UPDATE:
        return renew(path, found)
    for source, expected, text in found:
        assert printed(text) == printed(expected), f"{source}\n{text}(see UPDATE)"


def ran(words):
    """What a command prints; an edit that fails, or is of an unknown name, has printed it too."""
    assert words[0] == "acelib"
    main = [sys.executable, "-W", "ignore", "-c", "from acelib.book.cli import app; app()"]
    width = {"COLUMNS": str(WIDTH), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*main, *words[1:]], capture_output=True, text=True, env={**os.environ, **width}
    )
    assert done.returncode in (0, 3, 4), done.stderr
    return done.stdout


def shown(text):
    """As a page shows it: no folders of this machine, no blanks at the ends of lines."""
    text = text.replace(f"{ROOT}{os.sep}", "").replace(f"{Path.cwd()}{os.sep}", "")
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    whole = (len(line) <= WIDTH for line in lines)
    return "".join(
        f"{line if fits else fill(line, WIDTH, break_on_hyphens=False)}\n"
        for line, fits in zip(lines, whole, strict=True)
    )


def renew(path, found):
    texts = {source: text for source, _, text in found}

    def block(match):
        language, source, output = match.groups()
        if output is None:
            return match[0]
        return f"```{language}\n{source}```\n\n```text\n{texts[source]}```\n"

    path.write_text(BLOCK.sub(block, path.read_text("utf-8")), "utf-8")
