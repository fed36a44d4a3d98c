"""Rows that ship, recomputed: a sample in every test run, a larger one after a change of code, all
of them on demand.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, comb, isnan
from random import Random

from ..provenance import circumstances
from . import store
from .rows import FOLDERS, Experiment, Folders, Progress, Series, stored

Sample = list[tuple[Series, str]]  #: (series, id of an item)


@dataclass(frozen=True)
class Difference:
    """One value that is not what it was. Its text is a sentence."""

    experiment: str
    names: dict[str, str]
    item: str
    column: str
    expected: object  #: as kept
    found: object  #: as computed now
    tolerance: str = ""

    def __str__(self) -> str:
        where = [self.experiment, *(f"{kind} {name}" for kind, name in self.names.items())]
        within = f" ({self.tolerance})" if self.tolerance else ""
        return (
            f"{', '.join(where)}, item {self.item}: {self.column} is kept as {self.expected!r}, "
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


def sample(experiment: Experiment, share: float, seed: int | str, at_least: int = 2) -> Sample:
    """Items drawn from every series: ``share`` of them, rounded up, and ``at_least`` so many; in
    the series' order.

    Raises ValueError unless 0 <= share <= 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share {share} of the items must lie between 0 and 1")
    drawn = []
    for series in experiment.series:
        ids = list(series.items)
        n = min(len(ids), max(at_least, ceil(share * len(ids) - 1e-9)))
        chosen = set(Random(f"{seed}/{experiment.name}/{series.stem}").sample(ids, n))
        drawn += [(series, id_) for id_ in ids if id_ in chosen]
    return drawn


def detection(n_rows: int, n_sampled: int, n_flipped: int = 1) -> float:
    """Probability that a sample without replacement holds a flipped row: 1 - C(n - f, s) / C(n, s),
    which is s / n for one.
    """
    return 1 - comb(n_rows - n_flipped, n_sampled) / comb(n_rows, n_sampled)


def recompute(
    experiment: Experiment,
    sample: Sample,
    progress: Progress | None = None,
    folders: Folders | None = None,
) -> list[Difference]:
    """Compute the items of a sample anew and compare them with the rows that are kept; what is kept
    is never read for computing.

    The code may be another than that of the kept rows, the settings may not. An item of which no
    row is kept is a difference.
    """
    folders, differences, done = folders or FOLDERS, [], 0
    for series in experiment.series:
        ids = [id_ for of, id_ in sample if of is series]
        kept = _kept(experiment, series, folders) if ids else {}
        for start in range(0, len(ids), series.chunk):
            chunk = ids[start : start + series.chunk]
            for line in series.rows(chunk):
                old = kept[line.item].rows if line.item in kept else None
                differences += _compared(experiment, series, line.item, old, line.rows)
            done += len(chunk)
            if progress:
                progress(done, len(sample), str(series))
    return differences


def certify(
    experiment: Experiment,
    share: float = 0.2,
    seed: int | str = 0,
    progress: Progress | None = None,
    folders: Folders | None = None,
) -> list[Certificate]:
    """Renew the code's hash of shipped files whose settings are today's but whose code is not, if a
    recomputed sample agrees.

    A file of which one value differs stays as it is. A file of other settings cannot be certified.
    """
    folders = folders or FOLDERS
    states = {id(series): _state(experiment, series, folders) for series in experiment.series}
    todo = [series for series in experiment.series if states[id(series)][0] == "certified"]
    drawn = sample(experiment, share, seed)
    drawn = [(series, id_) for series, id_ in drawn if any(series is one for one in todo)]
    done, result = 0, []
    for series in experiment.series:
        state, why = states[id(series)]
        if state != "certified":
            result.append(Certificate(experiment.name, str(series), state, why=why))
            continue
        part = [(of, id_) for of, id_ in drawn if of is series]
        tell = progress and _further(progress, done, len(drawn))
        result.append(_certified(experiment, series, part, tell, folders))
        done += len(part)
    return result


def _certified(
    experiment: Experiment,
    series: Series,
    part: Sample,
    progress: Progress | None,
    folders: Folders,
) -> Certificate:
    """Recompute a sample of one series and, if it agrees, renew the file's manifest."""
    differences = tuple(recompute(experiment, part, progress, folders))
    path = folders.shipped_file(experiment, series)
    found = store.read(path)
    n = sum(
        len(found.lines[id_, series.keys[id_]].rows)
        for _, id_ in part
        if (id_, series.keys[id_]) in found.lines
    )
    if differences:
        return Certificate(experiment.name, str(series), "different", n, differences)
    now = circumstances()
    note = {"date": now["date"], "commit": now["commit"], "rows": n}
    manifest = {**found.manifest, "code": series.manifest["code"], "certified": note}
    store.rewrite(path, manifest, found.lines.values(), folders.locks)
    return Certificate(experiment.name, str(series), "certified", n)


def _state(experiment: Experiment, series: Series, folders: Folders) -> tuple[str, str]:
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


def _kept(experiment: Experiment, series: Series, folders: Folders) -> dict[str, store.Line]:
    """The kept rows of today's items and settings, by id: those that ship under any code, else
    those of this machine.
    """
    shipped = store.read(folders.shipped_file(experiment, series))
    kept = stored(experiment, series, folders)
    if shipped.manifest.get("depends") == series.manifest["depends"]:
        lines, keys = shipped.lines, series.keys.items()
        kept |= {id_: lines[id_, key] for id_, key in keys if (id_, key) in lines}
    return kept


def _compared(
    experiment: Experiment, series: Series, item: str, old: list[dict] | None, new: list[dict]
) -> list[Difference]:
    """What differs between the kept and the computed rows of an item; without kept rows, that."""

    def difference(column: str, expected, found, tolerance: str = "") -> Difference:
        return Difference(
            experiment.name, dict(series.names), item, column, expected, found, tolerance
        )

    if old is None or len(old) != len(new):
        return [difference("the number of rows", len(old or ()), len(new))]
    result = []
    for i, (before, after) in enumerate(zip(old, new, strict=True)):
        row = f" of row {i}" if len(new) > 1 else ""
        for column in {**before, **after}:
            named = column in experiment.tolerances
            rtol, atol = experiment.tolerances.get(column, (experiment.rtol, experiment.atol))
            values = before.get(column, "absent"), after.get(column, "absent")
            if not _agree(*values, rtol, atol, named):
                text = f"tolerance {atol:g} + {rtol:g} |kept|" * _has_numbers(values[0], named)
                result.append(difference(column + row, *values, text))
    return result


def _agree(old, new, rtol: float, atol: float, loose: bool) -> bool:
    """Whether two values of a row agree; ``loose``: whole numbers may differ too."""
    if isinstance(old, list) and isinstance(new, list):
        pairs = zip(old, new, strict=False)
        return len(old) == len(new) and all(_agree(*pair, rtol, atol, loose) for pair in pairs)
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
    if isinstance(value, (list, dict)):
        return any(
            _has_numbers(part, loose)
            for part in (value.values() if isinstance(value, dict) else value)
        )
    return (
        isinstance(value, float) or loose and isinstance(value, int) and not isinstance(value, bool)
    )


def _further(progress: Progress, done: int, total: int) -> Progress:
    def tell(now: int, _: int, what: str):
        progress(done + now, total, what)

    return tell
