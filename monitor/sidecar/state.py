"""What a sidecar remembers over a restart: evidence of drift, and alerts that are up. No text, no ids but turns'."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from monitor.errors import SetupError

_LOG = structlog.get_logger("state")
_VERSION = "1"


class State(NamedTuple):
    """What is kept.

    Attributes:
        bank: SHA-256 of the tensors of the bank that the evidence was gathered with.
        drift: Arrays of ``Drifts``.
        alerts: Alerts of ``AlertEngine``.
    """

    bank: str
    drift: dict[str, NDArray[Any]]
    alerts: list[dict[str, Any]]


class StateFile:
    """One file, replaced as a whole; what cannot be read or written costs the memory and nothing else.

    Args:
        path: The file.

    Raises:
        SetupError: It cannot lie there.
    """

    def __init__(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise SetupError("--state-file", f"folder {path.parent} does not exist; create it")
        if path.is_dir():
            raise SetupError("--state-file", f"{path} is a folder; name a file")
        self._path = path
        self._failed = False
        self._writing = threading.Lock()

    def load(self) -> State | None:
        """What an earlier sidecar left; None where there is nothing that can be read, which is logged."""
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _LOG.error("state_not_read", file=str(self._path), error=error.strerror)
            return None
        try:
            return _parse(raw)
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            _LOG.error("state_not_read", file=str(self._path), error=str(error))
            return None

    def save(self, state: State) -> bool:
        """Writes a state beside the file and puts it in its place; says whether that could be done."""
        told = {"version": _VERSION, "bank": state.bank, "alerts": json.dumps(state.alerts)}
        beside = self._path.with_name(f"{self._path.name}.new")
        # The last save may come while one that was due is under way.
        with self._writing:
            try:
                with beside.open("wb") as file:
                    file.write(save(state.drift, told))
                    file.flush()
                    os.fsync(file.fileno())
                beside.replace(self._path)
            except OSError as error:
                if not self._failed:
                    _LOG.error("state_not_written", file=str(self._path), error=error.strerror)
                self._failed = True
                return False
            self._failed = False
            return True


def _parse(raw: bytes) -> State:
    # safetensors hands out metadata of open files alone; its header is JSON behind eight bytes of length.
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    told = header["__metadata__"]
    if told["version"] != _VERSION:
        raise ValueError(f"is of version {told['version']}, where {_VERSION} is known")
    return State(told["bank"], load(raw), json.loads(told["alerts"]))
