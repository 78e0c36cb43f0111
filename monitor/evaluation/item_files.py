"""The authored items: where they lie, and their lines; what they are stands in their README."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

_Item = TypeVar("_Item")

ITEMS = Path(__file__).parent / "items"


def item_lines(name: str, folder: Path = ITEMS) -> list[dict[str, Any]]:
    """Lines of a file of items."""
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def spread(items: Sequence[_Item], count: int) -> list[_Item]:
    """So many at most, from all over a sequence, for files are in order of kind or domain."""
    return [items[index] for index in np.linspace(0, len(items), min(count, len(items)), endpoint=False).astype(int)]
