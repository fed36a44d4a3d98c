"""Appendices L.1 and L.4: what is left of a model's other abilities after edits, by
lm-evaluation-harness (Gao et al., 2024).

Local tasks ask the world what the edits should have left alone; each is the nearest small relative
of a benchmark of Tables 12 and 19. The benchmarks themselves go by their published names, or by the
harness's, where their data can be had.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import cycle, groupby, islice
from math import log
from random import Random
from typing import Any

import pandas as pd
from datasets import Dataset
from lm_eval import evaluator
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from ..editors import preset
from ..editors.base import Editor
from ..model.answers import recall
from ..model.lm import LM
from ..model.update import Update, applied
from ..provenance import digest
from ..records import Chain, Edit, Fact
from ..study import experiments
from ..study.rows import Experiment, Series
from ..study.store import canonical
from ..study.tables import BASELINE
from ..world.cases import make_cases
from ..world.wording import few_shot_demo, held_out, multi_hop_question
from ..world.world import World, draw_chains, untouched
from .robustness import mismatched_cases

#: column of Tables 12, 19 -> the harness's name
PUBLISHED = {"CSQA": "commonsense_qa", "BBH": "bbh", "MMLU": "mmlu", "GSM8k": "gsm8k"}
#: local task -> whom it stands for
RELATIVES = {"facts": "CSQA; MMLU", "two_hop": "BBH", "thoughts": "GSM8k", "text": ""}
SAID = "edits said"  #: the task of saying the edits themselves
KINDS = ("ordinary", "mismatched")  #: of edits: Table 12, Table 19
N_CHOICES = 4  #: answers to choose from
NEW_TOKENS = 256  #: that a task generates if it does not say how many


# ---------------------------------------------------------------- documents of the local tasks


@dataclass(frozen=True)
class Local:
    """The documents of the local tasks, by name, and the examples before a chain of thought."""

    docs: dict[str, list[dict]]
    shots: list[dict]

    def task(self, name: str, docs: Sequence[dict] | None = None) -> Task:
        """A local task as the harness knows it, with all of its documents or with some."""
        docs = self.docs[name] if docs is None else docs
        if name in ("facts", "two_hop"):
            return _Local(name, docs, "acc", **CHOOSE)
        if name == "text":
            return _Local(name, docs, "bits_per_byte", **READ)
        fewshot = {"sampler": "first_n", "samples": self.shots}
        more = {"num_fewshot": len(self.shots), "fewshot_config": fewshot}
        return _Local(name, docs, "exact_match", LAST_ANSWER, **THINK, **more)

    @property
    def tasks(self) -> list[Task]:
        return [self.task(name) for name in self.docs]


CHOOSE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "question",
    "doc_to_target": "label",
    "doc_to_choice": "choices",
}
READ: dict[str, Any] = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "text",
}
LAST_ANSWER = {"regexes_to_ignore": ["(?s).*Answer: "]}
THINK: dict[str, Any] = {
    "doc_to_text": "question",
    "doc_to_target": "target",
    "generation_kwargs": {
        "until": ["\n\n", "Question:"],
        "max_gen_toks": 64,
        "do_sample": False,
    },
    "filter_list": [
        {
            "name": "strict-match",
            "filter": [
                {"function": "regex", "regex_pattern": "Answer: (.*)"},
                {"function": "take_first"},
            ],
        }
    ],
}


class _Local(ConfigurableTask):
    """A task of the harness whose documents are at hand."""

    def __init__(
        self,
        name: str,
        docs: Sequence[dict],
        metric: str,
        settings: Mapping | None = None,
        **config,
    ):
        self._docs, higher = list(docs), metric != "bits_per_byte"
        metrics = [
            {
                "metric": metric,
                "aggregation": "mean" if higher else metric,
                "higher_is_better": higher,
                **(settings or {}),
            }
        ]
        super().__init__(
            config={
                "task": name,
                "test_split": "test",
                "metric_list": metrics,
                "metadata": {"version": 1.0},
                **deepcopy(config),  # the harness changes what it is given
            }
        )

    def download(self, *_, **__):
        self.dataset = {"test": Dataset.from_list(self._docs)}


def local(
    world: World, edits: Sequence[Edit] = (), n: int = 100, seed: int = 0, n_shots: int = 2
) -> Local:
    """``n`` documents for each local task that the edits have nothing to do with (``untouched``); a
    function of the arguments.

    facts: a question about a fact, in the wording that training text never has for it; alternatives
    are objects of its relation and kind.
    two_hop: the same about the end of a chain, asked at once; training text has its facts, but no
    chain of the evaluation split.
    thoughts: chains of 2 and 3 hops of that split, after ``n_shots`` examples of the identification
    split; exact match of what is generated after "Answer:".
    text: bits per byte of the facts about an entity, as sentences in the wording that training text
    never has for them.
    Raises ValueError if ``n`` is below 1 or the world has fewer such documents.
    """
    keep = untouched(world, edits)
    chains = partial(_chains, world, keep, seed)
    docs = {
        "facts": _fact_questions(world, keep, seed),
        "two_hop": _two_hop_questions(world, chains, seed),
        "thoughts": (_solution(world, chain, seed) for chain in chains("thoughts", (2, 3))),
        "text": _texts(world, keep, seed),
    }
    first = {task: list(islice(of, max(n, 0))) for task, of in docs.items()}
    if short := [task for task, of in first.items() if len(of) < max(n, 1)]:
        raise ValueError(
            f"{n} documents a task asked for; {short[0]!r} has {len(first[short[0]])}, "
            "and each needs at least 1"
        )
    examples = islice(chains("shots", (2, 3), "identification"), n_shots)
    return Local(first, [_solution(world, chain, seed) for chain in examples])


def _chains(
    world: World,
    keep: Callable[[Fact], bool],
    seed: int,
    task: str,
    n_hops: Sequence[int],
    split: str = "evaluation",
) -> Iterator[Chain]:
    """Untouched chains of a split, the numbers of hops in turn."""
    drawn = {
        hops: draw_chains(world, split, hops, Random(f"{seed}/{task}/{hops}")) for hops in n_hops
    }
    for hops in cycle(n_hops):
        yield next(chain for chain in drawn[hops] if all(map(keep, chain.facts)))


def _fact_questions(world: World, keep: Callable[[Fact], bool], seed: int) -> Iterator[dict]:
    facts = (fact for fact in _shuffle(world.facts, "facts", seed) if keep(fact))
    return _choices(world, ((_held_out_wording(world, fact, 1), fact) for fact in facts), seed)


def _two_hop_questions(
    world: World, chains: Callable[..., Iterator[Chain]], seed: int
) -> Iterator[dict]:
    asked = ((multi_hop_question(world, c), c.facts[-1]) for c in chains("two_hop", (2,)))
    return _choices(world, asked, seed)


def _choices(world: World, asked: Iterable[tuple[str, Fact]], seed: int) -> Iterator[dict]:
    """Documents of questions and the facts that answer them, if there are enough alternatives."""
    for question, fact in asked:
        alike = [
            name
            for name in world.objects(fact.relation)
            if name != fact.object and world.kind(name) == world.kind(fact.object)
        ]
        if len(alike) >= N_CHOICES - 1:
            rng = Random(f"{seed}/{question}")
            some = [fact.object, *rng.sample(alike, N_CHOICES - 1)]
            names = rng.sample(some, len(some))
            label = names.index(fact.object)
            yield {"question": f"Q: {question} A:", "choices": names, "label": label}


def _solution(world: World, chain: Chain, seed: int) -> dict:
    demo = few_shot_demo(world, chain, Random(f"{seed}/{chain.subject}"))
    question, _, target = demo.partition("\nThoughts: ")
    return {"question": f"{question}\nThoughts:", "target": target}


def _texts(world: World, keep: Callable[[Fact], bool], seed: int) -> Iterator[dict]:
    for name in _shuffle(world.entities, "text", seed):
        sentences = [
            f"{_held_out_wording(world, fact, 0)} {fact.object}."
            for fact in world.about(name)
            if keep(fact)
        ]
        if sentences:
            yield {"text": " ".join(sentences)}


def _held_out_wording(world: World, fact: Fact, kind: int) -> str:
    """A fact in the wording that training text never has for it; kind: 0 statement, 1 question."""
    return held_out(world, fact)[kind].replace("{}", fact.subject)


def _shuffle(items: Iterable, task: str, seed: int) -> list:
    items = list(items)
    return Random(f"{seed}/{task}").sample(items, len(items))


# ---------------------------------------------------------------- the harness


def evaluate(
    lm: LM,
    tasks: Iterable[str | Task],
    update: Update | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    seed: int = 1234,
) -> pd.DataFrame:
    """The model, edited by ``update`` or as it is, on tasks of the harness: one row per task, part
    of it, and document.

    tasks: local ones, names of ``PUBLISHED``, or any of the harness's (a group's parts are its
    tasks).   limit: documents per part.   seed: of the examples that a task draws.
    Columns task, part, doc, metric, value: of the harness's first metric and first filter; per
    document, so that two models can be paired.
    Raises ValueError for a name that the harness does not know, one whose data cannot be had, or a
    task that samples or generates more than the model reads.
    """
    with _quiet():
        parts = dict(_load(task) for task in tasks)
        flat = {leaf: task for of in parts.values() for leaf, task in of.items()}
        for task in flat.values():
            _check_generation(task, lm)
            task.set_fewshot_seed(seed)
        harness = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=batch_size)
        with applied(lm, update or Update()):
            judged = evaluator.evaluate(
                harness,
                {"tasks": flat, "groups": {}, "group_map": {}},
                limit=limit,
                bootstrap_iters=0,
            )["samples"]
    return pd.DataFrame(
        {"task": name, "part": leaf, "doc": sample["doc_id"], **_value(sample)}
        for name, of in parts.items()
        for leaf in of
        for sample in judged[leaf]
        if sample["filter"] == judged[leaf][0]["filter"]
    )


def _load(task: str | Task) -> tuple[str, dict[str, Task]]:
    """A task's name and its parts by name."""
    if isinstance(task, Task):
        return task.task_name, {task.task_name: task}
    manager, name = _manager(), PUBLISHED.get(task, task)
    if name not in manager.all_tasks:
        raise ValueError(
            f"unknown benchmark {task!r}; known: {', '.join(PUBLISHED)}, "
            "and the names of lm-evaluation-harness"
        )
    try:
        return task, manager.load([name])["tasks"]
    except Exception as err:  # whatever a hub, a proxy, a cache or a missing package raises
        raise ValueError(
            f"the data of benchmark {task!r} cannot be had: "
            f"it is neither cached nor can it be downloaded here ({type(err).__name__})"
        ) from err


_manager = cache(TaskManager)  #: reads thousands of settings files


def _check_generation(task: Task, lm: LM) -> None:
    options = getattr(task.config, "generation_kwargs", None) or {}
    if options.get("do_sample"):
        raise ValueError(
            f"generation options {options} ask for sampling; only greedy decoding is done here"
        )
    size = lm.model.config.max_position_embeddings
    most = int(options.get("max_gen_toks", NEW_TOKENS))
    if task.OUTPUT_TYPE == "generate_until" and most >= size:
        raise ValueError(f"{most} new tokens asked for; model {lm.name!r} has {size} positions")


def _value(sample: dict) -> dict:
    metric = "bits_per_byte" if "bits_per_byte" in sample["metrics"] else sample["metrics"][0]
    value = sample[metric]
    if metric == "bits_per_byte":
        return {"metric": metric, "value": -value[0] / value[1] / log(2)}
    return {"metric": metric, "value": float(value)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's remarks on settings that are meant."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


# ---------------------------------------------------------------- the experiment


@dataclass(frozen=True)
class Question:
    """One document of a local task, one edit to say, or a whole benchmark (without a document)."""

    task: str
    number: int = 0  #: of the document in its task
    document: str = ""  #: as JSON
    limit: int = 0  #: documents of each part of a benchmark; 0: all


@dataclass(frozen=True, eq=False)
class Batches:
    """The two batches of edits of an editor, each written together into one model, when needed."""

    lm: LM
    editor: Editor
    edits: Mapping[str, Sequence[Edit]]  #: by kind
    corpus: experiments.Corpus

    @cached_property
    def updates(self) -> dict[str, Update]:
        groups = list(self.edits.values())
        updates = self.editor.each(self.lm, groups, self.corpus.moments)
        return dict(zip(self.edits, updates, strict=True))


def edit_kinds(lm: LM, world: World, n: int, seed: int) -> dict[str, list[Edit]]:
    """``n`` edits of facts of known two-hop cases, by kind: to another object of its kind, and to
    an object that another relation has for the subject. Both change the same facts.

    Raises ValueError if there is none.
    """
    pool = make_cases(world, "evaluation", 6 * n, seed, n_hops=(2,), n_edits=(1,))
    pool = experiments.known_cases(lm, pool)
    ordinary = {case.case_id: case.edits[0] for case in pool}
    pairs = {
        (case.edits[0].subject, case.edits[0].relation): (ordinary[case.case_id], case.edits[0])
        for case in mismatched_cases(world, pool, seed)
    }
    if not pairs or n < 1:
        raise ValueError(
            f"{n} edits asked for; {lm.name!r} knows {len(pairs)} that can be mismatched"
        )
    columns = zip(*list(pairs.values())[:n], strict=True)
    return dict(zip(KINDS, map(list, columns), strict=True))


def experiment(  # noqa: PLR0913 (they are the parameters of the chapter)
    hosts: Mapping[str, LM],
    world: World,
    *,
    editors: Sequence[str],
    n_edits: int,
    n_docs: int,
    n_shots: int,
    published: Sequence[str],
    limit: int,
    seed: int,
) -> Experiment:
    """Local tasks and benchmarks before and after batches of edits; whether the edits are said.

    Rows: task, part (of a benchmark), doc, metric, value (a share, or bits per byte).
    """
    whole = {name: Question(name, limit=limit) for name in published}
    series: list[Series] = []
    for model, lm in hosts.items():
        edits = edit_kinds(lm, world, n_edits, seed)
        both = [edit for kind in KINDS for edit in edits[kind]]
        tasks = local(world, both, n_docs, seed, n_shots)
        series += _of_model(model, lm, world, editors, edits, tasks, whole, seed)
    tolerances = {"value": (1e-4, 1e-4)}
    return Experiment("appendix_l_benchmarks", tuple(series), tolerances=tolerances)


def _of_model(
    model: str,
    lm: LM,
    world: World,
    editors: Sequence[str],
    edits: Mapping[str, Sequence[Edit]],
    tasks: Local,
    whole: Mapping[str, Question],
    seed: int,
) -> Iterator[Series]:
    """The unedited model first, then every editor after ordinary and after mismatched edits."""
    asked, presets = {**_documents(tasks), **whole}, {name: preset(name, lm) for name in editors}
    corpus = experiments.corpus(lm, world, presets.values(), seed)
    examples = {"examples": digest(canonical(shot) for shot in tasks.shots)}

    def series(name: str, editor, kind: str, more: Mapping[str, Question]) -> Series:
        batches = {} if editor is None else {"edits": canonical(edits)}
        return Series(
            names={"model": model, "edits": kind, "editor": name},
            depends={**experiments.depends(lm, world, editor, corpus), **examples, **batches},
            code=(__name__, *experiments.modules(editor)),
            items={**asked, **more},
            compute=partial(answer_rows, lm, tasks, updates.get(name), kind),
            chunk=len(asked) + len(more),
        )

    updates = {name: Batches(lm, editor, edits, corpus) for name, editor in presets.items()}
    yield series(BASELINE, None, "none", {})
    for kind in KINDS:
        to_say = {
            f"{SAID} {i}": Question(SAID, i, canonical(edit)) for i, edit in enumerate(edits[kind])
        }
        for name, editor in presets.items():
            yield series(name, editor, kind, to_say)


def _documents(tasks: Local) -> dict[str, Question]:
    """Every document of the local tasks as an item."""
    return {
        f"{name} {i}": Question(name, i, json.dumps(doc, sort_keys=True))
        for name, docs in tasks.docs.items()
        for i, doc in enumerate(docs)
    }


def answer_rows(
    lm: LM, tasks: Local, batches: Batches | None, kind: str, questions: Sequence[Question]
) -> list[list[dict]]:
    """The rows of ``questions``, asked of the model after the edits of a kind, or as it is."""
    update = batches.updates[kind] if batches else Update()
    rows: dict[Question, list[dict]] = {}
    for task, group in groupby(questions, lambda question: question.task):
        some = list(group)
        if task == SAID:
            rows |= zip(some, _rows_said(lm, update, some), strict=True)
        elif task in tasks.docs:
            docs = [json.loads(question.document) for question in some]
            values = evaluate(lm, [tasks.task(task, docs)], update)
            for question, row in zip(some, values.to_dict("records"), strict=True):
                rows[question] = [{**row, "doc": question.number}]
        else:
            for question in some:
                values = evaluate(lm, [task], update, question.limit or None)
                rows[question] = values.to_dict("records")
    return [rows[question] for question in questions]


def _rows_said(lm: LM, update: Update, questions: Sequence[Question]) -> Iterator[list[dict]]:
    """Whether the edited model says its edits."""
    edits = [Edit(**json.loads(question.document)) for question in questions]
    prompts, targets = [edit.text for edit in edits], [edit.target_new for edit in edits]
    correct = recall(lm, prompts, targets, [update] * len(edits)).correct
    for question, ok in zip(questions, correct, strict=True):
        row = {"task": SAID, "part": SAID, "doc": question.number}
        yield [{**row, "metric": "acc", "value": float(ok)}]
