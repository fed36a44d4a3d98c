"""Editors: frozen dataclasses of hyper-parameters; calling one returns an ``Update`` and leaves the model as it was."""

from acelib.editors.ace import ACE
from acelib.editors.memit import MEMIT
from acelib.editors.pmet import PMET

__all__ = ["ACE", "MEMIT", "PMET"]
