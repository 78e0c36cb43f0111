"""Banks that were changed at random, their hashes made true again: refused by field, or fit to score with."""

from __future__ import annotations

import random

import pytest
from fuzz.banks import Parts, Shelf, joined, parts_of, seeds, walk
from fuzz.frames import quiet
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

SEEDS = seeds()
CHANCES = st.integers(0, 2**32 - 1).map(random.Random)
# A seed has no smaller one that does the same.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """A folder that bank after bank is loaded from."""
    return Shelf(tmp_path_factory.mktemp("shelf"))


@settings(max_examples=60, deadline=None, phases=PHASES)
@given(st.sampled_from(SEEDS), CHANCES, st.integers(1, 6))
def test_changed_banks_are_refused_by_field_or_score(
    shelf: Shelf, seed: bytes, chance: random.Random, steps: int
) -> None:
    """A changed bank is refused with the field at fault; one that loads scores turns and comes back when saved."""
    quiet()
    for raw in walk(seed, chance, steps):
        shelf.check(raw)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=60))
@example(b"{}", b"")
@example(b'{"bank_id": "", "tensors_sha256": ""}', b"\2\0\0\0\0\0\0\0{}")
def test_noise_is_refused(shelf: Shelf, card: bytes, tensors: bytes) -> None:
    """Random bytes for either file, beside a good other one or not, are refused."""
    quiet()
    good = parts_of(SEEDS[0])
    for parts in (Parts(True, card, tensors), good._replace(card=card), good._replace(tensors=tensors)):
        assert shelf.check(joined(parts)) is None


@pytest.mark.parametrize("seed", SEEDS, ids=range(len(SEEDS)))
def test_banks_to_begin_with(shelf: Shelf, seed: bytes) -> None:
    """Every bank that changes start from is a good one."""
    quiet()
    assert shelf.check(seed) is not None
