"""One edit under the lens: what a reader asks a model before and after it. The fact, its other
wordings, its consequences, other facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pandas as pd

from ..editing.moments import Moments
from ..model.answers import generate, recall
from ..model.lm import LM
from ..model.update import Update
from ..records import Chain, Edit, Fact
from ..world.wording import multi_hop_cloze, normalise, single_hop
from ..world.world import World, untouched


def probes(world: World, edit: Edit, n_unrelated: int = 8, seed: int = 0) -> pd.DataFrame:
    """Prompts about an edit with the answer that an ideal editor gives; consequences follow from
    the world after the edit.

    Returns: columns kind ("fact", "paraphrase", "multi-hop", "unrelated"), prompt, ideal. Multi-hop
    rows need the edit's prompt or relation to be one of the world's; what the world does not know
    is left out.
    """
    rows = [("fact", edit.text, edit.target_new)]
    prompt, key = edit.prompt.rstrip(), edit.relation or world.relation_of(edit.prompt)
    wordings = edit.paraphrases or (world.relations[key].cloze if key else ())
    rows += [
        ("paraphrase", wording.replace("{}", edit.subject), edit.target_new)
        for wording in wordings
        if wording != prompt
    ]
    if key:
        new = Fact(edit.subject, key, edit.target_new)
        rows += [
            ("multi-hop", multi_hop_cloze(world, Chain((new, after))), after.object)
            for after in world.about(edit.target_new)
        ]
        rows += [
            ("multi-hop", multi_hop_cloze(world, Chain((before, new))), edit.target_new)
            for before in world.into(edit.subject)[:4]
        ]
    stays = untouched(world, [edit])
    others = [
        fact
        for fact in world.facts
        if edit.subject not in (fact.subject, fact.object) and stays(fact)
    ]
    chosen = Random(seed).sample(others, min(n_unrelated, len(others)))
    rows += [("unrelated", *single_hop(world, fact)) for fact in chosen]
    return pd.DataFrame(rows, columns=["kind", "prompt", "ideal"])


def before_and_after(
    lm: LM, asked: pd.DataFrame, update: Update, max_new_tokens: int = 12
) -> pd.DataFrame:
    """``asked`` with the model's greedy answers before and after ``update``, and whether the latter
    are ideal (column "ok").
    """

    def answers(updates: Sequence[Update] | None) -> list[str]:
        texts = generate(
            lm,
            list(asked.prompt),
            updates,
            max_new_tokens,
            lambda text: "\n" in text or "." in text.replace("D.C.", ""),
        )
        return [text.split("\n")[0].strip().removesuffix(".") for text in texts]

    after = answers([update] * len(asked))
    pairs = zip(after, asked.ideal, strict=True)
    good = [normalise(text) == normalise(ideal) for text, ideal in pairs]
    return asked.assign(before=answers(None), after=after, ok=good)


#: A neuron is idle if its mean square over the texts of the second moment is below this share of
#: the mean over the layer's neurons: a write there costs nothing that the moment sees.
IDLE = 1e-6


def written(lm: LM, editor, edit: Edit, moments: Moments | None) -> list[dict]:
    """What an editor writes for one edit: one row per layer; None edits nothing, and layer is None.

    norm: Frobenius norm of the change; share: as a share of that of the layer's own weight; used:
    the share again, without the columns of idle neurons (``IDLE``), and idle: how many there are,
    both None without ``moments``; log_p: log-probability of the new object after the prompt, in
    nats, with all layers changed.
    """
    update = None if editor is None else editor(lm, [edit], moments)
    log_p = recall(lm, [edit.text], [edit.target_new], update and [update]).logprob[0]
    if update is None:
        nothing = dict.fromkeys(("layer", "norm", "share", "used", "idle"))
        return [{**nothing, "log_p": log_p}]
    rows = []
    for layer, norm in update.norms().items():
        own, used, idle = lm.weight(layer).norm().item(), None, None
        if moments is not None:
            squares = moments[layer].diagonal()
            often = squares >= IDLE * squares.mean()
            change = update.delta(layer)
            used = change[:, often.to(change.device)].norm().item() / own
            idle = int((~often).sum())
        row = {"layer": layer, "norm": norm, "share": norm / own, "used": used, "idle": idle}
        rows.append({**row, "log_p": log_p})
    return rows
