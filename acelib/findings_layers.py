"""The checks of ``audit`` that the ACE paper's lists of layers are put to: (what would be wrong, source, check, arguments)."""

from __future__ import annotations

import re

from . import audit
from .tables import published

DEPTH = {"GPT-J": 28, "Qwen3-8B": 36}  #: layers, from the configurations of the models
SIMILAR, DISSIMILAR = (
    ("NN", "CT", "LG", "CP", "LS"),
    ("AT", "ST", "CF"),
)  #: as Section 4.1 groups the categories


def numbers(*keys: str) -> list[float]:
    """Numbers of the running text by their keys, as ``tables.quote``; several in one entry are joined with ";"."""
    values = published("ace_inline").set_index("id")["value"]
    return [float(part) for key in keys for part in values[key].split(";")]


def layers(*keys: str) -> list[int]:
    """``numbers`` that are layers."""
    return [int(layer) for layer in numbers(*keys)]


def ranked_lists() -> list[tuple]:
    """Tables 1, 14 and 15, and what Sections 4.1 and L.2 say of them."""
    ranked = {number: published(number) for number in (1, 14, 15)}
    plan = [
        ("a ranked list names a layer twice", f"Table {n}", audit.lists_without_repeat, table)
        for n, table in ranked.items()
    ]
    plan += [
        ("the FFN list is the attention list", f"Table {n}", audit.lists_of_their_own, table)
        for n, table in ranked.items()
    ]
    for n in (14, 15):
        plan += [
            (
                "underlined without a change, or changed without",
                f"Table {n}",
                audit.marks_follow,
                ranked[n],
                ranked[1],
            ),
            (
                "changes are said to be mostly in the lower half, and are not",
                f"L.2, Table {n}",
                audit.changes_are_low,
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
        plan.append((what, "4.1, Table 1", audit.lists_name, ranked[1], *arguments))
    return plan


def places() -> list[tuple]:
    """Query and value layers in Sections 4.2, 6.4 and G, and whether the models have all layers that are named."""
    probed = [
        re.match(r"active value neurons in layer (\d+), before", quantity)
        for quantity in published("ace_inline").quantity
    ]
    named = {
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
    gaps = {
        section: min(named["GPT-J", "value"][section]) - max(named["GPT-J", "query"][section])
        for section in ("6.4", "G")
    }
    plan = [
        ("a layer that the model does not have", model, audit.layers_exist, lists[model], depth)
        for model, depth in DEPTH.items()
    ]
    plan += [
        (
            "two sections name different layers for the same thing",
            f"{model}, {role} layers",
            audit.places_meet,
            some,
        )
        for (model, role), some in named.items()
    ]
    return [
        *plan,
        (
            "query layers are said to be 1 to 2 layers before value layers, and are not",
            "4.2 against 6.4 and G, GPT-J",
            audit.within,
            gaps,
            *numbers("ace_15", "ace_16"),
        ),
    ]
