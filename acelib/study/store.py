"""Files of rows: a manifest in the first line, then one line per item; whole or absent, whoever
writes and whoever is killed.

A file holds the rows of one series: ``{"manifest": {...}}``, then ``{"item": id, "key": digest,
"rows": [...]}`` for every item; each line ends in ``"sum"``, the digest of all else in it.
Files are appended to under a lock, in whole lines. A last line that is torn counts as absent and is
cut off by the next writer. A line that is damaged is named by a warning, counts as absent, and is
left out by the next writer.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path

from filelock import FileLock

from ..files import replacing
from ..provenance import digest


@dataclass(frozen=True)
class Line:
    """The rows of one item, under the digest that the item had when they were computed."""

    item: str
    key: str
    rows: list[dict]


@dataclass(frozen=True)
class Stored:
    """What a file of rows holds: its manifest, empty if there is no file, and its lines by (item,
    key), each once.
    """

    manifest: dict
    lines: dict[tuple[str, str], Line]
    damaged: bool = False  #: some of its lines cannot be read, or are not what was written


class DamageWarning(UserWarning):
    """A line of a file of rows is not what was written; it counts as absent."""


def canonical(item: object) -> str:
    """An item as JSON with sorted keys: dataclasses are their fields, tuples are lists.

    Raises ValueError for what JSON cannot hold.
    """

    def plain(value):
        if is_dataclass(value) and not isinstance(value, type):
            return asdict(value)
        if isinstance(value, (set, frozenset)):
            return sorted(value)
        raise ValueError(
            f"an item cannot hold {value!r}; "
            "allowed: text, numbers, lists, mappings, dataclasses of them"
        )

    return json.dumps(item, sort_keys=True, default=plain)


def item_key(item: object) -> str:
    """Sixteen hex digits that change with anything in an item."""
    return digest([canonical(item)])


def as_stored(rows: list[dict]) -> list[dict]:
    """Rows as they will be read back from a file, so that computed and read rows are the same."""

    def plain(value):
        if hasattr(value, "item"):  # of numpy and torch
            return value.item()
        raise ValueError(f"a row cannot hold {value!r}; allowed: text, numbers, and lists of them")

    return json.loads(json.dumps(rows, default=plain))


def read(path: Path | None) -> Stored:
    """The manifest and the lines of ``path``; a file that is not there holds nothing.

    A line that is no JSON, of another shape or of another checksum is named by a ``DamageWarning``
    and counts as absent. So do all rows of a file whose manifest is damaged: nobody can say what
    they depend on. Of two lines of an item the first counts.
    """
    content = path.read_bytes() if path and path.exists() else b""
    whole = content[: _whole_size(content)].split(b"\n")[:-1]
    parts = [_parsed(line) for line in whole]
    # 1. The manifest vouches for all rows below it.
    manifest = parts[0].get("manifest") if parts else {}
    if not isinstance(manifest, dict):
        _warn(f"{path}, line 1: the manifest is damaged, nothing vouches for its rows")
        return Stored({}, {}, damaged=True)
    # 2. Each line vouches for itself.
    lines: dict[tuple[str, str], Line] = {}
    damaged = False
    for number, part in enumerate(parts[1:], 2):
        if line := _line(part):
            lines.setdefault((line.item, line.key), line)
        else:
            damaged = True
            _warn(f"{path}, line {number}: damaged; its rows do not count")
    return Stored(manifest, lines, damaged)


def _warn(message: str) -> None:
    warnings.warn(message, DamageWarning, stacklevel=3)


def same(one: Mapping, other: Mapping) -> bool:
    """Whether rows under two manifests are the same rows: everything that they depend on, code
    included, is the same.
    """
    return all(one.get(part) == other.get(part) for part in ("depends", "code"))


def append(path: Path, manifest: Mapping, lines: Iterable[Line], locks: Path) -> None:
    """Add lines to ``path``, which is begun with ``manifest`` if it is not there.

    Raises OSError if the disk is full or the folder cannot be written; the file then holds what it
    held.
    """
    text = "".join(_dumped(asdict(line)) for line in lines).encode()
    with _lock(path, locks):
        stored = read(path)
        if stored.damaged or not stored.manifest:
            _write_whole(path, stored.manifest or manifest, stored.lines.values())
        with path.open("r+b", buffering=0) as file:
            size = _whole_size(file.read())  # a torn last line is cut off
            file.truncate(size)
            file.seek(size)
            try:
                while text:
                    text = text[file.write(text) :]
            except OSError:
                file.truncate(size)
                raise


def publish(path: Path, manifest: Mapping, lines: Iterable[Line], locks: Path) -> None:
    """Make ``path`` hold exactly ``lines``, then what it holds of other items under the same
    manifest; in one step.

    What it held under another manifest is gone. A note that rows were certified stays.
    """
    with _lock(path, locks):
        lines, stored = list(lines), read(path)
        if same(stored.manifest, manifest):
            items = {line.item for line in lines}
            lines += [line for line in stored.lines.values() if line.item not in items]
            if "certified" in stored.manifest:
                manifest = {**manifest, "certified": stored.manifest["certified"]}
        _write_whole(path, manifest, lines)


def rewrite(path: Path, manifest: Mapping, lines: Iterable[Line], locks: Path) -> None:
    """Make ``path`` hold ``manifest`` and ``lines``, in one step."""
    with _lock(path, locks):
        _write_whole(path, manifest, lines)


def _write_whole(path: Path, manifest: Mapping, lines: Iterable[Line]) -> None:
    with replacing(path) as part:
        texts = (_dumped({"manifest": manifest}), *(_dumped(asdict(line)) for line in lines))
        part.write_text("".join(texts), "utf-8", newline="\n")


def _lock(path: Path, locks: Path) -> FileLock:
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / f"{digest([str(path.resolve())])}.lock")


def _whole_size(content: bytes) -> int:
    """Bytes up to the last line break."""
    return content.rfind(b"\n") + 1


def _dumped(value: Mapping) -> str:
    return json.dumps({**value, "sum": _checksum(value)}, ensure_ascii=False) + "\n"


def _checksum(value: Mapping) -> str:
    return digest([json.dumps(value)])[:8]


def _line(part: Mapping) -> Line | None:
    """The line that a JSON object is; None for one of another shape."""
    if part.keys() != {"item", "key", "rows"}:
        return None
    line = Line(**part)
    texts = isinstance(line.item, str) and isinstance(line.key, str)
    rows = isinstance(line.rows, list) and all(isinstance(row, dict) for row in line.rows)
    return line if texts and rows else None


def _parsed(line: bytes) -> dict:
    """The JSON object of a line, without its checksum; empty if the line is damaged."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, or no UTF-8
        return {}
    if not isinstance(value, dict) or value.pop("sum", None) != _checksum(value):
        return {}
    return value
