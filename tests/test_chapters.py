"""Running chapters: parameters are checked, outputs are atomic and carry their provenance,
staleness is seen, an interruption resumes.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from acelib.book import build, chapters
from acelib.book.chapters import ChapterError, execute, record_of, run, stale
from acelib.book.contents import (
    checked_parameters,
    find,
    known,
    parameters,
    profile,
    run_folder,
    strays,
)
from acelib.provenance import ROOT, code_hash, data_hash


def contents(root, *names):
    """Write a table of contents."""
    lines = [f"      - file: notebooks/{name}" for name in names]
    text = "\n".join(["parts:", "  - chapters:", "      - file: book/reading", *lines])
    (root / "_toc.yml").write_text(text + "\n")


@pytest.fixture
def root(tmp_path):
    """A repository with one chapter, which fails for n = 0 and takes a minute for n = 60."""
    for folder in ("notebooks", "acelib", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "acelib" / "lib.py").write_text("A = 1  # one\n")
    (tmp_path / "data" / "facts.csv").write_text("a,b\n")
    defaults = "n = 3  # cases; 0 fails\nrate = 0.5\nmodels = ['a']\ndevice = None"
    cells = [
        new_markdown_cell("# One"),
        new_code_cell(defaults, metadata={"tags": ["parameters"]}),
        new_code_cell(
            "import time; time.sleep(n if n > 10 else 0)\nprint(6 // n, models, rate)\n"
            "if n < 0:\n    from acelib import lib"
        ),
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(
        new_notebook(cells=cells, metadata=metadata), tmp_path / "notebooks" / "01_one.ipynb"
    )
    contents(tmp_path, "01_one")
    yield tmp_path
    code_hash.cache_clear(), data_hash.cache_clear()


def printed(path) -> str:
    return "".join(
        out.text
        for cell in nbformat.read(path, 4).cells
        for out in cell.get("outputs", [])
        if out.output_type == "stream"
    )


def test_unknown_notebooks_and_parameters_are_refused_with_the_known_ones(root):
    chapter = find("01_one", root)
    with pytest.raises(ValueError, match="unknown notebook '02_two'; known: 01_one"):
        find("02_two", root)
    with pytest.raises(ValueError, match="no parameter 'm'; known: n = 3, rate = 0.5"):
        checked_parameters(chapter, {"m": 1})
    with pytest.raises(ValueError, match="'n' of 01_one must be a whole number.*got 'many'"):
        checked_parameters(chapter, {"n": "many"})
    assert checked_parameters(chapter, {"rate": 1, "device": "cuda"}) == {
        "rate": 1.0,
        "device": "cuda",
    }
    for name in ("", "..", "a/b", ".hidden", "a\n", "x" * 300):
        with pytest.raises(ValueError, match="^run name .{2,150} is not a folder name") as refused:
            run_folder(name, root)
        assert len(str(refused.value)) < 250


@pytest.mark.parametrize("value", [None, -1, [], "", True, 1.5, float("nan")])
def test_a_value_that_makes_no_sense_is_refused_before_any_work(root, value):
    folder = run_folder("quick", root)
    with pytest.raises(ValueError, match="parameter 'n' of 01_one must be a whole number, 0 or m"):
        list(run(["01_one"], {"n": value}, folder, progress=False, root=root))
    assert not (root / "runs").exists()


def test_a_parameters_cell_that_lost_its_tag_is_named(root):
    chapter = find("01_one", root)
    chapter.write_text(chapter.read_text().replace('"parameters"', '"parametres"'))
    with pytest.raises(ValueError, match="01_one: no cell is tagged 'parameters'"):
        checked_parameters(chapter, {"n": 1})
    assert checked_parameters(chapter, {}) == {}


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"cells": 3}'])
def test_a_chapter_that_cannot_be_read_is_named(root, content):
    chapter = find("01_one", root)
    chapter.unlink() if content is None else chapter.write_text(content)
    with pytest.raises(ValueError, match="notebooks/01_one.ipynb cannot be read as a notebook"):
        list(run(["01_one"], {}, None, progress=False, root=root))


def test_chapters_are_those_of_the_table_of_contents(root):
    for stray in ("Untitled", "01_one-Copy1"):
        (root / "notebooks" / f"{stray}.ipynb").write_text("")
    assert list(known(root)) == ["01_one"]
    assert [path.stem for path in strays(root)] == ["01_one-Copy1", "Untitled"]
    contents(root, "02_two", "01_one.ipynb")
    assert list(known(root)) == ["02_two", "01_one"]
    assert list(known(ROOT))[:2] == ["00_world", "01_storage"] and not strays()


def test_what_a_killed_run_left_is_swept_by_the_next(root):
    """What a process that runs is at stays."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    partial = root / "runs" / ".partial"
    for name in (str(gone.pid), str(os.getppid()), "mine"):
        (partial / name).mkdir(parents=True)
        (partial / name / "01_one.ipynb").write_text("{")
    list(run([], {}, None, progress=False, root=root))
    assert sorted(path.name for path in partial.iterdir()) == sorted([str(os.getppid()), "mine"])


def test_a_run_keeps_its_provenance_is_reused_and_becomes_stale(root):
    chapter, folder = find("01_one", root), run_folder("quick", root)
    source = chapter.read_bytes()
    assert stale(chapter, {"n": 2}, folder / chapter.name, root) == ["it was never executed"]
    ((_name, record),) = run(["01_one"], {"n": 2}, folder, progress=False, root=root)
    assert printed(folder / chapter.name) == "3 ['a'] 0.5\n" and chapter.read_bytes() == source
    assert (
        record == record_of(folder / chapter.name)
        and record["parameters"] == {"n": 2}
        and record["versions"]["python"]
    )
    last = nbformat.read(folder / chapter.name, 4).cells[-1]
    assert (
        last.metadata.tags == ["provenance"]
        and "`n = 2`" in last.source
        and record["hashes"]["library"] in last.source
    )
    assert list(run(["01_one"], {"n": 2}, folder, progress=False, root=root)) == [("01_one", None)]
    assert stale(chapter, {"n": 3}, folder / chapter.name, root) == ["the parameters changed"]
    assert not [
        path for path in root.rglob("*") if path.suffix == ".new" or ".partial" in path.parent.parts
    ]

    def changed(path, text):
        path.write_text(text)
        code_hash.cache_clear(), data_hash.cache_clear()
        return stale(chapter, {"n": 2}, folder / chapter.name, root)

    assert changed(root / "acelib" / "lib.py", '"""New words."""\n\nA = 1\n') == []
    assert changed(root / "acelib" / "cli.py", "B = 1") == []
    assert changed(root / "acelib" / "lib.py", "A = 2") == ["the library changed"]
    assert changed(root / "data" / "facts.csv", "a,c\n") == [
        "the library changed",
        "the data changed",
    ]


def test_the_page_says_what_was_read_and_what_was_computed(root):
    """Rows that ship make a chapter stale when they change, not when they are certified."""
    chapter = find("01_one", root)
    notebook = nbformat.read(chapter, 4)
    cell = """import os
from acelib.study import rows
folders = rows.Folders(rows.Path("../results").resolve(), rows.Path("../runs/results").resolve())
series = rows.Series({"model": "m"}, {}, (), {str(i): i for i in range(n)},
                     lambda items: [[{"square": i * i}] for i in items])
print(len(rows.table(rows.Experiment("01_one", (series,)), folders=folders)))"""
    notebook.cells.append(new_code_cell(cell))
    nbformat.write(notebook, chapter)

    record = execute(chapter, {"n": 2}, root / "other.ipynb", root=root)
    assert record["rows"] == {"01_one": "2 rows computed"} and not (root / "results").exists()
    record = execute(chapter, root=root)  # in place: rows ship
    assert record["rows"] == {"01_one": "2 rows read from runs/, 1 computed"}
    (shipped,) = (root / "results" / "01_one").glob("*.jsonl")
    assert not stale(chapter, root=root)
    assert "3 rows read from results/ (computed 20" in execute(chapter, root=root)["rows"]["01_one"]
    assert "3 rows read from results/" in nbformat.read(chapter, 4).cells[-1].source

    text = shipped.read_text()
    shipped.write_text(text.replace('"manifest": {', '"manifest": {"certified": {}, '))
    assert not stale(chapter, root=root)
    shipped.write_text(text.replace('"square": 4', '"square": 5'))
    assert stale(chapter, root=root) == ["the rows changed"]


def test_another_sentence_makes_a_chapter_stale(root):
    chapter, template = find("01_one", root), root / "notebooks" / "text" / "01_one.md.j2"
    template.parent.mkdir()
    template.write_text("{% block said %}Six.{% endblock %}")
    execute(chapter, root=root)
    (template.parent / "02_two.md.j2").write_text("{% block said %}Two.{% endblock %}")
    assert not stale(chapter, root=root)
    template.write_text("{% block said %}Seven.{% endblock %}")
    assert stale(chapter, root=root) == ["the text changed"]


def test_what_a_figure_shows_is_its_caption_and_its_alt_text(root):
    """The finding comes before what is drawn, which the next run finds as it was."""
    chapter = find("01_one", root)
    notebook = nbformat.read(chapter, 4)
    shown = {"figure": {"caption": "Bars.", "name": "fig-a"}, "image": {"alt": "Two bars."}}
    draw = """from IPython.display import display
class Drawn:
    def _repr_png_(self):
        return b"png"
display(Drawn(), metadata={"image/png": {"alt": f"{n} is found."}})"""
    notebook.cells += [new_code_cell(draw, metadata={"mystnb": shown}), new_code_cell("n")]
    nbformat.write(notebook, chapter)
    for n in (3, 4):
        execute(chapter, {"n": n}, root / "other.ipynb", root=root)
        cell = nbformat.read(root / "other.ipynb", 4).cells[-3]
        assert cell.metadata.mystnb.figure == {"caption": f"{n} is found. Bars.", "name": "fig-a"}
        assert cell.metadata.mystnb.image.alt == f"{n} is found. Two bars."
        shutil.copy(root / "other.ipynb", chapter)


def test_a_corrupted_run_is_run_again(root):
    chapter, folder = find("01_one", root), run_folder("quick", root)
    folder.mkdir(parents=True)
    for rubbish in ("", "{", '{"cells": []}', "[]"):
        (folder / chapter.name).write_text(rubbish)
        assert stale(chapter, {}, folder / chapter.name, root) == ["it was never executed"]
    ((_name, record),) = run(["01_one"], {}, folder, progress=False, root=root)
    assert record and printed(folder / chapter.name) == "2 ['a'] 0.5\n"


def test_in_place_twice_gives_the_same_notebook(root):
    chapter = find("01_one", root)
    first, second = ((execute(chapter, root=root), nbformat.read(chapter, 4))[1] for _ in range(2))
    assert (
        printed(chapter) == "2 ['a'] 0.5\n"
        and not stale(chapter, root=root)
        and len(second.cells) == 4
    )
    for nb in (first, second):
        (
            nb.metadata.acelib.pop("wall_time_s"),
            nb.metadata.acelib.pop("date"),
            nb.metadata.acelib.pop("commit"),
            nb.cells.pop(),
        )
    assert first == second and "papermill" not in json.dumps(second)
    nb = nbformat.read(chapter, 4)
    nb.cells[0].source = "# Better prose"
    nbformat.write(nb, chapter)
    assert not stale(chapter, root=root)
    nb.cells[2].source += "\n1"
    nbformat.write(nb, chapter)
    assert stale(chapter, root=root) == ["the notebook changed"]


def test_a_chapter_whose_code_changes_while_it_runs_is_stale(root, monkeypatch):
    chapter, library, run_cells = (
        find("01_one", root),
        root / "acelib" / "lib.py",
        chapters.papermill.execute_notebook,
    )

    def edited_meanwhile(*given, **named):
        library.write_text("A = 2\n")
        code_hash.cache_clear()
        return run_cells(*given, **named)

    monkeypatch.setattr(chapters.papermill, "execute_notebook", edited_meanwhile)
    execute(chapter, root=root)
    assert stale(chapter, root=root) == ["the library changed"]


def test_a_failing_chapter_says_where_and_leaves_the_output(root):
    chapter = find("01_one", root)
    before = chapter.read_bytes()
    with pytest.raises(ChapterError, match="01_one stopped in cell 3: ZeroDivisionError.*partial"):
        execute(chapter, {"n": 0}, root=root)
    assert chapter.read_bytes() == before


def test_ctrl_c_leaves_nothing_half_done_and_the_same_command_continues(root):
    command = [
        sys.executable,
        "-c",
        "from acelib.book.cli import app; app()",
        "run",
        "01_one",
        "-p",
        "n",
        "60",
        "--name",
        "long",
    ]
    environment = os.environ | {"ACELIB_ROOT": str(root), "PYTHONPATH": str(ROOT)}

    def heed():
        return signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # a parent in the background may have it ignored

    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed
    )
    partial, since = root / "runs" / ".partial" / str(process.pid) / "01_one.ipynb", time.time()
    while (
        not (partial.exists() and '"status": "running"' in partial.read_text())
        and time.time() - since < 60
    ):
        time.sleep(0.2)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=30)[1]
    assert (
        process.returncode == 130
        and "interrupted; rerun the same command to resume" in said
        and "Traceback" not in said
    )
    assert not (root / "runs" / "long" / "01_one.ipynb").exists()
    ((_name, record),) = run(
        ["01_one"], {"n": 6}, run_folder("long", root), progress=False, root=root
    )
    assert record and printed(root / "runs" / "long" / "01_one.ipynb").startswith("1 ")


def test_chapters_at_once_are_those_one_after_another_and_claims_come_last(root):
    chapter = find("01_one", root)
    contents(root, "01_one", "02_two", "claims")
    nbformat.write(nbformat.read(chapter, 4), root / "notebooks" / "02_two.ipynb")
    read = [
        new_code_cell(
            "from pathlib import Path\n"
            "print(sorted(p.stem for p in Path('../runs/both').glob('*.ipynb')))"
        )
    ]
    nbformat.write(
        new_notebook(cells=read, metadata=nbformat.read(chapter, 4).metadata),
        root / "notebooks" / "claims.ipynb",
    )
    folder, sizes = run_folder("both", root), {"01_one": {"n": 2}, "02_two": {"rate": 1}}
    names = ["claims", "01_one", "02_two"]
    done = dict(run(names, {}, folder, progress=False, root=root, sizes=sizes, jobs=2))
    assert set(done) == set(names) and all(done.values()) and list(done)[-1] == "claims"
    assert (
        printed(folder / "01_one.ipynb") == "3 ['a'] 0.5\n"
        and printed(folder / "02_two.ipynb") == "2 ['a'] 1.0\n"
    )
    assert printed(folder / "claims.ipynb") == "['01_one', '02_two']\n"
    assert dict(
        run(names, {}, folder, progress=False, root=root, sizes=sizes, jobs=2)
    ) == dict.fromkeys(names)
    (root / "results" / "claims").mkdir(parents=True)
    (root / "results" / "claims" / "01_one.json").write_text(
        "{}"
    )  # what a chapter hands over is no data, and yet it counts
    assert stale(find("claims", root), {}, folder / "claims.ipynb", root) == ["the claims changed"]
    with pytest.raises(ChapterError, match="01_one stopped in cell 3: ZeroDivisionError"):
        list(
            run(
                ["01_one", "02_two"],
                {},
                folder,
                progress=False,
                root=root,
                sizes={"01_one": {"n": 0}},
                jobs=2,
            )
        )


def test_what_a_chapter_hands_over_in_a_run_makes_claims_stale_in_that_run(root):
    """Whether ``LAST`` is up to date is asked when the others have run, not before."""
    chapter, reference = find("01_one", root), root / "results" / "claims" / "01_one.json"
    contents(root, "01_one", "claims")
    metadata = nbformat.read(chapter, 4).metadata
    write = [
        new_code_cell("n = 1", metadata={"tags": ["parameters"]}),
        new_code_cell(f"open({str(reference)!r}, 'w').write(str(n))"),
    ]
    nbformat.write(new_notebook(cells=write, metadata=metadata), chapter)
    nbformat.write(
        new_notebook(
            cells=[new_code_cell(f"print(open({str(reference)!r}).read())")], metadata=metadata
        ),
        root / "notebooks" / "claims.ipynb",
    )
    reference.parent.mkdir(parents=True)
    names, folder = ["01_one", "claims"], run_folder("both", root)
    for n in (1, 2):
        assert all(
            dict(
                run(names, {}, folder, progress=False, root=root, sizes={"01_one": {"n": n}})
            ).values()
        )
        assert printed(folder / "claims.ipynb") == f"{n}\n"
    assert dict(
        run(names, {}, folder, progress=False, root=root, sizes={"01_one": {"n": 2}})
    ) == dict.fromkeys(names)


@pytest.mark.parametrize("name", known())
def test_parameters_are_those_that_papermill_finds(name):
    theirs = chapters.papermill.inspect_notebook(str(find(name)))
    assert parameters(find(name)) == {
        key: {"default": one["default"], "help": one["help"]} for key, one in theirs.items()
    }


def test_profiles_name_parameters_that_chapters_have():
    with pytest.raises(ValueError, match="unknown profile 'all'; known: paper, quick"):
        profile("all")
    for name in ("paper", "quick"):
        for chapter, sizes in profile(name).items():
            assert checked_parameters(find(chapter), sizes) == sizes
    small, large = profile("quick"), profile("paper")
    assert large["03_ace"]["n_cases"] == 3000 > small["03_ace"]["n_cases"] and set(large) == set(
        small
    )


def test_kernels_find_this_library():
    assert chapters.ENVIRONMENT["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)


def test_pages_of_a_run_say_so(tmp_path, monkeypatch):
    for part in ("book", "notebooks", "runs/small"):
        (tmp_path / part).mkdir(parents=True)
    for file in ("_toc.yml", "_config.yml"):
        (tmp_path / file).write_text("\ntitle: A book\n")
    nb = new_notebook(cells=[new_markdown_cell("# Title")])
    nbformat.write(nb, tmp_path / "runs" / "small" / "a.ipynb")
    nbformat.write(nb, tmp_path / "notebooks" / "claims.ipynb")
    for page in build.TOLD:
        (tmp_path / "book" / page).write_text("# What was found\n\nA claim.\n")
    seen, pages = [], []

    def built(source, output):
        seen.extend(nbformat.read(source / "notebooks" / f"{x}.ipynb", 4) for x in ("a", "claims"))
        pages.extend((source / "book" / page).read_text() for page in build.TOLD)
        return output

    monkeypatch.setattr(build, "_built", built)
    build.build_run("small", tmp_path)
    assert "from the run **small**" in seen[0].cells[1].source
    assert "says nothing of the run **small**" in seen[1].cells[1].source
    assert all(page.index("says nothing of the run") < page.index("A claim.") for page in pages)
    for nb in seen:
        nbformat.validate(nb)
    (tmp_path / "runs" / "small" / "b.ipynb").write_text("[]")
    with pytest.raises(ValueError, match=r"b\.ipynb cannot be read as a notebook"):
        build.build_run("small", tmp_path)
