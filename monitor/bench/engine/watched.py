"""A sidecar that is killed and revived, and watched until it has nothing left to do."""

from __future__ import annotations

import time
from pathlib import Path

from monitor.bench.grid import Setting
from monitor.bench.measure import SCORED
from monitor.bench.sidecar import SidecarProcess
from monitor.errors import SetupError

_STREAMS = "affect_streams_open"
_TIMEOUT, _LOOK = 60.0, 0.1
_STILL = 3
"""Looks in a row that find nothing new scored: then all is."""


class WatchedSidecar:
    """``affect-monitor serve`` on one address, dead or alive.

    Args:
        address: ``unix:///path`` that the engine with capture sends to.
        bank: ``--bank``.
        folder: For its log.

    Raises:
        SetupError: It does not start.
    """

    def __init__(self, address: str, bank: str, folder: Path) -> None:
        self._address, self._bank, self._folder = address, bank, folder
        self._process: SidecarProcess | None = self._start()

    def be(self, *, alive: bool) -> None:
        """Kills it as a crash would, or starts it anew and waits until the engine has sent what it kept.

        Raises:
            SetupError: It does not start, or no engine connects.
        """
        if alive and self._process is None:
            self._process = self._start()
            self.connected()
            self.settled()
        elif not alive and self._process is not None:
            self._process.kill()
            self._process = None

    def close(self) -> None:
        """Ends it."""
        if self._process is not None:
            self._process.close()

    @property
    def scored(self) -> float:
        """Tokens scored since it started; 0 while it is dead."""
        return self._process.scrape().values[SCORED] if self._process is not None else 0.0

    def connected(self) -> None:
        """Waits for an engine.

        Raises:
            SetupError: None connects.
        """
        deadline = time.monotonic() + _TIMEOUT
        while self._process is not None and not self._process.scrape().values[_STREAMS]:
            if time.monotonic() > deadline:
                raise SetupError(
                    "--ingest",
                    f"no engine connects to {self._address} within {_TIMEOUT:g} s; start one that sends there",
                )
            time.sleep(_LOOK)

    def settled(self) -> float:
        """Waits until it has scored all there is; returns how many tokens it has scored since it started."""
        last, still = -1.0, 0
        while still < _STILL:
            time.sleep(_LOOK)
            now = self.scored
            still = still + 1 if now == last else 0
            last = now
        return last

    def _start(self) -> SidecarProcess:
        return SidecarProcess(Setting(), self._bank, self._folder, frozenset(), self._address)
