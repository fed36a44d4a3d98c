"""The checks of ``audit``, put to the tables and the sentences of the ACE paper; and the doubts that were noted while reading it."""

from __future__ import annotations

import pandas as pd

from . import audit
from .findings_layers import DEPTH, layers, numbers, places, ranked_lists
from .provenance import ROOT
from .tables import published


#: Faults that are no contradictions, by what would be wrong: they may have a reason that the paper does not give, or something is missing.
WEIGHT = {
    "the FFN list is the attention list": "suspect",
    "one part of a comparison is of another model": "omission",
    "the same words before, the same model, another importance (unless the target differs)": "suspect",
    "a quantity has two values (unless Table 6 skips other layers)": "suspect",
    "there is no unedited model to compare with": "omission",
    "the example of a small variation is smaller than others": "omission",
}
#: Checks of lists that Tables 14 and 15 mostly copy from Table 1.
COPIED = ("lists_without_repeat", "lists_of_their_own")


def checked() -> pd.DataFrame:
    """Everything that was checked, one row each.

    Returns: columns what (would be wrong), source, where (in it), numbers, fault (whether it is one), kind ("" if none; "repeat" if an
    earlier table has it in the same list), check.
    """
    plan = [
        *ranked_lists(),
        *places(),
        *_averages(),
        *_changes(),
        *_superior(),
        *_twice(),
        *_sentences(),
    ]
    found = pd.DataFrame(
        [
            dict(what=what, source=source, **result._asdict(), check=check.__name__)
            for what, source, check, *arguments in plan
            for result in check(*arguments)
        ]
    )
    again = (
        found.fault
        & found.check.isin(COPIED)
        & found[found.fault].duplicated(["what", "where"]).reindex(found.index, fill_value=False)
    )
    kind = found.what.map(WEIGHT).fillna(found.kind).mask(again, "repeat")
    return found.assign(kind=kind.where(found.fault, ""))


def doubts(paper: str = "ACE") -> pd.DataFrame:
    """The lines of ``data/paper/DOUBTS.md`` on a paper: kind, file, row, doubt."""
    kind, rows = "", []
    for line in (ROOT / "data" / "paper" / "DOUBTS.md").read_text("utf-8").splitlines():
        kind = line.removeprefix("## ") if line.startswith("## ") else kind
        if line.startswith("- ") and kind.startswith(f"{paper} paper"):
            file, *row, doubt = line[2:].replace("`", "").split(" · ", 2)
            rows.append(
                dict(kind=kind.partition(": ")[2], file=file, row=" ".join(row), doubt=doubt)
            )
    return pd.DataFrame(rows)


def _series(table: int, *keys: str) -> pd.Series:
    return published(table).set_index(list(keys))["value"].sort_index()


def _tokens(table: int) -> pd.Series:
    return (
        published(table)
        .melt("token", ["ffn", "attn"])
        .set_index(["token", "variable"])["value"]
        .astype(float)
        .sort_index()
    )


def _averages() -> list[tuple]:
    plan, shares, inline = [], {}, published("ace_inline")
    for n, check, what in (
        (10, audit.averages_within, "an average that no weights can give"),
        (2, audit.averages_share_weights, "averages that no common weights can give"),
    ):
        plan += [
            (
                what,
                f"Table {n}, {model}",
                check,
                part.pivot(index="editor", columns="n_edits", values="value"),
                "all",
            )
            for model, part in published(n).groupby("model", sort=False)
        ]
    for n in (2, 3, 4, 5, 6, 10, 11, 12, 18, 19):
        rows = published(n).drop(columns="arrow", errors="ignore")
        shares |= {
            f"Table {n}, " + ", ".join(map(str, row[:-1])): row[-1]
            for row in rows.itertuples(index=False)
        }
    shares |= {
        f"text, {key}": float(value)
        for key, value in inline[inline.unit == "%"].set_index("id")["value"].items()
    }
    counterfactual = published(18).pivot(
        index=["editor", "model"], columns="metric", values="value"
    )
    return [
        *plan,
        (
            "an average that no weights can give",
            "Table 18",
            audit.averages_within,
            counterfactual,
            "avg",
        ),
        (
            "a percentage out of range",
            "Tables 2 to 6, 10 to 12, 18, 19 and text",
            audit.within,
            shares,
            0,
            100,
        ),
    ]


def _changes() -> list[tuple]:
    inline, prompt = published("ace_inline").set_index("id"), _series(5, "model", "prompting")
    wide = _series(10, "editor", "model", "n_edits")
    gains = {
        f"{own} over {other}, {inline.model[key]}": (
            inline.value[key],
            *(wide[editor, inline.model[key], "all"] for editor in (other, own)),
        )
        for key, own, other in (
            ("ace_01", "ACE (PMET)", "PMET"),
            ("ace_02", "ACE (PMET)", "PMET"),
            ("ace_67", "ACE (AlphaEdit)", "AlphaEdit"),
            ("ace_68", "ACE (AlphaEdit)", "AlphaEdit"),
        )
    }
    skipped = published(4).pivot(
        index=["model", "layer_family", "skipped_ranks"], columns="metric", values="value"
    )
    losses = {
        ", ".join(key): (
            f"{row.avg_decrease_percent:.2f}",
            wide["ACE (PMET)", key[0], "all"],
            row.avg,
        )
        for key, row in skipped.iterrows()
    }
    kinds = [
        (model, kind) for model in DEPTH for kind in ("Zero-Shot", "One-Shot", "OOD Few-Shots")
    ]
    prompts = {
        ", ".join(key): (
            inline.value[f"ace_{29 + i}"],
            wide["ACE (PMET)", key[0], "all"],
            prompt[key],
        )
        for i, key in enumerate(kinds)
    }
    return [
        (
            "a change stated in percent that the table does not give",
            source,
            audit.change_follows,
            some,
        )
        for source, some in (
            ("6.2, Table 2; J, Table 10", gains),
            ("Table 4", losses),
            ("6.3, Table 5", prompts),
        )
    ]


def _superior() -> list[tuple]:
    plan = []
    for n, name in ((2, "ACE"), (10, "ACE (AlphaEdit)")):
        wide = (
            published(n)
            .pivot(index="editor", columns=["model", "n_edits"], values="value")
            .drop(index="Base")
        )
        plan.append(
            (
                f"{name} is said to outperform the others, and is not the highest",
                f"Table {n}",
                audit.leads,
                wide,
                name,
            )
        )
    three = (
        published(3)
        .query("editor in ['PMET', 'ACE']")
        .pivot(index="editor", columns=["model", "metric"], values="value")
    )
    plan.append(
        (
            "ACE is called superior to the state of the art, and PMET is higher",
            "6.2, Table 3",
            audit.leads,
            three,
            "ACE",
        )
    )
    others = (
        published(2)
        .query("n_edits == 'all' and editor not in ['Base', 'ACE']")
        .pivot(index="editor", columns="model", values="value")
    )
    return [
        *plan,
        (
            "PMET is called the state of the art, and is not the highest",
            "1, Table 2",
            audit.leads,
            others,
            "PMET",
        ),
        (
            "said to do worse on Qwen3-8B, and does not",
            "6.2, Table 2",
            audit.falls,
            others["GPT-J"],
            others["Qwen3-8B"].drop("FT"),
        ),
    ]


def _twice() -> list[tuple]:
    models, most = (
        published("ace_inline").set_index("id").model,
        published(6).groupby("model").n_layers.max(),
    )
    average, ace = (
        _series(2, "editor", "model", "n_edits"),
        _series(6, "editor", "model", "n_layers")["ACE"],
    )
    skipped = _series(4, "layer_family", "metric", "model", "skipped_ranks")["query", "avg"]
    fewer = {
        (model, int(most[model]) - len(ranks.split(";"))): value
        for (model, ranks), value in skipped.items()
    }
    f27 = published(13).query("block == 'ffn' and layer == 27")["value"]
    sides = (
        pd.Series({"models of 16.51 and 40.45 %, set side by side": models[key]})
        for key in ("ace_03", "ace_04")
    )
    pairs = {
        "6.4 and Table 7, plays": (*numbers("ace_39"), _tokens(7)["plays", "ffn"]),
        "6.4 and Table 7, of": (*numbers("ace_40"), _tokens(7)["of", "ffn"]),
        "L.2 and Table 13, range of f27": (*numbers("ace_70"), round(f27.max() - f27.min(), 2)),
    }
    for model, keys in {"GPT-J": ("ace_47", "ace_48"), "Qwen3-8B": ("ace_49", "ace_50")}.items():
        pairs |= {
            f"Tables 2 and 6, ACE, {model}": (
                average["ACE", model, "all"],
                ace[model, most[model]],
            ),
            f"G and Table 6, edited layers, {model}": (len(layers(*keys)), int(most[model])),
        }
    a, b = (pd.Series({key: pair[i] for key, pair in pairs.items()}, dtype=object) for i in (0, 1))
    shared = (
        average.rename(index={"ACE": "ACE (PMET)"}, level="editor"),
        _series(10, "editor", "model", "n_edits"),
    )
    return [
        ("a quantity has two values", source, audit.values_agree, *some)
        for source, some in (("Tables 2 and 10", shared), ("text and tables", (a, b)))
    ] + [
        (
            "a quantity has two values (unless Table 6 skips other layers)",
            "Tables 4 and 6, ACE without query layers",
            audit.values_agree,
            pd.Series(fewer),
            ace,
        ),
        ("one part of a comparison is of another model", "1", audit.values_agree, *sides),
        (
            "the same words before, the same model, another importance (unless the target differs)",
            "Tables 7 and 16",
            audit.values_agree,
            _tokens(7),
            _tokens(16),
        ),
    ]


def _sentences() -> list[tuple]:
    down = published(4).query("arrow == 'down' and not metric.str.startswith('avg')")
    down = down.set_index(["model", "layer_family", "skipped_ranks", "metric"])["value"]
    full, drop = _series(3, "editor", "model", "metric")["ACE"], numbers("ace_71")[0]
    before = pd.Series({key: full[key[0], key[-1]] for key in down.index})
    spread = (
        published(13)
        .groupby(["block", "layer"])["value"]
        .agg(lambda values: round(values.max() - values.min(), 2))
    )
    others = {f"{block} {layer}": value for (block, layer), value in spread.items()}
    return [
        ("an arrow down where nothing falls", "Tables 3 and 4", audit.falls, before, down),
        (
            f"called stable, and changes by {drop:g} % or more",
            "L.3, Tables 16 and 17",
            audit.stays,
            _tokens(16),
            _tokens(17).drop("from"),
            drop,
        ),
        (
            "the example of a small variation is smaller than others",
            "L.2, Table 13",
            audit.within,
            others,
            0,
            *numbers("ace_70"),
        ),
        (
            "there is no unedited model to compare with",
            "L.1, L.4",
            audit.has_entry,
            {f"Table {n}": list(published(n).editor.unique()) for n in (12, 19)},
            "Base",
        ),
        (
            "a proof rests on a theorem that is not there",
            "M",
            audit.has_entry,
            {"M.4, From Theorem 1": ["Lemma 1", "Theorem 2", "Theorem 3", "Theorem 4"]},
            "Theorem 1",
        ),
    ]
