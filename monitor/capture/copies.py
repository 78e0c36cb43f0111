"""Brings rows from where an engine keeps them to the host, without making it wait."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from monitor.capture.breaker import Breaker
    from monitor.capture.plan import StepPlan


_END_SECONDS = 2.0


class Taken(NamedTuple):
    """Rows taken for a plan."""

    rows: torch.Tensor
    """[rows, layers, hidden]."""
    there: torch.Tensor | None = None
    """Which of them could be taken, [rows]; None: all."""


def to_device(indices: NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """Indices on a device; it is not waited for."""
    here = torch.from_numpy(indices)
    return here.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else here


class HostCopies:
    """Brings rows to the host and hands them on in order, with the plans they belong to.

    On CUDA the copy goes to pinned memory on a stream of its own, and a thread waits for it; the engine's stream and
    thread go on. Pinned memory is let go of at once, for the next copy: rows may wait long for a sidecar. Where rows
    are on the host already they are handed on at once. A plan whose rows cannot be copied is handed on without them.

    Args:
        deliver: Called with each plan and its rows, if it has any; must not raise.
        breaker: Keeps errors from the engine, and from the thread.
    """

    def __init__(self, deliver: Callable[[StepPlan, Taken | None], None], breaker: Breaker) -> None:
        self._deliver = deliver
        self._breaker = breaker
        self._stream: Any = None
        self._thread: threading.Thread | None = None
        self._waiting: queue.SimpleQueue[tuple[StepPlan, Taken | None, Any] | None] = queue.SimpleQueue()

    def hand_on(self, plan: StepPlan, taken: Taken | None) -> None:
        """Hands a plan and its rows on, once they are on the host."""
        host, done = taken, None
        if taken is not None and taken.rows.is_cuda:
            host = None
            with self._breaker.guard("copying rows"):
                host, done = self._copy(taken)
        if self._stream is None:
            self._deliver(plan, host)
        else:
            self._waiting.put((plan, host, done))

    def close(self) -> None:
        """Waits a little for what was handed over."""
        self._waiting.put(None)
        if self._thread is not None:
            self._thread.join(_END_SECONDS)

    def _copy(self, taken: Taken) -> tuple[Taken, Any]:
        if self._stream is None:
            stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            thread = threading.Thread(target=self._run, args=(stream.device,), name="affect-copies", daemon=True)
            thread.start()
            self._stream, self._thread = stream, thread
        # What was taken was gathered on the engine's stream: what it does next cannot change it.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            host = Taken(self._to_host(taken.rows), None if taken.there is None else self._to_host(taken.there))
        # Blocking: others would have the thread spin for as long as the step takes.
        done: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record(self._stream)
        return host, done

    def _to_host(self, part: torch.Tensor) -> torch.Tensor:
        host = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
        host.copy_(part, non_blocking=True)
        part.record_stream(self._stream)
        return host

    def _run(self, device: torch.device) -> None:
        # A thread's first call opens a context on its device: the first of all unless it is told.
        with self._breaker.guard("choosing the device"):
            torch.cuda.set_device(device)
        while (item := self._waiting.get()) is not None:
            plan, taken, done = item
            there = None
            with self._breaker.guard("waiting for copied rows"):
                if taken is not None:
                    done.synchronize()
                    there = Taken(taken.rows.clone(), None if taken.there is None else taken.there.clone())
            del item, taken  # and the pinned memory with them
            self._deliver(plan, there)
