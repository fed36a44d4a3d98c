"""ACE as described, as released, as it ran, on the same cases; and what writing attention adds.

Described: the paper's two stages. Released: what its code does to one edit or to the edits of a
case at once. As it ran: the released editor under the protocol of the released evaluation, one edit
after another, with three of its faults one after the other (``study.as_it_ran``). The other forms
have the released layers as one group: attention written too, which is what the first fault amounts
to; the FFN's vector alone, as PMET's paper writes; and both vectors through the FFN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from ..editors import ACE, ReleasedACE, preset
from ..editors.base import Editor
from ..model.lm import LM
from ..paper.published import published
from ..study import as_it_ran, claims, experiments, tables
from ..study.as_it_ran import Faults, one_group
from ..study.judge import Protocol
from ..study.rows import Experiment, Series
from ..study.stats import SHARE, Mean, difference, interval, paired
from ..study.tables import BASELINE
from ..study.tables import METRICS as METRICS  # that the forms are compared by
from ..world.world import World

DESCRIBED, RELEASED, PMET = "ACE", "ACE (released)", "PMET"
HALF_ACE, WHOLE_ACE = "ACE (half)", "ACE (whole)"
AT_DEPTH = "ACE (released, published depth)"
BOTH, HALF, WHOLE = "one group (both)", "one group (FFN)", "one group (whole)"
IN_TURN, F1, F2, F3 = "in turn", "in turn, F1", "in turn, F1 F2", "in turn, F1 F2 F3"
#: the faults of each run
RUNS = {
    IN_TURN: Faults(),
    F1: Faults(groups_forgotten=True),
    F2: Faults(groups_forgotten=True, vectors_kept=True),
    F3: Faults(groups_forgotten=True, vectors_kept=True, edits_stay=True),
}
#: what is asked of two forms -> (the first, minus the second)
QUESTIONS = {
    "released, not described": (RELEASED, DESCRIBED),
    "edits in turn, not together": (IN_TURN, RELEASED),
    "F1: groups forgotten": (F1, IN_TURN),
    "F2: vectors of another edit": (F2, F1),
    "F3: edits that stay": (F3, F2),
    "all three faults": (F3, IN_TURN),
    "two groups, not one": (RELEASED, BOTH),
    "attention written, not left": (BOTH, HALF),
    "both vectors through the FFN, not one": (WHOLE, HALF),
    "the same, of ACE as described": (WHOLE_ACE, HALF_ACE),
    "layers searched, not at the published depth": (RELEASED, AT_DEPTH),
}
FORMS = (DESCRIBED, RELEASED, IN_TURN, F1, F2, F3, BOTH)  #: that claims of the paper are put to
WRITES = (HALF, WHOLE, BOTH, RELEASED)  #: ways to write the released layers
#: reference model -> the model that its layers are compared with, and how many that one has
LARGE = {"gptj-mini": ("gpt-j-6b", 28), "qwen3-mini": ("qwen3-8b", 36)}


# ---------------------------------------------------------------- the forms


def at_depth(layers: Sequence[int], n_layers: int, depth: int) -> tuple[int, ...]:
    """Layers of a model of ``n_layers`` at the same share of another model's ``depth``.

    Layer l becomes l (depth - 1) / (n_layers - 1), rounded; those that meet are one.
    """
    return tuple(sorted({round(layer * (depth - 1) / (n_layers - 1)) for layer in layers}))


def at_published_depth(released: ReleasedACE, model: str, depth: int) -> ACE:
    """The released form on layers at the published share of the depth, else with its own settings.

    On a model that is the counterpart of none it stays as it is.
    """
    if model not in LARGE:
        return released
    large, n_layers = LARGE[model]
    published = preset("ReleasedACE", large)
    return released.at(
        at_depth(published.query_layers, n_layers, depth),
        at_depth(published.value_layers, n_layers, depth),
    )


def editors(model: str, depth: int = 8) -> dict[str, Editor | None]:
    """The forms whose edits of a case are made together, with their settings for a model.

    depth: number of the model's layers.
    """
    ace, released = preset("ACE", model), preset("ReleasedACE", model)
    both: Any = one_group(released)
    return {
        BASELINE: None,
        PMET: preset("PMET", model),
        DESCRIBED: ace,
        HALF_ACE: ace.with_both(writes="ffn"),
        WHOLE_ACE: ace.with_both(writes="whole"),
        RELEASED: released,
        AT_DEPTH: at_published_depth(released, model, depth),
        BOTH: both,
        HALF: replace(both, writes="ffn"),
        WHOLE: replace(both, writes="whole"),
    }


def experiment(
    hosts: Mapping[str, LM],
    world: World,
    *,
    cases: str,
    n_cases: int,
    n_unrelated: int,
    seed: int,
) -> Experiment:
    """``editors`` on evaluation cases, balanced over 1 to 4 edits. Rows: ``judge``.

    cases: a file in the shape of MQuAKE, or "" for cases that are made from the world.
    """
    known = experiments.cases_by_model(hosts, world, n_cases, seed, cases)
    protocol = Protocol(n_unrelated=n_unrelated, seed=seed)
    compared = {model: editors(model, lm.n_layers) for model, lm in hosts.items()}
    series = experiments.comparisons(hosts, world, compared, known, protocol)
    return Experiment("08_released_code", series)


def runs(
    hosts: Mapping[str, LM],
    world: World,
    *,
    cases: str,
    n_cases: int,
    n_unrelated: int,
    seed: int,
) -> Experiment:
    """``RUNS`` of the released editor over the cases of ``experiment``."""
    known = experiments.cases_by_model(hosts, world, n_cases, seed, cases)
    protocol, series = Protocol(n_unrelated=n_unrelated, seed=seed), list[Series]()
    for model, lm in hosts.items():
        editor = preset("ReleasedACE", model)
        texts = experiments.corpus(lm, world, [editor], seed)
        shared = (known[model], texts, protocol)
        series += as_it_ran.series(model, lm, world, editor, RUNS, *shared)
    return Experiment("08_released_code_runs", tuple(series))


def settings_table(models: Sequence[str]) -> pd.DataFrame:
    """What each form writes and how, (model, form) x settings as text."""
    rows = {}
    for model in models:
        of = editors(model)
        for name, editor in {**of, **dict.fromkeys(RUNS, of[RELEASED])}.items():
            if editor is not None:
                rows[model, name] = {**tables.settings(editor), **_how(name, editor)}
    return pd.DataFrame(rows).T


def _how(name: str, editor) -> dict[str, str]:
    stages = getattr(editor, "stages", ())
    writers = [editor.writer(stage) for stage in stages] or [editor]
    faults = RUNS.get(name)
    made = [f"F{i}" for i, on in enumerate(vars(faults).values(), 1) if on] if faults else []
    return {
        "stages": ", ".join(stages) or "one",
        "searches": "one" if getattr(editor, "shared", not stages) else "one per stage",
        "position": ", ".join(dict.fromkeys(writer.position for writer in writers)),
        "writes": ", ".join(dict.fromkeys(writer.writes for writer in writers)),
        "edits of a case": "in turn" if faults is not None else "together",
        "faults": ", ".join(made) or "–",
    }


# ---------------------------------------------------------------- what the rows say


def by_edits(rows: pd.DataFrame) -> pd.DataFrame:
    """Multi-hop accuracy by number of edits, published and measured, in percent.

    The paper's ACE stands beside ACE as described, its PMET beside PMET.
    """
    quoted = published(2).query("editor in ['PMET', 'ACE']")
    return tables.multi_hop_table(rows, quoted)


def points(rows: pd.DataFrame, forms: Sequence[str]) -> pd.DataFrame:
    """The rows of some forms for ``figures.dots``: accuracy in percent by "edits" as text, and all
    of them once more as "all".
    """
    part = rows[rows.editor.isin(forms)]
    order = part.editor.map(list(forms).index)
    part = part.assign(accuracy=100 * part.multi_hop, edits=part.n_edits.astype(str), order=order)
    part = part.sort_values(["order", "n_edits"], kind="stable").rename(columns={"editor": "form"})
    columns = ["model", "form", "edits", "accuracy"]
    return pd.concat([part, part.assign(edits="all")])[columns].reset_index(drop=True)


def answers(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """``QUESTIONS`` x (model, number of edits): differences on the same cases, in percentage
    points.

    rows: of ``experiment`` and ``runs`` together.
    """
    percent = rows.assign(multi_hop=100 * rows.multi_hop)
    cells: dict[tuple[str, str], dict[str, Mean]] = {}
    for model, part in percent.groupby("model", sort=False):
        groups = {str(n): some for n, some in part.groupby("n_edits")} | {"all": part}
        for n, some in groups.items():
            cells[model, n] = {
                question: paired(some, *pair, seed=seed) for question, pair in QUESTIONS.items()
            }
    return pd.DataFrame(cells, dtype=object).rename_axis(columns=["model", "edits"])


def two_over_one(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Accuracy on cases of two edits minus on those of one, points: forms x published and measured.

    The paper has ACE 5 points higher on two edits than on one (GPT-J): would a fault do that?
    """
    printed = published(2).query("editor == 'ACE'").set_index(["model", "n_edits"])["value"]
    parts: dict[str, dict[str, object]] = {
        f"published {model}": {DESCRIBED: printed[model, "2"] - printed[model, "1"]}
        for model in printed.index.unique(0)
    }
    for model, part in rows.groupby("model", sort=False):
        groups = {key: 100 * some.multi_hop for key, some in part.groupby(["editor", "n_edits"])}
        parts[f"measured {model}"] = {
            form: difference(groups[form, 2], groups[form, 1], seed)
            for form in FORMS
            if min(len(groups.get((form, n), ())) for n in (1, 2)) > 1
        }
    return pd.DataFrame(parts, index=list(FORMS), dtype=object)


def supported(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Which of the paper's claims each form supports: (model, claim) x forms, differences in
    points, each a ``Mean`` with its verdict in words.
    """
    percent = rows.assign(multi_hop=100 * rows.multi_hop)
    two = two_over_one(rows, seed)
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for model, part in percent.groupby("model", sort=False):
        groups = {"all cases": part, "one edit": part[part.n_edits == 1]}
        groups["four edits"] = part[part.n_edits == 4]
        for words, some in groups.items():
            if some.case_id.nunique() > 1:
                cells[model, f"ahead of PMET, {words}"] = {
                    form: _told(paired(some, form, PMET, seed=seed)) for form in FORMS
                }
        gains = two[f"measured {model}"].dropna()
        if len(gains):
            cells[model, "two edits above one"] = {form: _told(gap) for form, gap in gains.items()}
    return pd.DataFrame(cells).T.reindex(columns=list(FORMS)).fillna("–")


def _told(gap: Mean) -> str:
    return f"{claims.verdict('> 0', gap)}: {gap:z.1f}"


def sentence_numbers(rows: pd.DataFrame, seed: int = 0) -> dict[str, dict]:
    """What the sentences of the chapter say, by model: "accuracy" of each form in percent,
    "answers" to ``QUESTIONS`` over all cases, what they decide ("is"), "two": two edits over one by
    form, and which forms have two edits "above" one.
    """
    gaps, two = answers(rows, seed), two_over_one(rows, seed)
    told = {}
    for model, part in rows.groupby("model", sort=False):
        over_all = dict(gaps[model, "all"])
        over_one = two[f"measured {model}"].dropna().to_dict()
        told[model] = {
            "accuracy": {
                form: interval(100 * some.multi_hop, seed, bounds=SHARE)
                for form, some in part.groupby("editor", sort=False)
            },
            "answers": over_all,
            "is": {question: _direction(gap) for question, gap in over_all.items()},
            "two": over_one,
            "above": [form for form, gap in over_one.items() if _direction(gap) == "higher"],
        }
    return told


def _direction(gap: Mean) -> str:
    """What a difference decides: "higher", "lower" or "cannot tell"."""
    words = {"holds": "higher", "fails": "lower"}
    return words.get(claims.verdict("> 0", gap), "cannot tell")
