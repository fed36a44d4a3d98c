"""Training: text and batches are functions of their seed, unseen chains stay unseen, an interrupted
training ends in the same weights.
"""

import json
from dataclasses import replace
from random import Random

import pytest
import torch
from test_experiments import relation

from acelib.bench.tiny import tiny_tokenizer
from acelib.model.loading import load
from acelib.records import Fact
from acelib.training import train as pretrain
from acelib.training.late import FOREVER
from acelib.training.train import Corpus, Recipe, make_tokenizer, schedule, train
from acelib.world import text
from acelib.world.text import TEXTS
from acelib.world.world import Entity, World, chains, split_of

RECIPE = Recipe(
    architecture="qwen3",
    n_layers=2,
    d_model=16,
    n_heads=2,
    vocab_size=360,
    n_positions=64,
    steps=6,
    batch=2,
    length=32,
    warmup=2,
)


@pytest.fixture(scope="module")
def world() -> World:
    """Five levels, one relation from each to the next: chains of up to four hops."""
    levels = [[f"{letter}{i}" for i in range(12)] for letter in "ABCDE"]
    facts = tuple(
        Fact(name, f"r{depth}", levels[depth + 1][(i * 5 + depth) % 12])
        for depth in range(4)
        for i, name in enumerate(levels[depth])
    )
    return World(
        {name: Entity(name, str(depth)) for depth, names in enumerate(levels) for name in names},
        {
            f"r{depth}": relation(f"r{depth}", f"link{depth}", str(depth), str(depth + 1))
            for depth in range(4)
        },
        facts,
    )


@pytest.fixture
def training(world, tmp_path, monkeypatch):
    """``training(name, recipe, **options)`` in a folder of that name, with a tokenizer that is
    there already.
    """
    monkeypatch.setattr(pretrain, "make_tokenizer", lambda *_: tiny_tokenizer())
    return lambda name, recipe=RECIPE, **options: train(
        recipe, world, tmp_path / name, **{"every": 2, **options}
    )


def state(lm) -> dict:
    return lm.model.state_dict()


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ---------------------------------------------------------------------- text


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_are_functions_of_the_seed(world, kind):
    made = [TEXTS[kind](world, Random(seed)) for seed in range(20)]
    assert (
        made == [TEXTS[kind](world, Random(seed)) for seed in range(20)]
        and len(set(made)) > 5
        and all(made)
    )


def test_only_training_chains_are_rendered(world, monkeypatch):
    """Of thousands of texts, every chain that any multi-hop wording was asked for, and every
    question, is of the training split.
    """
    shown = set()
    for name in ("few_shot_demo", "multi_hop_question", "multi_hop_cloze"):
        render = getattr(text, name)
        monkeypatch.setattr(
            text,
            name,
            lambda world, chain, rng=None, render=render: (
                shown.add(chain) or render(world, chain, rng)
            ),
        )
    for kind in TEXTS:
        for seed in range(300):
            TEXTS[kind](world, Random(seed))
    every = {chain for n in (2, 3, 4) for chain in chains(world, n)}
    assert {split_of(chain) for chain in shown} == {"training"} and shown == {
        chain for chain in every if split_of(chain) == "training"
    }
    assert len(shown) < len(every)


def test_the_mixture_names_texts_and_adds_up():
    for recipe in (*pretrain.RECIPES.values(), RECIPE):
        assert set(recipe.mixture) <= set(TEXTS) and sum(recipe.mixture.values()) == pytest.approx(
            1
        )


def test_every_step_of_the_corpus_can_be_made_anew(world):
    one, two = (Corpus(world, RECIPE, tiny_tokenizer()) for _ in range(2))
    (ids, until, bound), (next_ids, *_) = one[3], one[4]
    assert len(one) == 6 and ids.shape == (2, 33) and until.shape == bound.shape == (2, 32)
    assert ids.dtype == until.dtype == torch.long
    two[0]
    assert torch.equal(ids, two[3][0]) and not torch.equal(ids, next_ids)
    other = Corpus(world, replace(RECIPE, seed=1), tiny_tokenizer())
    assert not torch.equal(ids, other[3][0])
    longer = Corpus(world, replace(RECIPE, steps=9, lr=1.0), tiny_tokenizer())
    assert torch.equal(ids, longer[3][0])  # a longer training begins with the same text
    assert any(tiny_tokenizer().eos_token_id in one[step][0] for step in range(6))


def test_reading_names_late_leaves_the_text_as_it_is(world):
    recipes = [replace(RECIPE, late_names=share, batch=40) for share in (0.0, 0.5, 1.0)]
    blocks = [Corpus(world, recipe, tiny_tokenizer())[0] for recipe in recipes]
    assert all(torch.equal(ids, blocks[0][0]) for ids, *_ in blocks)
    never, some, all_ = ((until < FOREVER).float().mean() for _, until, _ in blocks)
    assert never == 0 and all_ > 0.1 and 0.25 < some / all_ < 0.75
    assert not blocks[0][2].any() and blocks[2][2].any()
    several = replace(RECIPE, late_names=1.0, mixture={"composed": 1.0})
    assert (Corpus(world, several, tiny_tokenizer())[0][1] >= FOREVER).all()


def test_late_names_change_what_is_learned(training):
    plain, late_ = (training(f"{share}", replace(RECIPE, late_names=share)) for share in (0.0, 1.0))
    assert not same(state(plain), state(late_))


def test_the_tokenizer(world):
    tokenizer = make_tokenizer(world, RECIPE)
    assert len(tokenizer) <= 360 and tokenizer.eos_token == pretrain.END == tokenizer.pad_token
    for sample in (" A1, B2!", "The link0 of A11 is\n\nQuestion: é", "  x"):
        assert tokenizer.decode(tokenizer(sample)["input_ids"]) == sample


# ---------------------------------------------------------------------- training


def test_schedule_rises_stays_and_falls():
    recipe = replace(RECIPE, steps=100, warmup=10, cooldown=0.2)
    shares = [schedule(recipe, step) for step in range(101)]
    assert shares[:3] == pytest.approx([0.1, 0.2, 0.3]) and shares[9:81] == [1.0] * 72
    assert shares[80:] == pytest.approx([1.0 - 0.05 * i for i in range(21)]) and shares[100] == 0


@pytest.mark.parametrize("architecture", ["gptj", "qwen3"])
def test_an_interrupted_training_ends_in_the_same_weights(training, tmp_path, architecture):
    recipe = replace(RECIPE, architecture=architecture)
    random_state = torch.random.get_rng_state()
    whole = training("whole", recipe)
    told = []

    def stop(row):
        told.append(row["step"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training("cut", recipe, report=stop)  # after the state of step 2
    with pytest.raises(KeyboardInterrupt):
        training(
            "cut", recipe, judge=lambda lm: stop(dict(step="judged"))
        )  # before the state of step 4
    again = training("cut", recipe, report=lambda row: told.append(row["step"]))
    assert told == [2, "judged", 4, 6] and same(state(again), state(whole))
    logs = [
        [
            json.loads(line)
            for line in (tmp_path / name / "train_log.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "cut")
    ]
    kept = [
        [(row["step"], row["tokens"], row["loss"], row["schedule"]) for row in log] for log in logs
    ]
    assert (
        kept[0] == kept[1]
        and [row[0] for row in kept[0]] == [2, 4, 6]
        and kept[0][0][1] == 2 * 2 * 32
    )
    assert same(state(training("whole", recipe)), state(whole))  # a finished training is only read
    torch.random.set_rng_state(random_state)


def test_judging_changes_nothing_and_is_logged(training, tmp_path):
    plain, judged = (
        training("plain"),
        training("judged", judge=lambda lm: dict(training=lm.model.training, layers=lm.n_layers)),
    )
    assert same(state(plain), state(judged))
    rows = [
        json.loads(line)
        for line in (tmp_path / "judged" / "train_log.jsonl").read_text().splitlines()
    ]
    assert [(row["training"], row["layers"]) for row in rows] == [(False, 2)] * 3 and rows[0][
        "loss"
    ] > 0


def test_training_learns(training, tmp_path):
    training("long", replace(RECIPE, steps=40, lr=1e-2), every=10)
    losses = [
        json.loads(line)["loss"]
        for line in (tmp_path / "long" / "train_log.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < losses[0] - 0.5


def test_a_finished_model_loads(training, tmp_path):
    trained = training("done")
    loaded = load(str(tmp_path / "done"), device="cpu")
    assert same(state(loaded), state(trained)) and loaded.fingerprint == trained.fingerprint
    assert json.loads((tmp_path / "done" / "recipe.json").read_text())["steps"] == 6
    assert not list((tmp_path / "done").glob("*.part"))


def test_a_state_of_another_recipe_is_refused(training):
    training("a", replace(RECIPE, steps=2))
    with pytest.raises(ValueError, match="another recipe"):
        training("a", replace(RECIPE, lr=1e-3))
    with pytest.raises(ValueError, match="step 2, past the 1 steps"):
        training("a", replace(RECIPE, steps=1))
    assert state(training("a", replace(RECIPE, steps=4)))  # more steps of the same recipe go on
    with pytest.raises(ValueError, match="'rwkv' is unknown; allowed: gptj, qwen3"):
        training("b", replace(RECIPE, architecture="rwkv"))


def test_a_full_disk_is_one_sentence_and_leaves_the_state_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    path.write_bytes(b"the last state")

    def full(state, part):
        part.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:626] . unexpected pos 64 vs 0\nat")

    monkeypatch.setattr(pretrain.torch, "save", full)
    model = torch.nn.Linear(1, 1)
    with pytest.raises(OSError, match="state.pt cannot be written: .enforce fail"):
        pretrain._save_state(path, RECIPE, model, [], 3)
    assert path.read_bytes() == b"the last state" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("able", "fast"),
    [({}, False), ({"avx512_f": True, "avx512_bf16": False}, False), ({"amx_bf16": True}, True)],
)
def test_bf16_is_used_only_where_the_processor_has_it(monkeypatch, able, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert pretrain._has_bf16(torch.device("cpu")) is fast
