"""The bars measure shares of right answers, over what they say."""

import pytest
import torch
from conftest import make_tiny

from acelib.attribution.interventions import CausalTrace
from acelib.attribution.layers import ROLES
from acelib.model import answers
from acelib.model.answers import Recall
from acelib.training import bars
from acelib.training.bars import (
    BARS,
    early_site,
    editing,
    knowledge,
    measure,
    reasoning,
    robustness,
)
from acelib.world.world import load_world

HOST = make_tiny("gpt2")


@pytest.fixture(scope="module")
def world():
    return load_world()


@pytest.fixture
def asked(monkeypatch):
    """The bars on a made-up model, which knows all but the prompts that ``wrong`` picks; what it was asked is kept."""
    seen = dict(recall=[], multi_hop=[], wrong=lambda prompt: False, says=lambda prompt: "")

    def recall(lm, prompts, answers):
        seen["recall"] += zip(prompts, answers)
        return Recall([not seen["wrong"](prompt) for prompt in prompts], [0.0] * len(prompts))

    def multi_hop(lm, prompts):
        seen["multi_hop"] += prompts
        return [seen["says"](prompt) for prompt in prompts]

    for module in (bars, answers):
        monkeypatch.setattr(module, "recall", recall)
    monkeypatch.setattr(bars, "multi_hop", multi_hop)
    return seen


def test_measure_gives_every_bar_on_a_real_forward(tiny, world):
    found = measure(tiny("qwen3"), world, n_facts=2, n_chains=1, n_edits=2)
    assert set(BARS) <= set(found) and all(0 <= share <= 1 for share in found.values())
    assert found["cloze"] == 0 and found["cot_3"] == 0  # a random model knows nothing


def test_knowledge_asks_every_wording_of_every_fact(world, asked):
    asked["wrong"] = lambda prompt: prompt.startswith("Q:")
    assert knowledge(HOST, world) == dict(cloze=1.0, cloze_unseen=1.0, qa=0.0, qa_unseen=0.0)
    wordings = [world.relations[fact.relation] for fact in world.facts]
    assert len(asked["recall"]) == sum(
        len(relation.cloze) + len(relation.questions) for relation in wordings
    )
    assert ("Tim Duncan plays the sport of", "basketball") in asked["recall"]
    asked["recall"].clear()
    knowledge(HOST, world, n_facts=3)
    first = list(asked["recall"])
    knowledge(HOST, world, n_facts=3)
    assert asked["recall"] == first * 2  # a sample is a function of its seed


def test_reasoning_accepts_names_and_aliases(world, asked, monkeypatch):
    alias = {name: also[0] for name, entity in world.entities.items() if (also := entity.aliases)}
    chains = {}
    sample = bars.sample_chains

    def spy(world, split, n_hops, n, rng):
        drawn = sample(world, split, n_hops, n, rng)
        chains[split, n_hops] = drawn
        asked["says"] = lambda prompt, left=iter(drawn): (
            lambda chain: alias.get(chain.answer, chain.answer).upper() + "."
        )(next(left))
        return drawn

    monkeypatch.setattr(bars, "sample_chains", spy)
    found = reasoning(HOST, world, n_chains=5)
    assert found == dict.fromkeys(
        ("cot_2", "implicit_2", "direct_2", "cot_3", "implicit_3", "direct_3", "cot_4"), 1.0
    )
    assert set(chains) == {("evaluation", n) for n in (2, 3, 4)} and len(asked["multi_hop"]) == 15
    assert all(
        prompt.endswith("\nThoughts:") and prompt.count("Question:") == 4
        for prompt in asked["multi_hop"]
    )
    monkeypatch.setattr(bars, "sample_chains", sample)
    asked["says"] = lambda prompt: "nothing"
    assert reasoning(HOST, world, n_chains=2)["cot_4"] == 0


def test_robustness_is_agreement_with_the_bare_prompt(world, asked):
    assert robustness(HOST, world, 20) == dict(robust=1.0)
    bare, after = asked["recall"][:20], asked["recall"][20:]
    assert all(
        long.endswith(f". {short}") and goal == same
        for (short, goal), (long, same) in zip(bare, after)
    )
    asked["wrong"] = lambda prompt: ". " in prompt
    assert robustness(HOST, world, 20)["robust"] < 0.3  # a name may hold a full stop


# ---------------------------------------------------------------------- editing


def test_the_early_site_is_where_half_of_the_loss_comes_back(world, asked, monkeypatch):
    restored = torch.full((len(ROLES), 4), 0.2)
    restored[ROLES.index("last subject")] = torch.tensor(
        [0.9, 0.6, 0.5, 0.2]
    )  # clean 1.0, corrupted 0.2: the half way is 0.6
    monkeypatch.setattr(bars, "causal_trace", lambda *_, **__: CausalTrace(1.0, 0.2, restored))
    assert early_site(HOST, world, n_facts=3) == (0, 1)
    asked["wrong"] = lambda prompt: True
    assert early_site(HOST, world, n_facts=3) == ()  # it knows nothing: nothing to trace


def test_editing_judges_known_facts_edited_alone(world, asked, monkeypatch):
    """Two editors, each on groups of one edit, with layers from the early site; judged by new objects, other wordings, other facts."""
    made = []

    def each(self, lm, groups, moments):
        made.append((type(self).__name__, self.layers, groups))
        return [f"update {i}" for i, _ in enumerate(groups)]

    def recall(lm, prompts, answers, updates=None):
        owners.append(updates)
        return Recall([True] * len(prompts), [0.0] * len(prompts))

    owners = []
    for module in (bars, answers):
        monkeypatch.setattr(module, "recall", recall)
    monkeypatch.setattr(bars, "early_site", lambda *_, **__: (0, 1, 2, 3, 4))
    monkeypatch.setattr(bars, "second_moments", lambda *_: None)
    for editor in (bars.MEMIT, bars.ROME):
        monkeypatch.setattr(editor, "each", each)
    found = editing(HOST, world, n_edits=3, n_unrelated=4)
    assert set(found) == {name for name in BARS if name.startswith(("rome", "memit"))} and set(
        found.values()
    ) == {1.0}
    assert [(name, layers) for name, layers, _ in made] == [("ROME", (2,)), ("MEMIT", (0, 1, 2))]
    assert all(len(group) == 1 for _, _, groups in made for group in groups)
    assert (
        owners[1] == ("update 0", "update 1", "update 2") and len(owners[3]) == 12
    )  # each fact is asked on its own edited model


def test_without_an_early_site_no_editor_passes(world, asked, monkeypatch):
    monkeypatch.setattr(bars, "early_site", lambda *_, **__: ())
    assert set(editing(HOST, world, n_edits=2).values()) == {0.0}
