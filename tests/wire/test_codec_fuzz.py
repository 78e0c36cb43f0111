"""Frames that were changed at random: the decoder against a stock parser, and the sidecar behind it."""

from __future__ import annotations

import random

import pytest
from fuzz.frames import Streams, check_decoder, frames_of, mutated, quiet, seeds, stream_of, walk
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from monitor.wire.v1 import ingest_pb2

SEEDS = seeds()
CHANCES = st.integers(0, 2**32 - 1).map(random.Random)
# A seed has no smaller one that does the same.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
LARGEST = 2**32 - 1
FINDS = {
    "a gap that ends beyond the largest number of tokens": ingest_pb2.StreamActivationsRequest(
        events=[
            ingest_pb2.Event(request_id="a", start=ingest_pb2.Start()),
            ingest_pb2.Event(request_id="a", gap=ingest_pb2.Gap(start=LARGEST, count=LARGEST, reason=2)),  # type: ignore[arg-type]
            ingest_pb2.Event(request_id="a", end=ingest_pb2.End(total_tokens=LARGEST)),
        ]
    ),
    "shared rows of more bytes than credit can tell": ingest_pb2.StreamActivationsRequest(
        rows=ingest_pb2.Tensor(shared=ingest_pb2.SharedData(length=2**64 - 1))
    ),
}


@pytest.fixture(scope="module")
def streams() -> Streams:
    """A sidecar that takes stream after stream."""
    return Streams()


@settings(max_examples=300, phases=PHASES)
@given(st.sampled_from(SEEDS), CHANCES, st.integers(1, 8))
def test_the_decoder_agrees_with_a_stock_parser(seed: bytes, chance: random.Random, steps: int) -> None:
    """A changed frame is read as stock protobuf reads it, or refused as stock does or for a reason of the decoder's."""
    for stream in walk(seed, chance, steps):
        for raw in frames_of(stream):
            check_decoder(raw)


@settings(max_examples=80, phases=PHASES)
@given(st.sampled_from(SEEDS), CHANCES, st.integers(1, 6))
def test_changed_streams_end_in_numbers_or_faults(
    streams: Streams, seed: bytes, chance: random.Random, steps: int
) -> None:
    """A stream of changed frames leads to assessments and typed faults, none of them internal; no turn stays open."""
    quiet()
    for stream in walk(seed, chance, steps):
        streams.check(stream)


@settings(max_examples=100)
@given(st.lists(st.binary(max_size=100), max_size=4))
def test_noise_ends_in_faults(streams: Streams, frames: list[bytes]) -> None:
    """Frames of random bytes are read like stock protobuf reads them, and harm nothing."""
    quiet()
    streams.check(stream_of(frames))


@pytest.mark.parametrize("seed", SEEDS, ids=range(len(SEEDS)))
def test_streams_to_begin_with(streams: Streams, seed: bytes) -> None:
    """Every stream that changes start from holds to what is asked of them."""
    quiet()
    streams.check(seed)


@pytest.mark.parametrize("find", FINDS)
def test_what_was_found(find: str) -> None:
    """A stream that once led to an error of the sidecar's own leads to faults."""
    Streams().check(stream_of([FINDS[find].SerializeToString()] * 2))


def test_the_same_chance_makes_the_same_changes() -> None:
    """A find can be made again from its seed."""
    first, second = (mutated(SEEDS[0], random.Random(7)) for _ in range(2))  # noqa: S311 - test data
    assert first == second
