"""What every chapter begins with: the world, the models, their editors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..editors import preset
from ..model.lm import LM
from ..model.loading import load
from ..world.world import World, load_world
from . import claims


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

    def presets(self, editors: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The named editors with the settings of each model: {model: {name: editor}}.

        Of a model without a preset they are derived, and a warning says so.
        Raises ValueError for an unknown editor.
        """
        names = list(editors)
        return {
            model: {name: preset(name, lm) for name in names} for model, lm in self.hosts.items()
        }


def study(models: Sequence[str], seed: int = 0, dtype: torch.dtype = torch.float32) -> Study:
    """Loads the world and the models.

    models: shipped names, folders or hub ids.   seed: of every sample.   dtype: of the models.
    Raises ValueError for no model, one that is named twice, or one that cannot be loaded.
    """
    if not models or len(set(models)) < len(models):
        raise ValueError(f"models are {list(models)}; give at least one, and each once")
    return Study(load_world(), {name: load(name, dtype=dtype) for name in models}, seed)
