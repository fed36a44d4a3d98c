"""The committed book is what the committed code gives: executed, fresh, without errors, checked,
complete.
"""

import ast
import re
import subprocess
import tomllib
from importlib.util import resolve_name
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from acelib.book import chapters, contents
from acelib.provenance import ROOT

CHAPTERS = contents.known()
every_chapter = pytest.mark.parametrize(
    "path", [pytest.param(path, id=name) for name, path in CHAPTERS.items()]
)
executed_chapter = pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=name) for name, path in CHAPTERS.items()],
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())


def code_cells(path):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def outputs(path, kind):
    return [
        out
        for cell in code_cells(path)
        for out in cell.outputs
        if kind in (out.output_type, out.get("name"))
    ]


def test_there_are_chapters_and_the_table_of_contents_has_each_once():
    files = [TOC["root"], *(entry["file"] for part in TOC["parts"] for entry in part["chapters"])]
    assert CHAPTERS and len(set(files)) == len(files)
    assert [file for file in files if not list(ROOT.glob(f"{file}.*"))] == []
    assert {Path(file).name for file in files if file.startswith("notebooks/")} == set(CHAPTERS)


@executed_chapter
def test_a_chapter_is_executed_without_error_or_warning_and_fresh(path):
    nbformat.validate(nbformat.read(path, 4))
    assert not outputs(path, "error") and not outputs(path, "stderr")
    assert chapters.stale(path) == [], f"acelib run {path.stem} --update"


@every_chapter
def test_a_chapter_has_one_cell_of_readable_parameters(path):
    tagged = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
    names = [
        re.split(r"[\s:=]", line)[0]
        for line in tagged[0].source.splitlines()
        if re.match(r"\w+\s*(:.*)?=", line)
    ]
    assert len(tagged) == 1 and list(contents.parameters(path)) == names and names


@executed_chapter
def test_nbval_compares_something_in_a_chapter(path):
    """An unexecuted cell, or one that ends in ";" (which nbval does not honour), would be compared
    with nothing or wrongly.
    """
    cells = [cell for cell in code_cells(path) if cell.source.strip()]
    assert all(cell.execution_count for cell in cells) and not [
        cell.source for cell in cells if cell.source.rstrip().endswith(";")
    ]
    assert not [cell for cell in cells if re.search(r"NBVAL_(SKIP|IGNORE_OUTPUT)", cell.source)]
    printed = "".join(out.get("text", "") for cell in cells for out in cell.outputs)
    assert re.search(r"^OK: \S+, \d+ values$", printed, re.M), (
        "no check cell: one that calls acelib.testing.assert_table"
    )


@every_chapter
def test_a_chapter_knows_no_machine(path):
    assert not re.search(r"/(home|root|Users|tmp|work|opt)/\w", path.read_text("utf-8"))


RULES = re.findall(
    r"^regex: (.*)$\n^replace: (.*)$", (ROOT / "tests" / "nbval.cfg").read_text(), re.M
)  # as nbval reads them
SAMPLES = [
    "<object at 0x7f3a2b1c>",
    "took 12.3 s, then 450 ms",
    "2026-01-31 10:20:30.5",
    "/usr/lib/python3/site",
    "measured on 2 threads of a CPU",
]


def test_every_sanitizer_rule_is_read_and_works():
    text = (ROOT / "tests" / "nbval.cfg").read_text()
    assert len(RULES) == len(re.findall(r"^\[", text, re.M)) == len(SAMPLES)
    for (pattern, replacement), sample in zip(RULES, SAMPLES, strict=True):
        assert replacement in re.sub(pattern, replacement, sample) and not re.search(
            pattern, "accuracy 0.93, layer 12, 3 / 4, n=100"
        )


def requirements(*extras):
    listed = [
        *PROJECT["dependencies"],
        *(entry for extra in extras for entry in PROJECT["optional-dependencies"][extra]),
    ]
    return {canonicalize_name(Requirement(entry).name): Requirement(entry) for entry in listed}


def test_constraints_pin_every_requirement_within_its_range():
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    pins = {
        canonicalize_name(name): version for name, version in (line.split("==") for line in lines)
    }
    for name, requirement in requirements("book", "real", "test").items():
        assert name in pins, f"{name} is not in constraints.txt"
        assert requirement.specifier.contains(pins[name]), (
            f"{requirement} excludes the pinned {pins[name]}"
        )


def test_conda_users_get_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip = environment["dependencies"][0], environment["dependencies"][-1]["pip"]
    assert python == "python" + PROJECT["requires-python"] and pip == [
        "-c constraints.txt",
        "-e .[book,real,test]",
    ]


def documented():
    """The modules of the API, in the order of its pages."""
    (api,) = [e for part in TOC["parts"] for e in part["chapters"] if e["file"] == "book/api"]
    pages = [(ROOT / f"{entry['file']}.md").read_text() for entry in api["sections"]]
    return [name for page in pages for name in re.findall(r"automodule:: (\S+)", page)]


def test_every_module_is_documented():
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "acelib").rglob("*.py")
    }
    assert sorted(documented()) == sorted(name for name in modules if not name.endswith("__init__"))


def test_nothing_imports_from_further_down():
    """The API's pages are in reading order: a module imports only from those above it."""
    above = {"acelib.editors"}
    for name in documented():
        path = (ROOT / Path(*name.split("."))).with_suffix(".py")
        used = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                source = resolve_name(
                    "." * node.level + (node.module or ""), name.rpartition(".")[0]
                )
                used |= {_module(source, alias.name) for alias in node.names}
        assert {module for module in used if module.split(".")[0] == "acelib"} <= above, name
        above.add(name)


def _module(source: str, name: str) -> str:
    """The module that ``from source import name`` reads: a submodule, or ``source`` itself."""
    inside = ROOT / Path(*source.split(".")) / f"{name}.py"
    return f"{source}.{name}" if inside.exists() else source


def test_ci_is_make_test():
    assert (
        "make test" in (ROOT / ".ci" / "run").read_text()
        and subprocess.run(["bash", "-n", ROOT / ".ci" / "run"]).returncode == 0
    )


def test_no_file_names_a_package_index():
    for name in ("pyproject.toml", "constraints.txt", "environment.yml", "Makefile"):
        assert not re.search(r"https?://|index-url|find-links", (ROOT / name).read_text()), name
