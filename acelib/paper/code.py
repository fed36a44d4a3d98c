"""The paper against its code: every difference, and the layers that each source names.

The code is that of the repository yjywdzh/ACE at commit c1a425b.
"""

from __future__ import annotations

import pandas as pd

from .audit import DEPTH, named_layers
from .published import published

COMMIT = "c1a425b"  #: of the released code
TABLE, SETTINGS = "Table 1", "settings"
#: sources of layers, in order; the settings count from 0, the paper does not say
SOURCES = (TABLE, "4.2", "6.4", "G", SETTINGS)


def differences() -> pd.DataFrame:
    """One row per difference: section and paper (what it says), file, line (where it is known) and
    code (what it does), consequence, measured (the chapter that does; empty: not measured here).
    """
    return published("ace_differences").drop(columns="id")


def layers() -> pd.DataFrame:
    """The layers that each source names: model, source, role ("query", "value", or "important" in
    Table 1, whose FFN lists say nothing of roles), layer, share (of Table 1's eight lists that have
    it; else 1).
    """
    lists = published(1).query("block == 'ffn'")
    counted = lists.groupby("layer").category.nunique() / lists.category.nunique()
    rows = [("GPT-J", TABLE, "important", layer, share) for layer, share in counted.items()]
    rows += [
        (model, section, role, layer, 1.0)
        for (model, role), sections in named_layers().items()
        for section, some in sections.items()
        for layer in some
    ]
    rows += [
        (row.model, SETTINGS, row.role, int(layer), 1.0)
        for row in published("ace_released_layers").itertuples()
        for layer in row.layers.split(";")
    ]
    frame = pd.DataFrame(rows, columns=["model", "source", "role", "layer", "share"])
    order = frame.source.map(SOURCES.index)
    return frame.assign(order=order).sort_values(["model", "order", "layer"], ignore_index=True)


def agreement() -> pd.DataFrame:
    """How many layers of the settings each section names, as printed and counted from 1: columns
    model, role, source, named, shared, shared_from_1 (if the paper counts from 1), beyond (named
    layers that no numbering has).
    """
    found, rows = layers(), []
    for (model, role), part in found[found.role != "important"].groupby(["model", "role"]):
        sets = {source: set(some.layer) for source, some in part.groupby("source", sort=False)}
        released = sets.pop(SETTINGS)
        for source, named in sets.items():
            less = {layer - 1 for layer in named}
            beyond = [layer for layer in named if layer > DEPTH[model]]
            rows.append(
                (model, role, source, *map(len, (named, named & released, less & released, beyond)))
            )
    columns = ["model", "role", "source", "named", "shared", "shared_from_1", "beyond"]
    return pd.DataFrame(rows, columns=columns)
