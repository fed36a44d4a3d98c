"""Models side by side give what the plain loop gives, and errors come through."""

import os

import pandas as pd
import pytest

from acelib.model.answers import recall
from acelib.model.lm import load
from acelib.study import experiments, parallel


@pytest.fixture(scope="module")
def hosts():
    return {name: load(name, "cpu") for name in ("gptj-mini", "qwen3-mini")}


def test_models_side_by_side_are_the_plain_loop(hosts, monkeypatch):
    prompts, answers = (
        ["The capital of France is", "Tim Duncan plays the sport of"],
        ["Paris", "basketball"],
    )

    def work(name, host):
        return (name, os.getpid(), host.fingerprint, recall(host, prompts, answers))

    monkeypatch.setattr(parallel, "cpu_count", lambda: 1)
    plain = parallel.per_model(hosts, work)
    assert {pid for _, pid, *_ in plain.values()} == {os.getpid()}
    monkeypatch.setattr(parallel, "cpu_count", lambda: 2)
    aside = parallel.per_model(hosts, work)
    assert (
        list(aside) == list(hosts)
        and len({pid for _, pid, *_ in aside.values()} | {os.getpid()}) == 3
    )
    for name in hosts:
        assert (
            aside[name][0] == name
            and aside[name][2] == plain[name][2]
            and aside[name][3].correct == plain[name][3].correct
        )
        assert aside[name][3].logprob == pytest.approx(plain[name][3].logprob, abs=1e-4)


def test_models_share_the_cores(hosts, monkeypatch):
    """However many threads the environment asks for: two models with as many threads as cores each
    would wait for each other.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    monkeypatch.setenv("MKL_NUM_THREADS", "16")
    monkeypatch.setattr(parallel, "cpu_count", lambda: 4)

    def threads(name, host):
        return (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"])

    assert set(parallel.per_model(hosts, threads).values()) == {("2", "2")}


def test_an_error_of_one_model_is_the_error(hosts, monkeypatch):
    monkeypatch.setattr(parallel, "cpu_count", lambda: 2)
    with pytest.raises(ValueError, match="0 cases"):
        parallel.per_model(
            hosts,
            lambda name, host: experiments.run(host, None, {"Base": None}, [], None, "nowhere"),
        )


def test_one_model_stays_here(hosts):
    assert parallel.per_model(
        {"only": hosts["gptj-mini"]}, lambda name, host: (name, os.getpid())
    ) == {"only": ("only", os.getpid())}
    assert parallel.per_model({}, lambda name, host: pd.DataFrame()) == {}
