"""What every chapter begins with: the world, the models, their editors, second moments, layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..attribution.layers import Located, locate, questions
from ..editing.moments import Moments, second_moments
from ..editors import preset
from ..model.lm import LM, load
from ..world.text import documents
from ..world.world import World, load_world
from . import claims, parallel

Layers = Sequence[int] | Mapping[str, Sequence[int]]  #: of every model, or by model


@dataclass(frozen=True, eq=False)
class Study:
    """The world and the models of a chapter."""

    world: World
    hosts: Mapping[str, LM]  #: by name, in the order of the parameters
    seed: int = 0

    @property
    def counterparts(self) -> dict[str, str | None]:
        """The paper's model whose published values stand beside a measured one, or None."""
        return claims.counterparts(self.hosts)

    def per_model(self, work: Callable[[str, LM], Any]) -> dict[str, Any]:
        """``{name: work(name, host)}``, side by side where that is faster."""
        return parallel.per_model(self.hosts, work)

    def presets(self, editors: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The named editors with the settings of each model: {model: {name: editor}}.

        Raises ValueError for an unknown editor, or a model that it has no settings for.
        """
        names = list(editors)
        return {model: {name: preset(name, model) for name in names} for model in self.hosts}

    def documents(self, n: int = 2000) -> list[str]:
        """``n`` texts of the world that second moments are taken over."""
        return documents(self.world, n, self.seed)

    def moments(self, layers: Layers, n: int = 2000) -> dict[str, Moments]:
        """Second moments of ``layers`` over ``documents(n)``, by model.

        Raises ValueError for layers that are given by model and leave one out.
        """
        texts, by_model = self.documents(n), self._by_model(layers)
        return {
            name: second_moments(host, texts, by_model[name]) for name, host in self.hosts.items()
        }

    def located(self, n_questions: int, n_groups: int = 8) -> dict[str, list[Located]]:
        """Value and query scores of held-out two-hop questions, by model and group of questions.

        Groups take turns, so that their means are comparable and intervals can be taken over them;
        ``sum`` of a model's groups is what all questions say. There are no empty groups.
        """
        pairs = questions(self.world, n_questions, self.seed)
        parts = [pairs[i::n_groups] for i in range(min(n_groups, len(pairs)))]
        groups = [tuple(zip(*part, strict=True)) for part in parts]

        def work(name: str, host: LM) -> list[Located]:
            return [locate(host, prompts, answers) for prompts, answers in groups]

        return self.per_model(work)

    def _by_model(self, layers: Layers) -> Mapping[str, Sequence[int]]:
        if not isinstance(layers, Mapping):
            return dict.fromkeys(self.hosts, layers)
        if missing := [name for name in self.hosts if name not in layers]:
            raise ValueError(f"no layers for model {missing[0]!r}; there are for {list(layers)}")
        return layers


def study(models: Sequence[str], seed: int = 0, dtype: torch.dtype = torch.float32) -> Study:
    """Loads the world and the models.

    models: shipped names, folders or hub ids.   seed: of every sample.   dtype: of the models.
    Raises ValueError for no model, one that is named twice, or one that cannot be loaded.
    """
    if not models or len(set(models)) < len(models):
        raise ValueError(f"models are {list(models)}; give at least one, and each once")
    return Study(load_world(), {name: load(name, dtype=dtype) for name in models}, seed)


def written(editors: Iterable[object]) -> list[int]:
    """All layers that some of the editors write, ascending; editors without layers write none."""
    return sorted({layer for editor in editors for layer in getattr(editor, "layers", ())})
