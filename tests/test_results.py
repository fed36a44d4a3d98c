"""The rows that ship are those that the code computes: a sample of every experiment, every time.

The sample is drawn with a seed, the date unless ``ACELIB_SAMPLE_SEED`` says otherwise: a few items
of a third of the experiments, others every day. Run with ``-s`` to see what is recomputed.
"""

from functools import cache
from random import Random

import pytest

from acelib.provenance import ROOT
from acelib.study import recheck, registry, store
from acelib.study.parameters import chapter_of
from acelib.study.recheck import recompute, sample
from acelib.study.rows import FOLDERS, Experiment

SHARE, MOST = 0.02, 4  #: of every series; items of an experiment
DAYS = 3  #: in which every experiment has its turn; the pages' own hashes are checked every time
TODAY = Random(recheck.todays_seed()).sample(registry.names(), -(-len(registry.names()) // DAYS))
RESULTS = ROOT / "results"
#: The tests of a chapter run in one process, which builds its experiments once.
experiments = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.xdist_group(chapter_of(name))) for name in sorted(TODAY)],
)


@cache
def built(name: str) -> Experiment:
    """An experiment; skipped if a model of it is not on this machine, or nothing of it ships."""
    if not list((RESULTS / name).glob("*.jsonl")):
        pytest.skip(f"no rows of {name} ship: acelib run {name} --update")
    try:
        return registry.experiment(name)
    except OSError as error:
        pytest.skip(f"{name}: {error}")


@experiments
def test_a_sample_of_the_rows_is_what_is_computed_now(name):
    experiment, seed = built(name), recheck.todays_seed()
    drawn = sample(experiment, SHARE, seed, at_least=1)
    some = set(Random(seed).sample(range(len(drawn)), min(MOST, len(drawn))))
    drawn = [item for number, item in enumerate(drawn) if number in some]
    n_items = sum(len(series.items) for series in experiment.series)
    print(f"{name}: {len(drawn)} of {n_items} items recomputed, {recheck.SEED}={seed}")
    differences = recompute(experiment, drawn)
    assert not differences, "\n".join(map(str, differences)) + f"\n{recheck.SEED}={seed}"


@experiments
def test_files_are_those_of_todays_settings_and_code(name):
    experiment = built(name)
    for series in experiment.series:
        path = FOLDERS.shipped_file(experiment, series)
        state, why = recheck.status(experiment, series, FOLDERS)
        advice = {
            "absent": f"no rows ship: acelib run {name} --update",
            "other settings": f"its settings changed: {why}; acelib run {name} --update",
            "certified": f"its code changed: acelib certify {name}",
        }
        assert state == "current", f"{path.name}: {advice[state]}"


@experiments
def test_files_are_whole_and_hold_every_item_once(name):
    experiment = built(name)
    for series in experiment.series:
        path = FOLDERS.shipped_file(experiment, series)
        kept = store.read(path)
        assert len(kept.lines) == len(path.read_text("utf-8").splitlines()) - 1, path.name
        missing = [id_ for id_, key in series.keys.items() if (id_, key) not in kept.lines]
        assert not missing, f"{path.name}: no rows of {missing[0]} and {len(missing) - 1} others"
        assert {"device", "threads", "versions", "commit", "date"} <= kept.manifest[
            "computed"
        ].keys()


def test_every_file_is_read_by_an_experiment():
    folders = {path.parent.name for path in RESULTS.glob("*/*.jsonl")}
    assert folders <= set(registry.names()), "rows of an experiment that is not registered"


@experiments
def test_every_file_is_one_of_a_series(name):
    unread = registry.unread(RESULTS, {name: built(name)})
    assert [path.name for path in unread if path.parent.name == name] == []
