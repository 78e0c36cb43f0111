"""Which requests are sent: by a hash of their id, so that all ranks and layers of an engine choose the same."""

from __future__ import annotations

import hashlib


def position_of(request_id: str) -> float:
    """Where a request stands in [0, 1): it is sent when this lies below the share that is wanted.

    The first eight bytes of the SHA-256 of its id, big endian, over 2^64, as ``DescribeResponse.sampling_rate`` has it.
    """
    # The last eleven bits would only round, in the worst case up to 1.
    return (int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "big") >> 11) / 2**53


_ADMIT, _KEEP = 0.5, 0.75


def admitted_share(fullness: float) -> float:
    """Share of new requests that a queue so full takes: all while half of it is free, none when it is full."""
    return min(1.0, (1 - fullness) / (1 - _ADMIT))


def kept_share(fullness: float) -> float:
    """Share of requests under way that a queue so full goes on with: all up to three quarters, none when it is full."""
    return min(1.0, (1 - fullness) / (1 - _KEEP))
