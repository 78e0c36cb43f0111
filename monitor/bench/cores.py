"""Which core works for whom."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from monitor.errors import SetupError


class Cores(NamedTuple):
    """The sidecar's core and that of its clients; empty: wherever the system puts them."""

    sidecar: frozenset[int]
    clients: frozenset[int]


def choose_cores(*, unpinned: bool = False) -> Cores:
    """One core for the sidecar and one for its clients.

    Raises:
        SetupError: There are not two to choose from.
    """
    if unpinned:
        return Cores(frozenset(), frozenset())
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(allowed) < 2:  # noqa: PLR2004 - one for each side
        raise SetupError(
            "cores",
            "sidecar and clients need a core each, and no two can be chosen here; "
            "--unpinned measures all the same, and the figures say so",
        )
    return Cores(frozenset(allowed[-1:]), frozenset(allowed[:1]))


@contextmanager
def pinned(cores: frozenset[int]) -> Iterator[None]:
    """Keeps this thread, and processes it starts meanwhile, to some cores; none: leaves it where it is."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
