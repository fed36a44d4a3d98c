"""Rows that ship, recomputed: a sample in every test run, a larger one after a change of code, all
of them on demand.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil, isnan
from random import Random

from joblib import Parallel, cpu_count, delayed, parallel_config

from ..provenance import circumstances
from . import store
from .rows import FOLDERS, Experiment, Folders, Progress, Series, stored_lines

#: Environment variable: the seed of the samples that tests recompute.
SEED = "ACELIB_SAMPLE_SEED"
#: A search for target vectors by Adam with large steps can amplify rounding (1e-7) until it ends at
#: another vector, on another machine or in another batch, and even the size of rounding turns an
#: answer that two tokens tie for. What an item's edit has written, or the importance that a layer
#: then has, moves by less than this share, and what is judged of it may be another. Such items are
#: warned of and not compared, as long as they are few: a fault moves all of them.
ELSEWHERE = {"written": 0.05, "importance": 0.1}
FEW = 0.05  #: of the items of a sample, or one
Sample = list[tuple[Series, str]]  #: (series, id of an item)


@dataclass(frozen=True)
class Difference:
    """One value that is not what it was. Its text is a sentence."""

    experiment: str
    names: dict[str, str]
    item: str
    column: str = ""  #: "": no rows are kept
    expected: object = None  #: as kept
    found: object = None  #: as computed now
    tolerance: str = ""

    def __str__(self) -> str:
        where = [self.experiment, *(f"{kind} {name}" for kind, name in self.names.items())]
        place = f"{', '.join(where)}, item {self.item}"
        if not self.column:
            return f"{place}: no rows are kept"
        within = f" ({self.tolerance})" if self.tolerance else ""
        return (
            f"{place}: {self.column} is kept as {self.expected!r}, "
            f"computed now it is {self.found!r}{within}"
        )


@dataclass(frozen=True)
class Certificate:
    """What became of one shipped file: "current", "certified", "different", "other settings" or
    "absent". Its text is a sentence.
    """

    experiment: str
    series: str
    state: str
    rows: int = 0  #: that were recomputed
    differences: tuple[Difference, ...] = ()
    why: str = ""

    def __str__(self) -> str:
        told = {
            "current": "its code is today's; nothing to certify",
            "certified": f"certified, {self.rows} recomputed rows agree",
            "different": f"not certified, {len(self.differences)} values differ",
            "other settings": f"cannot be certified, {self.why}; compute it anew",
            "absent": "no rows ship; compute them",
        }
        return f"{self.experiment}, {self.series}: {told[self.state]}"


def todays_seed() -> str:
    """What the samples of a test run are drawn with: ``SEED`` if it is set, else the date."""
    return os.environ.get(SEED) or datetime.now(UTC).strftime("%Y-%m-%d")


def sample(experiment: Experiment, share: float, seed: int | str, at_least: int = 2) -> Sample:
    """Items drawn from every series: ``share`` of them, rounded up, and ``at_least`` so many; in
    the series' order.

    Raises ValueError unless 0 <= share <= 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share {share} of the items must lie between 0 and 1")
    return [
        (series, id_)
        for series in experiment.series
        for id_ in _draw(experiment, series, list(series.items), share, seed, at_least)
    ]


def _draw(
    experiment: Experiment,
    series: Series,
    ids: Sequence[str],
    share: float,
    seed: int | str,
    at_least: int,
) -> list[str]:
    n = min(len(ids), max(at_least, ceil(share * len(ids) - 1e-9)))
    chosen = set(Random(f"{seed}/{experiment.name}/{series.stem}").sample(ids, n))
    return [id_ for id_ in ids if id_ in chosen]


def recompute(
    experiment: Experiment,
    sample: Sample,
    progress: Progress | None = None,
    folders: Folders | None = None,
    jobs: int = 1,
) -> list[Difference]:
    """Compute the items of a sample anew and compare them with the rows that are kept.

    What is kept is never read for computing. Its code may be another than today's, its settings may
    not. An item of which no rows are kept is a difference, and is not computed.
    jobs: processes; each takes a series at a time.
    """
    folders = folders or FOLDERS
    parts = [(series, [id_ for of, id_ in sample if of is series]) for series in experiment.series]
    differences = [
        difference
        for _, found in _by_series(experiment, parts, progress, folders, jobs)
        for difference in found
    ]
    return comparable(differences, len(sample))


def comparable(differences: list[Difference], n_items: int) -> list[Difference]:
    """``differences`` without those of items whose search has ended elsewhere, if they are few.

    An item is one of those if a column of ``ELSEWHERE`` moved, by less than its share. Up to
    ``FEW`` of ``n_items``, or one, are left out, with a warning that names them.
    """
    moved = {_item(difference): difference for difference in differences if _elsewhere(difference)}
    if not moved or len(moved) > max(1, int(FEW * n_items)):
        return differences
    for difference in moved.values():
        warnings.warn(f"sensitive to rounding, not compared: {difference}", stacklevel=3)
    return [difference for difference in differences if _item(difference) not in moved]


def _item(difference: Difference) -> tuple:
    return difference.experiment, tuple(difference.names.items()), difference.item


def _elsewhere(difference: Difference) -> bool:
    share = ELSEWHERE.get(difference.column.partition(" of row ")[0], 0.0)
    old, new = difference.expected, difference.found
    return isinstance(old, float) and isinstance(new, float) and abs(new - old) < share * abs(old)


def _by_series(
    experiment: Experiment,
    parts: Sequence[tuple[Series, list[str]]],
    progress: Progress | None,
    folders: Folders,
    jobs: int,
) -> Iterator[tuple[Series, list[Difference]]]:
    """The differences of some items of each series, as soon as they are known."""
    done, total = 0, sum(len(ids) for _, ids in parts)
    jobs = min(jobs, len(parts))
    if jobs < 2:
        for series, ids in parts:
            tell = progress and _further(progress, done, total)
            yield series, _recompute_series(experiment, series, ids, tell, folders)
            done += len(ids)
        return
    with parallel_config("loky", inner_max_num_threads=max(1, cpu_count() // jobs)):
        results = Parallel(jobs, return_as="generator")(
            delayed(_recompute_series)(experiment, series, ids, None, folders)
            for series, ids in parts
        )
    for (series, ids), differences in zip(parts, results, strict=True):
        done += len(ids)
        if progress:
            progress(done, total, str(series))
        yield series, differences


def _recompute_series(
    experiment: Experiment,
    series: Series,
    ids: list[str],
    progress: Progress | None,
    folders: Folders,
) -> list[Difference]:
    """The differences of some items of one series."""
    kept = _kept_lines(experiment, series, folders)
    names = dict(series.names)
    differences = [Difference(experiment.name, names, id_) for id_ in ids if id_ not in kept]
    todo = [id_ for id_ in ids if id_ in kept]
    for start in range(0, len(todo), series.chunk):
        chunk = todo[start : start + series.chunk]
        for line in series.rows(chunk):
            differences += _compare(experiment, series, line.item, kept[line.item].rows, line.rows)
        if progress:
            progress(start + len(chunk), len(ids), str(series))
    return differences


def certify(
    experiment: Experiment,
    share: float = 0.2,
    seed: int | str = 0,
    progress: Progress | None = None,
    folders: Folders | None = None,
    jobs: int = 1,
    at_least: int = 5,
) -> list[Certificate]:
    """Recompute a sample of the shipped files whose settings are today's but whose code is not.

    The code's hash of a file that agrees is renewed; one of which a value differs stays as it is. A
    file of other settings cannot be certified. Interrupted, it keeps what it has certified.
    """
    folders = folders or FOLDERS
    certificates: dict[str, Certificate] = {}
    parts = []
    for series in experiment.series:
        # 1. What is there to do? Only items that are kept can be compared.
        state, why = status(experiment, series, folders)
        kept = store.read(folders.shipped_file(experiment, series)).lines
        ids = [id_ for id_, key in series.keys.items() if (id_, key) in kept]
        if state == "certified" and not ids:
            state, why = "other settings", "none of its items is asked today"
        if state == "certified":
            parts.append((series, _draw(experiment, series, ids, share, seed, at_least)))
        certificates[series.stem] = Certificate(experiment.name, str(series), state, why=why)
    # 2. Recompute, and renew what agrees.
    drawn = {series.stem: ids for series, ids in parts}
    for series, differences in _by_series(experiment, parts, progress, folders, jobs):
        certificates[series.stem] = _renew(
            experiment, series, drawn[series.stem], differences, folders
        )
    return list(certificates.values())


def _renew(
    experiment: Experiment,
    series: Series,
    ids: list[str],
    differences: list[Difference],
    folders: Folders,
) -> Certificate:
    """Renew the manifest of a file if its recomputed sample agrees."""
    path = folders.shipped_file(experiment, series)
    found = store.read(path)
    left = comparable(differences, len(ids))
    moved = {d.item for d in differences} - {d.item for d in left}
    compared = [id_ for id_ in ids if id_ not in moved]
    n = sum(len(found.lines[id_, series.keys[id_]].rows) for id_ in compared)
    if left or path is None:
        where = experiment.name, str(series), "different"
        return Certificate(*where, rows=n, differences=tuple(left))
    now = circumstances()
    note = {"date": now["date"], "commit": now["commit"], "rows": n}
    manifest = {**found.manifest, "code": series.manifest["code"], "certified": note}
    store.rewrite(path, manifest, found.lines.values(), folders.locks)
    return Certificate(experiment.name, str(series), "certified", n)


def status(experiment: Experiment, series: Series, folders: Folders) -> tuple[str, str]:
    """What ``certify`` has to do with a series, and why it cannot."""
    manifest = store.read(folders.shipped_file(experiment, series)).manifest
    if not manifest:
        return "absent", ""
    kept, today = manifest["depends"], series.manifest["depends"]
    changed = [name for name in {**kept, **today} if kept.get(name) != today.get(name)]
    if changed:
        return "other settings", "; ".join(
            f"{name} was {kept.get(name)!r} and is {today.get(name)!r}" for name in changed
        )
    return ("current" if manifest["code"] == series.manifest["code"] else "certified"), ""


def _kept_lines(experiment: Experiment, series: Series, folders: Folders) -> dict[str, store.Line]:
    """The kept rows of today's items and settings, by id: those that ship under any code, else
    those of this machine.
    """
    shipped = store.read(folders.shipped_file(experiment, series))
    kept = stored_lines(experiment, series, folders)
    if shipped.manifest.get("depends") == series.manifest["depends"]:
        lines, keys = shipped.lines, series.keys.items()
        kept |= {id_: lines[id_, key] for id_, key in keys if (id_, key) in lines}
    return kept


def _compare(
    experiment: Experiment, series: Series, item: str, old: list[dict], new: list[dict]
) -> list[Difference]:
    """What differs between the kept and the computed rows of an item."""

    def difference(column: str, expected, found, tolerance: str = "") -> Difference:
        return Difference(
            experiment.name, dict(series.names), item, column, expected, found, tolerance
        )

    if len(old) != len(new):
        return [difference("the number of rows", len(old), len(new))]
    result, tolerances = [], {**experiment.tolerances, **series.tolerances}
    for i, (before, after) in enumerate(zip(old, new, strict=True)):
        row = f" of row {i}" if len(new) > 1 else ""
        for column in before:  # a column that kept rows do not have yet is not compared
            rtol, atol = tolerances.get(column, (experiment.rtol, experiment.atol))
            values = before[column], after.get(column, "absent")
            if not _agree(*values, rtol, atol, column in tolerances):
                text = f"tolerance {atol:g} + {rtol:g} |kept|" * _has_numbers(
                    values[0], column in tolerances
                )
                result.append(difference(column + row, *values, text))
        # Where an answer is another, even the smallest move of what was written tells of rounding.
        for column in ELSEWHERE.keys() & before.keys() & after.keys() if result else ():
            if before[column] != after[column] and column not in [d.column for d in result]:
                result.append(difference(column, before[column], after[column]))
    return result


def _agree(old, new, rtol: float, atol: float, loose: bool) -> bool:
    """Whether two values of a row agree; ``loose``: whole numbers may differ too."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(
            _agree(*pair, rtol, atol, loose) for pair in zip(old, new, strict=True)
        )
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(
            _agree(old[key], new[key], rtol, atol, loose) for key in old
        )
    if not (_has_numbers(old, loose) or _has_numbers(new, loose)) or not all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in (old, new)
    ):
        return type(old) is type(new) and old == new
    return old == new or (isnan(old) and isnan(new)) or abs(new - old) <= atol + rtol * abs(old)


def _has_numbers(value, loose: bool) -> bool:
    """Whether a value, or one in it, is a number that is compared within a tolerance."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return any(_has_numbers(part, loose) for part in value)
    return isinstance(value, (int, float) if loose else float) and not isinstance(value, bool)


def _further(progress: Progress, done: int, total: int) -> Progress:
    def tell(now: int, _: int, what: str):
        progress(done + now, total, what)

    return tell
