"""The world and the reference models as tables: relations, chains, kinds of training text, and how
the models were trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import pandas as pd

from ..model.lm import LM
from ..model.loading import SHIPPED
from ..records import Chain
from ..world.text import TEXTS
from ..world.wording import multi_hop_cloze, multi_hop_question
from ..world.world import SPLITS, World, chains, sample_chains, split_of


def relations_table(world: World) -> pd.DataFrame:
    """Relations by number of facts: kinds of subjects, the paper's category, the first wording."""
    relation = [fact.relation for fact in world.facts]
    kinds = pd.Series([world.kind(fact.subject) for fact in world.facts], relation)
    columns = {
        "facts": pd.Series(relation).value_counts(),
        "subjects": kinds.groupby(level=0).unique().map(", ".join),
        "category": {key: r.category or "" for key, r in world.relations.items()},
        "first wording": {key: r.cloze[0] for key, r in world.relations.items()},
    }
    return pd.DataFrame(columns).sort_values("facts", ascending=False)


def size_numbers(world: World) -> dict[str, int]:
    """How many facts, entities that facts are about, names and relations there are."""
    return {
        "facts": len(world.facts),
        "entities": sum(bool(world.about(name)) for name in world.entities),
        "names": len(world.entities),
        "relations": len(world.relations),
    }


def chains_table(world: World) -> pd.DataFrame:
    """Chains without repeated entities, splits x lengths."""
    counts = {f"{n} hops": Counter(map(split_of, chains(world, n))) for n in (2, 3, 4)}
    return pd.DataFrame(counts).reindex(SPLITS)


def example_chain(world: World, seed: int = 0) -> Chain:
    """A chain of three facts of the evaluation split."""
    return sample_chains(world, "evaluation", 3, 1, Random(seed))[0]


def chain_table(world: World, chain: Chain) -> pd.DataFrame:
    """A chain, as a question and as a statement."""
    text = {
        "chain": " → ".join(chain.entities),
        "question": multi_hop_question(world, chain),
        "statement": f"{multi_hop_cloze(world, chain)} {chain.answer}",
    }
    return pd.DataFrame({"text": text})


def texts_table(world: World, seed: int = 0, length: int = 300) -> pd.DataFrame:
    """The beginning of one example of each kind of training text."""
    examples = {
        kind: " / ".join(text(world, Random(f"{seed}/{kind}"))[:length].split("\n"))
        for kind, text in TEXTS.items()
    }
    return pd.DataFrame({"example (its beginning)": examples})


# ------------------------------------------------------------------------------ reference models


def folder_of(model: str) -> Path:
    """Where the weights of a model are: itself, or the shipped folder of that name."""
    return Path(model) if Path(model).is_dir() else SHIPPED / model


def training_logs(models: Sequence[str]) -> pd.DataFrame:
    """The rows of the models' training logs, with a column model."""
    folders = [folder_of(model) for model in models]
    logs = [pd.read_json(folder / "train_log.jsonl", lines=True) for folder in folders]
    named = zip(logs, folders, strict=True)
    return pd.concat([log.assign(model=folder.name) for log, folder in named])


def models_table(hosts: Mapping[str, LM]) -> pd.DataFrame:
    """The models and how they were trained: from their weights, recipes, logs and cards."""
    return pd.DataFrame({model: _trained(model, lm) for model, lm in hosts.items()})


def _trained(model: str, lm: LM) -> dict[str, str]:
    folder = folder_of(model)
    recipe = pd.read_json(folder / "recipe.json", typ="series")
    log = training_logs([model])
    steps = log.tokens.diff().fillna(log.tokens.iloc[0])
    where = card(model).partition("**Trained on** ")[2].partition("\n-")[0]
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    parameters = sum(p.numel() for p in lm.model.parameters())
    minutes = (steps / log.tokens_per_s).sum() / 60
    return {
        "architecture": type(lm.model).__name__,
        "parameters (millions)": f"{parameters / 1e6:.1f}",
        "weights on disk (MB)": f"{weights / 1e6:.1f}",
        "tokens seen (millions)": f"{log.tokens.max() / 1e6:.1f}",
        "steps × rows × tokens": f"{recipe.steps:,} × {recipe.batch} × {recipe.length}",
        "training time, of the log (minutes)": f"{minutes:.0f}",
        "trained on, by its card": " ".join(where.split()).rstrip(".") or "–",
        "seed": str(recipe.seed),
    }


def card(model: str) -> str:
    """The text of a model's card; empty if it has none."""
    path = folder_of(model) / "README.md"
    return path.read_text("utf-8") if path.exists() else ""
