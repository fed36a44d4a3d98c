"""Abilities: the harness asks what it means to, of the right model, about what no edit touches."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lm_eval import tasks
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from acelib.bench.tiny import make_tiny
from acelib.measures import abilities
from acelib.measures.abilities import RELATIVES, SAID, Question, answer_rows, evaluate, local
from acelib.measures.robustness import mismatched_cases
from acelib.model.answers import generate, recall
from acelib.model.update import Factors, Update, applied
from acelib.records import Edit, Fact
from acelib.study import experiments
from acelib.study.store import canonical
from acelib.world.cases import make_cases, single_edits
from acelib.world.text import documents
from acelib.world.wording import held_out, statement
from acelib.world.world import load_world, untouched

WORLD = load_world()
PROMPTS = ["Tim Duncan plays the sport of", "The capital of France is", "Q: Who wrote Hamlet? A:"]


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


def test_too_much_to_generate_is_refused():
    lm = make_tiny("gptj")
    task = local(WORLD, n=1, n_shots=0).task("thoughts")
    task.config.generation_kwargs["max_gen_toks"] = 256
    with pytest.raises(
        ValueError, match="256 new tokens asked for; model 'tiny-gptj' has 256 positions"
    ):
        evaluate(lm, [task])
    task.config.generation_kwargs.update(max_gen_toks=6, do_sample=True)
    with pytest.raises(ValueError, match="only greedy decoding"):
        evaluate(lm, [task])


def test_the_harness_generates_as_the_library_does(any_lm):
    """Prompts of different lengths in one batch, of the edited model."""
    lm, update = any_lm, change(any_lm, size=0.5)
    options = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    requests = [
        Instance(request_type="generate_until", doc={}, arguments=(prompt, options), idx=0)
        for prompt in PROMPTS
    ]
    harness = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=3)
    with applied(lm, update):
        texts = harness.generate_until(requests)
    mine = generate(lm, PROMPTS, [update] * 3, 12, lambda text: "\n\n" in text)
    assert texts == [text.split("\n\n")[0] for text in mine]


def names(tasks):
    return {task.task_name: [dict(doc) for doc in task.eval_docs] for task in tasks.tasks}


def test_tasks_are_a_function_of_their_arguments():
    edits = single_edits(WORLD, 3)
    one, two = names(local(WORLD, edits, 8)), names(local(WORLD, edits, 8))
    assert (
        one == two and list(one) == list(RELATIVES) and all(len(docs) == 8 for docs in one.values())
    )
    assert all(names(local(WORLD, edits, 8, seed=1))[task] != docs for task, docs in one.items())
    assert {task: docs[:4] for task, docs in one.items()} == names(local(WORLD, edits, 4))
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
            local(WORLD, edits, n)


def test_no_task_has_an_edited_fact_or_what_follows_from_it():
    """In the wording that the tasks would use: (nearly) all documents that the world has."""
    before = names(local(WORLD, n=60))
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
    keep, after = untouched(WORLD, edits), names(local(WORLD, edits, n=60))
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
    shown += [shot["target"] for shot in local(WORLD, edits, n=1).shots]
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
    def whole(texts):
        return ". " + " . ".join(texts).replace(
            "Thoughts: ", "Thoughts. "
        )  # so that every sentence comes after ". "

    text, training = (
        whole(doc["text"] for doc in names(local(WORLD, n=300))["text"]),
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
    lm, tasks = make_tiny("gptj", dtype=torch.float32), local(WORLD, n=3, n_shots=0)
    print_, update = lm.fingerprint, change(lm, size=0.5)
    before, edited, none, after = (
        evaluate(lm, tasks.tasks, this) for this in (None, update, Update(), None)
    )
    assert before.equals(after) and before.equals(none) and not edited.equals(before)
    lm.__dict__.pop("fingerprint")
    assert lm.fingerprint == print_
    assert list(before.columns) == ["task", "part", "doc", "metric", "value"]
    assert before.groupby("task").size().to_dict() == dict.fromkeys(RELATIVES, 3)
    assert before.groupby("task").metric.first().to_dict() == {
        "facts": "acc",
        "two_hop": "acc",
        "thoughts": "exact_match",
        "text": "bits_per_byte",
    }
    texts, facts = tasks.docs["text"], tasks.docs["facts"]
    for doc, bits in zip(texts, before[before.task == "text"].value, strict=True):
        ids = [lm.tokenizer.eos_token_id, *lm.tokenizer(doc["text"])["input_ids"]]
        size = math.log(2) * len(doc["text"].encode())
        assert bits == pytest.approx(-sum(plain(lm, ids)) / size, rel=1e-4)
    for doc, right in zip(facts, before[before.task == "facts"].value, strict=True):
        scores = recall(lm, [doc["question"]] * 4, doc["choices"]).logprob
        assert right == float(scores.index(max(scores)) == doc["label"])
    assert len(evaluate(lm, tasks.tasks[:1], limit=2)) == 2


def test_an_update_that_does_not_fit_changes_nothing():
    lm = make_tiny("gptj")
    kept = {name: value.clone() for name, value in lm.model.state_dict().items()}
    update = Update({9: Factors(torch.zeros(lm.d_model, 1), torch.zeros(lm.d_mlp, 1))})
    with pytest.raises(ValueError, match="layer 9 does not exist"):
        evaluate(lm, local(WORLD, n=1, n_shots=0).tasks, update)
    assert all(torch.equal(value, kept[name]) for name, value in lm.model.state_dict().items())


def test_rows_of_a_document_do_not_depend_on_the_others(monkeypatch):
    lm, tasks = make_tiny("gptj", dtype=torch.float32), local(WORLD, n=4, n_shots=1)
    edits = single_edits(WORLD, 2)
    questions = list(abilities._documents(tasks).values())
    questions += [Question(SAID, i, canonical(edit)) for i, edit in enumerate(edits)]
    batches = SimpleNamespace(updates={"ordinary": change(lm, size=0.5)})
    whole = answer_rows(lm, tasks, batches, "ordinary", questions)
    assert all(
        len(rows) == 1 and rows[0]["task"] == q.task
        for rows, q in zip(whole, questions, strict=True)
    )
    assert [rows[0]["doc"] for rows in whole[:8]] == [0, 1, 2, 3] * 2
    for i in (2, 6, 11, 13, 16):
        ((alone,),) = answer_rows(lm, tasks, batches, "ordinary", questions[i : i + 1])
        assert alone["value"] == pytest.approx(whole[i][0]["value"], abs=1e-5)
        assert {**alone, "value": 0} == {**whole[i][0], "value": 0}
    update = batches.updates["ordinary"]
    said = recall(
        lm, [edit.text for edit in edits], [edit.target_new for edit in edits], [update] * 2
    )
    assert [rows[0]["value"] for rows in whole[-2:]] == list(map(float, said.correct))


def test_an_experiment_asks_the_unedited_model_once(monkeypatch):
    lm = make_tiny("gptj")
    monkeypatch.setattr(experiments, "known_cases", lambda lm, cases: cases)
    sizes = {"n_edits": 2, "n_docs": 3, "n_shots": 1, "published": ["CSQA"], "limit": 5, "seed": 0}
    of = abilities.experiment({"gptj-mini": lm}, WORLD, editors=["ROME", "ACE"], **sizes)
    assert [(one.names["edits"], one.names["editor"]) for one in of.series] == [
        ("none", "Base"),
        ("ordinary", "ROME"),
        ("ordinary", "ACE"),
        ("mismatched", "ROME"),
        ("mismatched", "ACE"),
    ]
    base, rome = of.series[:2]
    assert len(base.items) == 4 * 3 + 1 and base.items["CSQA"].limit == 5
    assert set(rome.items) - set(base.items) == {"edits said 0", "edits said 1"}
    kinds = abilities.edit_kinds(lm, WORLD, 2, 0)
    assert [edit.subject for edit in kinds["ordinary"]] == [
        edit.subject for edit in kinds["mismatched"]
    ]
    monkeypatch.setattr(experiments, "known_cases", lambda lm, cases: [])
    with pytest.raises(ValueError, match="knows 0 that can be mismatched"):
        abilities.edit_kinds(lm, WORLD, 2, 0)


def test_mismatched_edits_leave_their_facts_out_too():
    edits = [
        case.edits[0]
        for case in mismatched_cases(
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
        match="unknown benchmark 'csqa2'; known: CSQA, BBH, MMLU, GSM8k, "
        "and the names of lm-evaluation-harness",
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
