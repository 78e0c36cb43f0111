"""Which of many are in a sample: by a hash of their name, so that all who ask choose the same."""

from __future__ import annotations

import hashlib


def position_of(name: str) -> float:
    """Where a name stands in [0, 1): it is in the sample when this lies below the share that is wanted.

    The first eight bytes of the SHA-256 of it, big endian, over 2^64, as ``DescribeResponse.sampling_rate`` has it.
    """
    # The last eleven bits would only round, in the worst case up to 1.
    return (int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 11) / 2**53
