"""The baseline window: a bounded file of what ordinary turns scored, for a reference of the operator's own traffic."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import structlog
from pydantic import ValidationError

from monitor.assess.baseline import BaselineLine, baseline_line
from monitor.errors import SetupError
from monitor.outputs.metrics import Metrics
from monitor.probes.bank import Bank, Stance
from monitor.turns.tracker import TurnStats

_LOG = structlog.get_logger("baseline")
_REASONS = {errno.ENOSPC: "no_space", errno.EDQUOT: "no_space"}
_OTHER = "io"
_HEAD = b'{"bank":"'
"""How every line begins."""


class BaselineWriter:
    """Appends a line for each turn it is given until the file holds as many as it may.

    A disk that fails costs the turn its line and nothing else: it is counted, and logged the first time.

    Args:
        path: The file; lines it holds already count.
        bank: The bank that scores.
        turns: Lines the file may hold.
        metrics: Where lines that were lost are counted.

    Raises:
        SetupError: There is no such folder, or the file holds something else than turns scored by these probes.
    """

    def __init__(self, path: Path, bank: Bank, turns: int, metrics: Metrics) -> None:
        self._path = path
        self._bank = bank
        self._turns = turns
        self._metrics = metrics
        self._failed = False
        metrics.declare("affect_baseline_turns_lost_total", [("no_space",), (_OTHER,)])
        self._held = self._taken_over()

    def add(self, stats: TurnStats, stance: Stance, bank: Bank) -> None:
        """Writes the line of a turn, unless the file is full or it was scored by other probes than the file's."""
        if self._held >= self._turns or bank.probes != self._bank.probes:
            return
        line = baseline_line(bank, stats, stance).model_dump_json() + "\n"
        try:
            _append(self._path, line.encode())
        except OSError as error:
            self._lose(error)
            return
        self._held += 1
        if self._held == self._turns:
            _LOG.info("baseline_full", file=str(self._path), turns=self._turns)

    def _taken_over(self) -> int:
        """Turns that the file holds from before."""
        if not self._path.parent.is_dir():
            raise SetupError("--baseline-file", f"folder {self._path.parent} does not exist; create it")
        if self._path.is_dir():
            raise SetupError("--baseline-file", f"{self._path} is a folder; name a file")
        if not self._path.is_file():
            return 0
        try:
            return self._own_lines(self._path.read_bytes())
        except OSError as error:
            self._lose(error)
            return self._turns

    def _own_lines(self, raw: bytes) -> int:
        whole, _, torn = raw.rpartition(b"\n")
        lines = whole.splitlines()
        if not all(_is_of(self._bank, line) for line in lines) or torn[: len(_HEAD)] != _HEAD[: len(torn)]:
            raise SetupError(
                "--baseline-file",
                f"{self._path} holds something else than turns scored by the probes of bank {self._bank.card.bank_id}; "
                "move it away or name another file",
            )
        if torn:  # a process that was killed left half a line
            os.truncate(self._path, len(raw) - len(torn))
        return len(lines)

    def _lose(self, error: OSError) -> None:
        self._metrics.add("affect_baseline_turns_lost_total", 1, _REASONS.get(error.errno or 0, _OTHER))
        if not self._failed:
            _LOG.error("baseline_not_written", file=str(self._path), error=error.strerror)
        self._failed = True


def _append(path: Path, line: bytes) -> None:
    """Appends all of a line or nothing of it."""
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        if file.write(line) != len(line):
            with suppress(OSError):
                file.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_of(bank: Bank, line: bytes) -> bool:
    try:
        return BaselineLine.model_validate_json(line).probes == bank.probes
    except ValidationError:
        return False
