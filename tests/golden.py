"""Every preset of every editor on fixed edits: what it writes, as digests and as norms.

``python tests/golden.py`` (with ``PYTHONPATH=tests``) writes ``tests/golden_updates.json``.
Models without weights at hand (GPT-J-6B, Qwen3-8B) are stood in for by tiny random models of their
family and depth.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from acelib.bench.tiny import make_tiny
from acelib.editing.moments import second_moments
from acelib.editors import EDITORS, NeuronACE, preset
from acelib.model.loading import load
from acelib.world.cases import make_cases
from acelib.world.text import documents
from acelib.world.world import load_world

KEPT = Path(__file__).with_name("golden_updates.json")
STANDINS = {"gpt-j-6b": ("gptj", 28), "qwen3-8b": ("qwen3", 36)}
MINIS = ("gptj-mini", "qwen3-mini")


def neurons_of(ace) -> NeuronACE:
    """NeuronACE with the settings of an ACE."""
    return NeuronACE(n_neurons=32, **vars(ace))


def host(model: str):
    if model in MINIS:
        return load(model, "cpu")
    family, depth = STANDINS[model]
    return make_tiny(family, torch.float32, n_layers=depth)


def batches():
    """One edit, and the three edits of one case that has multi-hop prompts."""
    cases = make_cases(load_world(), "identification", 40, 0)
    one = next(case for case in cases if case.n_edits == 1 and case.edits[0].hops)
    more = next(
        case for case in cases if case.n_edits == 3 and any(edit.hops for edit in case.edits)
    )
    return [list(one.edits), list(more.edits)]


def digest(update) -> dict:
    """By layer: sixteen digits of the bytes of the full change, and its norm."""
    rows = {}
    for layer in update.factors:
        delta = update.delta(layer).detach().cpu().contiguous()
        data = hashlib.sha256(delta.numpy().tobytes()).hexdigest()[:16]
        rows[str(layer)] = [data, float(delta.double().norm())]
    return rows


def record(model: str, cache: Path) -> dict:
    """{editor: [layers of the first batch, of the second]}."""
    lm, groups = host(model), batches()
    editors = {name: preset(name, model) for name in EDITORS}
    if model in MINIS:
        editors["NeuronACE"] = neurons_of(editors["ACE"])
    moments = second_moments(lm, documents(load_world(), 300), range(lm.n_layers), cache)
    return {
        name: [digest(update) for update in editor.each(lm, groups, moments)]
        for name, editor in editors.items()
    }


def machine() -> dict:
    """What decides the last bits of a result."""
    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        rows = {model: record(model, Path(folder)) for model in (*MINIS, *STANDINS)}
    KEPT.write_text(json.dumps({"machine": machine(), "updates": rows}, indent=1) + "\n")
