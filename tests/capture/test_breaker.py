"""The circuit breaker between capture and the engine."""

from __future__ import annotations

import logging
import threading
from typing import NoReturn

import pytest

from monitor.capture.breaker import Breaker


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _fail(breaker: Breaker, hook: str, times: int) -> None:
    for _ in range(times):
        with breaker.guard(hook):
            _raise()


def _raise() -> NoReturn:
    raise ZeroDivisionError("injected")


def test_errors_stay_inside_and_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    """An error reaches the counter each time and the log once."""
    reports: list[int] = []
    breaker = Breaker(lambda: reports.append(1))
    with caplog.at_level(logging.ERROR, "affect_monitor.capture"):
        _fail(breaker, "save", 3)
    assert breaker.errors == len(reports) == 3
    assert not breaker.open
    assert len(caplog.records) == 1
    assert "save" in caplog.text


def test_opens_after_five_errors_in_a_row_and_tries_again() -> None:
    """Five errors of one hook in a row stop capture for half a minute, and the next one stops it anew."""
    clock = _Clock()
    breaker = Breaker(clock=clock)
    _fail(breaker, "save", 5)
    assert breaker.open
    clock.now = 31.0
    assert not breaker.open
    _fail(breaker, "save", 1)
    assert breaker.open
    clock.now = 62.0
    with breaker.guard("save"):
        pass
    _fail(breaker, "save", 4)
    assert not breaker.open


def test_a_success_elsewhere_does_not_hide_a_hook_that_always_fails() -> None:
    """Errors are in a row by hook: other hooks that work do not keep capture going."""
    breaker = Breaker()
    for _ in range(5):
        with breaker.guard("other"):
            pass
        _fail(breaker, "save", 1)
    assert breaker.open


def test_threads_that_fail_at_once_stop_capture_once(caplog: pytest.LogCaptureFixture) -> None:
    """Hooks run in the engine's thread and in that of copies: one waits while the other decides."""
    others: list[threading.Thread] = []

    def clock() -> float:
        if not others:
            others.append(threading.Thread(target=_fail, args=(breaker, "save", 1)))
            others[0].start()
            others[0].join(0.2)
        return 0.0

    breaker = Breaker(clock=clock)
    _fail(breaker, "save", 5)
    others[0].join()
    assert breaker.errors == 6
    assert caplog.text.count("capture stops") == 1


def test_leaves_a_request_to_stop_alone() -> None:
    """An interrupt is no error of capture."""
    breaker = Breaker()
    with pytest.raises(KeyboardInterrupt), breaker.guard("save"):
        raise KeyboardInterrupt
    assert breaker.errors == 0


def test_a_report_that_fails_is_kept_too() -> None:
    """What counts errors may fail like anything else."""
    breaker = Breaker(_raise)
    _fail(breaker, "save", 2)
    assert breaker.errors == 2
