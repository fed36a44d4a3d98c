"""Several models side by side: on a CPU with more than one core, each in a process of its own."""

from __future__ import annotations

import os
from typing import Callable, Mapping, TypeVar

from joblib import Parallel, delayed

from .lm import LM

T = TypeVar("T")


def per_model(hosts: Mapping[str, LM], work: Callable[[str, LM], T]) -> dict[str, T]:
    """``{name: work(name, host)}`` for every model: small models keep one core busy each, so two take the time of one.

    The results are those of the plain loop. On an accelerator, on one core, or for one model it is that loop: nothing is copied.
    Raises what ``work`` raises.
    """
    workers = min(len(hosts), os.cpu_count() or 1)
    if workers < 2 or any(host.device.type != "cpu" for host in hosts.values()):
        return {name: work(name, host) for name, host in hosts.items()}
    return dict(zip(hosts, Parallel(workers)(delayed(work)(name, host) for name, host in hosts.items())))
