"""Every constant of every editor: its published value, and the test that holds what it does.

The values are those of the released code or of the paper; a changed one fails here, whatever the
tolerance of the comparisons elsewhere. The named tests hold that the code does with them what is
said.
"""

import ast
from dataclasses import asdict
from inspect import signature
from pathlib import Path

import pytest
import torch

from acelib.attribution.integrated import Attribution, knowledge_neurons
from acelib.attribution.synapses import knowledge_synapses
from acelib.editing import moments, search
from acelib.editing.keys import prefix_weights
from acelib.editing.request import Request
from acelib.editing.search import Objective, target_vectors
from acelib.editing.write import SHARES
from acelib.editors import FT, KN, ROME, AlphaEdit, ace, memit
from acelib.model.loading import load

TESTS = Path(__file__).parent
RELEASED = "test_released.py::test_equals_the_released_procedure"
MEMIT_OBJECTIVE = dict(kind="block", steps=25, lr=0.5, decay=0.5, clamp=0.75, kl=0.0625, floor=0.05)
PMET = memit.PMET(layers=(0,))
PMET_OBJECTIVE = MEMIT_OBJECTIVE | dict(kind="pmet", steps=30, lr=0.2, kl=1.0)
ROME_OBJECTIVE = MEMIT_OBJECTIVE | dict(kind="mlp", steps=20, clamp=4.0)


def default(editor, *fields):
    """Some settings of an editor, as they are if nothing is said."""
    made = editor(layer=0) if editor is ROME else editor(layers=(0,)) if editor is not KN else KN()
    return {field: getattr(made, field) for field in fields}


#: (constant, as it is, as published, the test that holds what it does)
TABLE = [
    ("search of MEMIT", asdict(Objective()), MEMIT_OBJECTIVE, RELEASED),
    (
        "search of PMET",
        asdict(PMET.objective),
        PMET_OBJECTIVE,
        RELEASED,
    ),
    ("search of ROME", asdict(ROME(layer=0).objective), ROME_OBJECTIVE, RELEASED),
    (
        "PMET, once the target is said: KL that ends the search, phi",
        (search.SAID_KL, search.SAID_PHI),
        (0.01, 0.1),
        "test_constants.py::test_pmet_stops_at_its_kl_and_not_before",
    ),
    (
        "lambda of MEMIT, PMET, AlphaEdit",
        [editor(layers=(0,)).weight for editor in (memit.MEMIT, memit.PMET, AlphaEdit)],
        [15000.0, 6000.0, 10.0],
        RELEASED,
    ),
    (
        "null space of AlphaEdit",
        AlphaEdit(layers=(0,)).threshold,
        2e-2,
        "test_alphaedit.py::test_batches_equal_the_published_order",
    ),
    (
        "share of what is left to write, with 4 layers to go",
        (SHARES["even"](4), SHARES["root"](4)),
        (0.25, 0.5),
        "test_write.py::test_write_equals_the_published_order",
    ),
    (
        "texts before prompts: MEMIT",
        default(memit.MEMIT, "n_prefixes", "prefix_length", "seed"),
        dict(n_prefixes=5, prefix_length=10, seed=0),
        "test_keys.py::test_contexts_are_reproducible",
    ),
    (
        "texts before prompts: ROME",
        default(ROME, "n_prefixes", "prefix_lengths", "seed", "constraint"),
        dict(n_prefixes=10, prefix_lengths=(5, 10), seed=0, constraint="bare"),
        "test_rome.py::test_equals_the_published_formula",
    ),
    (
        "FT",
        default(FT, "loss", "steps", "lr", "floor", "norm_constraint", "batch_size"),
        dict(loss="last", steps=25, lr=5e-4, floor=1e-2, norm_constraint=None, batch_size=64),
        "test_ft.py::test_equals_the_published_loop",
    ),
    (
        "KN",
        default(KN, "threshold", "steps", "activation", "mode", "old", "new"),
        dict(threshold=0.2, steps=20, activation="post", mode="update", old=None, new=1.0),
        "test_kn.py::test_attributions_are_those_of_whole_forwards",
    ),
    (
        "KN over several wordings: neurons, method, beta_1 and beta_2, cut of CAS",
        default(KN, "neurons", "method", "beta", "cut"),
        dict(neurons="own", method="IG", beta=(0.7, 0.3), cut=0.3),
        "test_kn.py::test_settings_of_the_consistency_aware_score",
    ),
    (
        "attribution: method, points, share of the largest",
        (*asdict(Attribution()).values(), signature(knowledge_neurons).parameters["share"].default),
        ("IG", 20, "post", "first", "right", None, None, 0.2),
        "test_integrated.py::test_captum_finds_the_same",
    ),
    (
        "alpha of knowledge synapses",
        signature(knowledge_synapses).parameters["alpha"].default,
        0.3,
        "test_synapses.py::test_the_threshold_is_the_papers_fourfold_sum",
    ),
    (
        "ACE: stages, prompts",
        {
            name: field.default
            for name, field in ace.ACE.__dataclass_fields__.items()
            if name in ("stages", "chained", "value_prompts", "query_prompts")
        },
        dict(
            stages=("value", "query"),
            chained=False,
            value_prompts=("single", "hops"),
            query_prompts=("single",),
        ),
        "test_ace.py::test_ace_is_two_stages",
    ),
    (
        "weakest direction of a second moment",
        moments.LEAST,
        1e-9,
        "test_batches.py::test_a_batch_of_edits_equals_one_by_one",
    ),
]


@pytest.mark.parametrize("name, found, published, test", TABLE, ids=[row[0] for row in TABLE])
def test_a_constant_is_as_published_and_held_by_a_test(name, found, published, test):
    assert found == published
    file, _, function = test.partition("::")
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert function in names


def test_half_of_a_mean_key_is_the_bare_prompt(tiny):
    weights = prefix_weights(tiny("gpt2"), ("", "a", "b", "c", "d"))
    assert weights.tolist() == [0.5, 0.125, 0.125, 0.125, 0.125]


def test_pmet_stops_at_its_kl_and_not_before(monkeypatch):
    """The constant is set to the very KL at which the target is first said: the search ends there;
    set a hair below, it goes on.
    """
    lm = load("gptj-mini", "cpu")
    freely = dict(floor=None, clamp=None, decay=0.0)
    objective = Objective(kind="pmet", steps=40, lr=0.5, **freely)
    asked = [Request("The capital of France is", 21, "Rome", subject="France")]

    def searched(kl: float) -> search.Targets:
        monkeypatch.setattr(search, "SAID_KL", kl)
        return target_vectors(lm, asked, 2, objective)

    whole, at_once = searched(-1.0), searched(torch.inf)
    first, kl = at_once.steps.item(), at_once.kl.item()
    assert 0 < first < whole.steps.item() == 39 and kl > 0
    assert searched(kl).steps.item() == first
    assert searched(kl * (1 - 1e-6)).steps.item() > first
