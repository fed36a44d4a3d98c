"""Settings of the editors for a model, as data: ``data/presets/<model>.toml``.

A table for each editor, its fields as in Python; what is not said is the editor's default. A stage
of ACE or IFMET is a table that names its editor; an ``objective`` table changes the editor's own.
``[common]`` holds what all editors have in common: a setting goes to every editor that has such a
field. TOML has no None; it is written "none". ``[model]`` says whose settings they are, by
fingerprint: a model that lies in another folder is found, and one that was edited and saved
inherits the settings of the model that it was.
"""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import tomlkit

from .. import provenance
from ..editing.search import Objective
from ..files import replacing
from ..model.lm import LM
from ..records import quoted
from . import derived
from .ace import ACE, IFMET, ReleasedACE
from .base import Editor
from .ft import FT
from .kn import KN
from .memit import MEMIT, PMET, AlphaEdit
from .rome import ROME

#: the editors that are compared, by name
EDITORS: dict[str, type[Any]] = {
    editor.__name__: editor for editor in (FT, KN, ROME, MEMIT, PMET, AlphaEdit, IFMET, ACE)
}
#: all that have settings: those, ACE on the layers that attribution ranks first, ACE as released
KNOWN: dict[str, type[Any]] = EDITORS | {"LocatedACE": ACE, ReleasedACE.__name__: ReleasedACE}
COMMON, MODEL = "common", "model"  #: tables that are no editor's
FINGERPRINTS = "fingerprints"
EMPTY: Mapping[str, Any] = {}


def preset(editor: str, model: str | LM) -> Any:
    """The named editor with its settings for a model, loaded or by name.

    model: a name (shipped, fetched, or a hub id) takes the file of that name. A loaded one takes
    the file that knows its fingerprint or its name, or else those of the models that it was before
    it was edited; if there is none, settings are derived and a warning says so.
    Raises ValueError that lists the editors, or the models that the editor has settings for, and
    for a file with a wrong setting, naming file, table and field.
    """
    if isinstance(model, LM):
        chosen, said = preset_of(editor, model)
        if said:
            warnings.warn(said, stacklevel=2)
        return chosen
    name, path = editor_named(editor), path_of(model)
    tables = _tables(path) if path.exists() else {}
    if name not in tables:
        models = [p.stem for p in sorted(path.parent.glob("*.toml")) if name in _tables(p)]
        raise ValueError(
            f"{editor} has no settings for model {quoted(model)}; it has for: {', '.join(models)}"
        )
    return _read(name, tables, path)


def preset_of(editor: str, lm: LM, file: str | Path | None = None) -> tuple[Any, str]:
    """The named editor with its settings for a loaded model, and a line if they were derived.

    file: of settings to take instead. Raises ValueError as ``preset``, and for a file that cannot
    be read or has no table of the editor.
    """
    name = editor_named(editor)
    if file is not None:
        path = Path(file)
        tables = _tables(path)
        if name not in tables:
            there = [table for table in tables if table not in (COMMON, MODEL)]
            raise ValueError(f"{path.name} has no table [{name}]; it has: {', '.join(there)}")
        return _read(name, tables, path), ""
    found = file_of(lm)
    tables = _tables(found) if found else {}
    if found and name in tables:
        return _read(name, tables, found), ""
    chosen = derived.derived(name, lm)
    return chosen, derived.line(name, chosen, lm)


def file_of(lm: LM) -> Path | None:
    """The file of a loaded model's settings, or of the nearest model that it was; None if there is
    none.
    """
    owners: dict[str, Path] = {}
    for path in sorted(path_of("any").parent.glob("*.toml")):
        for fingerprint in _tables(path).get(MODEL, {}).get(FINGERPRINTS, ()):
            owners.setdefault(fingerprint, path)
    for name, fingerprint in ((lm.name, lm.fingerprint), *lm.ancestors):
        if fingerprint in owners:
            return owners[fingerprint]
        # A name says which model it is, unless it is that of a folder, which may hold any.
        if not Path(name).is_dir() and path_of(name).exists():
            return path_of(name)
    return None


def editor_named(editor: str) -> str:
    """An editor as it is called, "MEMIT" of "memit". Raises ValueError for an unknown one."""
    names = {name.lower(): name for name in KNOWN}
    if editor.lower() not in names:
        raise ValueError(f"unknown editor {quoted(editor)}; known: {', '.join(KNOWN)}")
    return names[editor.lower()]


def moved(
    editor: Any,
    layers: Sequence[int] | None = None,
    query_layers: Sequence[int] | None = None,
    value_layers: Sequence[int] | None = None,
) -> Any:
    """The same editor on other layers; None: on those that it has.

    Raises ValueError for layers that an editor of this kind does not have.
    """
    name, two = type(editor).__name__, isinstance(editor, ACE)
    if layers is not None and (two or isinstance(editor, KN)):
        kind = "query and value layers" if two else "no layers: it finds neurons"
        raise ValueError(f"{name} has {kind}; --layers is for editors of one group of layers")
    if not two and (query_layers is not None or value_layers is not None):
        raise ValueError(f"{name} has no query and value layers; those are of ACE and IFMET")
    if two:
        return editor.at(query_layers, value_layers)
    if layers is None:
        return editor
    if isinstance(editor, ROME):
        if len(layers) != 1:
            raise ValueError(f"ROME writes one layer, got {list(layers)}")
        return replace(editor, layer=layers[0])
    return replace(editor, layers=tuple(layers))


def presets(path: Path) -> dict[str, Any]:
    """All editors of a file, by name. Raises ValueError that names file, table and field."""
    tables = _tables(path)
    return {name: _read(name, tables, path) for name in tables if name not in (COMMON, MODEL)}


def path_of(model: str) -> Path:
    """The file of a model's settings, whether it is there or not."""
    return provenance.ROOT / "data" / "presets" / f"{Path(model).name.lower()}.toml"


def save(editors: Mapping[str, Any], path: Path, fingerprint: str = "") -> None:
    """Write settings into a file, in one step; its other tables and its comments stay.

    fingerprint: of the model that they were found for, which the file then knows.
    """
    document = tomlkit.parse(path.read_text("utf-8")) if path.exists() else tomlkit.document()
    common = _tables(path).get(COMMON, {}) if path.exists() else {}
    for name, editor in editors.items():
        table = to_table(editor, common)
        if name in document:
            _update(document[name], table)
        else:
            document[name] = table
    known = list(document.get(MODEL, {}).get(FINGERPRINTS, []))
    if fingerprint and fingerprint not in known:
        document[MODEL] = {FINGERPRINTS: [*known, fingerprint]}
    with replacing(path) as part:
        part.write_text(tomlkit.dumps(document), "utf-8")


def from_table(name: str, table: Mapping[str, Any], common: Mapping[str, Any] = EMPTY) -> Any:
    """The named editor with the settings of a table. Raises ValueError for a wrong one."""
    if name not in list(KNOWN):  # a table may say anything
        raise ValueError(f"unknown editor {quoted(name)}; known: {', '.join(KNOWN)}")
    usual = _usual(KNOWN[name], common)
    settings = {key: usual[key] for key in common if key in usual}
    for key, value in table.items():
        if isinstance(value, dict) and "editor" in value:
            own = {k: v for k, v in value.items() if k != "editor"}
            settings[key] = from_table(value["editor"], own, common)
        else:
            settings[key] = _to_python(value, usual.get(key))
    return KNOWN[name](**settings)


def to_table(editor: Any, common: Mapping[str, Any] = EMPTY) -> dict[str, Any]:
    """The settings of an editor, but its defaults and what is ``common``: ``from_table`` undone."""
    table: dict[str, Any] = {}
    for name, usual in _usual(type(editor), common).items():
        value = getattr(editor, name)
        if value == usual:
            continue
        if isinstance(value, Editor):
            table[name] = {"editor": type(value).__name__, **to_table(value, common)}
        elif isinstance(value, Objective):
            changes = {f.name: getattr(value, f.name) for f in fields(value)}
            table[name] = {k: _to_toml(v) for k, v in changes.items() if v != getattr(usual, k)}
        else:
            table[name] = _to_toml(value)
    return table


def _usual(editor: Any, common: Mapping[str, Any]) -> dict[str, Any]:
    """What the fields of an editor are if a table does not say; MISSING for those it must."""
    usual = {field.name: field.default for field in fields(editor)}
    return usual | {k: _to_python(v, usual[k]) for k, v in common.items() if k in usual}


def _to_python(value: Any, usual: Any) -> Any:
    """A value of a table; one that is a table itself changes the ``usual`` one."""
    if value == "none":
        return None
    if isinstance(value, dict) and isinstance(usual, Objective):
        return replace(usual, **{key: _to_python(v, None) for key, v in value.items()})
    return value


def _to_toml(value: Any) -> Any:
    return "none" if value is None else list(value) if isinstance(value, tuple) else value


def _tables(path: Path) -> dict[str, Any]:
    """The tables of a file. Raises ValueError for one that is no TOML, or common to no editor."""
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # no TOML, or no UTF-8
        raise ValueError(f"{path.name} is not TOML: {error}") from None
    except RecursionError:
        raise ValueError(f"{path.name} is not TOML: it is nested too deep") from None
    names = {field.name for editor in KNOWN.values() for field in fields(editor)}
    for name, table in tables.items():
        if name not in (*KNOWN, COMMON, MODEL) or not isinstance(table, dict):
            raise ValueError(f"{path.name}: {quoted(name)} is no editor; known: {', '.join(KNOWN)}")
    if unknown := [key for key in tables.get(COMMON, {}) if key not in names]:
        raise ValueError(f"{path.name}, [{COMMON}]: no editor has {quoted(unknown[0])}")
    known = tables.get(MODEL, {FINGERPRINTS: []})
    listed = known.get(FINGERPRINTS)
    if set(known) != {FINGERPRINTS} or not isinstance(listed, list):
        raise ValueError(f"{path.name}, [{MODEL}]: it holds {FINGERPRINTS}, a list of texts")
    return tables


def _read(name: str, tables: Mapping[str, Any], path: Path) -> Any:
    try:
        return from_table(name, tables[name], tables.get(COMMON, {}))
    except ValueError as error:
        raise ValueError(f"{path.name}, [{name}]: {error}") from None


def _update(old: Any, new: Mapping[str, Any]) -> None:
    """Make a tomlkit table hold what ``new`` does, key by key, so that its comments stay."""
    for key in [key for key in old if key not in new]:
        del old[key]
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            _update(old[key], value)
        else:
            old[key] = value
