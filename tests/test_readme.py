"""The README and the book's map say what is there: functions resolve, the map of files is complete,
commands exist.
"""

import re
from functools import reduce
from importlib import import_module

import pytest
import typer

from acelib.book import contents
from acelib.book.cli import app
from acelib.provenance import ROOT

RUN = r"acelib run (\w+)((?: +-p \w+ +(?:'[^']*'|[^\s'\\]+))+)"  #: with parameters
README = (ROOT / "README.md").read_text("utf-8")
MAPPED = sorted(
    set(re.findall(r"<acelib\.(\w+(?:\.\w+)+)>", (ROOT / "book" / "paper_to_code.md").read_text()))
)


@pytest.mark.parametrize("name", MAPPED)
def test_a_mapped_function_exists(name):
    wing, *path = name.split(".")
    if path and (ROOT / "acelib" / wing / f"{path[0]}.py").exists():
        wing = f"{wing}.{path.pop(0)}"
    assert callable(reduce(getattr, path, import_module(f"acelib.{wing}")))


def test_the_map_of_files_has_every_module_once():
    listed = README.split("nothing imports from further down:\n")[1].split("\nnotebooks/")[0]
    names = [
        name.strip(" /")
        for line in listed.splitlines()
        for name in re.split(r"\s{2,}", line.strip())[0].split(",")
    ]
    there = {
        path.relative_to(ROOT / "acelib").parts[0].removesuffix(".py")
        for path in (ROOT / "acelib").rglob("*.py")
    } - {"__init__"}
    assert MAPPED and sorted(names) == sorted(there)


def test_the_commands_exist():
    commands = typer.main.get_command(app).commands
    assert set(re.findall(r"^acelib (\w+)", README, re.M)) <= set(commands)
    for line in re.findall(r"^acelib (.*?)(?:\s+#.*)?$", README, re.M):
        known = {
            option for parameter in commands[line.split()[0]].params for option in parameter.opts
        }
        assert set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", line)) <= known, line


def test_runs_that_pages_suggest_name_parameters_that_there_are():
    pages = [
        ROOT / "README.md",
        *(ROOT / "book").rglob("*.md"),
        *(ROOT / "notebooks").glob("*.ipynb"),
    ]
    runs = {found for page in pages for found in re.findall(RUN, page.read_text("utf-8"))}
    assert runs
    for chapter, given in runs:
        assert set(re.findall(r"-p (\w+)", given)) <= set(
            contents.parameters(contents.find(chapter))
        ), (chapter, given)


def test_the_example_says_what_it_prints(capsys):
    [code] = re.findall(r"As a library:\n\n```python\n(.*?)```", README, re.S)
    exec(compile(code, "README.md", "exec"), {})
    [printed] = re.findall(r"print\(.*\)  # (.*)", code)
    assert capsys.readouterr().out.strip() == printed
