"""Every line and cell fits the page, and what is no page stays out of the book."""

import subprocess

import nbformat
import pytest
import yaml

from acelib.book import contents
from acelib.provenance import ROOT

COLUMNS, LINES = 100, 12  #: of a line anywhere, of a cell
CHAPTERS = contents.known()
DATA = "data/"  #: kept as they are: their hash is part of what numbers depend on


def _files(*suffixes: str) -> list[str]:
    """Files under version control, in order."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [name for name in listed if name.endswith(suffixes) and (ROOT / name).exists()]


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=name) for name, path in CHAPTERS.items()],
)
def test_a_cell_reads_at_a_glance(path):
    cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    long = [source for source in cells if len(source.splitlines()) > LINES]
    wide = [line for source in cells for line in source.splitlines() if len(line) > COLUMNS]
    assert not long and not wide, f"{len(long)} cells too long, {len(wide)} lines too wide"


def test_no_line_is_wider_than_the_page():
    wide = [
        f"{name}:{number}"
        for name in _files(".py", ".md", ".toml", ".cfg", "Makefile")
        if not name.startswith(DATA)
        for number, line in enumerate((ROOT / name).read_text("utf-8").splitlines(), 1)
        if len(line) > COLUMNS and not line.startswith("|")  # a table's row is one line
    ]
    assert not wide


def test_what_is_no_page_is_excluded_from_the_book():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert config["only_build_toc_files"]
    assert {"acelib", "data", "notebooks/text", "results", "runs", "tests"} <= set(
        config["exclude_patterns"]
    )
