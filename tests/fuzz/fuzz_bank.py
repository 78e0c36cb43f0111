"""Fuzzes the loader of banks: card and tensors, behind their hashes too, and the use of what it takes.

How to run, from the checkout (wheels of atheris exist for Python 3.11 to 3.13):

    pip install '.[test]' atheris
    mkdir -p /tmp/banks && python tests/fuzz/fuzz_bank.py -max_total_time=600 /tmp/banks

The seeds are made anew and put into the corpus folder. Options are libFuzzer's; unless given, an input may take 10
seconds and the process 2 GB. What crashes is written to the current folder; the harness with that file for its only
argument runs it again. Atheris itself keeps some kilobytes of every input: raise -rss_limit_mb for runs of an hour.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["monitor"]):
    from fuzz.banks import Shelf, mutated, seeds
    from fuzz.driver import fuzz

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        shelf = Shelf(Path(folder))
        fuzz(lambda raw: shelf.check(raw) and None, mutated, seeds())
