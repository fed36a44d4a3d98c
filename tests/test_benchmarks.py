"""benchmarks: the harness asks what it means to ask, of the model that was meant, about what no edit has touched."""

import math
from pathlib import Path

import pytest
import torch
from lm_eval import tasks
from lm_eval.api.instance import Instance

from acelib.bench.tiny import make_tiny
from acelib.measures import abilities
from acelib.measures.abilities import RELATIVES, Harness, evaluate, local_tasks, untouched
from acelib.measures.robustness import mismatched
from acelib.model.answers import recall
from acelib.model.update import Factors, Update
from acelib.records import Edit, Fact
from acelib.world.cases import make_cases, single_edits
from acelib.world.text import documents
from acelib.world.wording import held_out, statement
from acelib.world.world import load_world

WORLD = load_world()
PROMPTS, ANSWERS = (
    ("Tim Duncan plays the sport of", "The capital of France is", "Q: Who wrote Hamlet? A:"),
    ("golf", "Paris", "William Shakespeare"),
)


def asked(kind, *arguments):
    return [Instance(request_type=kind, doc={}, arguments=given, idx=0) for given in arguments]


def plain(lm, ids):
    """Log-probabilities of every token after the first, in float64, without a batch."""
    logits = lm.model(input_ids=torch.tensor([ids])).logits[0, :-1].double()
    return (
        (logits - logits.logsumexp(-1, keepdim=True))
        .gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
        .tolist()
    )


def change(lm, seed=0, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return Update(
        {
            1: Factors(
                *(
                    size * torch.randn(width, 2, generator=generator).to(lm.dtype)
                    for width in (lm.d_model, lm.d_mlp)
                )
            )
        }
    )


def test_loglikelihood_is_that_of_recall_and_of_the_plain_softmax(any_lm):
    lm = any_lm
    found = Harness(lm, batch_size=2).loglikelihood(
        asked(
            "loglikelihood", *((prompt, f" {answer}") for prompt, answer in zip(PROMPTS, ANSWERS))
        )
    )
    same = recall(lm, PROMPTS, ANSWERS)
    assert [value for value, _ in found] == pytest.approx(same.logprob, abs=1e-5) and [
        greedy for _, greedy in found
    ] == same.correct
    for (value, _), prompt, answer in zip(found, PROMPTS, ANSWERS):
        head, tail = lm.tokenizer(prompt)["input_ids"], lm.answer_ids(answer)
        assert value == pytest.approx(sum(plain(lm, head + tail)[-len(tail) :]), abs=1e-5)


def test_what_the_model_says_is_greedy_and_nothing_else_is():
    lm = make_tiny("qwen3")
    (said,) = Harness(lm).generate_until(
        asked("generate_until", (PROMPTS[0], dict(until=[], max_gen_toks=1)))
    )
    (_, greedy), (_, other) = Harness(lm).loglikelihood(
        asked("loglikelihood", (PROMPTS[0], said), (PROMPTS[0], " golf"))
    )
    assert greedy and not other


@pytest.mark.parametrize("family", ["gptj", "qwen3"])
def test_rolling_is_the_sum_over_tokens_also_of_a_text_longer_than_the_model(family):
    lm = make_tiny(family)
    start, short = (
        lm.tokenizer.bos_token_id or lm.tokenizer.eos_token_id,
        "The capital of France is Paris.",
    )
    long = " ".join([short] * 6)
    harness = Harness(lm)
    (one,) = harness.loglikelihood_rolling(asked("loglikelihood_rolling", (short,)))
    assert one == pytest.approx(
        sum(plain(lm, [start, *lm.tokenizer(short)["input_ids"]])), abs=1e-5
    )
    harness.max_length = size = 8
    ids = [start, *lm.tokenizer(long)["input_ids"]]
    (many,) = harness.loglikelihood_rolling(asked("loglikelihood_rolling", (long,)))
    windows = [ids[at : at + size + 1] for at in range(0, len(ids) - 1, size)]
    last = ids[-size - 1 :]
    expected = sum(sum(plain(lm, window)) for window in windows[:-1]) + sum(
        plain(lm, last)[-(len(windows[-1]) - 1) :]
    )
    assert len(windows) > 2 and many == pytest.approx(expected, abs=1e-4)


def test_generation_stops_before_the_stop_string_whatever_the_batch():
    lm, prompts = (
        make_tiny("gptj"),
        [(prompt, dict(until=[], max_gen_toks=12)) for prompt in PROMPTS],
    )
    whole = Harness(lm).generate_until(asked("generate_until", *prompts))
    stop = whole[1][len(whole[1]) // 2 :][:2]
    assert stop and all(whole)
    for batch_size in (1, 3):
        cut = Harness(lm, batch_size=batch_size).generate_until(
            asked("generate_until", *((p, dict(until=[stop], max_gen_toks=12)) for p, _ in prompts))
        )
        assert cut == [text.partition(stop)[0] for text in whole]
    assert Harness(lm).generate_until(
        asked("generate_until", (PROMPTS[1], dict(until=stop, max_gen_toks=12)), prompts[0])
    ) == [cut[1], whole[0]]


def test_too_long_a_prompt_loses_its_beginning():
    lm, options = make_tiny("gptj"), dict(until=["\n"], max_gen_toks=6)
    long, harness = " ".join([PROMPTS[0]] * 9), Harness(lm)
    harness.max_length = 30
    kept = lm.tokenizer.decode(lm.tokenizer(long)["input_ids"][-24:])
    assert harness.generate_until(asked("generate_until", (long, options))) == Harness(
        lm
    ).generate_until(asked("generate_until", (kept, options)))
    with pytest.raises(
        ValueError, match="30 new tokens asked for; model 'tiny-gptj' has 30 positions"
    ):
        harness.generate_until(asked("generate_until", (long, dict(max_gen_toks=30))))
    with pytest.raises(ValueError, match="only greedy decoding"):
        harness.generate_until(asked("generate_until", (long, dict(do_sample=True))))


def names(local):
    return {task.task_name: [dict(doc) for doc in task.eval_docs] for task in local}


def test_tasks_are_a_function_of_their_arguments():
    edits = single_edits(WORLD, 3)
    one, two = names(local_tasks(WORLD, edits, 8)), names(local_tasks(WORLD, edits, 8))
    assert (
        one == two and list(one) == list(RELATIVES) and all(len(docs) == 8 for docs in one.values())
    )
    assert all(
        names(local_tasks(WORLD, edits, 8, seed=1))[task] != docs for task, docs in one.items()
    )
    assert {task: docs[:4] for task, docs in one.items()} == names(local_tasks(WORLD, edits, 4))
    for task in ("facts", "two_hop"):
        assert all(
            len(set(doc["choices"])) == 4
            and len({WORLD.kind(name) for name in doc["choices"]}) == 1
            for doc in one[task]
        )
        assert len({doc["label"] for doc in one[task]}) > 1
    assert all(doc["target"].split("Answer: ")[1] for doc in one["thoughts"])
    for n in (0, 10**6):
        with pytest.raises(
            ValueError, match="documents a task asked for; 'facts' has|no more than \\d+ chains"
        ):
            local_tasks(WORLD, edits, n)


def test_no_task_has_an_edited_fact_or_what_follows_from_it():
    """With the wording that the tasks would use for them: all documents of the world there are, or nearly."""
    before = names(local_tasks(WORLD, n=60))
    subjects = {
        doc["text"]: [name for name in WORLD.entities if doc["text"].count(name)]
        for doc in before["text"]
    }
    facts = [
        fact
        for found in list(subjects.values())[:8]
        for name in found
        for fact in WORLD.about(name)
    ][:40]
    edits = [
        Edit(fact.subject, "{} is", "Nobody", fact.object, relation=fact.relation) for fact in facts
    ]
    keep, after = untouched(WORLD, edits), names(local_tasks(WORLD, edits, n=60))
    assert not any(map(keep, facts)) and before["text"] != after["text"]
    sentences = {
        template.replace("{}", fact.subject) + f" {fact.object}."
        for fact in facts
        for template in WORLD.relations[fact.relation].cloze
    }
    questions = {
        f"Q: {template.replace('{}', fact.subject)} A:"
        for fact in facts
        for template in WORLD.relations[fact.relation].questions
    }
    shown = [*(doc["text"] for doc in after["text"]), *(doc["target"] for doc in after["thoughts"])]
    (thoughts,) = [task for task in local_tasks(WORLD, edits, n=1) if task.task_name == "thoughts"]
    shown += [shot["target"] for shot in thoughts.fewshot_docs()]
    assert not [text for text in shown if any(sentence in text for sentence in sentences)]
    assert not [doc for doc in after["facts"] if doc["question"] in questions]
    assert any(
        sentence in doc["text"] for doc in before["text"] for sentence in sentences
    )  # without edits they are there


@pytest.mark.parametrize("relation", ["spouse", "capital"])
def test_what_an_inverse_says_is_left_out_too(relation):
    old = next(
        fact
        for fact in WORLD.facts
        if fact.relation == relation
        and WORLD.lookup(fact.object, {"spouse": "spouse", "capital": "country"}[relation])
    )
    new = next(
        fact
        for fact in WORLD.facts
        if fact.relation == relation
        and fact.object not in (old.object, old.subject)
        and fact.subject != old.object
    )
    keep = untouched(WORLD, [Edit(old.subject, "{} is", new.object, old.object, relation=relation)])
    inverse = {"spouse": "spouse", "capital": "country"}[relation]
    for name in (old.object, new.object):  # what they are to others is open now
        assert not keep(Fact(name, inverse, WORLD.lookup(name, inverse) or old.subject))
    assert not keep(new) and not keep(old)
    assert all(map(keep, (fact for fact in WORLD.about(old.subject) if fact.relation != relation)))


def test_an_edit_of_an_unknown_relation_leaves_no_fact_of_its_subject():
    keep = untouched(WORLD, [Edit("Tim Duncan", "{} is", "cricket")])
    assert (
        WORLD.about("Tim Duncan")
        and not any(map(keep, WORLD.about("Tim Duncan")))
        and all(map(keep, WORLD.about("France")))
    )


def test_held_out_text_is_in_no_training_document():
    whole = lambda texts: (
        ". " + " . ".join(texts).replace("Thoughts: ", "Thoughts. ")
    )  # so that every sentence comes after ". "
    text, training = (
        whole(doc["text"] for doc in names(local_tasks(WORLD, n=300))["text"]),
        whole(documents(WORLD, 3000)),
    )
    told = {
        sentence
        for fact in WORLD.facts
        if (sentence := f". {held_out(WORLD, fact)[0].replace('{}', fact.subject)} {fact.object}.")
        in text
    }
    assert len(told) > 600 and not [sentence for sentence in told if sentence in training]
    seen = {f". {statement(WORLD, fact)}" for fact in WORLD.facts}
    assert sum(sentence in training for sentence in seen) > 100 and not [
        sentence for sentence in seen if sentence in text
    ]


def test_evaluate_judges_the_edited_model_and_gives_the_bits_back():
    lm, local = make_tiny("gptj", dtype=torch.float32), local_tasks(WORLD, n=3, n_shots=0)
    print_, update = lm.fingerprint, change(lm, size=0.5)
    before, edited, none, after = (
        evaluate(lm, local, this) for this in (None, update, Update(), None)
    )
    assert before.equals(after) and before.equals(none) and not edited.equals(before)
    lm.__dict__.pop("fingerprint")
    assert lm.fingerprint == print_
    assert list(before.columns) == ["task", "part", "doc", "metric", "value"] and before.groupby(
        "task"
    ).size().to_dict() == {name: 3 for name in RELATIVES}
    assert before.groupby("task").metric.first().to_dict() == {
        "facts": "acc",
        "two_hop": "acc",
        "thoughts": "exact_match",
        "text": "bits_per_byte",
    }
    for doc, bits in zip(names(local)["text"], before[before.task == "text"].value):
        ids = [lm.tokenizer.eos_token_id, *lm.tokenizer(doc["text"])["input_ids"]]
        assert bits == pytest.approx(
            -sum(plain(lm, ids)) / math.log(2) / len(doc["text"].encode()), rel=1e-4
        )
    for doc, right in zip(names(local)["facts"], before[before.task == "facts"].value):
        scores = recall(lm, [doc["question"]] * 4, doc["choices"]).logprob
        assert right == float(scores.index(max(scores)) == doc["label"])
    assert len(evaluate(lm, local[:1], limit=2)) == 2


def test_an_update_that_does_not_fit_changes_nothing():
    lm = make_tiny("gptj")
    kept = {name: value.clone() for name, value in lm.model.state_dict().items()}
    with pytest.raises(ValueError, match="layer 9 does not exist"):
        evaluate(
            lm,
            local_tasks(WORLD, n=1, n_shots=0),
            Update({9: Factors(torch.zeros(lm.d_model, 1), torch.zeros(lm.d_mlp, 1))}),
        )
    assert all(torch.equal(value, kept[name]) for name, value in lm.model.state_dict().items())


def test_mismatched_edits_leave_their_facts_out_too():
    edits = [
        case.edits[0]
        for case in mismatched(
            WORLD, make_cases(WORLD, "identification", 20, 0, n_hops=(2,), n_edits=(1,))
        )
    ]
    assert edits and not any(
        map(
            untouched(WORLD, edits),
            (Fact(edit.subject, edit.relation, edit.target_true) for edit in edits),
        )
    )


def test_a_benchmark_that_is_unknown_or_cannot_be_had_is_named(monkeypatch):
    folder, lm = Path(tasks.__file__).parent, make_tiny("gptj")
    monkeypatch.setattr(
        abilities,
        "_manager",
        lambda: tasks.TaskManager(
            include_path=[folder / "gsm8k", folder / "commonsense_qa"], include_defaults=False
        ),
    )
    with pytest.raises(
        ValueError,
        match="unknown benchmark 'csqa2'; known: CSQA, BBH, MMLU, GSM8k, and the names of lm-evaluation-harness",
    ):
        evaluate(lm, ["csqa2"])

    def nothing(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr("datasets.load_dataset", nothing)
    for name in ("CSQA", "GSM8k", "gsm8k"):
        with pytest.raises(
            ValueError,
            match=rf"the data of benchmark '{name}' cannot be had: .* \(ConnectionError\)",
        ):
            evaluate(lm, [name])
