"""Fetches the Python files of SGLang, against which the contract tests run: no GPU, none of what it depends on.

``python tests/integration/sglang_source.py --folder DIR`` takes seconds and 40 MB. Tests find it by
``AFFECT_SGLANG_SOURCE=DIR``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "0.5.23"


def fetch(folder: Path) -> None:
    """Lays the Python files of the wheel into a folder."""
    with tempfile.TemporaryDirectory() as space:
        # The files are the same for every interpreter; the wheel is not.
        kind = ["--only-binary=:all:", "--platform", "manylinux_2_34_x86_64", "--python-version", "3.11"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *kind, f"sglang=={VERSION}"]
        subprocess.run([*command, "--dest", space], check=True)
        (wheel,) = Path(space).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, filter(_is_wanted, archive.namelist()))


def _is_wanted(name: str) -> bool:
    return name.endswith(".py") and (name.startswith("sglang/srt/") or name.count("/") == 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    fetch(parser.parse_args().folder)
