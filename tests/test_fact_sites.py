"""Which FFN outputs take a fact's answer with them: conditions, places, rows."""

import random

import pytest
import torch

from acelib.measures import fact_sites
from acelib.measures.fact_sites import EVERYWHERE, OTHER, SUBJECT, Condition
from acelib.study import rows
from acelib.world.wording import single_hop
from acelib.world.world import load_world


@pytest.fixture(scope="module")
def world():
    return load_world()


def test_groups_are_those_of_the_bars():
    chosen = fact_sites.conditions(8)
    assert chosen[:4] == (
        Condition("none", ()),
        Condition("all but 0", (1, 2, 3, 4, 5, 6, 7)),
        Condition("lower middle", (1, 2, 3, 4), SUBJECT),
        Condition("lower middle", (1, 2, 3, 4), OTHER),
    )
    assert len(chosen) == 4 + 2 * 8 and chosen[-1] == Condition("7", (7,), SUBJECT)


def test_places_are_tokens_of_the_prompt(tiny):
    lm, prompt = tiny("gptj"), "The author of Hamlet is"
    chosen = [Condition("1", (1,), tokens) for tokens in (EVERYWHERE, SUBJECT, OTHER)]
    last = lm.token_at(prompt, prompt.index("Hamlet") + len("Hamlet"))
    n, drawn = len(lm.tokenizer(prompt)["input_ids"]), set()
    for seed in range(60):
        where = fact_sites.places(lm, prompt, "Hamlet", chosen, random.Random(seed))
        assert where.shape == (3, n, lm.n_layers) and not where[..., [0, 2, 3]].any()
        assert where[0, :, 1].all() and where[1, :, 1].nonzero().tolist() == [[last]]
        drawn.add(int(where[2, :, 1].nonzero()))
    assert drawn == set(range(n)) - {last}


@pytest.mark.parametrize(
    ("prompt", "subject", "message"),
    [("The author is", "Hamlet", "is not in the prompt"), ("x", "x", "no token beside")],
)
def test_prompts_without_a_place_are_refused(tiny, prompt, subject, message):
    with pytest.raises(ValueError, match=message):
        fact_sites.places(tiny("gptj"), prompt, subject, [], random.Random(0))


def test_rows_of_a_fact_are_a_function_of_the_seed(tiny, world):
    lm, facts = tiny("qwen3"), world.facts[:3]
    host = fact_sites._Host(lm, world, 0)
    first = host.rows(facts)
    assert first == host.rows(facts) and [len(one) for one in first] == [4 + 2 * lm.n_layers] * 3
    assert first[0][0]["layers"] == "none" and {row["right"] for row in first[0]} <= {0, 1}
    means, _ = host.averages
    more = [fact_sites.fact_rows(lm, world, facts[0], means, seed)[3] for seed in range(8)]
    assert len({row["logprob"] for row in more}) > 1  # another token is drawn
    assert single_hop(world, facts[0])[1]


def test_experiments_have_a_row_for_each_condition_and_layer(tiny, world, tmp_path):
    lm = tiny("gptj")
    folders = rows.Folders(tmp_path / "shipped", tmp_path / "cache")
    table = rows.table(
        fact_sites.averages({"tiny": lm}, world, n_averaged=2, seed=0), folders=folders
    )
    assert len(table) == 2 * (4 + 2 * lm.n_layers) and set(table.tokens) == {
        EVERYWHERE,
        SUBJECT,
        OTHER,
    }
    lengths = rows.table(fact_sites.lengths({"tiny": lm}, world), folders=folders)
    assert list(lengths.item) == ["0", "1", "2", "3"] and (lengths.added > 0).all()
    assert not torch.tensor(lengths.onto.to_numpy()).isnan().any()


def test_shares_are_of_known_facts(tiny, world, monkeypatch):
    """Made-up answers: every fact known, none kept without FFNs, half at the subject."""
    lm, asked = tiny("gptj"), []

    def fact_rows(lm, world, fact, means, seed):
        asked.append(fact)
        right = {"all but 0": 0, "lower middle": len(asked) % 2}
        return [
            {"layers": c.name, "tokens": c.tokens, "right": right.get(c.name, 1)}
            for c in fact_sites.conditions(4)
        ]

    assert fact_sites.shares(lm, world, 3) == dict.fromkeys(fact_sites.BARS, 0.0)  # knows nothing
    monkeypatch.setattr(fact_sites, "fact_rows", fact_rows)
    found = fact_sites.shares(lm, world, 4)
    assert len(asked) == 4 and found["ffns_needed"] == 1
    assert found["lower_middle_needed"] == found["another_token_spared"] == 0.5
    _, lengths = fact_sites.mean_outputs(lm, ["Tim Duncan"])
    assert found["embedding_share"] > 0 and lengths.added.shape == (4,)


def test_severed_traces_have_a_row_for_each_cut(tiny, world, monkeypatch):
    lm, fact = tiny("qwen3"), world.facts[0]
    found = fact_sites.severed_rows(lm, fact, single_hop(world, fact)[0])
    assert [row["severed"] for row in found] == ["nothing", "FFN", "attention"]
    assert len({row["3"] for row in found}) == 1  # above the last layer there is nothing to cut
    assert found[0]["0"] != found[1]["0"] != found[2]["0"]
