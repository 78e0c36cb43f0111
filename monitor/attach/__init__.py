"""What an inference server must be started with so that it sends hidden states; starts nothing itself."""

from __future__ import annotations

from enum import Enum


class Capture(str, Enum):
    """Where rows are taken from."""

    CACHE = "cache"
    TAP = "tap"
