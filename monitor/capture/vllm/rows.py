"""Takes rows from where vLLM keeps them to the host, without making the engine wait."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from monitor.capture.vllm.plan import StepPlan


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


class CachedRows:
    """Rows in the paged cache of ``extract_hidden_states``.

    Args:
        cache: [blocks, layers, block_size, hidden], on the engine's device.
    """

    def __init__(self, cache: torch.Tensor) -> None:
        self._cache = cache
        self.hidden_size = int(cache.shape[3])

    def take(self, plan: StepPlan) -> Taken | None:
        """Copies of the rows at the slots of a plan, on the engine's device."""
        if not len(plan.slots):
            return None
        places = to_device(plan.slots, self._cache.device)
        size = self._cache.shape[2]
        return Taken(self._cache[places // size, :, places % size])


class HostCopies:
    """Brings rows to the host and hands them on in order, with the plans they belong to.

    On CUDA the copy goes to pinned memory on a stream of its own, and a thread waits for it; the engine's stream and
    thread go on. Where rows are on the host already they are handed on at once.

    Args:
        deliver: Called with each plan and its rows, if it has any; must not raise.
    """

    def __init__(self, deliver: Callable[[StepPlan, Taken | None], None]) -> None:
        self._deliver = deliver
        self._stream: Any = None
        self._waiting: queue.SimpleQueue[tuple[StepPlan, Taken | None, Any] | None] = queue.SimpleQueue()

    def hand_on(self, plan: StepPlan, taken: Taken | None) -> None:
        """Hands a plan and its rows on, once they are on the host."""
        if self._stream is None and (taken is None or not taken.rows.is_cuda):
            self._deliver(plan, taken)
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            threading.Thread(target=self._run, name="affect-copies", daemon=True).start()
        self._waiting.put((plan, *self._copy(taken)))

    def close(self) -> None:
        """Ends the thread, behind all that was handed over."""
        self._waiting.put(None)

    def _copy(self, taken: Taken | None) -> tuple[Taken | None, Any]:
        if taken is None:
            return None, None
        # What was taken was gathered on the engine's stream: what it does next cannot change it.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            host = Taken(self._to_host(taken.rows), None if taken.there is None else self._to_host(taken.there))
        return host, self._stream.record_event()

    def _to_host(self, part: torch.Tensor) -> torch.Tensor:
        host = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
        host.copy_(part, non_blocking=True)
        part.record_stream(self._stream)
        return host

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            plan, taken, done = item
            if done is not None:
                done.synchronize()
            self._deliver(plan, taken)
