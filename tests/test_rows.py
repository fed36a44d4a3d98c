"""Rows that ship are read if they are there, computed if not, never half written, and checked."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from acelib.provenance import ROOT, code_hash
from acelib.study import recheck, rows, store
from acelib.study.recheck import Difference, certify, comparable, recompute, sample, todays_seed
from acelib.study.rows import Experiment, Folders, Series, table


@dataclass(frozen=True)
class Item:
    number: int
    words: tuple[str, ...] = ("a",)


@dataclass
class Squares:
    """Computes squares, counts how often, and breaks at call ``fail``."""

    calls: list
    fail: int = 10**9
    off: float = 0.0

    def __call__(self, items):
        self.calls.append([item.number for item in items])
        if len(self.calls) >= self.fail:
            raise KeyboardInterrupt
        return [
            [{"square": item.number**2 + self.off, "even": item.number % 2 == 0, "text": str(item)}]
            for item in items
        ]


def series(name="one", n=7, compute=None, **changes):
    fields = dict(
        names={"model": "m", "editor": name},
        depends={"settings": "s"},
        code=("acelib.records",),
        items={f"i{i}": Item(i) for i in range(n)},
        compute=compute or Squares([]),
        chunk=3,
    )
    return Series(**fields | changes)


def experiment(*parts, **changes):
    return Experiment("exp", parts or (series(),), **changes)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv(rows.LOG, str(tmp_path / "log.jsonl"))
    return Folders(tmp_path / "results", tmp_path / "runs")


def counts() -> str:
    """Where the rows of the last table came from, as it was logged."""
    *_, last = Path(os.environ[rows.LOG]).read_text().splitlines()
    return rows.sentence([rows.Source(**part) for part in json.loads(last)["sources"]])


@pytest.fixture
def ship(folders, monkeypatch):
    """Compute an experiment and ship its rows; gives the file of its first series."""

    def shipped(exp):
        with monkeypatch.context() as inside:
            inside.setenv(rows.UPDATE, "1")
            table(exp, folders=folders)
        return folders.shipped_file(exp, exp.series[0])

    return shipped


# ---------------------------------------------------------------------- reading and computing


def test_rows_are_computed_once_and_then_read(folders):
    first, told = Squares([]), []
    frame = table(experiment(series(compute=first)), lambda *state: told.append(state), folders)
    assert first.calls == [[0, 1, 2], [3, 4, 5], [6]]
    assert told[0] == (0, 7, "model m, editor one") and told[-1][:2] == (7, 7)
    assert list(frame.columns) == ["model", "editor", "item", "square", "even", "text"]
    assert frame["square"].tolist() == [i**2 for i in range(7)] and frame.editor.eq("one").all()
    assert counts() == "7 rows computed"

    again = Squares([])
    assert table(experiment(series(compute=again)), folders=folders).equals(frame)
    assert not again.calls and counts() == "7 rows read from runs/, 0 computed"
    few = table(experiment(series(n=2, compute=again)), folders=folders)
    assert few.equals(frame[:2]) and not again.calls
    more = table(experiment(series(n=9, compute=again)), folders=folders)
    assert again.calls == [[7, 8]] and more[:7].equals(frame)


def test_what_a_row_depends_on_makes_another_row(folders):
    table(experiment(), folders=folders)
    for change in (
        {"depends": {"settings": "t"}},
        {"code": ("acelib.records", "acelib.world.world")},
        {"items": {f"i{i}": Item(i, ("b",)) for i in range(7)}},
        {"names": {"model": "m", "editor": "two"}},
    ):
        squares = Squares([])
        table(experiment(series(compute=squares, **change)), folders=folders)
        assert len(squares.calls) == 3, change
    one = {"i0": Item(0), "i1": Item(1, ("b",))}
    squares = Squares([])
    table(experiment(series(items=one, compute=squares)), folders=folders)
    assert squares.calls == [], "items of both kinds are kept by now"


def test_several_rows_of_an_item_and_values_of_any_kind(folders):
    def compute(items):
        value = {"a": np.float32(0.5), "b": np.int64(3), "c": (1, 2), "d": float("nan"), "e": "ü\n"}
        return [[value] * item.number for item in items]

    exp = experiment(series(n=3, compute=compute))
    computed = table(exp, folders=folders)
    assert computed.item.tolist() == ["i1", "i2", "i2"] and computed.c[0] == [1, 2]
    assert computed.equals(table(exp, folders=folders))
    assert recompute(exp, sample(exp, 1.0, 0), folders=folders) == []


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"names": {}}, "names that are not empty"),
        ({"names": {"model": ""}}, "names that are not empty"),
        ({"chunk": 0}, "chunks of 0 items"),
        ({"items": {1: Item(1)}}, "id of an item must be a text, got 1"),
        ({"code": ("acelib.nowhere",)}, "'acelib.nowhere' is no module"),
        ({"items": {"a": object()}}, "an item cannot hold <object"),
        ({"compute": lambda items: [[]]}, "rows of 1 items were computed, not of 3"),
        ({"compute": lambda items: [[{"editor": 1}]] * 3, "n": 3}, "has a column 'editor'"),
        ({"compute": lambda items: [[{"a": {1, 2}}]] * 3, "n": 3}, "a row cannot hold {1, 2}"),
    ],
)
def test_refusals(folders, wrong, said):
    with pytest.raises(ValueError, match=said):
        table(experiment(series(**wrong)), folders=folders)


def test_two_series_of_one_name_are_refused():
    with pytest.raises(ValueError, match="2 series of 'exp' are called 'm--one'"):
        experiment(series(), series())
    slashes = series(names={"model": "hub/name", "editor": "A E"})
    assert slashes.stem == "hub_name--A_E"


# ---------------------------------------------------------------------- shipping


def test_shipped_rows_are_read_only_and_said_with_their_date(folders, ship):
    path = ship(experiment())
    before, squares = path.read_bytes(), Squares([])
    table(experiment(series(n=9, compute=squares)), folders=folders)
    assert squares.calls == [[7, 8]] and path.read_bytes() == before
    assert counts().startswith("7 rows read from results/ (computed 20")
    assert counts().endswith("on cpu), 2 computed")
    first = store.read(path).manifest
    assert first["depends"] == {"settings": "s"} and first["code"] == code_hash(("acelib.records",))
    assert {"device", "threads", "versions", "commit", "date"} <= first["computed"].keys()


def test_an_update_extends_keeps_and_replaces(folders, ship):
    def order(path):
        return [line[0] for line in store.read(path).lines]

    path = ship(experiment(series(n=3)))
    assert order(path) == ["i0", "i1", "i2"]
    ship(experiment(series(items={f"i{i}": Item(i) for i in (4, 1, 0)})))
    assert order(path) == ["i4", "i1", "i0", "i2"]  # what is not asked now is kept
    before = path.read_bytes()
    ship(experiment(series(n=2)))
    assert path.read_bytes() == before  # nothing was computed: nothing is written
    ship(experiment(series(n=2, depends={"settings": "t"})))
    assert order(path) == ["i0", "i1"] and store.read(path).manifest["depends"] == {"settings": "t"}
    items = {"i0": Item(0), "i1": Item(1, ("b",))}
    ship(experiment(series(items=items, depends={"settings": "t"})))
    assert len(order(path)) == 2  # an item that changed has its new rows only


def test_rows_computed_without_an_update_ship_with_the_next(folders, ship):
    exp = experiment()
    table(exp, folders=folders)
    assert not folders.shipped.exists()
    squares = Squares([])
    path = ship(experiment(series(compute=squares)))
    assert not squares.calls and len(store.read(path).lines) == 7
    assert not list(folders.shipped.rglob(".*")), "nothing but rows lies in results/"


def test_a_table_is_logged_for_who_executes_the_notebook(folders, ship, monkeypatch, tmp_path):
    ship(experiment(series(n=2)))
    monkeypatch.setenv(rows.LOG, str(tmp_path / "own.jsonl"))
    table(experiment(), folders=folders)
    (line,) = map(json.loads, (tmp_path / "own.jsonl").read_text().splitlines())
    sources = [rows.Source(**part) for part in line["sources"]]
    assert line["experiment"] == "exp"
    assert [(source.where, source.rows) for source in sources] == [("results", 2), ("computed", 5)]
    assert rows.sentence(sources) == counts() == rows.log_sentences(tmp_path / "own.jsonl")["exp"]
    table(experiment(series("two", 3)), folders=folders)
    table(experiment(), folders=folders)  # read now; the first time it was computed
    (said,) = rows.log_sentences(tmp_path / "own.jsonl").values()
    assert said.startswith("2 rows read from results/") and said.endswith("8 computed")
    assert rows.log_sentences(tmp_path / "nothing") == {}


def test_models_side_by_side_are_those_one_after_another(folders, tmp_path):
    def parts():
        names = [{"model": model, "editor": editor} for editor in "ab" for model in "mn"]
        return experiment(*(series(n=3 + i, names=some) for i, some in enumerate(names)))

    aside = table(parts(), folders=folders, jobs=2)
    assert counts() == "18 rows computed"
    assert table(parts(), folders=Folders(None, tmp_path / "other")).equals(aside)
    assert table(parts(), folders=folders).equals(aside)
    assert counts() == "18 rows read from runs/, 0 computed"


# ---------------------------------------------------------------------- interruptions

PROGRAM = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_rows import Folders, Item, Series, experiment, series, table

class Slow:
    def __call__(self, items):
        time.sleep({seconds})
        return [[{{"square": item.number ** 2}}] for item in items]

folders = Folders(Path({root!r}) / "results", Path({root!r}) / "runs")
table(experiment(series(n={n}, compute=Slow())), folders=folders)
"""


def start(tmp_path, n, seconds=0.0, **options):
    program = PROGRAM.format(tests=str(ROOT / "tests"), root=str(tmp_path), n=n, seconds=seconds)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", program], env=environment, **options)


def local_file(folders, n):
    exp = experiment(series(n=n))
    return folders.local_file(exp, exp.series[0])


def test_an_interrupted_table_continues(folders):
    with pytest.raises(KeyboardInterrupt):
        table(experiment(series(compute=Squares([], fail=2))), folders=folders)
    squares = Squares([])
    table(experiment(series(compute=squares)), folders=folders)
    assert squares.calls == [[3, 4, 5], [6]]


def test_a_killed_process_leaves_whole_rows(folders, tmp_path):
    process, path = start(tmp_path, 60, seconds=0.1), local_file(folders, 60)
    since = time.time()
    while len(store.read(path).lines) < 6 and time.time() - since < 60:
        time.sleep(0.02)
    process.kill()
    process.wait()
    kept = len(store.read(path).lines)
    assert 6 <= kept < 60 and kept % 3 == 0
    squares = Squares([])
    assert len(table(experiment(series(n=60, compute=squares)), folders=folders)) == 60
    assert sum(map(len, squares.calls)) == 60 - kept


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_last_line_is_cut_off(folders, cut):
    exp = experiment()
    whole = table(exp, folders=folders)
    path = folders.local_file(exp, exp.series[0])
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    squares = Squares([])
    assert table(experiment(series(compute=squares)), folders=folders).equals(whole)
    assert squares.calls == [[6]] and path.read_bytes() == content


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[]\n", b'{"item": 1}\n', b"\xff\xfe\n"])
@pytest.mark.filterwarnings("ignore::acelib.study.store.DamageWarning")
def test_a_file_that_is_no_file_of_rows_is_written_anew(folders, rubbish):
    exp = experiment()
    path = folders.local_file(exp, exp.series[0])
    path.parent.mkdir(parents=True)
    path.write_bytes(rubbish)
    whole = table(exp, folders=folders)
    assert len(store.read(path).lines) == 7 and table(exp, folders=folders).equals(whole)


# ---------------------------------------------------------------------- damage

DAMAGED = {
    "another number": lambda line: line.replace(b'"square": 4.0', b'"square": 5.0'),
    "another key": lambda line: line.replace(b'"key": "', b'"key": "0'),
    "no JSON": lambda line: line.replace(b"{", b"", 1),
    "no UTF-8": lambda line: line.replace(b"i2", b"i\xff"),
    "no checksum": lambda line: line[: line.rindex(b', "sum"')] + b"}",
    "a checksum, but no rows": lambda line: store._dumped({"item": "i2"}).encode().strip(),
    "nested without end": lambda line: b"[" * 100_000,
    "nothing": lambda line: b"",
}


@pytest.mark.filterwarnings("ignore::acelib.study.store.DamageWarning")
@pytest.mark.parametrize("kept_in", ["runs", "results"])
@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_is_named_and_it_alone_is_computed_again(folders, ship, kept_in, damage):
    exp = experiment()
    whole = table(exp, folders=folders)
    path = folders.local_file(exp, exp.series[0])
    if kept_in == "results":
        local, path = path, ship(exp)
        local.unlink()
    content = path.read_bytes().split(b"\n")
    content[3] = damage(content[3])
    path.write_bytes(b"\n".join(content))
    squares = Squares([])
    with pytest.warns(store.DamageWarning, match=rf"{path.name}, line 4: damaged"):
        again = table(experiment(series(compute=squares)), folders=folders)
    assert again.equals(whole) and squares.calls == [[2]]
    ship(exp)  # writes results/, where damage is left out; in runs/ it was by now
    for file in (path, folders.shipped_file(exp, exp.series[0])):
        kept = store.read(file)
        assert not kept.damaged and len(kept.lines) == 7


@pytest.mark.parametrize("old, new", [(b'{"manifest"', b'{"manifold"'), (b'"s"', b'"t"')])
def test_rows_under_a_damaged_manifest_are_computed_again_and_that_is_said(folders, ship, old, new):
    path = ship(experiment())
    folders.local_file(experiment(), experiment().series[0]).unlink()
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    squares = Squares([])
    with pytest.warns(store.DamageWarning, match=f"{path.name}, line 1: the manifest is damaged"):
        table(experiment(series(compute=squares)), folders=folders)
    assert sum(map(len, squares.calls)) == 7 and counts() == "7 rows computed"


@pytest.mark.filterwarnings("ignore::acelib.study.store.DamageWarning")
def test_no_flipped_bit_gives_other_rows(folders):
    exp = experiment(series(n=2))
    table(exp, folders=folders)
    path = folders.local_file(exp, exp.series[0])
    content, lines = path.read_bytes(), store.read(path).lines
    for place in range(0, 8 * len(content), 9):  # one bit of almost every byte
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        found = store.read(path)
        assert found.lines.items() <= lines.items(), place
        assert found.damaged or found.lines == lines or flipped[-1] != content[-1], place


def test_two_processes_on_one_store_lose_nothing(folders, tmp_path):
    processes = [start(tmp_path, 90, seconds=0.01) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    squares = Squares([])
    frame = table(experiment(series(n=90, compute=squares)), folders=folders)
    assert not squares.calls and frame["square"].tolist() == [i**2 for i in range(90)]
    lines = local_file(folders, 90).read_text().splitlines()
    assert all(json.loads(line) for line in lines)  # none was written into another


def test_a_full_disk_leaves_whole_files(folders, tmp_path):
    """The kernel refuses to let any file grow beyond a limit, as a full disk does."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    process = start(tmp_path, 60, preexec_fn=limit, stderr=subprocess.PIPE, text=True)
    assert "File too large" in process.communicate()[1] and process.returncode
    content = local_file(folders, 60).read_bytes()
    kept = len(store.read(local_file(folders, 60)).lines)
    assert content.endswith(b"\n") and kept > 0 and kept % 3 == 0
    assert len(table(experiment(series(n=60)), folders=folders)) == 60


# ---------------------------------------------------------------------- recomputing


def test_a_sample_holds_some_of_every_series():
    exp = experiment(series("one", 40), series("two", 1), series("three", 5))
    drawn = sample(exp, 0.1, 7)
    by_series = [[id_ for part, id_ in drawn if part is one] for one in exp.series]
    assert list(map(len, by_series)) == [4, 1, 2] and len({*by_series[0]}) == 4
    assert drawn == sample(exp, 0.1, 7) and drawn != sample(exp, 0.1, 8)
    assert len(sample(exp, 1.0, 0)) == 46 and len(sample(exp, 0.0, 0)) == 5
    with pytest.raises(ValueError, match="share 2 of the items"):
        sample(exp, 2, 0)


def test_a_difference_is_one_sentence_that_says_where(folders, ship):
    ship(experiment())
    wrong = experiment(series(compute=Squares([], off=1e-3)))
    differences = recompute(wrong, sample(wrong, 1.0, 0), folders=folders)
    assert len(differences) == 7
    assert str(differences[2]) == (
        "exp, model m, editor one, item i2: square is kept as 4.0, "
        "computed now it is 4.001 (tolerance 0 + 1e-06 |kept|)"
    )
    loose = replace(wrong, tolerances={"square": (0.0, 0.1)})
    assert recompute(loose, sample(loose, 1.0, 0), folders=folders) == []
    loose = series(compute=Squares([], off=1e-3), tolerances={"square": (0.0, 0.1)})
    assert recompute(experiment(loose), sample(experiment(loose), 1.0, 0), folders=folders) == []
    assert recompute(wrong, [], folders=folders) == []


def moved(item, column="written", expected=100.0, found=99.0):
    return Difference("exp", {"editor": "e"}, item, column, expected, found)


def test_items_whose_search_ended_elsewhere_are_left_out_if_they_are_few():
    """By rounding; what is judged of them may differ too, what is judged of others may not."""
    judged = [moved("i1", "efficacy", 1.0, 0.75), moved("i1")]
    with pytest.warns(
        UserWarning, match="sensitive to rounding, not compared: exp, editor e, item i1"
    ):
        assert comparable(judged, 2) == []
    other = moved("i2", "efficacy", 1.0, 0.75)
    with pytest.warns(UserWarning, match="item i1"):
        assert comparable([*judged, other], 2) == [other]
    both = [moved("i1"), moved("i2")]
    assert comparable(both, 39) == both
    with pytest.warns(UserWarning):
        assert comparable(both, 40) == []
    with pytest.warns(UserWarning):  # rows of an item, of which some move by more
        rows = [
            moved("i1", f"importance of row {i}", 1.0, value) for i, value in ((0, 1.05), (2, 2))
        ]
        assert comparable(rows, 2) == []
    far, kind = [moved("i1", found=90.0)], [moved("i1", found="absent")]
    assert comparable(far, 40) == far and comparable(kind, 40) == kind


def test_an_answer_that_rounding_turns_is_told_by_what_was_written(folders, ship):
    """Within its tolerance, the size of a write still says that it was computed in another way."""

    def judged(efficacy, written):
        rows = [[{"efficacy": efficacy, "written": written}]]
        return experiment(series(n=1, compute=lambda _: rows, tolerances={"written": (1e-3, 0.0)}))

    ship(judged(1.0, 220.1637))
    exp = judged(0.75, 220.1635)
    with pytest.warns(UserWarning, match="written is kept as 220.1637"):
        assert recompute(exp, sample(exp, 1.0, 0), folders=folders) == []
    exp = judged(0.75, 220.1637)
    (difference,) = recompute(exp, sample(exp, 1.0, 0), folders=folders)
    assert difference.column == "efficacy"


def test_an_item_without_kept_rows_is_a_difference(folders, ship):
    ship(experiment(series(n=2)))
    exp = experiment(series(n=3))
    (difference,) = recompute(exp, sample(exp, 1.0, 0), folders=folders)
    assert str(difference) == "exp, model m, editor one, item i2: no rows are kept"


def test_samples_of_models_side_by_side_are_those_one_after_another(folders, ship):
    ship(experiment(series("one"), series("two")))
    exp = experiment(series("one"), series("two", compute=Squares([], off=1.0)))
    drawn, told = sample(exp, 0.5, 0), []
    alone = recompute(exp, drawn, folders=folders)
    assert len(alone) == 4 and {difference.names["editor"] for difference in alone} == {"two"}

    def progress(*state):
        return told.append(state[:2])

    assert recompute(exp, drawn, progress, folders, jobs=2) == alone
    assert told == [(4, 8), (8, 8)]


def test_the_seed_of_a_test_run_is_its_date_or_what_is_set(monkeypatch):
    monkeypatch.delenv(recheck.SEED, raising=False)
    assert todays_seed()[:2] == "20"
    monkeypatch.setenv(recheck.SEED, "7")
    assert todays_seed() == "7"


@pytest.mark.parametrize(
    "old, new, loose, agree",
    [
        (1.0, 1.0 + 1e-7, False, True),
        (1.0, 1.0 + 1e-5, False, False),
        (float("nan"), float("nan"), False, True),
        (float("nan"), 1.0, False, False),
        (float("inf"), float("inf"), False, True),
        (1, 1.0, False, True),
        (1000000, 1000001, False, False),
        (1000000, 1000001, True, True),
        (True, 1, False, False),
        (True, False, True, False),
        ("a", "b", False, False),
        (None, None, False, True),
        (None, 0.0, False, False),
        ([1.0, "a"], [1.0 + 1e-8, "a"], False, True),
        ([1.0], [1.0, 1.0], False, False),
        ({"a": 1.0}, {"a": 1.0 + 1e-8}, False, True),
        ({"a": 1.0}, {"b": 1.0}, False, False),
    ],
)
def test_what_agrees(old, new, loose, agree):
    assert recheck._agree(old, new, 1e-6, 0.0, loose) is agree


def planted(path, number, square):
    """Give an item of a file another number, as if it had been computed."""
    kept = store.read(path)
    lines = [
        replace(line, rows=[row | {"square": square} for row in line.rows])
        if line.item == f"i{number}"
        else line
        for line in kept.lines.values()
    ]
    store.rewrite(path, kept.manifest, lines, path.parent)


def test_recomputing_never_reads_what_it_checks(folders, ship):
    planted(ship(experiment()), 3, 8.0)
    squares = Squares([])
    exp = experiment(series(compute=squares))
    (difference,) = recompute(exp, sample(exp, 1.0, 0), folders=folders)
    assert (difference.item, difference.expected, difference.found) == ("i3", 8.0, 9.0)
    assert sum(map(len, squares.calls)) == 7


def test_a_flipped_row_is_found_as_often_as_the_sample_promises(folders, ship):
    n, exp = 20, experiment(series(n=20, chunk=20))
    path = ship(exp)
    content = path.read_bytes()
    for share, n_sampled in ((0.1, 2), (0.25, 5), (1.0, 20)):
        random, caught, trials = Random(0), 0, 200
        for trial in range(trials):
            flipped = random.randrange(n)
            path.write_bytes(content)
            planted(path, flipped, -1.0)
            caught += bool(recompute(exp, sample(exp, share, trial), folders=folders))
        expected = n_sampled / n
        assert abs(caught / trials - expected) <= 4 * (expected * (1 - expected) / trials) ** 0.5


# ---------------------------------------------------------------------- certifying


def renamed(path):
    """Make a shipped file one of older code."""
    kept = store.read(path)
    store.rewrite(path, kept.manifest | {"code": "older"}, kept.lines.values(), path.parent)


def test_certified_rows_are_read_again_and_say_so(folders, ship):
    path = ship(experiment(series(n=20)))
    assert [c.state for c in certify(experiment(series(n=20)), folders=folders)] == ["current"]
    renamed(path)
    squares, exp = Squares([]), experiment(series(n=20))
    told = []
    (certificate,) = certify(exp, 0.4, 0, lambda *state: told.append(state), folders)
    assert str(certificate) == "exp, model m, editor one: certified, 8 recomputed rows agree"
    assert told[-1][:2] == (8, 8)
    table(experiment(series(n=20, compute=squares)), folders=folders)
    assert not squares.calls
    assert "certified 20" in counts() and "on 8 rows), 0 computed" in counts()


def test_one_difference_and_nothing_of_that_file_is_renewed(folders, ship):
    good, bad = series("good"), series("bad")
    for path in (ship(experiment(good)), ship(experiment(bad))):
        renamed(path)
    before = path.read_bytes()
    exp = experiment(good, series("bad", compute=Squares([], off=1.0)))
    first, second = certify(exp, folders=folders)
    assert (first.state, second.state) == ("certified", "different")
    assert "5 values differ" in str(second) and second.differences[0].names["editor"] == "bad"
    assert path.read_bytes() == before


def test_only_kept_items_are_asked_of_a_certificate(folders, ship):
    renamed(ship(experiment(series(n=3))))
    (certificate,) = certify(experiment(series(n=50)), 0.2, 0, None, folders)
    assert (certificate.state, certificate.rows) == ("certified", 3)
    other = experiment(series(items={"x": Item(99)}))
    renamed(folders.shipped_file(other, other.series[0]))
    (certificate,) = certify(other, 0.2, 0, None, folders)
    assert "cannot be certified, none of its items is asked today" in str(certificate)


def test_other_settings_cannot_be_certified(folders, ship):
    ship(experiment())
    exp = experiment(series(depends={"settings": "t", "seed": "0"}), series("absent"))
    changed, absent = certify(exp, folders=folders)
    assert "cannot be certified, settings was 's' and is 't'; seed was None and is '0'" in str(
        changed
    )
    assert absent.state == "absent"
