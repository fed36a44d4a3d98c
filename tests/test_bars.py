"""The bars are shares of right answers: of what a model says, and of what it says once edited."""

import pytest
import torch

from acelib.attribution.interventions import CausalTrace
from acelib.attribution.layers import ROLES
from acelib.measures import known
from acelib.model import answers
from acelib.model.answers import Recall
from acelib.model.lm import LM
from acelib.training import bars
from acelib.training.bars import BARS, editing, knowledge, measure, reasoning, robustness
from acelib.world.world import load_world


@pytest.fixture(scope="module")
def world():
    return load_world()


@pytest.fixture
def asked(monkeypatch):
    """A made-up model, which knows all but the prompts that ``wrong`` picks; what it is asked is
    kept.
    """
    seen = dict(recall=[], multi_hop=[], wrong=lambda prompt: False, says=lambda prompt: "")

    def recall(lm, prompts, answers):
        seen["recall"] += zip(prompts, answers, strict=True)
        return Recall([not seen["wrong"](prompt) for prompt in prompts], [0.0] * len(prompts))

    def multi_hop(lm, prompts):
        seen["multi_hop"] += prompts
        return [seen["says"](prompt) for prompt in prompts]

    for module in (known, answers):
        monkeypatch.setattr(module, "recall", recall)
    monkeypatch.setattr(known, "multi_hop", multi_hop)
    return seen


def test_measure_gives_every_bar_on_a_real_forward(tiny, world):
    shares = measure(tiny("qwen3"), world, n_facts=2, n_chains=1, n_edits=2)
    assert set(BARS) <= set(shares) and all(0 <= share <= 1 for share in shares.values())
    assert shares["cloze"] == 0 and shares["cot_3"] == 0  # a random model knows nothing


def test_knowledge_asks_every_wording_of_every_fact(world, asked):
    asked["wrong"] = lambda prompt: prompt.startswith("Q:")
    assert knowledge(LM.__new__(LM), world) == dict(
        cloze=1.0, cloze_unseen=1.0, qa=0.0, qa_unseen=0.0
    )
    wordings = [world.relations[fact.relation] for fact in world.facts]
    assert len(asked["recall"]) == sum(
        len(relation.cloze) + len(relation.questions) for relation in wordings
    )
    assert ("Tim Duncan plays the sport of", "basketball") in asked["recall"]
    asked["recall"].clear()
    knowledge(LM.__new__(LM), world, n_facts=3)
    first = list(asked["recall"])
    knowledge(LM.__new__(LM), world, n_facts=3)
    assert asked["recall"] == first * 2  # a sample is a function of its seed


def test_reasoning_accepts_names_and_aliases(world, asked, monkeypatch):
    alias = {name: also[0] for name, entity in world.entities.items() if (also := entity.aliases)}
    drawn = known.drawn_chains(world, 5)
    answers_left = iter(alias.get(chain.answer, chain.answer).upper() + "." for chain in drawn)
    asked["says"] = lambda prompt: next(answers_left)
    assert reasoning(LM.__new__(LM), world, n_chains=5) == dict.fromkeys(
        ("cot_2", "implicit_2", "direct_2", "cot_3", "implicit_3", "direct_3", "cot_4"), 1.0
    )
    assert [len(chain.facts) for chain in drawn] == [2] * 5 + [3] * 5 + [4] * 5
    assert len(asked["multi_hop"]) == 15
    assert all(
        prompt.endswith("\nThoughts:") and prompt.count("Question:") == 4
        for prompt in asked["multi_hop"]
    )
    asked["says"] = lambda prompt: "nothing"
    assert reasoning(LM.__new__(LM), world, n_chains=2)["cot_4"] == 0


def test_robustness_is_agreement_with_the_bare_prompt(world, asked):
    assert robustness(LM.__new__(LM), world, 20) == dict(robust=1.0)
    bare, after = asked["recall"][:20], asked["recall"][20:]
    assert all(
        long.endswith(f". {short}") and goal == same
        for (short, goal), (long, same) in zip(bare, after, strict=True)
    )
    asked["wrong"] = lambda prompt: ". " in prompt
    assert robustness(LM.__new__(LM), world, 20)["robust"] < 0.3  # a name may hold a full stop


# ---------------------------------------------------------------------- editing


def test_the_early_site_is_where_half_of_the_loss_comes_back(world, asked, monkeypatch):
    restored = torch.full((len(ROLES), 4), 0.2)
    # clean 1.0, corrupted 0.2: the half way is 0.6
    restored[ROLES.index("last subject")] = torch.tensor([0.9, 0.6, 0.5, 0.2])
    monkeypatch.setattr(known, "causal_trace", lambda *_, **__: CausalTrace(1.0, 0.2, restored))
    assert known.early_site(LM.__new__(LM), world, n_facts=3) == (0, 1)
    asked["wrong"] = lambda prompt: True
    assert (
        known.early_site(LM.__new__(LM), world, n_facts=3) == ()
    )  # nothing is known, nothing is traced


def test_editing_judges_known_facts_edited_alone(world, asked, monkeypatch):
    """Two editors, each on groups of one edit, with layers from the early site; judged by new
    objects, other wordings, other facts.
    """
    made, owners = [], []

    def each(self, lm, groups, moments):
        made.append((type(self).__name__, self.layers, groups))
        return [f"update {i}" for i, _ in enumerate(groups)]

    def recall(lm, prompts, answers, updates=None):
        owners.append(updates)
        return Recall([True] * len(prompts), [0.0] * len(prompts))

    for module in (known, answers):
        monkeypatch.setattr(module, "recall", recall)
    monkeypatch.setattr(known, "early_site", lambda *_, **__: (0, 1, 2, 3, 4))
    monkeypatch.setattr(bars, "second_moments", lambda *_: None)
    for editor in (known.MEMIT, known.ROME):
        monkeypatch.setattr(editor, "each", each)
    alike = [world.facts[0]]
    monkeypatch.setattr(known, "same_ending_facts", lambda *_: alike)
    shares = editing(LM.__new__(LM), world, n_edits=3, n_unrelated=4)
    assert set(shares) == {name for name in BARS if name.startswith(("rome", "memit"))}
    assert set(shares.values()) == {1.0}
    assert [(name, layers) for name, layers, _ in made] == [("ROME", (3,)), ("MEMIT", (1, 2, 3))]
    assert all(len(group) == 1 for _, _, groups in made for group in groups)
    # each fact is asked on its own edited model
    assert owners[2] == ["update 0", "update 1", "update 2"] and len(owners[4]) == 12


def test_without_an_early_site_no_editor_passes(world, asked, monkeypatch):
    monkeypatch.setattr(known, "early_site", lambda *_, **__: ())
    assert set(editing(LM.__new__(LM), world, n_edits=2).values()) == {0.0}
