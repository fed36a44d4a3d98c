"""The checks of ``checks``, put to the tables and the sentences of the ACE paper; and the doubts
that were noted while reading it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import pandas as pd

from ..provenance import ROOT
from . import checks
from .published import published

#: Faults that are no contradictions, by what would be wrong: they may have a reason that the paper
#: does not give, or something is missing.
WEIGHT = {
    "the FFN list is the attention list": "suspect",
    "one part of a comparison is of another model": "omission",
    "the same words before, the same model, another importance (unless the target differs)": (
        "suspect"
    ),
    "a quantity has two values (unless Table 6 skips other layers)": "suspect",
    "there is no unedited model to compare with": "omission",
    "the example of a small variation is smaller than others": "omission",
}
#: Checks of lists that Tables 14 and 15 mostly copy from Table 1.
COPIED = ("lists_without_repeat", "lists_of_their_own")
DEPTH = {"GPT-J": 28, "Qwen3-8B": 36}  #: layers, from the configurations of the models
#: Categories as Section 4.1 groups them.
SIMILAR, DISSIMILAR = ("NN", "CT", "LG", "CP", "LS"), ("AT", "ST", "CF")


def results() -> pd.DataFrame:
    """Everything that was checked, one row each.

    Returns: columns what (would be wrong), source, where (in it), numbers, fault (whether it is
    one), kind ("" if none; "repeat" if an earlier table has it in the same list), check.
    """
    plan = [
        *ranked_lists(),
        *places(),
        *averages(),
        *changes(),
        *superiority(),
        *repeated_values(),
        *sentences(),
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


# --------------------------------------------------------------------------------- lists and layers


def ranked_lists() -> list[tuple]:
    """Tables 1, 14 and 15, and what Sections 4.1 and L.2 say of them."""
    ranked = {number: published(number) for number in (1, 14, 15)}
    plan: list[tuple] = [
        ("a ranked list names a layer twice", f"Table {n}", checks.lists_without_repeat, table)
        for n, table in ranked.items()
    ]
    plan += [
        ("the FFN list is the attention list", f"Table {n}", checks.lists_of_their_own, table)
        for n, table in ranked.items()
    ]
    for n in (14, 15):
        plan += [
            (
                "underlined without a change, or changed without",
                f"Table {n}",
                checks.marks_follow,
                ranked[n],
                ranked[1],
            ),
            (
                "changes are said to be mostly in the lower half, and are not",
                f"L.2, Table {n}",
                checks.changes_are_low,
                ranked[n],
                ranked[1],
            ),
        ]
    for what, *arguments in (
        (
            "said to rank top in all categories, and is not in the first four",
            "attn",
            (27, 26, 7),
            SIMILAR + DISSIMILAR,
            4,
        ),
        (
            "said to rank top for similar categories, and is not in the list",
            "ffn",
            (24, 27, 16),
            SIMILAR,
            9,
        ),
        (
            "said to be of the similar categories, and is listed for another",
            "ffn",
            (24, 27, 16),
            DISSIMILAR,
            9,
            False,
        ),
    ):
        plan.append((what, "4.1, Table 1", checks.lists_name, ranked[1], *arguments))
    return plan


def places() -> list[tuple]:
    """Query and value layers in Sections 4.2, 6.4 and G, and whether the models have all layers
    that are named.
    """
    named = named_layers()
    lists = listed_layers(named)
    gaps = {
        section: min(named["GPT-J", "value"][section]) - max(named["GPT-J", "query"][section])
        for section in ("6.4", "G")
    }
    plan: list[tuple] = [
        ("a layer that the model does not have", model, checks.layers_exist, lists[model], depth)
        for model, depth in DEPTH.items()
    ]
    plan += [
        (
            "two sections name different layers for the same thing",
            f"{model}, {role} layers",
            checks.places_meet,
            some,
        )
        for (model, role), some in named.items()
    ]
    return [
        *plan,
        (
            "query layers are said to be 1 to 2 layers before value layers, and are not",
            "4.2 against 6.4 and G, GPT-J",
            checks.within,
            gaps,
            *numbers("ace_15", "ace_16"),
        ),
    ]


def named_layers() -> dict[tuple[str, str], dict[str, list[int]]]:
    """The layers that Sections 4.2, 6.4 and G name, by (model, role) and section."""
    probed = [
        re.match(r"active value neurons in layer (\d+), before", quantity)
        for quantity in published("ace_inline").quantity
    ]
    return {
        ("GPT-J", "query"): {
            "4.2": layers("ace_19"),
            "6.4": layers("ace_35"),
            "G": layers("ace_47"),
        },
        ("GPT-J", "value"): {
            "4.2": [int(found[1]) for found in probed if found],
            "6.4": layers("ace_36"),
            "G": layers("ace_48"),
        },
        ("Qwen3-8B", "query"): {"6.4": layers("ace_37"), "G": layers("ace_49")},
        ("Qwen3-8B", "value"): {"6.4": layers("ace_38"), "G": layers("ace_50")},
    }


def listed_layers(
    named: Mapping[tuple[str, str], Mapping[str, list[int]]],
) -> dict[str, dict[str, list[int]]]:
    """All lists of layers of the paper by model and place: ``named_layers``, Appendix F, Tables."""
    lists = {
        model: {
            f"{section}, {role}": some
            for (of, role), sections in named.items()
            if of == model
            for section, some in sections.items()
        }
        for model in DEPTH
    }
    lists["Qwen3-8B"] |= {
        "F": layers("ace_45", "ace_46"),
        "Table 9": list(published(9).layer),
        "Table 13": sorted(set(published(13).layer)),
    }
    for n in (1, 14, 15):
        lists["GPT-J"] |= {
            f"Table {n}, {category} {block}": list(part.layer)
            for (category, block), part in published(n).groupby(["category", "block"], sort=False)
        }
    return lists


# ------------------------------------------------------------------------------------------- values


def averages() -> list[tuple]:
    """Averages and percentages of all tables, and of the text."""
    plan: list[tuple] = []
    shares: dict = {}
    inline = published("ace_inline")
    for n, check, what in (
        (10, checks.averages_within, "an average that no weights can give"),
        (2, checks.averages_share_weights, "averages that no common weights can give"),
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
            checks.averages_within,
            counterfactual,
            "avg",
        ),
        (
            "a percentage out of range",
            "Tables 2 to 6, 10 to 12, 18, 19 and text",
            checks.within,
            shares,
            0,
            100,
        ),
    ]


def changes() -> list[tuple]:
    """Gains and losses that the text or a table states in percent."""
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
            checks.change_follows,
            some,
        )
        for source, some in (
            ("6.2, Table 2; J, Table 10", gains),
            ("Table 4", losses),
            ("6.3, Table 5", prompts),
        )
    ]


def superiority() -> list[tuple]:
    """Methods that are said to be ahead, or to fall behind."""
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
                checks.leads,
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
            checks.leads,
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
            checks.leads,
            others,
            "PMET",
        ),
        (
            "said to do worse on Qwen3-8B, and does not",
            "6.2, Table 2",
            checks.falls,
            others["GPT-J"],
            others["Qwen3-8B"].drop("FT"),
        ),
    ]


def repeated_values() -> list[tuple]:
    """Quantities that are given in two places."""
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
        ("a quantity has two values", source, checks.values_agree, *some)
        for source, some in (("Tables 2 and 10", shared), ("text and tables", (a, b)))
    ] + [
        (
            "a quantity has two values (unless Table 6 skips other layers)",
            "Tables 4 and 6, ACE without query layers",
            checks.values_agree,
            pd.Series(fewer),
            ace,
        ),
        ("one part of a comparison is of another model", "1", checks.values_agree, *sides),
        (
            "the same words before, the same model, another importance (unless the target differs)",
            "Tables 7 and 16",
            checks.values_agree,
            _tokens(7),
            _tokens(16),
        ),
    ]


def sentences() -> list[tuple]:
    """What sentences say of tables, and what they refer to."""
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
        ("an arrow down where nothing falls", "Tables 3 and 4", checks.falls, before, down),
        (
            f"called stable, and changes by {drop:g} % or more",
            "L.3, Tables 16 and 17",
            checks.stays,
            _tokens(16),
            _tokens(17).drop("from"),
            drop,
        ),
        (
            "the example of a small variation is smaller than others",
            "L.2, Table 13",
            checks.within,
            others,
            0,
            *numbers("ace_70"),
        ),
        (
            "there is no unedited model to compare with",
            "L.1, L.4",
            checks.has_entry,
            {f"Table {n}": list(published(n).editor.unique()) for n in (12, 19)},
            "Base",
        ),
        (
            "a proof rests on a theorem that is not there",
            "M",
            checks.has_entry,
            {"M.4, From Theorem 1": ["Lemma 1", "Theorem 2", "Theorem 3", "Theorem 4"]},
            "Theorem 1",
        ),
    ]


# ------------------------------------------------------------------------------------------ reading


def numbers(*keys: str) -> list[float]:
    """Numbers of the running text by their keys, as ``published.quote``; several in one entry are
    joined with ";".
    """
    values = published("ace_inline").set_index("id")["value"]
    return [float(part) for key in keys for part in values[key].split(";")]


def layers(*keys: str) -> list[int]:
    """``numbers`` that are layers."""
    return [int(layer) for layer in numbers(*keys)]


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
