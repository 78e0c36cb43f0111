"""Keeps errors of capture away from the inference server, and stops capturing where they do not cease."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LOG = logging.getLogger("affect_monitor.capture")
_IN_A_ROW = 5
_PAUSE_SECONDS = 30.0


class Breaker:
    """A circuit breaker around the hooks by which capture hangs in an engine.

    A hook that fails five times in a row opens it: capture stops, serving goes on. After half a minute capture is
    tried again, and one more error of that hook opens it anew. Hooks may run in several threads.

    Args:
        report: Called after every error.
        clock: Seconds, ever growing.
    """

    def __init__(
        self, report: Callable[[], None] | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._report = report
        self._clock = clock
        self._in_a_row: Counter[str] = Counter()
        self._complaints: set[tuple[str, str]] = set()
        self._open_until: float | None = None
        self._lock = threading.Lock()
        self.errors = 0
        """Errors so far."""

    @property
    def open(self) -> bool:
        """Whether capture is stopped."""
        if self._open_until is None:
            return False
        with self._lock:
            if self._open_until is None:
                return False
            if self._clock() < self._open_until:
                return True
            self._open_until = None
        _LOG.warning("capture is tried again")
        return False

    @contextmanager
    def guard(self, hook: str) -> Iterator[None]:
        """Keeps every exception of a hook from the engine, counts it and logs the first of its kind."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the engine must not see it
            self._failed(hook, error)
        else:
            if self._in_a_row:
                self._in_a_row.pop(hook, None)

    def _failed(self, hook: str, error: Exception) -> None:
        kind = hook, type(error).__name__
        with self._lock:
            self.errors += 1
            self._in_a_row[hook] += 1
            first = kind not in self._complaints
            self._complaints.add(kind)
            opens = self._in_a_row[hook] >= _IN_A_ROW and self._open_until is None
            if opens:
                self._open_until = self._clock() + _PAUSE_SECONDS
        if first:
            _LOG.error("capture failed in %s; serving goes on, more %s there are counted only", *kind, exc_info=error)
        if opens:
            _LOG.error(
                "capture stops for %.0f s after %d errors in a row in %s; serving goes on",
                _PAUSE_SECONDS,
                _IN_A_ROW,
                hook,
            )
        if self._report is not None:
            with suppress(Exception):
                self._report()
