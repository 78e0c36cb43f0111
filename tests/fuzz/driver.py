"""What the harnesses share: defaults of libFuzzer, the corpus folder, the mutator."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris
import torch

_DEFAULTS = {"-rss_limit_mb": "2048", "-timeout": "10", "-max_len": "16384", "-print_final_stats": "1"}
Mutate = Callable[[bytes, random.Random], bytes]


def fuzz(
    check: Callable[[bytes], None], mutated: Callable[[bytes, random.Random, Mutate], bytes], seeds: list[bytes]
) -> None:
    """Runs libFuzzer with the arguments of the command line; never returns.

    Args:
        check: Raises on an input that is a find.
        mutated: Changes an input, with this much chance and this way to change bytes.
        seeds: Inputs to begin with.
    """
    given = {argument.partition("=")[0] for argument in sys.argv[1:]}
    arguments = sys.argv + [f"{name}={value}" for name, value in _DEFAULTS.items() if name not in given]
    for folder in (Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")):
        if folder.is_dir():
            for number, seed in enumerate(seeds):
                (folder / f"seed-{number:02}").write_bytes(seed)
            break

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        chance = random.Random(seed)  # noqa: S311 - libFuzzer's own seed
        for _ in range(chance.choice((1, 1, 2, 4))):
            data = mutated(data, chance, lambda raw, _chance: atheris.Mutate(raw, max_size) if raw else b"\0")
        return data[:max_size]

    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)  # numbers at the edge of their type
    atheris.Setup(arguments, check, custom_mutator=mutate)
    atheris.Fuzz()
