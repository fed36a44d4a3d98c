"""The papers' published numbers, as printed (``data/paper``)."""

from __future__ import annotations

import pandas as pd

from ..provenance import ROOT


def published(table: int | str) -> pd.DataFrame:
    """A published table as printed: 2 is Table 2 of ACE; other papers and the running text by file
    name, "ql_table_01", "ace_inline".

    Returns one value a row (``data/paper/README.md`` names the columns). A column is numeric when
    all its cells are numbers; ``n_edits`` of Tables 2 and 10 is text, "1" to "4" and "all" for the
    printed average. Raises ValueError unless exactly one file is meant.
    """
    stem, files = (
        f"ace_table_{table:02d}" if isinstance(table, int) else table,
        sorted((ROOT / "data" / "paper").glob("*.csv")),
    )
    found = [file for file in files if f"{file.stem}_".startswith(f"{stem}_")]
    if len(found) != 1:
        raise ValueError(
            f"no published table {table!r}; known: {', '.join(file.stem for file in files)}"
        )
    return pd.read_csv(found[0], dtype=str, keep_default_na=False).apply(_numeric)


def quote(key: str) -> float:
    """A number of ACE's running text by its key, "ace_13" -> 9.47.

    Raises ValueError if there is none, or if it is no single number.
    """
    values = published("ace_inline").set_index("id")["value"]
    try:
        return float(values[key])
    except (KeyError, ValueError):
        raise ValueError(
            f"{key!r} is no single number of ACE's text; known: {', '.join(values.index)}"
        ) from None


def _numeric(column: pd.Series) -> pd.Series:
    if column.isin(["true", "false"]).all():
        return column == "true"
    numbers = pd.to_numeric(column, errors="coerce")
    return numbers if numbers.notna().any() and (numbers.notna() | (column == "")).all() else column
