"""Query and value layers for somebody's questions: means per question with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..attribution.layers import locate, rank
from ..model.answers import recall
from ..model.lm import LM
from ..study.stats import Mean, interval
from .located import N_GROUPS

Progress = Callable[[int, int], object]


@dataclass(frozen=True, eq=False)
class Layers:
    """What attribution says of some questions."""

    by_layer: Mapping[str, Sequence[Mean]]  #: "query", "value": mean per question by layer, nats
    best: Mapping[str, tuple[int, ...]]  #: the layers ranked first, best first
    n_questions: int
    n_answered: int  #: of them, how many the model answers

    @property
    def options(self) -> str:
        """The layers, as ``acelib edit`` takes them."""
        names = (("query", "--query-layers"), ("value", "--value-layers"))
        return " ".join(
            f"{option} {','.join(map(str, sorted(self.best[role])))}" for role, option in names
        )

    def close(self, role: str) -> tuple[int, ...]:
        """Layers that are not among the best, but whose interval reaches the worst of them."""
        scores, best = self.by_layer[role], self.best[role]
        worst = scores[best[-1]]
        return tuple(
            layer
            for layer, score in enumerate(scores)
            if layer not in best and score.high >= worst.low
        )


def located(
    lm: LM, asked: Sequence[tuple[str, str]], top: int, progress: Progress | None = None
) -> Layers:
    """Eq. 9 and Eq. 10 by layer, a mean over questions, and whether the model answers them.

    asked: prompts and answers.   top: layers named of each kind.
    The intervals are over ``N_GROUPS`` groups of questions, or as many as there are questions.
    Raises ValueError as ``layers.locate``.
    """
    n_groups = min(N_GROUPS, len(asked))
    groups = [asked[i::n_groups] for i in range(n_groups)]
    found, done = [], 0
    for group in groups:
        prompts, answers = zip(*group, strict=True)
        found.append(locate(lm, prompts, answers, top, top))
        done += len(group)
        if progress:
            progress(done, len(asked))
    whole = sum(found[1:], found[0])
    scores = {
        role: [
            interval([getattr(one, f"{role}_by_layer")[layer] / one.n_prompts for one in found])
            for layer in range(lm.n_layers)
        ]
        for role in ("query", "value")
    }
    # Groups differ by a question: the mean over questions is that of the sums.
    means = {
        role: [
            Mean(total / whole.n_prompts, score.low, score.high, whole.n_prompts)
            for total, score in zip(getattr(whole, f"{role}_by_layer"), scores[role], strict=True)
        ]
        for role in scores
    }
    best = {role: rank([score.mean for score in means[role]], top) for role in means}
    prompts, answers = zip(*asked, strict=True)
    return Layers(means, best, len(asked), sum(recall(lm, prompts, answers).correct))
