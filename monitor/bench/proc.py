"""What /proc tells of processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_LISTENS = "0A"
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(process: int) -> float:
    """Processor time a process has used so far, of all its threads."""
    after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / _TICKS


def resident_mb(process: int) -> float:
    """Resident memory of a process now, in megabytes of 1,000,000 bytes."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    resident = next(line for line in lines if line.startswith("VmRSS"))
    return int(resident.split()[1]) * 1024 / 1e6


def family(process: int) -> Iterator[int]:
    """A process and those it started, and theirs."""
    yield process
    for thread in Path(f"/proc/{process}/task").iterdir():
        children = ""
        # Threads come and go while they are listed.
        with suppress(FileNotFoundError, ProcessLookupError):
            children = (thread / "children").read_text()
        for child in children.split():
            yield from family(int(child))


def listener(port: int) -> int | None:
    """The process that listens on a TCP port; None: none that can be seen."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == _LISTENS and int(local.rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{inode}]")
    return next((process for process in _processes() if not sockets.isdisjoint(_open_files(process))), None)


def _processes() -> Iterator[int]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            yield int(folder.name)


def _open_files(process: int) -> Iterator[str]:
    # Processes and their files come and go, and those of other users are closed.
    with suppress(OSError):
        for file in Path(f"/proc/{process}/fd").iterdir():
            with suppress(OSError):
                yield str(file.readlink())
