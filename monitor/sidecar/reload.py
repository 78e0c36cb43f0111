"""Reloads without being asked: when the files that a sidecar was made from have changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from monitor.sidecar.watched import signature

_SECONDS = 2.0


class Follower:
    """Calls back after changes of some files, one at a time.

    Args:
        files: The files; a folder of links that is swapped as a whole, as Kubernetes does, counts as a change of each.
        changed: Called after a change, in a thread of its own.
    """

    def __init__(self, files: Sequence[Path], changed: Callable[[], object]) -> None:
        self._files, self._changed = files, changed
        self._seen = signature(files)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends it; a call under way is waited for."""
        self._stopping.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stopping.wait(_SECONDS):
            found = signature(self._files)
            if found != self._seen:
                self._seen = found
                self._changed()
