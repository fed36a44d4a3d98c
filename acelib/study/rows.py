"""Rows that ship: numbers are computed once, kept in ``results/``, and read from there.

An experiment is a set of series, a series is a set of items (cases, questions, edits) and a
function that computes rows from them. A row counts as there if its item, all settings and all code
that it depends on are today's; what is missing is computed and kept in ``runs/results/``, so that
an interrupted run continues. With ``UPDATE`` set, series that are complete are moved to
``results/``. Nothing here knows editors or models.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, cpu_count, delayed, parallel_config

from ..provenance import (
    ROOT,
    circumstances,
    code_hash,
    default_device,
    digest,
    module_file,
)
from . import store
from .store import Line

#: Environment variable; at "1" complete series are written to results/.
UPDATE = "ACELIB_UPDATE_RESULTS"
#: Environment variable: a file that gets one line per table, what was read and what computed.
LOG = "ACELIB_ROWS_LOG"
Progress = Callable[[int, int, str], object]  #: (items done, items in all, what)


@dataclass(frozen=True, eq=False)
class Series:
    """Rows of one kind, computed under one set of settings: one file.

    Raises ValueError if there is no name, if a name is empty, if chunks are empty, if an id is no
    text, or for code that is no module.
    """

    #: {"model": "gptj-mini", "editor": "ACE"}: columns of each row, and the file's name
    names: Mapping[str, str]
    #: what values depend on besides code and item: model, world, settings, protocol, ...
    depends: Mapping[str, str]
    #: dotted modules that compute the rows; what they import counts too
    code: tuple[str, ...]
    #: id -> item, in order
    items: Mapping[str, Any]
    #: items -> the rows of each, whatever other items are computed with it
    compute: Callable[[list], list[list[dict]]]
    #: items that are computed at once and kept together
    chunk: int = 24
    #: column -> (rtol, atol) that a recomputed value may differ by; before those of the experiment
    tolerances: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self):
        if not self.names or not all(self.names.values()):
            raise ValueError(f"a series needs names that are not empty, got {dict(self.names)}")
        if self.chunk < 1:
            raise ValueError(f"chunks of {self.chunk} items: they must hold at least 1")
        if wrong := [id_ for id_ in self.items if not isinstance(id_, str)]:
            raise ValueError(f"{self}: the id of an item must be a text, got {wrong[0]!r}")
        for name in self.code:
            if name.startswith("acelib") and module_file(name) is None:
                raise ValueError(f"{self}: {name!r} is no module of the library")

    def __str__(self) -> str:
        return ", ".join(f"{kind} {name}" for kind, name in self.names.items())

    @cached_property
    def keys(self) -> dict[str, str]:
        """The digest of every item, by id."""
        return {id_: store.item_key(item) for id_, item in self.items.items()}

    @cached_property
    def manifest(self) -> dict:
        """What the rows depend on: a file's first line, but for when and where it was computed."""
        return {
            "names": dict(self.names),
            "depends": dict(self.depends),
            "code": code_hash(tuple(self.code)),
        }

    @property
    def stem(self) -> str:
        """The file's name without its suffix."""
        return "--".join(re.sub(r"[^\w.+-]", "_", name) for name in self.names.values())

    def rows(self, ids: list[str]) -> list[Line]:
        """Rows of some items, computed now.

        Raises ValueError if ``compute`` gives another number of lists, or a column of ``names``.
        """
        lists = self.compute([self.items[id_] for id_ in ids])
        if len(lists) != len(ids):
            raise ValueError(f"{self}: rows of {len(lists)} items were computed, not of {len(ids)}")
        lines = [
            Line(id_, self.keys[id_], store.as_stored(rows))
            for id_, rows in zip(ids, lists, strict=True)
        ]
        taken = {"item", *self.names}
        for line in lines:
            for row in line.rows:
                if clash := taken & row.keys():
                    raise ValueError(f"{self}: a row has a column {min(clash)!r}, which is a name")
        return lines


@dataclass(frozen=True, eq=False)
class Experiment:
    """Series that are shown together, and how much a recomputed value may differ.

    Numbers are compared as |new - old| <= atol + rtol |old|; text, truth values and whole numbers
    exactly, unless their column is in ``tolerances``. Raises ValueError for two series of one name.
    """

    name: str  #: of the folder in results/
    series: tuple[Series, ...]
    rtol: float = 1e-6
    atol: float = 0.0
    #: column -> (rtol, atol)
    tolerances: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self):
        stem, n = next(iter(Counter(series.stem for series in self.series).most_common(1)), ("", 0))
        if n > 1:
            raise ValueError(f"{n} series of {self.name!r} are called {stem!r}; names must differ")


@dataclass(frozen=True)
class Folders:
    """Where rows are: those that ship, and those that this machine has computed."""

    shipped: Path | None = ROOT / "results"  #: None: nothing ships
    local: Path = ROOT / "runs" / "results"

    @property
    def locks(self) -> Path:
        return self.local / ".locks"

    def shipped_file(self, experiment: Experiment, series: Series) -> Path | None:
        return self.shipped and self.shipped / experiment.name / f"{series.stem}.jsonl"

    def local_file(self, experiment: Experiment, series: Series) -> Path:
        """Its name holds all that the rows depend on: other settings have another file."""
        key = digest([json.dumps(series.manifest, sort_keys=True)])[:12]
        return self.local / experiment.name / f"{series.stem}--{key}.jsonl"


FOLDERS = Folders()


@dataclass(frozen=True)
class Source:
    """How many rows of a table were read from "results" or "runs", or "computed"."""

    series: str
    where: str
    rows: int
    computed: Mapping = field(
        default_factory=dict
    )  #: of rows read from results/: when, where, at which commit
    certified: Mapping = field(
        default_factory=dict
    )  #: the same of the last check, if the code changed since


def table(
    experiment: Experiment,
    progress: Progress | None = None,
    folders: Folders | None = None,
    jobs: int = 1,
) -> pd.DataFrame:
    """All rows of an experiment: what is there is read, what is missing is computed.

    jobs: processes; series of one first name (the model) are computed in one of them.
    Returns a frame, series by series and item by item, of the series' names, ``item`` and the rows'
    own columns. Rows that have been computed are kept whatever happens; run again, it continues.
    """
    folders = folders or FOLDERS
    if jobs > 1:
        filled = _side_by_side(experiment, folders, jobs)
    else:
        total, done, filled = sum(len(series.items) for series in experiment.series), 0, []
        for series in experiment.series:
            tell = progress and _from(progress, done, total, str(series))
            filled.append(_fill(experiment, series, folders, tell))
            done += len(series.items)
    sources = [source for _, of_series in filled for source in of_series]
    _log(experiment.name, sources)
    return pd.DataFrame(
        [
            {**series.names, "item": line.item, **row}
            for series, (lines, _) in zip(experiment.series, filled, strict=True)
            for line in lines
            for row in line.rows
        ]
    )


def processes(jobs: int = 0, most: int | None = None) -> int:
    """``jobs``, or if that is 0 one per core, ``most`` of them, and one on an accelerator."""
    usual = cpu_count() if most is None else min(most, cpu_count())
    return jobs or (usual if default_device().type == "cpu" else 1)


def stored_lines(experiment: Experiment, series: Series, folders: Folders) -> dict[str, Line]:
    """The rows of today's items that are kept under today's settings and code, by id, whether they
    ship or not.
    """
    local = store.read(folders.local_file(experiment, series))
    return {**_matching(series, local), **_matching(series, _shipped(experiment, series, folders))}


def _fill(
    experiment: Experiment, series: Series, folders: Folders, tell: Progress | None
) -> tuple[list[Line], list[Source]]:
    """The lines of a series in the order of its items, and where they came from."""
    # 1. Read what ships.
    shipped = _shipped(experiment, series, folders)
    lines = _matching(series, shipped)
    sources = [_read_from(series, "results", lines, shipped.manifest)]
    # 2. Read what this machine has computed, and compute the rest, chunk by chunk.
    #    Another process may be doing the same: what it has done is read between chunks.
    path = folders.local_file(experiment, series)
    known = {
        id_: line for id_, line in _matching(series, store.read(path)).items() if id_ not in lines
    }
    sources.append(_read_from(series, "runs", known))
    computed: dict[str, Line] = {}
    while True:
        have = {**lines, **known, **computed}
        if tell:
            tell(len(have), len(series.items), str(series))
        missing = [id_ for id_ in series.items if id_ not in have][: series.chunk]
        if not missing:
            break
        new = series.rows(missing)
        store.append(path, {**series.manifest, "computed": circumstances()}, new, folders.locks)
        computed |= {line.item: line for line in new}
        arrived = _matching(series, store.read(path)).items()
        known |= {id_: line for id_, line in arrived if id_ not in lines and id_ not in computed}
    sources.append(_read_from(series, "computed", computed))
    # 3. Ship the series, now that it is complete.
    in_order = [have[id_] for id_ in series.items]
    target = folders.shipped_file(experiment, series)
    if os.environ.get(UPDATE) == "1" and target and (known or computed):
        manifest = store.read(path).manifest
        store.publish(target, manifest, in_order, folders.locks)
    return in_order, [source for source in sources if source.rows]


def _side_by_side(
    experiment: Experiment, folders: Folders, jobs: int
) -> list[tuple[list[Line], list[Source]]]:
    """``_fill`` of every series, groups of one first name in processes of their own."""
    groups: dict[str, list[int]] = {}
    for i, series in enumerate(experiment.series):
        groups.setdefault(next(iter(series.names.values())), []).append(i)

    def work(group: list[int]):
        return [_fill(experiment, experiment.series[i], folders, None) for i in group]

    jobs = min(jobs, len(groups))
    with parallel_config("loky", inner_max_num_threads=max(1, cpu_count() // max(1, jobs))):
        parts = Parallel(jobs)(delayed(work)(group) for group in groups.values())
    filled = dict(zip(chain(*groups.values()), chain(*parts), strict=True))
    return [filled[i] for i in range(len(experiment.series))]


def _shipped(experiment: Experiment, series: Series, folders: Folders) -> store.Stored:
    """The shipped file of a series; nothing if it depends on other settings or on other code."""
    found = store.read(folders.shipped_file(experiment, series))
    return found if store.same(found.manifest, series.manifest) else store.Stored({}, {})


def _matching(series: Series, found: store.Stored) -> dict[str, Line]:
    """The lines of today's items, by id."""
    keys = series.keys.items()
    return {id_: found.lines[id_, key] for id_, key in keys if (id_, key) in found.lines}


def _from(progress: Progress, done: int, total: int, what: str) -> Progress:
    def tell(now: int, _: int, __: str):
        progress(done + now, total, what)

    return tell


# ---------------------------------------------------------------- what was read, what was computed


def sentence(sources: list[Source]) -> str:
    """ "120 rows read from results/ (computed 2026-11-27 at commit abc on cpu, certified 2026-11-28
    at def on 12 rows), 0 computed".
    """
    groups: dict[str, int] = {}
    for source in sources:
        if source.where == "results":
            when = f" ({', '.join(_when(source))})"
            groups[when] = groups.get(when, 0) + source.rows
    parts = [f"{_rows(n)} read from results/{when}" for when, n in groups.items()]
    local, new = (
        sum(source.rows for source in sources if source.where == where)
        for where in ("runs", "computed")
    )
    parts += [f"{_rows(local)} read from runs/"] * bool(local)
    return ", ".join([*parts, f"{new} computed" if parts else f"{_rows(new)} computed"])


def _when(source: Source) -> Iterator[str]:
    at = source.computed
    commit = f" at commit {at['commit']}" if at.get("commit") else ""
    yield f"computed {at.get('date', '')[:10]}{commit} on {at.get('device', 'an unknown device')}"
    if check := source.certified:
        commit = f" at {check['commit']}" if check.get("commit") else ""
        yield f"certified {check['date'][:10]}{commit} on {_rows(check['rows'])}"


def _rows(n: int) -> str:
    return f"{n} row{'s' * (n != 1)}"


def _read_from(
    series: Series, where: str, lines: Mapping[str, Line], manifest: Mapping = {}
) -> Source:
    n = sum(len(line.rows) for line in lines.values())
    return Source(
        series.stem, where, n, manifest.get("computed", {}), manifest.get("certified", {})
    )


def _log(name: str, sources: list[Source]) -> None:
    """Tell who executes this notebook what was read."""
    if path := os.environ.get(LOG):
        with Path(path).open("a", encoding="utf-8") as file:
            parts = [vars(source) for source in sources]
            file.write(json.dumps({"experiment": name, "sources": parts}) + "\n")


def log_sentences(path: Path) -> dict[str, str]:
    """What a ``LOG`` says: a sentence per experiment, about the first table of each series."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    tables: dict[str, dict[str, list[Source]]] = {}
    for entry in map(json.loads, lines):
        told = tables.setdefault(entry["experiment"], {})
        new: dict[str, list[Source]] = {}
        for part in entry["sources"]:
            new.setdefault(part["series"], []).append(Source(**part))
        tables[entry["experiment"]] = {**new, **told}
    return {name: sentence([*chain(*told.values())]) for name, told in tables.items()}
