"""The bars measure shares of right answers, over what they say."""

import pytest

from acelib import bars
from acelib.bars import BARS, knowledge, measure, reasoning, robustness
from acelib.evaluate import Recall
from acelib.facts import load_world


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

    monkeypatch.setattr(bars, "recall", recall)
    monkeypatch.setattr(bars, "multi_hop", multi_hop)
    return seen


def test_measure_gives_every_bar_on_a_real_forward(tiny, world):
    found = measure(tiny("qwen3"), world, n_facts=2, n_chains=1, n_edits=2)
    assert set(BARS) <= set(found) and all(0 <= share <= 1 for share in found.values())
    assert found["cloze"] == 0 and found["cot_3"] == 0  # a random model knows nothing


def test_knowledge_asks_every_wording_of_every_fact(world, asked):
    asked["wrong"] = lambda prompt: prompt.startswith("Q:")
    assert knowledge(None, world) == dict(cloze=1.0, cloze_unseen=1.0, qa=0.0, qa_unseen=0.0)
    wordings = [world.relations[fact.relation] for fact in world.facts]
    assert len(asked["recall"]) == sum(len(relation.cloze) + len(relation.questions) for relation in wordings)
    assert ("Tim Duncan plays the sport of", "basketball") in asked["recall"]
    asked["recall"].clear()
    knowledge(None, world, n_facts=3)
    first = list(asked["recall"])
    knowledge(None, world, n_facts=3)
    assert asked["recall"] == first * 2  # a sample is a function of its seed


def test_reasoning_accepts_names_and_aliases(world, asked, monkeypatch):
    alias = {name: also[0] for name, entity in world.entities.items() if (also := entity.aliases)}
    chains = {}
    sample = bars.sample_chains

    def spy(world, split, n_hops, n, rng):
        drawn = sample(world, split, n_hops, n, rng)
        chains[split, n_hops] = drawn
        asked["says"] = lambda prompt, left=iter(drawn): (lambda chain: alias.get(chain.answer, chain.answer).upper() + ".")(next(left))
        return drawn

    monkeypatch.setattr(bars, "sample_chains", spy)
    found = reasoning(None, world, n_chains=5)
    assert found == dict.fromkeys(("cot_2", "implicit_2", "direct_2", "cot_3", "implicit_3", "direct_3", "cot_4"), 1.0)
    assert set(chains) == {("evaluation", n) for n in (2, 3, 4)} and len(asked["multi_hop"]) == 15
    assert all(prompt.endswith("\nThoughts:") and prompt.count("Question:") == 4 for prompt in asked["multi_hop"])
    monkeypatch.setattr(bars, "sample_chains", sample)
    asked["says"] = lambda prompt: "nothing"
    assert reasoning(None, world, n_chains=2)["cot_4"] == 0


def test_robustness_is_agreement_with_the_bare_prompt(world, asked):
    assert robustness(None, world, 20) == dict(robust=1.0)
    bare, after = asked["recall"][:20], asked["recall"][20:]
    assert all(long.endswith(f". {short}") and goal == same for (short, goal), (long, same) in zip(bare, after))
    asked["wrong"] = lambda prompt: ". " in prompt
    assert robustness(None, world, 20)["robust"] < 0.3  # a name may hold a full stop
