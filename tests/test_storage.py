"""storage: what is scored and zeroed, against the plain computation."""

import pytest
import torch

from acelib.attribution.interventions import ablate
from acelib.attribution.scores import first_tokens, value_scores
from acelib.bench.tiny import make_tiny
from acelib.measures import storage
from acelib.measures.storage import Condition, Parts, Question, known_facts
from acelib.model.answers import recall
from acelib.study import rows
from acelib.world.wording import single_hop_cloze
from acelib.world.world import CATEGORIES, load_world

SETTINGS = dict(n_located=3, n_judged=2, norm="frozen", seed=0)


@pytest.fixture(scope="module")
def scored():
    lm, world = make_tiny("qwen3"), load_world()
    facts = {category: list(world.facts_of(category))[:3] for category in ("NN", "CP", "ST")}
    neurons = {category: plain_scores(lm, world, some).sum(0) for category, some in facts.items()}
    return lm, world, facts, neurons


def plain_scores(lm, world, facts):
    """Eq. 9 of every FFN neuron for every fact, (n, l, m)."""
    ids, mask = lm.encode([single_hop_cloze(world, fact) for fact in facts])
    return value_scores(lm, ids, mask, first_tokens(lm, [fact.object for fact in facts])).float()


@pytest.fixture
def asked(monkeypatch, scored, tmp_path):
    """A model that "knows" three categories, and a store of its own."""
    lm, world, *_ = scored

    def known(lm, world, n, seed=0):
        return {name: list(world.facts_of(name))[:n] for name in ("NN", "CP", "ST")}

    monkeypatch.setattr(storage, "known_facts", known)
    storage._parts.cache_clear()
    folders = rows.Folders(tmp_path / "results", tmp_path / "runs")

    def table(experiment, **settings):
        built = experiment({"tiny": lm}, world, **SETTINGS, **settings)
        return rows.table(built, folders=folders)

    yield table
    storage._parts.cache_clear()


def test_a_model_that_knows_nothing_has_no_known_facts():
    assert set(known_facts(make_tiny("gpt2"), load_world(), 2)) == set(CATEGORIES)


def test_a_category_with_fewer_facts_is_parted_in_the_same_proportion(monkeypatch, scored):
    lm, world, *_ = scored
    sizes = {"NN": 6, "CP": 3, "ST": 0}

    def known(lm, world, n, seed=0):
        return {name: list(world.facts_of(name))[:size] for name, size in sizes.items()}

    monkeypatch.setattr(storage, "known_facts", known)
    storage._parts.cache_clear()
    located, judged = storage.parts(lm, world, 4, 2, 0)
    storage._parts.cache_clear()
    assert {name: len(some) for name, some in located.items()} == {"NN": 4, "CP": 2}
    assert {name: len(some) for name, some in judged.items()} == {"NN": 2, "CP": 1}
    assert not {*located["NN"]} & {*judged["NN"]}


def test_rows_of_importance_are_those_of_each_question_alone(asked, scored):
    lm, world, facts, *_ = scored
    table = asked(storage.importances)
    assert len(table) == 9 * 2 * lm.n_layers and list(table.category.unique()) == ["NN", "CP", "ST"]
    fact = facts["CP"][1]
    prompt = single_hop_cloze(world, fact)
    for block in ("attn", "ffn"):
        ids, mask = lm.encode([prompt])
        plain = value_scores(lm, ids, mask, first_tokens(lm, [fact.object]), of=block)[0].sum(-1)
        mine = table[(table["item"] == f"CP: {prompt}") & (table.block == block)]
        assert mine.importance.to_numpy() == pytest.approx(plain.numpy(), rel=1e-4, abs=1e-6)


def test_top_neurons_are_those_of_the_summed_scores(asked, scored):
    lm, _, _, neurons = scored
    table = asked(storage.neurons, share=0.1)
    n = round(0.1 * neurons["ST"].numel())
    best = neurons["ST"].flatten().topk(n).indices.tolist()
    mine = [
        layer * lm.d_mlp + index
        for layer, indices in table[table.category == "ST"][["layer", "neurons"]].itertuples(
            index=False
        )
        for index in indices
    ]
    assert mine == sorted(best)


def test_zeroing_counts_lost_answers_and_restores(asked, scored):
    lm, world, _, neurons = scored
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    table = asked(storage.zeroing, share=0.05, n_random=2)
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    sizes = table.groupby(["category", "zeroed", "questions"]).size()
    assert sizes.loc["NN", "top 5 %", "related"] == 2
    assert sizes.loc["NN", "random 5 %", "unrelated"] == 2 * 4
    judged = list(world.facts_of("ST"))[3:5]
    best = neurons["ST"].flatten().topk(round(0.05 * neurons["ST"].numel())).indices
    with ablate(lm, [divmod(int(i), lm.d_mlp) for i in best]):
        prompts = [single_hop_cloze(world, fact) for fact in judged]
        kept = recall(lm, prompts, [fact.object for fact in judged]).correct
    mine = table[table["item"] == "ST, top 5 %, draw 0"]
    assert mine["drop"][mine.questions == "related"].tolist() == [int(not ok) for ok in kept]


def test_conditions_ask_the_same_questions_and_differ_in_their_draws(scored):
    lm, *_ = scored
    made = {
        name: [Question(name, f"{name} {i}", "x") for i in range(4)] for name in ("NN", "CP", "ST")
    }
    known = Parts({name: some[:2] for name, some in made.items()}, made)
    top, one, two = storage.conditions(lm, known, "NN", 0.05, 2, seed=0, n_unrelated=5)
    assert isinstance(top, Condition) and top.random == () and top.located == tuple(made["NN"][:2])
    assert one.random != two.random and len({*one.random}) == one.n == top.n
    assert top.unrelated == one.unrelated == two.unrelated and len(top.unrelated) == 5
    assert {question.category for question in top.unrelated} <= {"CP", "ST"}
    again = storage.conditions(lm, known, "NN", 0.05, 3, seed=0, n_unrelated=5)
    assert again[:3] == [top, one, two]  # more draws leave the first ones as they are


@pytest.mark.parametrize("share", (0, 1.5))
def test_a_share_outside_its_range_is_named(share):
    with pytest.raises(ValueError, match=rf"share {share} of the neurons is outside \(0, 1\]"):
        storage.count(share, 100)
