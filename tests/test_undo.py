"""Whatever happens, a model is as it was, to the bit, and rows are those of an undisturbed run."""

import multiprocessing
import os
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from mutations import random
from test_rows import Folders, experiment, series, table
from test_update import bits, logits, random_update, same_bits

from acelib.bench.tiny import FAMILIES, make_tiny
from acelib.model.update import applied, overlaid
from acelib.provenance import ROOT
from acelib.study import store

TEXTS = ["The capital of France is", "Tim Duncan plays"]


class Trouble(Exception):
    """What goes wrong inside a ``with``."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_random_use_is_undone_to_the_bit(family, dtype):
    rng, lm = random(f"undo/{family}"), make_tiny(family, dtype, n_layers=3, d_model=16, d_mlp=24)
    before, name = bits(lm), lm.fingerprint
    updates = [
        random_update(
            lm,
            tuple(rng.sample(range(3), rng.randint(1, 3))),
            rank,
            seed,
            tuple(rng.sample(range(3), rng.randint(0, 2))),
        )
        for seed, rank in enumerate((1, 2, 5, 16))
    ]
    alone = logits(lm, TEXTS)[0]
    for _ in range(40):
        trouble = rng.random() < 0.5
        try:
            with ExitStack() as stack:
                for _ in range(rng.randint(1, 4)):  # each inside the one before
                    some = rng.choices([*updates, None], k=len(TEXTS))
                    if rng.random() < 0.5:
                        stack.enter_context(applied(lm, rng.choice(updates)))
                    else:
                        stack.enter_context(overlaid(lm, some))
                    if rng.random() < 0.3:
                        stack.pop_all().close()
                    logits(lm, TEXTS)
                if trouble:
                    raise rng.choice((Trouble, KeyboardInterrupt, RuntimeError))
        except (Trouble, KeyboardInterrupt, RuntimeError):
            assert trouble
        assert same_bits(lm, before) and lm.fingerprint == name
        assert torch.equal(logits(lm, TEXTS)[0], alone), "a hook is left"


# ---------------------------------------------------------------------- killed at random

N, CHUNK = 300, 3  #: items, of which so many are kept together


def slow(items: list) -> list[list[dict]]:
    time.sleep(0.005)
    return [[{"square": item.number**2, "half": item.number / 2}] for item in items]


def parts(compute=slow):
    return experiment(series(n=N, compute=compute, chunk=CHUNK))


def compute_all(root: str, began) -> None:
    began.send(True)
    table(parts(), folders=Folders(Path(root) / "results", Path(root) / "runs"))


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_rows_of_processes_killed_at_random_are_those_of_one_undisturbed(tmp_path, monkeypatch):
    """Ten times two processes fill one store at once, and are killed at some moment; every other
    time after a row of theirs is there, however busy the machine is.
    """
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT / "tests"), str(ROOT))))
    rng, folders = random("kills"), Folders(tmp_path / "a" / "results", tmp_path / "a" / "runs")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # once for all of them
    path = folders.local_file(parts(), parts().series[0])
    elsewhere = Folders(tmp_path / "b" / "results", tmp_path / "b" / "runs")
    true = table(parts(), folders=elsewhere)
    kept: dict = {}
    for i in range(10):
        # 1. Two at once; each is killed somewhere on its way.
        running, before = [], size(path)
        for _ in range(2):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=compute_all, args=(str(tmp_path / "a"), theirs))
            process.start()
            running.append((process, ours))
        deadline = time.monotonic() + 60
        while i % 2 and size(path) <= before and any(p.is_alive() for p, _ in running):
            assert time.monotonic() < deadline, "no row in a minute"
            time.sleep(0.01)
        for process, ours in running:
            assert ours.poll(60)
            time.sleep(rng.uniform(0, 0.3))
            process.kill()
            process.join()
        # 2. What is there are whole lines, no less than before.
        found = store.read(path)
        assert not found.damaged and kept.items() <= found.lines.items()
        assert len(found.lines) % CHUNK == 0
        kept = found.lines
    assert len(kept) > 0, "every process was killed before its first row"
    # 3. Who goes on computes the rest alone.
    computed = []

    def counted(items):
        computed.extend(items)
        return slow(items)

    assert table(parts(counted), folders=folders).equals(true)
    assert len(computed) == N - len(kept)
    undisturbed = store.read(elsewhere.local_file(parts(), parts().series[0]))
    assert store.read(path).lines == undisturbed.lines
    assert not [name for name in path.parent.iterdir() if name != path], "something is left"
    print(f"\nkilled 20 processes, {len(kept)} of {N} rows were theirs", end=" ")
