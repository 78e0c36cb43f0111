"""Takes rows from where vLLM keeps them to the host, without making the engine wait."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from monitor.capture.vllm.plan import StepPlan


class CachedRows:
    """Rows in the paged cache of ``extract_hidden_states``.

    Args:
        cache: [blocks, layers, block_size, hidden], on the engine's device.
    """

    def __init__(self, cache: torch.Tensor) -> None:
        self._cache = cache
        self.hidden_size = int(cache.shape[3])

    def take(self, slots: NDArray[np.int64]) -> torch.Tensor:
        """A copy of the rows at some slots: [rows, layers, hidden], on the engine's device."""
        places = torch.from_numpy(slots)
        if self._cache.is_cuda:
            places = places.pin_memory().to(self._cache.device, non_blocking=True)
        size = self._cache.shape[2]
        return self._cache[places // size, :, places % size]


class HostCopies:
    """Brings rows to the host and hands them on in order, with the plans they belong to.

    On CUDA the copy goes to pinned memory on a stream of its own, and a thread waits for it; the engine's stream and
    thread go on. Where rows are on the host already they are handed on at once.

    Args:
        deliver: Called with each plan and its rows, if it has any; must not raise.
    """

    def __init__(self, deliver: Callable[[StepPlan, torch.Tensor | None], None]) -> None:
        self._deliver = deliver
        self._stream: Any = None
        self._waiting: queue.SimpleQueue[tuple[StepPlan, torch.Tensor | None, Any] | None] = queue.SimpleQueue()

    def hand_on(self, plan: StepPlan, rows: torch.Tensor | None) -> None:
        """Hands a plan and its rows on, once they are on the host."""
        if self._stream is None and (rows is None or not rows.is_cuda):
            self._deliver(plan, rows)
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            threading.Thread(target=self._run, name="affect-copies", daemon=True).start()
        self._waiting.put((plan, *self._copy(rows)))

    def close(self) -> None:
        """Ends the thread, behind all that was handed over."""
        self._waiting.put(None)

    def _copy(self, rows: torch.Tensor | None) -> tuple[torch.Tensor | None, Any]:
        if rows is None:
            return None, None
        # The rows were gathered on the engine's stream: what it does next cannot change them.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            host.copy_(rows, non_blocking=True)
        rows.record_stream(self._stream)
        return host, self._stream.record_event()

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            plan, rows, done = item
            if done is not None:
                done.synchronize()
            self._deliver(plan, rows)
