"""A process of its own that does over and over what it is told over a pipe."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from monitor.bench.cores import pinned
from monitor.errors import SetupError

_STOP_TIMEOUT = 20.0


class _Failure(NamedTuple):
    """A ``SetupError`` as it crosses the pipe."""

    field: str
    message: str


class Child:
    """The process, until it is closed.

    Args:
        name: What it is, for errors.
        work: Runs in it, with its end of the pipe and ``args``, within ``told(pipe)``.
        args: What else ``work`` gets.
        cores: Where it may run; empty: anywhere.
    """

    def __init__(
        self, name: str, work: Callable[..., None], args: tuple[Any, ...], cores: frozenset[int] = frozenset()
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, *args), daemon=True)
        with pinned(cores):
            self._process.start()
        theirs.close()

    def tell(self, task: object) -> None:
        """Tells it what to do; ``answer`` waits for what comes of it."""
        self._pipe.send(task)

    def answer(self) -> Any:
        """What came of the task before.

        Raises:
            SetupError: The process failed.
        """
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise SetupError(self._name, "its process ended; its error stands above") from None
        if isinstance(answer, _Failure):
            raise SetupError(*answer)
        return answer

    def close(self) -> None:
        """Ends it."""
        self._pipe.close()
        self._process.join(_STOP_TIMEOUT)
        self._process.kill()


@contextmanager
def told(pipe: Connection) -> Iterator[None]:
    """In the process: until the pipe is hung up; a ``SetupError`` goes to the other end."""
    try:
        yield
    except SetupError as error:
        pipe.send(_Failure(error.field, error.message))
    except EOFError:
        pass
