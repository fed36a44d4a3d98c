"""What can be refused before anything heavy is imported: torch and transformers take seconds.

The names that a command takes stand in the library, which imports what is heavy. They are read here
from its source, without running it: one list, known at once.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from ..provenance import ROOT, module_file
from ..records import quoted

#: editors that have query and value layers, those that write one layer, and those that find neurons
TWO_GROUPS = ("IFMET", "ACE", "LocatedACE", "ReleasedACE")
ONE_LAYER, NO_LAYERS = ("ROME",), ("KN",)
HOPS = ("IFMET", "ACE", "LocatedACE")  #: editors that write multi-hop prompts
DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "npu", "xla")


# ---------------------------------------------------------------------- names in the library


@cache
def names_in(module: str, constant: str) -> tuple[str, ...]:
    """The names that a constant of a module lists, such as the keys of a table, read from its
    source.

    Raises ValueError if there is no such list.
    """
    path = module_file(module)
    body = ast.parse(path.read_text("utf-8")).body if path else []
    values = {
        ast.unparse(target): node.value
        for node in body
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    }
    if constant not in values:
        raise ValueError(f"{module} has no list {constant!r}")
    return tuple(_names(values[constant], values))


def _names(node: ast.expr, values: dict[str, ast.expr]) -> Iterator[str]:
    """The names of an expression: keys of a dict, parts of a list, both sides of a union."""
    match node:
        case ast.Constant(value=str(name)):
            yield name
        case ast.Name(id=name):
            yield from _names(values[name], values) if name in values else (name,)
        case ast.Attribute(value=ast.Name(id=name), attr="__name__"):
            yield name
        case ast.Dict(keys=keys):
            for key in keys:
                yield from _names(key, values) if key else ()
        case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
            for part in parts:
                yield from _names(part, values)
        case ast.DictComp(generators=[ast.comprehension(iter=some)]):
            yield from _names(some, values)
        case ast.BinOp(left=left, right=right):
            yield from _names(left, values)
            yield from _names(right, values)


def one_of(what: str, name: str, known: Sequence[str]) -> None:
    """Raises ValueError for a name that is none of ``known``."""
    if name not in known:
        raise ValueError(f"unknown {what} {quoted(name)}; known: {', '.join(known)}")


def editors() -> tuple[str, ...]:
    """All editors that have settings, as they are called."""
    return names_in("acelib.editors.presets", "KNOWN")


def editor_named(name: str) -> str:
    """An editor as it is called, "MEMIT" of "memit". Raises ValueError for an unknown one."""
    known = {one.lower(): one for one in editors()}
    if name.strip().lower() not in known:
        raise ValueError(f"unknown editor {quoted(name)}; known: {', '.join(editors())}")
    return known[name.strip().lower()]


def experiments(names: Sequence[str] | None) -> None:
    """Raises ValueError for an experiment that is none."""
    known = sorted(names_in("acelib.study.registry", "EXPERIMENTS"))
    for name in names or ():
        one_of("experiment", name, known)


def estimates(chapters: Sequence[str]) -> None:
    """Raises ValueError for a chapter of which nobody can say what it would compute."""
    known = names_in("acelib.study.registry", "ESTIMATES")
    for name in chapters:
        if name not in known:
            raise ValueError(
                f"no estimate is made of {quoted(name)}; of: {', '.join(known) or 'none yet'}"
            )


def benchmarks(names: Sequence[str] | None) -> None:
    """Raises ValueError for a benchmark that is none."""
    known = [
        *names_in("acelib.bench.speed", "BENCHMARKS"),
        *names_in("acelib.bench.speed", "GROUPS"),
    ]
    for name in names or ():
        one_of("benchmark", name, known)


def variants(names: Sequence[str] | None) -> None:
    """Raises ValueError for a variant of the training recipe that is none."""
    kinds = names_in("acelib.world.text", "MIXTURE")
    known = [
        "all",
        *names_in("acelib.training.ablation", "IDEAS"),
        *(f"without {kind}" for kind in kinds),
    ]
    for name in names or ():
        if not re.fullmatch(r"all, seed \d{1,9}", name):
            one_of("variant", name, known)


def category(name: str | None, single: bool) -> None:
    """Raises ValueError for a category that there is not, or, unless single facts are asked, one in
    which no chain ends that layers are located with.
    """
    from ..world.world import chains, load_world, split_of

    if name is None:
        return
    last = set(load_world().facts_of(name))
    ends = (chain for chain in chains(load_world(), 2) if chain.facts[-1] in last)
    if not single and not any(split_of(chain) == "identification" for chain in ends):
        raise ValueError(
            f"no held-out chain of two hops ends in a fact of category {name}; ask single facts"
        )


def dtype(name: str) -> None:
    """Raises ValueError for a type of weights that is none."""
    known = names_in("acelib.model.loading", "DTYPES")
    if name not in known:
        raise ValueError(f"dtype {quoted(name)} is unknown; allowed: {', '.join(known)}")


def device(name: str | None) -> None:
    """Raises ValueError for a device of a kind that there is none of, wherever."""
    if name and name.split(":")[0] not in DEVICES:
        raise ValueError(
            f"device {quoted(name)} is not on this machine; kinds are: {', '.join(DEVICES)}"
        )


def source(name: str) -> None:
    """Raises ValueError for what ``acelib fetch`` can take no model from."""
    known = names_in("acelib.model.fetch", "FETCHED")
    if name not in known and not _is_file(name):
        raise ValueError(f"{quoted(name)} is neither a GGUF file nor one of: {', '.join(known)}")


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # too long a name, or one with a zero byte
        return False


# ---------------------------------------------------------------------- layers


def layers(option: str, text: str) -> tuple[int, ...] | None:
    """Layers as the command line has them, "4-7" or "4,6,8-9"; None if nothing was said.

    Raises ValueError that names the option for anything else.
    """
    if not text.strip():
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        ends = (first, last if dash else first)
        if not all(end.strip().isdecimal() and len(end.strip()) < 5 for end in ends):
            raise ValueError(f"{option} {quoted(text)} must be layers such as 4-7 or 4,6")
        found += range(int(ends[0]), int(ends[1]) + 1)
    if not found:
        raise ValueError(f"{option} {quoted(text)} names no layer; write the lower one first")
    return tuple(sorted(set(found)))


def groups(editor: str, one: Sequence[int] | None, *two: Sequence[int] | None) -> None:
    """Raises ValueError for layers that an editor does not have, as ``presets.moved`` does.

    one: of ``--layers``.   two: of ``--query-layers`` and ``--value-layers``.
    """
    name = "ACE" if editor == "LocatedACE" else editor
    if one is not None and (editor in TWO_GROUPS or editor in NO_LAYERS):
        kind = "query and value layers" if editor in TWO_GROUPS else "no layers: it finds neurons"
        raise ValueError(f"{name} has {kind}; --layers is for editors of one group of layers")
    if editor not in TWO_GROUPS and any(layers is not None for layers in two):
        raise ValueError(f"{name} has no query and value layers; those are of ACE and IFMET")
    if editor in ONE_LAYER and one is not None and len(one) != 1:
        raise ValueError(f"{name} writes one layer, got {list(one)}")


# ---------------------------------------------------------------------- models


def model(name: str) -> None:
    """Raises ValueError for a model that cannot be loaded: no shipped or fetched one, no folder
    with a configuration that can be edited, no hub id that is cached or can be reached.
    """
    folders = (ROOT / "data" / "models" / name, user_cache_path("acelib") / "models" / name)
    try:
        here = [folder for folder in (*folders, Path(name)) if name and folder.is_dir()]
        why = _faults(here[0]) if here else _unreachable(name)
    except (OSError, ValueError) as error:  # too long a name, or one with a zero byte
        why = str(error)
    if name in names_in("acelib.model.fetch", "FETCHED") and not here:
        raise ValueError(f"model {quoted(name)} is not here yet: acelib fetch {name}")
    if why:
        shipped = sorted(p.parent.name for p in (ROOT / "data" / "models").glob("*/config.json"))
        raise ValueError(
            f"model {quoted(name)} cannot be loaded: it is neither shipped "
            f"({', '.join(shipped) or 'none'}), nor a readable local folder, nor a hub id that "
            f"can be reached ({' '.join(why.split())[:200]})"
        )


def _faults(folder: Path) -> str:
    """What is wrong with the configuration of a folder; "" for nothing."""
    path = folder / "config.json"
    if not path.is_file():
        return f"{folder} has no config.json"
    try:
        config: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"{path} cannot be read: {error}"
    kind = config.get("model_type") if isinstance(config, dict) else None
    known = names_in("acelib.model.lm", "FAMILIES")
    if kind not in known:
        return f"its architecture {quoted(kind)} is not supported; supported: {', '.join(known)}"
    return ""


def _unreachable(name: str) -> str:
    """Why a hub id cannot be had; "" if it can."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        hf_hub_download(name, "config.json")
    except (OSError, HFValidationError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
