"""What all commands share on the terminal: where faults and progress go, progress bars, checks before the work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from monitor.errors import SetupError

if TYPE_CHECKING:
    from monitor.capture.credentials import ClientTls
    from monitor.probes.bank import Bank

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


def numbers(text: str, flag: str) -> list[int]:
    """Whole numbers, separated by commas.

    Raises:
        SetupError: It is something else.
    """
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise SetupError(flag, f"{text!r} is no list of whole numbers; write them as in 16,20") from None


def check_file(file: Path, flag: str) -> None:
    """Asks, before the work, for a file that can be written.

    Raises:
        SetupError: It cannot be.
    """
    _check_writable(file.parent, flag)
    if file.is_dir():
        raise SetupError(flag, f"{file} is a folder; name a file")


def check_folder(folder: Path, flag: str) -> None:
    """Asks, before the work, for a folder that is there to be written to, or can be made.

    Raises:
        SetupError: It is not, and cannot.
    """
    _check_writable(next(place for place in (folder, *folder.absolute().parents) if place.exists()), flag)


def _check_writable(folder: Path, flag: str) -> None:
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise SetupError(flag, f"{folder} is no folder that can be written to; make it or name another place")


def client_tls(ca: Path | None, certificate: Path | None, key: Path | None) -> ClientTls | None:
    """The files of mutual TLS; None where none is named.

    Raises:
        SetupError: One or two of them are named.
    """
    from monitor.capture.credentials import ClientTls

    if ca is not None and certificate is not None and key is not None:
        return ClientTls(ca, certificate, key)
    if ca is not None or certificate is not None or key is not None:
        raise SetupError("--tls-ca", "goes with --tls-cert and --tls-key; give all three")
    return None


def chosen_layers(layers: str, bank: str | None) -> tuple[Sequence[int], Bank | None]:
    """The layers to capture, from ``--layers`` or ``--bank``, and the bank where one is named.

    Raises:
        SetupError: Neither is given, or they do not agree.
    """
    named = numbers(layers, "--layers")
    if bank is None:
        if not named:
            raise SetupError("--layers", "is needed, or --bank, whose layers are taken; give one of them")
        return named, None
    from monitor.probes.bank import load_bank

    loaded = load_bank(bank)
    if named and tuple(named) != loaded.card.layers:
        raise SetupError(
            "--layers", f"{named} are not the bank's, which scores {list(loaded.card.layers)}; leave the flag out"
        )
    return loaded.card.layers, loaded


def load_model(model: str) -> tuple[Any, Any]:
    """Model and tokenizer for ``--model``."""
    from monitor.demo.assistant import load_assistant
    from monitor.demo.run import fetch

    return load_assistant(fetch(ERRORS) if model == "demo" else Path(model))
