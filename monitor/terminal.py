"""What all commands share on the terminal: where faults and progress go, progress bars, packages that are missing."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from monitor.errors import SetupError

ERRORS = Console(stderr=True)
"""Standard error, so that answers can be read by programs."""

Told = Callable[[int, int], None]


class Bar:
    """A progress bar on standard error, told of items done and in all.

    Args:
        what: What the items are.
        after: Seconds of work before it is shown.
    """

    def __init__(self, what: str, after: float = 0.0) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=ERRORS
        )
        self._task = self._bars.add_task(what, total=None)
        self._shown_from = time.monotonic() + after

    def __enter__(self) -> Told:
        self._show()
        return self._told

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def _told(self, done: int, total: int) -> None:
        self._show()
        self._bars.update(self._task, completed=done, total=total)

    def _show(self) -> None:
        if time.monotonic() >= self._shown_from:
            self._bars.start()


def need(package: str, extra: str) -> None:
    """Asks for a package of an extra.

    Raises:
        SetupError: It is missing.
    """
    if find_spec(package) is None:
        raise SetupError(package, f"is not installed; pip install 'affect-monitor[{extra}]'")
