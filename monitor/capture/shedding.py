"""How much a queue that fills goes on to take: shares of requests, in the order of ``position_of``."""

from __future__ import annotations

_ADMIT, _KEEP = 0.5, 0.75


def admitted_share(fullness: float) -> float:
    """Share of new requests that a queue so full takes: all while half of it is free, none when it is full."""
    return min(1.0, (1 - fullness) / (1 - _ADMIT))


def kept_share(fullness: float) -> float:
    """Share of requests under way that a queue so full goes on with: all up to three quarters, none when it is full."""
    return min(1.0, (1 - fullness) / (1 - _KEEP))
