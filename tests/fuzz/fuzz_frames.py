"""Fuzzes the frame decoder, against a stock protobuf parser, and the pipeline behind it.

How to run, from the checkout (wheels of atheris exist for Python 3.11 to 3.13):

    pip install '.[test]' atheris
    mkdir -p /tmp/frames && python tests/fuzz/fuzz_frames.py -max_total_time=600 /tmp/frames

The seeds are made anew and put into the corpus folder. Options are libFuzzer's; unless given, an input may take 10
seconds and the process 2 GB. What crashes is written to the current folder; the harness with that file for its only
argument runs it again. Atheris itself keeps some kilobytes of every input: raise -rss_limit_mb for runs of an hour.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["monitor"]):
    from fuzz.driver import fuzz
    from fuzz.frames import Streams, mutated, seeds

if __name__ == "__main__":
    fuzz(Streams().check, mutated, seeds())
