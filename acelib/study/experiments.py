"""Experiments: editors x cases -> one row a case, resumable, with a manifest of everything the rows depend on.

The protocol is the field's usual one: the edits of a case are applied together, judged, and undone. Because cases are independent,
many of them are edited and judged as one batch of differently edited models (see ``update.overlaid``); the rows are those of the
one-by-one loop.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Callable, Mapping, Sequence

import pandas as pd
import torch

from ..editing.moments import Moments
from ..files import replacing
from ..model.answers import generate, recall
from ..model.lm import LM
from ..model.update import Update
from ..provenance import code_hash
from ..records import Case, Fact, Hop
from ..world.wording import few_shot, first_answer, matches, parse_answer, single_hop_cloze
from ..world.world import World, untouched

Progress = Callable[[int, int, str], None]  #: (done, total, what) after every chunk


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How an edited model is judged."""

    n_shots: int = 4  #: chain-of-thought demonstrations before each multi-hop question; none of them has a name of the case
    out_of_domain: bool = (
        False  #: demonstrations without any of the case's relations either (Table 5)
    )
    n_unrelated: int = (
        20  #: facts per case for specificity, half of the edited relations, half of any
    )
    max_new_tokens: int = 80
    seed: int = 0


def known_cases(lm: LM, cases: Sequence[Case]) -> list[Case]:
    """The cases of which the model recalls every single-hop fact, old chain and new, as the paper filters (App. C.1).

    The facts that an edit will change are asked with their old answer; hops that only the new chain has must be known too, or a failure
    after the edit would not be the editor's.
    """
    edited = [{(edit.text, edit.target_new) for edit in case.edits} for case in cases]
    hops = [
        [
            hop
            for hop in dict.fromkeys(case.hops + case.new_hops)
            if (hop.cloze, hop.answer) not in new
        ]
        for case, new in zip(cases, edited)
    ]
    flat = [hop for case in hops for hop in case]
    correct = iter(recall(lm, [hop.cloze for hop in flat], [hop.answer for hop in flat]).correct)
    return [case for case, asked in zip(cases, hops) if all([next(correct) for _ in asked])]


def balanced(cases: Sequence[Case], n_each: int) -> list[Case]:
    """The first ``n_each`` cases for each number of edits, in their order."""
    counts: dict[int, int] = {}
    kept = []
    for case in cases:
        counts[case.n_edits] = counts.get(case.n_edits, 0) + 1
        if counts[case.n_edits] <= n_each:
            kept.append(case)
    return kept


def unrelated_facts(world: World, case: Case, n: int, seed: int) -> list[Fact]:
    """``n`` facts that the case's edits must leave alone (``facts.untouched``): half of the edited relations, half of any other relation."""
    rng, stays = random.Random(f"{seed}/{case.case_id}"), untouched(world, case.edits)
    relations = {edit.relation for edit in case.edits}
    same = [fact for fact in world.facts if fact.relation in relations and stays(fact)]
    other = [fact for fact in world.facts if fact.relation not in relations and stays(fact)]
    near = rng.sample(same, min(n // 2, len(same)))
    return near + rng.sample(other, min(n - len(near), len(other)))


def lost_hop(text: str, hops: Sequence[Hop]) -> int:
    """The first hop, counted from 1, whose answer a chain of thought does not name before its own answer; 0 if it names them all."""
    thoughts = text.partition("Answer:")[0]
    return next(
        (
            i
            for i, hop in enumerate(hops, 1)
            if not matches(thoughts, (hop.answer, *hop.answer_alias), substring=True)
        ),
        0,
    )


def judge(
    lm: LM,
    world: World,
    cases: Sequence[Case],
    updates: Sequence[Update] | None,
    protocol: Protocol,
) -> list[dict]:
    """One row a case: what the model, edited by ``updates[i]`` for case i (or not at all), answers.

    multi_hop: any of the three questions answered with an accepted answer (exact match after normalisation); multi_hop_each: share of the
    questions; multi_hop_substring: any answer contains an accepted one; lost_at: ``lost_hop`` of each question; efficacy, paraphrase: share of the case's edits (of their other
    wordings) whose expected object is said; specificity: share of unrelated facts that keep their answer, near (same relation) and far.
    Without updates the old answers are expected, as in the paper's Base row. Source: ACE, Section 6.1; MQuAKE, Section 4.
    """
    new = updates is not None

    def flat(per_case):  # (case number, item) pairs, and the update of each
        pairs = [(i, item) for i, items in enumerate(per_case) for item in items]
        return pairs, [updates[i] for i, _ in pairs] if new else None

    asked, owner = flat(
        [
            [
                few_shot(world, question, case, protocol.n_shots, protocol.out_of_domain)
                for question in case.questions
            ]
            for case in cases
        ]
    )
    thoughts = generate(
        lm, [prompt for _, prompt in asked], owner, protocol.max_new_tokens, first_answer
    )
    target = lambda edit: edit.target_new if new else edit.target_true
    cloze, cloze_owner = flat(
        [[(edit.text, target(edit)) for edit in case.edits] for case in cases]
    )
    wordings, wordings_owner = flat(
        [
            [
                (wording.replace("{}", edit.subject), target(edit))
                for edit in case.edits
                for wording in edit.paraphrases
            ]
            for case in cases
        ]
    )
    facts = [unrelated_facts(world, case, protocol.n_unrelated, protocol.seed) for case in cases]
    others, others_owner = flat(
        [[(single_hop_cloze(world, f), f.object) for f in chosen] for chosen in facts]
    )
    said = [
        recall(lm, [p for _, (p, _) in group], [a for _, (_, a) in group], group_owner).correct
        for group, group_owner in (
            (cloze, cloze_owner),
            (wordings, wordings_owner),
            (others, others_owner),
        )
    ]

    def of(pairs, values, i):
        return [value for (case, _), value in zip(pairs, values) if case == i]

    rows = []
    for i, case in enumerate(cases):
        chains = of(asked, thoughts, i)
        given = [parse_answer(text) for text in chains]
        accepted = (
            (case.new_answer, *case.new_answer_alias) if new else (case.answer, *case.answer_alias)
        )
        exact = [matches(answer, accepted) for answer in given]
        kept, relations = of(others, said[2], i), {edit.relation for edit in case.edits}
        near = [ok for ok, fact in zip(kept, facts[i]) if fact.relation in relations]
        far = [ok for ok, fact in zip(kept, facts[i]) if fact.relation not in relations]
        rows.append(
            dict(
                case_id=case.case_id,
                n_edits=case.n_edits,
                n_hops=case.n_hops,
                answers=given,
                multi_hop=float(any(exact)),
                multi_hop_each=_mean(exact),
                multi_hop_substring=float(
                    any(matches(answer, accepted, substring=True) for answer in given)
                ),
                lost_at=[lost_hop(text, case.new_hops if new else case.hops) for text in chains],
                efficacy=_mean(of(cloze, said[0], i)),
                paraphrase=_mean(of(wordings, said[1], i)),
                specificity=_mean(kept),
                specificity_near=_mean(near),
                specificity_far=_mean(far),
            )
        )
    return rows


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def run(
    lm: LM,
    world: World,
    editors: Mapping[str, object | None],
    cases: Sequence[Case],
    moments: Moments | None,
    folder: Path,
    *,
    protocol: Protocol = Protocol(),
    chunk: int = 24,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The rows of ``editors`` x ``cases``: computed, or read from ``folder`` where they have been computed before.

    editors: name -> editor (anything with ``each(lm, groups, moments) -> [Update]``), None for the unedited model.
    Rows are appended chunk by chunk to one file an editor, whose name is a hash of all it depends on: model, editor, cases, protocol,
    library. An interrupted run continues; a file cut in mid-line loses that line only.
    Returns one row an editor and case. Raises ValueError for no case, no editor, or a chunk below 1.
    """
    if not cases:
        raise ValueError("no case to judge; ask for more cases or another split")
    if not editors or chunk < 1:
        raise ValueError(
            f"{len(editors)} editors, chunks of {chunk} cases: both must be at least 1"
        )
    if moments and moments.model not in ("", lm.fingerprint):
        raise ValueError(
            f"the second moments are of the model {moments.model}, not of {lm.name!r} ({lm.fingerprint}); gather them anew"
        )
    total, done = len(editors) * len(cases), 0
    frames = []
    for name, editor in editors.items():
        path = (
            Path(folder)
            / f"{name.lower()}-{_key(lm, world, editor, cases, moments, protocol)}.jsonl"
        )
        rows = {
            row["case_id"]: row for row in _read(path, _manifest(lm, name, editor, cases, protocol))
        }  # once, though two runs wrote it
        have, rows = set(rows), list(rows.values())
        done += len(have)
        missing = [case for case in cases if case.case_id not in have]
        for start in range(0, len(missing), chunk):
            part = missing[start : start + chunk]
            updates = (
                None if editor is None else editor.each(lm, [case.edits for case in part], moments)
            )
            new = judge(lm, world, part, updates, protocol)
            with path.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in new)
            rows += new
            done += len(part)
            if progress:
                progress(done, total, name)
        frames.append(
            pd.DataFrame(sorted(rows, key=lambda row: row["case_id"])).assign(editor=name)
        )
    return pd.concat(frames, ignore_index=True)


def _key(lm, world, editor, cases, moments, protocol) -> str:
    parts = (
        lm.fingerprint,
        world.digest,
        str(lm.dtype),
        repr(editor),
        repr(protocol),
        _moments_name(moments),
        _library(editor),
        json.dumps([asdict(case) for case in cases], sort_keys=True),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _library(editor) -> str:
    """Hash of the code that rows depend on: this module, the editor's, and all that they import."""
    return code_hash((__name__, type(editor).__module__))


def _moments_name(moments: Moments | None) -> str:
    """The model, the tokens and the traces of second moments; six digits, so that another order of summation is no other moment."""
    traces = (
        [(layer, f"{C.trace().item():.6g}") for layer, C in sorted(moments.matrices.items())]
        if moments
        else []
    )
    return f"{moments.model} {moments.tokens} {traces}" if moments else ""


def _manifest(lm, name, editor, cases, protocol) -> dict:
    return dict(
        manifest=dict(
            model=lm.name,
            fingerprint=lm.fingerprint,
            dtype=str(lm.dtype),
            device=str(lm.device),
            editor=name,
            settings=repr(editor),
            n_cases=len(cases),
            protocol=asdict(protocol),
            library=_library(editor),
            torch=torch.__version__,
        )
    )


def _read(path: Path, manifest: dict) -> list[dict]:
    """The complete rows of a result file; a new file is begun with the manifest, a half-written last line is cut off."""
    lines = path.read_text().split("\n") if path.exists() else []
    whole = lines[:-1]
    try:
        rows = [json.loads(line) for line in whole]
    except json.JSONDecodeError:
        rows = []
    if not rows or "manifest" not in rows[0]:
        rows, whole = [{}], [json.dumps(manifest)]
    if whole != lines[:-1] or lines[-1]:
        with replacing(path) as part:
            part.write_text("\n".join(whole) + "\n")
    return rows[1:]
