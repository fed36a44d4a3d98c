"""Extensions of the book: labels as cited, whole paragraphs, buttons where there is an address."""

from importlib.util import module_from_spec, spec_from_file_location
from types import SimpleNamespace

import pytest

from acelib.provenance import ROOT


def extension(name):
    spec = spec_from_file_location(name, ROOT / "book" / "_ext" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entry(year, *names):
    people = [SimpleNamespace(prelast_names=[], last_names=[name]) for name in names]
    return SimpleNamespace(persons={"author": people}, fields={"year": year})


def test_labels_are_authors_and_year():
    entries = [
        entry("2022", "Meng", "Bau", "Andonian"),
        entry("2023", "Yu", "Ananiadou"),
        entry("2025", "{ACE authors}"),
        entry("2023", "Meng", "Sharma", "Bau"),
        entry("2023", "Meng", "Other", "Bau"),
    ]
    found = list(extension("author_year").Labels().format_labels(entries))
    expected = ["Meng et al., 2022", "Yu and Ananiadou, 2023", "ACE authors, 2025"]
    assert found == [*expected, "Meng et al., 2023a", "Meng et al., 2023b"]


def test_wrapped_lines_are_one_and_others_stay():
    plain, full = extension("plain_docstrings"), "x" * 80
    above = [f"{full} first", "then more.", ""]
    lines = [*above, "n: a number", "    m: indented", "", full, "wrapped"]
    assert plain.joined(lines) == [
        f"{full} first then more.",
        "",
        "n: a number",
        "    m: indented",
        "",
        f"{full} wrapped",
    ]


@pytest.mark.parametrize("url", ["", "https://code.example/acelib"])
def test_there_are_buttons_if_the_repository_has_an_address(url):
    chosen = {"repository_url": url, "launch_buttons": {"colab_url": "https://colab.example"}}
    repository = extension("repository")
    repository.options(None, SimpleNamespace(html_theme_options=chosen))
    assert [name in chosen for name in repository.BUTTONS] == [bool(url)] * 3
    assert ("launch_buttons" in chosen) is bool(url)


def test_plotly_comes_with_the_book_and_an_old_installation_is_refused(monkeypatch, tmp_path):
    plotly = extension("offline_plotly")
    assert plotly.source().name == plotly.FILE and plotly.source().stat().st_size > 1_000_000
    page = SimpleNamespace(outdir=tmp_path, builder=SimpleNamespace(format="html"))
    plotly.copy(page, None)
    assert (tmp_path / "_static" / "plotly" / plotly.FILE).exists()
    monkeypatch.setattr(plotly, "entry_points", lambda group: SimpleNamespace(names=set()))
    with pytest.raises(plotly.ExtensionError, match="install it anew"):
        plotly.setup(SimpleNamespace(connect=None))
