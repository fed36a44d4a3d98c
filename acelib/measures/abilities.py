"""Appendices L.1 and L.4: what is left of a model's other abilities after edits, by lm-evaluation-harness (Gao et al., 2024).

``Harness`` is the adapter. ``local_tasks`` asks the world what the edits should have left alone; each task is the nearest small relative of
a benchmark of Tables 12 and 19. The benchmarks themselves go by their published names, or by the harness's, where their data can be had.
"""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from functools import cache
from itertools import cycle, islice
from math import log
from random import Random
from typing import Iterable, Iterator, Sequence

import pandas as pd
import torch
from datasets import Dataset
from lm_eval import evaluator, utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager
from torch.nn.functional import log_softmax

from ..model.answers import generate
from ..model.lm import LM
from ..model.update import Update, applied
from ..records import Chain, Edit, Fact
from ..world.wording import few_shot_demo, held_out, multi_hop_question
from ..world.world import World, draw_chains, untouched

PUBLISHED = {
    "CSQA": "commonsense_qa",
    "BBH": "bbh",
    "MMLU": "mmlu",
    "GSM8k": "gsm8k",
}  #: column of Tables 12, 19 -> the harness's name
RELATIVES = {
    "facts": "CSQA; MMLU",
    "two_hop": "BBH",
    "thoughts": "GSM8k",
    "text": "",
}  #: local task -> whom it stands for


class Harness(TemplateLM):
    """A language model, perhaps edited, as the harness asks it: greedy, in batches; between two calls the weights are the unedited bits.

    A prompt that is too long loses its beginning. Raises ValueError for sampling, or more new tokens than the model has positions.
    """

    def __init__(self, lm: LM, update: Update | None = None, batch_size: int = 64):
        super().__init__()
        self.lm, self.update, self.batch_size, self.tokenizer = (
            lm,
            update or Update(),
            batch_size,
            lm.tokenizer,
        )
        self.max_length = lm.model.config.max_position_embeddings

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What comes before a text's first token."""
        return (
            self.eot_token_id
            if self.tokenizer.bos_token_id is None
            else self.tokenizer.bos_token_id
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        return self.tokenizer(string, add_special_tokens=add_special_tokens is not False)[
            "input_ids"
        ]

    def loglikelihood(self, requests, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """For (context, continuation): log p(continuation | context) in nats, and whether it is the greedy one."""
        return super().loglikelihood(requests, disable_tqdm)

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests, disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        rows = [
            ((context + tail)[-self.max_length - 1 :], len(tail)) for _, context, tail in requests
        ]
        order, found = (
            sorted(range(len(rows)), key=lambda i: len(rows[i][0])),
            [(0.0, True)] * len(rows),
        )
        with applied(self.lm, self.update):
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                ids, mask = self.lm.pad([rows[i][0] for i in batch])
                hidden = self.lm.stack(
                    input_ids=ids[:, :-1], attention_mask=mask[:, :-1], use_cache=False
                ).last_hidden_state
                for row, i in enumerate(batch):
                    end, n = len(rows[i][0]), rows[i][1]
                    wanted, scores = (
                        ids[row, end - n : end],
                        log_softmax(self.lm.head(hidden[row, end - n - 1 : end - 1]).float(), -1),
                    )
                    found[i] = (
                        scores.gather(-1, wanted[:, None]).sum().item(),
                        bool((scores.argmax(-1) == wanted).all()),
                    )
        return found

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """log p(text) in nats, every token once, in windows as long as the model allows."""
        windows = [
            (i, *utils.make_disjoint_window(window))
            for i, request in enumerate(requests)
            for window in utils.get_rolling_token_windows(
                self.tok_encode(request.args[0], False), self.prefix_token_id, self.max_length, 1
            )
        ]
        totals = [0.0] * len(requests)
        for (i, *_), (value, _) in zip(windows, self._loglikelihood_tokens(windows)):
            totals[i] += value
        return totals

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations, cut before the first stop string."""
        texts, alike = [""] * len(requests), {}
        for i, (_, options) in enumerate(request.args[:2] for request in requests):
            if options.get("do_sample"):
                raise ValueError(
                    f"generation options {options} ask for sampling; only greedy decoding is done here"
                )
            stops, most = options.get("until") or [], int(options.get("max_gen_toks", 256))
            alike.setdefault(
                (tuple(filter(None, [stops] if isinstance(stops, str) else stops)), most), []
            ).append(i)
        for (stops, most), which in alike.items():
            if most >= self.max_length:
                raise ValueError(
                    f"{most} new tokens asked for; model {self.lm.name!r} has {self.max_length} positions"
                )
            ends = re.compile("|".join(map(re.escape, stops)) or r"(?!)")
            prompts = [self._tail(requests[i].args[0], self.max_length - most) for i in which]
            with applied(self.lm, self.update):
                said = generate(
                    self.lm,
                    prompts,
                    None,
                    most,
                    lambda text: bool(ends.search(text)),
                    self.batch_size,
                )
            for i, text in zip(which, said):
                texts[i] = ends.split(text, maxsplit=1)[0]
        return texts

    def _tail(self, prompt: str, room: int) -> str:
        ids = self.tok_encode(prompt)
        return prompt if len(ids) <= room else self.tokenizer.decode(ids[-room:])


class _Local(ConfigurableTask):
    """A task of the harness whose documents are at hand."""

    def __init__(
        self, name: str, docs: list[dict], metric: str, settings: dict | None = None, **config
    ):
        self._docs, higher = docs, metric != "bits_per_byte"
        metrics = [
            dict(
                metric=metric,
                aggregation="mean" if higher else metric,
                higher_is_better=higher,
                **(settings or {}),
            )
        ]
        super().__init__(
            config=dict(
                task=name,
                test_split="test",
                metric_list=metrics,
                metadata=dict(version=1.0),
                **config,
            )
        )

    def download(self, *_, **__):
        self.dataset = {"test": Dataset.from_list(self._docs)}


def local_tasks(
    world: World,
    edits: Sequence[Edit] = (),
    n: int = 100,
    seed: int = 0,
    n_shots: int = 2,
    n_choices: int = 4,
) -> list[Task]:
    """Four tasks of ``n`` documents that the edits have nothing to do with (``untouched``); a function of the arguments.

    facts: a question about a fact, in the wording that training text never has for it; alternatives are objects of its relation and kind.
    two_hop: the same about the end of a chain, asked at once; training text has its facts, but no chain of the evaluation split.
    thoughts: chains of 2 and 3 hops of that split, after ``n_shots`` examples of the identification split; exact match of what is generated
    after "Answer:". text: bits per byte of the facts about an entity, as sentences in the wording that training text never has for them.
    Raises ValueError if ``n`` is below 1 or the world has fewer such documents.
    """
    keep = untouched(world, edits)

    def chains(task: str, split: str, n_hops: Sequence[int]) -> Iterator[Chain]:
        drawn = {
            hops: draw_chains(world, split, hops, Random(f"{seed}/{task}/{hops}"))
            for hops in n_hops
        }
        for hops in cycle(n_hops):
            yield next(chain for chain in drawn[hops] if all(map(keep, chain.facts)))

    def choices(asked: Iterable[tuple[str, Fact]]) -> Iterator[dict]:
        for question, fact in asked:
            alike = [
                name
                for name in world.objects(fact.relation)
                if name != fact.object and world.kind(name) == world.kind(fact.object)
            ]
            if len(alike) >= n_choices - 1:
                rng = Random(f"{seed}/{question}")
                names = rng.sample(
                    some := [fact.object, *rng.sample(alike, n_choices - 1)], len(some)
                )
                yield dict(
                    question=f"Q: {question} A:", choices=names, label=names.index(fact.object)
                )

    def solved(chain: Chain) -> dict:
        question, _, target = few_shot_demo(
            world, chain, Random(f"{seed}/{chain.subject}")
        ).partition("\nThoughts: ")
        return dict(question=f"{question}\nThoughts:", target=target)

    def reworded(fact: Fact, kind: int) -> str:
        return held_out(world, fact)[kind].replace("{}", fact.subject)

    def mixed(task: str, items: Iterable) -> list:
        return Random(f"{seed}/{task}").sample(list(items), len(items))

    told = (
        [f"{reworded(fact, 0)} {fact.object}." for fact in world.about(name) if keep(fact)]
        for name in mixed("text", world.entities)
    )
    docs = {
        "facts": choices(
            (reworded(fact, 1), fact) for fact in mixed("facts", world.facts) if keep(fact)
        ),
        "two_hop": choices(
            (multi_hop_question(world, chain), chain.facts[-1])
            for chain in chains("two_hop", "evaluation", (2,))
        ),
        "thoughts": map(solved, chains("thoughts", "evaluation", (2, 3))),
        "text": (dict(text=" ".join(sentences)) for sentences in told if sentences),
    }
    docs = {task: list(islice(found, max(n, 0))) for task, found in docs.items()}
    if short := [task for task, found in docs.items() if len(found) < max(n, 1)]:
        raise ValueError(
            f"{n} documents a task asked for; {short[0]!r} has {len(docs[short[0]])}, and each needs at least 1"
        )
    shots = [solved(chain) for chain in islice(chains("shots", "identification", (2, 3)), n_shots)]
    choose = dict(
        output_type="multiple_choice",
        doc_to_text="question",
        doc_to_target="label",
        doc_to_choice="choices",
    )
    think = dict(
        doc_to_text="question",
        doc_to_target="target",
        num_fewshot=n_shots,
        fewshot_config=dict(sampler="first_n", samples=shots),
        generation_kwargs=dict(until=["\n\n", "Question:"], max_gen_toks=64, do_sample=False),
        filter_list=[
            dict(
                name="strict-match",
                filter=[
                    dict(function="regex", regex_pattern="Answer: (.*)"),
                    dict(function="take_first"),
                ],
            )
        ],
    )
    return [
        _Local("facts", docs["facts"], "acc", **choose),
        _Local("two_hop", docs["two_hop"], "acc", **choose),
        _Local(
            "thoughts",
            docs["thoughts"],
            "exact_match",
            dict(regexes_to_ignore=["(?s).*Answer: "]),
            **think,
        ),
        _Local(
            "text",
            docs["text"],
            "bits_per_byte",
            output_type="loglikelihood_rolling",
            doc_to_text="",
            doc_to_target="text",
        ),
    ]


def evaluate(
    lm: LM,
    tasks: Iterable[str | Task],
    update: Update | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    seed: int = 1234,
) -> pd.DataFrame:
    """The model, edited by ``update`` or as it is, on tasks of the harness: one row a task, part of it, and document.

    tasks: ``local_tasks``, names of ``PUBLISHED``, or any of the harness's (a group's parts are its tasks).   limit: documents a part.
    seed: of the examples that a task draws.
    Columns task, part, doc, metric, value: of the harness's first metric and first filter; per document, so that two models can be paired.
    Raises ValueError for a name that the harness does not know, or one whose data cannot be had.
    """
    with _quiet():
        parts = {name: found for asked in tasks for name, found in [_loaded(asked)]}
        flat = {leaf: task for found in parts.values() for leaf, task in found.items()}
        for task in flat.values():
            task.set_fewshot_seed(seed)
        judged = evaluator.evaluate(
            Harness(lm, update, batch_size),
            {"tasks": flat, "groups": {}, "group_map": {}},
            limit=limit,
            bootstrap_iters=0,
        )["samples"]
    return pd.DataFrame(
        [
            dict(task=name, part=leaf, doc=sample["doc_id"], **_value(sample))
            for name, found in parts.items()
            for leaf in found
            for sample in judged[leaf]
            if sample["filter"] == judged[leaf][0]["filter"]
        ]
    )


def _loaded(asked: str | Task) -> tuple[str, dict[str, Task]]:
    """A task's name and its parts by name."""
    if isinstance(asked, Task):
        return asked.task_name, {asked.task_name: asked}
    manager, name = _manager(), PUBLISHED.get(asked, asked)
    if name not in manager.all_tasks:
        raise ValueError(
            f"unknown benchmark {asked!r}; known: {', '.join(PUBLISHED)}, and the names of lm-evaluation-harness"
        )
    try:
        return asked, manager.load([name])["tasks"]
    except Exception as err:  # whatever a hub, a proxy, a cache or a missing package raises
        raise ValueError(
            f"the data of benchmark {asked!r} cannot be had: it is neither cached nor can it be downloaded here "
            f"({type(err).__name__})"
        ) from err


_manager = cache(TaskManager)  #: reads thousands of settings files


def _value(sample: dict) -> dict:
    metric = "bits_per_byte" if "bits_per_byte" in sample["metrics"] else sample["metrics"][0]
    value = sample[metric]
    return dict(
        metric=metric,
        value=-value[0] / value[1] / log(2) if metric == "bits_per_byte" else float(value),
    )


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
