"""Several models side by side: on a CPU with more than one core, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from joblib import Parallel, cpu_count, delayed, parallel_config

from ..model.lm import LM


def per_model(hosts: Mapping[str, LM], work: Callable[[str, LM], Any]) -> dict[str, Any]:
    """``{name: work(name, host)}`` for every model.

    Small models keep one core busy each, so two take the time of one. The results are those of the
    plain loop. On an accelerator, on one core, or for one model it is that loop: nothing is copied.
    Raises what ``work`` raises.
    """
    workers = min(len(hosts), cpu_count())
    if workers < 2 or any(host.device.type != "cpu" for host in hosts.values()):
        return {name: work(name, host) for name, host in hosts.items()}
    # Whatever the environment says of threads: with more, the models would only wait for each other
    with parallel_config("loky", inner_max_num_threads=cpu_count() // workers):
        jobs = [delayed(work)(name, host) for name, host in hosts.items()]
        return dict(zip(hosts, Parallel(workers)(jobs), strict=True))
