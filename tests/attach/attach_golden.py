"""Writes the golden files of attach anew: ``python tests/attach/attach_golden.py``."""

from __future__ import annotations

import subprocess
import sys

from attach_cases import BANK, CASES, GOLDEN, POLICY, SETTINGS, workload


def main() -> None:
    """Writes what every workload becomes, and what is said of it."""
    for name, flags in CASES.items():
        command = [sys.executable, "-m", "monitor.cli", "attach", workload(name), "--bank", BANK, "--policy", POLICY]
        done = subprocess.run([*command, *flags, *SETTINGS.get(name, ())], capture_output=True, text=True, check=True)
        (GOLDEN / f"{name}.yaml").write_text(done.stdout)
        (GOLDEN / f"{name}.txt").write_text(done.stderr)


if __name__ == "__main__":
    main()
