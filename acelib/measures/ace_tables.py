"""Tables of the chapter on ACE: settings, layers, the steps and writes of one edit, readings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields

import pandas as pd
from pandas.io.formats.style import Styler

from ..paper import published
from ..records import Edit
from ..study import tables, tune
from ..study.stats import SHARE, interval
from . import located
from .ace import LOCATED, Settings

#: Settings with columns of their own, and those that are editors themselves.
COLUMNS = {
    *("layer", "layers", "query_layers", "value_layers", "value", "query"),
    *("objective", "weight", "steps", "lr", "decay", "clamp", "kl"),
}
#: Column of a result -> its reading.
READINGS = {
    "multi_hop": "any of three",
    "multi_hop_each": "each question",
    "multi_hop_substring": "substring",
    "specificity_near": "specificity, same relation",
    "specificity_far": "specificity, other relations",
    "specificity_token": "specificity, same last token",
}
#: Large model -> ids of its query and its value layers among the numbers in the paper's text.
PUBLISHED_LAYERS = {"GPT-J": ("ace_47", "ace_48"), "Qwen3-8B": ("ace_49", "ace_50")}


def settings(by_model: Settings) -> pd.DataFrame:
    """(model, editor) x settings as text: those of ``tables.settings``, and the further ones."""
    return pd.DataFrame(
        {
            (model, name): tables.settings(editor) | {"further": further(editor)}
            for model, named in by_model.items()
            for name, editor in named.items()
        }
    ).T


def further(editor) -> str:
    """Settings without a column of their own that are not the class's default, "–" for none.

    Of ACE and its like, the settings of the query stage count too.
    """
    stages = [editor.writer("query")] if hasattr(editor, "writer") else []
    values = {
        field.name: value
        for one in (*stages, editor)
        for field in fields(one)
        if field.name not in COLUMNS and (value := getattr(one, field.name)) != _default(field)
    }
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "–"


def _default(field):
    return field.default if field.default_factory is MISSING else field.default_factory()


def published_settings() -> pd.DataFrame:
    """The settings of ACE that the paper prints (Appendix G), as rows for ``settings``."""
    texts = published.published("ace_inline").set_index("id").value
    return pd.DataFrame(
        {
            ("published", f"ACE on {large}"): {
                "layers": "; ".join(
                    f"{role} {texts[key].replace(';', ', ')}"
                    for role, key in zip(("query", "value"), keys, strict=True)
                ),
                "λ": f"{published.quote('ace_58'):g}",
                "steps": f"{published.quote('ace_59'):g}",
                "lr": f"{published.quote('ace_60'):g}",
            }
            for large, keys in PUBLISHED_LAYERS.items()
        }
    ).T


def trials(models: Mapping[str, object]) -> pd.DataFrame:
    """All trials of the search for settings: ``tune.trials`` with a column model."""
    return pd.concat([tune.trials(model).assign(model=model) for model in models]).reset_index(
        drop=True
    )


def numbered(trials: pd.DataFrame) -> pd.DataFrame:
    """Trials by model, editor and number, best first within an editor; columns ``tables.NAMES``."""
    number = trials.groupby(["model", "editor"]).cumcount() + 1
    wide = trials.assign(trial=number).set_index(["model", "editor", "trial"])
    return wide.drop(columns="n_cases").rename(columns=tables.NAMES)


def layers(scores: pd.DataFrame, by_model: Settings, top: int = 3) -> pd.DataFrame:
    """By model, the ``top`` layers of each kind that attribution names, and those that are written.

    scores: of ``located.experiment``.
    """
    lines = {}
    for model, named in by_model.items():
        ranking = located.ranking(scores, model)
        lines[model] = {
            "query layers": text(ranking["query"][:top]),
            "value layers": text(ranking["value"][:top]),
        }
        for name in (name for name in ("ACE", LOCATED) if name in named):
            lines[model][f"{name} writes"] = tables.settings(named[name])["layers"]
    return pd.DataFrame(lines).T


def written(scores: pd.DataFrame, by_model: Settings) -> dict[str, dict[str, str]]:
    """By model, the layers that ACE writes by kind, with those that attribution names, and those
    of ACE (located); as text.
    """
    return {
        model: {
            **{
                role: _named(getattr(named["ACE"], f"{role}_layers"), ranks)
                for role, ranks in located.ranking(scores, model).items()
            },
            "located": tables.settings(named[LOCATED])["layers"],
        }
        for model, named in by_model.items()
        if LOCATED in named
    }


def _named(layers, ranks, top: int = 3) -> str:
    """Layers as text, with those among them that attribution ranks among the ``top``."""
    both = sorted(set(layers) & set(ranks[:top]))
    which = f"attribution names {text(both)}" if both else "none named by attribution"
    return f"{text(layers)} ({'all named by attribution' if set(layers) == set(both) else which})"


def steps(ace, edit: Edit, ranking: Mapping, n_located: int, top: int = 3) -> pd.DataFrame:
    """Figure 4 as a table: the layers that Stage 1 names, and every prompt that Stage 2 edits.

    A bar in a prompt stands after the token that is edited.
    """
    named = "; ".join(f"{role} {text(ranking[role][:top])}" for role in ("query", "value"))
    prompts = f"{n_located} two-hop questions"
    lines = [
        {"step": "Stage 1: identify", "layers": named, "prompt": prompts, "target": "–"},
        *(
            {
                "step": f"Stage 2: {stage} edit",
                "layers": text(ace.plan[stage].layers),
                "prompt": f"{request.prompt[: request.end]}|{request.prompt[request.end :]}",
                "target": request.target,
            }
            for stage in ace.stages
            for request in ace.requests([edit], stage)
        ),
    ]
    return pd.DataFrame(lines).set_index("step")


def answers(rows: pd.DataFrame, caption: str) -> Styler:
    """What a model answers before and after an edit; answers after it in green if as wanted."""
    shade = {
        "yes": "color: var(--pst-color-success, #1a7f37)",
        "no": "color: var(--pst-color-danger, #c62828)",
    }
    table = rows[["kind", "prompt", "ideal", "before", "after"]].assign(
        **{"as wanted": rows.ok.map({True: "yes", False: "no"})}
    )

    def colours(row: pd.Series) -> list[str]:
        return [shade[row["as wanted"]] * (name in ("after", "as wanted")) for name in row.index]

    return tables.style(table, caption).hide(axis="index").apply(colours, axis=1)


def writes(rows: pd.DataFrame) -> pd.DataFrame:
    """(model, editor) x layer: norm of the change and, in brackets, its share of the weight's norm;
    log-probability of the new object.   rows: of ``ace.writes``.
    """
    log_p = log_probabilities(rows).stack().swaplevel().map("{:z.3g}".format)
    log_p = log_p.rename("log p (nats)").reindex(_pairs(rows))
    cells = [f"{norm:.4g} ({share:.2g})" for norm, share in zip(rows.norm, rows.share, strict=True)]
    changed = rows.assign(cell=cells).dropna(subset="layer").astype({"layer": int})
    wide = changed.pivot(index=["model", "editor"], columns="layer", values="cell")
    wide = wide.rename(columns=lambda layer: f"layer {layer}")
    return pd.concat([wide, log_p], axis=1).reindex(log_p.index).fillna("–")


def log_probabilities(rows: pd.DataFrame) -> pd.DataFrame:
    """Log-probability of the new object after an edit, editors x models, in nats."""
    first = rows.drop_duplicates(["model", "editor"])
    wide = first.pivot(index="editor", columns="model", values="log_p")
    return wide.loc[rows.editor.unique(), rows.model.unique()]


def norms(rows: pd.DataFrame) -> pd.DataFrame:
    """(model, editor, layer) x norm, share: what is written."""
    changed = rows.dropna(subset="layer").astype({"layer": int})
    return changed.set_index(["model", "editor", "layer"])[["norm", "share"]]


def _pairs(rows: pd.DataFrame) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(rows[["model", "editor"]].drop_duplicates())


def readings(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """(model, editor) x other readings of the metrics, in percent, with intervals over cases."""
    groups = rows.groupby(["model", "editor"], sort=False)
    return pd.DataFrame(
        {
            title: groups[metric].apply(lambda hits: interval(100 * hits, seed, bounds=SHARE))
            for metric, title in READINGS.items()
        },
        dtype=object,
    )


def text(layers) -> str:
    """Layers as the tables print them: "5, 6, 7"."""
    return ", ".join(map(str, layers))
