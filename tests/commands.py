"""The command line, run in the process of a test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from monitor import cli


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The error's one line."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("error ")]
        return line


Run = Callable[..., Result]


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *command: str) -> Run:
    """Runs a command, or one below it, with the arguments it is called with."""

    def run(*arguments: Any) -> Result:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["affect-monitor", *command, *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        shown = capsys.readouterr()
        return Result(int(left.value.code or 0), shown.out, shown.err)

    return run
