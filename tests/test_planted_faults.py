"""Faults that are put into the code are found by a sample of the rows, which says where.

On a small scale: a shipped model, unedited, edited, and its layers; three items each, of which the
sample draws two.
"""

from dataclasses import replace

import pytest

from acelib.attribution import layers
from acelib.attribution.layers import locate, questions
from acelib.editing import search, write
from acelib.editors import preset
from acelib.model.loading import load
from acelib.study import judge, rows
from acelib.study.experiments import Corpus, balanced, comparison, known_cases
from acelib.study.judge import Protocol
from acelib.study.recheck import recompute, sample
from acelib.study.rows import Experiment, Folders, Series
from acelib.world.cases import make_cases
from acelib.world.text import documents
from acelib.world.world import load_world

MODEL = "gptj-mini"


@pytest.fixture(scope="module")
def experiment():
    """Three cases, edited by nobody and by MEMIT, and the layers of three questions."""
    host, world = load(MODEL), load_world()
    cases = balanced(known_cases(host, make_cases(world, "evaluation", 8, 0)), 3)[:3]
    # accepted is the last word alone; where the model says more, only substrings agree
    cases = [replace(case, answer=case.answer.split()[-1], answer_alias=()) for case in cases]
    editor = preset("MEMIT", MODEL)
    corpus = Corpus(host, documents(world, 200), editor.layers)
    editors = {"Base": None, "MEMIT": editor}
    protocol = Protocol(n_shots=1, n_unrelated=4)
    compared = comparison(MODEL, host, world, editors, cases, corpus, protocol)

    def scores(pairs):
        return [[_layers(locate(host, [question], [answer]))] for question, answer in pairs]

    located = Series(
        names={"model": MODEL, "editor": "layers"},
        depends={"model": host.fingerprint},
        code=("acelib.attribution.layers",),
        items={f"question {i}": pair for i, pair in enumerate(questions(world, 3, 0))},
        compute=scores,
    )
    return Experiment("planted", (*compared, located), rtol=1e-3, atol=1e-6)


def _layers(found):
    return {"query": list(found.query_by_layer), "value": list(found.value_by_layer)}


@pytest.fixture(scope="module")
def folders(experiment, tmp_path_factory):
    """The rows of the code as it is, shipped."""
    folder = tmp_path_factory.mktemp("planted")
    folders = Folders(folder / "results", folder / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(rows.UPDATE, "1")
        rows.table(experiment, folders=folders)
    return folders


def learning_rate(monkeypatch):
    """Adam takes steps half as long as the settings say."""
    adam = search.torch.optim.Adam

    def half(parameters, lr, **rest):
        return adam(parameters, lr=lr / 2, **rest)

    monkeypatch.setattr(search.torch.optim, "Adam", half)


def wrong_sign(monkeypatch):
    """Query scores count against what they should count for."""
    scores = layers.query_scores
    monkeypatch.setattr(layers, "query_scores", lambda *given: -scores(*given))


def off_by_one(monkeypatch):
    """Target vectors are searched one layer below the last one that is written."""
    vectors = write.target_vectors

    def lower(host, given, layer, *rest):
        return vectors(host, given, layer - 1, *rest)

    monkeypatch.setattr(write, "target_vectors", lower)


def substrings(monkeypatch):
    """An answer is right as soon as it contains an accepted one."""
    matches = judge.matches

    def loose(text, accepted, substring=False):
        return matches(text, accepted, True)

    monkeypatch.setattr(judge, "matches", loose)


FAULTS = {
    learning_rate: ("MEMIT", "written"),
    wrong_sign: ("layers", "query"),
    off_by_one: ("MEMIT", "written"),
    substrings: ("Base", "multi_hop"),
}


def test_the_code_as_it_is_has_no_difference(experiment, folders):
    """Although the sample is computed in smaller batches than the rows were."""
    assert recompute(experiment, sample(experiment, 0.02, 0), folders=folders) == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_found_and_named(experiment, folders, monkeypatch, fault):
    editor, column = FAULTS[fault]
    fault(monkeypatch)
    drawn = sample(experiment, 0.02, 0)
    drawn = [(series, item) for series, item in drawn if series.names["editor"] == editor]
    differences = recompute(experiment, drawn, folders=folders)
    named = [difference for difference in differences if difference.column == column]
    assert len(drawn) == 2 and named, differences
    place = f"planted, model {MODEL}, editor {editor}, item {named[0].item}: {column} is kept as"
    assert str(named[0]).startswith(place) and "computed now it is" in str(named[0])
