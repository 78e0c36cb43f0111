"""``affect-monitor`` with a wall clock that jumps: python fault_clock.py CLOCK serve ...

CLOCK is a file that says by how many seconds the clock is off now. Only Python's wall clock jumps, as the sidecar reads
it; libfaketime would bend sleeps on the monotonic clock too, which no real jump does.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path


def main() -> None:
    """Bends the clock before anything of the sidecar is imported."""
    clock = Path(sys.argv.pop(1))
    true_ns = time.time_ns

    def time_ns() -> int:
        return true_ns() + int(clock.read_text()) * 1_000_000_000

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9
    from monitor.cli import main as run

    run()


if __name__ == "__main__":
    main()
