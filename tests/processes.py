"""Programs that serve HTTP, each run as a process of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

PATIENCE = 120.0


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Program:
    """A program under way.

    Attributes:
        url: Its address.
        log: What it said.
    """

    def __init__(self, command: Sequence[str], url: str, log: Path, environment: Mapping[str, str] | None) -> None:
        self.url, self.log = url, log
        with log.open("wb") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)

    def wait_for(self, path: str, patience: float = PATIENCE) -> None:
        """Waits until a page is there; fails with the log when the program ends before."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if httpx.get(self.url + path).is_success:
                    return
            assert self._process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        raise AssertionError(f"{path} did not answer in {patience} s:\n{self.log.read_text()}")

    def stop(self, patience: float = PATIENCE) -> int:
        """Asks it to end, as a kubelet does; its exit code, which is -9 when it had to be killed."""
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self._process.kill()
        return self._process.wait()


@contextmanager
def program(
    command: Sequence[str], url: str, log: Path, *, ready: str, environment: Mapping[str, str] | None = None
) -> Iterator[Program]:
    """Runs a program from when a page of its answers until the block is left.

    Args:
        command: What is run.
        url: Where it serves.
        log: File that what it says is written to.
        ready: The page that answers when it serves.
        environment: All its environment variables; default: the test's own.
    """
    running = Program(command, url, log, environment)
    try:
        running.wait_for(ready)
        yield running
    finally:
        running.stop()
